"""An MCP server made with the official package: over stdio, or, with `--http PORT`, over HTTP. It prints the port."""

import asyncio
import base64
import os
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from mcp import MCPError, types
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel

server = MCPServer("test", log_level="ERROR")


class Sum(BaseModel):
    sum: int


@server.tool(annotations=types.ToolAnnotations(read_only_hint=True))
def add(a: int, b: int) -> Sum:
    """The sum of two numbers."""
    return Sum(sum=a + b)


@server.tool(structured_output=False, annotations=types.ToolAnnotations(idempotent_hint=True))
def say(text: str) -> str:
    """Says it."""
    return text


@server.tool(structured_output=False)
def fail(text: str) -> str:
    """Fails with these words."""
    raise ToolError(text)


@server.tool(structured_output=False)
def refuse(code: int, text: str) -> str:
    """Answers with an error of the protocol."""
    raise MCPError(code=code, message=text)


@server.tool(structured_output=False)
def show() -> list[Any]:
    """Shows one of each kind."""
    ten_bytes = base64.b64encode(b"0123456789").decode()
    return [
        types.TextContent(text="look:"),
        types.ImageContent(data=ten_bytes, mime_type="image/png"),
        types.EmbeddedResource(resource=types.TextResourceContents(uri="file:///a.txt", text="what it says")),
    ]


@server.tool(structured_output=False)
async def count(to: int, context: Context[Any]) -> str:
    """Counts, and says how far it is."""
    for number in range(1, to + 1):
        await context.report_progress(number, to, f"at {number}")
    return "done"


@server.tool(structured_output=False)
async def wait(folder: str) -> str:
    """Waits for ever, and notes in the folder when it begins and when it is cancelled."""
    (Path(folder) / "began").touch()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        (Path(folder) / "cancelled").touch()
        raise
    return "never"


@server.tool()
def environment() -> dict[str, str]:
    """What it was started with."""
    return dict(os.environ)


@server.tool(structured_output=False)
def process() -> str:
    """Its process."""
    return str(os.getpid())


@server.tool(structured_output=False)
async def ask(context: Context[Any]) -> str:
    """Wants something of the person who called."""
    answer = await context.elicit("Your name?", Sum)
    return answer.action


def serve_http(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as listening:
        print(listening.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="error")).run([listening])


if __name__ == "__main__":
    print("a line for the log", file=sys.stderr, flush=True)
    if sys.argv[1:2] == ["--http"]:
        serve_http(int(sys.argv[2]))
    else:
        server.run()
