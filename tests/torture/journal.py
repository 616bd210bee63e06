"""What clients saw, one record per line, written as it happened and read by the checker afterwards."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

import msgspec


class Reader(NamedTuple):
    """Who reads which run in which view. One reader may use many connections, one after the other."""

    client: str
    run: str
    view: str


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag="accepted"):
    """The server named the run that `key` had started."""

    client: str
    key: str
    run: str


class Acked(msgspec.Struct, frozen=True, array_like=True, tag="acked"):
    """The server said so much that an event with these fields must be in the log."""

    client: str
    run: str
    fields: dict[str, Any]


class Resumed(msgspec.Struct, frozen=True, array_like=True, tag="resumed"):
    """A connection was opened; `after` is the position it was asked to go on after, None for the beginning."""

    reader: Reader
    after: str | None


class Delivered(msgspec.Struct, frozen=True, array_like=True, tag="delivered"):
    """A complete frame. `position` is None where it had none."""

    reader: Reader
    position: str | None
    payload: str


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="ended"):
    """The server ended the stream in order after a terminal frame, or said that nothing is left."""

    reader: Reader


Record: TypeAlias = Accepted | Acked | Resumed | Delivered | Ended

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


class Journal:
    """A file that grows by `write`. Whoever waits for `reached` is woken once so many records were written."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._file = path.open("wb")
        self._path = path
        self._waiting: tuple[int, asyncio.Event] | None = None

    def write(self, record: Record) -> None:
        self._file.write(_encode(record) + b"\n")
        self.count += 1
        if self._waiting is not None and self.count >= self._waiting[0]:
            self._waiting[1].set()

    async def reached(self, count: int) -> None:
        """For one waiter at a time."""
        if self.count < count:
            self._waiting = count, asyncio.Event()
            await self._waiting[1].wait()
            self._waiting = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def records(self) -> Iterator[Record]:
        """All of them, in the order in which they were written."""
        self._file.flush()
        with self._path.open("rb") as lines:
            for line in lines:
                yield _decode(line)
