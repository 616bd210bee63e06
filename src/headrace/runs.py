"""Runs on behalf of a principal: start, follow, result, cancel, list, delete.

No agent runs here. A run is started by committing it; a worker picks it up from the queue.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Literal, NamedTuple
from weakref import WeakValueDictionary

import msgspec

from headrace import json_schema
from headrace.errors import (
    Cancelled,
    ForeignPosition,
    InputDecided,
    InvalidField,
    LogClosed,
    LogCorrupt,
    NotFound,
    PositionAhead,
    PositionGone,
    RunActive,
)
from headrace.events import (
    TERMINAL,
    InputReceived,
    InputRequested,
    MessageEnd,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    ToolCallResult,
)
from headrace.identity import Owner, Principal, is_printable_name
from headrace.ports import (
    Block,
    Created,
    FeedEntry,
    Head,
    Idempotency,
    Input,
    Run,
    RunLog,
    RunState,
    StartCommand,
    Subscribed,
    Subscriber,
    child_id,
)
from headrace.position import Position, new_epoch, random_letters
from headrace.usage.admission import Admission

_CHILDREN_AT_A_TIME = 200
"""That are deleted in one commit, for which others wait."""
_OPEN_STATES: tuple[RunState, ...] = ("queued", "running")


class Outcome(NamedTuple):
    end: RunCompleted | RunFailed | RunCancelled
    result: ToolCallResult | None
    """Of a run that comes to the result of a tool."""


class Birth:
    """That a run is the child number `number` of `parent`. `created` tells which run it is, once it is there.

    `again`: an earlier attempt at the parent may have made it.
    """

    def __init__(self, parent: Run, number: int, *, again: bool = False) -> None:
        self.parent = parent
        self.number = number
        self.again = again
        self.created: asyncio.Future[Head] = asyncio.get_running_loop().create_future()
        self._making: asyncio.Future[Created] | None = None
        self._prevented = False

    async def make(self, create: Callable[[], Coroutine[Any, Any, Created]]) -> Created:
        """Tells what comes to be also where its caller is cancelled meanwhile. Raises `Cancelled` once prevented."""
        if self._prevented:
            raise Cancelled
        self._making = asyncio.ensure_future(create())
        self._making.add_done_callback(self._tell)
        return await asyncio.shield(self._making)

    async def prevent(self) -> None:
        """Let none be made from now on. One that was being made is there, or has failed, when this returns."""
        self._prevented = True
        if self._making is not None:
            await asyncio.wait([self._making])

    def _tell(self, making: "asyncio.Future[Created]") -> None:
        if not making.cancelled() and making.exception() is None and not self.created.done():
            self.created.set_result(making.result().head)


class Runs:
    """Every call sees only the principal's own runs: others raise `NotFound`, like unknown ones."""

    def __init__(
        self,
        log: RunLog,
        agents: Collection[str],
        admission: Admission | None = None,
        *,
        own_agents: Collection[str] = (),
        coordinators: Collection[str] = (),
        on_deleted: Callable[[Run], Awaitable[object]] | None = None,
    ) -> None:
        """`admission` says of each run whether a budget allows it; without one, all may start. `own_agents` are the
        server's, which no caller can name: they call no model, so they need no budget. Of these, `coordinators` have
        children to look after. `on_deleted` is told of each run that was deleted by itself, not with its parent."""
        self._log = log
        self._agents = agents
        self._own_agents = own_agents
        self._coordinators = coordinators
        self._on_deleted = on_deleted
        self._admission = admission
        self._starting: WeakValueDictionary[tuple[Owner, str], asyncio.Lock] = WeakValueDictionary()
        """By idempotency key."""
        self._answering: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        """By run and request."""

    async def start(
        self,
        principal: Principal,
        command: StartCommand,
        idempotency: Idempotency | None = None,
        *,
        own: bool = False,
        birth: Birth | None = None,
        run_id: str | None = None,
    ) -> Created:
        """Commit a new run and queue it. Raises `NotFound` for an unknown agent, and `BudgetExceeded`.

        `own`: the agent is one of the server's. With `birth` it is a child, which is made only once. `run_id` is one
        that `new_run_id` gave before.
        """
        if command.agent not in (self._own_agents if own else self._agents):
            raise NotFound
        _check_id("conversation_id", command.conversation_id)
        run = _new_run(principal, command, birth, run_id)
        if birth is None:
            return await self._create(run, idempotency, admitted=not own)
        again = birth.again
        return await birth.make(lambda: self._create(run, idempotency, admitted=not own, again=again))

    async def _create(
        self, run: Run, idempotency: Idempotency | None, *, admitted: bool, again: bool = False
    ) -> Created:
        if again and (known := await self._find(run.id)) is not None:
            return Created(known, new=False)
        started = RunStarted(
            agent=run.agent,
            input_digest=_digest(run.input),
            conversation_id=run.conversation_id,
            parent_run_id=run.parent_run_id,
            time=run.created,
        )
        if self._admission is None or not admitted:
            return await self._log.create(run, started, idempotency)
        if idempotency is None:
            return await self._admission.admit(run, lambda: self._log.create(run, started))
        # One after the other: a start that is sent twice at once must not need two slices.
        async with self._starting.setdefault((run.owner, idempotency.key), asyncio.Lock()):
            if (head := await self._log.find(run.owner, idempotency)) is not None:
                return Created(head, new=False)  # which was admitted then, whatever is left now
            return await self._admission.admit(run, lambda: self._log.create(run, started, idempotency))

    async def _find(self, run_id: str) -> Head | None:
        try:
            return await self._log.head(run_id)
        except NotFound:
            return None

    def has_agent(self, name: str) -> bool:
        """Whether a caller may start runs of it."""
        return name in self._agents

    async def get(self, principal: Principal, run_id: str) -> Head:
        head = await self._log.head(run_id)
        if head.run.owner != principal.owner:
            raise NotFound
        return head

    def check_position(self, head: Head, position: Position) -> None:
        """Raises for a position that cannot be served: `ForeignPosition`, `PositionAhead`, `PositionGone`."""
        if position.epoch != head.run.epoch:
            raise ForeignPosition
        if position.offset + (position.frame > 0) > head.offset:
            raise PositionAhead
        if position.offset < head.first - 1:
            raise PositionGone(first_available=str(Position(head.run.epoch, head.first - 1)))

    def follow(self, head: Head, after: Position | None = None, *, live: bool) -> AsyncIterator[Sequence[Block]]:
        """The blocks after a position. Raises as `check_position` before anything is read."""
        position = after or Position(head.run.epoch, 0)
        self.check_position(head, position)
        return self._log.read(head.run.id, position.offset, live=live)

    def read(self, head: Head, after: int) -> AsyncIterator[Sequence[Block]]:
        """What is committed after offset `after` by now."""
        return self._log.read(head.run.id, after, live=False)

    def subscribe(self, head: Head, after: int, subscriber: Subscriber) -> Subscribed:
        """See `RunLog.subscribe`."""
        return self._log.subscribe(head.run.id, after, subscriber)

    def unsubscribe(self, head: Head, subscriber: Subscriber) -> None:
        self._log.unsubscribe(head.run.id, subscriber)

    async def result(self, head: Head) -> RunCompleted | RunFailed | RunCancelled:
        """The run's last event, once it is there."""
        async for blocks in self._log.read(head.run.id, max(head.offset - 1, 0), live=True):
            last = blocks[-1].events[-1]
            if isinstance(last, TERMINAL):
                return last
        raise LogCorrupt

    async def outcome(self, head: Head) -> Outcome:
        """Like `result`, with the result of a run that is the call of a tool: between it and the end stands nothing,
        but an `attempt.started` for each worker that died there."""
        result: ToolCallResult | None = None
        async for blocks in self._log.read(head.run.id, max(head.offset - head.attempt - 1, 0), live=True):
            for event in chain.from_iterable(block.events for block in blocks):
                if isinstance(event, TERMINAL):
                    return Outcome(event, result)
                if isinstance(event, ToolCallResult) and not event.preliminary:
                    result = event
                elif isinstance(event, MessageEnd):
                    result = None
        raise LogCorrupt

    def feed(self, principal: Principal, after: Position | None, *, live: bool) -> AsyncIterator[Sequence[FeedEntry]]:
        """What is committed for all runs of the principal. Without a position it starts now."""
        if after is not None and after.epoch != self._log.feed_epoch:
            raise ForeignPosition
        return self._log.feed(principal.owner, None if after is None else after.offset, live=live)

    @property
    def feed_epoch(self) -> str:
        return self._log.feed_epoch

    async def list(
        self,
        principal: Principal,
        *,
        limit: int,
        before: str | None = None,
        state: RunState | None = None,
        parent: str | None = None,
        agent: str | None = None,
    ) -> Sequence[Head]:
        """Without the children of other runs, or, with `parent`, those of one."""
        return await self._log.list(
            principal.owner, limit=limit, before=before, state=state, parent=parent, agent=agent
        )

    async def cancel(
        self, principal: Principal, run_id: str, *, by: str | None = None
    ) -> Literal["requested", "already", "closed"]:
        """Note durably that the run shall end; its worker sees to it."""
        head = await self.get(principal, run_id)
        at_once = head.run.agent not in self._coordinators
        answer = await self._log.request_cancel(head.run.id, by or principal.subject, at_once=at_once)
        if self._admission is not None and (await self._log.head(head.run.id)).closed:
            self._admission.end(head.run.id)  # no worker may have had it
        return answer

    async def answer(self, principal: Principal, run_id: str, request_id: str, value: Any) -> Input:
        """Answer an `input.requested` of the run. Raises `NotFound` for a request that there is not, `InvalidField` for
        a value that does not fit its schema, `InputDecided` where it was answered before, and `LogClosed`."""
        head = await self.get(principal, run_id)
        asked = await self._request(head, request_id)
        if faults := json_schema.faults(value, json_schema.validator(asked.schema)):
            raise InvalidField(errors=[{**fault, "pointer": f"/value{fault['pointer']}"} for fault in faults])
        answer = Input(request_id, value, principal.subject)
        # One after the other: of two who say the same at once, the log could not tell who was first.
        async with self._answering.setdefault((run_id, request_id), asyncio.Lock()):
            if await self._log.find_input(run_id, request_id) is not None:
                raise InputDecided
            if await self._log.put_input(run_id, answer) != answer:
                raise InputDecided
        return answer

    async def _request(self, head: Head, request_id: str) -> InputRequested:
        if head.first > 1:  # trimmed, which happens to ended runs only
            raise LogClosed
        found: InputRequested | None = None
        async for blocks in self._log.read(head.run.id, live=False):
            for event in chain.from_iterable(block.events for block in blocks):
                if isinstance(event, InputReceived) and event.request_id == request_id:
                    raise InputDecided
                if isinstance(event, InputRequested) and event.request_id == request_id:
                    found = event
        if found is None:
            raise NotFound
        return found

    async def delete(self, principal: Principal, run_id: str) -> None:
        """With its children, which have none of their own. Raises `RunActive` while one of them has not ended: then all
        are left as they are."""
        head = await self.get(principal, run_id)
        if not head.closed:
            raise RunActive
        for state in _OPEN_STATES:
            if await self.list(principal, limit=1, state=state, parent=head.run.id):
                raise RunActive
        while children := await self.list(principal, limit=_CHILDREN_AT_A_TIME, parent=head.run.id):
            await asyncio.gather(*(self._delete(child.run.id) for child in children))
        await self._delete(head.run.id)
        if self._on_deleted is not None:
            await self._on_deleted(head.run)

    async def _delete(self, run_id: str) -> None:
        with suppress(NotFound):  # somebody else was faster
            await self._log.delete(run_id)


def _new_run(principal: Principal, command: StartCommand, birth: Birth | None, run_id: str | None) -> Run:
    return Run(
        id=run_id or new_run_id() if birth is None else child_id(birth.parent.id, birth.number),
        epoch=new_epoch(),
        owner=principal.owner,
        agent=command.agent,
        input=command.input,
        created=time.time(),
        conversation_id=command.conversation_id,
        parent_run_id=None if birth is None else birth.parent.id,
        scopes=tuple(sorted(principal.scopes)),
        limits=principal.limits,
        credential_id=principal.credential_id,
        by_token=principal.expires is not None,
    )


def new_run_id() -> str:
    """130 random bits: not to be guessed, and in no order."""
    return f"run_{random_letters(26)}"


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def _check_id(name: str, value: str | None) -> None:
    if value is not None and not is_printable_name(value):
        raise InvalidField(errors=[{"pointer": f"/{name}", "detail": "1 to 128 printable ASCII characters"}])
