"""Stored heads and blocks, read by threads that each have a read-only connection of their own."""

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from headrace.engines.sqlite.operations import HEAD_COLUMNS, known_input, known_run, load_head
from headrace.engines.sqlite.schema import open_for_reading
from headrace.engines.sqlite.stored import BlockList, StoredLines, decode_block, load_consecutive, load_lines
from headrace.errors import LogCorrupt, NotFound
from headrace.identity import Owner
from headrace.ports import FeedEntry, Head, Idempotency, Input, RunState

T = TypeVar("T")


class Stored(NamedTuple):
    """An ended run and where its blocks are."""

    no: int
    head: Head
    blocks: BlockList


class FeedPage(NamedTuple):
    entries: list[FeedEntry]
    upto: int
    """The id up to which was looked."""
    floor: int
    """Up to this id blocks may have been trimmed already when the page was read."""


class Reader:
    def __init__(self, path: Path, threads: int = 2) -> None:
        self._path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="headrace-log-reader")

    async def close(self) -> None:
        await asyncio.to_thread(self._pool.shutdown)
        for db in self._connections:
            db.close()

    async def run(self, run_id: str) -> Stored:
        """Raises `NotFound`."""
        rows = await self._query(f"SELECT no, blocks, {HEAD_COLUMNS} FROM runs WHERE id = ?", (run_id,))
        if not rows:
            raise NotFound
        no, packed, *columns = rows[0]
        return Stored(no, load_head(tuple(columns)), BlockList(packed or b""))

    async def known_run(self, owner: Owner, idempotency: Idempotency) -> str | None:
        """See `operations.known_run`."""
        return await self._in_thread(lambda db: known_run(db, owner, idempotency))

    async def input(self, run: int, request_id: str) -> Input | None:
        return await self._in_thread(lambda db: known_input(db, run, request_id))

    async def lines(self, run: int, ids: Sequence[int], after: int) -> list[StoredLines]:
        """The events of a run right after `after`, from the rows with these ids. Raises `LogCorrupt`."""
        return await self._in_thread(lambda db: _load_lines(db, run, ids, after))

    async def feed(self, owner: Owner, after: int, upto: int, limit: int) -> FeedPage:
        """Up to `limit` blocks of the owner's runs with ids in (`after`, `upto`]."""
        return await self._in_thread(lambda db: _load_feed(db, owner, after, upto, limit))

    async def heads(
        self,
        owner: Owner,
        limit: int,
        before: str | None,
        state: RunState | None,
        parent: str | None,
        agent: str | None,
    ) -> list[Head]:
        """Newest first, without those whose record is damaged. Raises `NotFound` where `before` is not a run of the
        owner."""
        below = 2**63 - 1
        if before is not None:
            rows = await self._query(
                "SELECT no FROM runs WHERE id = ? AND tenant = ? AND subject = ?", (before, owner.tenant, owner.subject)
            )
            if not rows:
                raise NotFound
            below = rows[0][0]
        return await self._in_thread(lambda db: _load_heads(db, owner, below, state, limit, parent, agent))

    async def feed_floor(self) -> int:
        rows = await self._query("SELECT feed_floor FROM meta", ())
        return int(rows[0][0])

    async def _query(self, sql: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        return await self._in_thread(lambda db: db.execute(sql, parameters).fetchall())

    async def _in_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: work(self._connection()))
        except sqlite3.DatabaseError as error:
            raise LogCorrupt from error

    def _connection(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = open_for_reading(self._path)
            self._connections.append(db)
        return db


def _load_heads(
    db: sqlite3.Connection,
    owner: Owner,
    below: int,
    state: RunState | None,
    limit: int,
    parent: str | None,
    agent: str | None,
) -> list[Head]:
    conditions = {"tenant = ?": owner.tenant, "subject = ?": owner.subject}
    if parent is not None:  # children are found by their ids, which are in the index that ids have anyway
        conditions |= {"parent = ?": parent, "id > ?": f"{parent}_", "id < ?": f"{parent}`"}
    if agent is not None:
        conditions["agent = ?"] = agent
    if state is not None:
        conditions["state = ?"] = state
    family = "parent IS NULL" if parent is None else "TRUE"
    # Sorted before the records are read.
    page = f"SELECT no FROM runs WHERE {family} AND {' AND '.join(conditions)} AND no < ? ORDER BY no DESC LIMIT ?"
    heads: list[Head] = []
    while True:
        rows = db.execute(
            f"SELECT no, {HEAD_COLUMNS} FROM runs WHERE no IN ({page}) ORDER BY no DESC",
            (*conditions.values(), below, limit),
        ).fetchall()
        for _, *columns in rows:
            with suppress(LogCorrupt):
                heads.append(load_head(tuple(columns)))
        if len(rows) < limit or len(heads) >= limit:  # else some were damaged
            return heads[:limit]
        below = rows[-1][0]


def _load_lines(db: sqlite3.Connection, run: int, ids: Sequence[int], after: int) -> list[StoredLines]:
    rows = db.execute(
        "SELECT b.run, b.first, b.last, b.checksum, b.body FROM json_each(?) j JOIN blocks b ON b.id = j.value"
        " ORDER BY b.id",
        (json.dumps(list(ids)),),
    ).fetchall()
    if len(rows) != len(ids):
        raise LogCorrupt
    return load_consecutive(run, after, rows)


def _load_feed(db: sqlite3.Connection, owner: Owner, after: int, upto: int, limit: int) -> FeedPage:
    rows = db.execute(
        "SELECT b.id, r.id, b.run, b.first, b.last, b.checksum, b.body FROM blocks b JOIN runs r ON r.no = b.run"
        " WHERE b.id > ? AND b.id <= ? AND r.tenant = ? AND r.subject = ? ORDER BY b.id LIMIT ?",
        (after, upto, owner.tenant, owner.subject, limit),
    ).fetchall()
    floor = db.execute("SELECT feed_floor FROM meta").fetchone()[0]  # last: what the rows lack is below it by now
    entries = [FeedEntry(block_id, run_id, decode_block(*load_lines(*rest))) for block_id, run_id, *rest in rows]
    return FeedPage(entries, entries[-1].sequence if len(entries) == limit else upto, floor)
