"""The start and the end of the app, over the ASGI lifespan protocol."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from uvicorn._types import ASGI3Application

from headrace.errors import ConfigurationError


class Lifespan:
    """Runs the app's lifespan in a task of its own.

    uvicorn's own hides what the app raised, and cannot be ended while the app starts.
    """

    def __init__(self, app: ASGI3Application) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answer: asyncio.Future[bool] | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = False

    async def start(self) -> None:
        """Return when the app is ready. What the app raises instead, this raises."""
        self._task = asyncio.create_task(self._run())
        await self._ask("lifespan.startup")
        self._ready = True

    async def abandon(self, patience: float) -> None:
        """Cancel an app that is not ready yet, and wait that many seconds at most for it to let go."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=patience)

    async def stop(self) -> None:
        """Let an app that was ready close what it has opened. What the app raises, this raises."""
        if not self._ready:
            return
        assert self._task is not None
        if not self._task.done():
            await self._ask("lifespan.shutdown")
        await self._task

    async def _ask(self, kind: str) -> None:
        assert self._task is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait({"type": kind})
        either: list[asyncio.Future[Any]] = [self._answer, self._task]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._answer.done() and self._answer.result():
            return
        await asyncio.wait({self._task}, timeout=1)
        if self._task.done():
            self._task.result()  # raises what the app raised, which says more than the message it sent
        raise ConfigurationError(f"The app did not complete its {kind}.")

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        await self._app(scope, self._inbox.get, self._send)  # type: ignore[arg-type]

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        assert self._answer is not None
        if not self._answer.done():
            self._answer.set_result(message["type"].endswith(".complete"))
