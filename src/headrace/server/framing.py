"""How payloads are put into a byte stream: Server-Sent Events, or newline-delimited JSON.

SSE is written one way only, because each deviation breaks a real client (`docs/protocols/sse.md`): LF, `data: ` with
one space, one line of JSON, `id:` and `data:` in one frame.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from headrace.errors import AnswerRestarted
from headrace.events import AttemptStarted, Event, Unknown, kind_of
from headrace.ports import Block, Run, WireProtocol
from headrace.position import Position


class Framing(Protocol):
    media_type: str
    ping: bytes
    """Shows that the connection is alive, and is no event."""
    goodbye: bytes
    """Sent before an orderly end that is not the end of the run."""

    def frame(self, position: bytes, payload: bytes) -> bytes: ...

    def bare(self, payload: bytes) -> bytes:
        """A payload without a position, such as an error that is not in the log."""

    def opening(self, retry_ms: int) -> bytes:
        """What goes in front of the first frame of a connection: when to come back if it is cut."""


class ServerSentEvents:
    media_type = "text/event-stream; charset=utf-8"
    ping = b": ping\n\n"
    goodbye = b": the server restarts; reconnect with Last-Event-ID\n\n"

    def frame(self, position: bytes, payload: bytes) -> bytes:
        return b"id: %b\ndata: %b\n\n" % (position, payload)

    def bare(self, payload: bytes) -> bytes:
        return b"data: %b\n\n" % payload

    def opening(self, retry_ms: int) -> bytes:
        return b"retry: %d\n" % retry_ms


class NewlineDelimitedJSON:
    """Each line `{"id": position, "data": payload}`, the same two as in SSE; an empty line is a ping."""

    media_type = "application/x-ndjson"
    ping = b"\n"
    goodbye = b"\n"

    def frame(self, position: bytes, payload: bytes) -> bytes:
        return b'{"id":"%b","data":%b}\n' % (position, payload)

    def bare(self, payload: bytes) -> bytes:
        return b'{"data":%b}\n' % payload

    def opening(self, retry_ms: int) -> bytes:
        return b""


class LinesOnly:
    """Payloads, one a line, as a file has them: not to be resumed."""

    media_type = "application/jsonl"
    ping = b""
    goodbye = b""

    def frame(self, position: bytes, payload: bytes) -> bytes:
        return payload + b"\n"

    def bare(self, payload: bytes) -> bytes:
        return payload + b"\n"

    def opening(self, retry_ms: int) -> bytes:
        return b""


LINES_ONLY: Framing = LinesOnly()
SSE: Framing = ServerSentEvents()
NDJSON: Framing = NewlineDelimitedJSON()

_RESTARTED = AnswerRestarted().info()


class Shown(NamedTuple):
    """An event in a view."""

    event: Event | Unknown
    payloads: Sequence[bytes]
    frames: Sequence[bytes]
    """Of the payloads, the last ones where the first ones were sent before."""


class BlockEncoder:
    """One run in one view, framing and filter: blocks to bytes.

    Where the view is stateless the bytes are kept on the block, so they are made once for all readers; not those of a
    filter, of which callers can think up any number. Other views are folded from event 1, and what lies at or before
    `after` is not sent again.

    Where an answer begins anew and the protocol cannot say so, an error is the last frame, and `stopped_at` its
    position: then the stream has to end. Nothing behind it is ever encoded.
    """

    def __init__(
        self,
        protocol: WireProtocol,
        run: Run,
        framing: Framing,
        *,
        after: Position | None = None,
        kinds: frozenset[str] | None = None,
    ) -> None:
        self.framing = framing
        self.view = protocol.view(run)
        self.stopped_at: Position | None = None
        self._restarts = protocol.restarts
        self._epoch = run.epoch.encode()
        self._kinds = kinds
        self._after = after or Position(run.epoch, 0)
        self._partly_sent = self._after.offset + (self._after.frame > 0)
        """Events up to this offset were sent before, the last of them maybe in part."""
        shared = protocol.stateless and kinds is None
        self._cache_key = (protocol.name, framing.media_type) if shared else None

    def __call__(self, block: Block) -> bytes:
        key = self._cache_key
        if key is None or block.first <= self._partly_sent:
            return self._encode(block)
        encoded = block.views.get(key)
        if encoded is None:
            encoded = self._encode(block)
            if self.stopped_at is None:  # else those who take it from there would not know that they have to stop
                block.views[key] = encoded
        return encoded

    def shown(self, block: Block) -> Iterator[Shown]:
        """The same event by event, for whoever does not send all at once. Events that show nothing are among them."""
        if self.stopped_at is not None:
            return
        for offset, (event, encoded) in enumerate(zip(block.events, block.encoded, strict=True), block.first):
            if type(event) is AttemptStarted and self._must_stop(event):
                yield self._stop(offset, event)
                return
            payloads = self.view.frames(offset, event, encoded)
            if offset > self._after.offset and (self._kinds is None or kind_of(event) in self._kinds):
                yield Shown(event, payloads, self._framed(offset, payloads))

    def _encode(self, block: Block) -> bytes:
        """On the hot path, so in one piece."""
        if self.stopped_at is not None:
            return b""
        parts: list[bytes] = []
        for offset, (event, encoded) in enumerate(zip(block.events, block.encoded, strict=True), block.first):
            if type(event) is AttemptStarted and self._must_stop(event):
                parts += self._stop(offset, event).frames
                break
            payloads = self.view.frames(offset, event, encoded)
            if not payloads or (self._kinds is not None and kind_of(event) not in self._kinds):
                continue
            if len(payloads) == 1 and offset > self._partly_sent:
                parts.append(self.framing.frame(b"%b-%d" % (self._epoch, offset), payloads[0]))
            else:
                parts += self._framed(offset, payloads)
        return b"".join(parts)

    def _must_stop(self, event: AttemptStarted) -> bool:
        return event.mode == "restart" and not self._restarts

    def _stop(self, offset: int, event: Event) -> Shown:
        self.stopped_at = Position(self._after.epoch, offset)
        self._cache_key = None
        payload = self.view.error(_RESTARTED)
        return Shown(event, (payload,), (self.framing.frame(b"%b-%d" % (self._epoch, offset), payload),))

    def _framed(self, offset: int, payloads: Sequence[bytes]) -> list[bytes]:
        """The frames of an event that were not sent before."""
        if offset <= self._after.offset:
            return []
        sent = self._after.frame if offset == self._partly_sent else 0
        return [
            self.framing.frame(self._position(offset, number, len(payloads)), payload)
            for number, payload in enumerate(payloads, 1)
            if number > sent
        ]

    def _position(self, offset: int, number: int, count: int) -> bytes:
        if number == count:
            return b"%b-%d" % (self._epoch, offset)
        return b"%b-%d.%d" % (self._epoch, offset, number)
