"""When the pieces of an answer are due."""

import asyncio


class Pace:
    """A schedule that starts now: piece `n` is due `first + n * interval` seconds later, however late another was.

    Whoever was late gets what became due meanwhile in one go, as from a socket that was not read for a while.
    """

    def __init__(self, interval: float, *, first: float = 0.0) -> None:
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time() + first

    async def reach(self, piece: int) -> int:
        """Wait until `piece` is due; gives the number of pieces that are due by then, without an end if there is no
        interval. Always lets others run."""
        await asyncio.sleep(max(0.0, self._start + piece * self._interval - self._loop.time()))
        if self._interval <= 0:
            return 1 << 62
        return max(piece, int((self._loop.time() - self._start) / self._interval)) + 1
