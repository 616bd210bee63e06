import contextlib
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.documents import DocumentIndex, default_documents, query_terms, sentences, terms
from headrace.documents.files import MAX_FILE_BYTES
from headrace.documents.formats import READERS
from headrace.documents.passages import PASSAGE_CHARACTERS, Outline
from headrace.errors import ConfigurationError

Build = Callable[..., DocumentIndex]

MILL = """---
author: nobody
---
# The mill

A headrace brings water to the wheel.

## Wheel

The wheel turns the stones. It is made of oak.

### Gears

- The pit wheel has 80 teeth.
- The wallower has 20 teeth,
  which is few.

```sh
# not a heading
grind --fine
```

| part | made of |
|---|---|
| shaft | **elm** |

## Miller

The miller sleeps at [night](night.md).
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "mill.md").write_text(MILL)
    return folder


@pytest.fixture
def build() -> Iterator[Build]:
    """Builds indexes that are closed after the test."""
    with contextlib.ExitStack() as opened:

        def build(folder: Path, path: Path | None = None) -> DocumentIndex:
            return opened.enter_context(contextlib.closing(DocumentIndex.build(folder, path)))

        yield build


def found(folder: Path, query: str) -> list[str]:
    with contextlib.closing(DocumentIndex.build(folder)) as index:
        return [passage.source for passage in index.search(query)]


def test_a_passage_knows_its_document_and_headings(build: Build, folder: Path) -> None:
    best = build(folder).search("How many teeth has the pit wheel?")[0]
    assert best[:3] == ("mill.md", "The mill", "Wheel > Gears")
    assert "The pit wheel has 80 teeth." in best.text
    assert best.score > 0


def test_best_first_and_no_more_than_asked_for(build: Build, folder: Path) -> None:
    passages = build(folder).search("wheel miller teeth", limit=2)
    assert len(passages) == 2
    assert passages[0].score >= passages[1].score


def test_words_are_found_in_their_other_forms(folder: Path) -> None:
    (folder / "forms.txt").write_text("Streaming clients resumed.\n\nCafé Zürich: 分散システムの設計。")
    assert found(folder, "stream") == ["forms.txt"]
    assert found(folder, "RESUMES") == ["forms.txt"]
    assert found(folder, "cafe zurich") == ["forms.txt"]
    assert found(folder, "システム") == ["forms.txt"]


@pytest.mark.parametrize(
    "words",
    [
        ("stream", "streams", "streamed", "streaming"),
        ("resume", "resumes", "resumed", "resuming"),
        ("die", "dies", "died"),
        ("query", "queries", "queried"),
        ("stop", "stops", "stopped", "stopping"),
    ],
)
def test_one_term_for_the_forms_of_a_word(words: tuple[str, ...]) -> None:
    assert len({*map(tuple, map(terms, words))}) == 1


def test_filler_words_find_nothing(folder: Path) -> None:
    assert query_terms("What is it of the?") == []
    assert found(folder, "What is it of the?") == []


HOSTILE = [
    'wheel" OR "x',
    '" * ^ NEAR(wheel, 2) -teeth {text_terms}: (',
    "wheel AND NOT OR",
    "text_terms:wheel",
    "\0wheel\0",
    "'; DROP TABLE document_files; --",
    "\ud800 wheel",
    "wheel " + "x" * 1_000_000,
    "wheel " + "y " * 500_000,
    "🎡 wheel 𞤀",
]


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_is_query_syntax(build: Build, folder: Path, query: str) -> None:
    index = build(folder)
    index.search(query)
    index.weights(query)
    assert [passage.title for passage in index.search("wheel")][:1] == ["The mill"]


def test_what_is_meant_is_found_among_operators(folder: Path) -> None:
    assert set(found(folder, 'NEAR("wheel"* AND')) == {"mill.md"}


@given(query=st.text(max_size=60), text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_question_and_any_document_are_taken(query: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name, "any.md").write_text(text, encoding="utf-8")
        index = DocumentIndex.build(Path(name))
        index.search(query)
        for passage in index.search(text):
            sentences(passage.text)
        index.close()


def test_the_rarer_a_word_the_more_it_tells(build: Build, folder: Path) -> None:
    weights = build(folder).weights("wheel shaft unheard")
    assert weights["wheel"] < weights["shaft"] < weights["unheard"]


# --- what is read -----------------------------------------------------------------------------------------------------


def test_only_visible_text_files_inside_the_folder_are_read(folder: Path, tmp_path: Path) -> None:
    (folder / "binary.txt").write_bytes(b"wheel \0 wheel")
    (folder / "picture.png").write_text("wheel")
    (folder / ".hidden.md").write_text("wheel")
    (folder / ".git").mkdir()
    (folder / ".git" / "note.md").write_text("wheel")
    (folder / "large.txt").write_text("wheel " * (MAX_FILE_BYTES // 6 + 1))
    (tmp_path / "secret.md").write_text("wheel")
    (tmp_path / "documents-2").mkdir()
    (tmp_path / "documents-2" / "x.md").write_text("wheel")
    (folder / "out.md").symlink_to(tmp_path / "secret.md")
    (folder / "beside.md").symlink_to(tmp_path / "documents-2" / "x.md")
    (folder / "outside").symlink_to(tmp_path, target_is_directory=True)
    (folder / "loop.md").symlink_to(folder / "loop.md")
    os.mkfifo(folder / "pipe.md")
    (folder / "below").mkdir()
    (folder / "below" / "deep.md").write_text("A wheel of fortune.")
    assert set(found(folder, "wheel")) == {"mill.md", "below/deep.md"}


def test_a_link_inside_the_folder_is_read_once(folder: Path) -> None:
    (folder / "..data").mkdir()
    (folder / "..data" / "stored").write_text("The sluice is shut.")
    (folder / "sluice.md").symlink_to(folder / "..data" / "stored")
    (folder / "zz.md").symlink_to(folder / "sluice.md")
    assert found(folder, "sluice") == ["sluice.md"]


def test_text_that_is_not_unicode_and_names_that_are_not(folder: Path) -> None:
    (folder / "latin.txt").write_bytes("Das Mühlrad dreht sich".encode("latin-1"))
    with open(os.fsencode(folder) + b"/\xff.txt", "wb") as file:
        file.write(b"dreht\r\nsich")
    assert set(found(folder, "dreht")) == {"latin.txt", "\ufffd.txt"}


def test_html_is_read_without_its_markup(build: Build, folder: Path) -> None:
    (folder / "page.html").write_text(
        "<html><head><title>T</title><style>p {color: red}</style><script>var sluice = 1</script></head><body>"
        "<nav>sluice</nav><h1>Weir &amp; dam</h1><p>The <b>weir</b>\n holds &lt;water&gt;.</p>"
        "<h2>Parts</h2><ul><li>A crest is on top.</li></ul><pre># code\nopen</pre></body></html>"
    )
    index = build(folder)
    assert [(p.title, p.heading, p.text) for p in index.search("crest")] == [
        ("Weir & dam", "Parts", "- A crest is on top.\n\n```\n# code\nopen\n```")
    ]
    assert sentences(index.search("holds water")[0].text) == ["The weir holds <water>."]
    assert index.search("sluice color") == []


def test_rst_is_read_with_its_headings(build: Build, folder: Path) -> None:
    (folder / "page.rst").write_text(
        "====\nWeir\n====\n\n.. note:: hidden\n\nIt holds ``water``. So::\n\n    dig()\n    dam()\n\n"
        "Parts\n-----\n\nThe crest is on top.\n"
    )
    index = build(folder)
    assert [(p.title, p.heading, p.text) for p in index.search("crest")] == [("Weir", "Parts", "The crest is on top.")]
    assert sentences(index.search("water")[0].text) == ["It holds `water`.", "So:"]


def test_a_document_without_a_heading_is_named_after_its_file(build: Build, folder: Path) -> None:
    (folder / "weir.txt").write_text("Crest.")
    assert build(folder).search("crest")[0].title == "weir"


def test_long_text_is_cut_into_passages_between_sentences() -> None:
    text = " ".join(f"This is sentence number {n}." for n in range(200))
    passages = [text for _, text in Outline(f"# Long\n\n{text}").passages]
    assert len(passages) > 3
    assert all(len(passage) <= PASSAGE_CHARACTERS and passage.endswith(".") for passage in passages)
    assert " ".join(passages) == text


def test_text_without_a_place_to_cut_and_long_code() -> None:
    passages = [text for _, text in Outline("x" * 5000 + "\n\n```\n" + "code = 1\n" * 300 + "```\n\nEnd.").passages]
    assert all(len(passage) <= PASSAGE_CHARACTERS + 10 for passage in passages)
    assert "".join(passages).count("x") == 5000
    assert "".join(passages).count("code = 1") == 300
    assert [sentence for passage in passages for sentence in sentences(passage) if "code" in sentence] == []


def test_sentences_of_lists_tables_and_prose() -> None:
    text = "\n\n".join(text for heading, text in Outline(READERS[".md"](MILL)).passages if heading == "Wheel > Gears")
    assert sentences(text) == [
        "The pit wheel has 80 teeth.",
        "The wallower has 20 teeth, which is few.",
        "shaft · elm",
    ]
    assert sentences("One, e.g. This one. Two (p50) and 3! Is [it](x.md)?\nYes") == [
        "One, e.g. This one.",
        "Two (p50) and 3!",
        "Is it?",
        "Yes",
    ]
    assert sentences("一つ目。二つ目。") == ["一つ目。", "二つ目。"]


# --- the index is kept ------------------------------------------------------------------------------------------------


def digest_rows(path: Path) -> list[tuple[int, int]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT id, mtime_ns FROM document_files ORDER BY id").fetchall()
    finally:
        connection.close()


def age(path: Path, seconds: int = 3600) -> None:
    then = path.stat().st_mtime_ns - seconds * 10**9
    os.utime(path, ns=(then, then))


def test_changes_additions_and_deletions_are_noticed(build: Build, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    (folder / "gone.md").write_text("A tailrace leads away.")
    build(folder, path).close()
    (folder / "gone.md").unlink()
    (folder / "mill.md").write_text("A sluice.")
    (folder / "new.md").write_text("A weir.")
    index = build(folder, path)
    assert index.search("tailrace wheel") == []
    assert {p.source for p in index.search("sluice weir")} == {"mill.md", "new.md"}
    assert (index.documents, index.passages) == (2, 2)


def test_a_change_of_the_same_size_at_the_same_time_is_noticed(build: Build, folder: Path, tmp_path: Path) -> None:
    path, file = tmp_path / "index.sqlite", folder / "mill.md"
    file.write_text("A sluice")
    build(folder, path).close()
    status = file.stat()
    file.write_text("A wheels")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(build(folder, path).search("wheel")) == 1


def test_what_did_not_change_is_not_read_again(build: Build, folder: Path, tmp_path: Path) -> None:
    path, file = tmp_path / "index.sqlite", folder / "mill.md"
    age(file)
    build(folder, path).close()
    before = digest_rows(path)
    status = file.stat()
    file.write_bytes(b"x" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    index = build(folder, path)
    assert len(index.search("wallower")) == 1
    assert digest_rows(path) == before


def test_a_touched_file_keeps_its_row(build: Build, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    age(folder / "mill.md")
    build(folder, path).close()
    before = digest_rows(path)
    age(folder / "mill.md")
    build(folder, path).close()
    after = digest_rows(path)
    assert [id for id, _ in after] == [id for id, _ in before]
    assert after != before


def test_a_file_that_became_binary_is_forgotten(build: Build, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    build(folder, path).close()
    (folder / "mill.md").write_bytes(b"wheel\0")
    index = build(folder, path)
    assert (index.search("wheel"), index.documents) == ([], 0)


def test_another_folder_replaces_the_first(build: Build, folder: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "index.sqlite", tmp_path / "other"
    other.mkdir()
    (other / "mill.md").write_text("A weir.")
    build(folder, path).close()
    index = build(other, path)
    assert index.titles() == ["mill"]
    assert index.search("wheel") == []


def test_an_index_of_another_version_is_made_anew(build: Build, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    build(folder, path).close()
    connection = sqlite3.connect(path)
    connection.executescript("DROP TABLE document_passages; PRAGMA user_version = 99;")
    connection.close()
    assert len(build(folder, path).search("wallower")) == 1


def test_threads_share_an_index(build: Build, folder: Path) -> None:
    index = build(folder)
    results: list[int] = []

    def ask() -> None:
        results.extend(len(index.search("wallower")) for _ in range(50))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [1] * 400


def test_a_folder_or_an_index_that_cannot_be_used_is_told(build: Build, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="folder of documents"):
        build(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="index of the documents"):
        build(folder, tmp_path / "nowhere" / "index.sqlite")
    (tmp_path / "precious.txt").write_text("not a database, and long enough to be read as one " * 100)
    with pytest.raises(ConfigurationError, match="index of the documents"):
        build(folder, tmp_path / "precious.txt")
    assert (tmp_path / "precious.txt").read_text().startswith("not a database")


def test_our_own_documents_are_there() -> None:
    assert (default_documents() / "index.md").is_file()
