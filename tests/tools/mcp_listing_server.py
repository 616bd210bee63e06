"""An MCP server over stdio whose list of tools, in pages, has all that a list can have."""

import anyio
from mcp import types
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server

OBJECT = {"type": "object"}
INTEGER = {"x": {"type": "integer"}}
PAGES = [
    [
        types.Tool(name="plain", description="Plain.", input_schema={**OBJECT, "properties": INTEGER}),
        types.Tool(name="files.read/all", title="Reads", input_schema=OBJECT),
        types.Tool(name="files_read.all", input_schema=OBJECT),
        types.Tool(name="x" * 62, input_schema=OBJECT),
        types.Tool(name="x" * 63, input_schema=OBJECT),
    ],
    [
        types.Tool(name="no_schema", input_schema={**OBJECT, "properties": {"x": {"type": "strin"}}}),
        types.Tool(name="elsewhere", input_schema={**OBJECT, "$ref": "https://example.org/schema"}),
        types.Tool(name="liar", input_schema=OBJECT, output_schema={**OBJECT, "required": ["x"]}),
    ],
]


async def list_tools(context: ServerRequestContext, page: types.PaginatedRequestParams | None) -> types.ListToolsResult:
    number = int(page.cursor) if page is not None and page.cursor is not None else 0
    rest = str(number + 1) if number + 1 < len(PAGES) else None
    return types.ListToolsResult(tools=PAGES[number], next_cursor=rest)


async def call_tool(context: ServerRequestContext, call: types.CallToolRequestParams) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=f"{call.name} {call.arguments}")])


async def main() -> None:
    server = Server("listing", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options())


if __name__ == "__main__":
    anyio.run(main)
