"""The newest committed blocks, kept in memory so that a follower costs no query: `Tail` of one live log, `FeedTail` of
everything of one owner."""

import asyncio
from bisect import bisect_right
from operator import attrgetter

from headrace.ports import Block, FeedEntry, Subscribed, Subscriber

_first = attrgetter("first")
_sequence = attrgetter("sequence")


class Waiters:
    """Those who wait for something new. `wake` lets all of them look again."""

    __slots__ = ("_futures",)

    def __init__(self) -> None:
        self._futures: dict[asyncio.Future[None], None] = {}

    def wake(self) -> None:
        futures, self._futures = self._futures, {}
        for future in futures:
            if not future.done():
                future.set_result(None)

    async def wait(self) -> None:
        """Until the next `wake`."""
        future = asyncio.get_running_loop().create_future()
        self._futures[future] = None
        try:
            await future
        finally:
            self._futures.pop(future, None)


class Tail(Waiters):
    """Blocks in order without holes, from `first` to `last`; older ones are dropped beyond `max_bytes`.

    A follower asks `after(offset)` and, where that is empty and the log is not `closed`, awaits `wait()`: no task
    switch lies between the two, so nothing is missed. Or, once it is at the end, it subscribes. Followers share the
    very same blocks.
    """

    __slots__ = ("_blocks", "_bytes", "_max_bytes", "_subscribers", "closed", "last")

    def __init__(self, last: int = 0, *, max_bytes: int | None = None) -> None:
        super().__init__()
        self.last = last
        self.closed = False
        self._blocks: list[Block] = []
        self._bytes = 0
        self._max_bytes = max_bytes
        self._subscribers: dict[Subscriber, None] = {}

    @property
    def first(self) -> int:
        """Offset of the first event kept here; `last + 1` when there is none."""
        return self._blocks[0].first if self._blocks else self.last + 1

    def publish(self, block: Block, size: int) -> None:
        """Add a committed block of `size` bytes and hand it to the subscribers. The caller wakes those who wait, once
        it has added all it has."""
        self._blocks.append(block)
        self.last = block.last
        self._bytes += size
        if self._max_bytes is not None and self._bytes > self._max_bytes:
            self._drop_oldest_half()
        for subscriber in tuple(self._subscribers):
            if not subscriber.deliver(block):
                self._subscribers.pop(subscriber, None)

    def close(self) -> None:
        self.closed = True
        self.wake()
        subscribers, self._subscribers = self._subscribers, {}
        for subscriber in subscribers:
            subscriber.closed()

    def subscribe(self, after: int, subscriber: Subscriber) -> Subscribed:
        if after < self.last:
            return "behind"
        if self.closed:
            return "closed"
        self._subscribers[subscriber] = None
        return "subscribed"

    def unsubscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.pop(subscriber, None)

    def after(self, offset: int) -> list[Block]:
        """The blocks that hold the events after `offset`, which must not lie before `first - 1`."""
        if offset >= self.last:
            return []
        newest = self._blocks[-1]
        if newest.first == offset + 1:
            return [newest]
        start = bisect_right(self._blocks, offset + 1, key=_first) - 1
        return [self._blocks[start].after(offset), *self._blocks[start + 1 :]]

    def _drop_oldest_half(self) -> None:
        """Halving, not one at a time, keeps the cost per block constant. The newest block always stays."""
        drop = len(self._blocks) // 2
        self._bytes -= sum(len(line) for block in self._blocks[:drop] for line in block.encoded)
        del self._blocks[:drop]


class FeedTail(Waiters):
    """The newest `max_entries` of one owner's feed, kept while anybody reads it. Holds everything after `start`."""

    __slots__ = ("_entries", "_max_entries", "readers", "start")

    def __init__(self, start: int, *, max_entries: int = 512) -> None:
        super().__init__()
        self.start = start
        self.readers = 0
        self._entries: list[FeedEntry] = []
        self._max_entries = max_entries

    def add(self, entry: FeedEntry) -> None:
        self._entries.append(entry)
        if len(self._entries) > self._max_entries:
            half = len(self._entries) // 2
            self.start = self._entries[half - 1].sequence
            del self._entries[:half]
        self.wake()

    def after(self, sequence: int) -> list[FeedEntry]:
        """The entries after `sequence`, which must not lie before `start`."""
        return self._entries[bisect_right(self._entries, sequence, key=_sequence) :]
