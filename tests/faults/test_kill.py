"""kill -9 of the server at random points under load: no client that resumes loses, repeats or reorders anything."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
from tests.torture.checker import check
from tests.torture.clients import CHAT, RUNS, Client, offset_of, read_logs
from tests.torture.journal import Journal
from tests.torture.process import PATIENCE, ServerProcess
from tests.torture.scale import number, seed

KILLS_OF_A_ROUND = 20
ROUNDS = number(1, 50)
SERVE = Path(__file__).parents[1] / "torture" / "serve.py"
TOKENS = 300
MODEL = f"demo:echo?count={TOKENS}&size=5&pace_ms=10"
RUN_SECONDS = TOKENS * 0.01
TO_END = 20.0
"""Seconds in which a run whose worker died has to end or go on."""


class Load:
    """Clients of every sort, each with one run after the other until it is `closing`."""

    def __init__(self, server: ServerProcess, journal: Journal, random: Random) -> None:
        self.closing = False
        self._server = server
        self._journal = journal
        self._random = random

    async def run(self) -> None:
        sorts = {self._chat_stream: 8, self._two_followers: 3, self._native_stream: 2, self._whole: 3, self._cancel: 2}
        async with asyncio.TaskGroup() as clients:
            for sort, count in sorts.items():
                for index in range(count):
                    client = Client(self._server, self._journal, f"{sort.__name__}-{index}")
                    clients.create_task(self._repeat(client, sort))

    async def _repeat(self, client: Client, sort: Callable[[Client, str], Awaitable[None]]) -> None:
        turn = 0
        while not self.closing:
            await sort(client, f"{client.name}-{turn}")
            turn += 1

    def _body(self) -> dict[str, object]:
        return {"message": "go", "max_tokens": self._random.randint(20, TOKENS)}

    async def _chat_stream(self, client: Client, key: str) -> None:
        body = self._body()
        if self._random.random() < 0.3:
            await client.lose_reply(f"{CHAT}?stream=true", body, key)
        await client.start_and_follow(f"{CHAT}?stream=true", body, key, view="agent_chat", framing="sse")

    async def _native_stream(self, client: Client, key: str) -> None:
        await client.start_and_follow(RUNS, {"input": self._body()}, key, view="native", framing="ndjson")

    async def _two_followers(self, client: Client, key: str) -> None:
        body = {"input": self._body()}
        if self._random.random() < 0.3:
            await client.lose_reply(RUNS, body, key, Accept="application/json")
        run = await client.start(body, key)
        await asyncio.gather(*(client.follower(run, framing=framing).read() for framing in ("sse", "ndjson")))

    async def _whole(self, client: Client, key: str) -> None:
        body = self._body()
        if self._random.random() < 0.3:
            await client.lose_reply(CHAT, body, key)
        await client.answer(body, key)

    async def _cancel(self, client: Client, key: str) -> None:
        run = await client.start({"input": {"message": "go"}}, key)
        follower = client.follower(run, framing="ndjson")
        reading = asyncio.create_task(follower.read())
        await follower.has(self._random.randint(0, 100))
        described = await client.cancel(run)
        if described["state"] in ("queued", "running") and offset_of(described) < TOKENS / 2:
            client.acked(run, kind="run.cancelled")  # long before its end, so it cannot have completed meanwhile
        await reading


async def kill_again_and_again(server: ServerProcess, journal: Journal, random: Random) -> None:
    """Most kills come some frames after the start, some in the middle of it."""
    for _ in range(KILLS_OF_A_ROUND - 1):
        if random.random() < 0.15:
            await server.kill()
            await server.spawn()
            await asyncio.sleep(random.uniform(0, 0.7))  # where in its start it is struck is chance
            await server.kill()
            await server.start()
        else:
            async with asyncio.timeout(PATIENCE):
                await journal.reached(journal.count + random.randint(1, 1200))
            await server.kill()
            await server.start()


@pytest.mark.parametrize("round_", range(ROUNDS))
async def test_no_client_notices_that_the_server_is_killed(tmp_path: Path, round_: int) -> None:
    random = Random(f"{seed()}/{round_}")
    server = ServerProcess(tmp_path / "data", MODEL)
    with Journal(tmp_path / "journal") as journal:
        async with server:
            load = Load(server, journal, random)
            loading = asyncio.create_task(load.run())
            killing = asyncio.create_task(kill_again_and_again(server, journal, random))
            await asyncio.wait({loading, killing}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()  # a client met what must not be
            await killing
            load.closing = True
            await asyncio.wait_for(loading, TO_END + 2 * RUN_SECONDS)
            await server.kill()
            await server.start()
            logs = await read_logs(server.port)
            assert check(journal.records(), logs) == []
            assert server.said() == ""
    interrupted = [log for log in logs.values() if any(b"attempt.started" in frame.payload for frame in log["native"])]
    assert len(interrupted) >= KILLS_OF_A_ROUND  # the kills did strike runs
    print(f"{len(logs)} runs, {len(interrupted)} of them in several attempts, {journal.count} records")


async def test_an_agent_that_cannot_go_on_ends_interrupted(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data", "demo:echo", program=[str(SERVE)])
    with Journal(tmp_path / "journal") as journal:
        async with server:
            client = Client(server, journal, "ann")
            body = {"agent": "steps", "input": {"count": 1000, "pace": 0.01}}
            runs = [await client.start(body, f"key-{index}") for index in range(5)]
            followers = [client.follower(run, framing=framing) for run in runs for framing in ("sse", "ndjson")]
            reading = asyncio.gather(*(follower.read() for follower in followers))
            await asyncio.gather(*(follower.has(10) for follower in followers))
            await server.kill()
            await server.start()
            await asyncio.wait_for(reading, TO_END)
            logs = await read_logs(server.port)
            assert check(journal.records(), logs) == []
    assert logs.keys() == set(runs)
    for log in logs.values():
        error = json.loads(log["native"][-1].payload)["error"]
        assert (error["code"], error["status"]) == ("interrupted", 503)
