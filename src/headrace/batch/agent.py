"""A batch as a run: its items are calls, each of which may be a run of its own, a child.

The log has a step for each item, with the text that its run says as it says it, and the response. So a batch can be
watched, left, resumed and stopped like any run; after a crash the items without a response are called again, and find
the runs that they had started.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Literal, TypeAlias, cast

import msgspec
import structlog

from headrace.batch.item import Item, Response, refusal
from headrace.batch.item_text import ItemPast, ItemText, past_of
from headrace.batch.references import resolved
from headrace.errors import BatchTimeout, Cancelled, DependencyFailed, Draining, HeadraceError, InvalidField, NotFound
from headrace.events import BATCH_RESPONSE, OUTPUT, AnyEvent, Data, StepFinished, StepStarted
from headrace.identity import Principal
from headrace.ports import AgentItem, Block, Head, RunContext, child_id
from headrace.runs import Birth, Runs

logger = structlog.get_logger("headrace.batch")

NAME = "batch"
"""Of the agent."""
_AHEAD = 100
"""How many lists of events the items may be ahead of the log."""

Call: TypeAlias = Callable[[Principal, Item, Birth], Awaitable[Response]]
"""Makes the call of an item in somebody's name. A run that it starts is born by `Birth`. Raises `HeadraceError`."""
Events: TypeAlias = "asyncio.Queue[Sequence[AnyEvent] | None]"


class BatchInput(msgspec.Struct, frozen=True, kw_only=True):
    """What it reads of a run's input."""

    requests: tuple[Item, ...]


class BatchAgent:
    """`timeout`: seconds for the whole batch. An item without a response is then answered so, and its run cancelled."""

    resumable = True

    def __init__(self, runs: Runs, call: Call, *, timeout: float) -> None:
        self._runs = runs
        self._call = call
        self._timeout = timeout
        self._calls: list[_ItemCall] = []

    async def run(self, context: RunContext) -> AsyncIterator[AgentItem]:
        try:
            items = msgspec.convert(context.run.input, BatchInput).requests
        except msgspec.ValidationError as error:
            raise InvalidField from error
        past = past_of(context.history)
        loop = asyncio.get_running_loop()
        answers: dict[str, asyncio.Future[Response]] = {item.id: loop.create_future() for item in items}
        events: Events = asyncio.Queue(_AHEAD)
        self._calls = [
            _ItemCall(self._runs, self._call, context, number, item, past.get(item.id, ItemPast()), answers, events)
            for number, item in enumerate(items, 1)
        ]
        deadline = loop.time() + self._left(context)
        tasks = [loop.create_task(call.run(deadline)) for call in self._calls]
        tasks.append(loop.create_task(_tell_end(list(tasks), events)))
        try:
            while (some := await events.get()) is not None:
                yield some
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if any(isinstance(event, Data) and event.name == OUTPUT for event in context.history):
            return
        failed = sum(answer.result().failed for answer in answers.values())
        yield Data(name=OUTPUT, value={"succeeded": len(items) - failed, "failed": failed})

    async def cancel(self) -> None:
        """Call no more items, and cancel the runs of those that were: then their calls return, and the batch with
        them."""
        await asyncio.gather(*(call.cancel("batch") for call in self._calls))

    def _left(self, context: RunContext) -> float:
        """Seconds. The clock on the wall is asked only where an earlier attempt has used some of them."""
        used = max(0.0, time.time() - context.run.created) if context.attempt > 1 else 0.0
        return max(0.0, self._timeout - used)


async def _tell_end(tasks: Sequence["asyncio.Task[None]"], events: Events) -> None:
    await asyncio.wait(tasks)
    await events.put(None)


class _ItemCall:
    """One item on its way to its response."""

    def __init__(
        self,
        runs: Runs,
        call: Call,
        context: RunContext,
        number: int,
        item: Item,
        past: ItemPast,
        answers: dict[str, "asyncio.Future[Response]"],
        events: Events,
    ) -> None:
        self._runs = runs
        self._call = call
        self._run = context.run
        self._number = number
        self._item = item
        self._past = past
        self._answers = answers
        self._events = events
        self._started = past.started
        self._birth = Birth(context.run, number, again=context.attempt > 1)
        self._cancelled = False

    async def run(self, deadline: float) -> None:
        response = self._past.response
        if response is None:
            showing = asyncio.ensure_future(self._show())
            try:
                response = await self._response(deadline)
                if await self._has_ended():
                    await showing
            finally:
                showing.cancel()
                await asyncio.wait([showing])
            await self._events.put(self._end(response))
        self._answers[self._item.id].set_result(response)

    async def cancel(self, by: str) -> None:
        """The run of the item, if it is one: also one that is just being made, or that an earlier attempt had made."""
        self._cancelled = True
        await self._birth.prevent()
        try:
            await self._runs.cancel(self._run.principal, child_id(self._run.id, self._number), by=by)
        except HeadraceError:
            return  # it is no run
        except Exception:
            logger.exception("run of an item cannot be cancelled", run_id=self._run.id, item=self._item.id)

    async def _response(self, deadline: float) -> Response:
        try:
            async with asyncio.timeout_at(deadline) as limit:
                return await self._answer()
        except HeadraceError as error:
            return refusal(self._item.id, error)
        except Exception:  # of one item, which the others have nothing to do with
            if limit.expired():
                await self.cancel("batch timeout")
                return refusal(self._item.id, BatchTimeout(), run_id=self._run_id())
            logger.exception("item failed", run_id=self._run.id, item=self._item.id)
            return refusal(self._item.id, HeadraceError(), run_id=self._run_id())

    async def _answer(self) -> Response:
        earlier = await self._earlier()
        if not self._started:
            await self._events.put([self._start()])
            self._started = True
        item = msgspec.structs.replace(self._item, body=resolved(self._item.body, earlier))
        if self._cancelled:
            raise Cancelled
        response = await self._call(self._run.principal, item, self._birth)
        if response.code == Draining.code:
            # No answer: this process is about to stop, and the next one goes on with the batch.
            await asyncio.get_running_loop().create_future()
        return response

    async def _earlier(self) -> Mapping[str, Response]:
        """What the items were answered that it depends on. Raises `DependencyFailed` as soon as one of them failed."""
        answers = {id: self._answers[id] for id in self._item.depends_on}
        for answer in asyncio.as_completed(answers.values()):
            if (await answer).failed:
                raise DependencyFailed
        return {id: answer.result() for id, answer in answers.items()}

    def _start(self) -> AnyEvent:
        return StepStarted(step_id=self._item.id, agent=NAME)

    def _end(self, response: Response) -> Sequence[AnyEvent]:
        """With the start of an item that was refused before it could begin."""
        status: Literal["completed", "failed"] = "failed" if response.failed else "completed"
        return [
            *(() if self._started else (self._start(),)),
            Data(name=BATCH_RESPONSE, value=msgspec.to_builtins(response)),
            StepFinished(step_id=self._item.id, agent=NAME, status=status),
        ]

    def _run_id(self) -> str | None:
        return self._birth.created.result().run.id if self._birth.created.done() else None

    async def _has_ended(self) -> bool:
        """Whether the item is a run that says no more. One that was only started goes on without the batch."""
        if (run_id := self._run_id()) is None:
            return False
        try:
            return (await self._runs.get(self._run.principal, run_id)).closed
        except NotFound:  # it was deleted, so there is nothing to wait for
            return False
        except Exception:
            logger.exception("run of an item cannot be read", run_id=run_id)
            return False

    async def _show(self) -> None:
        """What the run of the item says, as far as it can be read: its response holds without it."""
        head = await self._birth.created
        try:
            await self._show_all(head)
        except Exception:
            logger.exception("text of an item cannot be read", run_id=head.run.id)

    async def _show_all(self, head: Head) -> None:
        text = ItemText(self._item.id, self._past)
        source = cast("AsyncGenerator[Sequence[Block], None]", self._runs.follow(head, live=True))
        async with aclosing(source) as batches:
            async for blocks in batches:
                for block in blocks:
                    if events := text.events(head, block):
                        await self._events.put(events)
