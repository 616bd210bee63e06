"""`GET /api/feed`: everything that happens in all of the caller's runs, in one stream."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from headrace.errors import HeadraceError
from headrace.events import kind_of
from headrace.ports import FeedEntry
from headrace.position import Position
from headrace.protocols.native import placed
from headrace.protocols.payload import to_json
from headrace.server import accept
from headrace.server.endpoints.parameters import After, Caller, Door, Kinds
from headrace.server.framing import NDJSON, SSE, Framing
from headrace.server.stream import EventStream

router = APIRouter(prefix="/api/feed", tags=["runs"])


@router.get("", summary="Follow all your runs")
async def feed(request: Request, principal: Caller, services: Door, after: After, kinds: Kinds) -> Response:
    """Native events of every run, in the order they were committed. Without a position it starts now."""
    media_type = accept.choose(request.headers.get("accept"), ["text/event-stream", "application/x-ndjson"])
    framing = SSE if media_type == "text/event-stream" else NDJSON

    def show_error(error: HeadraceError) -> bytes:
        return to_json({"kind": "error", "error": error.info()})

    return EventStream[FeedEntry](
        services.runs.feed(principal, after, live=True),
        FeedEncoder(framing, services.runs.feed_epoch, after, kinds),
        framing,
        principal=principal,
        open_streams=services.open_streams,
        slot=services.limits.stream(principal),
        telemetry=services.telemetry,
        show_error=show_error,
        headers={},
    )


class FeedEncoder:
    """Blocks of many runs to bytes; a position is the block's sequence, with a frame for each event inside it."""

    def __init__(self, framing: Framing, epoch: str, after: Position | None, kinds: frozenset[str] | None) -> None:
        self._framing = framing
        self._epoch = epoch
        self._after = after
        self._kinds = kinds

    def __call__(self, entry: FeedEntry) -> bytes:
        block = entry.block
        parts = []
        for number, (event, encoded) in enumerate(zip(block.events, block.encoded, strict=True), 1):
            inside = number < len(block.events)
            position = Position(self._epoch, entry.sequence - inside, number if inside else 0)
            if self._was_sent(entry.sequence, number) or (
                self._kinds is not None and kind_of(event) not in self._kinds
            ):
                continue
            payload = placed(entry.run_id.encode(), block.first + number - 1, encoded)
            parts.append(self._framing.frame(str(position).encode(), payload))
        return b"".join(parts)

    def _was_sent(self, sequence: int, number: int) -> bool:
        after = self._after
        return after is not None and sequence == after.offset + 1 and number <= after.frame
