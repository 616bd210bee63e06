"""One session with a server, from its making to its end."""

import asyncio
import math
from collections.abc import Callable, Sequence
from contextvars import Context
from importlib.metadata import version
from typing import Any

import anyio
import structlog
from mcp import Client, MCPError, types
from mcp.client import IncomingMessage

from headrace.errors import ToolUnavailable
from headrace.tools.mcp.configuration import McpServer
from headrace.tools.mcp.transport import connect

logger = structlog.get_logger("headrace.tools")

_MOST_PAGES = 100
_GOODBYE = 3.0
"""Seconds that leaving may take over HTTP. A program is ended in its own time; see `connect`."""
_REFUSED = (types.INVALID_REQUEST, "Session terminated")
"""What the client makes of a 404 inside a session."""


class Session:
    """A task that makes a session, keeps it and leaves it: what the client opens must be closed by the same task.

    Calls run in tasks of their own, so that who cancels one does not wait until the server can be told.
    """

    def __init__(self, server: McpServer, *, ended: Callable[["Session"], None]) -> None:
        """Begins at once; `ended` is called when all is closed."""
        self.opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether it could be made, once that is known."""
        self.tools: Sequence[types.Tool] = ()
        self.retired = False
        """No new call may come: nothing can be sent any more, or the server knows the session no longer."""
        self.problem: str | None = None
        """Why it ended, where not by `leave`."""
        self._server = server
        self._expired = False
        self._client: Client | None = None
        self._calls: set[asyncio.Task[types.CallToolResult]] = set()
        self._leaving = asyncio.Event()
        self._scope = anyio.CancelScope()
        # It outlives the call that it is made for, whose run must not stand in its log lines.
        nobody = Context()
        self._task = asyncio.create_task(self._live(), context=nobody)
        self._task.add_done_callback(lambda _: ended(self), context=nobody)

    async def call(self, name: str, arguments: dict[str, Any], show: Callable[[Any], None]) -> types.CallToolResult:
        """Only once it is `opened`. Raises `MCPError`, `ToolUnavailable` where the session ends first, and others for
        an answer that is none. Cancelling it cancels the request on the server."""

        async def report(progress: float, total: float | None, message: str | None) -> None:
            parts = {"progress": progress, "total": total, "message": message}
            show({key: part for key, part in parts.items() if part is not None})

        assert self._client is not None
        call = asyncio.create_task(self._client.call_tool(name, arguments, progress_callback=report))
        self._calls.add(call)
        call.add_done_callback(self._answered)
        try:
            await asyncio.wait([call])
        finally:
            call.cancel()
        if call.cancelled():
            raise ToolUnavailable
        return call.result()

    def was_not_run(self, error: MCPError) -> bool:
        """Whether the server refused a call since it knows the session no longer: another session may take it."""
        return self._expired and (error.code, error.message) == _REFUSED

    async def leave(self) -> None:
        """End it now, with the calls that still run. Returns when all is closed."""
        self._leaving.set()
        if not self.opened.done():
            self._scope.cancel()
        await asyncio.wait([self._task])

    async def _live(self) -> None:
        try:
            await self._hold()
        except Exception as error:
            self.problem = _in_words(error)
        finally:
            self.retired = True
            if not self.opened.done():
                self.opened.set_result(False)
            for call in self._calls:
                call.cancel()

    async def _hold(self) -> None:
        with self._scope:
            self._scope.deadline = anyio.current_time() + self._server.timeout
            way = connect(self._server, ended=self._cut, expired=self._expire)
            client = Client(way, cache=None, client_info=_ourselves(), message_handler=self._hear)
            async with client:
                self.tools = await _all_tools(client)
                self._client = client
                self._scope.deadline = math.inf
                self.opened.set_result(True)
                await self._leaving.wait()
                self._scope.deadline = anyio.current_time() + _GOODBYE
        if not self.opened.done():
            self.problem = f"no answer within {self._server.timeout:g} seconds"

    def _cut(self) -> None:
        if not (self._leaving.is_set() or self._scope.cancel_called):
            self.problem = "the connection ended"
        self._retire()

    def _expire(self) -> None:
        self._expired = True
        self._retire()

    def _retire(self) -> None:
        """Leave it once the last of its calls has an answer."""
        self.retired = True
        if not self._calls:
            self._leaving.set()

    def _answered(self, call: asyncio.Task[types.CallToolResult]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # who asked may be gone, and asyncio would complain
        if self.retired:
            self._retire()

    async def _hear(self, message: IncomingMessage) -> None:
        if isinstance(message, Exception):
            logger.debug("mcp server said what is no message", server=self._server.name)


async def _all_tools(client: Client) -> Sequence[types.Tool]:
    tools: list[types.Tool] = []
    cursor = None
    for _ in range(_MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            break
    return tools


def _ourselves() -> types.Implementation:
    return types.Implementation(name="headrace", version=version("headrace"))


def _in_words(error: Exception) -> str:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:500]
