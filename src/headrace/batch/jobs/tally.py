"""How far a job has got: a fold over its log, of which a snapshot is written now and then, so that nobody has to read a
long log from its beginning."""

import time
from collections import deque
from collections.abc import Callable
from itertools import chain

import msgspec

from headrace.events import JOB_RESULT, JOB_TALLY, Data, Event, Unknown
from headrace.ports import Head
from headrace.runs import Runs

_TAIL = 30
"""Events from the end in which a snapshot is looked for first. Few, since results may be large."""
_WIDER = 10
"""How many times as many are looked through next."""
_WINDOW = 10.0
"""Seconds over which the throughput is told."""


class Tally(msgspec.Struct, kw_only=True):
    """Of the operations of one job."""

    succeeded: int = 0
    failed: int = 0
    per_second: float = 0.0
    """That ended in the last seconds before this was written."""

    @property
    def done(self) -> int:
        return self.succeeded + self.failed

    def take(self, event: Event | Unknown) -> None:
        if not isinstance(event, Data):
            return
        if event.name == JOB_TALLY:
            snapshot = msgspec.convert(event.value, Tally)
            self.succeeded, self.failed, self.per_second = snapshot.succeeded, snapshot.failed, snapshot.per_second
        elif event.name == JOB_RESULT:
            self.count(failed=event.value["status"] >= 400)

    def count(self, *, failed: bool) -> None:
        if failed:
            self.failed += 1
        else:
            self.succeeded += 1


async def tally_of(runs: Runs, head: Head) -> Tally:
    """As of now. Raises `PositionGone` where the log was trimmed."""
    tail = _TAIL
    while True:
        after = max(0, head.offset - tail)
        tally, found = Tally(), after == 0
        async for blocks in runs.read(head, after):
            for event in chain.from_iterable(block.events for block in blocks):
                found = found or (isinstance(event, Data) and event.name == JOB_TALLY)
                tally.take(event)
        if found:
            return tally
        tail *= _WIDER


class Throughput:
    """Of the last seconds, by a clock that never goes back. `done` were done before they began."""

    def __init__(self, done: int = 0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque([(clock(), done)])

    def per_second(self, done: int) -> float:
        """Told how many are done by now. To be called now and then, not for each."""
        now = self._clock()
        while len(self._marks) > 1 and self._marks[0][0] < now - _WINDOW:
            self._marks.popleft()
        since, before = self._marks[0]
        self._marks.append((now, done))
        return round((done - before) / (now - since), 2) if now > since else 0.0
