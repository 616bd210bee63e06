"""The bytes of a stream as whole frames, strictly as the server promises to write them, each with its raw bytes."""

import json
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

Framing: TypeAlias = Literal["sse", "ndjson"]
ACCEPT: dict[Framing, str] = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}
_RETRY = re.compile(rb"retry: \d+\n")
_SSE = re.compile(rb"(?:id: ([!-~]+)\n)?data: ([^\r\n]*)\n\n")
_NDJSON = re.compile(rb'\{(?:"id":"([!-~]+?)",)?"data":(.*)\}\n')
_TERMINAL = {"run.completed", "run.failed", "run.cancelled", "end", "error"}


class Frame(NamedTuple):
    position: str | None
    payload: bytes
    raw: bytes

    @property
    def terminal(self) -> bool:
        """Whether the run ends with it, in the native view or in that of `agent_chat`."""
        said = json.loads(self.payload)
        return (said.get("kind") or said.get("type")) in _TERMINAL


class Frames:
    """Of one connection. What is not complete when it is cut never becomes a frame. Raises `ValueError` for bytes that
    the server must not send."""

    def __init__(self, framing: Framing) -> None:
        self._end = b"\n\n" if framing == "sse" else b"\n"
        self._form = _SSE if framing == "sse" else _NDJSON
        self._rest = b""
        self._first = framing == "sse"

    def feed(self, chunk: bytes) -> Sequence[Frame]:
        *blocks, self._rest = (self._rest + chunk).split(self._end)
        return [frame for block in blocks if (frame := self._frame(block + self._end)) is not None]

    def _frame(self, raw: bytes) -> Frame | None:
        if raw == self._end or (raw.startswith(b":") and self._end == b"\n\n"):
            return None  # a ping
        if self._first:
            raw = _RETRY.sub(b"", raw, count=1)
            self._first = False
        match = self._form.fullmatch(raw)
        if match is None:
            raise ValueError(f"not a frame: {raw!r}")
        return Frame(match[1].decode() if match[1] else None, match[2], raw)


def parse(body: bytes, framing: Framing) -> Sequence[Frame]:
    """All frames of a whole body."""
    return Frames(framing).feed(body)
