"""Which of the types that we offer a client takes (RFC 9110, section 12.5.1)."""

import re
from collections.abc import Mapping, Sequence

from headrace.errors import NotAcceptable

_NUMBER = re.compile(r"[01](\.[0-9]{0,3})?")


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """The offered type with the highest weight, the first of equals. Raises `NotAcceptable`."""
    if not accept:
        return offered[0]
    weights = dict(map(_parse, accept.split(",")))
    best = max(offered, key=lambda type_: _weight(type_, weights))
    if _weight(best, weights) <= 0:
        raise NotAcceptable
    return best


def _weight(type_: str, weights: Mapping[str, float]) -> float:
    """That of the most specific range that holds the type."""
    ranges = (type_, type_.partition("/")[0] + "/*", "*/*")
    return next((weights[range_] for range_ in ranges if range_ in weights), 0.0)


def _parse(part: str) -> tuple[str, float]:
    range_, *parameters = part.split(";")
    weight = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            weight = float(value) if _NUMBER.fullmatch(value.strip()) else 0.0
    return range_.strip().lower(), weight
