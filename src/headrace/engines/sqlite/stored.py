"""How blocks look as bytes in the file."""

import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import msgspec

from headrace.errors import LogCorrupt
from headrace.events import decode
from headrace.ports import Block


def checksum(run: int, first: int, body: bytes) -> int:
    """CRC-32 of a block's content, begun with its place: a block that was damaged, or stands in another's place, is
    noticed."""
    return zlib.crc32(body, (run * 0x9E3779B1 + first) & 0xFFFFFFFF)


def load_block(run: int, first: int, last: int, stored_checksum: int, body: bytes) -> Block:
    """Raises `LogCorrupt` where anything about the row is not as it was written."""
    if checksum(run, first, body) != stored_checksum:
        raise LogCorrupt
    lines = body.split(b"\n")
    if len(lines) != last - first + 1:
        raise LogCorrupt
    try:
        return Block(first, tuple(map(decode, lines)), lines)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LogCorrupt from error


def load_consecutive(run: int, after: int, rows: Sequence[tuple[int, int, int, int, bytes]]) -> list[Block]:
    """The events of `run` right after `after`, from rows of (run, first, last, checksum, body).

    Raises `LogCorrupt` where the rows are not exactly that: a damaged list of blocks could name those of others.
    """
    if any(row[0] != run for row in rows):
        raise LogCorrupt
    blocks = [load_block(*row) for row in rows]
    blocks[0] = blocks[0].after(after)
    for block in blocks:
        if block.first != after + 1 or not block.events:
            raise LogCorrupt
        after = block.last
    return blocks


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

    def ids_after(self, offset: int, limit: int) -> list[int]:
        """Row ids of the first `limit` blocks that hold events after `offset`."""
        start = max(bisect_right(self._firsts, offset + 1) - 1, 0)
        return self._ids[start : start + limit].tolist()

    def pages_after(self, offset: int, size: int) -> Iterator[list[int]]:
        """All row ids after `offset`, `size` at a time."""
        ids = self.ids_after(offset, len(self._ids))
        for start in range(0, len(ids), size):
            yield ids[start : start + size]

    def packed(self) -> bytes:
        return (self._ids + self._firsts + array("q", [self.bytes])).tobytes()
