"""Random histories of an engine against a model of plain dicts: what readers collected over cuts is the model's log."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import ClassVar, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.engines.story import ANN, Clock, Engine, Story, completed, delta, lines, new_engine, started

from headrace.errors import Fenced, LogClosed, NotFound, PositionGone, RunActive
from headrace.events import Event, encode
from headrace.ports import Lease, RunState

T = TypeVar("T")

picks = st.integers(0, 10**6)


class ModelRun:
    def __init__(self, first: bytes) -> None:
        self.log = [first]
        self.state: RunState = "queued"
        self.attempt = 0
        self.cancel_by: str | None = None
        self.trimmed = False

    @property
    def closed(self) -> bool:
        return self.state in ("completed", "cancelled")


class ModelReader:
    def __init__(self, run_id: str, after: int) -> None:
        self.run_id = run_id
        self.after = after
        self.collected: list[bytes] = []


class EngineMachine(RuleBasedStateMachine):
    kind: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.runs: dict[str, ModelRun] = {}
        self.queue: list[str] = []
        self.leases: dict[str, Lease] = {}
        self.readers: list[ModelReader] = []
        self.deleted: list[str] = []
        self.events = 0
        self.clock = Clock()
        self.engine = self.open()
        self.story = Story(self.engine, self.clock)

    def teardown(self) -> None:
        self.do(self.engine.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)

    def do(self, coroutine: Coroutine[object, object, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 30))

    def open(self) -> Engine:
        engine = new_engine(self.kind, self.folder, self.clock)
        self.do(engine.start())
        return engine

    def pick(self, number: int) -> tuple[str, ModelRun]:
        run_id = list(self.runs)[number % len(self.runs)]
        return run_id, self.runs[run_id]

    def new_events(self, count: int) -> list[Event]:
        self.events += count
        return [delta(self.events - number) for number in range(count)]

    @rule()
    def create(self) -> None:
        run, first = self.story.run(), started()
        assert self.do(self.create_one(run, first))
        self.runs[run.id] = ModelRun(encode(first))
        self.queue.append(run.id)

    async def create_one(self, run: object, first: Event) -> bool:
        return (await self.engine.create(run, first)).new  # type: ignore[arg-type]

    @precondition(lambda self: self.queue)
    @rule()
    def claim(self) -> None:
        lease = self.do(self.engine.claim("w"))
        model = self.runs[lease.run_id]
        assert lease.run_id == self.queue.pop(0)
        model.attempt += 1
        model.state = "running"
        assert lease.attempt == model.attempt
        self.leases[lease.run_id] = lease

    @precondition(lambda self: self.runs)
    @rule(number=picks, wrong=st.sampled_from([0, 0, 0, -1, 1]), sizes=st.lists(st.integers(1, 4), max_size=4))
    def append(self, number: int, wrong: int, sizes: list[int]) -> None:
        run_id, model = self.pick(number)
        batches = [self.new_events(size) for size in sizes]
        for events, result in zip(
            batches, self.do(self.append_all(run_id, model.attempt + wrong, batches)), strict=True
        ):
            self.expect_append(model, wrong, events, result)

    async def append_all(self, run_id: str, attempt: int, batches: list[list[Event]]) -> list[int | BaseException]:
        futures = [self.engine.append(run_id, attempt, events) for events in batches]
        return await asyncio.gather(*futures, return_exceptions=True)

    def expect_append(self, model: ModelRun, wrong: int, events: list[Event], result: int | BaseException) -> None:
        if model.closed:
            assert isinstance(result, LogClosed)
        elif wrong:
            assert isinstance(result, Fenced)
        else:
            model.log += [encode(event) for event in events]
            assert isinstance(result, int)
            # several appends of one turn may be committed, and told, together
            assert result >= len(model.log)

    @precondition(lambda self: self.leases)
    @rule(number=picks)
    def end(self, number: int) -> None:
        run_id = list(self.leases)[number % len(self.leases)]
        lease, model, last = self.leases.pop(run_id), self.runs[run_id], completed()
        [result] = self.do(self.append_all(run_id, lease.attempt, [[last]]))
        model.log.append(encode(last))
        model.state = "completed"
        assert result == len(model.log)

    @precondition(lambda self: self.leases)
    @rule(number=picks)
    def release(self, number: int) -> None:
        run_id = list(self.leases)[number % len(self.leases)]
        self.do(self.engine.release(self.leases.pop(run_id)))
        self.runs[run_id].state = "queued"
        self.queue.append(run_id)

    @precondition(lambda self: self.leases)
    @rule()
    def expire(self) -> None:
        self.clock.expire_leases()
        self.do(self.until_queued(list(self.leases)))
        for run_id in self.leases:
            self.runs[run_id].state = "queued"
            self.queue.append(run_id)
        self.leases.clear()

    async def until_queued(self, run_ids: list[str]) -> None:
        for run_id in run_ids:
            while (await self.engine.head(run_id)).state != "queued":  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.005)

    @precondition(lambda self: self.runs)
    @rule(number=picks)
    def cancel(self, number: int) -> None:
        run_id, model = self.pick(number)
        answer = self.do(self.engine.request_cancel(run_id, "ann"))
        if model.closed:
            assert answer == "closed"
        elif model.cancel_by is not None:
            assert answer == "already"
        else:
            assert answer == "requested"
            model.cancel_by = "ann"
            if model.state == "queued":
                self.queue.remove(run_id)
                model.state = "cancelled"
                model.log += self.do(self.story.texts(run_id, len(model.log)))
                assert b"run.cancelled" in model.log[-1]

    @precondition(lambda self: self.runs)
    @rule(number=picks)
    def delete(self, number: int) -> None:
        run_id, model = self.pick(number)
        try:
            self.do(self.engine.delete(run_id))
        except RunActive:
            assert not model.closed
        else:
            assert model.closed
            del self.runs[run_id]
            self.deleted.append(run_id)

    @rule()
    def trim(self) -> None:
        open_to_trim = [model for model in self.runs.values() if model.closed and not model.trimmed]
        assert self.do(self.engine.trim(older_than=-1)) == len(open_to_trim)
        for model in open_to_trim:
            model.trimmed = True

    @precondition(lambda self: self.runs)
    @rule(number=picks, after=picks)
    def read_from(self, number: int, after: int) -> None:
        run_id, model = self.pick(number)
        self.readers.append(ModelReader(run_id, after % (len(model.log) + 1)))

    @precondition(lambda self: self.readers)
    @rule(number=picks, cut=st.integers(1, 5))
    def read_on(self, number: int, cut: int) -> None:
        """Read, and cut the connection after `cut` events: anywhere, also inside a block."""
        reader = self.readers[number % len(self.readers)]
        at = reader.after + len(reader.collected)
        model = self.runs.get(reader.run_id)
        try:
            got = self.do(self.story.texts(reader.run_id, at))[:cut]
        except NotFound:
            assert model is None
        except PositionGone:
            assert model is not None
            assert model.trimmed
        else:
            assert model is not None
            reader.collected += got
            assert reader.collected == model.log[reader.after : reader.after + len(reader.collected)]
            assert got or at == len(model.log)

    @precondition(lambda self: self.kind == "sqlite")
    @rule()
    def restart(self) -> None:
        self.do(self.engine.close())
        self.engine = self.story.engine = self.open()
        for model in self.runs.values():
            if model.state == "running":
                model.state = "queued"
        self.queue = [run_id for run_id, model in self.runs.items() if not model.closed]
        self.leases.clear()

    @invariant()
    def heads_are_the_models(self) -> None:
        heads = {head.run.id: head for head in self.do(self.engine.list(ANN, limit=10**6))}
        assert list(heads) == list(self.runs)[::-1]
        for run_id, model in self.runs.items():
            head = heads[run_id]
            assert (head.state, head.offset, head.attempt) == (model.state, len(model.log), model.attempt)
            assert head.cancel_by == model.cancel_by
            assert head.first == (len(model.log) + 1 if model.trimmed else 1)

    @invariant()
    def logs_are_the_models(self) -> None:
        for run_id, model in self.runs.items():
            if not model.trimmed:
                assert self.do(self.whole(run_id)) == model.log

    async def whole(self, run_id: str) -> list[bytes]:
        return lines([blocks async for blocks in self.engine.read(run_id, live=False)])


class MemoryMachine(EngineMachine):
    kind = "memory"


class SqliteMachine(EngineMachine):
    kind = "sqlite"


HISTORIES = settings(max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


MemoryMachine.TestCase.settings = SqliteMachine.TestCase.settings = HISTORIES

TestMemory = MemoryMachine.TestCase
TestSqlite = SqliteMachine.TestCase
