"""The rows of an answer, as many as fit."""

from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.errors import ToolRefused
from headrace.tools.sql.values import Values

_ENVELOPE = 100
"""Bytes of a result that has neither columns nor rows, and some to spare."""


class Table:
    """Rows as JSON, up to a number of rows and of bytes: they are counted as they come, so that nobody reads on."""

    def __init__(self, columns: Sequence[str], *, max_rows: int, max_bytes: int) -> None:
        """Raises `ToolRefused` where the names alone are too much."""
        self._values = Values()
        self._columns = [self._values.json(name) for name in columns]
        self._rows: list[msgspec.Raw] = []
        self._more = False
        self._max_rows = max_rows
        self._room = max_bytes - _ENVELOPE - len(msgspec.json.encode(self._columns))
        if self._room < 0:
            raise ToolRefused("The result has too many columns. Select fewer.")

    def add(self, row: Sequence[Any]) -> bool:
        """Take the next row. False where it does not fit: then no more are wanted.

        Raises `ToolRefused` where not even one row fits: no rows at all would read as if there were none.
        """
        if len(self._rows) == self._max_rows:
            self._more = True
            return False
        encoded = msgspec.json.encode([self._values.json(value) for value in row])
        self._room -= len(encoded) + 1
        if self._room < 0:
            if not self._rows:
                raise ToolRefused(
                    "A single row is larger than a result may be. Select fewer columns, or parts of them."
                )
            self._more = True
            return False
        self._rows.append(msgspec.Raw(encoded))
        return True

    def result(self) -> dict[str, Any]:
        return {
            "columns": self._columns,
            "rows": self._rows,
            "row_count": len(self._rows),
            "truncated": self._more or self._values.cut,
        }
