"""A server with agents that wait, and one that answers what a test tells it to."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.server.serving import Serving, settings

ScriptedServer = Callable[..., "asyncio.Future[str]"]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    """Agents `default`, `stall` and `fail`; see `tests/server/serving.py`."""
    async with Serving(settings(tmp_path)).open() as serving:
        yield serving


@pytest.fixture
async def echo(tmp_path: Path) -> AsyncIterator[Serving]:
    """The chat agent with a model that counts to 400."""
    async with Serving(settings(tmp_path, model="demo:echo?count=400"), agents={}).open() as serving:
        yield serving


class Scripted:
    """Gives its answers in turn, one to a connection, as the bytes they are; the last one for ever."""

    def __init__(self, answers: tuple[bytes, ...]) -> None:
        self.requests: list[bytes] = []
        self.url = ""
        self._answers = answers

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head)
        writer.write(self._answers[min(len(self.requests), len(self._answers)) - 1])
        await writer.drain()
        writer.close()


@pytest.fixture
async def scripted() -> AsyncIterator[Callable[..., "asyncio.Future[Scripted]"]]:
    """Starts a server with these answers."""
    async with AsyncExitStack() as stack:

        async def start(*answers: bytes) -> Scripted:
            script = Scripted(answers)
            server = await asyncio.start_server(script.answer, "127.0.0.1", 0)
            stack.callback(server.close)
            script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            return script

        yield lambda *answers: asyncio.ensure_future(start(*answers))
