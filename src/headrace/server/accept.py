"""Which of the types that we offer a client takes (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence

from headrace.errors import NotAcceptable


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """The offered type with the highest weight, the first of equals. Raises `NotAcceptable`."""
    if not accept:
        return offered[0]
    ranges = [_parse(part) for part in accept.split(",")]
    weights = [max((weight for range_, weight in ranges if _matches(range_, type_)), default=0.0) for type_ in offered]
    best = max(weights)
    if best <= 0:
        raise NotAcceptable
    return offered[weights.index(best)]


def _parse(part: str) -> tuple[str, float]:
    range_, *parameters = part.split(";")
    weight = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            weight = _number(value)
    return range_.strip().lower(), weight


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _matches(range_: str, type_: str) -> bool:
    return range_ in ("*/*", type_) or (range_.endswith("/*") and type_.startswith(range_[:-1]))
