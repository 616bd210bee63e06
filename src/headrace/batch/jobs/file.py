"""The operations of a job: one file in the data directory, a line for each, written once and then only read."""

import asyncio
import errno
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import msgspec

from headrace.errors import LogCorrupt, StorageFull
from headrace.ports import StartCommand

_LINES_AT_A_TIME = 256
_BYTES_AT_A_TIME = 1 << 18
_SUFFIX = ".jsonl"
_NEW = ".new"
_OURS = re.compile(r"(run_[0-9a-z]{26})\.(?:jsonl|new)")
"""Names of our files: a data directory may hold somebody's own files as well."""

Kind: TypeAlias = Literal["chat", "run", "tool"]
"""Which single call the operation is like: its result looks like the answer to that one."""


class Operation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line, as it was taken: what is to be started, not how it was asked for."""

    id: str
    """The caller's own name for it, unique in its job."""
    kind: Kind
    agent: str
    input: dict[str, Any]
    conversation_id: str | None = None

    def command(self) -> StartCommand:
        return StartCommand(agent=self.agent, input=self.input, conversation_id=self.conversation_id)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Operation)


class JobFiles:
    """One for each job, named after its run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, run_id: str) -> "NewJobFile":
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return NewJobFile(self._path(run_id))

    async def read(self, run_id: str) -> AsyncGenerator[Sequence[tuple[int, Operation]], None]:
        """All operations with their line numbers, 1, 2, 3 ..., some at a time. Raises `FileNotFoundError`."""
        with self._path(run_id).open("rb") as file:
            number = 1
            while operations := await asyncio.to_thread(_read_some, file):
                yield list(enumerate(operations, number))
                number += len(operations)

    async def delete(self, run_id: str) -> None:
        with suppress(FileNotFoundError):
            await asyncio.to_thread(os.unlink, self._path(run_id))

    async def delete_orphans(self, is_known: Callable[[str], Awaitable[bool]]) -> None:
        """Files whose run never came to be, or is gone. Only while no job is being taken."""
        if not self._folder.is_dir():
            return
        for path in await asyncio.to_thread(lambda: sorted(self._folder.iterdir())):
            ours = _OURS.fullmatch(path.name)
            if ours is not None and (path.suffix == _NEW or not await _may_be_known(is_known, ours[1])):
                with suppress(OSError):
                    await asyncio.to_thread(path.unlink)

    def _path(self, run_id: str) -> Path:
        return self._folder / f"{run_id}{_SUFFIX}"


class NewJobFile:
    """Nobody sees it before it is `kept`, which comes after the last byte is on disk. Raises `StorageFull`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _full_disk_told():
            self._file = path.with_suffix(_NEW).open("wb")
        self.count = 0

    def write(self, operation: Operation) -> None:
        with _full_disk_told():
            self._file.write(_encoder.encode(operation) + b"\n")
        self.count += 1

    async def keep(self) -> None:
        with _full_disk_told():
            await asyncio.to_thread(self._keep)

    def discard(self) -> None:
        """Where it was not kept. Any number of times."""
        with suppress(OSError):  # what is still to be written may find the disk full
            self._file.close()
        with suppress(FileNotFoundError):
            os.unlink(self._file.name)

    def _keep(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._file.name, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _full_disk_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(retry_after=5) from error
        raise


async def _may_be_known(is_known: Callable[[str], Awaitable[bool]], run_id: str) -> bool:
    try:
        return await is_known(run_id)
    except LogCorrupt:  # nobody can tell, so its file stays
        return True


def _read_some(file: IO[bytes]) -> list[Operation]:
    lines: list[Operation] = []
    room = _BYTES_AT_A_TIME
    while len(lines) < _LINES_AT_A_TIME and room > 0 and (line := file.readline()):
        lines.append(_decoder.decode(line))
        room -= len(line)
    return lines
