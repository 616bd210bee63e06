"""Every reader that is connected now: to tell them all when the server stops, or one when its credential is revoked."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog

from headrace.errors import AuthRevoked, Draining, HeadraceError
from headrace.identity import Principal

logger = structlog.get_logger("headrace.server")

_LOOK_AGAIN_SECONDS = 10.0


class OpenStream(Protocol):
    principal: Principal

    def end(self, error: HeadraceError) -> None:
        """Tell the reader and end in order, soon."""


class OpenStreams:
    def __init__(self, still_valid: Callable[[Principal], bool]) -> None:
        self.draining = False
        self._still_valid = still_valid
        self._streams: dict[OpenStream, None] = {}

    @contextmanager
    def hold(self, stream: OpenStream) -> Iterator[None]:
        """Known from the first byte to the last, also when it is left by an exception. Raises `Draining`."""
        if self.draining:
            raise Draining(retry_after=1)
        self._streams[stream] = None
        try:
            yield
        finally:
            del self._streams[stream]

    def drain(self) -> None:
        """Take no more, and end those that are open."""
        self.draining = True
        for stream in list(self._streams):
            stream.end(Draining())

    async def watch_credentials(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
            try:
                for stream in list(self._streams):
                    if not self._still_valid(stream.principal):
                        stream.end(AuthRevoked())
            except Exception:  # one failure must not end the watch
                logger.exception("cannot check credentials")
