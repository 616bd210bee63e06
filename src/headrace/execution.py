"""One attempt at a run: drives the agent in one task, writes what it yields, and ends the log.

The task that iterates the agent is the only one that writes, with one exception: an agent that does not react to a
cancel for two seconds is left behind, and its run is closed without it.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

import msgspec
import structlog

from headrace.errors import AgentFailed, HeadraceError, Interrupted, NotFound, RunIdle, RunTimeout
from headrace.events import (
    KIND_OF,
    OUTPUT,
    TERMINAL,
    AnyEvent,
    AttemptStarted,
    Data,
    Event,
    InputReceived,
    InputRequested,
    MessageEnd,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    TextDelta,
    ToolCallEnd,
    ToolCallResult,
    Unknown,
)
from headrace.inbox import RunInbox
from headrace.ports import Agent, AgentFactory, AgentItem, Head, Lease, Receipt, RunContext, RunLog
from headrace.telemetry import Telemetry

logger = structlog.get_logger("headrace.execution")

_OF_AGENTS = frozenset(KIND_OF) - {RunStarted, *TERMINAL}
_TRACES = (ToolCallEnd, ToolCallResult, InputRequested, InputReceived)
"""Are in the log before the agent goes on: before a tool runs, and before the next one does."""
_UNCONFIRMED_EVENTS = 1000
"""How far an agent may run ahead of the disk; 256 characters of text count as an event more."""


@dataclass(frozen=True, kw_only=True)
class RunLimits:
    """How long a run may take, in seconds. `total` and `idle` stand still while its agent waits for people, which is
    in `Inbox.answer`."""

    total: float = 300.0
    idle: float = 120.0
    """Without any event of the agent."""
    cancel_by_itself: float = 0.5
    """From the request of a cancel to the cancel of the task."""
    cancel_grace: float = 2.0
    """From the request of a cancel to the end without the agent."""


UNLIMITED = RunLimits(total=math.inf, idle=math.inf, cancel_by_itself=5.0, cancel_grace=10.0)
"""Of runs that wait for their children, which have limits of their own."""


class Execution:
    """`start` makes the task; `cancel`, `stop` and `lose` act on it from outside. `done` tells that all is over."""

    def __init__(
        self,
        log: RunLog,
        lease: Lease,
        agents: Mapping[str, AgentFactory],
        *,
        limits: RunLimits,
        coordinates: bool = False,
        telemetry: Telemetry,
        release: Callable[[Lease], "asyncio.Future[None] | asyncio.Task[None]"],
        on_end: Callable[[str], object] | None = None,
        on_waiting: Callable[[bool], object] | None = None,
    ) -> None:
        """`on_end` is told the id of the run once it has its last event, `on_waiting` when its agent begins to wait for
        people and when it no longer does. `coordinates`: the run waits for children, so
        it has no time limits, and is not ended without its agent."""
        self.lease = lease
        self._log = log
        self._agents = agents
        self._limits = UNLIMITED if coordinates else limits
        self._coordinates = coordinates
        self._telemetry = telemetry
        self._release = release
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._agent: Agent | None = None
        self._ending: Event | HeadraceError | None = None
        """Why the task was cancelled: what to write, or that nothing may be written any more."""
        self._stopping = False
        self._begun = False
        """The task has made its first step."""
        self._timers: list[asyncio.TimerHandle] = []
        self._asked: asyncio.Task[None] | None = None
        self._receipt: Receipt | None = None
        self._unconfirmed = 0
        self._tool_is_next = False
        """The agent may run one as soon as it is asked for more."""
        self._last_message: MessageEnd | None = None
        self._output = ""
        """Of a run that says nothing: what it came to."""
        self._inbox = RunInbox(log, lease.run_id, on_waiting=on_waiting, on_waited=self._waited_for_people)
        self._deadline = math.inf
        self._watching: asyncio.TimerHandle | None = None
        self._last_activity = self._loop.time()
        self._spoke = False
        """The first text of this attempt was written."""
        self._waited = 0.0
        """Seconds from the start of the run to the start of this attempt."""
        self._began = 0.0
        self._task = self._loop.create_task(self._run(), name=f"run {lease.run_id}")
        self.done: asyncio.Future[None] = self._loop.create_future()
        self._task.add_done_callback(self._task_done)

    # from outside

    def cancel(self, by: str) -> None:
        """The two stages of a cancel: first the agent's own, then its task's; at last the log is closed without it."""
        self._bring_to_end(RunCancelled(reason="requested", by=by))

    def input_came(self) -> None:
        """Somebody may have answered a request of the run."""
        self._inbox.wake()

    def stop(self) -> None:
        """Give the run back to the queue, at an event boundary: this process is about to end."""
        if self._ending is None:
            self._stopping = True
            self._cancel_task()

    def lose(self, error: HeadraceError) -> None:
        """Stop at once and write nothing more: the lease may be another worker's."""
        self._ending = error
        self._cancel_task()
        self._later(self._limits.cancel_grace, self._finish)

    def _cancel_task(self) -> None:
        """A task that is cancelled before its first step would do nothing at all, so it is left to find out."""
        if self._begun:
            self._task.cancel()

    # the task

    async def _run(self) -> None:
        self._begun = True
        terminal: Event | None
        try:
            terminal = await self._attempt()
        except asyncio.CancelledError:
            terminal = await self._after_cancel()
        except HeadraceError as error:
            terminal = RunFailed(error=error.info())
        except Exception:
            logger.exception("agent failed", run_id=self.lease.run_id)
            terminal = RunFailed(error=AgentFailed().info())
        finally:
            self._stop_timers()
        if terminal is not None:
            await self._end(terminal)

    async def _attempt(self) -> Event:
        if self._stopping or self._ending is not None:
            raise asyncio.CancelledError
        head = await self._log.head(self.lease.run_id)
        if head.cancel_by is not None and not (self._coordinates and head.attempt > 1):
            return RunCancelled(reason="requested", by=head.cancel_by)
        factory = self._agents.get(head.run.agent)
        if factory is None:
            raise NotFound
        agent = factory(head.run)
        context = await self._context(head, agent)
        if head.attempt > 1:
            self._log.append(head.run.id, head.attempt, [AttemptStarted(attempt=head.attempt, mode="continue")])
        self._agent = agent
        self._deadline = self._loop.time() + self._limits.total
        self._telemetry.runs_started += 1
        self._waited = max(0.0, time.time() - head.run.created)
        self._began = self._last_activity = self._loop.time()
        self._watch_time()
        if head.cancel_by is not None:  # and children of an earlier attempt may be at work
            self._loop.call_soon(self.cancel, head.cancel_by)
        await self._drive(agent.run(context))
        if self._stopping or isinstance(self._ending, HeadraceError):
            raise asyncio.CancelledError  # the agent swallowed it, and would look finished
        if self._ending is not None:
            return self._ending_event()
        if (last := self._last_message) is not None:
            return RunCompleted(output=last.text, stop_reason=last.finish_reason)
        return RunCompleted(output=self._output)

    async def _context(self, head: Head, agent: Agent) -> RunContext:
        """Raises `Interrupted` where an earlier attempt had begun something that the agent cannot go on from."""
        history: Sequence[Event | Unknown] = ()
        if head.attempt > 1 and head.offset > 1:
            if not agent.resumable:
                raise Interrupted
            if agent.resumable != "by itself":
                history = await self._read_log()
        return RunContext(run=head.run, attempt=self.lease.attempt, history=history, inbox=self._inbox)

    async def _read_log(self) -> list[Event | Unknown]:
        history: list[Event | Unknown] = []
        async for blocks in self._log.read(self.lease.run_id, live=False):
            for block in blocks:
                history += block.events
        for event in history:
            self._note(event)
        return history

    async def _drive(self, items: AsyncIterator[AgentItem]) -> None:
        """The loop that everything an agent says passes through."""
        clock = self._loop.time
        async with aclosing(cast("AsyncGenerator[AgentItem, None]", items)):
            async for item in items:
                events = item if isinstance(item, list | tuple) else (item,)
                if not events:
                    continue
                now = clock()
                if type(events[0]) is TextDelta:
                    self._note_text(len(events), now)
                self._last_activity = now
                self._write(events)
                if self._unconfirmed > _UNCONFIRMED_EVENTS or self._tool_is_next:
                    await self._confirmed()

    def _note_text(self, pieces: int, now: float) -> None:
        if self._spoke:
            self._telemetry.text_written(pieces, now - self._last_activity)
        else:
            self._telemetry.first_text_written(pieces, self._waited + now - self._began)

    def _write(self, events: Sequence[AnyEvent]) -> None:
        urgent = False
        weight = len(events)
        for event in events:
            kind = type(event)
            if isinstance(event, TextDelta):
                weight += len(event.delta) >> 8
                if not self._spoke:
                    urgent = self._spoke = True
                continue
            if kind not in _OF_AGENTS:
                logger.error("agent yielded what it may not", run_id=self.lease.run_id, type=kind.__name__)
                raise AgentFailed
            if isinstance(event, _TRACES):
                urgent = self._tool_is_next = True
            self._note(event)
        self._unconfirmed += weight
        self._receipt = self._log.append(self.lease.run_id, self.lease.attempt, events, urgent=urgent)
        if self._receipt.error is not None:
            raise self._receipt.error

    def _note(self, event: Event | Unknown) -> None:
        """What is remembered of the events that are no text."""
        if isinstance(event, MessageEnd):
            self._last_message = event
        elif isinstance(event, ToolCallResult):
            if not event.preliminary:
                self._output = event.output
        elif isinstance(event, Data) and event.name == OUTPUT:
            self._output = msgspec.json.encode(event.value).decode()

    async def _confirmed(self) -> None:
        """Until everything written so far is committed. Raises what the log raised."""
        if self._receipt is not None:
            await self._receipt
        self._unconfirmed = 0
        self._tool_is_next = False

    async def _after_cancel(self) -> Event | None:
        """What to write after the task was cancelled; None where the log is no longer ours."""
        while self._task.cancelling():
            self._task.uncancel()
        if self._stopping:
            try:
                await self._confirmed()
            finally:
                await self._release(self.lease)
            return None
        if isinstance(self._ending, HeadraceError):
            logger.warning("run lost", run_id=self.lease.run_id, attempt=self.lease.attempt, code=self._ending.code)
            return None
        if self._ending is None:  # the agent cancelled its own task, or let a foreign cancel through
            return RunFailed(error=AgentFailed().info())
        return self._ending_event()

    def _ending_event(self) -> Event:
        assert isinstance(self._ending, Event)
        return self._ending

    async def _end(self, terminal: Event) -> None:
        try:
            await self._log.append(self.lease.run_id, self.lease.attempt, [terminal])
        except HeadraceError as error:
            logger.warning("run not ended by this worker", run_id=self.lease.run_id, reason=error.code)
        else:
            self._telemetry.run_ended(terminal)
            if self._on_end is not None:
                self._on_end(self.lease.run_id)

    # time

    def _waited_for_people(self, seconds: float) -> None:
        """Which is given back to the run."""
        self._last_activity = self._loop.time()
        self._deadline += seconds
        if self._watching is not None:
            self._watch_time()

    def _watch_time(self) -> None:
        """One timer a run: it looks when the agent was last active, instead of being set anew for each event."""
        if self._watching is not None:
            self._watching.cancel()
        now = self._loop.time()
        idle_until = self._last_activity + self._limits.idle
        due = min(self._deadline, idle_until)
        if self._inbox.waiting:
            due = now + self._limits.idle
        elif now >= self._deadline:
            self._bring_to_end(RunFailed(error=RunTimeout().info()))
            return
        elif now >= idle_until:
            self._bring_to_end(RunFailed(error=RunIdle().info()))
            return
        if due < math.inf:
            self._watching = self._loop.call_at(due, self._watch_time)

    def _bring_to_end(self, terminal: Event) -> None:
        if self._ending is not None:
            return
        self._ending = terminal
        if self._agent is None:
            self._cancel_task()
            return
        self._asked = self._loop.create_task(self._ask_agent_to_end(self._agent))
        self._later(self._limits.cancel_by_itself, self._cancel_task)
        self._later(self._limits.cancel_grace, self._leave_behind)

    async def _ask_agent_to_end(self, agent: Agent) -> None:
        try:
            await agent.cancel()
        except Exception:
            logger.exception("agent's own cancel failed", run_id=self.lease.run_id)

    def _leave_behind(self) -> None:
        """The agent does not react: close the log without it. Whatever it still writes meets a closed log."""
        if not self._task.done():
            logger.warning("agent does not end, left behind", run_id=self.lease.run_id)
            closing = self._loop.create_task(self._end(self._ending_event()))
            closing.add_done_callback(lambda _: self._finish())
            self._asked = closing

    def _later(self, seconds: float, action: Callable[[], object]) -> None:
        self._timers.append(self._loop.call_later(seconds, action))

    def _stop_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("execution failed", run_id=self.lease.run_id, exc_info=error)
        self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
