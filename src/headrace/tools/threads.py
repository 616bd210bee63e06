"""Plain functions beside the event loop, in threads of their own."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from threading import Thread
from typing import Any


class Threads:
    """So many at a time. One that hangs keeps its place after nobody waits for it any more, and takes none from others:
    the loop's own threads look up names and read files. Daemons, so that none holds up the end of the process."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._places = asyncio.Semaphore(most)

    async def run(self, function: Callable[[], Any]) -> Any:
        """What the function gives, or raises."""
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()
        context = copy_context()

        def work() -> None:
            result, error = None, None
            try:
                result = context.run(function)
            except BaseException as raised:
                error = raised
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._end, ended, result, error)

        Thread(target=work, name=self._name, daemon=True).start()
        return await ended

    def _end(self, ended: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
        self._places.release()
        if ended.done():
            return
        if isinstance(error, Exception):
            ended.set_exception(error)
        elif error is not None:
            ended.set_exception(RuntimeError(f"{type(error).__name__} in a thread"))
        else:
            ended.set_result(result)
