"""Readers that stop reading: they cost little, hold nothing up, and miss nothing."""

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.server.serving import Serving, eventually, settings
from tests.torture.clients import RUNS, Client, read_whole
from tests.torture.frames import ACCEPT, Frame, Frames, Framing, parse
from tests.torture.journal import Journal
from tests.torture.process import PATIENCE, ServerProcess
from tests.torture.scale import number
from tests.torture.wire import Response, ask

from headrace.server.listener import Deadlines, Listener

READERS = number(40, 1000)
TOKENS = number(10_000, 500_000)
"""About 240 bytes each in the native view."""
TO_CATCH_UP = number(READERS, 20)
"""Of the readers; all of them would have 120 GB to read in `make torture`."""
LIVE = f"demo:echo?count={TOKENS}&size=5&pace_ms=0.2"
STORED = "demo:echo?count=20000&size=5"
STORED_READERS = 40
RECEIVE_BUFFER = 4096
PER_READER = 256 << 10
SLACK = 16 << 20
"""Bytes. A queue for each reader would take 2.4 MB and more."""
FRAMINGS: tuple[Framing, Framing] = ("sse", "ndjson")


class Stopped:
    """A reader that has read the head of a response, and nothing more until it is told to."""

    def __init__(self, port: int, run: str, framing: Framing, response: Response) -> None:
        self.frames: list[Frame] = []
        self._port = port
        self._run = run
        self.framing = framing
        self._response = response

    async def catch_up(self) -> None:
        """Read all that is left, on this connection and, where it was closed, on another one."""
        try:
            await self._take(self._response)
        except ConnectionError:
            after = self.frames[-1].position if self.frames else "-1"
            target = f"{RUNS}/{self._run}/events?after={after}"
            async with ask(self._port, "GET", target, headers={"Accept": ACCEPT[self.framing]}) as response:
                await self._take(response)

    async def _take(self, response: Response) -> None:
        frames = Frames(self.framing)
        async for part in response.parts():
            self.frames += frames.feed(part)


@asynccontextmanager
async def stopped_readers(port: int, run: str, count: int) -> AsyncIterator[list[Stopped]]:
    async with AsyncExitStack() as stack:

        async def open_one(framing: Framing) -> Stopped:
            response = await stack.enter_async_context(
                ask(
                    port,
                    "GET",
                    f"{RUNS}/{run}/events",
                    headers={"Accept": ACCEPT[framing]},
                    receive_buffer=RECEIVE_BUFFER,
                )
            )
            return Stopped(port, run, framing, response)

        yield [await open_one(FRAMINGS[index % 2]) for index in range(count)]


def raw(frames: Sequence[Frame]) -> bytes:
    return b"".join([frame.raw for frame in frames])


async def expected(port: int, run: str) -> dict[Framing, bytes]:
    """What a reader that never stopped gets, in each framing."""
    return {framing: raw(parse(await read_whole(port, run, "native", framing), framing)) for framing in FRAMINGS}


async def start(server: ServerProcess, journal: Journal, key: str) -> str:
    return await Client(server, journal, "ann").start({"input": {"message": "go"}}, key)


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
async def test_readers_that_stop_cost_little_and_hold_nothing_up(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data", LIVE)
    with Journal(tmp_path / "journal") as journal:
        async with server:
            await read_whole(server.port, await start(server, journal, "first"), "native", "sse")
            before = server.resident()
            run = await start(server, journal, "second")
            async with stopped_readers(server.port, run, READERS) as readers:
                async with asyncio.timeout(PATIENCE + TOKENS / 1000):  # it ends although none of them reads
                    await read_whole(server.port, run, "native", "sse")
                assert server.resident() - before < READERS * PER_READER + SLACK
                whole = await expected(server.port, run)
                for reader in readers[:TO_CATCH_UP]:
                    await reader.catch_up()
                    assert raw(reader.frames) == whole[reader.framing]
                    reader.frames.clear()


async def test_readers_of_what_is_stored_that_stop_cost_little(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data", STORED)
    with Journal(tmp_path / "journal") as journal:
        async with server:
            run = await start(server, journal, "key")
            await read_whole(server.port, run, "native", "sse")
            before = server.resident()
            async with stopped_readers(server.port, run, STORED_READERS) as readers:
                whole = await expected(server.port, run)
                assert server.resident() - before < STORED_READERS * PER_READER + SLACK
                await readers[0].catch_up()
                assert raw(readers[0].frames) == whole[readers[0].framing]


async def test_a_reader_that_stays_away_is_closed_and_goes_on_elsewhere(tmp_path: Path) -> None:
    options = settings(tmp_path, engine="sqlite", model="demo:echo?count=20000&size=5")
    async with Serving(options, agents={}, deadlines=Deadlines(write=0.5)).open() as server:
        run = await server.start(message="go")
        async with stopped_readers(server.port, run, 4) as readers:
            await eventually(lambda: server.headrace.telemetry.cuts == len(readers))
            whole = await expected(server.port, run)
            for reader in readers:
                await reader.catch_up()
                assert raw(reader.frames) == whole[reader.framing]
        assert server.headrace.telemetry.resumes == len(readers)


async def test_a_reader_that_is_slow_but_steady_is_not_closed() -> None:
    body = b"x" * 8_000_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})

    listener = Listener(app, port=0, deadlines=Deadlines(write=0.5))
    serving = asyncio.create_task(listener.serve())
    await listener.started.wait()
    got = 0
    async with ask(listener.ports[0], "GET", "/", receive_buffer=65_536) as response:
        async for part in response.parts():
            got += len(part)
            await asyncio.sleep(0.01)  # the reader's pace
    listener.stop()
    await serving
    assert got == len(body)
