"""How events end a log."""

from collections.abc import Sequence

from headrace.errors import LogClosed
from headrace.events import TERMINAL, Event, RunCancelled, RunCompleted, RunFailed
from headrace.ports import RunState

_STATES: dict[type[Event], RunState] = {RunCompleted: "completed", RunFailed: "failed", RunCancelled: "cancelled"}


def ending(events: Sequence[Event]) -> RunState | None:
    """The state in which a run is after these events, if they end it. Raises `LogClosed` where more follows the end."""
    if len(events) > 1 and any(isinstance(event, TERMINAL) for event in events[:-1]):
        raise LogClosed
    return _STATES.get(type(events[-1]))
