"""`headrace index`."""

from pathlib import Path

from tests.cli.conftest import Command


async def test_the_index_is_made_and_counted(headrace: Command, tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "mill.md").write_text("# Mill\n\nThe headrace brings the water to the wheel.\n")
    (folder / "wheel.txt").write_text("The wheel turns.\n")
    code, out, err = await headrace("index", str(folder))
    assert (code, out) == (0, "2 documents, 2 passages\n")
    assert "HEADRACE_DOCUMENTS" in err
    assert (tmp_path / "data" / "documents.db").exists()
