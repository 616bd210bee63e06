"""Claims, slots, leases, cancels and the end of a worker."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from tests.workshop import ANN, PATIENCE, Workshop, begin, end, eventually, text, within_patience

from headrace import worker as worker_module
from headrace.engines.memory import MemoryEngine
from headrace.errors import NotFound, StorageFailed
from headrace.events import RunCancelled, RunCompleted, TextDelta
from headrace.ports import Input, Lease, RunContext, RunQueue


class Gated:
    """An agent that says "before", waits at the gate, and says "after"; it goes on where it was stopped."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.working = 0
        self.most = 0

    async def acts(self, context: RunContext) -> AsyncGenerator[Any, None]:
        said = [event.delta for event in context.history if isinstance(event, TextDelta)]
        self.working += 1
        self.most = max(self.most, self.working)
        try:
            if not said:
                yield [begin(), text("before ")]
            await self.gate.wait()
            yield text("after")
            yield end("before after")
        finally:
            self.working -= 1


class FaultyQueue:
    """A queue whose calls raise what `faults` holds for them, one after another, and then work."""

    def __init__(self, queue: RunQueue, lease_seconds: float = 15.0) -> None:
        self.lease_seconds = lease_seconds
        self.faults: dict[str, list[BaseException]] = {"claim": [], "renew": []}
        self.hangs = False
        self.renewed: list[Sequence[Lease]] = []
        self._queue = queue

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    async def claim(self, worker: str) -> Lease:
        if self.faults["claim"]:
            raise self.faults["claim"].pop(0)
        return await self._queue.claim(worker)

    async def renew(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        self.renewed.append(leases)
        if self.hangs:
            await asyncio.Event().wait()
        if self.faults["renew"]:
            raise self.faults["renew"].pop(0)
        return await self._queue.renew(leases)


@pytest.fixture
def gated(workshop: Workshop) -> Gated:
    gated = Gated()
    workshop.add("agent", gated.acts, resumable=True)
    workshop.add("stubborn", gated.acts)
    return gated


async def test_what_is_queued_is_worked_on(workshop: Workshop, gated: Gated) -> None:
    gated.gate.set()
    early = await workshop.start()
    workshop.worker()
    late = await workshop.start()
    for head in (early, late):
        assert (await workshop.outcome(head.run.id)).output == "before after"


async def test_only_so_many_at_a_time(workshop: Workshop, gated: Gated) -> None:
    worker = workshop.worker(max_runs=2)
    heads = [await workshop.start() for _ in range(5)]
    await workshop.until(heads[1].run.id, "text.delta")
    states = [(await workshop.engine.head(head.run.id)).state for head in heads]
    assert states == ["running", "running", "queued", "queued", "queued"]
    assert worker.running == 2
    gated.gate.set()
    for head in heads:
        assert isinstance(await workshop.outcome(head.run.id), RunCompleted)
    assert gated.most == 2
    await eventually(lambda: worker.running == 0)


async def test_a_run_that_waits_for_people_lends_its_place(workshop: Workshop, gated: Gated) -> None:
    async def ask(context: RunContext) -> AsyncGenerator[Any, None]:
        assert context.inbox is not None
        yield begin()
        answer = await context.inbox.answer("r")
        yield [text(str(answer.value)), end(str(answer.value))]

    workshop.add("asking", ask)
    worker = workshop.worker(max_runs=1)
    asking = await workshop.start("asking")
    await workshop.until(asking.run.id, "message.start")
    other = await workshop.start()
    await workshop.until(other.run.id, "text.delta")
    late = await workshop.start()
    await workshop.engine.put_input(asking.run.id, Input("r", "yes", "ann"))
    assert (await workshop.outcome(asking.run.id)).output == "yes"
    assert (await workshop.engine.head(late.run.id)).state == "queued"
    gated.gate.set()
    for head in (other, late):
        assert isinstance(await workshop.outcome(head.run.id), RunCompleted)
    await eventually(lambda: worker.running == 0)


async def test_a_slot_is_free_again_however_its_run_ended(workshop: Workshop) -> None:
    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        how = context.run.input["how"]
        if how == "raises":
            raise RuntimeError("boom")
        if how == "cancels itself":
            raise asyncio.CancelledError
        if how == "raises what cannot be printed":
            raise ValueError("\ud800")
        if how == "no event":
            yield None
        yield end(how)

    workshop.add("agent", acts)
    workshop.worker(max_runs=1)
    hows = ["raises", "cancels itself", "raises what cannot be printed", "no event", "ends"]
    heads = [await workshop.start(how=how) for how in hows]
    outcomes = [await workshop.outcome(head.run.id) for head in heads]
    assert [type(outcome).__name__ for outcome in outcomes] == [*["RunFailed"] * 4, "RunCompleted"]


@pytest.mark.parametrize("fault", [StorageFailed(), RuntimeError("of the engine"), OSError("of the disk")], ids=repr)
async def test_a_claim_that_fails_is_tried_again(
    workshop: Workshop, gated: Gated, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that no longer claims would look alive and do nothing."""
    monkeypatch.setattr(worker_module, "_RETRY_SECONDS", 0)
    queue: Any = FaultyQueue(workshop.engine)
    queue.faults["claim"] = [fault, fault]
    gated.gate.set()
    workshop.worker(queue=queue, max_runs=1)
    head = await workshop.start()
    assert isinstance(await workshop.outcome(head.run.id), RunCompleted)


# leases


async def test_leases_are_kept_alive_together(workshop: Workshop, gated: Gated) -> None:
    queue: Any = FaultyQueue(workshop.engine, lease_seconds=0.03)
    workshop.worker(queue=queue)
    heads = [await workshop.start() for _ in range(3)]
    await workshop.until(heads[-1].run.id, "text.delta")
    await eventually(lambda: len(queue.renewed) >= 6)
    assert {lease.run_id for lease in queue.renewed[-1]} == {head.run.id for head in heads}
    gated.gate.set()
    for head in heads:
        assert isinstance(await workshop.outcome(head.run.id), RunCompleted)


@pytest.mark.parametrize("fault", [StorageFailed(), RuntimeError("of the engine")], ids=repr)
async def test_one_renewal_that_fails_costs_nothing(workshop: Workshop, gated: Gated, fault: Exception) -> None:
    queue: Any = FaultyQueue(workshop.engine, lease_seconds=3.0)
    queue.lease_seconds = 0.3
    queue.faults["renew"] = [fault]
    workshop.worker(queue=queue)
    head = await workshop.start()
    await eventually(lambda: len(queue.renewed) >= 3)
    gated.gate.set()
    assert isinstance(await workshop.outcome(head.run.id), RunCompleted)


@pytest.mark.parametrize("hangs", [False, True])
async def test_what_cannot_be_confirmed_is_stopped(workshop: Workshop, gated: Gated, hangs: bool) -> None:
    queue: Any = FaultyQueue(workshop.engine, lease_seconds=0.06)
    queue.hangs = hangs
    queue.faults["renew"] = [StorageFailed()] * 1000
    worker = workshop.worker(queue=queue)
    head = await workshop.start()
    await workshop.until(head.run.id, "text.delta")
    await eventually(lambda: worker.running == 0)
    assert await workshop.kinds(head.run.id) == ["run.started", "message.start", "text.delta"]
    assert gated.working == 0


async def test_a_run_whose_lease_ran_out_goes_on_elsewhere() -> None:
    """The first worker notices by itself, writes nothing more, and takes part again afterwards."""
    now = 0.0
    engine = MemoryEngine(lease_seconds=0.05, clock=lambda: now)
    await engine.start()
    workshop, gated = Workshop(engine), Gated()
    workshop.add("agent", gated.acts, resumable=True)
    try:
        workshop.worker(max_runs=1)
        head = await workshop.start()
        await workshop.until(head.run.id, "text.delta")
        workshop.worker(max_runs=1)
        now += 1
        await workshop.until(head.run.id, "attempt.started")
        await eventually(lambda: gated.working == 1)
        gated.gate.set()
        assert (await workshop.outcome(head.run.id)).output == "before after"
        kinds = await workshop.kinds(head.run.id)
        assert kinds[3:] == ["attempt.started", "text.delta", "message.end", "run.completed"]
    finally:
        for worker in workshop.workers:
            await worker.stop()
        await engine.close()


# cancels


async def test_a_cancel_reaches_the_run(workshop: Workshop, gated: Gated) -> None:
    workshop.worker()
    head, other = await workshop.start(), await workshop.start()
    await workshop.until(other.run.id, "text.delta")
    assert await workshop.runs.cancel(ANN, head.run.id) == "requested"
    assert await workshop.runs.cancel(ANN, head.run.id) == "already"
    outcome = await workshop.outcome(head.run.id)
    assert (type(outcome), outcome.by) == (RunCancelled, "ann")
    gated.gate.set()
    assert isinstance(await workshop.outcome(other.run.id), RunCompleted)


async def test_cancels_go_on_after_one_of_a_run_that_is_gone(
    workshop: Workshop, gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have ended, and been deleted, between the request and its delivery."""
    workshop.worker()
    gone, head = await workshop.start(), await workshop.start()
    await workshop.until(head.run.id, "text.delta")
    look = workshop.engine.head

    async def not_there(run_id: str) -> Any:
        if run_id == gone.run.id:
            raise NotFound
        return await look(run_id)

    monkeypatch.setattr(workshop.engine, "head", not_there)
    await workshop.engine.request_cancel(gone.run.id, "ann")
    await workshop.engine.request_cancel(head.run.id, "ann")
    assert isinstance(await workshop.outcome(head.run.id), RunCancelled)


# the end


async def test_runs_that_end_within_the_grace_are_finished(workshop: Workshop, gated: Gated) -> None:
    worker = workshop.worker()
    head = await workshop.start()
    await workshop.until(head.run.id, "text.delta")
    stopping = asyncio.ensure_future(worker.finish(PATIENCE))
    await asyncio.sleep(0)
    gated.gate.set()
    await within_patience(stopping)
    await worker.stop()
    assert (await workshop.outcome(head.run.id)).output == "before after"


async def test_a_worker_that_ends_claims_no_more(workshop: Workshop, gated: Gated) -> None:
    worker = workshop.worker()
    await worker.stop()
    head = await workshop.start()
    other = await workshop.engine.claim("other")
    assert (other.run_id, other.attempt) == (head.run.id, 1)


async def test_a_resumable_run_goes_on_with_the_next_worker(workshop: Workshop, gated: Gated) -> None:
    worker = workshop.worker()
    heads = [await workshop.start() for _ in range(3)]
    await workshop.until(heads[-1].run.id, "text.delta")
    await within_patience(asyncio.ensure_future(worker.stop()))
    assert gated.working == 0
    for head in heads:
        assert (await workshop.engine.head(head.run.id)).state == "queued"
    gated.gate.set()
    workshop.worker()
    for head in heads:
        assert (await workshop.outcome(head.run.id)).output == "before after"
        assert (await workshop.engine.head(head.run.id)).attempt == 2


async def test_a_run_that_is_not_resumable_is_interrupted(workshop: Workshop, gated: Gated) -> None:
    worker = workshop.worker()
    head = await workshop.start("stubborn")
    await workshop.until(head.run.id, "text.delta")
    await worker.stop()
    workshop.worker()
    outcome = await workshop.outcome(head.run.id)
    assert (outcome.error.code, outcome.error.retryable) == ("interrupted", True)


async def test_a_worker_ends_although_an_agent_does_not(workshop: Workshop) -> None:
    gate = asyncio.Event()

    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        yield text("before")
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    workshop.add("agent", acts)
    worker = workshop.worker()
    head = await workshop.start()
    await workshop.until(head.run.id, "text.delta")
    await within_patience(asyncio.ensure_future(worker.stop()))
    gate.set()
    await eventually(lambda: worker.running == 0)
