"""How often something is tried again, and when to give up."""

import asyncio
import random

from headrace.errors import HeadraceError

_FIRST = 0.1
_MOST = 10.0
_TEMPORARY = frozenset({408, 429, 502, 503, 504})


class Patience:
    """Counts what fails in a row. The first wait is up to 0.1 s, each later one up to twice as long, up to 10 s; where
    in that time is left to chance, so that many clients do not come back in step."""

    def __init__(self, seconds: float) -> None:
        self.failures = 0
        self._seconds = seconds
        self._since = 0.0
        """When the first failure of the row was."""

    def progressed(self) -> None:
        self.failures = 0

    async def wait(self, error: HeadraceError, *, at_least: float = 0.0) -> None:
        """Until it may be tried again. Raises `error` where trying again is of no use, or patience is over.

        `at_least` are the seconds that the server asked for; `error.retry_after` counts as well.
        """
        if not (error.retryable and error.status in _TEMPORARY):
            raise error
        now = asyncio.get_running_loop().time()
        if not self.failures:
            self._since = now
        longest = min(_MOST, _FIRST * 2**self.failures)
        pause = max(at_least, error.retry_after or 0.0) + random.uniform(0, longest)  # noqa: S311  spreads clients
        if now + pause - self._since > self._seconds:
            raise error
        self.failures += 1
        await asyncio.sleep(pause)
