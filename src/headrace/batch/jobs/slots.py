"""What all jobs may do at the same time, shared fairly between callers.

Not thread-safe: for one event loop.
"""

import asyncio
from collections import Counter, deque

from headrace.identity import Owner


class Slots:
    """A free one goes to the waiting owner who holds the fewest; among equals, to who has waited longest."""

    def __init__(self, total: int) -> None:
        self._free = total
        self._held: Counter[Owner] = Counter()
        self._waiting: dict[Owner, deque[asyncio.Future[None]]] = {}
        """In the order in which owners began to wait."""

    async def acquire(self, owner: Owner) -> None:
        if self._free and not self._waiting:
            self._take(owner)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(owner)
            else:
                self._forget(owner, turn)
            raise

    def release(self, owner: Owner) -> None:
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._free += 1
        self._hand_out()

    def _take(self, owner: Owner) -> None:
        self._free -= 1
        self._held[owner] += 1

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            owner = min(self._waiting, key=self._held.__getitem__)
            turns = self._waiting.pop(owner)
            turn = turns.popleft()
            if turns:
                self._waiting[owner] = turns  # at the end of the line
            if not turn.done():
                self._take(owner)
                turn.set_result(None)

    def _forget(self, owner: Owner, turn: "asyncio.Future[None]") -> None:
        turns = self._waiting.get(owner)
        if turns is None or turn not in turns:
            return
        turns.remove(turn)
        if not turns:
            del self._waiting[owner]
