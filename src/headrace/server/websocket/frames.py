"""What the server says over a socket: one JSON object per text message."""

import math
from collections.abc import Mapping

from headrace.errors import HeadraceError
from headrace.ports import Created
from headrace.position import Position
from headrace.protocols.payload import to_json

READY = '{"type":"ready"}'
PONG = '{"type":"pong"}'


class EventFraming:
    """A `Framing` of one run's events: a line for each message, to be sent without its line end."""

    media_type = "application/x-ndjson; for=websocket"
    """Tells what is encoded for sockets from what is encoded for HTTP."""
    ping = b""
    goodbye = b""

    def __init__(self, run_id: str) -> None:
        self._head = b'{"type":"event","run_id":"%b",' % run_id.encode()

    def frame(self, position: bytes, payload: bytes) -> bytes:
        return b'%b"id":"%b","data":%b}\n' % (self._head, position, payload)

    def bare(self, payload: bytes) -> bytes:
        return b'%b"data":%b}\n' % (self._head, payload)

    def opening(self, retry_ms: int) -> bytes:
        return b""


def messages(encoded: bytes) -> list[str]:
    """The lines of `EventFraming`, each a message."""
    return encoded.decode().split("\n")[:-1]


def started(ref: str, created: Created) -> str:
    return _text({"type": "started", "ref": ref, "run_id": created.head.run.id, "new": created.new})


def end(run_id: str, last: Position) -> str:
    return _text({"type": "end", "run_id": run_id, "id": str(last)})


def cancel(run_id: str, result: str) -> str:
    return _text({"type": "cancel", "run_id": run_id, "result": result})


def unfollowed(run_id: str) -> str:
    return _text({"type": "unfollowed", "run_id": run_id})


def error(error: HeadraceError, about: Mapping[str, str]) -> str:
    """`about`: the `ref` or `run_id` that it concerns."""
    extra = dict(error.extra)
    if error.retry_after is not None:
        extra["retry_after"] = max(1, math.ceil(error.retry_after))
    shown = {"code": error.code, "status": error.status, "message": error.message, **extra}
    return _text({"type": "error", **about, "error": shown})


def _text(frame: Mapping[str, object]) -> str:
    return to_json(frame).decode()
