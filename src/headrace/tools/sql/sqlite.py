"""Reads a SQLite file. Three walls stand before it: the file is opened read-only, the connection takes no writes, and
an authorizer lets nothing be compiled but reading, so that no other file is reached either."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import quote

from headrace.errors import SQLDenied, ToolError, ToolRefused, ToolUnavailable
from headrace.tools.sql.reading import Column, Database, Query
from headrace.tools.sql.table import Table

_BUSY_SECONDS = 1.0
_READS = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE))
_FORBIDDEN_FUNCTIONS = frozenset(("load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"))
"""Those that reach beyond the database. All but the first two exist only where somebody built SQLite with them."""
_LIMITS = {
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LENGTH: 16 * 1024 * 1024,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_TABLES = """
SELECT name, type = 'table' AND rootpage = 0 AS is_virtual
FROM sqlite_master WHERE type IN ('table', 'view') AND substr(name, 1, 7) <> 'sqlite_'
"""
_TABLE_FUNCTIONS = ("json_each", "json_tree")
_SETUP = ("query_only = ON", "trusted_schema = OFF", "temp_store = MEMORY", "cell_size_check = ON")
_DENIED = frozenset((sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM))
_UNAVAILABLE = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERNAL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PROTOCOL,
    )
)


class SqliteDatabase(Database):
    def read(self, query: Query) -> Table:
        with _connected(query.location.address) as connection:
            _open_virtual_tables(connection)
            connection.set_authorizer(_authorize)
            rows = connection.execute(query.sql or "", list(query.parameters))
            if rows.description is None:
                raise SQLDenied("The statement gives no rows. This tool only reads.")
            table = query.table([name for name, *_ in rows.description])
            for row in rows:
                if not table.add(row):
                    break
            return table

    def columns(self, query: Query) -> list[Column]:
        with _connected(query.location.address) as connection:
            tables = connection.execute(_TABLES).fetchall()
            # A virtual table keeps what it holds in tables that are named after it.
            inner = tuple(f"{name}_" for name, is_virtual in tables if is_virtual)
            names = [name for name, _ in tables if not name.startswith(inner)]
            return [column for name in names for column in _columns(connection, name)]


def _open_virtual_tables(connection: sqlite3.Connection) -> None:
    """Their modules prepare statements that write, ahead of any use: the authorizer would not let them open."""
    names = [name for name, is_virtual in connection.execute(_TABLES) if is_virtual]
    for name in (*names, *_TABLE_FUNCTIONS):
        with suppress(sqlite3.OperationalError):  # of a module that is not there: the query will be told
            quoted = name.replace('"', '""')
            connection.execute(f'SELECT 1 FROM "{quoted}" LIMIT 0').close()


def _columns(connection: sqlite3.Connection, table: str) -> Iterator[Column]:
    try:
        for name, type in connection.execute("SELECT name, type FROM pragma_table_info(?)", (table,)):
            yield Column(None, table, name, type)
    except sqlite3.OperationalError:
        """A view whose tables are gone, or a virtual table of a module that is not there: nobody can read it."""


@contextmanager
def _connected(path: str) -> Iterator[sqlite3.Connection]:
    """Raises `ToolError` for all that goes wrong inside."""
    try:
        with closing(
            sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        ) as connection:
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            for limit, value in _LIMITS.items():
                connection.setlimit(limit, value)
            for pragma in _SETUP:
                connection.execute(f"PRAGMA {pragma}")
            yield connection
    except sqlite3.Error as error:
        raise _told(error) from error


def _authorize(action: int, first: str | None, second: str | None, *_: Any) -> int:
    if action in _READS:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_OK
    # A full-text table asks by this whether another connection has written. It cannot be set.
    if action == sqlite3.SQLITE_PRAGMA and first == "data_version" and second is None:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _told(error: sqlite3.Error) -> ToolError:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # of Python's module, which takes one statement
        return SQLDenied("Send one statement at a time.") if "one statement" in str(error) else _refused(error)
    if code in _DENIED or "not authorized" in str(error):
        return SQLDenied()
    if code & 0xFF in _UNAVAILABLE or code & 0xFF == sqlite3.SQLITE_READONLY:  # as where a crash left a journal
        return ToolUnavailable("The database cannot be read now. It may be busy.")
    return _refused(error)


def _refused(error: sqlite3.Error) -> ToolRefused:
    return ToolRefused(f"SQLite says: {str(error)[:500]}")
