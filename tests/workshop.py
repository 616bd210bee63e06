"""An engine, agents that do what a test says, and the executions and workers that drive them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from headrace.engines.memory import MemoryEngine
from headrace.engines.sqlite import SqliteEngine
from headrace.events import Event, MessageEnd, MessageStart, TextDelta, Unknown, kind_of
from headrace.execution import Execution, RunLimits
from headrace.identity import Principal
from headrace.ports import AgentFactory, Head, Lease, Run, RunContext, RunLog, RunQueue, StartCommand
from headrace.runs import Runs
from headrace.telemetry import Telemetry
from headrace.worker import Worker

PATIENCE = 15.0
"""Seconds after which something is taken to hang."""
ANN = Principal(subject="ann")
BOB = Principal(subject="bob")

Acts = Callable[[RunContext], AsyncGenerator[Any, None]]


class Actor:
    """An agent that yields what a function yields, whatever that is."""

    def __init__(self, acts: Acts, *, resumable: bool = False, on_cancel: Callable[[], None] | None = None) -> None:
        self.resumable = resumable
        self.cancels = 0
        self._acts = acts
        self._on_cancel = on_cancel

    def run(self, context: RunContext) -> AsyncIterator[Any]:
        return self._acts(context)

    async def cancel(self) -> None:
        self.cancels += 1
        if self._on_cancel is not None:
            self._on_cancel()


def begin() -> MessageStart:
    return MessageStart(message_id="m", step_id="s", agent="a", role="assistant")


def text(delta: str) -> TextDelta:
    return TextDelta(message_id="m", step_id="s", agent="a", delta=delta)


def end(whole: str, finish_reason: str = "stop") -> MessageEnd:
    return MessageEnd(message_id="m", step_id="s", agent="a", text=whole, finish_reason=finish_reason)


class Workshop:
    def __init__(self, engine: MemoryEngine | SqliteEngine) -> None:
        self.engine = engine
        self.agents: dict[str, AgentFactory] = {}
        self.runs = Runs(engine, self.agents)
        self.telemetry = Telemetry()
        self.workers: list[Worker] = []

    def add(self, name: str, acts: Acts, **options: Any) -> None:
        self.agents[name] = lambda run: Actor(acts, **options)

    async def start(self, agent: str = "agent", **input_: Any) -> Head:
        return (await self.runs.start(ANN, StartCommand(agent=agent, input=input_))).head

    async def claimed(self, agent: str = "agent", **input_: Any) -> tuple[Run, Lease]:
        """A new run and its lease. No other run may be in the queue."""
        head = await self.start(agent, **input_)
        return head.run, await self.engine.claim("test")

    def execute(self, lease: Lease, *, log: RunLog | None = None, **limits: float) -> Execution:
        return Execution(
            log or self.engine,
            lease,
            self.agents,
            limits=RunLimits(**limits),
            telemetry=self.telemetry,
            release=lambda lease: asyncio.ensure_future(self.engine.release(lease)),
        )

    def worker(self, *, queue: RunQueue | None = None, **options: Any) -> Worker:
        """One that works until the end of the test."""
        worker = Worker(self.engine, queue or self.engine, self.agents, telemetry=self.telemetry, **options)
        worker.start()
        self.workers.append(worker)
        return worker

    async def events(self, run_id: str) -> list[Event | Unknown]:
        return [
            event async for blocks in self.engine.read(run_id, live=False) for block in blocks for event in block.events
        ]

    async def kinds(self, run_id: str) -> list[str]:
        return [kind_of(event) for event in await self.events(run_id)]

    async def outcome(self, run_id: str) -> Any:
        """The run's last event, once it is there."""
        async with asyncio.timeout(PATIENCE):
            return await self.runs.result(await self.engine.head(run_id))

    async def until(self, run_id: str, kind: str) -> None:
        async with asyncio.timeout(PATIENCE):
            async for blocks in self.engine.read(run_id, live=True):
                if any(kind_of(event) == kind for block in blocks for event in block.events):
                    return


async def within_patience(future: "asyncio.Future[Any]") -> Any:
    return await asyncio.wait_for(future, PATIENCE)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
