"""The text of an item's run as events of its batch, and what of it an earlier attempt had shown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from headrace.batch.item import Response
from headrace.events import (
    BATCH_RESPONSE,
    BATCH_RESTARTED,
    AnyEvent,
    AttemptStarted,
    Data,
    Event,
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
    what was shown is counted off; a text that was begun anew since is void and left out whole."""

    def __init__(self, item_id: str, past: ItemPast) -> None:
        self._item_id = item_id
        self._shown = past.shown
        self._time = 0
        """How often the text was begun anew."""
        self._left_out = self._to_leave_out()

    def events(self, head: Head, block: Block) -> Sequence[AnyEvent]:
        events: list[AnyEvent] = []
        texts: list[str] = []
        message_id = ""
        for event in block.events:
            if isinstance(event, TextDelta):
                message_id = event.message_id
                texts.append(self._new_part(event.delta))
            elif isinstance(event, AttemptStarted) and event.mode == "restart":
                events += self._text(head, message_id, texts)
                texts = []
                events += self._begin_anew()
        return [*events, *self._text(head, message_id, texts)]

    def _new_part(self, delta: str) -> str:
        if not self._left_out:
            return delta
        skipped = int(min(self._left_out, len(delta)))
        self._left_out -= skipped
        return delta[skipped:]

    def _begin_anew(self) -> Sequence[AnyEvent]:
        self._time += 1
        self._left_out = self._to_leave_out()
        return [Data(name=BATCH_RESTARTED, value=self._item_id)] if self._time >= len(self._shown) else []

    def _to_leave_out(self) -> float:
        last = len(self._shown) - 1
        if self._time < last:
            return math.inf
        return self._shown[last] if self._time == last else 0

    def _text(self, head: Head, message_id: str, texts: Sequence[str]) -> Sequence[AnyEvent]:
        """One event for all of a block, however many pieces it came in."""
        text = "".join(texts)
        if not text:
            return []
        return [TextDelta(message_id=message_id, step_id=self._item_id, agent=head.run.agent, delta=text)]
