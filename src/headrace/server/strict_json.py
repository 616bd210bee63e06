"""JSON bodies, read so that every later reader of the same value agrees on what it says.

What parsers differ on is refused instead of guessed: NaN and Infinity, numbers that overflow, keys that occur twice,
halves of surrogate pairs, byte order marks. `\\u0000` in text is valid JSON and is taken as it is.
"""

import asyncio
import json
import re
from math import isfinite
from typing import Any, NoReturn

from headrace.errors import BodyTooDeep, DuplicateKey, InvalidJSON

MAX_DEPTH = 64
"""Objects and arrays inside each other, the body's own object included."""
MAX_INTEGER_LENGTH = 1000
"""Characters. What is longer could be stored, but not be read back by every reader of the log."""
INLINE_SIZE = 64 * 1024
"""Bytes. A larger body is parsed in a thread."""

# A string that is not closed is matched to the end, and nothing is tried twice: the time is linear for any input.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_A_BRACKET = bytes(byte for byte in range(256) if byte not in b"[]{}")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


async def load(body: bytes) -> dict[str, Any]:
    """Like `loads`, but a large body does not hold the event loop."""
    if len(body) <= INLINE_SIZE:
        return loads(body)
    return await asyncio.to_thread(loads, body)


def loads(body: bytes) -> dict[str, Any]:
    """The object in `body`. Raises `InvalidJSON`, `BodyTooDeep` or `DuplicateKey`, and nothing else."""
    _check_depth(body)
    try:
        text = body.decode()
        value = _DECODER.decode(text)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # fails for a half of a pair, wherever it stands
    except ValueError as error:
        raise InvalidJSON from error
    if not isinstance(value, dict):
        raise InvalidJSON
    return value


def _check_depth(body: bytes) -> None:
    """Before the parser, since that recurses."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _STRING.sub(b"", body).translate(None, _NOT_A_BRACKET):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise BodyTooDeep


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise DuplicateKey
    return members


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_LENGTH:
        raise InvalidJSON
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise InvalidJSON
    return number


def _constant(_name: str) -> NoReturn:
    raise InvalidJSON


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
