"""Every run ends once: cancelled by an agent or without it, while it completes, and when workers fall silent."""

import asyncio
import itertools
import json
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.server.serving import NDJSON, Serving, read_until, settings
from tests.torture.checker import check
from tests.torture.clients import Client, read_logs, read_whole
from tests.torture.frames import parse
from tests.torture.journal import Journal
from tests.torture.process import PATIENCE, ServerProcess
from tests.torture.scale import number, seed
from tests.workshop import ANN, Actor, Workshop, begin, end, eventually, text, within_patience

from headrace.agents.chat import chat_agent
from headrace.engines.memory import MemoryEngine
from headrace.engines.sqlite import SqliteEngine
from headrace.events import TERMINAL, Event, RunCancelled, RunCompleted, TextDelta, Unknown
from headrace.ports import Lease, ModelEvent, ModelFinish, ModelRequest, ModelText, RunContext

RACES = number(200, 5000)
SERVE = Path(__file__).parents[1] / "torture" / "serve.py"
LEASE = 0.5


class Zombie:
    """Says "before", ignores whatever ends it, and goes on saying "undead" once the gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gone = asyncio.Event()

    async def acts(self, context: RunContext) -> AsyncGenerator[Any, None]:
        try:
            yield [begin(), text("before")]
            while not self.gate.is_set():
                try:
                    await self.gate.wait()
                except asyncio.CancelledError:
                    continue
            for _ in range(3):
                yield text("undead")
            yield end("undead")
        finally:
            self.gone.set()


def ends(events: list[Event | Unknown]) -> int:
    return sum(isinstance(event, TERMINAL) for event in events)


# cancels


async def test_an_agent_that_ignores_its_cancel_is_left_behind(tmp_path: Path) -> None:
    zombie = Zombie()
    agents = {"default": lambda run: Actor(zombie.acts)}
    async with Serving(settings(tmp_path, engine="sqlite"), agents=agents).open() as server:
        native = await server.begin("/api/runs", {"input": {}}, NDJSON)
        run = native.headers["X-Run-Id"]
        chat = await server.begin(f"/api/runs/{run}/events?view=agent_chat")
        seen = await read_until(native, b"before")
        assert (await server.post(f"/api/runs/{run}/cancel")).status == 202
        async with asyncio.timeout(PATIENCE):  # both streams end, although the agent does not
            seen += await native.read()
            last = (await chat.read()).split(b"data: ")[-1]
        assert not zombie.gone.is_set()
        assert json.loads(last) == {"type": "error", "message": "The run was cancelled.", "code": 499}
        zombie.gate.set()
        await asyncio.wait_for(zombie.gone.wait(), PATIENCE)
        assert await read_whole(server.port, run, "native", "ndjson") == seen
        cancelled = json.loads(parse(seen, "ndjson")[-1].payload)
        assert (cancelled["kind"], cancelled["reason"], cancelled["by"]) == ("run.cancelled", "requested", "local")
        assert b"undead" not in seen
        await eventually(lambda: server.headrace.worker.running == 0)


async def test_an_agent_that_ends_by_itself_says_what_it_had(tmp_path: Path) -> None:
    options = settings(tmp_path, engine="sqlite", model="demo:echo?count=100000&size=5&pace_ms=1")
    async with Serving(options, agents={}).open() as server:
        native = await server.begin("/api/runs", {"input": {"message": "go"}}, NDJSON)
        seen = await read_until(native, b"text.delta")
        assert (await server.post(f"/api/runs/{native.headers['X-Run-Id']}/cancel")).status == 202
        async with asyncio.timeout(PATIENCE):
            seen += await native.read()
    events = [json.loads(frame.payload) for frame in parse(seen, "ndjson")]
    message, usage, step, cancelled = events[-4:]
    said = "".join([event["delta"] for event in events if event["kind"] == "text.delta"])
    assert (message["kind"], message["finish_reason"], message["text"]) == ("message.end", "cancelled", said)
    assert usage["kind"] == "usage"
    assert (step["kind"], step["status"]) == ("step.finished", "cancelled")
    assert cancelled["kind"] == "run.cancelled"


class Waiting:
    """A model that says one word, waits for the time it was given, and says another one."""

    name = "waiting"
    continues = True

    def __init__(self) -> None:
        self.seconds = 0.0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[ModelEvent], None]:
        yield [ModelText("before")]
        await asyncio.sleep(self.seconds)
        yield [ModelText("after"), ModelFinish("stop")]

    async def start(self) -> None: ...

    async def close(self) -> None: ...


async def test_a_cancel_that_races_with_the_end_gives_one_of_the_two(workshop: Workshop) -> None:
    random, model = Random(seed()), Waiting()
    workshop.agents["agent"] = chat_agent(model)
    worker = workshop.worker()
    for _ in range(RACES):
        model.seconds = random.uniform(0, 0.01)
        head = await workshop.start(message="go")
        await workshop.until(head.run.id, "text.delta")
        await asyncio.sleep(random.uniform(0, 0.01))
        answer = await workshop.runs.cancel(ANN, head.run.id)
        outcome = type(await workshop.outcome(head.run.id))
        events = await workshop.events(head.run.id)
        assert ends(events) == 1
        assert isinstance(events[-1], TERMINAL)
        assert outcome is RunCompleted or (outcome is RunCancelled and answer == "requested")
    await eventually(lambda: worker.running == 0)


async def test_a_cancel_before_the_first_step_of_the_attempt_ends_the_run(workshop: Workshop) -> None:
    workshop.add("agent", Zombie().acts)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease)
    execution.cancel("ann")
    await within_patience(execution.done)
    assert await workshop.kinds(run.id) == ["run.started", "run.cancelled"]


async def test_a_stop_before_the_first_step_of_the_attempt_gives_the_run_back(workshop: Workshop) -> None:
    workshop.add("agent", Zombie().acts)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease)
    execution.stop()
    await within_patience(execution.done)
    assert (await workshop.engine.head(run.id)).state == "queued"


# leases


class Silent:
    """A queue that one worker uses, and whose renewals never come back."""

    def __init__(self, engine: MemoryEngine | SqliteEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def renew(self, leases: list[Lease]) -> list[Lease]:
        await asyncio.Event().wait()
        return []


def short_lease(name: str, folder: Path) -> MemoryEngine | SqliteEngine:
    if name == "memory":
        return MemoryEngine(lease_seconds=LEASE)
    return SqliteEngine(folder / "log.db", lease_seconds=LEASE)


@pytest.mark.parametrize("engine_name", ["memory", "sqlite"])
@pytest.mark.parametrize("resumable", [True, False])
async def test_a_worker_that_lost_its_lease_adds_nothing(tmp_path: Path, engine_name: str, resumable: bool) -> None:
    """Its agent is a zombie: nothing but the fence keeps it out of the log."""
    zombie, engine = Zombie(), short_lease(engine_name, tmp_path)
    attempts = itertools.count(1)

    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        if next(attempts) == 1:
            async for item in zombie.acts(context):
                yield item
        else:
            yield [text("after"), end("before after")]

    await engine.start()
    workshop = Workshop(engine)
    workshop.add("agent", acts, resumable=resumable)
    try:
        silent: Any = Silent(engine)
        workshop.worker(queue=silent, max_runs=1)
        head = await workshop.start()
        await workshop.until(head.run.id, "text.delta")
        workshop.worker()
        outcome = await workshop.outcome(head.run.id)
        before = await workshop.events(head.run.id)
        zombie.gate.set()
        await asyncio.wait_for(zombie.gone.wait(), PATIENCE)
        assert await workshop.events(head.run.id) == before
        assert ends(before) == 1
        assert "undead" not in [event.delta for event in before if isinstance(event, TextDelta)]
        if resumable:
            assert outcome.output == "before after"
        else:
            assert outcome.error.code == "interrupted"
    finally:
        for worker in workshop.workers:
            await worker.stop()
        await engine.close()


async def test_a_worker_that_takes_its_own_run_again_lets_the_first_attempt_go() -> None:
    """After a pause of the whole process it may claim what it had lost before it knew of the loss."""
    now = 0.0
    engine = MemoryEngine(lease_seconds=0.05, clock=lambda: now)
    await engine.start()
    workshop = Workshop(engine)
    working: list[int] = []

    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        working.append(context.attempt)
        try:
            yield text("on and on")
            await asyncio.Event().wait()
        finally:
            working.remove(context.attempt)

    class Rarely:
        """A queue whose renewals are far apart, so that they tell of no loss."""

        lease_seconds = 1000.0

        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

    workshop.add("agent", acts, resumable=True)
    try:
        rarely: Any = Rarely()
        worker = workshop.worker(queue=rarely)
        head = await workshop.start()
        await workshop.until(head.run.id, "text.delta")
        now += 1
        await workshop.until(head.run.id, "attempt.started")
        await eventually(lambda: working == [2])
        assert worker.running == 1
        assert await workshop.runs.cancel(ANN, head.run.id) == "requested"
        await workshop.outcome(head.run.id)
        await eventually(lambda: worker.running == 0)
        assert ends(await workshop.events(head.run.id)) == 1
        assert working == []
    finally:
        for worker in workshop.workers:
            await worker.stop()
        await engine.close()


async def test_a_server_that_stood_still_for_longer_than_a_lease_ends_its_runs_once(tmp_path: Path) -> None:
    program = [str(SERVE), "--lease", str(LEASE)]
    server = ServerProcess(tmp_path / "data", "demo:echo?count=150&size=5&pace_ms=10", program=program)
    with Journal(tmp_path / "journal") as journal:
        async with server:
            client = Client(server, journal, "ann")
            bodies: list[dict[str, object]] = [{"input": {"message": "go"}}] * 4
            bodies += [{"agent": "steps", "input": {"count": 150, "pace": 0.01}}] * 4
            runs = [await client.start(body, f"key-{index}") for index, body in enumerate(bodies)]
            followers = [client.follower(run, framing="ndjson") for run in runs]
            reading = asyncio.gather(*(follower.read() for follower in followers))
            for _ in range(3):
                await asyncio.gather(*(follower.has(follower.delivered + 5) for follower in followers))
                server.send_signal(signal.SIGSTOP)
                await asyncio.sleep(2 * LEASE)  # its clock goes on
                server.send_signal(signal.SIGCONT)
            await asyncio.wait_for(reading, PATIENCE)
            logs = await read_logs(server.port)
            assert check(journal.records(), logs) == []
