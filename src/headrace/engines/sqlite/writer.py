"""The thread that writes: it takes all operations that wait and commits them in one transaction (group commit)."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeGuard

from headrace.engines.sqlite.operations import ROWS_AT_A_TIME, Append, Ids, Operation, Transaction, append_all
from headrace.errors import HeadraceError, StorageFull

_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}


@dataclass(frozen=True)
class Commit:
    """What became of a group: one result (a value or an exception) for each operation, or none committed."""

    operations: Sequence[Operation]
    results: Sequence[Any] = ()
    full: bool = False
    """The disk had no space; nothing was committed, all may be tried again."""
    failure: Exception | None = None
    """The disk failed; what is in the file is not known, nothing may be tried again."""


class Writer:
    """Owns the writing connection. `submit` hands over one group, its appends last; `done` is called on the loop when
    it is durable."""

    def __init__(self, db: sqlite3.Connection, ids: Ids, done: Callable[[Commit], None]) -> None:
        self._tx = Transaction(db, ids)
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._groups: SimpleQueue[Sequence[Operation] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="headrace-log-writer", daemon=True)
        self._thread.start()

    def submit(self, group: Sequence[Operation]) -> None:
        self._groups.put(group)

    async def close(self) -> None:
        """Commit what was submitted, then close the file: with the log copied into it, where no reader is left."""
        self._groups.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while (group := self._groups.get()) is not None:
            commit = self._commit(group)
            self._loop.call_soon_threadsafe(self._done, commit)
        self._tx.db.close()

    def _commit(self, group: Sequence[Operation]) -> Commit:
        """One transaction. Where an operation fails for a reason of its own, each is tried alone."""
        db = self._tx.db
        results: Sequence[Any]
        try:
            if _is_one_statement(group):
                results = append_all(self._tx, group)
            else:
                db.execute("BEGIN IMMEDIATE")
                results = self._apply(group)
                db.execute("COMMIT")
        except Exception as error:
            _roll_back(db)
            if getattr(error, "sqlite_errorcode", None) in _FULL:
                return Commit(group, full=True)
            if _is_of_the_disk(error):
                return Commit(group, failure=error)
            return Commit(group, [error]) if len(group) == 1 else self._commit_each(group)
        return Commit(group, results)

    def _commit_each(self, group: Sequence[Operation]) -> Commit:
        results: list[Any] = []
        for operation in group:
            commit = self._commit([operation])
            if commit.failure is not None:
                return Commit(group, failure=commit.failure)
            results.append(StorageFull(retry_after=5) if commit.full else commit.results[0])
        return Commit(group, results)

    def _apply(self, group: Sequence[Operation]) -> list[Any]:
        """Appends are last in a group and applied in bulk: none of them can depend on a command that was not
        acknowledged yet."""
        results: list[Any] = []
        for operation in group:
            if isinstance(operation, Append):
                break
            try:
                results.append(operation.apply(self._tx))
            except HeadraceError as error:
                results.append(error)
        appends = [operation for operation in group[len(results) :] if isinstance(operation, Append)]
        if appends:
            results += append_all(self._tx, appends)
        return results


def _is_one_statement(group: Sequence[Operation]) -> TypeGuard[Sequence[Append]]:
    """Whether the group is a transaction by itself: each further statement would let go of the interpreter lock once
    more, and wait to have it back."""
    return len(group) <= ROWS_AT_A_TIME and all(
        isinstance(operation, Append) and operation.closing is None for operation in group
    )


def _is_of_the_disk(error: Exception) -> bool:
    """Whether the file, rather than what was to be written, is at fault."""
    own = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.InterfaceError)
    return isinstance(error, sqlite3.Error) and not isinstance(error, own)


def _roll_back(db: sqlite3.Connection) -> None:
    try:
        if db.in_transaction:
            db.execute("ROLLBACK")
    except sqlite3.Error:
        pass  # the failure that led here is the one to report
