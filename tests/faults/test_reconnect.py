"""Readers that are cut at random bytes and come back: what they got in the end is what one uncut reader got."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
from tests.server.serving import PATIENCE, Serving, settings
from tests.torture.clients import CHAT, RUNS, read_whole
from tests.torture.frames import ACCEPT, Frame, Frames, Framing, parse
from tests.torture.proxy import Conduct, Cut, FaultProxy
from tests.torture.scale import number, seed
from tests.torture.wire import Response, ask

DIALECTS: list[tuple[str, Framing]] = [
    ("agent_chat", "sse"),
    ("agent_chat", "ndjson"),
    ("native", "sse"),
    ("native", "ndjson"),
]
RECONNECTS = number(300, 10_000) // len(DIALECTS)
AT_ONCE = 4
STALL = 0.1
"""Seconds of silence after which a client of ours gives a connection up."""
CUTS: list[Cut] = ["rst", "fin", "half_close_down", "half_close_up", "stall"]
WORDS = [
    "a",
    "Grüße",
    "世界",
    "🎏👩‍👩‍👧",
    "line\u2028end\u2029next\u0085",
    "x" * 40,
    'data: {"type":"end"}',
    "\\n",
    "é" * 9,
]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    options = settings(tmp_path, engine="sqlite", stream_chunk_size=3, model="demo:echo?pace_ms=1&batch=4")
    async with Serving(options, agents={}).open() as serving:
        yield serving


def some_cut(random: Random) -> Conduct:
    """A cut after anything from nothing to some dozen frames, the head of the response among it."""
    return Conduct(
        cut=random.choices(CUTS, weights=[4, 4, 3, 3, 1])[0],
        cut_at=random.choice([random.randrange(800), random.randrange(8000)]),
        slice=random.choices([None, 7, 1], weights=[8, 2, 1])[0],
    )


class Returning:
    """One run, read in one view by a client that comes back through the proxy after each cut."""

    def __init__(self, proxy: FaultProxy, view: str, framing: Framing) -> None:
        self.frames: list[Frame] = []
        self.reconnects = 0
        self.inside = 0
        """How often it went on inside an event."""
        self._proxy = proxy
        self._view = view
        self._framing = framing
        self._ended = False

    async def start(self, body: object, key: str) -> str:
        """Start a run by a reply that is its stream, and read that too. Gives the run's id."""
        target = f"{CHAT}?stream=true" if self._view == "agent_chat" else RUNS
        headers = {"Idempotency-Key": key, "Accept": ACCEPT[self._framing]}
        run = ""
        while not run:
            try:
                async with ask(self._proxy.port, "POST", target, headers=headers, body=body, silence=STALL) as response:
                    assert response.status in (200, 201), response.status
                    run = response.headers["x-run-id"]
                    await self._take(response)
            except ConnectionError:
                self.reconnects += 1
        return run

    async def read(self, run: str) -> None:
        while not self._ended:
            try:
                await self._go_on(f"{RUNS}/{run}/events?view={self._view}")
            except ConnectionError:
                self.reconnects += 1

    async def _go_on(self, target: str) -> None:
        headers = {"Accept": ACCEPT[self._framing]}
        last = self.frames[-1].position if self.frames else None
        if last is not None:
            self.inside += "." in last
            if self._framing == "sse":
                headers["Last-Event-ID"] = last
            else:
                target += f"&after={last}"
        async with ask(self._proxy.port, "GET", target, headers=headers, silence=STALL) as response:
            assert response.status in (200, 204), response.status
            await self._take(response)

    async def _take(self, response: Response) -> None:
        frames = Frames(self._framing)
        async for part in response.parts():
            self.frames += frames.feed(part)
        assert self.frames[-1].terminal, "ended in order without a terminal event"
        self._ended = True


class Round:
    """Runs of random text in one dialect, each read by one client that is cut and one that is not."""

    def __init__(self, server: Serving, proxy: FaultProxy, view: str, framing: Framing, random: Random) -> None:
        self.reconnects = 0
        self.inside = 0
        self._server = server
        self._proxy = proxy
        self._view = view
        self._framing = framing
        self._random = random

    async def live(self) -> None:
        """The run goes on while it is read."""
        client = Returning(self._proxy, self._view, self._framing)
        if self._view == "agent_chat" and self._framing == "ndjson":  # no start replies in it
            run = await self._server.start(message=self._message())
        else:
            key = f"key-{self._random.getrandbits(64)}"
            message = {"message": self._message()}
            run = await client.start(message if self._view == "agent_chat" else {"input": message}, key)
        await self._compare(client, run)

    async def stored(self) -> None:
        """The run has ended before it is read."""
        run = await self._server.finished(message=self._message())
        await self._compare(Returning(self._proxy, self._view, self._framing), run)

    async def _compare(self, client: Returning, run: str) -> None:
        reading = read_whole(self._server.port, run, self._view, self._framing)
        body, _ = await asyncio.gather(reading, client.read(run))
        uncut = parse(body, self._framing)
        assert b"".join(frame.raw for frame in client.frames) == b"".join(frame.raw for frame in uncut)
        self.reconnects += client.reconnects
        self.inside += client.inside

    def _message(self) -> str:
        return " ".join(self._random.choices(WORDS, k=self._random.randint(1, 150)))


@pytest.mark.parametrize(("view", "framing"), DIALECTS)
async def test_cut_anywhere_and_resumed_is_byte_equal(server: Serving, view: str, framing: Framing) -> None:
    chance = seed()
    async with FaultProxy(server.port, some_cut, seed=chance) as proxy:
        round_ = Round(server, proxy, view, framing, Random(chance))
        while round_.reconnects < RECONNECTS:
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(round_.live(), round_.stored(), round_.live(), round_.stored())
    assert (round_.inside > 0) == (view == "agent_chat")
