"""A job as a run: it starts a child for each operation of its file, and logs what each came to.

The log of the job is the list of its results, in the order in which they came. The number of a child is that of its
line, so after a crash the lines without a result are started again and find the runs that they had become: no operation
is run twice, none is lost, each has one result.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from itertools import chain
from typing import Any, Literal, TypeVar

import msgspec
import structlog

from headrace.batch.item import Response, refusal
from headrace.batch.jobs import notice
from headrace.batch.jobs.file import JobFiles, Operation
from headrace.batch.jobs.pace import Pace
from headrace.batch.jobs.slots import Slots
from headrace.batch.jobs.tally import Tally, Throughput
from headrace.errors import AuthRevoked, BudgetExceeded, Cancelled, HeadraceError, InvalidField, NotFound, StorageFull
from headrace.events import JOB_RESULT, JOB_TALLY, OUTPUT, AnyEvent, Data, RunCancelled, RunFailed
from headrace.identity import Principal
from headrace.ports import AgentItem, Head, Run, RunContext, child_id
from headrace.runs import Birth, Outcome, Runs

logger = structlog.get_logger("headrace.batch")

T = TypeVar("T")

NAME = "batch_job"
"""Of the agent."""
_TALLY_SECONDS = 1.0
_SILENCE_SECONDS = 10.0
"""Without a result, after which the throughput is told once more."""
_BUDGET_SECONDS = 1.0
"""From one look at a budget to the next, where nothing ends in between."""
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
        self._last_begun = 0
        """No later line has become a run in an earlier attempt."""
        self._open: dict[int, asyncio.Task[None]] = {}
        """By line."""
        self._results: list[AnyEvent] = []
        """That are to be written."""
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._cancelled = asyncio.Event()
        self._run: Run | None = None
        self._working = 0
        """Operations whose runs are being made, or have not ended."""
        self._one_ended = asyncio.Event()
        self._asking = asyncio.Lock()
        self._starting: asyncio.Future[None] | None = None

    async def run(self, context: RunContext) -> AsyncIterator[AgentItem]:
        try:
            job = msgspec.convert(context.run.input, JobInput)
        except msgspec.ValidationError as error:
            raise InvalidField from error
        self._run = context.run
        if context.attempt > 1:
            await self._look_back(context.run, job)
        feeding = asyncio.ensure_future(self._feed(context.run, job))
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
        self._cancelled.set()
        if self._starting is not None:
            self._starting.cancel()
        if (run := self._run) is not None:
            await asyncio.gather(*(self._cancel_child(run, line) for line in list(self._open)))

    async def _look_back(self, run: Run, job: JobInput) -> None:
        """What earlier attempts have left."""
        head = await self._runs.get(run.principal, run.id)
        async for blocks in self._runs.read(head, 0):
            for event in chain.from_iterable(block.events for block in blocks):
                self._tally.take(event)
                if isinstance(event, Data) and event.name == JOB_RESULT:
                    self._done.add(event.value["line"])
        self._throughput = Throughput(self._tally.done)
        # Lines are begun in their order, so many at a time at most: the last one of all is among the last so many.
        newest = await self._runs.list(run.principal, limit=job.concurrency + 2, parent=run.id)
        self._last_begun = max((_number(child) for child in newest), default=0)

    async def _written(self, feeding: "asyncio.Future[None]") -> AsyncGenerator[Sequence[AnyEvent], None]:
        """What is to be written, as it comes: many results are one append."""
        loop = asyncio.get_running_loop()
        told_at = loop.time()
        while not feeding.done() or self._results:
            silent = not await self._news_came()
            results, self._results = self._results, []
            self._room.set()
            if silent or (results and loop.time() - told_at >= _TALLY_SECONDS):
                told_at = loop.time()
                self._tally.per_second = self._throughput.per_second(self._tally.done)
                results.append(Data(name=JOB_TALLY, value=msgspec.to_builtins(self._tally)))
            if results:
                yield results

    async def _news_came(self) -> bool:
        """Or none came for so long that what was told last is no longer true: for twice the time of one result."""
        rate = self._tally.per_second
        try:
            async with asyncio.timeout(max(_SILENCE_SECONDS, 2 / rate) if rate else None):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True

    async def _feed(self, run: Run, job: JobInput) -> None:
        """All operations, from the first that is started to the last that has its result."""
        await self._make_notice(run, job)
        starting = self._starting = asyncio.ensure_future(self._start_all(run, job))
        try:
            if self._cancelled.is_set():
                starting.cancel()
            await asyncio.wait([starting])
            if self._cancelled.is_set():
                await self._end_begun(run)
            while self._open:
                await asyncio.wait(list(self._open.values()))
            if not self._cancelled.is_set():
                starting.result()
        finally:
            starting.cancel()

    async def _make_notice(self, run: Run, job: JobInput) -> None:
        """Who took the job may have died before."""
        if (url := job.webhook) is not None:
            with suppress(Cancelled):
                await self._patiently(lambda: notice.start(self._runs, run, url))

    async def _start_all(self, run: Run, job: JobInput) -> None:
        """In the order of the file, as many at a time as there may be."""
        pace = Pace(job.rate)
        own = asyncio.Semaphore(job.concurrency)

        def ended(_: object) -> None:
            own.release()
            self._slots.release(run.owner)

        async with aclosing(self._files.read(run.id)) as batches:
            async for operations in batches:
                for line, operation in operations:
                    if line in self._done:
                        continue
                    await self._has_room()
                    await own.acquire()
                    await pace.next()
                    await self._slots.acquire(run.owner)
                    self._start(run, line, operation).add_done_callback(ended)

    async def _has_room(self) -> None:
        while len(self._results) > _UNWRITTEN:
            self._room.clear()
            await self._room.wait()

    async def _end_begun(self, run: Run) -> None:
        """Of a cancelled job: what an earlier attempt had begun, and this one has not come to."""
        async with aclosing(self._files.read(run.id)) as batches:
            async for operations in batches:
                for line, operation in operations:
                    if line > self._last_begun:
                        return
                    if line not in self._done and line not in self._open and await self._begun(run, line) is not None:
                        self._start(run, line, operation)

    def _start(self, run: Run, line: int, operation: Operation) -> "asyncio.Task[None]":
        task = self._open[line] = asyncio.ensure_future(self._work(run, line, operation))
        task.add_done_callback(lambda _: self._open.pop(line))
        return task

    async def _work(self, run: Run, line: int, operation: Operation) -> None:
        response = await self._response(run, line, operation)
        value = {"line": line, "kind": operation.kind, **msgspec.to_builtins(response)}
        self._tally.count(failed=response.failed)
        self._done.add(line)
        self._results.append(Data(name=JOB_RESULT, value=value))
        self._news.set()

    async def _response(self, run: Run, line: int, operation: Operation) -> Response:
        run_id: str | None = None
        try:
            head = await self._begun(run, line) or await self._begin(run, line, operation)
            run_id = head.run.id
            if self._cancelled.is_set():
                await self._cancel_child(run, line)
            with self._at_work():
                return _response_of(operation, run_id, await self._runs.outcome(head))
        except HeadraceError as error:
            return refusal(operation.id, error, run_id=run_id)
        except Exception:  # of one operation, which the others have nothing to do with
            logger.exception("operation failed", run_id=child_id(run.id, line))
            return refusal(operation.id, HeadraceError(), run_id=run_id)

    async def _begun(self, run: Run, line: int) -> Head | None:
        """The run that the line has become in an earlier attempt."""
        if line > self._last_begun:
            return None
        try:
            return await self._runs.get(run.principal, child_id(run.id, line))
        except NotFound:
            return None

    async def _begin(self, run: Run, line: int, operation: Operation) -> Head:
        if self._cancelled.is_set():
            raise Cancelled
        if not self._may_go_on(run.principal):
            raise AuthRevoked
        birth, command, own = Birth(run, line), operation.command(), operation.kind == "tool"
        created = await self._within_budget(lambda: self._runs.start(run.principal, command, own=own, birth=birth))
        return created.head

    async def _within_budget(self, start: Callable[[], Awaitable[T]]) -> T:
        """Waits while others of this job may give back what they have reserved: one of those who wait asks at a time.
        Raises `BudgetExceeded` where nobody is left who could, and `Cancelled`."""
        with suppress(BudgetExceeded):
            return await self._patiently(start)
        async with self._asking:
            while not self._cancelled.is_set():
                alone = not self._working
                try:
                    return await self._patiently(start)
                except BudgetExceeded:
                    if alone and not self._working:
                        raise
                if self._working:
                    await self._wait(self._one_ended, _BUDGET_SECONDS)
        raise Cancelled

    async def _patiently(self, start: Callable[[], Awaitable[T]]) -> T:
        """Waits while the disk is full, which is no fault of an operation. Raises `Cancelled`."""
        while True:
            try:
                with self._at_work():
                    return await start()
            except StorageFull as error:
                await self._wait(self._cancelled, error.retry_after or 1.0)
            if self._cancelled.is_set():
                raise Cancelled

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1
            ended, self._one_ended = self._one_ended, asyncio.Event()
            ended.set()

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)

    async def _cancel_child(self, run: Run, line: int) -> None:
        with suppress(HeadraceError):  # it has not come to be, and is looked at again once it has
            await self._runs.cancel(run.principal, child_id(run.id, line), by=NAME)


def _response_of(operation: Operation, run_id: str, outcome: Outcome) -> Response:
    end = outcome.end
    if isinstance(end, RunFailed):
        why = end.error
        return Response(id=operation.id, status=why.status, error=why.message, code=why.code, run_id=run_id)
    if isinstance(end, RunCancelled):
        return refusal(operation.id, Cancelled(), run_id=run_id)
    body: Any = end.output
    if operation.kind == "tool" and outcome.result is not None and outcome.result.is_json:
        body = msgspec.json.decode(body)
    return Response(id=operation.id, status=200, body=body, run_id=run_id)


def _number(child: Head) -> int:
    return int(child.run.id.rpartition("_")[2])
