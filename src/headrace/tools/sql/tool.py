"""The tool `sql`."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from headrace.errors import ConfigurationError, ToolError, ToolRefused
from headrace.ports import Tool, ToolContext, ToolSource
from headrace.tools.sql.location import Dialect, Location, locate
from headrace.tools.sql.process import QueryProcesses
from headrace.tools.sql.reading import Query

_LARGEST_RESULT = 60_000
"""Bytes. A tool's result is cut at 65,536 characters, and what is cut is no JSON any more."""
_PATIENCE = 5.0
"""Seconds beyond the time of a query, to start a process and to end it."""
_WORDS: Mapping[Dialect, tuple[str, str]] = {
    "sqlite": ("SQLite", "`?`"),
    "duckdb": ("DuckDB", "`?`"),
    "postgresql": ("PostgreSQL", "`$1`, `$2` and so on"),
}
"""What a model calls it, and how its queries say where a parameter goes."""


def sql_tool(
    url: str,
    *,
    name: str = "sql",
    scope: str | None = None,
    max_rows: int = 200,
    max_bytes: int = 50_000,
    seconds: float = 5.0,
) -> ToolSource:
    """A tool that runs read-only queries on one database, which is read at the start to tell a model its tables.

    `url` is `sqlite:///PATH`, `duckdb:///PATH`, `postgresql://…`, or a path that ends as such a file does. A query has
    `seconds`; its result has at most `max_rows` rows and `max_bytes` bytes of JSON. Whoever may use the tool may read
    the whole database; `scope` says who may. Raises `ConfigurationError`, at once or when the source is entered.
    """
    if not (0 < max_rows <= 10_000 and 1_000 <= max_bytes <= _LARGEST_RESULT and 0 < seconds <= 600):
        raise ConfigurationError(
            f"The SQL tool takes 1 to 10,000 rows, 1,000 to {_LARGEST_RESULT:,} bytes and up to 600 seconds."
        )
    location = locate(url)

    @asynccontextmanager
    async def source() -> AsyncIterator[Sequence[Tool]]:
        processes = QueryProcesses(location.dialect)
        try:
            tables = await _tables(processes, location, seconds)
            query = Query(location=location, sql=None, seconds=seconds, max_rows=max_rows, max_bytes=max_bytes)
            yield [SqlTool(query, tables, processes, name=name, scope=scope)]
        finally:
            await processes.close()

    return source


async def _tables(processes: QueryProcesses, location: Location, seconds: float) -> str:
    try:
        return str(await processes.ask(Query(location=location, sql=None, seconds=max(seconds, _PATIENCE))))
    except ToolError as error:
        raise ConfigurationError(
            "The database of the SQL tool cannot be read. Check that its URL is right, that it is there, and that this "
            "server may read it."
        ) from error


class SqlTool(Tool):
    """Made by `sql_tool`."""

    name = ""
    description = ""
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "query": {"type": "string", "minLength": 1, "maxLength": 20_000, "description": "One statement."},
            "parameters": {
                "type": "array",
                "items": {"type": ["string", "number", "boolean", "null"]},
                "maxItems": 100,
                "description": "Values for the placeholders of the query, in order.",
            },
        },
        "required": ["query"],
        "additionalProperties": False,
    }
    idempotent = True
    timeout = 0.0
    concurrency = 2
    """Each is a process."""
    scope: str | None = None

    def __init__(self, query: Query, tables: str, processes: QueryProcesses, *, name: str, scope: str | None) -> None:
        """`query` is what all its queries have in common."""
        self.name = name
        self.scope = scope
        self.timeout = query.seconds + _PATIENCE
        self.description = _description(query, tables)
        self._query = query
        self._processes = processes

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Any:
        """`columns`, `rows`, `row_count`, and `truncated`: whether rows are missing or a value was cut."""
        sql = arguments["query"]
        if "\0" in sql:  # ends a text in C: what follows would be read as something else
            raise ToolRefused("The query has a NUL character in it.")
        query = msgspec.structs.replace(self._query, sql=sql, parameters=arguments.get("parameters", ()))
        return await self._processes.ask(query)


def _description(query: Query, tables: str) -> str:
    dialect, placeholder = _WORDS[query.location.dialect]
    return (
        f"Runs one {dialect} query that only reads, and gives at most {query.max_rows} rows: `truncated` says where "
        f"there is more. Put values into `parameters`, with {placeholder} in their place. Tables: {tables}."
    )
