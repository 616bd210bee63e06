"""What people send to a run while a worker has it."""

import asyncio

from headrace.ports import Input, RunLog


class RunInbox:
    """An `Inbox` over the log, for one attempt at a run. `wake` says that something may have come."""

    def __init__(self, log: RunLog, run_id: str) -> None:
        self._log = log
        self._run_id = run_id
        self._news = asyncio.Event()

    def wake(self) -> None:
        self._news.set()

    async def answer(self, request_id: str) -> Input:
        while True:
            self._news.clear()  # before the look: what comes in between is not missed
            if (found := await self._log.find_input(self._run_id, request_id)) is not None:
                return found
            await self._news.wait()

    async def decide(self, input: Input) -> Input:
        return await self._log.put_input(self._run_id, input)
