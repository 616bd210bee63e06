"""Which tools there are, from the settings."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib.metadata import entry_points
from itertools import chain
from typing import Any

from pydantic import SecretStr

from headrace.bootstrap.documents import open_index
from headrace.egress import Egress
from headrace.errors import ConfigurationError
from headrace.ports import Tool, ToolSource
from headrace.settings import Settings
from headrace.tools.calculate import CalculateTool
from headrace.tools.http_fetch import HttpFetch
from headrace.tools.mcp import mcp_tools, parse_servers
from headrace.tools.search import SearchTool
from headrace.tools.sql.tool import sql_tool

ENTRY_POINTS = "headrace.tools"
"""Under this name installed packages bring tools. Each is a `Tool`, or a `ToolSource`; none is used unless it is named
in the settings."""


def tool_sources(settings: Settings, egress: Egress) -> Sequence[ToolSource]:
    """Entered at the start, in this order. Raises `ConfigurationError` for a tool that there is not."""
    built_in: Mapping[str, Callable[[], ToolSource]] = {
        "search": lambda: _search(settings),
        "calculate": lambda: _always(CalculateTool()),
        "http_fetch": lambda: _always(HttpFetch(egress)),
    }
    sources = [built_in[name]() if name in built_in else _installed(name, built_in) for name in settings.tools]
    if settings.sql_url is not None:
        sources.append(_of("HEADRACE_SQL_URL", settings.sql_url, sql_tool))
    if settings.mcp_servers is not None:
        sources.append(_of("HEADRACE_MCP_SERVERS", settings.mcp_servers, _mcp))
    return sources


def _of(variable: str, value: SecretStr, make: Callable[[str], ToolSource]) -> ToolSource:
    """Errors name the variable, at once or when the source is entered."""

    @contextmanager
    def named() -> Iterator[None]:
        try:
            yield
        except ConfigurationError as error:
            raise ConfigurationError(f"{variable}: {error.message}") from error

    with named():
        inner = make(value.get_secret_value())

    @asynccontextmanager
    async def source() -> AsyncIterator[Sequence[Tool]]:
        async with AsyncExitStack() as stack:
            with named():
                tools = await stack.enter_async_context(inner())
            yield tools

    return source


def _mcp(text: str) -> ToolSource:
    return _together([mcp_tools(server) for server in parse_servers(text)])


def _always(tool: Tool) -> ToolSource:
    @asynccontextmanager
    async def source() -> AsyncIterator[Sequence[Tool]]:
        yield [tool]

    return source


def _together(sources: Sequence[ToolSource]) -> ToolSource:
    """Entered at the same time: one that waits for a server that is not there does not hold up the others."""

    @asynccontextmanager
    async def source() -> AsyncIterator[Sequence[Tool]]:
        async with AsyncExitStack() as stack:
            entering = [asyncio.ensure_future(stack.enter_async_context(each())) for each in sources]
            try:
                entered = await asyncio.gather(*entering)
            except BaseException:
                for each in entering:
                    each.cancel()
                await asyncio.gather(*entering, return_exceptions=True)
                raise
            yield list(chain.from_iterable(entered))

    return source


def _search(settings: Settings) -> ToolSource:
    @asynccontextmanager
    async def source() -> AsyncIterator[Sequence[Tool]]:
        index = await asyncio.to_thread(open_index, settings)
        try:
            yield [SearchTool(index)]
        finally:
            index.close()

    return source


def _installed(name: str, built_in: Mapping[str, Any]) -> ToolSource:
    found = entry_points(group=ENTRY_POINTS)
    if name not in found.names:
        known = ", ".join(sorted({*built_in, *found.names}))
        raise ConfigurationError(f"HEADRACE_TOOLS names {name!r:.100}, which is not installed. There are: {known}.")
    tool = found[name].load()
    return _always(tool) if hasattr(tool, "parameters") else tool
