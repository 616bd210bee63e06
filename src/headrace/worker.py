"""Claims runs and executes them, as many at a time as it may.

It keeps its leases alive together, passes cancels on, and stops what it can no longer be sure to own.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Collection, Mapping

import structlog

from headrace.errors import Fenced
from headrace.execution import Execution, RunLimits
from headrace.ports import AgentFactory, Lease, RunLog, RunQueue
from headrace.telemetry import Telemetry

logger = structlog.get_logger("headrace.worker")

_RETRY_SECONDS = 1.0


class Worker:
    def __init__(
        self,
        log: RunLog,
        queue: RunQueue,
        agents: Mapping[str, AgentFactory],
        *,
        telemetry: Telemetry,
        max_runs: int = 1000,
        limits: RunLimits | None = None,
        coordinators: Collection[str] = (),
        on_end: Callable[[str], object] | None = None,
    ) -> None:
        """`coordinators` are agents whose runs do nothing but wait for other runs. They take none of the `max_runs`,
        or their children could find no place, and have no time limits."""
        self.id = f"worker-{secrets.token_hex(4)}"
        self._log = log
        self._queue = queue
        self._agents = agents
        self._telemetry = telemetry
        self._limits = limits or RunLimits()
        self._coordinators = coordinators
        self._on_end = on_end
        self._places = Places(max_runs)
        self._executions: dict[str, Execution] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loops = (self._claim_runs, self._keep_leases, self._pass_signals_on)
        self._tasks = [asyncio.create_task(loop(), name=f"{self.id} {loop.__name__}") for loop in loops]

    async def finish(self, seconds: float) -> None:
        """Claim no more, and give the runs some time to end by themselves."""
        await _end(self._tasks[0])
        if self._executions and seconds > 0:
            await asyncio.wait(self._all_done(), timeout=seconds)

    async def stop(self) -> None:
        """Claim no more, and hand what still runs back to the queue."""
        claiming, *others = self._tasks
        await _end(claiming)
        for execution in list(self._executions.values()):
            execution.stop()
        if self._executions:
            await asyncio.wait(self._all_done(), timeout=self._limits.cancel_grace)
        for task in others:
            await _end(task)

    @property
    def running(self) -> int:
        return len(self._executions)

    async def _claim_runs(self) -> None:
        while True:
            await self._places.take()
            try:
                lease = await self._queue.claim(self.id)
            except Exception:  # whatever it is: a worker that claims no more looks alive and does nothing
                self._places.leave()
                logger.exception("cannot claim runs")
                await asyncio.sleep(_RETRY_SECONDS)
            except BaseException:
                self._places.leave()
                raise
            else:
                self._execute(lease)

    def _execute(self, lease: Lease) -> None:
        earlier = self._executions.get(lease.run_id)
        if earlier is not None:  # this process stood still for longer than a lease, and is given its own run again
            earlier.lose(Fenced())
        if coordinates := lease.agent in self._coordinators:
            self._places.leave()
        execution = Execution(
            self._log,
            lease,
            self._agents,
            limits=self._limits,
            coordinates=coordinates,
            telemetry=self._telemetry,
            release=lambda lease: asyncio.ensure_future(self._queue.release(lease)),
            on_end=self._on_end,
            on_waiting=None if coordinates else self._places.lend,
        )
        self._executions[lease.run_id] = execution
        execution.done.add_done_callback(lambda _: self._executed(execution))

    def _executed(self, execution: Execution) -> None:
        if execution.lease.agent not in self._coordinators:
            self._places.leave()
        if self._executions.get(execution.lease.run_id) is execution:
            del self._executions[execution.lease.run_id]

    async def _keep_leases(self) -> None:
        """Renew at a third of the lease; what is lost, or cannot be confirmed for a whole lease, is stopped."""
        loop = asyncio.get_running_loop()
        confirmed = loop.time()
        while True:
            await asyncio.sleep(self._queue.lease_seconds / 3)
            leases = [execution.lease for execution in self._executions.values()]
            try:
                async with asyncio.timeout(self._queue.lease_seconds / 3):
                    lost = await self._queue.renew(leases)
                confirmed = loop.time()
            except Exception:
                logger.exception("cannot renew leases")
                lost = leases if loop.time() - confirmed > self._queue.lease_seconds * 2 / 3 else []
            for lease in lost:
                execution = self._executions.get(lease.run_id)
                if execution is not None and execution.lease == lease:
                    execution.lose(Fenced())

    async def _pass_signals_on(self) -> None:
        async for signal in self._queue.signals(self.id):
            execution = self._executions.get(signal.run_id)
            if execution is None:
                continue
            if signal.kind == "cancel":
                execution.cancel(await self._who_cancels(signal.run_id))
            else:
                execution.input_came()

    async def _who_cancels(self, run_id: str) -> str:
        try:
            return (await self._log.head(run_id)).cancel_by or "unknown"
        except Exception:  # the run has just ended and is gone, or the log cannot be read: others wait for their cancel
            logger.exception("cannot tell who cancels", run_id=run_id)
            return "unknown"

    def _all_done(self) -> list["asyncio.Future[None]"]:
        return [execution.done for execution in self._executions.values()]


class Places:
    """For so many runs at a time. One that waits for people lends its place, and takes it again whatever is free."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        while self._free <= 0:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self._free -= 1

    def leave(self) -> None:
        self._free += 1
        while self._waiting and self._free > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def lend(self, waiting: bool) -> None:
        if waiting:
            self.leave()
        else:
            self._free -= 1


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
