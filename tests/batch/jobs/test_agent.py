"""A job as a run: each line comes to one result, whatever is in its way, and no operation is run twice."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.workshop import ANN, BOB, PATIENCE, Actor, begin, end, eventually, text

from headrace import runs as runs_module
from headrace.agents import tool_call
from headrace.agents.tool_call import ToolCallAgent
from headrace.batch.jobs import agent as agent_module
from headrace.batch.jobs import notice
from headrace.batch.jobs import tally as tally_module
from headrace.batch.jobs.agent import JobAgent
from headrace.batch.jobs.file import JobFiles, Operation
from headrace.batch.jobs.notice import NoticeAgent
from headrace.batch.jobs.service import JobOptions, Jobs
from headrace.batch.jobs.slots import Slots
from headrace.batch.jobs.tally import tally_of
from headrace.egress import Egress
from headrace.engines.memory import MemoryEngine
from headrace.engines.receipt import Receipt
from headrace.engines.sqlite import SqliteEngine
from headrace.errors import BudgetExceeded, HeadraceError, NotFound, RunActive, StorageFailed, StorageFull
from headrace.events import (
    JOB_RESULT,
    JOB_TALLY,
    OUTPUT,
    AttemptStarted,
    Data,
    Event,
    MessageEnd,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    ToolCallEnd,
    ToolCallResult,
    ToolCallStart,
    Unknown,
)
from headrace.execution import RunLimits
from headrace.identity import Owner, Principal
from headrace.ports import AgentFactory, Created, Head, Idempotency, Lease, Run, RunContext, StartCommand, child_id
from headrace.runs import Birth, Runs
from headrace.telemetry import Telemetry
from headrace.toolbox import Toolbox
from headrace.tools.function import tool
from headrace.usage.admission import Admission
from headrace.usage.budgets import Budgets
from headrace.usage.ledger import Ledger
from headrace.webhook import Delivery, Webhooks
from headrace.worker import Worker

Engine = MemoryEngine | SqliteEngine


class Mill:
    """The agent behind most operations: says "said TEXT" once it is let through, and goes on after a crash. What
    `input` has decides the rest: `hold` waits at the gate, `fail` raises, `deaf` does not react to a cancel."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun: Counter[str] = Counter()
        """Attempts, by run."""
        self.started_at: list[float] = []
        self.working = 0
        self.most = 0
        self.passes: asyncio.Semaphore | None = None
        """So many may go through the gate."""

    async def acts(self, context: RunContext) -> AsyncGenerator[Any, None]:
        given = context.run.input
        self.begun[context.run.id] += 1
        self.started_at.append(asyncio.get_running_loop().time())
        if any(isinstance(event, MessageEnd) for event in context.history):
            return
        self.working += 1
        self.most = max(self.most, self.working)
        try:
            if not any(isinstance(event, type(begin())) for event in context.history):
                yield begin()
            if given.get("hold"):
                await (self.passes.acquire() if self.passes is not None else self.gate.wait())
            if given.get("deaf"):
                await asyncio.shield(asyncio.ensure_future(self.gate.wait()))
            if given.get("fail"):
                raise RuntimeError("canary")
            whole = f"said {given['message']}"
            yield [text(whole), end(whole)]
        finally:
            self.working -= 1


class Shop:
    """An engine and jobs over it, with workers that come and go."""

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        *,
        slots: int = 100,
        concurrency: int = 32,
        admission: Admission | None = None,
    ) -> None:
        self.engine = engine
        self.mill = Mill()
        self.agents: dict[str, AgentFactory] = {"mill": lambda run: Actor(self.mill.acts, resumable=True)}
        self.own: dict[str, AgentFactory] = {
            agent_module.NAME: self._job,
            notice.NAME: self._notice,
            tool_call.NAME: lambda run: ToolCallAgent(self.tools),
        }
        self.runs = Runs(
            engine, self.agents, admission, own_agents=self.own, coordinators=(agent_module.NAME, notice.NAME)
        )
        self.files = JobFiles(folder)
        self.total = slots
        self.slots = Slots(slots)
        self.tools = Toolbox()
        self.egress = Egress()
        self.jobs = Jobs(self.runs, self.files, self.egress, concurrency=concurrency, secret_of=lambda owner: "")
        self.revoked: set[Owner] = set()
        self.workers: list[Worker] = []

    def _job(self, run: Run) -> JobAgent:
        may_go_on: Callable[[Principal], bool] = lambda principal: principal.owner not in self.revoked  # noqa: E731
        return JobAgent(self.runs, self.files, self.slots, may_go_on=may_go_on)

    def _notice(self, run: Run) -> NoticeAgent:
        webhooks = Webhooks(self.egress, attempts=1)
        return NoticeAgent(self.runs, webhooks, self.jobs.describe, secret=bytes(32))

    def worker(self, **options: Any) -> Worker:
        options = {"coordinators": (agent_module.NAME, notice.NAME), **options}
        worker = Worker(self.engine, self.engine, {**self.agents, **self.own}, telemetry=Telemetry(), **options)
        worker.start()
        self.workers.append(worker)
        return worker

    async def stop_workers(self) -> None:
        workers, self.workers = self.workers, []
        for worker in workers:
            await worker.stop()

    async def start(self, operations: Sequence[Operation], principal: Principal = ANN, **options: Any) -> Head:
        run_id, file = self.jobs.new_file()
        for each in operations:
            file.write(each)
        return (await self.jobs.create(principal, run_id, file, JobOptions(**options))).head

    async def done(self, operations: Sequence[Operation], **options: Any) -> "Done":
        """All of a job that ended by itself."""
        if not self.workers:
            self.worker()
        return await self.end(await self.start(operations, **options))

    async def end(self, job: Head) -> "Done":
        async with asyncio.timeout(PATIENCE):
            last = await self.runs.result(job)
            return Done(last, await self.events(job), await self.runs.get(job.run.principal, job.run.id))

    async def events(self, job: Head) -> list[Event | Unknown]:
        return [event async for blocks in self.runs.read(job, 0) for block in blocks for event in block.events]

    async def results(self, job: Head) -> list[dict[str, Any]]:
        return results_of(await self.events(job))

    async def has_results(self, job: Head, count: int) -> None:
        """Until there are so many, or the job has ended."""
        seen = 0
        async with asyncio.timeout(PATIENCE):
            async for blocks in self.runs.follow(job, live=True):
                seen += len(results_of([event for block in blocks for event in block.events]))
                if seen >= count:
                    return

    async def children(self, job: Head) -> list[Head]:
        return list(await self.runs.list(job.run.principal, limit=100_000, parent=job.run.id))

    async def check(self, job: Head, count: int) -> None:
        """The promise of a job of so many mill runs, of which none was to fail."""
        done = await self.end(job)
        assert isinstance(done.last, RunCompleted), done.last
        assert sorted(result["line"] for result in done.results) == list(range(1, count + 1))
        for result in done.results:
            line = result["line"]
            assert (result["status"], result["body"]) == (200, f"said {line}")
            assert result["run_id"] == child_id(job.run.id, line)
        children = await self.children(job)
        assert sorted(child.run.id for child in children) == sorted(result["run_id"] for result in done.results)
        for child in children:
            events = await self.events(child)
            assert sum(isinstance(event, RunStarted) for event in events) == 1
            assert isinstance(events[-1], RunCompleted)
        assert done.tally == {"succeeded": count, "failed": 0, "total": count}
        await self.nothing_is_held()

    async def nothing_is_held(self) -> None:
        """Every slot can be had."""
        stranger = Owner("t", "stranger")
        async with asyncio.timeout(PATIENCE):
            for _ in range(self.total):
                await self.slots.acquire(stranger)
        for _ in range(self.total):
            self.slots.release(stranger)


class Done:
    def __init__(self, last: Event, events: list[Event | Unknown], head: Head) -> None:
        self.last = last
        self.events = events
        self.head = head
        self.results = results_of(events)

    @property
    def tally(self) -> dict[str, Any]:
        """What the run came to, as it says itself."""
        (output,) = [event.value for event in self.events if isinstance(event, Data) and event.name == OUTPUT]
        return {name: output[name] for name in ("succeeded", "failed", "total")}

    def statuses(self) -> dict[int, int]:
        return {result["line"]: result["status"] for result in self.results}


def results_of(events: Sequence[Event | Unknown]) -> list[dict[str, Any]]:
    return [event.value for event in events if isinstance(event, Data) and event.name == JOB_RESULT]


def op(line: int, *, agent: str = "mill", kind: str = "chat", **input_: Any) -> Operation:
    given = {"message": str(line), **input_}
    return Operation(id=f"id-{line}", kind=kind, agent=agent, input=given)  # type: ignore[arg-type]


def ops(count: int, **input_: Any) -> list[Operation]:
    return [op(line, **input_) for line in range(1, count + 1)]


def folder_of(shop: Shop) -> list[str]:
    return sorted(path.name for path in shop.files._folder.iterdir())


def tool_op(line: int, name: str, **parameters: Any) -> Operation:
    return Operation(id=f"id-{line}", kind="tool", agent="tool", input={"tool": name, "parameters": parameters})


Open = Callable[..., Shop]


@pytest.fixture
async def open_shop(tmp_path: Path) -> AsyncIterator[Open]:
    shops: list[Shop] = []

    def make(engine: Engine | None = None, **options: Any) -> Shop:
        shops.append(Shop(engine or MemoryEngine(), tmp_path / "batches", **options))
        return shops[-1]

    yield make
    for shop in shops:
        shop.mill.gate.set()
        await shop.stop_workers()
        await shop.engine.close()


@pytest.fixture(params=["memory", "sqlite"])
async def shop(request: pytest.FixtureRequest, open_shop: Open, tmp_path: Path) -> Shop:
    engine: Engine = MemoryEngine() if request.param == "memory" else SqliteEngine(tmp_path / "log.db")
    await engine.start()
    return open_shop(engine)


# --- each line one result ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 33, 300])
async def test_every_line_comes_to_one_result(shop: Shop, count: int) -> None:
    shop.worker()
    await shop.check(await shop.start(ops(count)), count)
    assert shop.mill.begun.total() == count


async def test_one_at_a_time_they_come_in_the_order_of_the_file(shop: Shop) -> None:
    done = await shop.done(ops(20), concurrency=1)
    assert [result["line"] for result in done.results] == list(range(1, 21))
    assert shop.mill.most == 1


async def test_what_is_done_first_is_there_first(shop: Shop) -> None:
    shop.worker()
    job = await shop.start([op(1, hold=True), op(2), op(3, hold=True), op(4)], concurrency=3)
    await shop.has_results(job, 2)
    assert {result["line"] for result in await shop.results(job)} == {2, 4}
    shop.mill.gate.set()
    await shop.check(job, 4)


async def test_how_far_it_has_got_stands_in_the_log_all_along(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "_TALLY_SECONDS", 0.0)
    done = await shop.done([*ops(40), *(op(line, fail=True) for line in range(41, 51))])
    snapshots = 0
    for place, event in enumerate(done.events):
        if isinstance(event, Data) and event.name == JOB_TALLY:
            snapshots += 1
            before = [result["status"] for result in results_of(done.events[:place])]
            assert (event.value["succeeded"], event.value["failed"]) == (before.count(200), before.count(500))
    assert snapshots > 1
    assert done.tally == {"succeeded": 40, "failed": 10, "total": 50}
    tally = await tally_of(shop.runs, done.head)
    assert (tally.succeeded, tally.failed) == (40, 10)


async def test_a_job_that_comes_no_further_says_so_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the time that is left would stand still for as long as a model does."""
    monkeypatch.setattr(agent_module, "_TALLY_SECONDS", 0.0)
    monkeypatch.setattr(agent_module, "_SILENCE_SECONDS", 0.05)
    monkeypatch.setattr(tally_module, "_WINDOW", 0.05)
    shop.worker()
    job = await shop.start([*ops(20), op(21, hold=True)])
    rates: list[float] = []
    async with asyncio.timeout(PATIENCE):
        async for blocks in shop.runs.follow(job, live=True):
            events = [event for block in blocks for event in block.events]
            rates += [each.value["per_second"] for each in events if isinstance(each, Data) and each.name == JOB_TALLY]
            if rates and not rates[-1]:
                break
    assert len(await shop.results(job)) == 20
    assert (await shop.jobs.describe(job))["seconds_left"] is None
    written = len(await shop.events(job))
    await asyncio.sleep(0.3)  # in which nothing is to happen
    assert len(await shop.events(job)) == written
    shop.mill.gate.set()
    await shop.check(job, 21)


# --- what a line comes to ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", [{"sum": 4}, [1, "two"], 4, 4.5, "4", '{"x":1}', "", None, True, "not JSON"])
async def test_the_result_of_a_tool_is_what_it_gave(shop: Shop, output: Any) -> None:
    @tool
    async def gives() -> Any:
        """Gives."""
        return output

    shop.tools.add(gives)
    done = await shop.done([tool_op(1, "gives")])
    assert done.results[0]["kind"] == "tool"
    assert done.results[0]["body"] == output
    assert type(done.results[0]["body"]) is type(output)


@pytest.mark.parametrize("said", ["It is four.", "4", '{"x": 1}', "null", ""])
@pytest.mark.parametrize("gave", ["4", '{"x":1}'])
async def test_what_an_agent_says_is_text_whatever_its_tools_gave(shop: Shop, said: str, gave: str) -> None:
    async def asks_a_tool(context: RunContext) -> AsyncGenerator[Any, None]:
        yield [begin(), ToolCallStart(tool_call_id="c", name="t", message_id="m", executed_by="server")]
        yield ToolCallEnd(tool_call_id="c", name="t", message_id="m", args="{}")
        yield ToolCallResult(tool_call_id="c", output=gave, is_json=True)
        yield end(said)

    shop.agents["asks"] = lambda run: Actor(asks_a_tool)
    done = await shop.done([op(1, agent="asks"), op(2, agent="asks", kind="run"), op(3)])
    assert {result["line"]: result["body"] for result in done.results} == {1: said, 2: said, 3: "said 3"}


async def test_one_that_raises_fails_alone(shop: Shop) -> None:
    done = await shop.done([op(1), op(2, fail=True), op(3)])
    assert isinstance(done.last, RunCompleted)
    assert done.statuses() == {1: 200, 2: 500, 3: 200}
    failed = next(result for result in done.results if result["line"] == 2)
    assert (failed["id"], failed["code"]) == ("id-2", "agent.failed")
    assert failed["run_id"] == child_id(done.head.run.id, 2)
    assert "body" not in failed
    assert "canary" not in str(done.events)
    assert done.tally == {"succeeded": 2, "failed": 1, "total": 3}


async def test_an_agent_that_is_gone_by_now_fails_its_lines_alone(shop: Shop) -> None:
    job = await shop.start([op(1), op(2, agent="retired"), op(3)])
    shop.worker()
    done = await shop.end(job)
    assert done.statuses() == {1: 200, 2: 404, 3: 200}
    assert len(await shop.children(job)) == 2


class Refusing(MemoryEngine):
    """Refuses to create the children with these numbers."""

    def __init__(self, **errors: Exception) -> None:
        super().__init__()
        self.errors = errors
        self.created: Counter[str] = Counter()

    async def create(self, run: Run, first: Event, idempotency: Idempotency | None = None) -> Created:
        if (error := self.errors.get(f"n{run.id.rpartition('_')[2]}")) is not None:
            raise error
        created = await super().create(run, first, idempotency)
        self.created[run.id] += created.new
        return created


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BudgetExceeded(budget="principal"), 402, "budget.exceeded"),
        (NotFound(), 404, "not_found"),
        (RuntimeError("canary"), 500, "internal"),
        (OSError("canary"), 500, "internal"),
    ],
)
async def test_one_that_cannot_be_started_fails_alone(
    open_shop: Open, error: Exception, status: int, code: str
) -> None:
    shop = open_shop(Refusing(n2=error))
    done = await shop.done(ops(4))
    assert done.statuses() == {1: 200, 2: status, 3: 200, 4: 200}
    failed = next(result for result in done.results if result["line"] == 2)
    assert failed["code"] == code
    assert "canary" not in str(done.events)
    if isinstance(error, BudgetExceeded):
        assert failed["budget"] == "principal"
    await shop.nothing_is_held()


async def test_operations_wait_for_what_others_of_the_job_have_reserved(open_shop: Open) -> None:
    """A run reserves more than it uses: a job within its budget does not fail because several run at once."""
    ledger = Ledger(None, Budgets.parse('{"principal": {"tokens": 20}, "slice": {"tokens": 10}}'))
    await ledger.start()

    engine = MemoryEngine()

    async def is_open(run_id: str) -> bool:
        return not (await engine.head(run_id)).closed

    admission = Admission(ledger, is_open)
    shop = open_shop(engine, admission=admission)
    shop.worker(on_end=admission.end)
    shop.mill.passes = asyncio.Semaphore(0)
    job = await shop.start(ops(20, hold=True), concurrency=8)
    for done in range(20):
        await eventually(lambda done=done: shop.mill.working == min(2, 20 - done))  # type: ignore[misc]
        shop.mill.passes.release()
        await shop.has_results(job, done + 1)
    await shop.check(job, 20)
    assert shop.mill.most == 2
    await ledger.close()


async def test_where_nothing_is_left_of_a_budget_nothing_is_waited_for(open_shop: Open) -> None:
    ledger = Ledger(None, Budgets.parse('{"principal": {"tokens": 20}, "slice": {"tokens": 10}}'))
    await ledger.start()

    async def is_open(run_id: str) -> bool:
        return True  # runs of somebody else's making, which hold all of it

    admission = Admission(ledger, is_open)
    shop = open_shop(admission=admission)
    for _ in range(2):
        await shop.runs.start(ANN, op(1).command())
    shop.worker(on_end=lambda run_id: None)
    done = await shop.done(ops(20), concurrency=8)
    assert done.statuses() == dict.fromkeys(range(1, 21), 402)
    assert {(result["code"], result["budget"]) for result in done.results} == {("budget.exceeded", "principal")}
    await shop.nothing_is_held()
    await ledger.close()


async def test_a_caller_whose_right_ends_has_the_rest_refused(shop: Shop) -> None:
    shop.worker()
    shop.mill.passes = asyncio.Semaphore(2)
    job = await shop.start(ops(20, hold=True), concurrency=3)
    await shop.has_results(job, 2)
    await eventually(lambda: shop.mill.working == 3)
    shop.revoked.add(ANN.owner)
    for _ in range(18):
        shop.mill.passes.release()
    done = await shop.end(job)
    statuses = done.statuses()
    assert len(statuses) == 20
    assert [statuses[line] for line in range(1, 6)] == [200] * 5, "what had begun comes to its end"
    assert [statuses[line] for line in range(6, 21)] == [401] * 15
    assert {result["code"] for result in done.results if result["status"] == 401} == {"auth.revoked"}
    assert len(await shop.children(job)) == 5


async def test_nobody_elses_right_matters(shop: Shop) -> None:
    shop.revoked.add(BOB.owner)
    shop.worker()
    await shop.check(await shop.start(ops(5)), 5)


@pytest.mark.parametrize("given", [{}, {"items": "many"}, {"items": 1}])
async def test_an_input_that_is_none_fails_the_job(open_shop: Open, given: dict[str, Any]) -> None:
    shop = open_shop()
    shop.worker()
    head = (await shop.runs.start(ANN, StartCommand(agent=agent_module.NAME, input=given), own=True)).head
    last = await shop.runs.result(head)
    assert isinstance(last, RunFailed)
    assert last.error.code == "field.invalid"


@pytest.mark.parametrize("damage", ["gone", "cut", "garbage"])
async def test_where_the_file_cannot_be_read_the_job_fails_with_what_it_has(
    shop: Shop, tmp_path: Path, damage: str
) -> None:
    job = await shop.start(ops(600, hold=True), concurrency=4)
    path = tmp_path / "batches" / f"{job.run.id}.jsonl"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        half = content[: len(content) // 2]
        path.write_bytes(half[:-9] if damage == "cut" else half + b"\n{}\n")
    shop.mill.gate.set()
    shop.worker()
    done = await shop.end(job)
    assert isinstance(done.last, RunFailed)
    assert done.last.error.code == "agent.failed"
    children = await shop.children(job)
    assert len(done.results) == len(children), "what had begun has its result"
    assert all(child.closed for child in children)
    assert (len(children) == 0) is (damage == "gone")
    await shop.nothing_is_held()


# --- how many at a time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "limit", "slots", "expected"), [(3, 32, 100, 3), (50, 5, 100, 5), (9, 32, 4, 4)])
async def test_never_more_at_a_time_than_job_server_and_slots_allow(
    open_shop: Open, asked: int, limit: int, slots: int, expected: int
) -> None:
    shop = open_shop(slots=slots, concurrency=limit)
    shop.worker()
    shop.mill.passes = asyncio.Semaphore(0)
    job = await shop.start(ops(20, hold=True), concurrency=asked)
    for done in range(20):
        await eventually(lambda done=done: shop.mill.working == min(expected, 20 - done))  # type: ignore[misc]
        assert len(await shop.children(job)) == min(done + expected, 20)
        shop.mill.passes.release()
        await shop.has_results(job, done + 1)
    await shop.check(job, 20)
    assert shop.mill.most == expected


async def test_a_small_job_does_not_wait_for_a_large_one_of_somebody_else(open_shop: Open) -> None:
    shop = open_shop(slots=4)
    shop.worker()
    shop.mill.passes = asyncio.Semaphore(0)
    large = await shop.start(ops(50, hold=True))
    await eventually(lambda: shop.mill.working == 4)
    small = await shop.start(ops(2, hold=True), BOB)
    await eventually(lambda: BOB.owner in shop.slots._waiting)
    for _ in range(12):  # the next free slots go to Bob, and what is in them is done before long
        shop.mill.passes.release()
    done = await shop.end(small)
    assert done.statuses() == {1: 200, 2: 200}
    assert len(await shop.results(large)) <= 10
    for _ in range(50):
        shop.mill.passes.release()
    await shop.check(large, 50)


async def test_operations_start_at_the_rate_that_was_asked_for(shop: Shop) -> None:
    """A lower bound of the time: a slow machine only makes it longer."""
    shop.worker()
    began = asyncio.get_running_loop().time()
    job = await shop.start(ops(11), rate=50)
    await shop.check(job, 11)
    assert max(shop.mill.started_at) - began >= 10 / 50 - 0.005
    for line, at in enumerate(sorted(shop.mill.started_at)):
        assert at - began >= line / 50 - 0.005


class NotTaking(MemoryEngine):
    """Whose disk does not come round to the results of jobs: what is appended for them is committed at `go_on`."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[tuple[str, int, Sequence[Event], Receipt]] | None = []

    def append(self, run_id: str, attempt: int, events: Sequence[Event], *, urgent: bool = False) -> Receipt:
        if self._held is None or self._logs[run_id].head.run.agent != agent_module.NAME:
            return super().append(run_id, attempt, events, urgent=urgent)
        receipt = Receipt()
        self._held.append((run_id, attempt, tuple(events), receipt))
        return receipt

    def go_on(self) -> None:
        held, self._held = self._held, None
        for run_id, attempt, events, receipt in held or ():
            receipt.settle(super().append(run_id, attempt, events).offset)


async def test_while_no_result_can_be_written_no_more_than_some_are_started(open_shop: Open) -> None:
    engine = NotTaking()
    shop = open_shop(engine)
    shop.worker()
    job = await shop.start(ops(5000))

    def is_still(seen: list[int]) -> bool:
        seen.append(shop.mill.begun.total())
        return len(seen) > 50 and seen[-50] == seen[-1] and shop.mill.working == 0

    seen: list[int] = []
    await eventually(lambda: is_still(seen))
    assert shop.mill.begun.total() < 3500
    engine.go_on()
    await shop.check(job, 5000)


class Full(MemoryEngine):
    """A disk that is full at times: new runs are refused."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.refused = 0

    async def create(self, run: Run, first: Event, idempotency: Idempotency | None = None) -> Created:
        if self.full:
            self.refused += 1
            raise StorageFull(retry_after=0.01)
        return await super().create(run, first, idempotency)


async def test_a_full_disk_is_no_fault_of_an_operation(open_shop: Open) -> None:
    engine = Full()
    shop = open_shop(engine)
    shop.mill.passes = asyncio.Semaphore(0)
    shop.worker()
    job = await shop.start(ops(30, hold=True), concurrency=4)
    for _ in range(3):
        await eventually(lambda: shop.mill.working == 4)
        engine.full, refused = True, engine.refused
        for _ in range(4):
            shop.mill.passes.release()
        await eventually(lambda refused=refused: engine.refused >= refused + 12)  # type: ignore[misc]
        assert shop.mill.working == 0
        engine.full = False
    for _ in range(30):
        shop.mill.passes.release()
    await shop.check(job, 30)


# --- cancel -----------------------------------------------------------------------------------------------------------


async def test_a_cancel_keeps_what_is_done_ends_what_runs_and_starts_no_more(shop: Shop) -> None:
    shop.worker()
    shop.mill.passes = asyncio.Semaphore(2)
    job = await shop.start(ops(50, hold=True), concurrency=3)
    await shop.has_results(job, 2)
    await eventually(lambda: shop.mill.working == 3)
    assert await shop.jobs.cancel(ANN, job.run.id) == "requested"
    done = await shop.end(job)
    assert isinstance(done.last, RunCancelled)
    assert done.last.by == "ann"
    statuses = done.statuses()
    assert sorted(statuses) == [1, 2, 3, 4, 5]
    assert sorted(statuses.values()) == [200, 200, 499, 499, 499]
    assert {result["code"] for result in done.results if result["status"] == 499} == {"run.cancelled"}
    assert done.tally == {"succeeded": 2, "failed": 3, "total": 50}
    children = await shop.children(job)
    assert Counter(child.state for child in children) == {"completed": 2, "cancelled": 3}
    assert shop.mill.begun.total() == 5
    assert await shop.jobs.cancel(ANN, job.run.id) == "closed"
    await shop.nothing_is_held()


async def test_a_cancel_before_a_worker_has_it_starts_nothing(shop: Shop) -> None:
    job = await shop.start(ops(5))
    await shop.jobs.cancel(ANN, job.run.id)
    shop.worker()
    done = await shop.end(job)
    assert isinstance(done.last, RunCancelled)
    assert done.results == []
    assert await shop.children(job) == []


class Folding(MemoryEngine):
    """Reads of a job's log wait at a gate, as those of a long one do on a slow disk."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.reading = asyncio.Event()

    async def read(self, run_id: str, after: int = 0, *, live: bool) -> AsyncIterator[Any]:
        if not live and self._log(run_id).head.run.agent == agent_module.NAME:
            self.reading.set()
            await self.gate.wait()
        async for blocks in super().read(run_id, after, live=live):
            yield blocks


async def test_a_cancel_while_an_earlier_attempt_is_read_starts_no_more(open_shop: Open) -> None:
    engine = Folding()
    shop = open_shop(engine)
    shop.mill.passes = asyncio.Semaphore(2)
    shop.worker()
    job = await shop.start(ops(50, hold=True), concurrency=3)
    await shop.has_results(job, 2)
    await eventually(lambda: shop.mill.working == 3)
    await shop.stop_workers()
    engine.reading.clear()
    shop.worker()
    await engine.reading.wait()
    await eventually(lambda: shop.mill.working == 3)
    await shop.jobs.cancel(ANN, job.run.id)
    await eventually(lambda: shop.workers[0]._executions[job.run.id]._asked is not None)
    engine.gate.set()
    done = await shop.end(job)
    assert isinstance(done.last, RunCancelled)
    assert sorted(done.statuses().values()) == [200, 200, 499, 499, 499]
    assert Counter(child.state for child in await shop.children(job)) == {"completed": 2, "cancelled": 3}


@pytest.mark.parametrize("waits_for", ["slot", "pace", "disk", "concurrency"])
async def test_a_cancel_reaches_a_job_that_waits(open_shop: Open, waits_for: str) -> None:
    engine = Full()
    shop = open_shop(engine, slots=2)
    shop.worker()
    shop.mill.passes = asyncio.Semaphore(0)
    others = await shop.start(ops(2, hold=True), BOB) if waits_for == "slot" else None
    if others is not None:
        await eventually(lambda: shop.mill.working == 2)
    rate, concurrency = (0.001 if waits_for == "pace" else None), (1 if waits_for == "concurrency" else None)
    job = await shop.start(ops(9, hold=True), rate=rate, concurrency=concurrency)
    if waits_for == "disk":
        engine.full = True
        await eventually(lambda: engine.refused > 3)
    elif waits_for != "slot":
        await eventually(lambda: shop.mill.working == 1)
    begun = shop.mill.begun.total()
    await shop.jobs.cancel(ANN, job.run.id)
    async with asyncio.timeout(3):  # it reacts, and is not ended by force
        done = await shop.end(job)
    assert isinstance(done.last, RunCancelled)
    engine.full = False
    assert len(done.results) == {"slot": 0, "pace": 1, "disk": 2, "concurrency": 1}[waits_for]
    assert set(done.statuses().values()) <= {499}
    assert shop.mill.begun.total() == begun, "nothing was started to be cancelled"
    if others is not None:
        shop.mill.gate.set()
        shop.mill.passes.release()
        shop.mill.passes.release()
        await shop.end(others)
    await shop.nothing_is_held()


class Making(MemoryEngine):
    """Children are made only when the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.making = 0

    async def create(self, run: Run, first: Event, idempotency: Idempotency | None = None) -> Created:
        if run.parent_run_id is not None:
            self.making += 1
            await self.gate.wait()
        return await super().create(run, first, idempotency)


async def test_a_cancel_in_the_moment_of_a_start_ends_what_comes_to_be(open_shop: Open) -> None:
    engine = Making()
    shop = open_shop(engine)
    shop.worker()
    job = await shop.start(ops(9, hold=True), concurrency=3)
    await eventually(lambda: engine.making == 3)
    await shop.jobs.cancel(ANN, job.run.id)
    await eventually(lambda: shop.workers[0]._executions[job.run.id]._asked is not None)
    engine.gate.set()
    done = await shop.end(job)
    assert isinstance(done.last, RunCancelled)
    assert done.statuses() == {1: 499, 2: 499, 3: 499}
    assert {child.state for child in await shop.children(job)} <= {"cancelled"}
    assert engine.making == 3


async def test_operations_that_do_not_react_do_not_hold_the_cancel_up(open_shop: Open) -> None:
    shop = open_shop()
    shop.worker(limits=RunLimits(cancel_by_itself=0.05, cancel_grace=0.2))
    job = await shop.start(ops(3, deaf=True))
    await eventually(lambda: shop.mill.working == 3)
    await shop.jobs.cancel(ANN, job.run.id)
    done = await shop.end(job)
    assert done.statuses() == {1: 499, 2: 499, 3: 499}
    await shop.nothing_is_held()


async def test_one_operation_that_somebody_cancels_is_one_that_failed(shop: Shop) -> None:
    shop.worker()
    job = await shop.start([op(1), op(2, hold=True), op(3)])
    await shop.has_results(job, 2)
    await shop.runs.cancel(ANN, child_id(job.run.id, 2))
    done = await shop.end(job)
    assert isinstance(done.last, RunCompleted)
    assert done.statuses() == {1: 200, 2: 499, 3: 200}


async def stopped_in_the_middle(shop: Shop, *, results: int, working: int, refused: int = 0, count: int = 50) -> Head:
    """A job that no worker has, with so many results, so many children that have begun, and so many lines that the
    disk was full for."""
    shop.worker()
    shop.mill.passes = asyncio.Semaphore(results)
    job = await shop.start(ops(count, hold=True), concurrency=working + refused)
    await shop.has_results(job, results)
    await eventually(lambda: shop.mill.working == working)
    await shop.stop_workers()
    return job


async def claimed_by_hand(shop: Shop, run_id: str) -> Lease:
    """While no worker is there. What else waits is left for the next one."""
    others = []
    while (lease := await asyncio.wait_for(shop.engine.claim("by hand"), PATIENCE)).run_id != run_id:
        others.append(lease)
    for other in others:
        await shop.engine.release(other)
    return lease


async def test_a_cancel_ends_also_what_an_earlier_attempt_had_begun(shop: Shop) -> None:
    """It waits for a slot, and has not come to its own children again: they run, and are not to go on."""
    job = await stopped_in_the_middle(shop, results=2, working=3)
    for _ in range(shop.total):
        await shop.slots.acquire(BOB.owner)
    shop.worker()
    await eventually(lambda: ANN.owner in shop.slots._waiting and shop.mill.working == 3)
    await shop.jobs.cancel(ANN, job.run.id)
    done = await shop.end(job)
    assert isinstance(done.last, RunCancelled)
    assert sorted(done.statuses().values()) == [200, 200, 499, 499, 499]
    assert Counter(child.state for child in await shop.children(job)) == {"completed": 2, "cancelled": 3}
    for _ in range(shop.total):
        shop.slots.release(BOB.owner)
    await shop.nothing_is_held()


async def test_what_was_done_before_a_crash_and_a_cancel_stays_done(open_shop: Open) -> None:
    """Its result was not written yet. It is found, and is no result of a cancel: a retry would run it twice."""
    engine = NotTaking()
    shop = open_shop(engine)
    shop.worker()
    shop.mill.passes = asyncio.Semaphore(2)
    job = await shop.start(ops(50, hold=True), concurrency=3)
    await eventually(lambda: shop.mill.begun.total() == 5 and shop.mill.working == 3)
    await eventually(lambda: sum(log.head.state == "completed" for log in engine._logs.values()) == 2)
    strangers = [asyncio.create_task(shop.slots.acquire(BOB.owner)) for _ in range(shop.total)]
    engine._held = None  # what was not committed is lost
    await crash(shop, job, "release")
    await asyncio.gather(*strangers)
    await eventually(lambda: ANN.owner in shop.slots._waiting and shop.mill.working == 3)
    await shop.jobs.cancel(ANN, job.run.id)
    done = await shop.end(job)
    assert sorted(done.statuses().values()) == [200, 200, 499, 499, 499]


async def test_a_cancel_while_no_worker_has_the_job_ends_what_had_begun(shop: Shop) -> None:
    """As in a restart: the job waits for its next worker, and so do its children."""
    job = await stopped_in_the_middle(shop, results=2, working=3)
    await shop.jobs.cancel(ANN, job.run.id)
    assert not (await shop.runs.get(ANN, job.run.id)).closed
    shop.worker()
    done = await shop.end(job)
    assert isinstance(done.last, RunCancelled)
    assert sorted(done.statuses().values()) == [200, 200, 499, 499, 499]
    assert Counter(child.state for child in await shop.children(job)) == {"completed": 2, "cancelled": 3}
    await shop.nothing_is_held()


async def test_a_cancel_that_comes_before_the_first_step_of_an_attempt(shop: Shop) -> None:
    job = await stopped_in_the_middle(shop, results=2, working=3)
    lease = await claimed_by_hand(shop, job.run.id)
    agent = JobAgent(shop.runs, shop.files, shop.slots, may_go_on=lambda principal: True)
    await agent.cancel()
    shop.worker()
    written: list[Any] = []
    async for some in agent.run(RunContext(run=job.run, attempt=lease.attempt)):
        written += some if isinstance(some, Sequence) else [some]
    assert [result["status"] for result in results_of(written)] == [499] * 3
    assert len(await shop.children(job)) == 5


async def test_a_caller_whose_right_ends_in_a_crash_has_what_had_begun(shop: Shop) -> None:
    job = await stopped_in_the_middle(shop, results=2, working=3, count=20)
    shop.revoked.add(ANN.owner)
    shop.mill.gate.set()
    shop.mill.passes = None
    shop.worker()
    statuses = (await shop.end(job)).statuses()
    assert [statuses[line] for line in range(1, 21)] == [200] * 5 + [401] * 15


class Asked(MemoryEngine):
    """Counts how often it is asked for a single run."""

    heads = 0

    async def head(self, run_id: str) -> Head:
        self.heads += 1
        return await super().head(run_id)


async def test_after_a_crash_only_lines_that_may_have_begun_are_looked_for(open_shop: Open) -> None:
    engine = Asked()
    shop = open_shop(engine)
    job = await stopped_in_the_middle(shop, results=10, working=4, count=3000)
    begun, engine.heads = shop.mill.begun.total(), 0
    shop.mill.passes = None
    shop.mill.gate.set()
    shop.worker()
    await shop.end(job)
    asked_by_each_execution = 3000 - 10 + 1
    assert engine.heads - asked_by_each_execution <= begun + 10
    await shop.check(job, 3000)


# --- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("results", [0, 1, 2, 5, 11, 17, 28, 29])
@pytest.mark.parametrize("how", ["stop", "release"])
async def test_after_a_crash_it_goes_on_with_what_is_left(shop: Shop, how: str, results: int) -> None:
    shop.worker()
    shop.mill.passes = asyncio.Semaphore(results)
    job = await shop.start(ops(30, hold=True), concurrency=4)
    await shop.has_results(job, results)
    await eventually(lambda: shop.mill.working == min(4, 30 - results))
    await crash(shop, job, how)
    for _ in range(30):
        shop.mill.passes.release()
    await shop.check(job, 30)
    events = await shop.events(job)
    assert sum(isinstance(event, RunStarted) for event in events) == 1


async def crash(shop: Shop, job: Head, how: str) -> None:
    """`stop` ends the worker with all that it has; `release` takes the job away from one that does not know it yet."""
    if how == "stop":
        await shop.stop_workers()
        shop.worker()
    else:
        execution = shop.workers[-1]._executions.get(job.run.id)
        if execution is not None:
            await shop.engine.release(execution.lease)


@pytest.mark.parametrize("seed", range(12))
async def test_crashes_at_any_points_leave_each_line_one_result(shop: Shop, seed: int) -> None:
    random = Random(seed)
    shop.worker()
    count = 150
    job = await shop.start(ops(count), concurrency=random.choice([1, 3, 16]))
    while not (await shop.runs.get(ANN, job.run.id)).closed:
        known = len(await shop.results(job))
        await shop.has_results(job, known + random.randint(0, 25))
        for _ in range(random.randint(0, 30)):
            await asyncio.sleep(0)  # where exactly it strikes is chance
        await crash(shop, job, random.choice(["stop", "release"]))
    await shop.check(job, count)


async def test_a_result_that_was_not_written_before_the_crash_is_found_again(open_shop: Open) -> None:
    """All operations are done, and the job knows of none: nothing is run a second time."""
    engine = NotTaking()
    shop = open_shop(engine)
    shop.worker()
    job = await shop.start(ops(10))
    await eventually(lambda: shop.mill.begun.total() == 10 and shop.mill.working == 0)
    await eventually(lambda: all(log.head.closed for log in engine._logs.values() if log.head.run.parent_run_id))
    assert await shop.results(job) == []
    engine._held = None  # what was not committed is lost
    await crash(shop, job, "release")
    await shop.check(job, 10)
    assert shop.mill.begun.total() == 10


@pytest.mark.parametrize("crashes", [0, 1, 3])
async def test_the_result_of_a_tool_is_found_however_often_its_worker_died(shop: Shop, crashes: int) -> None:
    """Between the result and the end, so that the starts of later attempts stand between them."""

    @tool
    async def gives() -> Any:
        """Gives."""
        raise AssertionError("it has run before")

    shop.tools.add(gives)
    head = (await shop.runs.start(ANN, tool_op(1, "gives").command(), own=True)).head
    lease = await shop.engine.claim("dead")
    called: list[Event] = [
        ToolCallStart(tool_call_id="call_1", name="gives", message_id="", executed_by="server"),
        ToolCallEnd(tool_call_id="call_1", name="gives", message_id="", args="{}"),
        ToolCallResult(tool_call_id="call_1", output="[1]", preliminary=True),
        ToolCallResult(tool_call_id="call_1", output='{"sum":4}', is_json=True),
    ]
    await shop.engine.append(head.run.id, lease.attempt, called)
    for _ in range(crashes):
        await shop.engine.release(lease)
        lease = await shop.engine.claim("dead as well")
        await shop.engine.append(head.run.id, lease.attempt, [AttemptStarted(attempt=lease.attempt, mode="continue")])
    await shop.engine.release(lease)
    known = [head, await shop.runs.get(ANN, head.run.id)]
    shop.worker()
    await shop.runs.result(head)
    for each in (*known, await shop.runs.get(ANN, head.run.id)):
        outcome = await shop.runs.outcome(each)
        assert isinstance(outcome.end, RunCompleted)
        assert outcome.result is not None
        assert outcome.result.output == '{"sum":4}'


async def test_a_line_that_was_begun_late_hides_no_other(open_shop: Open) -> None:
    """The disk was full for it alone, so its run is the newest, and its number the lowest."""
    engine = Refusing(n1=StorageFull(retry_after=0.01))
    shop = open_shop(engine)
    shop.worker()
    job = await shop.start(ops(50, hold=True), concurrency=4)
    await eventually(lambda: shop.mill.working == 3)
    engine.errors.clear()
    await eventually(lambda: shop.mill.working == 4)
    await shop.stop_workers()
    for _ in range(shop.total):
        await shop.slots.acquire(BOB.owner)
    shop.worker()
    await eventually(lambda: ANN.owner in shop.slots._waiting and shop.mill.working == 4)
    await shop.jobs.cancel(ANN, job.run.id)
    assert (await shop.end(job)).statuses() == {1: 499, 2: 499, 3: 499, 4: 499}


class LookingFor(Refusing):
    """Finds the run `slow`, or that there is none, only once the gate is open."""

    slow: str | None = None

    def __init__(self, **errors: Exception) -> None:
        super().__init__(**errors)
        self.gate = asyncio.Event()
        self.looking = asyncio.Event()

    async def head(self, run_id: str) -> Head:
        if run_id == self.slow:
            self.looking.set()
            await self.gate.wait()
        return await super().head(run_id)


async def test_a_line_that_is_looked_for_in_the_moment_of_a_cancel_is_not_started(open_shop: Open) -> None:
    engine = LookingFor(n1=StorageFull(retry_after=0.01))
    shop = open_shop(engine)
    job = await stopped_in_the_middle(shop, results=0, working=3, refused=1)
    engine.errors.clear()
    engine.slow = child_id(job.run.id, 1)
    shop.worker()
    await engine.looking.wait()
    await shop.jobs.cancel(ANN, job.run.id)
    await eventually(lambda: shop.workers[0]._executions[job.run.id]._asked is not None)
    engine.gate.set()
    done = await shop.end(job)
    assert isinstance(done.last, RunCancelled)
    assert set(done.statuses().values()) == {499}
    assert engine.slow not in engine.created


async def test_what_a_run_came_to_that_was_trimmed_before_it_was_read_is_told_as_gone(open_shop: Open) -> None:
    engine = NotTaking()
    shop = open_shop(engine)
    shop.worker()
    job = await shop.start(ops(3))
    await eventually(lambda: sum(log.head.state == "completed" for log in engine._logs.values()) == 3)
    engine._held = None  # what was not committed is lost
    await engine.trim(older_than=-1)
    await crash(shop, job, "release")
    done = await shop.end(job)
    assert shop.mill.begun.total() == 3, "not run again"
    for result in done.results:
        assert (result["status"], result["code"]) == (410, "cursor.gone")
        assert result["run_id"] == child_id(job.run.id, result["line"])


async def test_a_worker_that_has_lost_the_job_writes_nothing_more(shop: Shop) -> None:
    """Two workers at once: the old one is fenced off, and the new one gets every result once."""
    old, new = shop.worker(), shop.worker()
    shop.mill.passes = asyncio.Semaphore(3)
    job = await shop.start(ops(40, hold=True), concurrency=5)
    await shop.has_results(job, 3)
    await eventually(lambda: shop.mill.working == 5)
    holder = old if job.run.id in old._executions else new
    lost = holder._executions[job.run.id]
    await shop.engine.release(lost.lease)
    await eventually(lambda: any(job.run.id in each._executions for each in (old, new)))
    for _ in range(40):
        shop.mill.passes.release()
    await shop.check(job, 40)


async def test_the_throughput_after_a_crash_is_not_that_of_all_results(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.worker()
    shop.mill.passes = asyncio.Semaphore(200)
    job = await shop.start(ops(202, hold=True))
    await shop.has_results(job, 200)
    await shop.stop_workers()
    monkeypatch.setattr(agent_module, "_TALLY_SECONDS", 0.0)
    shop.worker()
    shop.mill.passes.release()
    shop.mill.passes.release()
    done = await shop.end(job)
    began = next(place for place, event in enumerate(done.events) if type(event).__name__ == "AttemptStarted")
    seconds = done.events[-1].time - done.events[began].time
    rates = [
        event.value["per_second"]
        for event in done.events[began:]
        if isinstance(event, Data) and event.name == JOB_TALLY
    ]
    assert max(rates) * seconds < 100, "two results came in this attempt"


async def test_a_notice_that_was_not_made_before_a_crash_is_made(open_shop: Open) -> None:
    """The job is committed before its notice is: whoever dies in between must not take the webhook with them."""
    engine = Refusing(n0=RuntimeError("crash"))
    shop = open_shop(engine)
    with pytest.raises(RuntimeError, match="crash"):
        await shop.start(ops(2), webhook="http://example.com/hook")
    (job,) = await shop.jobs.list(ANN, limit=10)
    engine.errors.clear()
    shop.worker()
    await shop.end(job)
    assert (await shop.runs.get(ANN, child_id(job.run.id, notice.NUMBER))).run.agent == notice.NAME


async def test_a_job_is_not_refused_once_it_is_there(open_shop: Open) -> None:
    """The disk is full right after it: who asked is told of the job that there is, and its webhook is not forgotten."""
    engine = Refusing(n0=StorageFull(retry_after=0.01))
    shop = open_shop(engine)
    job = await shop.start(ops(2), webhook="http://example.com/hook")
    engine.errors.clear()
    shop.worker()
    await shop.end(job)
    assert (await shop.runs.get(ANN, child_id(job.run.id, notice.NUMBER))).run.agent == notice.NAME


async def test_who_is_cancelled_while_a_job_is_made_does_not_take_its_file_away(open_shop: Open) -> None:
    """The server stops in the moment of the commit: the job is there, so its file has to be."""

    class Slow(MemoryEngine):
        committed = asyncio.Event()

        async def create(self, run: Run, first: Event, idempotency: Idempotency | None = None) -> Created:
            created = await super().create(run, first, idempotency)
            self.committed.set()
            await asyncio.sleep(60)
            return created

    engine = Slow()
    shop = open_shop(engine)
    starting = asyncio.create_task(shop.start(ops(3)))
    await engine.committed.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    (job,) = await shop.jobs.list(ANN, limit=10)
    engine.create = lambda *given: MemoryEngine.create(engine, *given)  # type: ignore[method-assign]
    shop.worker()
    await shop.check(job, 3)


async def test_a_log_that_fails_does_not_take_the_file_of_a_job_that_may_be_there(open_shop: Open) -> None:
    """After a failed fsync nobody knows what is on the disk. The next start does."""

    class Failing(MemoryEngine):
        async def create(self, run: Run, first: Event, idempotency: Idempotency | None = None) -> Created:
            await super().create(run, first, idempotency)
            raise StorageFailed

    shop = open_shop(Failing())
    with pytest.raises(StorageFailed):
        await shop.start(ops(3))
    (job,) = await shop.jobs.list(ANN, limit=10)
    assert folder_of(shop) == [f"{job.run.id}.jsonl"]


# --- retry and delete -------------------------------------------------------------------------------------------------


async def test_what_did_not_succeed_is_tried_again_and_nothing_else(shop: Shop) -> None:
    first = await shop.done([op(1), op(2, fail=True), op(3), op(4, fail=True)])
    again = (await shop.jobs.retry(ANN, first.head.run.id)).head
    done = await shop.end(again)
    assert [(result["line"], result["id"]) for result in sorted(done.results, key=lambda each: each["line"])] == [
        (1, "id-2"),
        (2, "id-4"),
    ]
    assert again.run.input["retry_of"] == first.head.run.id


async def test_a_cancelled_job_is_tried_again_with_what_was_never_started(shop: Shop) -> None:
    shop.worker()
    shop.mill.passes = asyncio.Semaphore(2)
    job = await shop.start(ops(9, hold=True), concurrency=2, rate=1000, name="nightly")
    await shop.has_results(job, 2)
    await shop.jobs.cancel(ANN, job.run.id)
    await shop.end(job)
    for _ in range(9):
        shop.mill.passes.release()
    again = (await shop.jobs.retry(ANN, job.run.id)).head
    done = await shop.end(again)
    assert sorted(result["id"] for result in done.results) == [f"id-{line}" for line in range(3, 10)]
    assert (again.run.input["name"], again.run.input["concurrency"], again.run.input["rate"]) == ("nightly", 2, 1000)


async def test_a_job_that_runs_is_neither_tried_again_nor_deleted(shop: Shop) -> None:
    shop.worker()
    job = await shop.start(ops(2, hold=True))
    for act in (shop.jobs.retry, shop.jobs.delete):
        with pytest.raises(RunActive):
            await act(ANN, job.run.id)
    shop.mill.gate.set()
    await shop.check(job, 2)


async def test_deleting_takes_results_runs_and_file(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "_CHILDREN_AT_A_TIME", 100)
    done = await shop.done(ops(450))
    other = await shop.done(ops(3))
    children = await shop.children(done.head)
    await shop.jobs.delete(ANN, done.head.run.id)
    for run_id in (done.head.run.id, *(child.run.id for child in children)):
        with pytest.raises(NotFound):
            await shop.runs.get(ANN, run_id)
    assert folder_of(shop) == [f"{other.head.run.id}.jsonl"]
    await shop.check(other.head, 3)


async def test_a_delete_that_is_refused_deletes_nothing(shop: Shop) -> None:
    """A child may outlive the job: then all of it stays."""
    shop.worker()
    done = await shop.done(ops(250))
    held = (
        await shop.runs.start(
            ANN,
            op(9, hold=True).command(),
            birth=Birth(done.head.run, 1000),
        )
    ).head
    with pytest.raises(RunActive):
        await shop.jobs.delete(ANN, done.head.run.id)
    assert len(await shop.children(done.head)) == 251
    assert len([each async for some in shop.files.read(done.head.run.id) for each in some]) == 250
    shop.mill.gate.set()
    await shop.runs.result(held)
    await shop.jobs.delete(ANN, done.head.run.id)
    with pytest.raises(NotFound):
        await shop.jobs.get(ANN, done.head.run.id)


async def test_deleting_does_not_wait_for_a_webhook_that_does_not_answer(shop: Shop) -> None:
    """It would for an hour."""

    class Silent(Webhooks):
        async def deliver(self, *given: Any, **options: Any) -> Any:
            await asyncio.Event().wait()

    shop.own[notice.NAME] = lambda run: NoticeAgent(
        shop.runs, Silent(shop.egress), shop.jobs.describe, secret=bytes(32)
    )
    done = await shop.done(ops(3), webhook="http://example.com/hook")
    async with asyncio.timeout(3):
        await shop.jobs.delete(ANN, done.head.run.id)
    assert folder_of(shop) == []
    with pytest.raises(NotFound):
        await shop.runs.get(ANN, child_id(done.head.run.id, notice.NUMBER))


async def test_a_webhook_hears_of_a_job_whose_log_is_gone_by_now(shop: Shop) -> None:
    """The server was down for longer than logs are kept."""
    told: list[Any] = []

    class Hearing(Webhooks):
        async def deliver(self, url: str, delivery_id: str, document: Any, *, secret: bytes) -> Delivery:
            told.append((url, delivery_id, document))
            return Delivery(True, 1, 200)

    shop.own[notice.NAME] = lambda run: NoticeAgent(
        shop.runs, Hearing(shop.egress), shop.jobs.describe, secret=bytes(32)
    )
    shop.worker()
    shop.mill.passes = asyncio.Semaphore(0)
    job = await shop.start(ops(1, hold=True), webhook="http://example.com/hook")
    await eventually(lambda: shop.mill.working == 1)
    notice_id = child_id(job.run.id, notice.NUMBER)
    await shop.stop_workers()
    waiting = await claimed_by_hand(shop, notice_id)
    shop.worker()
    shop.mill.passes.release()
    await shop.end(job)
    await shop.engine.trim(older_than=-1)
    await shop.engine.release(waiting)
    await shop.runs.result(await shop.runs.get(ANN, notice_id))
    ((url, delivery_id, document),) = told
    assert (url, delivery_id, document["type"]) == ("http://example.com/hook", notice_id, "batch_job.completed")
    assert document["data"]["counts"] == {"total": 1, "succeeded": None, "failed": None, "remaining": None}


async def test_of_a_job_whose_log_was_trimmed_nothing_is_made_up(shop: Shop) -> None:
    done = await shop.done(ops(3))
    assert await shop.engine.trim(older_than=-1)
    head = await shop.jobs.get(ANN, done.head.run.id)
    described = await shop.jobs.describe(head)
    assert described["counts"] == {"total": 3, "succeeded": None, "failed": None, "remaining": None}
    assert (described["state"], described["per_second"], described["seconds_left"]) == ("completed", 0.0, None)
    with pytest.raises(HeadraceError) as gone:
        await shop.jobs.retry(ANN, head.run.id)
    assert gone.value.status == 410
    assert folder_of(shop) == [f"{head.run.id}.jsonl"], "no half-made file is left"
