"""A job as a run: it starts a child for each operation of its file, and logs what each came to.

The log of the job is the list of its results, in the order in which they came. The number of a child is that of its
line, so after a crash the lines without a result are started again and find the runs that they had become: no operation
is run twice, none is lost, each has one result.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from itertools import chain
from typing import Any, Literal

import msgspec
import structlog

from headrace.batch.item import Response, refusal
from headrace.batch.jobs.file import JobFiles, Operation
from headrace.batch.jobs.pace import Pace
from headrace.batch.jobs.slots import Slots
from headrace.batch.jobs.tally import Tally, Throughput
from headrace.errors import AuthRevoked, Cancelled, HeadraceError, InvalidField, StorageFull
from headrace.events import JOB_RESULT, JOB_TALLY, OUTPUT, AnyEvent, Data, RunCancelled, RunFailed, ToolCallResult
from headrace.identity import Principal
from headrace.ports import AgentItem, Created, Run, RunContext, child_id
from headrace.runs import Birth, Runs

logger = structlog.get_logger("headrace.batch")

NAME = "batch_job"
"""Of the agent."""
_TALLY_SECONDS = 1.0
_UNWRITTEN = 1000
"""Results that may wait to be written before no more operations are started."""


class JobInput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What it reads of a run's input."""

    items: int
    concurrency: int
    rate: float | None = None
    """Starts a second."""
    name: str | None = None
    webhook: str | None = None
    retry_of: str | None = None


class JobAgent:
    """`slots` are shared by all jobs. `may_go_on` says whether the caller's right still holds."""

    resumable: Literal["by itself"] = "by itself"

    def __init__(self, runs: Runs, files: JobFiles, slots: Slots, *, may_go_on: Callable[[Principal], bool]) -> None:
        self._runs = runs
        self._files = files
        self._slots = slots
        self._may_go_on = may_go_on
        self._tally = Tally()
        self._throughput = Throughput()
        self._done: set[int] = set()
        """Lines that have a result."""
        self._open: dict[int, asyncio.Task[None]] = {}
        """By line."""
        self._results: list[AnyEvent] = []
        """That are to be written."""
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._cancelled = False
        self._run: Run | None = None
        self._starting: asyncio.Future[None] | None = None

    async def run(self, context: RunContext) -> AsyncIterator[AgentItem]:
        try:
            job = msgspec.convert(context.run.input, JobInput)
        except msgspec.ValidationError as error:
            raise InvalidField from error
        self._run = context.run
        if context.attempt > 1:
            await self._fold(context.run)
        feeding = asyncio.ensure_future(self._feed(context, job))
        feeding.add_done_callback(lambda _: self._news.set())
        try:
            async with aclosing(self._written(feeding)) as events:
                async for some in events:
                    yield some
            feeding.result()
        finally:
            tasks = [feeding, *self._open.values()]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        tally = msgspec.to_builtins(self._tally)
        yield [Data(name=JOB_TALLY, value=tally), Data(name=OUTPUT, value={**tally, "total": job.items})]

    async def cancel(self) -> None:
        """Start no more; what has begun is cancelled, and its result is that. Results that there are stay."""
        self._cancelled = True
        if self._starting is not None:
            self._starting.cancel()
        await asyncio.gather(*(self._cancel_child(line) for line in list(self._open)))

    async def _fold(self, run: Run) -> None:
        head = await self._runs.get(run.principal, run.id)
        async for blocks in self._runs.read(head, 0):
            for event in chain.from_iterable(block.events for block in blocks):
                self._tally.take(event)
                if isinstance(event, Data) and event.name == JOB_RESULT:
                    self._done.add(event.value["line"])

    async def _written(self, feeding: "asyncio.Future[None]") -> AsyncGenerator[Sequence[AnyEvent], None]:
        """What is to be written, as it comes: many results are one append."""
        loop = asyncio.get_running_loop()
        told_at = loop.time()
        while not feeding.done() or self._results:
            await self._news.wait()
            self._news.clear()
            results, self._results = self._results, []
            self._room.set()
            if results and loop.time() - told_at >= _TALLY_SECONDS:
                told_at = loop.time()
                self._tally.per_second = self._throughput.per_second(self._tally.done)
                results.append(Data(name=JOB_TALLY, value=msgspec.to_builtins(self._tally)))
            if results:
                yield results

    async def _feed(self, context: RunContext, job: JobInput) -> None:
        """All operations, from the first that is started to the last that has its result."""
        self._starting = asyncio.ensure_future(self._start_all(context, job))
        try:
            await asyncio.wait([self._starting])
            if not self._cancelled:
                self._starting.result()
            while self._open:
                await asyncio.wait(list(self._open.values()))
        finally:
            self._starting.cancel()

    async def _start_all(self, context: RunContext, job: JobInput) -> None:
        """In the order of the file, as many at a time as there may be."""
        pace = Pace(job.rate)
        own = asyncio.Semaphore(job.concurrency)
        async with aclosing(self._files.read(context.run.id)) as batches:
            async for operations in batches:
                for line, operation in operations:
                    if line in self._done:
                        continue
                    await self._has_room()
                    await pace.next()
                    await own.acquire()
                    await self._slots.acquire(context.run.owner)
                    self._start(context, line, operation, own)

    async def _has_room(self) -> None:
        while len(self._results) > _UNWRITTEN:
            self._room.clear()
            await self._room.wait()

    def _start(self, context: RunContext, line: int, operation: Operation, own: asyncio.Semaphore) -> None:
        def ended(_: object) -> None:
            del self._open[line]
            own.release()
            self._slots.release(context.run.owner)

        task = self._open[line] = asyncio.ensure_future(self._work(context, line, operation))
        task.add_done_callback(ended)

    async def _work(self, context: RunContext, line: int, operation: Operation) -> None:
        response = await self._response(context, line, operation)
        value = {"line": line, "kind": operation.kind, **msgspec.to_builtins(response)}
        self._tally.count(failed=response.failed)
        self._results.append(Data(name=JOB_RESULT, value=value))
        self._news.set()

    async def _response(self, context: RunContext, line: int, operation: Operation) -> Response:
        principal = context.run.principal
        run_id = child_id(context.run.id, line)
        try:
            if not self._may_go_on(principal):
                raise AuthRevoked
            birth = Birth(context.run, line, again=context.attempt > 1)
            created = await self._started(principal, operation, birth)
            if self._cancelled:
                await self._cancel_child(line)
            end, result = await self._runs.outcome(created.head)
        except HeadraceError as error:
            return refusal(operation.id, error)
        except Exception:  # of one operation, which the others have nothing to do with
            logger.exception("operation failed", run_id=run_id, line=line)
            return refusal(operation.id, HeadraceError())
        if isinstance(end, RunFailed):
            why = end.error
            return Response(id=operation.id, status=why.status, error=why.message, code=why.code, run_id=run_id)
        if isinstance(end, RunCancelled):
            return refusal(operation.id, Cancelled(), run_id=run_id)
        return Response(id=operation.id, status=200, body=_body(end.output, result), run_id=run_id)

    async def _started(self, principal: Principal, operation: Operation, birth: Birth) -> Created:
        """Waits while the disk is full: that is no fault of the operation."""
        while True:
            try:
                return await self._runs.start(principal, operation.command(), own=operation.kind == "tool", birth=birth)
            except StorageFull as error:
                await asyncio.sleep(error.retry_after or 1.0)

    async def _cancel_child(self, line: int) -> None:
        assert self._run is not None
        try:
            await self._runs.cancel(self._run.principal, child_id(self._run.id, line), by=NAME)
        except HeadraceError:
            return  # it has not come to be, and will be cancelled as soon as it has


def _body(output: str, result: ToolCallResult | None) -> Any:
    """As JSON where a tool gave JSON."""
    return msgspec.json.decode(output) if result is not None and result.is_json else output
