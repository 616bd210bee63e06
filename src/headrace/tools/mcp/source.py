"""The tools of a server for as long as Headrace runs."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog

from headrace.errors import ConfigurationError, ToolUnavailable
from headrace.ports import Tool, ToolSource
from headrace.tools.mcp.configuration import McpServer

logger = structlog.get_logger("headrace.tools")


def mcp_tools(server: McpServer) -> ToolSource:
    """The tools that the server has when the source is entered, as `<server>_<tool>`.

    A server that does not answer within its `timeout` is left out, with a warning: no later start of it brings its
    tools. One that is lost later is connected to again by the next call. Raises `ConfigurationError` where the package
    `mcp` is not installed.
    """
    try:
        from headrace.tools.mcp.connection import Connection
        from headrace.tools.mcp.tool import usable
    except ImportError as error:
        raise ConfigurationError("Tools of MCP servers need a package: pip install 'headrace[mcp]'.") from error
    _quieten()

    async def tools(connection: Connection) -> Sequence[Tool]:
        try:
            return usable(await connection.tools(), server, connection)
        except ToolUnavailable:
            logger.warning("mcp server left out: it cannot be reached", server=server.name)
            return ()

    @asynccontextmanager
    async def source() -> AsyncIterator[Sequence[Tool]]:
        connection = Connection(server)
        try:
            yield await tools(connection)
        finally:
            await connection.close()

    return source


def _quieten() -> None:
    """The client's log lines have addresses and session ids in them, which may be secrets, and a traceback for each
    line that is no message. A level that somebody has set stays."""
    for name, level in (("httpx2", logging.WARNING), ("mcp", logging.WARNING), ("mcp.client.stdio", logging.CRITICAL)):
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(level)
