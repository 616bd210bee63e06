"""What brings each kind of file to the Markdown that passages are made of."""

import re
from collections.abc import Callable
from html.parser import HTMLParser


def _from_markdown(text: str) -> str:
    """Without its front matter."""
    if not text.startswith("---\n"):
        return text
    _, end, body = text[4:].partition("\n---\n")
    return body if end else text


def _from_rst(text: str) -> str:
    """Directives are dropped, literal blocks become fenced code."""
    lines: list[str] = []
    margin: int | None = None
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if margin is not None:
            if not line.strip() or indent > margin:
                lines.append(line)
                continue
            lines += ["```", ""]
            margin = None
        if line.lstrip().startswith(".. "):
            if "code" in line and "::" in line:
                lines.append("```")
                margin = indent
            continue
        lines.append(line.replace("``", "`"))
        if line.endswith("::"):
            lines[-1] = lines[-1][:-1]
            lines.append("```")
            margin = indent
    return "\n".join(lines)


_SECTIONS = ("p", "div", "section", "article", "main", "header", "footer", "blockquote", "figure")
_BLOCKS = frozenset((*_SECTIONS, "ul", "ol", "dl", "dt", "dd", "table"))
_SILENT = ("script", "style", "title", "noscript", "template", "nav", "svg")
_HEADINGS = {f"h{level}": "\n\n" + "#" * level + " " for level in range(1, 7)}
_OPENING = {"br": "\n", "li": "\n- ", "tr": "\n| ", "pre": "\n\n```\n", **_HEADINGS, **dict.fromkeys(_BLOCKS, "\n\n")}
_CLOSING = {"td": " | ", "th": " | ", "pre": "\n```\n\n", **dict.fromkeys((*_HEADINGS, *_BLOCKS), "\n\n")}
_MARKUP_SPACE = re.compile(r"\s+")


class _HtmlText(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._silent = 0
        self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in _SILENT
        self._verbatim += tag == "pre"
        self.parts.append(_OPENING.get(tag, ""))

    def handle_endtag(self, tag: str) -> None:
        self._silent = max(0, self._silent - (tag in _SILENT))
        self._verbatim = max(0, self._verbatim - (tag == "pre"))
        self.parts.append(_CLOSING.get(tag, ""))

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data if self._verbatim else _MARKUP_SPACE.sub(" ", data))


def _from_html(text: str) -> str:
    parser = _HtmlText()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts)


READERS: dict[str, Callable[[str], str]] = {
    ".md": _from_markdown,
    ".markdown": _from_markdown,
    ".txt": str,
    ".rst": _from_rst,
    ".html": _from_html,
    ".htm": _from_html,
}
"""By the ending of the file; other files are left out."""
