"""Reads a PostgreSQL server. Every call is a connection of its own and one transaction, which is read-only and always
rolled back: before version 16 a read-only transaction still takes large objects.

That is no wall against a role that may leave the database, by running a program or reading a file of the server. Such
a role is refused.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped]

from headrace.errors import ConfigurationError, SQLDenied, ToolError, ToolRefused, ToolTimeout, ToolUnavailable
from headrace.tools.sql.reading import Column, Database, Query, late
from headrace.tools.sql.table import Table

Result = TypeVar("Result")

_CLOSING_SECONDS = 0.5
_BATCH = 20
"""Rows: what is fetched beyond the limit of bytes is less than this many."""
_BEGIN = """
SELECT set_config('statement_timeout', $1, true), EXISTS (
    SELECT FROM pg_catalog.pg_roles
    WHERE pg_has_role(session_user, oid, 'MEMBER') AND (rolsuper OR rolreplication OR rolname IN (
        'pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files', 'pg_signal_backend'
    ))
) AS powerful
"""
_LONGEST_MESSAGE = 500
_COLUMNS = """
SELECT CASE WHEN NOT pg_table_is_visible(c.oid) THEN n.nspname END,
    c.relname, a.attname, format_type(a.atttypid, a.atttypmod)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition
    AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
    AND has_schema_privilege(n.oid, 'USAGE') AND has_column_privilege(c.oid, a.attnum, 'SELECT')
ORDER BY n.nspname, c.relname, a.attnum
"""
_TOO_POWERFUL = (
    "The role of the SQL tool's database URL may do more than any read-only connection can hold back: it is a "
    "superuser, may replicate, or may use programs, files or sessions of the server. Make one that can only read: "
    "CREATE ROLE reader LOGIN PASSWORD '...'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;"
)
_DENIED = frozenset(("25001", "25006", "2D000", "42501"))
_OF_THE_QUERY = frozenset(("0A", "20", "21", "22", "2F", "38", "39", "3F", "40", "42", "44", "54", "P0"))
"""Classes of SQLSTATE whose messages are about the query and its data, never about the server."""


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


_AS_TEXT = (
    *("date", "timestamp", "timestamptz", "time", "timetz", "interval"),
    *("numeric", "money", "uuid", "inet", "cidr", "bit", "varbit"),
    *("point", "line", "lseg", "box", "path", "polygon", "circle"),
)
_DECODERS: dict[str, Callable[[str], Any]] = {**dict.fromkeys(_AS_TEXT, str), "json": _json, "jsonb": _json}
"""Of types that travel as text, so that a parameter may be what a query would write, and Python's limits play no part:
it has neither the year 4000 BC nor infinity as a date."""


class PostgresDatabase(Database):
    def read(self, query: Query) -> Table:
        return asyncio.run(_told_in_time(query, _read))

    def columns(self, query: Query) -> list[Column]:
        return asyncio.run(_told_in_time(query, _columns))


async def _read(connection: Any, query: Query) -> Table:
    try:
        return await _rows(connection, query)
    except asyncpg.UnsupportedClientFeatureError:
        # A range or a row of such types: asyncpg reads it only as Python has them.
        for name in _DECODERS:
            await connection.reset_type_codec(name, schema="pg_catalog")
        return await _rows(connection, query)


async def _rows(connection: Any, query: Query) -> Table:
    prepared = await connection.prepare(query.sql or "")
    columns = [attribute.name for attribute in prepared.get_attributes()]
    if not columns:
        raise SQLDenied("The statement gives no rows. This tool only reads.")
    table = query.table(columns)
    cursor = await prepared.cursor(*query.parameters)
    while rows := await cursor.fetch(_BATCH):
        for row in rows:
            if not table.add(tuple(row)):
                return table
    return table


async def _columns(connection: Any, query: Query) -> list[Column]:
    return [Column(*row) for row in await connection.fetch(_COLUMNS)]


async def _told_in_time(query: Query, read: Callable[[Any, Query], Awaitable[Result]]) -> Result:
    """Raises `ToolError` for all that goes wrong."""
    try:
        async with asyncio.timeout(query.seconds), _transaction(query) as connection:
            return await read(connection, query)
    except TimeoutError as error:
        raise ToolTimeout(late(query.seconds)) from error
    except asyncpg.PostgresError as error:
        raise _told(error, query) from error
    except asyncpg.InterfaceError as error:  # parameters that do not fit
        raise ToolRefused(f"The parameters do not fit: {str(error)[:_LONGEST_MESSAGE]}") from error
    except OSError as error:
        raise ToolUnavailable("The database cannot be reached.") from error


@asynccontextmanager
async def _transaction(query: Query) -> AsyncIterator[Any]:
    connection = await _connect(query.location.address)
    try:
        for name, decoder in _DECODERS.items():
            await connection.set_type_codec(name, schema="pg_catalog", encoder=str, decoder=decoder)
        transaction = connection.transaction(readonly=True)
        await transaction.start()
        # The first query of a transaction fixes that it is read-only: what comes after cannot set it otherwise.
        row = await connection.fetchrow(_BEGIN, str(max(1, int(query.seconds * 1000))))
        if row["powerful"]:
            raise ConfigurationError(_TOO_POWERFUL)
        yield connection
        await transaction.rollback()
    finally:
        # Waits until the server has been asked to cancel what runs. An open transaction ends with its connection.
        await connection.close(timeout=_CLOSING_SECONDS)


async def _connect(url: str) -> Any:
    settings = {"application_name": "headrace", "default_transaction_read_only": "on"}
    try:
        return await asyncpg.connect(url, statement_cache_size=0, server_settings=settings)
    except (asyncpg.InterfaceError, ValueError):
        # Not chained: the text may be a part of the URL, such as its password.
        raise ConfigurationError("The database URL of the SQL tool is none that PostgreSQL is asked by.") from None


def _told(error: Any, query: Query) -> ToolError:
    state = str(error.sqlstate)
    if state == "57014":
        return ToolTimeout(late(query.seconds))
    # PostgreSQL calls several statements a syntax error.
    if state in _DENIED or getattr(error, "server_source_function", None) == "exec_parse_message":
        return SQLDenied()
    if state[:2] in _OF_THE_QUERY:
        return ToolRefused(f"PostgreSQL says: {str(error)[:_LONGEST_MESSAGE]}")
    return ToolUnavailable("The database cannot be read now.")
