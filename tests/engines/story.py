"""Short words for what the tests of the engines do, on a lease clock that a test moves."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from headrace.engines.memory import MemoryEngine
from headrace.engines.sqlite import SqliteEngine
from headrace.events import Event, RunCompleted, RunStarted, TextDelta
from headrace.identity import Owner
from headrace.ports import Block, FeedEntry, Lease, Run
from headrace.position import new_epoch

Engine: TypeAlias = MemoryEngine | SqliteEngine

ANN = Owner("t", "ann")
BOB = Owner("t", "bob")
LEASE_SECONDS = 0.05


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def expire_leases(self) -> None:
        self.now += LEASE_SECONDS + 1


class Story:
    """Short words for what tests do with an engine."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self.clock = clock
        self._ids = itertools.count(1)

    def run(self, owner: Owner = ANN) -> Run:
        number = next(self._ids)
        return Run(id=f"run-{number}", epoch=new_epoch(), owner=owner, agent="chat", input={"message": "hi"}, created=1)

    async def queued(self, owner: Owner = ANN) -> Run:
        run = self.run(owner)
        await self.engine.create(run, started())
        return run

    async def claimed(self, owner: Owner = ANN, worker: str = "w") -> Lease:
        """A new run and the lease of its first attempt. No other run may be in the queue."""
        run = await self.queued(owner)
        lease = await self.engine.claim(worker)
        assert lease.run_id == run.id
        return lease

    async def ended(self, owner: Owner = ANN, deltas: int = 3) -> str:
        lease = await self.claimed(owner)
        for number in range(deltas):
            await self.engine.append(lease.run_id, lease.attempt, [delta(number)])
        await self.engine.append(lease.run_id, lease.attempt, [completed()])
        return lease.run_id

    async def texts(self, run_id: str, after: int = 0) -> list[bytes]:
        """What a reader of the whole stored log gets, checked to have neither hole nor repeat."""
        return lines([blocks async for blocks in self.engine.read(run_id, after, live=False)], after)


def started() -> Event:
    return RunStarted(agent="chat", input_digest="0")


def delta(text: object) -> Event:
    return TextDelta(message_id="m", step_id="s", agent="chat", delta=str(text))


def completed() -> Event:
    return RunCompleted(output="done")


def lines(batches: Sequence[Sequence[Block]], after: int = 0) -> list[bytes]:
    """The events of batches as JSON; every offset is one more than the one before."""
    found: list[bytes] = []
    for block in itertools.chain.from_iterable(batches):
        assert block.first == after + len(found) + 1
        assert len(block.events) == len(block.encoded) > 0
        found += block.encoded
    return found


def entries(batches: Sequence[Sequence[FeedEntry]]) -> list[FeedEntry]:
    """The entries of a feed; sequences rise."""
    found = list(itertools.chain.from_iterable(batches))
    sequences = [entry.sequence for entry in found]
    assert sequences == sorted(set(sequences))
    return found


def new_engine(kind: str, folder: Path, clock: Clock) -> Engine:
    if kind == "memory":
        return MemoryEngine(lease_seconds=LEASE_SECONDS, clock=clock)
    return SqliteEngine(folder / "log.db", lease_seconds=LEASE_SECONDS, clock=clock)
