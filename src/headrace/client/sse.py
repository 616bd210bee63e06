"""Server-Sent Events, as bytes come in: any line ends, cut anywhere, also inside a character or between CR and LF."""

import re
from typing import NamedTuple

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class Frame(NamedTuple):
    id: str | None
    """`None` where this very frame has none: ours have none only for errors that are not in the log."""
    data: bytes


class Parser:
    """The bytes of one connection to frames. A frame whose end never comes is never given out."""

    def __init__(self) -> None:
        self.retry: float | None = None
        """Seconds after which the server wants to be asked again."""
        self.comments = 0
        """How many lines said only that the connection is alive."""
        self._pieces: list[bytes] = []
        """Of a line whose end has not come."""
        self._after_cr = False
        self._at_start = True
        self._id: str | None = None
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that end in `chunk`."""
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        first, *rest = _LINE_END.split(chunk)
        self._pieces.append(first)
        if not rest:
            return []
        self._after_cr = chunk.endswith(b"\r")
        lines = [b"".join(self._pieces), *rest[:-1]]
        self._pieces = [rest[-1]]
        return [frame for line in lines if (frame := self._line(line)) is not None]

    def _line(self, line: bytes) -> Frame | None:
        if self._at_start:
            line = line.removeprefix(_BOM)
            self._at_start = False
        if not line:
            return self._end()
        name, _, value = line.partition(b":")
        self._field(name, value.removeprefix(b" "))
        return None

    def _field(self, name: bytes, value: bytes) -> None:
        if name == b"data":
            self._data.append(value)
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            self.retry = int(value) / 1000
        elif not name:
            self.comments += 1

    def _end(self) -> Frame | None:
        frame = Frame(self._id, b"\n".join(self._data)) if self._data else None
        self._id, self._data = None, []
        return frame
