"""Which tools there are, from the settings."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import entry_points
from itertools import chain
from typing import Any

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
        sources.append(sql_tool(settings.sql_url.get_secret_value()))
    if settings.mcp_servers is not None:
        sources.append(
            _together([mcp_tools(server) for server in parse_servers(settings.mcp_servers.get_secret_value())])
        )
    return sources


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
            entered = await asyncio.gather(*(stack.enter_async_context(each()) for each in sources))
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
