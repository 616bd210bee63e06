"""The ASGI extension `headrace.push`: write to a response that has begun, without a task and without awaiting.

An app that has many streams to feed from one callback would otherwise need a task switch for each of them. What cannot
be written at once is not taken: flow control stays with the ordinary `send`.
"""

from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

EXTENSION = "headrace.push"


class Push:
    """Of one response. Offered in `scope["extensions"]["headrace.push"]`."""

    __slots__ = ("_cycle", "_on_disconnect")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._on_disconnect: Callable[[], None] | None = None

    def write(self, body: bytes) -> bool:
        """Write a part of the body now. False, and nothing is written, where the client does not read fast enough
        (then `send` and wait), or is gone."""
        cycle = self._cycle
        if cycle.flow.write_paused or cycle.disconnected or not cycle.response_started or cycle.response_complete:
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body) if cycle.chunked_encoding else body)
        return True

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, once, when the client is gone; at once where it is gone already."""
        if self._cycle.disconnected:
            callback()
        else:
            self._on_disconnect = callback

    def disconnected(self) -> None:
        callback, self._on_disconnect = self._on_disconnect, None
        if callback is not None:
            callback()
