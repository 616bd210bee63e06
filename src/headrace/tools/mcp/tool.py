"""A tool of a server, and which of those that it lists can be used."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from mcp import types

from headrace import json_schema
from headrace.ports import ToolContext
from headrace.tools.mcp import answer
from headrace.tools.mcp.configuration import McpServer
from headrace.tools.mcp.connection import Connection

logger = structlog.get_logger("headrace.tools")

_LONGEST_NAME = 64
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_-]")
"""Providers of models take no other characters, and no longer name."""


@dataclass(frozen=True, kw_only=True)
class McpTool:
    name: str
    description: str
    parameters: Mapping[str, Any]
    idempotent: bool
    timeout: float
    scope: str | None
    approval: bool
    remote_name: str
    connection: Connection
    concurrency: int | None = None

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Any:
        return answer.value(await self.connection.call(self.remote_name, arguments, context.report))


def usable(listed: Iterable[types.Tool], server: McpServer, connection: Connection) -> Sequence[McpTool]:
    """The tools of a server that are wanted and that a model can be told of; each of the others gets a log line."""
    offered = {tool.name: tool for tool in listed if server.tools is None or tool.name in server.tools}
    for name in server.tools or ():
        if name not in offered:
            logger.warning("mcp server has no such tool", server=server.name, tool=name)
    needs_approval = _names_to_approve(server, offered)
    return [
        McpTool(
            name=name,
            description=tool.description or tool.title or tool.name,
            parameters=tool.input_schema,
            idempotent=_may_repeat(tool, server),
            timeout=server.timeout,
            scope=server.scope,
            approval=tool.name in needs_approval,
            remote_name=tool.name,
            connection=connection,
        )
        for name, tool in _named(offered.values(), server)
    ]


def _named(tools: Iterable[types.Tool], server: McpServer) -> Iterator[tuple[str, types.Tool]]:
    taken = set()
    for tool in tools:
        name = f"{server.name}_{_FORBIDDEN.sub('_', tool.name)}"
        if fault := "another has its name" if name in taken else _fault(name, tool):
            logger.warning("mcp tool left out", server=server.name, tool=tool.name, reason=fault)
        else:
            taken.add(name)
            yield name, tool


def _fault(name: str, tool: types.Tool) -> str | None:
    if len(name) > _LONGEST_NAME:
        return f"its name is longer than {_LONGEST_NAME} characters"
    try:
        json_schema.validator(tool.input_schema)
    except ValueError:
        return "its input schema is none that can be used"
    return None


def _names_to_approve(server: McpServer, offered: Iterable[str]) -> Sequence[str]:
    names = list(offered)
    if isinstance(server.approval, bool):
        return names if server.approval else []
    if unknown := [name for name in server.approval if name not in names]:
        # It may be there by another name now, and must not be run without anybody's consent for that.
        logger.warning("mcp tool to approve is not there, so all need approval", server=server.name, tool=unknown[0])
        return names
    return server.approval


def _may_repeat(tool: types.Tool, server: McpServer) -> bool:
    if server.idempotent is not None:
        return tool.name in server.idempotent
    hints = tool.annotations
    return hints is not None and bool(hints.read_only_hint or hints.idempotent_hint)
