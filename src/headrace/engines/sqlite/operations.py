"""What a transaction can hold, one class each.

`apply` runs in the writer thread inside the transaction and gives a result, or raises a `HeadraceError` *before it has
written anything*: then this operation fails alone and the others of the transaction are committed.
"""

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from headrace.engines.receipt import Receipt
from headrace.engines.sqlite.stored import BlockList, checksum
from headrace.errors import Fenced, IdempotencyMismatch, LogClosed, LogCorrupt, NotFound, RunActive
from headrace.events import Event, RunCancelled, encode
from headrace.identity import Owner
from headrace.ports import Head, Idempotency, Input, Run, RunState


class Ids:
    """The row ids that the writer gives out; only it inserts."""

    def __init__(self, *, run: int, block: int) -> None:
        self._run = run
        self._block = block

    def next_run(self) -> int:
        self._run += 1
        return self._run

    def next_block(self) -> int:
        self._block += 1
        return self._block


class Transaction(NamedTuple):
    db: sqlite3.Connection
    ids: Ids


class NewBlock(NamedTuple):
    run: int
    first: int
    lines: Sequence[bytes]

    @property
    def last(self) -> int:
        return self.first + len(self.lines) - 1


_INSERT = "INSERT INTO blocks (id, run, first, last, checksum, body) VALUES "
ROWS_AT_A_TIME = 64


def insert_blocks(tx: Transaction, blocks: Sequence[NewBlock]) -> list[int]:
    """Insert many blocks by few statements: each statement is a chance to lose the interpreter lock for long."""
    ids = []
    for start in range(0, len(blocks), ROWS_AT_A_TIME):
        some = blocks[start : start + ROWS_AT_A_TIME]
        values: list[object] = []
        for block in some:
            body = b"\n".join(block.lines)
            ids.append(tx.ids.next_block())
            values += (ids[-1], block.run, block.first, block.last, checksum(block.run, block.first, body), body)
        tx.db.execute(_INSERT + ",".join(["(?,?,?,?,?,?)"] * len(some)), values)
    return ids


class Operation:
    """One thing to commit. `future` is resolved on the event loop once the transaction is durable."""

    retry_when_full = True
    """Whether it waits for space on a full disk, rather than fails with `StorageFull`."""
    future: "asyncio.Future[Any]"
    """Set when it is submitted."""

    def settle(self, result: Any) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def refuse(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # nobody may be waiting for it any more, which is no reason to warn

    def apply(self, tx: Transaction) -> Any:
        raise NotImplementedError


class NewRun(NamedTuple):
    no: int
    block: int


class Known(NamedTuple):
    """The run that an earlier request with the same Idempotency-Key, or with the same id, had made."""

    run_id: str


class Create(Operation):
    retry_when_full = False

    def __init__(self, run: Run, first: Event, idempotency: Idempotency | None) -> None:
        self.run = run
        self.record = msgspec.json.encode(run)  # here, since what cannot be encoded is to fail its caller alone
        self.first = first
        self.line = encode(first)
        self.idempotency = idempotency

    def apply(self, tx: Transaction) -> NewRun | Known:
        owner = self.run.owner
        if self.idempotency is not None and (known := known_run(tx.db, owner, self.idempotency)) is not None:
            return Known(known)
        no = tx.ids.next_run()
        inserted = tx.db.execute(
            "INSERT INTO runs (no, id, tenant, subject, state, head, parent, agent, record)"
            " VALUES (?, ?, ?, ?, 'queued', 1, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            (no, self.run.id, owner.tenant, owner.subject, self.run.parent_run_id, self.run.agent, self.record),
        ).rowcount
        if not inserted:
            return Known(self.run.id)
        if self.idempotency is not None:
            tx.db.execute(
                "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?)",
                (owner.tenant, owner.subject, self.idempotency.key, self.idempotency.fingerprint, no),
            )
        return NewRun(no, insert_blocks(tx, [NewBlock(no, 1, [self.line])])[0])


class Closing(NamedTuple):
    """What is written to a run's row together with its terminal event."""

    state: RunState
    ended: float


class Append(Receipt, Operation):
    """Events of one run, growing until the writer takes it, and the receipt for them. Applied in bulk, see
    `append_all`."""

    __slots__ = ("attempt", "blocks", "closing", "events", "first", "lines", "run", "run_id")

    def __init__(self, run: int, run_id: str, attempt: int) -> None:
        super().__init__()
        self.run = run
        self.run_id = run_id
        self.attempt = attempt
        self.first = 0
        """Set when it is handed to the writer."""
        self.events: list[Event] = []
        self.lines: list[bytes] = []
        self.closing: Closing | None = None
        self.blocks = b""
        """The run's blocks so far, packed, where this closes it."""

    def close_row(self, tx: Transaction, block_id: int) -> None:
        assert self.closing is not None
        blocks = BlockList(self.blocks)
        blocks.add(block_id, self.first, _size(self.lines))
        _close_run(tx, self.run, self.closing, self.first + len(self.lines) - 1, blocks)


_APPEND = (
    "INSERT INTO blocks (id, run, first, last, checksum, body)"
    " SELECT column1, column2, column3, column4, column5, column6 FROM (VALUES {}) CROSS JOIN runs"
    " WHERE no = column2 AND attempt = column7 AND ended IS NULL"
)
"""Inserts blocks of those runs only whose attempt is still the writer's and whose log is open: one statement checks and
writes, so that a group of appends needs no other."""


def append_all(tx: Transaction, appends: Sequence[Append]) -> list[int | Fenced | LogClosed]:
    """Insert the blocks of every append that its run still takes. Gives block ids, or why not."""
    results: list[int | Fenced | LogClosed] = []
    for start in range(0, len(appends), ROWS_AT_A_TIME):
        some = appends[start : start + ROWS_AT_A_TIME]
        ids: list[int | Fenced | LogClosed] = [tx.ids.next_block() for _ in some]
        values: list[object] = []
        for block_id, append in zip(ids, some, strict=True):
            body = b"\n".join(append.lines)
            run, first = append.run, append.first
            last = first + len(append.lines) - 1
            values += (block_id, run, first, last, checksum(run, first, body), body, append.attempt)
        inserted = tx.db.execute(_APPEND.format(",".join(["(?,?,?,?,?,?,?)"] * len(some))), values).rowcount
        results += ids if inserted == len(some) else _sort_out(tx, some, ids)
    for append, result in zip(appends, results, strict=True):
        if append.closing is not None and isinstance(result, int):
            append.close_row(tx, result)
    return results


def _sort_out(
    tx: Transaction, appends: Sequence[Append], ids: Sequence[int | Fenced | LogClosed]
) -> list[int | Fenced | LogClosed]:
    """Some were not inserted: which, and why."""
    present = {row[0] for row in tx.db.execute("SELECT id FROM blocks WHERE id >= ?", (ids[0],))}
    results: list[int | Fenced | LogClosed] = []
    for append, block_id in zip(appends, ids, strict=True):
        if block_id in present:
            results.append(block_id)
        else:
            row = tx.db.execute("SELECT ended FROM runs WHERE no = ?", (append.run,)).fetchone()
            results.append(Fenced() if row is not None and row[0] is None else LogClosed())
    return results


class Claim(Operation):
    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def apply(self, tx: Transaction) -> int | None:
        """The new attempt number, or None where the run has ended or was never made."""
        row = tx.db.execute(
            "UPDATE runs SET attempt = attempt + 1, state = 'running' WHERE id = ? AND ended IS NULL RETURNING attempt",
            (self.run_id,),
        ).fetchone()
        return row[0] if row else None


class Release(Operation):
    """A run whose worker gave it back, or fell silent, is nobody's until the next claim."""

    def __init__(self, run: int, run_id: str, attempt: int) -> None:
        self.run = run
        self.run_id = run_id
        self.attempt = attempt

    def apply(self, tx: Transaction) -> None:
        tx.db.execute(
            "UPDATE runs SET state = 'queued' WHERE no = ? AND attempt = ? AND ended IS NULL", (self.run, self.attempt)
        )


class Cancelled(NamedTuple):
    """A run that no worker had was closed at once."""

    block: int


class RequestCancel(Operation):
    def __init__(self, run: int, run_id: str, by: str, *, at_once: bool) -> None:
        self.run = run
        self.run_id = run_id
        self.by = by
        self.at_once = at_once
        self.event = RunCancelled(reason="requested", by=by)
        self.line = encode(self.event)
        self.first = 0
        """Set when it is handed to the writer, like `blocks`."""
        self.blocks = b""

    def apply(self, tx: Transaction) -> Literal["requested", "already", "closed"] | Cancelled:
        row = tx.db.execute("SELECT state, ended, cancel_by, attempt FROM runs WHERE no = ?", (self.run,)).fetchone()
        if row is None:
            raise NotFound
        state, ended, cancel_by, attempt = row
        if ended is not None:
            return "closed"
        if cancel_by is not None:
            return "already"
        tx.db.execute("UPDATE runs SET cancel_by = ? WHERE no = ?", (self.by, self.run))
        if state != "queued" or (attempt and not self.at_once):
            return "requested"
        block_id = insert_blocks(tx, [NewBlock(self.run, self.first, [self.line])])[0]
        blocks = BlockList(self.blocks)
        blocks.add(block_id, self.first, len(self.line))
        _close_run(tx, self.run, Closing("cancelled", time.time()), self.first, blocks)
        return Cancelled(block_id)


class PutInput(Operation):
    def __init__(self, run: int, run_id: str, input: Input) -> None:
        self.run = run
        self.run_id = run_id
        self.input = input
        self.value = msgspec.json.encode(input.value)

    def apply(self, tx: Transaction) -> Input:
        """The answer that counts."""
        open_run = tx.db.execute("SELECT 1 FROM runs WHERE no = ? AND ended IS NULL", (self.run,)).fetchone()
        if open_run is None:
            raise LogClosed
        tx.db.execute(
            "INSERT INTO inputs VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (self.run, self.input.request_id, self.value, self.input.by),
        )
        known = known_input(tx.db, self.run, self.input.request_id)
        assert known is not None
        return known


class Delete(Operation):
    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def apply(self, tx: Transaction) -> None:
        row = tx.db.execute("SELECT no, ended, blocks FROM runs WHERE id = ?", (self.run_id,)).fetchone()
        if row is None:
            raise NotFound
        no, ended, blocks = row
        if ended is None:
            raise RunActive
        _delete_blocks(tx, no, _block_ids(blocks))
        tx.db.execute("DELETE FROM idempotency WHERE run = ?", (no,))
        tx.db.execute("DELETE FROM inputs WHERE run = ?", (no,))
        tx.db.execute("DELETE FROM runs WHERE no = ?", (no,))


class Trim(Operation):
    """At most `_RUNS_AT_A_TIME` runs, so that writers never wait long; the engine asks again while there are more."""

    _RUNS_AT_A_TIME = 50

    def __init__(self, ended_before: float | None, max_bytes: int | None) -> None:
        self.ended_before = ended_before
        self.max_bytes = max_bytes

    def apply(self, tx: Transaction) -> int:
        total = tx.db.execute("SELECT coalesce(sum(bytes), 0) FROM runs WHERE bytes > 0").fetchone()[0]
        oldest = tx.db.execute(
            "SELECT no, ended, bytes, blocks FROM runs WHERE bytes > 0 ORDER BY ended LIMIT ?", (self._RUNS_AT_A_TIME,)
        ).fetchall()
        trimmed = 0
        for no, ended, size, packed in oldest:
            too_old = self.ended_before is not None and ended < self.ended_before
            too_much = self.max_bytes is not None and total > self.max_bytes
            if not (too_old or too_much):
                break
            ids = _block_ids(packed)
            _delete_blocks(tx, no, ids)
            tx.db.execute("UPDATE runs SET first = head + 1, bytes = 0, blocks = NULL WHERE no = ?", (no,))
            tx.db.execute("DELETE FROM inputs WHERE run = ?", (no,))
            if ids:
                tx.db.execute("UPDATE meta SET feed_floor = max(feed_floor, min(?, block))", (ids[-1],))
            total -= size
            trimmed += 1
        return trimmed


class LiveBlocks(NamedTuple):
    run: int
    head: int
    packed: bytes


class Index(Operation):
    """Write down the blocks of live runs, so that a start after a crash has little to read through."""

    def __init__(self, live: Sequence[LiveBlocks], indexed: int) -> None:
        self.live = live
        self.indexed = indexed

    def apply(self, tx: Transaction) -> None:
        tx.db.executemany(
            "UPDATE runs SET head = ?, blocks = ? WHERE no = ? AND ended IS NULL",
            [(live.head, live.packed, live.run) for live in self.live],
        )
        tx.db.execute("UPDATE meta SET indexed = max(indexed, ?), block = max(block, ?)", (self.indexed, self.indexed))


def _close_run(tx: Transaction, run: int, closing: Closing, head: int, blocks: BlockList) -> None:
    tx.db.execute(
        "UPDATE runs SET state = ?, ended = ?, head = ?, bytes = ?, blocks = ? WHERE no = ?",
        (closing.state, closing.ended, head, blocks.bytes, blocks.packed(), run),
    )


def _block_ids(packed: bytes | None) -> Sequence[int]:
    """None where the list is damaged: the blocks stay in the file, but can no longer be reached."""
    try:
        return BlockList(packed or b"").ids
    except LogCorrupt:
        return ()


def _delete_blocks(tx: Transaction, run: int, ids: Sequence[int]) -> None:
    """Only blocks of `run`: the list of them may be damaged."""
    if ids:
        last = tx.db.execute("SELECT max(id) FROM blocks WHERE id <= ?", (ids[-1],)).fetchone()[0]
        tx.db.execute("UPDATE meta SET block = max(block, ?)", (last or 0,))
        tx.db.executemany("DELETE FROM blocks WHERE id = ? AND run = ?", [(block_id, run) for block_id in ids])


def _size(lines: Sequence[bytes]) -> int:
    return sum(map(len, lines))


def load_head(row: tuple[Any, ...]) -> Head:
    """A head from the columns of `HEAD_COLUMNS`. Raises `LogCorrupt` where the record is damaged."""
    record, state, head, first, attempt, cancel_by, ended = row
    try:
        run = msgspec.json.decode(record, type=Run)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LogCorrupt from error
    return Head(run=run, state=state, offset=head, first=first, attempt=attempt, cancel_by=cancel_by, ended=ended)


HEAD_COLUMNS = "record, state, head, first, attempt, cancel_by, ended"


def known_run(db: sqlite3.Connection, owner: Owner, idempotency: Idempotency) -> str | None:
    """The id of the run that the owner started with this key. Raises `IdempotencyMismatch`."""
    row = db.execute(
        "SELECT r.id, i.fingerprint FROM idempotency i JOIN runs r ON r.no = i.run"
        " WHERE i.tenant = ? AND i.subject = ? AND i.key = ?",
        (owner.tenant, owner.subject, idempotency.key),
    ).fetchone()
    if row is None:
        return None
    if row[1] != idempotency.fingerprint:
        raise IdempotencyMismatch
    return str(row[0])


def known_input(db: sqlite3.Connection, run: int, request_id: str) -> Input | None:
    row = db.execute("SELECT value, by FROM inputs WHERE run = ? AND request = ?", (run, request_id)).fetchone()
    return Input(request_id, msgspec.json.decode(row[0]), row[1]) if row is not None else None
