"""Tools of MCP servers, over stdio and streamable HTTP. Needs `headrace[mcp]`."""

from headrace.tools.mcp.configuration import McpServer, parse_servers
from headrace.tools.mcp.source import mcp_tools

__all__ = ["McpServer", "mcp_tools", "parse_servers"]
