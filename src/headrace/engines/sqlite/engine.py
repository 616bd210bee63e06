"""`RunLog` and `RunQueue` over one SQLite file, for one process.

The event loop side: it knows the live runs, collects what is to be committed and hands it to the `Writer`, one group
at a time. While a group is being committed the next one collects by itself, which is what makes group commit cheap.
After a commit its blocks go to the tails of their runs, and only then can anybody read them.
"""

import asyncio
import fcntl
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

from headrace.engines.dispatch import Claimer, Dispatch
from headrace.engines.ending import ending
from headrace.engines.receipt import Receipt, refused
from headrace.engines.sqlite import operations as op
from headrace.engines.sqlite.reader import Reader, Stored
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
    NotFound,
    PositionAhead,
    PositionGone,
    StorageFailed,
    StorageFull,
)
from headrace.events import Event, encode
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
from headrace.position import Position

_TAIL_BYTES = 1 << 18
_PAGE_BYTES = 1 << 16
_FEED_PAGE = 100
_RETRY_WHEN_FULL_SECONDS = 0.5
_INDEX_SECONDS = 60.0


class LiveRun:
    """A run that has not ended, as the event loop knows it."""

    __slots__ = ("attempt", "blocks", "cancel_by", "closing", "damaged", "no", "pending", "run", "state", "tail")

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
        self.damaged = False
        """Found at a start to have a hole."""

    def head(self) -> Head:
        return Head(
            run=self.run, state=self.state, offset=self.tail.last, attempt=self.attempt, cancel_by=self.cancel_by
        )


class SqliteEngine:
    """`commit_interval`: seconds from the start of one commit to the next under load, so that events of many runs
    share a commit; a commit after a pause, and one that somebody waits for, starts at once. `on_commit` is told the
    seconds that a commit took and the number of events in it."""

    durability = "sqlite: committed events survive kill -9 and power loss (WAL, synchronous=FULL)"

    def __init__(
        self,
        path: Path,
        *,
        lease_seconds: float = 15.0,
        commit_interval: float = 0.010,
        on_commit: Callable[[float, int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lease_seconds = lease_seconds
        self.feed_epoch = ""
        self._path = path
        self._commit_interval = commit_interval
        self._on_commit = on_commit
        self._dispatch = Dispatch(lease_seconds, clock)
        self._live: dict[str, LiveRun] = {}
        self._feeds: dict[Owner, FeedTail] = {}
        self._last_block = 0
        self._waiting: list[op.Operation] = []
        self._again: list[op.Operation] = []
        """A group that found the disk full; it goes before what waits."""
        self._urgent = False
        self._committing = False
        self._committed_at = 0.0
        self._kick: asyncio.Handle | None = None
        self._full = False
        self._failure: Exception | None = None
        self._closing = False
        self._timers: list[asyncio.TimerHandle] = []
        self._claiming: dict[str, Claimer] = {}
        self._creating: dict[str, asyncio.Future[Any]] = {}

    @property
    def writable(self) -> bool:
        """Whether a run could be started now: the disk has neither failed nor run full."""
        return not self._full and self._failure is None

    # start and close

    async def start(self) -> None:
        """Open the file, alone, and put every run that has not ended into the queue: its worker is dead."""
        self._loop = asyncio.get_running_loop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            self._lock = undo.enter_context(_lock(self._path))
            try:
                db = undo.enter_context(closing(open_for_writing(self._path)))
                ids = self._load(db)
            except sqlite3.DatabaseError as error:
                raise ConfigurationError(
                    f"{self._path.name} cannot be opened as a log: choose another --data directory."
                ) from error
            undo.pop_all()
        self._writer = Writer(db, ids, self._committed)
        self._reader = Reader(self._path)
        self._every(self.lease_seconds / 5, self._watch_leases)
        self._every(_INDEX_SECONDS, self._write_index)

    async def close(self) -> None:
        """Commit what was submitted and close the file. What nobody may write any more fails with `StorageFailed`."""
        if self._closing or not self._timers:
            return
        for timer in self._timers:
            timer.cancel()
        last = self._submit(self._index_operation(), urgent=True)
        self._closing = True
        with suppress(StorageFailed):
            await last
        self._stop()
        await self._reader.close()
        await self._writer.close()
        self._lock.close()

    def _load(self, db: sqlite3.Connection) -> op.Ids:
        self.feed_epoch, indexed, given_out = db.execute("SELECT epoch, indexed, block FROM meta").fetchone()
        last_block = db.execute("SELECT coalesce(max(id), 0) FROM blocks").fetchone()[0]
        last_run = db.execute("SELECT coalesce(max(no), 0) FROM runs").fetchone()[0]
        self._last_block = max(last_block, given_out)
        self._load_open_runs(db, indexed)
        return op.Ids(run=last_run, block=self._last_block)

    def _load_open_runs(self, db: sqlite3.Connection, indexed: int) -> None:
        runs: dict[int, LiveRun] = {}
        damaged: list[int] = []
        for no, packed, *columns in db.execute(
            f"SELECT no, blocks, {op.HEAD_COLUMNS} FROM runs WHERE ended IS NULL ORDER BY no"
        ):
            try:
                runs[no] = _open_run(no, op.load_head(tuple(columns)), BlockList(packed or b""))
            except LogCorrupt:
                damaged.append(no)
        if runs:
            _add_blocks(db, indexed, runs)
        for live in runs.values():
            if live.damaged or not live.blocks:
                damaged.append(live.no)
            else:
                self._live[live.run.id] = live
                self._dispatch.enqueue(live.run.id)
        _settle_open_runs(db, damaged)

    # RunLog

    async def create(self, run: Run, first: Event, idempotency: Idempotency | None = None) -> Created:
        if self._refused is not None:
            raise self._refused
        if self._full:
            raise StorageFull(retry_after=5)
        if (known := await self._known(run.id)) is not None:
            return Created(known, new=False)
        create = op.Create(run, first, idempotency)
        created = self._submit(create, urgent=True)
        self._creating[run.id] = created
        if (claimer := self._dispatch.next_claimer()) is not None:
            self._submit_claim(run.id, claimer)  # in the same transaction: one commit less before the first token
        try:
            result = await created
        finally:
            self._creating.pop(run.id, None)
        if isinstance(result, op.Known):
            return Created(await self.head(result.run_id), new=False)
        return Created(result, new=True)

    async def _known(self, run_id: str) -> Head | None:
        """A run that is open, or being made: its claim must not be taken from the worker that has it. One that has
        ended cannot be claimed; the commit finds it."""
        while (making := self._creating.get(run_id)) is not None:
            await asyncio.wait([making])
            await asyncio.sleep(0)  # whoever made it takes it off the list
        live = self._live.get(run_id)
        return live.head() if live is not None else None

    async def find(self, owner: Owner, idempotency: Idempotency) -> Head | None:
        run_id = await self._reader.known_run(owner, idempotency)
        return await self.head(run_id) if run_id is not None else None

    async def head(self, run_id: str) -> Head:
        live = self._live.get(run_id)
        return live.head() if live is not None else (await self._reader.run(run_id)).head

    def append(self, run_id: str, attempt: int, events: Sequence[Event], *, urgent: bool = False) -> Receipt:
        live = self._live.get(run_id)
        if live is None or live.closing:
            return refused(LogClosed())
        if live.attempt != attempt:
            return refused(Fenced())
        try:
            state = ending(events)
            lines = list(map(encode, events))
        except Exception as error:
            return refused(error)
        pending = live.pending
        if pending is None:
            if self._refused is not None:
                return refused(self._refused)
            pending = live.pending = op.Append(live.no, run_id, attempt)
            self._wait_for_commit(pending)
        pending.events += events
        pending.lines += lines
        if state is not None:
            pending.closing = op.Closing(state, time.time())
            live.closing = True
        if urgent or state is not None:
            self._hurry()
        return pending

    async def read(self, run_id: str, after: int = 0, *, live: bool) -> AsyncIterator[Sequence[Block]]:
        run = self._live.get(run_id)
        if run is None:
            stored = await self._reader.run(run_id)
            if stored.head.closed:
                async for blocks in self._read_stored(stored, after):
                    yield blocks
                return
            run = self._live.get(run_id)
        if run is None:
            raise NotFound  # it is being created; this loop has not heard of the commit yet
        async for blocks in self._read_live(run, after, live):
            yield blocks

    def subscribe(self, run_id: str, after: int, subscriber: Subscriber) -> Subscribed:
        live = self._live.get(run_id)
        return live.tail.subscribe(after, subscriber) if live is not None else "closed"

    def unsubscribe(self, run_id: str, subscriber: Subscriber) -> None:
        if (live := self._live.get(run_id)) is not None:
            live.tail.unsubscribe(subscriber)

    async def feed(self, owner: Owner, after: int | None, *, live: bool) -> AsyncIterator[Sequence[FeedEntry]]:
        if after is not None and after > self._last_block:
            raise PositionAhead
        if after is not None:
            self._check_feed_kept(after, await self._reader.feed_floor())
        cursor = self._last_block if after is None else after
        tail = self._feeds.setdefault(owner, FeedTail(self._last_block))
        tail.readers += 1
        try:
            while True:
                if cursor < tail.start:
                    page = await self._reader.feed(owner, cursor, tail.start, _FEED_PAGE)
                    self._check_feed_kept(cursor, page.floor)
                    entries, cursor = page.entries, page.upto
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
        self,
        owner: Owner,
        *,
        limit: int,
        before: str | None = None,
        state: RunState | None = None,
        parent: str | None = None,
        agent: str | None = None,
    ) -> Sequence[Head]:
        heads = await self._reader.heads(owner, limit, before, state, parent, agent)
        return [head if head.closed else await self.head(head.run.id) for head in heads]

    async def request_cancel(
        self, run_id: str, by: str, *, at_once: bool = True
    ) -> Literal["requested", "already", "closed"]:
        live = self._live.get(run_id)
        if live is None:
            await self._reader.run(run_id)
            return "closed"
        request = op.RequestCancel(live.no, run_id, by, at_once=at_once)
        result: Literal["requested", "already", "closed"] = await self._submit(request, urgent=True)
        return result

    async def put_input(self, run_id: str, input: Input) -> Input:
        live = self._live.get(run_id)
        if live is None:
            await self._reader.run(run_id)
            raise LogClosed
        known: Input = await self._submit(op.PutInput(live.no, run_id, input), urgent=True)
        return known

    async def find_input(self, run_id: str, request_id: str) -> Input | None:
        live = self._live.get(run_id)
        return await self._reader.input(live.no, request_id) if live is not None else None

    async def delete(self, run_id: str) -> None:
        await self._submit(op.Delete(run_id), urgent=True)

    async def trim(self, *, older_than: float | None = None, max_bytes: int | None = None) -> int:
        ended_before = None if older_than is None else time.time() - older_than
        if max_bytes is not None:
            max_bytes -= sum(live.blocks.bytes for live in self._live.values())
        total = 0
        while trimmed := await self._submit(op.Trim(ended_before, max_bytes)):
            total += trimmed
        return total

    # RunQueue

    async def claim(self, worker: str) -> Lease:
        if self._refused is not None:
            raise self._refused
        claimer = self._dispatch.wait_for_run(worker)
        self._match()
        try:
            return await claimer.future
        except asyncio.CancelledError:
            self._dispatch.forget(claimer)
            if claimer.future.done() and not claimer.future.cancelled() and claimer.future.exception() is None:
                lease = claimer.future.result()
                if self._dispatch.drop(lease):
                    self._give_up(lease.run_id, lease.attempt)
            raise

    async def renew(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        if self._refused is not None:
            return leases
        return self._dispatch.renew(leases)

    async def release(self, lease: Lease) -> None:
        if self._dispatch.drop(lease):
            with suppress(StorageFailed):  # then every lease is lost
                await self._give_up(lease.run_id, lease.attempt)

    def signals(self, worker: str) -> AsyncIterator[Signal]:
        return self._dispatch.signals(worker)

    # reading

    async def _read_live(self, run: LiveRun, after: int, live: bool) -> AsyncIterator[Sequence[Block]]:
        tail = run.tail
        if after > tail.last:
            raise PositionAhead
        while True:
            if after + 1 < tail.first and after < tail.last:
                for block in await self._stored_blocks(run.run.id, run.no, run.blocks, after):
                    after = block.last
                    yield [block]
            elif blocks := tail.after(after):
                after = blocks[-1].last
                yield blocks
            elif live and not tail.closed:
                await tail.wait()
            else:
                return

    async def _read_stored(self, stored: Stored, after: int) -> AsyncIterator[Sequence[Block]]:
        if after > stored.head.offset:
            raise PositionAhead
        _check_kept(stored.head, after)
        while after < stored.head.offset:
            for block in await self._stored_blocks(stored.head.run.id, stored.no, stored.blocks, after):
                after = block.last
                yield [block]
        if after != stored.head.offset:
            raise LogCorrupt

    async def _stored_blocks(self, run_id: str, no: int, blocks: BlockList, after: int) -> Iterator[Block]:
        """Some of what follows `after`, decoded as it is taken."""
        try:
            found = await self._reader.lines(no, blocks.ids_after(after, _PAGE_BYTES), after)
        except LogCorrupt:
            _check_kept((await self._reader.run(run_id)).head, after)  # deleted or trimmed while it was read?
            raise
        return chain.from_iterable(stored.blocks() for stored in found)

    def _check_feed_kept(self, after: int, floor: int) -> None:
        if after < floor:
            raise PositionGone(first_available=str(Position(self.feed_epoch, floor)))

    # committing

    @property
    def _refused(self) -> HeadraceError | None:
        """Why nothing can be written any more, if so."""
        return StorageFailed() if self._failure is not None or self._closing else None

    def _submit(self, operation: op.Operation, *, urgent: bool = False) -> "asyncio.Future[Any]":
        operation.future = self._loop.create_future()
        if self._refused is not None:
            self._refuse(operation, self._refused)
            return operation.future
        self._wait_for_commit(operation)
        if urgent:
            self._hurry()
        return operation.future

    def _wait_for_commit(self, operation: op.Operation) -> None:
        self._waiting.append(operation)
        if self._kick is None and not self._committing:
            self._schedule()

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
        if self._committing or not (self._again or self._waiting):
            return
        group = self._again or self._take_waiting()
        self._again = []
        self._committing = True
        self._committed_at = self._loop.time()
        self._writer.submit(group)

    def _take_waiting(self) -> Sequence[op.Operation]:
        """Appends last, as they are applied, so that results come in the order of block ids."""
        waiting, self._waiting = self._waiting, []
        self._urgent = False
        commands: list[op.Operation] = []
        appends: list[op.Operation] = []
        for operation in waiting:
            if isinstance(operation, op.Append):
                self._take_append(operation)
                appends.append(operation)
            else:
                if isinstance(operation, op.RequestCancel):
                    self._take_request(operation)
                commands.append(operation)
        return commands + appends

    def _take_append(self, append: op.Append) -> None:
        live = self._live.get(append.run_id)
        if live is None:
            return  # ended meanwhile; the writer says so
        if live.pending is append:
            live.pending = None
        append.first = live.tail.last + 1
        if append.closing is not None:
            append.blocks = live.blocks.packed()

    def _take_request(self, request: op.RequestCancel) -> None:
        live = self._live.get(request.run_id)
        if live is not None:
            request.first = live.tail.last + 1
            request.blocks = live.blocks.packed()

    def _committed(self, commit: Commit) -> None:
        """On the loop, after the transaction: resolve, publish, and hand over the next group."""
        self._committing = False
        if commit.failure is not None:
            self._failure = commit.failure  # trying again could report as durable what is not
            self._stop(commit.operations)
            return
        if commit.full:
            self._wait_for_space(commit)
            return
        self._full = False
        for operation, result in zip(commit.operations, commit.results, strict=True):
            if isinstance(result, Exception):
                self._refuse(operation, result)
            else:
                self._accept(operation, result)
        if self._on_commit is not None:
            events = sum(len(operation.lines) for operation in commit.operations if isinstance(operation, op.Append))
            self._on_commit(self._loop.time() - self._committed_at, events)
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
        elif isinstance(operation, op.Release):
            self._given_up(operation)
        elif isinstance(operation, op.RequestCancel):
            result = self._cancel_requested(operation, result)
        elif isinstance(operation, op.PutInput):
            self._dispatch.tell(Signal(operation.run_id, "input"))
        operation.settle(result)

    def _refuse(self, operation: op.Operation, error: Exception) -> None:
        if isinstance(operation, op.Claim) and (claimer := self._claiming.pop(operation.run_id, None)) is not None:
            _refuse_claimer(claimer, error)
        operation.refuse(error)

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
        if self._feeds and (feed := self._feeds.get(live.run.owner)) is not None:
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
        live.pending = None  # what the last worker still had to say is fenced, and must not take ours with it
        live.closing = False
        if claimer.future.done():
            self._give_up(claim.run_id, attempt)
            return
        lease = Lease(run_id=claim.run_id, agent=live.run.agent, attempt=attempt, worker=claimer.worker)
        self._dispatch.grant(lease)
        claimer.future.set_result(lease)

    def _cancel_requested(self, request: op.RequestCancel, result: Any) -> Literal["requested", "already", "closed"]:
        live = self._live.get(request.run_id)
        if live is not None and result != "already":
            live.cancel_by = request.by
            if isinstance(result, op.Cancelled):
                self._publish(live, [request.event], [request.line], result.block)
                self._end(live, "cancelled")
            else:
                self._dispatch.tell(Signal(live.run.id, "cancel"))
        if isinstance(result, op.Cancelled):
            return "requested"
        answer: Literal["requested", "already", "closed"] = result
        return answer

    def _wait_for_space(self, commit: Commit) -> None:
        """New runs fail with `StorageFull`; everything else waits, and is tried again until there is space."""
        if self._closing:
            self._stop(commit.operations)
            return
        self._full = True
        for operation in commit.operations:
            if operation.retry_when_full:
                self._again.append(operation)
            else:
                self._refuse(operation, StorageFull(retry_after=5))
        if not self._again:  # else nothing would notice that there is space again
            probe = self._index_operation()
            probe.future = self._loop.create_future()
            self._again.append(probe)
        self._schedule()

    def _stop(self, operations: Sequence[op.Operation] = ()) -> None:
        """Nothing is written from here on: refuse `operations`, all that waits, and those who wait for a run."""
        for operation in [*operations, *self._again, *self._waiting]:
            self._refuse(operation, StorageFailed())
        self._again, self._waiting = [], []
        while (claimer := self._dispatch.next_claimer()) is not None:
            _refuse_claimer(claimer, StorageFailed())

    # the queue

    def _match(self) -> None:
        if self._closing or self._failure is not None:
            return
        for run_id, claimer in self._dispatch.pairs():
            self._submit_claim(run_id, claimer)

    def _give_up(self, run_id: str, attempt: int) -> "asyncio.Future[Any]":
        """Put a run that no worker has any more into the queue, once that is committed."""
        return self._submit(op.Release(self._live[run_id].no, run_id, attempt))

    def _given_up(self, release: op.Release) -> None:
        live = self._live.get(release.run_id)
        if live is not None and live.attempt == release.attempt:
            live.state = "queued"
            self._dispatch.enqueue(release.run_id)
            self._match()

    def _watch_leases(self) -> None:
        for lease in self._dispatch.take_expired():
            self._give_up(lease.run_id, lease.attempt)

    def _write_index(self) -> None:
        if self._live and not self._full:
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


def _refuse_claimer(claimer: Claimer, error: Exception) -> None:
    if not claimer.future.done():
        claimer.future.set_exception(error)


def _open_run(no: int, head: Head, blocks: BlockList) -> LiveRun:
    live = LiveRun(no, head.run, head=head.offset if blocks else 0, blocks=blocks)
    live.attempt = head.attempt
    live.cancel_by = head.cancel_by
    return live


def _add_blocks(db: sqlite3.Connection, indexed: int, runs: dict[int, LiveRun]) -> None:
    """Add the blocks that were committed after the last `Index`."""
    rows = db.execute("SELECT id, run, first, last, length(body) FROM blocks WHERE id > ? ORDER BY id", (indexed,))
    for block_id, no, first, last, size in rows:
        live = runs.get(no)
        if live is None:
            continue
        if first != live.tail.last + 1 or last < first:
            live.damaged = True
            continue
        live.blocks.add(block_id, first, size)
        live.tail.last = last


def _settle_open_runs(db: sqlite3.Connection, damaged: Sequence[int]) -> None:
    """No worker has any of them. A damaged one is closed one event later than it is known to be, so that whoever
    reads it is told; nobody could go on with it."""
    try:
        db.execute("UPDATE runs SET state = 'queued' WHERE ended IS NULL AND state = 'running'")
        db.executemany(
            "UPDATE runs SET state = 'failed', ended = ?, head = head + 1 WHERE no = ?",
            [(time.time(), no) for no in damaged],
        )
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
            raise  # on a full disk the old state does little harm


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
