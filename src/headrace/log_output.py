"""Where log lines go and how they look: JSON lines for machines, columns for people on a terminal."""

import json
import logging
import sys
from contextlib import suppress
from typing import Any, Literal

import msgspec
import structlog
from structlog.typing import EventDict, Processor

from headrace.errors import ConfigurationError

_VALUE_LIMIT = 2048
"""Characters."""
_TRACEBACK_LINES = 100


def configure(level: str, style: Literal["auto", "console", "json"]) -> None:
    """One handler on standard error for our own lines and those of libraries."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigurationError(f"LOG_LEVEL: {level!r} is not a level. Use DEBUG, INFO, WARNING or ERROR.")
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
        _tame,
    ]
    renderers = _renderers(style)
    structlog.configure(
        processors=[*shared, *renderers],
        logger_factory=LineLogger,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(level=number, handlers=[handler], force=True)


class LineLogger:
    """Writes our own lines straight to standard error: an order of magnitude cheaper than through `logging`.

    Where they cannot be written they are dropped: what a line is about must not fail with it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def info(self, line: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")

    debug = warning = error = critical = info


def _renderers(style: Literal["auto", "console", "json"]) -> list[Processor]:
    terminal = sys.stderr.isatty()
    if style == "console" or (style == "auto" and terminal):
        plain = structlog.dev.plain_traceback
        return [_escape, structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=plain)]
    return [structlog.processors.JSONRenderer(serializer=_to_json)]


def _tame(logger: Any, method: str, event: EventDict) -> EventDict:
    """Make every value a number or a text of bounded length; what is neither is shown by its `repr`."""
    for key, value in event.items():
        if key == "exception":
            event[key] = _tame_traceback(value)
        elif isinstance(value, str):
            event[key] = _cut(value)
        elif not (key.startswith("_") or value is None or isinstance(value, int | float)):
            event[key] = _cut(repr(value))
    return event


def _tame_traceback(text: str) -> str:
    lines = text.split("\n")
    if len(lines) > _TRACEBACK_LINES:
        lines[1:-_TRACEBACK_LINES] = ["…"]
    return "\n".join(map(_cut, lines))


def _cut(text: str) -> str:
    return text if len(text) <= _VALUE_LIMIT else text[:_VALUE_LIMIT] + "…"


def _escape(logger: Any, method: str, event: EventDict) -> EventDict:
    """Text of strangers must not steer a terminal or look like lines of ours. A traceback keeps its lines."""
    for key, value in event.items():
        if key == "exception":
            event[key] = "\n".join(map(_printable, value.split("\n")))
        elif isinstance(value, str):
            event[key] = _printable(value)
    return event


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _to_json(event: EventDict, **_: Any) -> str:
    """In ASCII where there is anything that a terminal or a reader of lines might take for more than text."""
    try:
        line = msgspec.json.encode(event).decode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(event)
    return line if line.isprintable() else json.dumps(event)
