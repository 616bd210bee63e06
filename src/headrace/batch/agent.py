"""A batch as a run: its items are calls, each of which may be a run of its own, a child.

The log has a step for each item, with the text that its run says as it says it, and the response. So a batch can be
watched, left, resumed and stopped like any run; after a crash the items without a response are called again, and find
the runs that they had started.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeAlias, cast

import msgspec
import structlog

from headrace.batch.item import Item, Response, refusal
from headrace.batch.item_text import ItemPast, ItemText, past_of
from headrace.batch.references import resolved
from headrace.errors import BatchTimeout, DependencyFailed, Draining, HeadraceError, InvalidField
from headrace.events import BATCH_RESPONSE, OUTPUT, AnyEvent, Data, StepFinished, StepStarted
from headrace.identity import Principal
from headrace.ports import AgentItem, Block, RunContext, child_id
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
        failed = sum(answer.result().failed for answer in answers.values())
        yield Data(name=OUTPUT, value={"succeeded": len(items) - failed, "failed": failed})

    async def cancel(self) -> None:
        """Cancel the runs of the items: then their calls return, and the batch with them."""
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
        self._again = context.attempt > 1
        self._number = number
        self._item = item
        self._past = past
        self._answers = answers
        self._events = events
        self._calling = False

    async def run(self, deadline: float) -> None:
        if self._past.response is not None:
            self._answers[self._item.id].set_result(self._past.response)
            return
        response = await self._response(deadline)
        self._answers[self._item.id].set_result(response)
        finished = StepFinished(step_id=self._item.id, agent=NAME, status="failed" if response.failed else "completed")
        await self._events.put([Data(name=BATCH_RESPONSE, value=msgspec.to_builtins(response)), finished])

    async def cancel(self, by: str) -> None:
        """The run of the item, if it is one and has begun."""
        if not self._calling:
            return
        try:
            await self._runs.cancel(self._run.principal, child_id(self._run.id, self._number), by=by)
        except HeadraceError:
            return  # it was no run, or has not come to be one

    async def _response(self, deadline: float) -> Response:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._answer()
        except TimeoutError:
            await self.cancel("batch timeout")
            return refusal(self._item.id, BatchTimeout())
        except HeadraceError as error:
            return refusal(self._item.id, error)
        except Exception:  # of one item, which the others have nothing to do with
            logger.exception("item failed", run_id=self._run.id, item=self._item.id)
            return refusal(self._item.id, HeadraceError())

    async def _answer(self) -> Response:
        earlier = {id: await asyncio.shield(self._answers[id]) for id in self._item.depends_on}
        if not self._past.started:
            await self._events.put([StepStarted(step_id=self._item.id, agent=NAME)])
        if any(response.failed for response in earlier.values()):
            raise DependencyFailed
        item = msgspec.structs.replace(self._item, body=resolved(self._item.body, earlier))
        birth = Birth(self._run, self._number, again=self._again)
        showing = asyncio.ensure_future(self._show(birth))
        self._calling = True
        try:
            response = await self._call(self._run.principal, item, birth)
            if response.code == Draining.code:
                # No answer: this process is about to stop, and the next one goes on with the batch.
                await asyncio.get_running_loop().create_future()
            if birth.created.done() and not response.failed:
                await showing
            return response
        finally:
            showing.cancel()
            await asyncio.wait([showing])

    async def _show(self, birth: Birth) -> None:
        head = await birth.created
        text = ItemText(self._item.id, self._past)
        source = cast("AsyncGenerator[Sequence[Block], None]", self._runs.follow(head, live=True))
        async with aclosing(source) as batches:
            async for blocks in batches:
                for block in blocks:
                    if events := text.events(head, block):
                        await self._events.put(events)
