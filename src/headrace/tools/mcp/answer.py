"""What a server's answer to a call comes to: a JSON value, or why there is none."""

from collections.abc import Iterable
from typing import Any

from mcp import MCPError, types

from headrace.errors import ToolError, ToolRefused, ToolUnavailable

_LONGEST_REFUSAL = 2000
"""Characters."""
_SERVER_BROKE = (types.CONNECTION_CLOSED, types.REQUEST_TIMEOUT, types.INTERNAL_ERROR, types.PARSE_ERROR)
_NO_SUCH_SERVER = types.METHOD_NOT_FOUND
"""Also what the client makes of a 404."""


def value(result: types.CallToolResult) -> Any:
    """The structured content where there is some, else the content as text. Raises `ToolRefused`."""
    if result.is_error:
        raise ToolRefused(_cut(_text(result.content)) or None)
    if result.structured_content is not None:
        return result.structured_content
    return _text(result.content)


def explained(error: MCPError, server: str) -> ToolError:
    """What a call is to raise that got an error in place of a result."""
    if error.code in (*_SERVER_BROKE, _NO_SUCH_SERVER):
        return ToolUnavailable(f"The MCP server {server} could not answer: {_cut(error.message)}")
    return ToolRefused(_cut(error.message) or None)


def _text(content: Iterable[types.ContentBlock]) -> str:
    return "\n".join(map(_block, content))


def _block(block: types.ContentBlock) -> str:
    match block:
        case types.TextContent():
            return block.text
        case types.ImageContent() | types.AudioContent():
            return f"[{block.type}, {_size(block.data)} of {block.mime_type}, not shown]"
        case types.ResourceLink():
            return f"[resource {block.name!r} at {block.uri}]"
        case types.EmbeddedResource():
            return _resource(block.resource)


def _resource(resource: types.TextResourceContents | types.BlobResourceContents) -> str:
    """Text is what was asked for more often than not; the toolbox cuts it where it is too long."""
    if isinstance(resource, types.TextResourceContents):
        return resource.text
    return f"[resource at {resource.uri}, {_size(resource.blob)} of {resource.mime_type}, not shown]"


def _size(base64: str) -> str:
    return f"{len(base64) * 3 // 4 - base64[-2:].count('=')} bytes"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_REFUSAL else text[:_LONGEST_REFUSAL] + "…"
