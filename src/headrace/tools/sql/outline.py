"""The tables and columns of a database in words, for whoever writes queries."""

import re
from collections.abc import Iterable

from headrace.tools.sql.reading import Column

MAX_CHARACTERS = 4_000
_MAX_COLUMNS = 60
"""Of one table."""
_MAX_NAME = 64
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


def outline(columns: Iterable[Column]) -> str:
    """Such as `orders(id INTEGER, total REAL); "Order Lines"(price REAL)`.

    Bounded, so that a large database does not fill every prompt: then some tables stand without their columns, and the
    last ones are only counted.
    """
    tables: dict[str, list[str]] = {}
    for column in columns:
        names = tables.setdefault(_table_name(column), [])
        names.append(f"{_name(column.name)} {_words(column.type)}".rstrip())
    parts: list[str] = []
    room = MAX_CHARACTERS
    for name, names in tables.items():
        more = ", …" if len(names) > _MAX_COLUMNS else ""
        whole = f"{name}({', '.join(names[:_MAX_COLUMNS])}{more})"
        part = whole if len(whole) <= room else name
        if len(part) > room:
            parts.append(f"and {len(tables) - len(parts)} more")
            break
        parts.append(part)
        room -= len(part) + 2
    return "; ".join(parts) or "none"


def _table_name(column: Column) -> str:
    return f"{_name(column.schema)}.{_name(column.table)}" if column.schema else _name(column.table)


def _name(name: str) -> str:
    """As a query has to write it."""
    if _PLAIN.fullmatch(name) and len(name) <= _MAX_NAME:
        return name
    return '"' + _words(name).replace('"', '""') + '"'


def _words(text: str) -> str:
    """On one line, and short: a name comes from whoever made the table."""
    return " ".join(text.split())[:_MAX_NAME]
