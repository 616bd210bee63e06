"""What the docs say is there: links lead somewhere, and every setting, error and event is described."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.errors import BY_CODE
from headrace.events import KINDS
from headrace.settings import Settings

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ +(.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    broken = []
    for match in LINK.finditer(FENCED.sub("", page.read_text(encoding="utf-8"))):
        target = page.parent / match[1] if match[1] else page
        if not target.exists() or (match[2] and match[2] not in anchors(target)):
            broken.append(match[0])
    return broken


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Here\n[a](#here) [b](#there) [c](gone.md) [d](page.md#here) [e](https://example.org/x)\n")
    assert broken_links(page) == ["](#there)", "](gone.md)"]


def test_every_page_can_be_reached_from_the_contents() -> None:
    docs = ROOT / "docs"
    linked = {(docs / match[1]).resolve() for match in LINK.finditer((docs / "index.md").read_text(encoding="utf-8"))}
    assert [
        page.name for page in docs.glob("**/*.md") if page.name != "index.md" and page.resolve() not in linked
    ] == []


def test_generated_tables_say_what_the_code_says() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "reference.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("page", "names"), [("errors.md", list(BY_CODE)), ("events.md", list(KINDS))])
def test_every_code_and_kind_is_described(page: str, names: list[str]) -> None:
    text = (REFERENCE / page).read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_setting_is_described() -> None:
    text = (REFERENCE / "settings.md").read_text(encoding="utf-8")
    names = [f"HEADRACE_{name.upper()}" for name in Settings.model_fields]
    assert [name for name in names if f"`{name}`" not in text] == []
