"""How blocks look as bytes in the file."""

import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from headrace.errors import LogCorrupt
from headrace.events import decode
from headrace.ports import Block


def checksum(run: int, first: int, body: bytes) -> int:
    """CRC-32 of a block's content, begun with its place: a block that was damaged, or stands in another's place, is
    noticed."""
    return zlib.crc32(body, (run * 0x9E3779B1 + first) & 0xFFFFFFFF)


class StoredLines(NamedTuple):
    """Consecutive events as they were stored and found whole, not yet decoded."""

    first: int
    lines: Sequence[bytes]

    @property
    def last(self) -> int:
        return self.first + len(self.lines) - 1

    def blocks(self, events: int = 128) -> Iterator[Block]:
        """Decoded a few at a time, so that a reader who stops holds little. Raises `LogCorrupt`."""
        for start in range(0, len(self.lines), events):
            yield decode_block(self.first + start, self.lines[start : start + events])


def load_lines(run: int, first: int, last: int, stored_checksum: int, body: bytes) -> StoredLines:
    """Raises `LogCorrupt` where anything about the row is not as it was written, its types included."""
    if not isinstance(body, bytes) or not all(isinstance(number, int) for number in (run, first, last)):
        raise LogCorrupt
    if checksum(run, first, body) != stored_checksum:
        raise LogCorrupt
    lines = body.split(b"\n")
    if len(lines) != last - first + 1:
        raise LogCorrupt
    return StoredLines(first, lines)


def decode_block(first: int, lines: Sequence[bytes]) -> Block:
    try:
        return Block(first, tuple(map(decode, lines)), lines)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LogCorrupt from error


def load_consecutive(run: int, after: int, rows: Sequence[tuple[int, int, int, int, bytes]]) -> list[StoredLines]:
    """The events of `run` right after `after`, from rows of (run, first, last, checksum, body).

    Raises `LogCorrupt` where the rows are not exactly that: a damaged list of blocks could name those of others.
    """
    if not rows or any(row[0] != run for row in rows):
        raise LogCorrupt
    found = [load_lines(*row) for row in rows]
    head = found[0]
    found[0] = StoredLines(max(head.first, after + 1), head.lines[max(0, after + 1 - head.first) :])
    for stored in found:
        if stored.first != after + 1 or not stored.lines:
            raise LogCorrupt
        after = stored.last
    return found


class BlockList:
    """Which blocks hold a run's events: for each its row id, the offset of its first event and its size in bytes."""

    __slots__ = ("_firsts", "_ids", "bytes")

    def __init__(self, packed: bytes = b"") -> None:
        """Raises `LogCorrupt` where `packed` cannot be such a list. Whether it is the right one, the blocks tell."""
        if packed and len(packed) % 16 != 8:
            raise LogCorrupt
        numbers = array("q", packed)
        self.bytes = numbers.pop() if numbers else 0
        half = len(numbers) // 2
        self._ids = numbers[:half]
        self._firsts = numbers[half:]

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Sequence[int]:
        return self._ids

    def add(self, block_id: int, first: int, size: int) -> None:
        self._ids.append(block_id)
        self._firsts.append(first)
        self.bytes += size

    def ids_after(self, offset: int, size: int) -> list[int]:
        """Row ids of the next blocks with events after `offset`: about `size` bytes by the average of the run's events,
        one block at least, none where there is no block."""
        if not self._ids:
            return []
        events = max(1, size * self._firsts[-1] // max(1, self.bytes))
        start = max(bisect_right(self._firsts, offset + 1) - 1, 0)
        end = bisect_left(self._firsts, offset + 1 + events, start + 1)
        return self._ids[start:end].tolist()

    def packed(self) -> bytes:
        return (self._ids + self._firsts + array("q", [self.bytes])).tobytes()
