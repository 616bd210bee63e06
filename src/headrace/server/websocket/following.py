"""One run that a socket follows: a cursor, moved by a task of its own."""

from collections.abc import Awaitable, Callable

from headrace.ports import Head, WireProtocol
from headrace.position import Position
from headrace.server.framing import BlockEncoder
from headrace.server.services import Services
from headrace.server.websocket import frames

Send = Callable[[str], Awaitable[None]]
"""Sends a message, waiting while the socket takes no more."""


class Following:
    """Raises for a position that cannot be served, before anything is sent."""

    def __init__(
        self,
        services: Services,
        head: Head,
        protocol: WireProtocol,
        *,
        after: Position | None = None,
        kinds: frozenset[str] | None = None,
        cancel_on_leave: bool = False,
    ) -> None:
        self.run_id = head.run.id
        self.cancel_on_leave = cancel_on_leave
        self._blocks = services.runs.follow(head, after, live=True)
        if after is not None and not protocol.stateless:
            self._blocks = services.runs.follow(head, live=True)  # the view is folded from the first event
        self._encode = BlockEncoder(protocol, head.run, frames.EventFraming(self.run_id), after=after, kinds=kinds)
        self._last = after or Position(head.run.epoch, 0)
        services.telemetry.resumes += after is not None
        services.telemetry.replays += head.closed

    async def run(self, send: Send) -> None:
        """Send what is in the log and what comes, until it is closed, and then the end."""
        async for blocks in self._blocks:
            for block in blocks:
                for message in frames.messages(self._encode(block)):
                    await send(message)
                self._last = max(self._last, Position(self._last.epoch, block.last))
        await send(frames.end(self.run_id, self._last))
