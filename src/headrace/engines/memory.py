"""The engine that keeps everything in the memory of this process: for tests, for the library, and as the reference.

Same promises as every engine, but nothing survives the process.
"""

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal

import msgspec

from headrace.engines.dispatch import Dispatch
from headrace.engines.ending import ending
from headrace.engines.receipt import Receipt, refused, settled
from headrace.engines.tail import Tail, Waiters
from headrace.errors import Fenced, IdempotencyMismatch, LogClosed, NotFound, PositionAhead, PositionGone, RunActive
from headrace.events import Event, RunCancelled, encode
from headrace.identity import Owner
from headrace.ports import (
    Block,
    Created,
    FeedEntry,
    Head,
    Idempotency,
    Input,
    Lease,
    Run,
    RunState,
    Signal,
    Subscribed,
    Subscriber,
)
from headrace.position import Position, new_epoch

_PAGE = 100
_FORGOTTEN = 1000


class _Log:
    """A run, its state and all its blocks."""

    def __init__(self, run: Run) -> None:
        self.head = Head(run=run, state="queued", offset=0)
        self.tail = Tail()
        self.bytes = 0
        self.inputs: dict[str, Input] = {}
        self.idempotency: Idempotency | None = None

    def change(self, **fields: object) -> None:
        self.head = msgspec.structs.replace(self.head, **fields)


class _Feed:
    """The blocks of one owner in commit order."""

    def __init__(self) -> None:
        self.entries: list[FeedEntry] = []
        self.waiters = Waiters()
        self.forgotten: set[str] = set()
        """Runs whose entries are still to be taken out: many at once, since each time all are looked through."""

    def forget(self, run_id: str) -> None:
        self.forgotten.add(run_id)
        if len(self.forgotten) > _FORGOTTEN:
            self.entries = [entry for entry in self.entries if entry.run_id not in self.forgotten]
            self.forgotten.clear()

    def page(self, start: int) -> list[FeedEntry]:
        return self.entries[start : start + _PAGE]

    def shown(self, page: Sequence[FeedEntry]) -> list[FeedEntry]:
        return [entry for entry in page if entry.run_id not in self.forgotten]


class MemoryEngine:
    """`RunLog` and `RunQueue` in memory."""

    durability = "memory: nothing survives the end of this process"

    def __init__(self, *, lease_seconds: float = 15.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.lease_seconds = lease_seconds
        self.feed_epoch = new_epoch()
        self._logs: dict[str, _Log] = {}
        self._idempotency: dict[tuple[Owner, str], tuple[str, str]] = {}
        self._feeds: dict[Owner, _Feed] = {}
        self._sequence = 0
        self._feed_floor = 0
        self._dispatch = Dispatch(lease_seconds, clock)
        self._expiry: asyncio.TimerHandle | None = None

    @property
    def writable(self) -> bool:
        return True

    async def start(self) -> None:
        self._watch_leases()

    async def close(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()

    # RunLog

    async def create(self, run: Run, first: Event, idempotency: Idempotency | None = None) -> Created:
        if idempotency is not None and (known := await self.find(run.owner, idempotency)) is not None:
            return Created(known, new=False)
        if run.id in self._logs:
            return Created(self._logs[run.id].head, new=False)
        log = _Log(run)
        self._commit(log, [first])
        self._logs[run.id] = log
        if idempotency is not None:
            self._idempotency[run.owner, idempotency.key] = (run.id, idempotency.fingerprint)
            log.idempotency = idempotency
        self._dispatch.enqueue(run.id)
        self._match()
        return Created(log.head, new=True)

    async def find(self, owner: Owner, idempotency: Idempotency) -> Head | None:
        known = self._idempotency.get((owner, idempotency.key))
        if known is None:
            return None
        run_id, fingerprint = known
        if fingerprint != idempotency.fingerprint:
            raise IdempotencyMismatch
        return self._logs[run_id].head

    async def head(self, run_id: str) -> Head:
        return self._log(run_id).head

    def append(self, run_id: str, attempt: int, events: Sequence[Event], *, urgent: bool = False) -> Receipt:
        try:
            log = self._logs.get(run_id)
            if log is None or log.head.closed:
                raise LogClosed
            if log.head.attempt != attempt:
                raise Fenced
            self._commit(log, events)
        except Exception as error:
            return refused(error)
        return settled(log.head.offset)

    async def read(self, run_id: str, after: int = 0, *, live: bool) -> AsyncIterator[Sequence[Block]]:
        if after > self._log(run_id).head.offset:
            raise PositionAhead
        while True:
            log = self._log(run_id)  # anew each time: it may have been trimmed or deleted since
            if after < log.head.first - 1:
                raise PositionGone(first_available=str(Position(log.head.run.epoch, log.head.first - 1)))
            if blocks := log.tail.after(after):
                after = blocks[-1].last
                yield blocks
            elif live and not log.tail.closed:
                await log.tail.wait()
            else:
                return

    def subscribe(self, run_id: str, after: int, subscriber: Subscriber) -> Subscribed:
        log = self._logs.get(run_id)
        return log.tail.subscribe(after, subscriber) if log is not None else "closed"

    def unsubscribe(self, run_id: str, subscriber: Subscriber) -> None:
        if (log := self._logs.get(run_id)) is not None:
            log.tail.unsubscribe(subscriber)

    async def feed(self, owner: Owner, after: int | None, *, live: bool) -> AsyncIterator[Sequence[FeedEntry]]:
        if after is not None and after > self._sequence:
            raise PositionAhead
        feed = self._feeds.setdefault(owner, _Feed())
        sequence = self._sequence if after is None else after
        while True:
            if sequence < self._feed_floor:
                raise PositionGone(first_available=str(Position(self.feed_epoch, self._feed_floor)))
            start = bisect_right(feed.entries, sequence, key=_sequence)
            if page := feed.page(start):
                sequence = page[-1].sequence
                if entries := feed.shown(page):
                    yield entries
            elif live:
                sequence = self._sequence
                await feed.waiters.wait()
            else:
                return

    async def list(
        self,
        owner: Owner,
        *,
        limit: int,
        before: str | None = None,
        state: RunState | None = None,
        parent: str | None = None,
        agent: str | None = None,
    ) -> Sequence[Head]:
        heads = [
            log.head
            for log in reversed(self._logs.values())
            if log.head.run.owner == owner
            and log.head.run.parent_run_id == parent
            and agent in (None, log.head.run.agent)
        ]
        if before is not None:
            ids = [head.run.id for head in heads]
            if before not in ids:
                raise NotFound
            heads = heads[ids.index(before) + 1 :]
        return [head for head in heads if state is None or head.state == state][:limit]

    async def request_cancel(
        self, run_id: str, by: str, *, at_once: bool = True
    ) -> Literal["requested", "already", "closed"]:
        log = self._log(run_id)
        if log.head.closed:
            return "closed"
        if log.head.cancel_by is not None:
            return "already"
        log.change(cancel_by=by)
        if log.head.state == "queued" and (at_once or not log.head.attempt):
            self._commit(log, [RunCancelled(reason="requested", by=by)])
        else:
            self._dispatch.tell(Signal(run_id, "cancel"))
        return "requested"

    async def put_input(self, run_id: str, input: Input) -> Input:
        log = self._log(run_id)
        if log.head.closed:
            raise LogClosed
        known = log.inputs.setdefault(input.request_id, input)
        self._dispatch.tell(Signal(run_id, "input"))
        return known

    async def find_input(self, run_id: str, request_id: str) -> Input | None:
        return self._log(run_id).inputs.get(request_id)

    async def delete(self, run_id: str) -> None:
        log = self._log(run_id)
        if not log.head.closed:
            raise RunActive
        self._forget_blocks(log)
        del self._logs[run_id]
        if log.idempotency is not None:
            del self._idempotency[log.head.run.owner, log.idempotency.key]

    async def trim(self, *, older_than: float | None = None, max_bytes: int | None = None) -> int:
        now = time.time()
        ended = sorted((log for log in self._logs.values() if log.bytes and log.head.ended), key=_ended)
        total = sum(log.bytes for log in self._logs.values())
        trimmed = 0
        for log in ended:
            too_old = older_than is not None and now - _ended(log) > older_than
            too_much = max_bytes is not None and total > max_bytes
            if too_old or too_much:
                total -= log.bytes
                self._feed_floor = max(self._feed_floor, self._last_sequence(log))
                self._forget_blocks(log)
                trimmed += 1
        return trimmed

    # RunQueue

    async def claim(self, worker: str) -> Lease:
        claimer = self._dispatch.wait_for_run(worker)
        self._match()
        try:
            return await claimer.future
        except asyncio.CancelledError:
            self._dispatch.forget(claimer)
            if claimer.future.done() and not claimer.future.cancelled():
                self._give_up(claimer.future.result())
            raise

    async def renew(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        return self._dispatch.renew(leases)

    async def release(self, lease: Lease) -> None:
        self._give_up(lease)

    def signals(self, worker: str) -> AsyncIterator[Signal]:
        return self._dispatch.signals(worker)

    # inside

    def _log(self, run_id: str) -> _Log:
        try:
            return self._logs[run_id]
        except KeyError:
            raise NotFound from None

    def _commit(self, log: _Log, events: Sequence[Event]) -> None:
        state = ending(events)
        encoded = [encode(event) for event in events]
        block = Block(log.head.offset + 1, tuple(events), encoded)
        size = sum(map(len, encoded))
        log.bytes += size
        log.tail.publish(block, size)
        log.change(offset=block.last)
        if state is not None:
            log.change(state=state, ended=time.time())
            self._dispatch.remove(log.head.run.id)
            log.tail.close()
        else:
            log.tail.wake()
        self._sequence += 1
        feed = self._feeds.setdefault(log.head.run.owner, _Feed())
        feed.entries.append(FeedEntry(self._sequence, log.head.run.id, block))
        feed.waiters.wake()

    def _forget_blocks(self, log: _Log) -> None:
        self._feeds[log.head.run.owner].forget(log.head.run.id)
        log.tail = Tail(log.head.offset)
        log.tail.close()
        log.bytes = 0
        log.change(first=log.head.offset + 1)

    def _last_sequence(self, log: _Log) -> int:
        entries = self._feeds[log.head.run.owner].entries
        return max((entry.sequence for entry in entries if entry.run_id == log.head.run.id), default=0)

    def _match(self) -> None:
        for run_id, claimer in self._dispatch.pairs():
            log = self._logs[run_id]
            log.change(attempt=log.head.attempt + 1, state="running")
            lease = Lease(run_id=run_id, agent=log.head.run.agent, attempt=log.head.attempt, worker=claimer.worker)
            self._dispatch.grant(lease)
            claimer.future.set_result(lease)

    def _give_up(self, lease: Lease) -> None:
        if self._dispatch.drop(lease):
            self._requeue(lease)

    def _requeue(self, lease: Lease) -> None:
        self._logs[lease.run_id].change(state="queued")
        self._dispatch.enqueue(lease.run_id)
        self._match()

    def _watch_leases(self) -> None:
        for lease in self._dispatch.take_expired():
            self._requeue(lease)
        self._expiry = asyncio.get_running_loop().call_later(self.lease_seconds / 5, self._watch_leases)


def _sequence(entry: FeedEntry) -> int:
    return entry.sequence


def _ended(log: _Log) -> float:
    return log.head.ended or 0.0
