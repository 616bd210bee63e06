"""What an append gives back: to be awaited by who wants to know, free of charge for who does not."""

import asyncio
from collections.abc import Generator
from typing import Any


class Receipt:
    """Settled once, with the offset of the last event or with why nothing of it is in the log.

    A future is made only when somebody awaits: a hot path appends for every event and awaits the last receipt only.
    """

    __slots__ = ("_waiter", "error", "offset")

    def __init__(self) -> None:
        self.offset = 0
        """Of the last event, once it is committed."""
        self.error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def done(self) -> bool:
        return self.offset > 0 or self.error is not None

    def settle(self, offset: int) -> None:
        self.offset = offset
        self._wake()

    def refuse(self, error: Exception) -> None:
        self.error = error
        self._wake()

    def __await__(self) -> Generator[Any, None, int]:
        while not self.done():
            if self._waiter is None or self._waiter.done():
                self._waiter = asyncio.get_running_loop().create_future()
            yield from asyncio.shield(self._waiter)
        if self.error is not None:
            raise self.error
        return self.offset

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def refused(error: Exception) -> Receipt:
    receipt = Receipt()
    receipt.refuse(error)
    return receipt


def settled(offset: int) -> Receipt:
    receipt = Receipt()
    receipt.offset = offset
    return receipt
