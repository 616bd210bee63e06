"""The process that runs queries: it reads them line by line and answers line by line, as JSON.

It can be ended at any time, since it changes nothing. It takes no more memory than it may, writes no large file, and
ends itself if its parent is not there to do so.
"""

import os
import signal
import sys
from contextlib import suppress
from typing import BinaryIO

import msgspec

from headrace.errors import ConfigurationError, HeadraceError, ToolError, ToolFailed, ToolRefused
from headrace.tools.sql.location import Dialect
from headrace.tools.sql.outline import outline
from headrace.tools.sql.reading import READY, Answer, Database, Query

_MEMORY = 1024 * 1024 * 1024
"""Bytes of data. Address space would count what DuckDB only reserves, which is more the more processors there are."""
_LARGEST_FILE = 16 * 1024 * 1024
"""Bytes; the index of a write-ahead log is the only file that reading may write."""
_ORPHAN_SECONDS = 3.0
"""Beyond the time of a query: by then the parent has ended this process, if there is one."""


def main() -> None:
    """The argument says which kind of database. The first line says that the library is loaded, so that no query has
    to wait for that."""
    replies = _own_output()
    database = _database(msgspec.convert(sys.argv[1], Dialect))
    _limit()
    replies.write(READY)
    replies.flush()
    for line in sys.stdin.buffer:
        query = msgspec.json.decode(line, type=Query)
        _end_after(query.seconds + _ORPHAN_SECONDS)
        replies.write(msgspec.json.encode(answer(database, query)) + b"\n")
        replies.flush()
        _end_after(0)


def answer(database: Database, query: Query) -> Answer:
    try:
        result = outline(database.columns(query)) if query.sql is None else database.read(query).result()
    except (ToolError, ConfigurationError) as error:
        return _refusal(error, error.__cause__)
    except MemoryError as error:
        too_much = ToolRefused("The query needs more memory than it may use. Ask for less.")
        return _refusal(too_much, error, ended=True)
    except Exception as error:
        return _refusal(ToolFailed(), error, ended=True)
    return Answer(result=result)


def _refusal(error: HeadraceError, cause: BaseException | None, *, ended: bool = False) -> Answer:
    return Answer(code=error.code, message=error.message, cause=repr(cause) if cause else "", ended=ended)


def _database(dialect: Dialect) -> Database:
    match dialect:
        case "sqlite":
            from headrace.tools.sql.sqlite import SqliteDatabase

            return SqliteDatabase()
        case "duckdb":
            from headrace.tools.sql.duckdb import DuckDatabase

            return DuckDatabase()
        case "postgresql":
            from headrace.tools.sql.postgresql import PostgresDatabase

            return PostgresDatabase()


def _own_output() -> BinaryIO:
    """What was standard output. A library that prints does so to nowhere."""
    replies = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return replies


def _limit() -> None:
    """As far as the system can."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    for kind, most in (
        (resource.RLIMIT_DATA, _MEMORY),
        (resource.RLIMIT_FSIZE, _LARGEST_FILE),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def _end_after(seconds: float) -> None:
    """By a signal, which ends it wherever it is; 0: not at all."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
