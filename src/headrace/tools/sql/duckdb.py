"""Reads a DuckDB file. It is opened read-only, with everything switched off that reaches beyond it, and locked so."""

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from headrace.errors import SQLDenied, ToolError, ToolRefused, ToolUnavailable
from headrace.tools.sql.reading import Column, Database, Query
from headrace.tools.sql.table import Table

_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_unsigned_extensions": False,
    "allow_persistent_secrets": False,
    "python_enable_replacements": False,
    "memory_limit": "256MB",
    "temp_directory": "",
    "threads": 2,
    "lock_configuration": True,
}
_DENIED = ("read-only mode", "the configuration has been locked", "disabled by configuration")
"""In messages of errors whose class says less."""


class DuckDatabase(Database):
    def read(self, query: Query) -> Table:
        with _connected(query.location.address) as connection:
            rows = connection.execute(_statement(connection, query.sql or ""), list(query.parameters))
            table = query.table([name for name, *_ in rows.description or ()])
            while (row := rows.fetchone()) is not None and table.add(row):
                pass
            return table

    def columns(self, query: Query) -> list[Column]:
        with _connected(query.location.address) as connection:
            rows = connection.execute(
                "SELECT nullif(schema_name, 'main'), table_name, column_name, data_type FROM duckdb_columns() "
                "WHERE NOT internal ORDER BY schema_name, table_name, column_index"
            )
            return [Column(*row) for row in rows.fetchall()]


def _statement(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """What DuckDB's own parser finds in it: one statement that reads. It takes several, and reading-only lets pass what
    changes the connection alone."""
    statements = connection.extract_statements(sql)
    if len(statements) > 1:
        raise SQLDenied("Send one statement at a time.")
    if not statements or statements[0].type != duckdb.StatementType.SELECT:
        raise SQLDenied("Only a statement that selects is run. This tool only reads.")
    return statements[0]


@contextmanager
def _connected(path: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Raises `ToolError` for all that goes wrong inside."""
    try:
        with duckdb.connect(path, read_only=True, config=_CONFIG) as connection:
            yield connection
    except duckdb.Error as error:
        raise _told(error) from error


def _told(error: duckdb.Error) -> ToolError:
    text = str(error)
    if isinstance(error, duckdb.PermissionException) or any(words in text for words in _DENIED):
        return SQLDenied()
    if isinstance(error, duckdb.OutOfMemoryException):
        return ToolRefused("The query needs more memory than it may use. Ask for less.")
    if isinstance(error, duckdb.IOException | duckdb.InternalException | duckdb.FatalException):
        return ToolUnavailable("The database cannot be read now. Another program may be writing to it.")
    return ToolRefused(f"DuckDB says: {text[:500]}")
