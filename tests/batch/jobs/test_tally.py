"""How far a job has got, told from the end of its log, is what a reader of all of it would count."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.workshop import ANN, Workshop

from headrace.batch.jobs import tally as tally_module
from headrace.batch.jobs.tally import Tally, Throughput, tally_of
from headrace.engines.memory import MemoryEngine
from headrace.errors import PositionGone
from headrace.events import JOB_RESULT, JOB_TALLY, OUTPUT, AnyEvent, AttemptStarted, Data, RunCompleted
from headrace.ports import Head, Lease, RunContext

Part = str | int
"""Of a log: `snapshot`, `attempt`, or so many results, of which every third has failed."""


class Writer:
    """Writes the log of a job, and counts along."""

    def __init__(self, workshop: Workshop, lease: Lease) -> None:
        self.whole = Tally()
        """What the log says, counted result by result."""
        self._workshop = workshop
        self._lease = lease
        self._line = 0

    async def write(self, part: Part) -> None:
        if isinstance(part, int):
            results = [self._result() for _ in range(part)]
            for start in range(0, part, 700):
                await self._append(results[start : start + 700])
        elif part == "snapshot":
            self.whole.per_second = self._line / 8
            value = {name: getattr(self.whole, name) for name in ("succeeded", "failed", "per_second")}
            await self._append([Data(name=JOB_TALLY, value=value)])
        elif part == "end":
            await self._append([RunCompleted(output="")])
        else:
            await self._append([AttemptStarted(attempt=2, mode="continue"), Data(name=OUTPUT, value={"failed": 99})])

    def _result(self) -> Data:
        self._line += 1
        failed = self._line % 3 == 0
        self.whole.count(failed=failed)
        status = (400, 499, 503)[self._line % 9 // 3] if failed else 200
        return Data(name=JOB_RESULT, value={"line": self._line, "id": str(self._line), "status": status})

    async def _append(self, events: Sequence[AnyEvent]) -> None:
        await self._workshop.engine.append(self._lease.run_id, self._lease.attempt, events)


async def never_run(context: RunContext) -> AsyncGenerator[Any, None]:
    raise AssertionError("no worker is there")
    yield


async def written(workshop: Workshop, parts: Sequence[Part]) -> tuple[Head, Writer]:
    workshop.add("agent", never_run)
    run, lease = await workshop.claimed()
    writer = Writer(workshop, lease)
    for part in parts:
        await writer.write(part)
    return await workshop.runs.get(ANN, run.id), writer


async def told(workshop: Workshop, parts: Sequence[Part]) -> None:
    head, writer = await written(workshop, parts)
    assert await tally_of(workshop.runs, head) == writer.whole


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [1],
        ["snapshot"],
        [5, "snapshot"],
        [5, "snapshot", 3],
        [5, "snapshot", 3, "snapshot", "snapshot", 1],
        [7, "attempt", "snapshot", 2, "attempt", 1],
        [300, "snapshot", 2500],
        [5000],
        [2000, "snapshot", "end"],
        [3, "end"],
        ["end"],
    ],
    ids=str,
)
async def test_all_engines_tell_the_same(workshop: Workshop, parts: list[Part]) -> None:
    await told(workshop, parts)


@pytest.mark.parametrize("around", range(-2, 3))
@pytest.mark.parametrize("windows", [1, 2, 3])
async def test_a_snapshot_at_the_edge_of_what_is_looked_through(
    monkeypatch: pytest.MonkeyPatch, windows: int, around: int
) -> None:
    """Right before, at, and right behind the first event of the first, second and third window."""
    monkeypatch.setattr(tally_module, "_TAIL", 10)
    workshop = Workshop(MemoryEngine())
    size = 10 * tally_module._WIDER ** (windows - 1)
    await told(workshop, [50, "snapshot", size + around])
    await told(workshop, [size + around - 2, "snapshot", 1, "end"])


parts = st.lists(st.one_of(st.just("snapshot"), st.just("attempt"), st.integers(1, 400)), max_size=12)


@settings(max_examples=60)
@given(parts=parts, tail=st.integers(1, 50), ended=st.booleans())
def test_snapshot_and_rest_are_the_whole_for_any_log(parts: list[Part], tail: int, ended: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tally_module, "_TAIL", tail)
        asyncio.run(told(Workshop(MemoryEngine()), [*parts, *(["end"] if ended else [])]))


class Counted(MemoryEngine):
    """Counts the events that are read."""

    events_read = 0

    async def read(self, run_id: str, after: int = 0, *, live: bool) -> Any:
        async for blocks in super().read(run_id, after, live=live):
            self.events_read += sum(len(block.events) for block in blocks)
            yield blocks


async def test_a_long_log_is_not_read_from_its_beginning() -> None:
    engine = Counted()
    await told(Workshop(engine), [20_000, "snapshot", 300])
    assert engine.events_read < 5_000


async def test_an_ended_job_costs_a_few_events() -> None:
    """A page of a hundred jobs reads the end of each log, whose results may be large."""
    engine = Counted()
    await told(Workshop(engine), [3000, "snapshot", "end"])
    assert engine.events_read < 100


async def test_of_a_log_that_was_trimmed_nothing_is_made_up(workshop: Workshop) -> None:
    head, _ = await written(workshop, [4, "snapshot", "end"])
    assert await workshop.engine.trim(older_than=-1) == 1
    trimmed = await workshop.runs.get(ANN, head.run.id)
    for known in (head, trimmed):  # looked at before it was trimmed, and since
        with pytest.raises(PositionGone):
            await tally_of(workshop.runs, known)


# --- throughput -------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 500.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("already", "told_at", "expected"),
    [
        (0, [(1, 100)], [100.0]),
        (0, [(0, 5)], [0.0]),  # no time has passed
        (0, [(1, 10), (2, 20), (3, 60)], [10.0, 10.0, 20.0]),
        (0, [(5, 500), (10, 1000), (20, 1000), (31, 1000)], [100.0, 100.0, 0.0, 0.0]),  # the last ten seconds only
        (0, [(30, 3), (60, 4)], [0.1, 0.03]),  # slower than that: since it was told the last time
        (30_000, [(1, 30_100)], [100.0]),  # those of an earlier attempt were not done in this second
    ],
)
def test_the_throughput_is_of_the_last_seconds(
    already: int, told_at: list[tuple[float, int]], expected: list[float]
) -> None:
    clock = Clock()
    throughput = Throughput(already, clock=clock)
    found = []
    for after, done in told_at:
        clock.now = 500.0 + after
        found.append(throughput.per_second(done))
    assert found == expected


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 1000)), max_size=100))
def test_the_throughput_is_never_negative_and_remembers_little(steps: list[tuple[float, int]]) -> None:
    clock, done = Clock(), 0
    throughput = Throughput(clock=clock)
    for seconds, more in steps:
        clock.now += seconds
        done += more
        assert throughput.per_second(done) >= 0
        assert all(clock.now - at <= 10 for at, _ in list(throughput._marks)[1:])
