"""The text of an item's run as events of its batch, and what of it an earlier attempt had shown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import msgspec

from headrace.batch.item import Response
from headrace.events import (
    BATCH_RESPONSE,
    BATCH_RESTARTED,
    AnyEvent,
    AttemptStarted,
    Data,
    Event,
    MessageEnd,
    StepStarted,
    TextDelta,
    Unknown,
)
from headrace.ports import Block, Head


@dataclass
class ItemPast:
    """What the log of a batch has of one item."""

    started: bool = False
    response: Response | None = None
    shown: list[int] = field(default_factory=lambda: [0])
    """Characters of text: of each time that it was begun anew, the last one last."""


def past_of(history: Sequence[Event | Unknown]) -> Mapping[str, ItemPast]:
    """By the id of the item."""
    past: dict[str, ItemPast] = {}
    for event in history:
        if isinstance(event, StepStarted):
            past[event.step_id] = ItemPast(started=True)
        elif isinstance(event, TextDelta):
            past[event.step_id].shown[-1] += len(event.delta)
        elif isinstance(event, Data) and event.name == BATCH_RESTARTED:
            past[event.value].shown.append(0)
        elif isinstance(event, Data) and event.name == BATCH_RESPONSE:
            response = msgspec.convert(event.value, Response)
            past.setdefault(response.id, ItemPast()).response = response
    return past


class ItemText:
    """Fed with all blocks of the run from its first one. The same text is said again by a run that is read again, so
    what was shown is counted off; a text that was begun anew since is void and left out whole.

    A run takes back the message that is open, a batch all of an item's text: what ended before is then said again.
    """

    def __init__(self, item_id: str, past: ItemPast) -> None:
        self._item_id = item_id
        self._shown = past.shown
        self._time = 0
        """How often the text was begun anew."""
        self._left_out = self._to_leave_out()
        self._open: dict[str, list[str]] = {}
        self._ended: dict[str, list[str]] = {}
        """The text of the messages, by their ids."""
        self._new: list[tuple[str, str]] = []
        """What is to be told now: the id of the message, and a part of it."""

    def events(self, head: Head, block: Block) -> Sequence[AnyEvent]:
        events: list[AnyEvent] = []
        for event in block.events:
            if isinstance(event, TextDelta):
                self._open.setdefault(event.message_id, []).append(event.delta)
                self._say(event.message_id, event.delta)
            elif isinstance(event, MessageEnd):
                self._ended[event.message_id] = self._open.pop(event.message_id, [])
            elif isinstance(event, AttemptStarted) and event.mode == "restart":
                events += self._told(head)
                events += self._begin_anew()
        return [*events, *self._told(head)]

    def _say(self, message_id: str, text: str) -> None:
        skipped = int(min(self._left_out, len(text)))
        self._left_out -= skipped
        if part := text[skipped:]:
            self._new.append((message_id, part))

    def _begin_anew(self) -> Sequence[AnyEvent]:
        self._time += 1
        self._left_out = self._to_leave_out()
        self._open.clear()
        for message_id, texts in self._ended.items():
            self._say(message_id, "".join(texts))
        return [Data(name=BATCH_RESTARTED, value=self._item_id)] if self._time >= len(self._shown) else []

    def _to_leave_out(self) -> float:
        last = len(self._shown) - 1
        if self._time < last:
            return math.inf
        return self._shown[last] if self._time == last else 0

    def _told(self, head: Head) -> Sequence[AnyEvent]:
        """One event for all that is new of a message, however many pieces it came in."""
        new, self._new = self._new, []
        return [
            TextDelta(
                message_id=message_id,
                step_id=self._item_id,
                agent=head.run.agent,
                delta="".join(text for _, text in parts),
            )
            for message_id, parts in groupby(new, key=itemgetter(0))
        ]
