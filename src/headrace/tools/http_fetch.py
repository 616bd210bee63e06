"""Reads a public page or text file by its URL."""

import asyncio
import html
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from headrace.egress import MAX_REDIRECTS, Egress
from headrace.errors import ToolRefused
from headrace.ports import Tool, ToolContext

_MAX_BYTES = 1024 * 1024
_MAX_CHARACTERS = 50_000

_HTML = frozenset(("text/html", "application/xhtml+xml"))
_TEXTUAL = re.compile(
    r"text/.*|application/(?:.*\+)?(?:json|xml|yaml)|application/(?:javascript|toml|x-ndjson|x-yaml|xhtml\+xml|sql)"
)
_CHARSET = re.compile(r"charset\s*=\s*\"?([\w.:-]+)", re.ASCII | re.IGNORECASE)
_DECODABLE = re.compile(
    r"utf-?(?:16|32)(?:-?[bl]e)?|us-ascii|latin-?1|iso-?8859-?\d{1,2}|(?:windows-|cp)\d{3,4}|koi8-[ru]|macintosh"
    r"|shift_jis|euc-(?:jp|kr)|iso-2022-jp|gbk|gb2312|gb18030|big5",
    re.ASCII | re.IGNORECASE,
)
"""Character sets as the web names them. Python knows others that take minutes, or are none."""


class HttpFetch(Tool):
    """Asks public addresses only; see `Egress`, which has to be started."""

    name = "http_fetch"
    description = (
        "Reads a public web page or text file by its URL, with GET. HTML is given as plain text without its links."
    )
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"url": {"type": "string", "description": "Begins with http:// or https://."}},
        "required": ["url"],
        "additionalProperties": False,
    }
    idempotent = True
    timeout = 20.0
    concurrency: int | None = 8

    def __init__(self, egress: Egress) -> None:
        self._egress = egress

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> dict[str, Any]:
        """Raises what `Egress.open` raises, and `ToolRefused` for a body that is no text."""
        fetched = await self._egress.request(
            "GET",
            arguments["url"],
            headers={"Accept": "text/*, application/json, */*;q=0.1"},
            max_bytes=_MAX_BYTES,
            timeout=self.timeout,
            redirects=MAX_REDIRECTS,
        )
        content_type = fetched.headers.get("Content-Type", "")
        kind = content_type.partition(";")[0].strip().lower()
        if fetched.body and not _TEXTUAL.fullmatch(kind):
            raise ToolRefused("What is at this address is not text.")
        text = _decoded(fetched.body, content_type)
        if kind in _HTML:
            text = await asyncio.to_thread(page_text, text)
        return {
            "url": str(fetched.url),
            "status": fetched.status,
            "content_type": kind,
            "text": text[:_MAX_CHARACTERS],
            "truncated": fetched.truncated or len(text) > _MAX_CHARACTERS,
        }


def _decoded(body: bytes, content_type: str) -> str:
    """By the charset of the header, else as UTF-8; what does not fit it is replaced."""
    charset = _CHARSET.search(content_type)
    if charset is not None and _DECODABLE.fullmatch(charset[1]):
        try:
            return body.decode(charset[1], "replace")
        except LookupError:
            pass
    return body.decode("utf-8-sig", "replace")


_TAG = re.compile(r"/?[a-zA-Z][a-zA-Z0-9]*")
_SPACE = re.compile(r"\s+")
_SILENT = frozenset(("script", "style", "noscript", "template"))
_LINE = re.compile(
    r"/?(?:article|aside|blockquote|br|dd|div|dl|dt|figcaption|figure|footer|form|h[1-6]|header|hr|li|main|nav|ol"
    r"|option|p|pre|section|table|title|tr|ul)"
)
_BEGINNINGS = {"li": "- ", "td": " | ", "th": " | ", **{f"h{level}": "#" * level + " " for level in range(1, 7)}}


def page_text(page: str) -> str:
    """The text of an HTML page, line by line, without scripts, styles and comments.

    One pass, whatever is in it: the parser of Python takes minutes for a page of 100 KB that is made for that.
    """
    reader = _PageReader()
    first, *pieces = page.split("<")
    reader.add_text(first)
    for piece in pieces:
        reader.add_piece(piece)
    return reader.text()


class _PageReader:
    """Takes a page in pieces that were cut at each `<`, which is gone. Attributes with `<` or `>` in them leave some
    of their text."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._skipped_until = ""
        """What ends a part that is not shown: `-->` or the name of a closing tag."""
        self._verbatim = False

    def add_piece(self, piece: str) -> None:
        if not self._skipped_until and piece.startswith("!--"):
            self._skipped_until, piece = "-->", piece[1:]
        if self._skipped_until == "-->":
            _, end, text = piece.partition("-->")
            if end:
                self._skipped_until = ""
                self.add_text(text)
            return
        _, end, text = piece.partition(">")
        found = _TAG.match(piece)
        tag = found[0].lower() if found else ""
        if self._skipped_until:
            if tag != self._skipped_until:
                return
            self._skipped_until = ""
        elif not end or not (tag or piece[0] in "!?/"):
            text = "<" + piece
        elif tag in _SILENT:
            self._skipped_until = "/" + tag
            return
        else:
            self._add_tag(tag)
        self.add_text(text)

    def add_text(self, text: str) -> None:
        with suppress(ValueError):  # a number of thousands of digits
            text = html.unescape(text)
        if not self._verbatim:
            text = _SPACE.sub(" ", text)
            if not self._parts or self._parts[-1].endswith(("\n", " ")):
                text = text.removeprefix(" ")
        if text:
            self._parts.append(text)

    def text(self) -> str:
        lines: list[str] = []
        for line in map(str.rstrip, "".join(self._parts).split("\n")):
            if line or (lines and lines[-1]):
                lines.append(line)
        return "\n".join(lines).rstrip("\n")

    def _add_tag(self, tag: str) -> None:
        if tag in ("pre", "/pre"):
            self._verbatim = tag == "pre"
        if _LINE.fullmatch(tag):
            self._parts.append("\n")
        if tag in _BEGINNINGS:
            self._parts.append(_BEGINNINGS[tag])
