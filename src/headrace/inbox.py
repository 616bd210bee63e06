"""What people send to a run while a worker has it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace.ports import Input, RunLog


class RunInbox:
    """An `Inbox` over the log, for one attempt at a run. `wake` says that something may have come.

    `on_waiting` is told when somebody is waited for, and when nobody is any more; `on_waited` then, for how many
    seconds somebody was.
    """

    def __init__(
        self,
        log: RunLog,
        run_id: str,
        *,
        on_waiting: Callable[[bool], object] | None = None,
        on_waited: Callable[[float], object] | None = None,
    ) -> None:
        self._log = log
        self._run_id = run_id
        self._on_waiting = on_waiting
        self._on_waited = on_waited
        self._news = asyncio.Event()
        self._waits = 0
        self._since = 0.0

    @property
    def waiting(self) -> bool:
        """Somebody is waited for."""
        return self._waits > 0

    def wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def answer(self, request_id: str) -> Input:
        with self._wait():
            while True:
                news = self._news  # of before the look: what comes in between is not missed
                if (found := await self._log.find_input(self._run_id, request_id)) is not None:
                    return found
                await news.wait()

    async def decide(self, input: Input) -> Input:
        return await self._log.put_input(self._run_id, input)

    @contextmanager
    def _wait(self) -> Iterator[None]:
        """While several are waited for, the time passes once."""
        clock = asyncio.get_running_loop().time
        if not self._waits:
            self._since = clock()
            if self._on_waiting is not None:
                self._on_waiting(True)
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1
            if not self._waits:
                self._tell_end(clock() - self._since)

    def _tell_end(self, seconds: float) -> None:
        if self._on_waiting is not None:
            self._on_waiting(False)
        if self._on_waited is not None:
            self._on_waited(seconds)
