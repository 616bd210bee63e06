"""Documents as passages under their headings, and passages as sentences. Pure; reads Markdown's forms."""

import re
from typing import NamedTuple

PASSAGE_CHARACTERS = 900
"""A passage is not longer than this by more than its fence."""


class Passage(NamedTuple):
    source: str
    """Path of the file below the folder, with slashes."""
    title: str
    """The document's first heading, or its file name without the ending."""
    heading: str
    """The headings above the passage, without the title, as `Setup > Ports`; empty at the top."""
    text: str
    score: float
    """How well it fits (BM25), higher is better; only comparable within one search."""


_CODE = re.compile(r"^ *(```|~~~).*?(?:^ *\1|\Z)", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*\)")
_ITEM = re.compile(r"^\s*(?:[-*+]|\d{1,3}[.)])\s+|^\s*>\s?")
_RULE = re.compile(r"[\s|:=+-]+")
_SENTENCE_END = re.compile(r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)(?<=[.!?:])\s+(?=[A-Z0-9`\"'(\[])|(?<=[。！？])")


def sentences(text: str) -> list[str]:
    """The sentences of a passage in order, each on one line; a list item ends one, a table row is one, code is none."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", _COMMENT.sub("", _CODE.sub("\n\n", text))):
        for unit in _units(paragraph.splitlines()):
            found += [unit] if unit.startswith("|") else _SENTENCE_END.split(unit)
    return [line for line in (_plain(sentence) for sentence in found) if line]


def _units(lines: list[str]) -> list[str]:
    units: list[str] = []
    for line in lines:
        is_row = line.lstrip().startswith("|")
        if _RULE.fullmatch(line):
            if is_row and units:
                units.pop()  # the head of the table
        elif not units or is_row or _ITEM.match(line):
            units.append(_ITEM.sub("", line, count=1).strip())
        else:
            units[-1] += " " + line.strip()
    return units


def _plain(sentence: str) -> str:
    sentence = _LINK.sub(r"\1", sentence).replace("**", "")
    if sentence.startswith("|"):
        sentence = " · ".join(cell.strip() for cell in sentence.split("|") if cell.strip())
    return " ".join(sentence.split())


_FENCE = re.compile(r" *(```|~~~)")
_HEADING = re.compile(r" {0,3}(#{1,6})\s+(.*?)\s*#*\s*")
_UNDERLINE = re.compile(r"([=\-~^\"*+#:.'_])\1{2,}\s*")
_MAX_HEADING = 120


class Outline:
    """Folds the lines of one document into passages, each under its headings."""

    def __init__(self, text: str) -> None:
        self.title = ""
        self.passages: list[tuple[str, str]] = []
        """Heading and text."""
        self._path: list[tuple[int, str]] = []
        self._underlines: list[str] = []
        self._blocks: list[str] = []
        self._lines: list[str] = []
        self._fence: str | None = None
        for line in text.splitlines():
            self._take(line)
        self._end_section()

    def _take(self, line: str) -> None:
        if self._fence is not None:
            self._lines.append(line)
            if line.lstrip().startswith(self._fence):
                self._end_block()
        elif fence := _FENCE.match(line):
            self._end_block()
            self._fence = fence[1]
            self._lines.append(line)
        elif heading := _HEADING.fullmatch(line[:_MAX_HEADING]):
            self._open(len(heading[1]), heading[2])
        elif _UNDERLINE.fullmatch(line) and self._is_underlined():
            if line[0] not in self._underlines:
                self._underlines.append(line[0])
            heading_text = self._lines.pop().strip()
            self._lines.clear()
            self._open(self._underlines.index(line[0]) + 1, heading_text)
        elif line.strip():
            self._lines.append(line)
        else:
            self._end_block()

    def _is_underlined(self) -> bool:
        """Whether the paragraph so far is a heading: one line, maybe with a line above it."""
        alone = len(self._lines) == 1 or (len(self._lines) == 2 and _UNDERLINE.fullmatch(self._lines[0]) is not None)
        return alone and len(self._lines[-1]) <= _MAX_HEADING and not self._lines[-1].lstrip().startswith(("|", "- "))

    def _open(self, level: int, heading: str) -> None:
        self._end_section()
        heading = _plain(heading)
        while self._path and self._path[-1][0] >= level:
            self._path.pop()
        self._path.append((level, heading))
        self.title = self.title or heading

    def _end_block(self) -> None:
        if self._lines:
            text = "\n".join(self._lines)
            self._blocks += _cut_code(text, self._fence) if self._fence is not None else _cut(text)
        self._lines = []
        self._fence = None

    def _end_section(self) -> None:
        self._end_block()
        names = [name for _, name in self._path]
        heading = " > ".join(names[1:] if names[:1] == [self.title] else names)
        passage = ""
        for block in self._blocks:
            if passage and len(passage) + len(block) > PASSAGE_CHARACTERS:
                self.passages.append((heading, passage))
                passage = ""
            passage = f"{passage}\n\n{block}" if passage else block
        if passage:
            self.passages.append((heading, passage))
        self._blocks = []


def _cut(text: str) -> list[str]:
    """Pieces of at most `PASSAGE_CHARACTERS`, cut after a table row or a sentence, else a word, else anywhere."""
    pieces = []
    start = 0
    marks = ("\n",) if text.startswith("|") else (". ", ".\n", "\n", " ")
    while len(text) - start > PASSAGE_CHARACTERS:
        stop = start + PASSAGE_CHARACTERS
        cuts = (text.rfind(mark, start + 1, stop) for mark in marks)
        end = next((cut + 1 for cut in cuts if cut > 0), stop)
        pieces.append(text[start:end].strip())
        start = end
    return [piece for piece in (*pieces, text[start:].strip()) if piece]


def _cut_code(text: str, fence: str) -> list[str]:
    if len(text) <= PASSAGE_CHARACTERS:
        return [text]
    code = text.partition("\n")[2].removesuffix(fence)
    return [f"{fence}\n{piece}\n{fence}" for piece in _cut(code)]
