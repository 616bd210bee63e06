"""Which run waits for a worker, which worker waits for a run, and who holds a lease, within one process.

Used by the engines that serve one process (`memory`, `sqlite`). Leases run on the monotonic clock.
"""

import asyncio
import time
from bisect import insort
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from headrace.ports import Lease, Signal


@dataclass(order=True)
class Claimer:
    """Ordered by `number`: the one that has waited longest is the smallest."""

    number: int
    worker: str = field(compare=False)
    future: "asyncio.Future[Lease]" = field(compare=False)


class Dispatch:
    def __init__(self, lease_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.lease_seconds = lease_seconds
        self._clock = clock
        self._queue: dict[str, None] = {}
        self._claimers: list[Claimer] = []
        self._numbers = count()
        self._leases: dict[str, tuple[Lease, float]] = {}
        self._signals: dict[str, asyncio.Queue[Signal]] = {}

    # the queue

    def enqueue(self, run_id: str) -> None:
        self._queue[run_id] = None

    def remove(self, run_id: str) -> None:
        """Forget a run that has ended."""
        self._queue.pop(run_id, None)
        self._leases.pop(run_id, None)

    def wait_for_run(self, worker: str) -> Claimer:
        claimer = Claimer(next(self._numbers), worker, asyncio.get_running_loop().create_future())
        self._claimers.append(claimer)
        return claimer

    def give_back(self, claimer: Claimer) -> None:
        """Put a claimer that got nothing in line again, where it was."""
        insort(self._claimers, claimer)

    def forget(self, claimer: Claimer) -> None:
        """Of a claimer that went away."""
        if claimer in self._claimers:
            self._claimers.remove(claimer)

    def next_claimer(self) -> Claimer | None:
        """Take the claimer that has waited longest, if one is there."""
        while self._claimers:
            claimer = self._claimers.pop(0)
            if not claimer.future.done():
                return claimer
        return None

    def pairs(self) -> Iterator[tuple[str, Claimer]]:
        """Take the oldest runs and the oldest claimers, two by two, while there are both."""
        while self._queue and (claimer := self.next_claimer()) is not None:
            run_id = next(iter(self._queue))
            del self._queue[run_id]
            yield run_id, claimer

    # leases

    def grant(self, lease: Lease) -> None:
        self._leases[lease.run_id] = (lease, self._clock() + self.lease_seconds)

    def holds(self, lease: Lease) -> bool:
        held = self._leases.get(lease.run_id)
        return held is not None and held[0] == lease

    def renew(self, leases: Sequence[Lease]) -> list[Lease]:
        """Extend those still held; gives the lost ones."""
        lost = [lease for lease in leases if not self.holds(lease)]
        for lease in leases:
            if self.holds(lease):
                self.grant(lease)
        return lost

    def take_expired(self) -> list[Lease]:
        """End and give the leases whose worker fell silent."""
        now = self._clock()
        expired = [lease for lease, until in self._leases.values() if until <= now]
        for lease in expired:
            del self._leases[lease.run_id]
        return expired

    def drop(self, lease: Lease) -> bool:
        """End a lease; False where it is lost already."""
        if not self.holds(lease):
            return False
        del self._leases[lease.run_id]
        return True

    # signals

    def tell(self, signal: Signal) -> None:
        """The worker that has the run, if one has it."""
        held = self._leases.get(signal.run_id)
        if held is not None:
            self._channel(held[0].worker).put_nowait(signal)

    async def signals(self, worker: str) -> AsyncIterator[Signal]:
        channel = self._channel(worker)
        try:
            while True:
                yield await channel.get()
        finally:
            self._signals.pop(worker, None)

    def _channel(self, worker: str) -> "asyncio.Queue[Signal]":
        return self._signals.setdefault(worker, asyncio.Queue())
