"""`RunLog` and `RunQueue` over one SQLite file, for one process.

The event loop side: it knows the live runs, collects what is to be committed and hands it to the `Writer`, one group
at a time. While a group is being committed the next one collects by itself, which is what makes group commit cheap.
After a commit its blocks go to the tails of their runs, and only then can anybody read them.
"""

import asyncio
import fcntl
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from headrace.engines.dispatch import Claimer, Dispatch
from headrace.engines.sqlite import operations as op
from headrace.engines.sqlite.reader import Reader
from headrace.engines.sqlite.schema import open_for_writing
from headrace.engines.sqlite.stored import BlockList
from headrace.engines.sqlite.writer import Commit, Writer
from headrace.engines.tail import FeedTail, Tail
from headrace.errors import (
    ConfigurationError,
    Fenced,
    HeadraceError,
    LogClosed,
    LogCorrupt,
    PositionAhead,
    PositionGone,
    StorageFailed,
    StorageFull,
)
from headrace.events import TERMINAL, Event, RunCancelled, RunCompleted, RunFailed, encode
from headrace.identity import Owner
from headrace.ports import Block, Created, FeedEntry, Head, Idempotency, Lease, Run, RunState
from headrace.position import Position

_STATE: dict[type, RunState] = {RunCompleted: "completed", RunFailed: "failed", RunCancelled: "cancelled"}
_TAIL_BYTES = 1 << 20
_PAGE_BLOCKS = 64
_FEED_PAGE = 100
_RETRY_WHEN_FULL_SECONDS = 0.5
_INDEX_SECONDS = 60.0


class LiveRun:
    """A run that has not ended, as the event loop knows it."""

    __slots__ = ("attempt", "blocks", "cancel_by", "closing", "no", "pending", "run", "state", "tail")

    def __init__(self, no: int, run: Run, *, head: int, blocks: BlockList) -> None:
        self.no = no
        self.run = run
        self.blocks = blocks
        self.tail = Tail(head, max_bytes=_TAIL_BYTES)
        self.state: RunState = "queued"
        self.attempt = 0
        self.cancel_by: str | None = None
        self.pending: op.Append | None = None
        """Collects until the writer takes it."""
        self.closing = False
        """A terminal event was submitted."""

    def head(self) -> Head:
        return Head(
            run=self.run, state=self.state, offset=self.tail.last, attempt=self.attempt, cancel_by=self.cancel_by
        )


class SqliteEngine:
    """`commit_interval`: seconds from the start of one commit to the next under load, so that events of many runs
    share a commit; a commit after a pause, and one that somebody waits for, starts at once."""

    durability = "sqlite: committed events survive kill -9 and power loss (WAL, synchronous=FULL)"

    def __init__(
        self,
        path: Path,
        *,
        lease_seconds: float = 15.0,
        commit_interval: float = 0.002,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lease_seconds = lease_seconds
        self.feed_epoch = ""
        self._path = path
        self._commit_interval = commit_interval
        self._dispatch = Dispatch(lease_seconds, clock)
        self._live: dict[str, LiveRun] = {}
        self._feeds: dict[Owner, FeedTail] = {}
        self._last_block = 0
        self._waiting: list[op.Operation] = []
        self._urgent = False
        self._committing = False
        self._committed_at = 0.0
        self._kick: asyncio.Handle | None = None
        self._full = False
        self._failure: Exception | None = None
        self._closing = False
        self._timers: list[asyncio.TimerHandle] = []
        self._claiming: dict[str, Claimer] = {}

    # start and close

    async def start(self) -> None:
        """Open the file, alone, and put every run that has not ended into the queue: its worker is dead."""
        self._loop = asyncio.get_running_loop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self._path)
        db = open_for_writing(self._path)
        self.feed_epoch, indexed, _, given_out = db.execute("SELECT * FROM meta").fetchone()
        self._last_block = max(db.execute("SELECT coalesce(max(id), 0) FROM blocks").fetchone()[0], given_out)
        self._load_open_runs(db, indexed)
        last_run = db.execute("SELECT coalesce(max(no), 0) FROM runs").fetchone()[0]
        self._writer = Writer(db, op.Ids(run=last_run, block=self._last_block), self._committed)
        self._reader = Reader(self._path)
        self._every(self.lease_seconds / 5, self._watch_leases)
        self._every(_INDEX_SECONDS, self._write_index)

    async def close(self) -> None:
        """Commit what was submitted and close the file. What nobody may write any more fails with `StorageFailed`."""
        if self._closing:
            return
        self._closing = True
        for timer in self._timers:
            timer.cancel()
        if self._live and self._failure is None and not self._full:
            await self._submit(self._index_operation())
        await self._writer.close()
        await self._reader.close()
        self._lock.close()

    def _load_open_runs(self, db: sqlite3.Connection, indexed: int) -> None:
        by_no: dict[int, LiveRun] = {}
        rows = db.execute(f"SELECT no, blocks, {op.HEAD_COLUMNS} FROM runs WHERE ended IS NULL ORDER BY no")
        for no, packed, *columns in rows:
            head = op.load_head(tuple(columns))
            live = by_no[no] = LiveRun(no, head.run, head=head.offset, blocks=BlockList(packed or b""))
            live.attempt = head.attempt
            live.cancel_by = head.cancel_by
            self._live[head.run.id] = live
            self._dispatch.enqueue(head.run.id)
        if not by_no:
            return
        rows = db.execute("SELECT id, run, first, last, length(body) FROM blocks WHERE id > ? ORDER BY id", (indexed,))
        for block_id, no, first, last, size in rows:
            if no in by_no:
                by_no[no].blocks.add(block_id, first, size)
                by_no[no].tail.last = last

    # RunLog

    async def create(self, run: Run, first: Event, idempotency: Idempotency | None = None) -> Created:
        if self._full:
            raise StorageFull(retry_after=5)
        create = op.Create(run, first, idempotency)
        created = self._submit(create, urgent=True)
        if (claimer := self._dispatch.next_claimer()) is not None:
            self._submit_claim(run.id, claimer)  # in the same transaction: one commit less before the first token
        result = await created
        if isinstance(result, op.Known):
            return Created(await self.head(result.run_id), new=False)
        return Created(result, new=True)

    async def head(self, run_id: str) -> Head:
        live = self._live.get(run_id)
        return live.head() if live is not None else (await self._reader.run(run_id)).head

    def append(self, run_id: str, attempt: int, events: Sequence[Event]) -> "asyncio.Future[int]":
        live = self._live.get(run_id)
        if live is None or live.closing:
            return _failed(LogClosed())
        if live.attempt != attempt:
            return _failed(Fenced())
        pending = live.pending
        if pending is None:
            if self._refused is not None:
                return _failed(self._refused)
            pending = live.pending = op.Append(live.no, run_id, attempt)
            self._submit(pending)
        pending.events += events
        pending.lines += map(encode, events)
        if isinstance(events[-1], TERMINAL):
            pending.closing = op.Closing(_STATE[type(events[-1])], time.time())
            live.closing = True
            self._hurry()
        return pending.future

    async def read(self, run_id: str, after: int = 0, *, live: bool) -> AsyncIterator[Sequence[Block]]:
        run = self._live.get(run_id)
        if run is not None:
            if after > run.tail.last:
                raise PositionAhead
            async for blocks in self._read_live(run, after, live):
                yield blocks
            return
        stored = await self._reader.run(run_id)
        if after > stored.head.offset:
            raise PositionAhead
        _check_kept(stored.head, after)
        for page in stored.blocks.pages_after(after, _PAGE_BLOCKS):
            blocks = await self._stored_blocks(run_id, page, after)
            after = blocks[-1].last
            yield blocks

    async def feed(self, owner: Owner, after: int | None, *, live: bool) -> AsyncIterator[Sequence[FeedEntry]]:
        if after is not None and after > self._last_block:
            raise PositionAhead
        if after is not None and after < (floor := await self._reader.feed_floor()):
            raise PositionGone(first_available=str(Position(self.feed_epoch, floor)))
        cursor = self._last_block if after is None else after
        tail = self._feeds.setdefault(owner, FeedTail(self._last_block))
        tail.readers += 1
        try:
            while True:
                if cursor < tail.start:
                    entries, cursor = await self._reader.feed(owner, cursor, tail.start, _FEED_PAGE)
                elif entries := tail.after(cursor):
                    cursor = entries[-1].sequence
                elif live:
                    await tail.wait()
                    continue
                else:
                    return
                if entries:
                    yield entries
        finally:
            tail.readers -= 1
            if not tail.readers:
                self._feeds.pop(owner, None)

    async def list(
        self, owner: Owner, *, limit: int, before: str | None = None, state: RunState | None = None
    ) -> Sequence[Head]:
        heads = await self._reader.heads(owner, limit, before, state)
        return [live.head() if (live := self._live.get(head.run.id)) else head for head in heads]

    async def request_cancel(self, run_id: str, by: str) -> Literal["requested", "already", "closed"]:
        live = self._live.get(run_id)
        if live is None:
            await self._reader.run(run_id)
            return "closed"
        request = op.RequestCancel(live.no, run_id, by, live.tail.last + 1, live.blocks.packed())
        result: Literal["requested", "already", "closed"] = await self._submit(request, urgent=True)
        return result

    async def delete(self, run_id: str) -> None:
        await self._submit(op.Delete(run_id), urgent=True)

    async def trim(self, *, older_than: float | None = None, max_bytes: int | None = None) -> int:
        ended_before = None if older_than is None else time.time() - older_than
        total = 0
        while trimmed := await self._submit(op.Trim(ended_before, max_bytes)):
            total += trimmed
        return total

    # RunQueue

    async def claim(self, worker: str) -> Lease:
        claimer = self._dispatch.wait_for_run(worker)
        self._match()
        try:
            return await claimer.future
        except asyncio.CancelledError:
            if claimer.future.done() and not claimer.future.cancelled() and claimer.future.exception() is None:
                await self.release(claimer.future.result())
            raise

    async def renew(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        if self._refused is not None:
            return leases
        return self._dispatch.renew(leases)

    async def release(self, lease: Lease) -> None:
        live = self._live.get(lease.run_id)
        if live is None or not self._dispatch.drop(lease):
            return
        await self._submit(op.Release(live.no, lease.attempt))
        if live.attempt == lease.attempt and not live.tail.closed:
            live.state = "queued"
            self._dispatch.enqueue(lease.run_id)
            self._match()

    def cancellations(self, worker: str) -> AsyncIterator[str]:
        return self._dispatch.cancellations(worker)

    # reading

    async def _read_live(self, run: LiveRun, after: int, live: bool) -> AsyncIterator[Sequence[Block]]:
        tail = run.tail
        while True:
            if after + 1 < tail.first and after < tail.last:
                blocks = await self._stored_blocks(run.run.id, run.blocks.ids_after(after, _PAGE_BLOCKS), after)
            else:
                blocks = tail.after(after)
            if blocks:
                after = blocks[-1].last
                yield blocks
            elif live and not tail.closed:
                await tail.wait()
            else:
                return

    async def _stored_blocks(self, run_id: str, ids: Sequence[int], after: int) -> Sequence[Block]:
        try:
            blocks = await self._reader.blocks(ids)
        except LogCorrupt:
            _check_kept((await self._reader.run(run_id)).head, after)  # deleted or trimmed while it was read?
            raise
        return [blocks[0].after(after), *blocks[1:]]

    # committing

    @property
    def _refused(self) -> HeadraceError | None:
        """Why nothing can be written any more, if so."""
        return StorageFailed() if self._failure is not None else None

    def _submit(self, operation: op.Operation, *, urgent: bool = False) -> "asyncio.Future[Any]":
        if self._refused is not None:
            operation.future.set_exception(self._refused)
            return operation.future
        self._waiting.append(operation)
        if urgent:
            self._hurry()
        elif self._kick is None and not self._committing:
            self._schedule()
        return operation.future

    def _hurry(self) -> None:
        """Commit at once what waits: a person is waiting for it."""
        if not self._urgent:
            self._urgent = True
            if not self._committing:
                self._schedule()

    def _schedule(self) -> None:
        """At the end of this turn of the loop, so that what is submitted in one turn is committed together."""
        if self._kick is not None:
            self._kick.cancel()
        due = self._committed_at + self._commit_interval
        if self._full:
            self._kick = self._loop.call_later(_RETRY_WHEN_FULL_SECONDS, self._hand_over)
        elif self._urgent or (now := self._loop.time()) >= due:
            self._kick = self._loop.call_soon(self._hand_over)
        else:
            self._kick = self._loop.call_later(due - now, self._hand_over)

    def _hand_over(self) -> None:
        self._kick = None
        if self._committing or not self._waiting:
            return
        group, self._waiting = self._waiting, []
        self._urgent = False
        for operation in group:
            if isinstance(operation, op.Append):
                self._take_append(operation)
        self._committing = True
        self._committed_at = self._loop.time()
        self._writer.submit(group)

    def _take_append(self, append: op.Append) -> None:
        live = self._live.get(append.run_id)
        if live is None:
            return  # ended meanwhile; the writer says so
        live.pending = None
        append.first = live.tail.last + 1
        if append.closing is not None:
            append.blocks = live.blocks.packed()

    def _committed(self, commit: Commit) -> None:
        """On the loop, after the transaction: resolve, publish, and hand over the next group."""
        self._committing = False
        if commit.failure is not None:
            self._fail(commit)
            return
        if commit.full:
            self._wait_for_space(commit)
            return
        self._full = False
        for operation, result in zip(commit.operations, commit.results, strict=True):
            if isinstance(result, HeadraceError):
                self._refuse(operation, result)
            else:
                self._accept(operation, result)
        if self._waiting:
            self._schedule()

    def _accept(self, operation: op.Operation, result: Any) -> None:
        if isinstance(operation, op.Append):
            self._publish(self._live[operation.run_id], operation.events, operation.lines, result)
            if operation.closing is not None:
                self._end(self._live[operation.run_id], operation.closing.state)
            result = operation.first + len(operation.lines) - 1
        elif isinstance(operation, op.Create) and isinstance(result, op.NewRun):
            result = self._begin(operation, result)
        elif isinstance(operation, op.Claim):
            self._claimed(operation, result)
        elif isinstance(operation, op.RequestCancel):
            result = self._cancel_requested(operation, result)
        if not operation.future.done():
            operation.future.set_result(result)

    def _refuse(self, operation: op.Operation, error: HeadraceError) -> None:
        if isinstance(operation, op.Append) and (live := self._live.get(operation.run_id)) is not None:
            live.closing = False
        if not operation.future.done():
            operation.future.set_exception(error)
            operation.future.exception()  # nobody may be waiting for it any more, which is no reason to warn

    def _begin(self, create: op.Create, new: op.NewRun) -> Head:
        live = LiveRun(new.no, create.run, head=0, blocks=BlockList())
        self._live[create.run.id] = live
        self._publish(live, [create.first], [create.line], new.block)
        if create.run.id not in self._claiming:
            self._dispatch.enqueue(create.run.id)
            self._match()
        return live.head()

    def _publish(self, live: LiveRun, events: Sequence[Event], lines: Sequence[bytes], block_id: int) -> None:
        block = Block(live.tail.last + 1, events, lines)
        size = sum(map(len, lines))
        live.blocks.add(block_id, block.first, size)
        live.tail.publish(block, size)
        live.tail.wake()
        self._last_block = max(self._last_block, block_id)
        if (feed := self._feeds.get(live.run.owner)) is not None:
            feed.add(FeedEntry(block_id, live.run.id, block))

    def _end(self, live: LiveRun, state: RunState) -> None:
        live.state = state
        del self._live[live.run.id]
        self._dispatch.remove(live.run.id)
        live.tail.close()

    def _submit_claim(self, run_id: str, claimer: Claimer) -> None:
        self._claiming[run_id] = claimer
        self._submit(op.Claim(run_id), urgent=True)

    def _claimed(self, claim: op.Claim, attempt: int | None) -> None:
        claimer = self._claiming.pop(claim.run_id)
        live = self._live.get(claim.run_id)
        if attempt is None or live is None:
            if not claimer.future.done():
                self._dispatch.give_back(claimer)
                self._match()
            return
        live.attempt = attempt
        live.state = "running"
        if claimer.future.done():
            self._dispatch.enqueue(claim.run_id)
            self._match()
            return
        lease = Lease(run_id=claim.run_id, attempt=attempt, worker=claimer.worker)
        self._dispatch.grant(lease)
        claimer.future.set_result(lease)

    def _cancel_requested(self, request: op.RequestCancel, result: Any) -> Literal["requested", "already", "closed"]:
        live = self._live.get(request.run_id)
        if live is not None and result != "already":
            live.cancel_by = request.by
            if isinstance(result, op.Cancelled):
                self._publish(live, [result.event], [result.line], result.block)
                self._end(live, "cancelled")
            else:
                self._dispatch.tell_cancel(live.run.id)
        if isinstance(result, op.Cancelled):
            return "requested"
        answer: Literal["requested", "already", "closed"] = result
        return answer

    def _wait_for_space(self, commit: Commit) -> None:
        """New runs fail with `StorageFull`; everything else waits, and is tried again until there is space."""
        self._full = True
        retry: list[op.Operation] = []
        for operation in commit.operations:
            if operation.retry_when_full:
                retry.append(operation)
            else:
                self._refuse(operation, StorageFull(retry_after=5))
        self._waiting = retry + self._waiting
        self._schedule()

    def _fail(self, commit: Commit) -> None:
        """The disk failed: stop for good. Trying again could report as durable what is not."""
        self._failure = commit.failure
        for operation in [*commit.operations, *self._waiting]:
            self._refuse(operation, StorageFailed())
        self._waiting = []
        for claimer in self._claiming.values():
            if not claimer.future.done():
                claimer.future.set_exception(StorageFailed())
        self._claiming.clear()

    # the queue

    def _match(self) -> None:
        if self._closing or self._failure is not None:
            return
        for run_id, claimer in self._dispatch.pairs():
            self._submit_claim(run_id, claimer)

    def _watch_leases(self) -> None:
        self._dispatch.requeue_expired()
        self._match()

    def _write_index(self) -> None:
        if self._live and self._failure is None:
            self._submit(self._index_operation())

    def _index_operation(self) -> op.Index:
        live = [op.LiveBlocks(live.no, live.tail.last, live.blocks.packed()) for live in self._live.values()]
        return op.Index(live, self._last_block)

    def _every(self, seconds: float, action: Callable[[], None]) -> None:
        index = len(self._timers)

        def tick() -> None:
            action()
            self._timers[index] = self._loop.call_later(seconds, tick)

        self._timers.append(self._loop.call_later(seconds, tick))


def _check_kept(head: Head, after: int) -> None:
    if after < head.first - 1:
        raise PositionGone(first_available=str(Position(head.run.epoch, head.first - 1)))


def _failed(error: HeadraceError) -> "asyncio.Future[int]":
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


def _lock(path: Path) -> IO[bytes]:
    """One process at a time writes a log. Raises `ConfigurationError` where another one does."""
    lock = path.with_name(path.name + ".lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigurationError(
            f"Another Headrace uses the data directory {path.parent.name!r}: stop it, or choose another with --data."
        ) from error
    return lock
