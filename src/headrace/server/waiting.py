"""A caller who waits for a whole answer: among the open streams, so that it is told when the server stops."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.requests import Request

from headrace.errors import HeadraceError
from headrace.identity import Principal

T = TypeVar("T")


class Waiting:
    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.error: HeadraceError | None = None
        """Why it was not waited any longer, if that is the server's doing."""
        self._told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, error: HeadraceError) -> None:
        if not self._told.done():
            self.error = error
            self._told.set_result(None)

    async def for_result(self, request: Request, result: Awaitable[T]) -> T | None:
        """None where the client went away first, or `error` says why. The request's body must have been read."""
        working = asyncio.ensure_future(result)
        leaving = asyncio.ensure_future(_disconnect(request))
        try:
            first: set[asyncio.Future[Any]] = {working, leaving, self._told}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                self.error = None
                return working.result()
            return None
        finally:
            self._told.cancel()
            working.cancel()
            leaving.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
