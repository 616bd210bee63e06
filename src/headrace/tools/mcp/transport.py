"""The way to a server: the pipes of a program that we start, or requests over HTTP."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TextIO, TypeAlias

import httpx2
import structlog
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import MCP_SESSION_ID, streamable_http_client

from headrace.tools.mcp.configuration import McpServer

logger = structlog.get_logger("headrace.tools")

_LONGEST_LINE = 2000
"""Bytes of what a program writes to its standard error that are kept while its line has no end."""
Streams: TypeAlias = tuple[Any, Any]
"""To read from and to write to, in the client's own types."""


@asynccontextmanager
async def connect(
    server: McpServer, *, ended: Callable[[], None], expired: Callable[[], None]
) -> AsyncIterator[Streams]:
    """Enter and leave it in one task. Leaving a program ends it, within 7 s if it has to be killed.

    `ended` is called once nothing more can come, before the calls that wait are told; `expired` when the server knows
    our session no longer.
    """
    way = _program(server) if server.command else _endpoint(server, expired)
    async with way as (reader, writer):
        yield _Watched(reader, ended), writer


@asynccontextmanager
async def _program(server: McpServer) -> AsyncIterator[Streams]:
    program, *arguments = server.command
    parameters = StdioServerParameters(
        command=program, args=arguments, env=dict(server.env), encoding_error_handler="replace"
    )
    async with _logged(server.name) as standard_error, stdio_client(parameters, standard_error) as streams:
        yield streams


@asynccontextmanager
async def _endpoint(server: McpServer, expired: Callable[[], None]) -> AsyncIterator[Streams]:
    async def look(response: httpx2.Response) -> None:
        in_session = response.request.method == "POST" and MCP_SESSION_ID in response.request.headers
        if in_session and response.status_code == 404:
            expired()

    assert server.url is not None
    client = httpx2.AsyncClient(
        headers=dict(server.headers),
        # A call may be silent for as long as its tool may take.
        timeout=httpx2.Timeout(server.timeout, read=None),
        event_hooks={"response": [look]},
        # What a request carries, and where it goes, is in the configuration only: no proxies, no ~/.netrc.
        trust_env=False,
        verify=ssl.create_default_context(),
    )
    async with client, streamable_http_client(server.url, http_client=client) as streams:
        yield streams


class _Watched:
    """A stream to read from that tells when its reader leaves it, which it does when nothing more can come."""

    def __init__(self, stream: Any, left: Callable[[], None]) -> None:
        self._stream = stream
        self._left = left

    async def receive(self) -> Any:
        return await self._stream.receive()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return await self._stream.__anext__()

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left()
        await self._stream.__aexit__(kind, error, traceback)


@asynccontextmanager
async def _logged(server: str) -> AsyncIterator[TextIO]:
    """A file whose lines become log lines, at DEBUG: they are the program's own, and may say anything."""
    reading, writing = os.pipe()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: _Lines(server), os.fdopen(reading, "rb", 0))
    try:
        with os.fdopen(writing, "w") as file:
            yield file
    finally:
        pipe.close()


class _Lines(asyncio.Protocol):
    def __init__(self, server: str) -> None:
        self._server = server
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:_LONGEST_LINE]
        for line in lines:
            logger.debug("mcp server wrote", server=self._server, line=line[:_LONGEST_LINE].decode(errors="replace"))
