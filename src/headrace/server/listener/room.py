"""What all connections of a listener share."""

import asyncio
from dataclasses import dataclass

from uvicorn.server import ServerState


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """How long a peer may take, in seconds of the loop's clock."""

    head: float = 10.0
    """From the connect, or from the first byte of a later request, to the end of the headers."""
    body: float = 30.0
    """From the end of the headers to the end of the body; again and again for one that comes at `body_rate`."""
    body_rate: float = 65_536.0
    """Bytes a second."""
    write: float = 30.0
    """How long a peer may leave unread what it was sent."""
    keep_alive: int = 75
    """Between two requests; longer than the 60 s that proxies keep a connection, so that it is they who close it."""
    ping: float = 20.0
    """Between the pings of a WebSocket."""
    pong: float = 20.0
    """From a ping to its pong."""
    linger: float = 2.0
    """For reading the last words, before the socket is closed in the face of a peer that goes on sending."""


class Room(ServerState):
    """The open connections and their tasks, the headers of every response, and whether the end has begun."""

    def __init__(self, deadlines: Deadlines) -> None:
        super().__init__()
        self.deadlines = deadlines
        self.draining = False
        self.empty = asyncio.Event()
        """Set when the last connection has gone, once `draining`."""

    def left(self) -> None:
        """To be called by each connection that was lost."""
        if self.draining and not self.connections:
            self.empty.set()
