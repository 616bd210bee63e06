"""What stays of a server while sessions with it come and go."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from mcp import MCPError, types

from headrace.errors import ToolUnavailable
from headrace.tools.mcp.answer import explained
from headrace.tools.mcp.configuration import McpServer
from headrace.tools.mcp.session import Session

logger = structlog.get_logger("headrace.tools")

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
"""Seconds from an attempt that failed to the next one."""


class Connection:
    """Makes a session when a call needs one and there is none. Nothing is tried while nobody asks."""

    def __init__(self, server: McpServer) -> None:
        self._server = server
        self._session: Session | None = None
        self._sessions: set[Session] = set()
        """Those that are not all closed."""
        self._failures = 0
        self._next_attempt = 0.0
        """On the event loop's clock."""
        self._closed = False

    async def tools(self) -> Sequence[types.Tool]:
        """Those that the server has. Raises `ToolUnavailable` when `timeout` is over."""
        session = await self._opened(self._server.timeout)
        return session.tools

    async def call(self, name: str, arguments: dict[str, Any], show: Callable[[Any], None]) -> types.CallToolResult:
        """Raises a `ToolError`, and others for an answer that is none. A call that may have run is never repeated."""
        for _ in range(2):
            session = await self._opened(self._server.timeout / 2)
            try:
                return await session.call(name, arguments, show)
            except MCPError as error:
                if not session.was_not_run(error):
                    raise explained(error, self._server.name) from error
        raise self._unavailable()

    async def close(self) -> None:
        """No process, socket or task is left."""
        self._closed = True
        await asyncio.gather(*(session.leave() for session in self._sessions))

    async def _opened(self, limit: float) -> Session:
        """A session that takes calls, within `limit` seconds: the attempt may go on for who comes later."""
        session = self._session
        if session is None or session.retired:
            session = self._session = self._begin()
        if not session.opened.done():
            await asyncio.wait([session.opened], timeout=limit)
        if not (session.opened.done() and session.opened.result()):
            raise self._unavailable()
        return session

    def _begin(self) -> Session:
        pause = self._next_attempt - asyncio.get_running_loop().time()
        if self._closed or pause > 0:
            raise self._unavailable(retry_after=max(pause, 0.0))
        session = Session(self._server, ended=self._ended)
        self._sessions.add(session)
        return session

    def _ended(self, session: Session) -> None:
        self._sessions.discard(session)
        if session.problem is not None and not self._closed:
            logger.warning("mcp session ended", server=self._server.name, problem=session.problem)
        if session.opened.result():
            self._failures = 0
            return
        pause = min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE)
        self._failures += 1
        self._next_attempt = asyncio.get_running_loop().time() + pause

    def _unavailable(self, *, retry_after: float | None = None) -> ToolUnavailable:
        return ToolUnavailable(f"The MCP server {self._server.name} cannot be reached.", retry_after=retry_after)
