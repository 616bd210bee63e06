"""What is asked of a database, and what it answers."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from headrace.tools.sql.location import Location
from headrace.tools.sql.table import Table

READY = b"ready\n"


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """One query, as it goes to the process that runs it."""

    location: Location
    sql: str | None
    """`None`: not a query, but what there is to ask for, in words."""
    parameters: Sequence[str | int | float | bool | None] = ()
    """Bound by the database, never pasted."""
    seconds: float
    max_rows: int = 0
    max_bytes: int = 0

    def table(self, columns: Sequence[str]) -> Table:
        return Table(columns, max_rows=self.max_rows, max_bytes=self.max_bytes)


def late(seconds: float) -> str:
    """What a query that took longer is told."""
    return f"The query took longer than {seconds:g} seconds, so it was ended."


class Column(NamedTuple):
    """One column of a table or view that can be read."""

    schema: str | None
    """`None` where a query need not name it."""
    table: str
    name: str
    type: str


class Database(Protocol):
    """Reads one kind of database. Blocking; opens it for each call, and leaves nothing open.

    The connection is what makes it read-only: whatever the text of the query is, the database is not changed. No call
    has to end in time, since the process that it runs in does. Raises `SQLDenied` for what a reader may not do,
    `ToolRefused` with the words of the database for a mistake in the query, and `ToolUnavailable`.
    """

    def read(self, query: Query) -> Table: ...

    def columns(self, query: Query) -> list[Column]:
        """Table by table, in the order of the columns. Without what belongs to the database itself."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What comes back from the process: `result`, else the error's `code` and `message`."""

    result: Any = None
    code: str | None = None
    message: str = ""
    cause: str = ""
    """For the log of the server."""
    ended: bool = False
    """The process is not to be asked again."""
