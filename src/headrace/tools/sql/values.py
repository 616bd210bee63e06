"""What a database holds, as what JSON has."""

import math
from datetime import date, time
from typing import Any

MAX_CHARACTERS = 2_000
"""Of one value; what is longer is cut, and says so."""
_MAX_DEPTH = 16
_EXACT = 2**53
"""Whole numbers beyond are given as text: a reader of JSON that has doubles only would change them unseen."""


class Values:
    """Turns values into JSON, one after the other, and remembers whether one had to be cut."""

    def __init__(self) -> None:
        self.cut = False

    def json(self, value: Any, depth: int = 0) -> Any:
        """Numbers, text, true, false and null as they are. All else that has no form in JSON becomes text: exact
        decimals and large whole numbers, NaN and the infinities, dates and times (ISO 8601), and bytes as `0x…`."""
        match value:
            case None | bool():
                return value
            case int():
                return value if abs(value) <= _EXACT else str(value)
            case float():
                return value if math.isfinite(value) else _NOT_FINITE.get(value, "NaN")
            case str():
                return self._text(value)
            case bytes() | bytearray() | memoryview():
                return self._bytes(bytes(value))
            case date() | time():
                return value.isoformat()
            case object(items=items) if depth < _MAX_DEPTH:  # a mapping, or a row within a row
                return {self._text(str(key)): self.json(each, depth + 1) for key, each in items()}
            case object(isempty=empty, lower_inc=_, upper_inc=_):
                return "empty" if empty else _range(value)
            case list() | tuple() | set() | frozenset() if depth < _MAX_DEPTH:
                return [self.json(each, depth + 1) for each in value]
            case _:
                return self._text(str(value))

    def _text(self, value: str) -> str:
        if len(value) > MAX_CHARACTERS:
            self.cut = True
            value = f"{value[:MAX_CHARACTERS]}… [cut: {len(value):,} characters]"
        return value.encode("utf-8", "replace").decode() if not value.isascii() else value

    def _bytes(self, value: bytes) -> str:
        most = MAX_CHARACTERS // 2
        if len(value) > most:
            self.cut = True
            return f"0x{value[:most].hex()}… [cut: {len(value):,} bytes]"
        return f"0x{value.hex()}"


def _range(value: Any) -> str:
    """As PostgreSQL writes it."""
    lower = "" if value.lower is None else value.lower
    upper = "" if value.upper is None else value.upper
    return f"{'[' if value.lower_inc else '('}{lower},{upper}{']' if value.upper_inc else ')'}"


_NOT_FINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}
