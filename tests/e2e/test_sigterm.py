"""A restart of the server under open streams: they end in order, and go on where they were. PROMISE 13."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.e2e.served import PATIENCE, Served, parse, serve

TORTURE = bool(os.environ.get("HEADRACE_TORTURE"))
STREAMS = 1000 if TORTURE else 100
TOKENS = 300
PACE_MS = 150 if TORTURE else 20
"""So slow that no run ends before the last stream has begun, however busy the machine is with all of them."""
MODEL = f"demo:echo?count={TOKENS}&pace_ms={PACE_MS}"
EXIT_SECONDS = 10.0
Frames = list[tuple[bytes, bytes]]


def session(server: Served) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=PATIENCE * 2)
    return aiohttp.ClientSession(server.url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


class Reader:
    """Starts a run and reads it in the view of a chat, or in the log's own words."""

    def __init__(self, number: int) -> None:
        self.run_id = ""
        self.body = b""
        self.began = asyncio.Event()
        self._chat = number % 2 == 0

    async def read(self, client: aiohttp.ClientSession) -> None:
        """To the end of the response. Raises `ClientPayloadError` where that was cut, and not ended."""
        message = {"message": "Hi"}
        path = "/api/agent/chat?stream=true" if self._chat else "/api/runs"
        body: dict[str, Any] = {**message} if self._chat else {"input": message}
        async with client.post(path, json=body, headers={"Accept": "text/event-stream"}) as response:
            assert response.status == 200, await response.text()
            self.run_id = response.headers["X-Run-Id"]
            async for part in response.content.iter_any():
                self.body += part
                if b"0005" in self.body:
                    self.began.set()

    async def resume(self, client: aiohttp.ClientSession, after: bytes | None) -> Frames:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after.decode()} if after else {})}
        view = "agent_chat" if self._chat else "native"
        async with client.get(f"/api/runs/{self.run_id}/events?view={view}", headers=headers) as response:
            assert response.status == 200, await response.text()
            return parse(await response.read())

    def text(self, frames: Frames) -> str:
        events = [json.loads(data) for _, data in frames]
        return "".join(event.get("content" if self._chat else "delta", "") for event in events)


@pytest.mark.timeout(600)
async def test_sigterm_with_open_streams(tmp_path: Path) -> None:
    readers = [Reader(number) for number in range(STREAMS)]
    async with serve(tmp_path, MODEL) as server, session(server) as client:
        reading = [asyncio.create_task(reader.read(client)) for reader in readers]
        for reader in readers:
            await asyncio.wait_for(reader.began.wait(), PATIENCE)
        server.terminate()
        assert await server.exit_code(EXIT_SECONDS) == 0
        await asyncio.gather(*reading)  # raises for a response that was cut
        assert "Traceback" not in server.log
        assert '"level":"error"' not in server.log
    seen = [parse(reader.body) for reader in readers]
    assert all(b"completed" not in reader.body and b'"end"' not in reader.body for reader in readers)

    async with serve(tmp_path, MODEL) as server, session(server) as client:
        rests = await asyncio.gather(
            *[reader.resume(client, frames[-1][0]) for reader, frames in zip(readers, seen, strict=True)]
        )
        expected = "".join(f"{number:04} " for number in range(TOKENS))
        for reader, before, after in zip(readers, seen, rests, strict=True):
            assert reader.text(before) + reader.text(after) == expected
        some = readers[:: max(1, STREAMS // 20)]
        wholes = await asyncio.gather(*[reader.resume(client, None) for reader in some])
        for reader, whole in zip(some, wholes, strict=True):
            number = readers.index(reader)
            assert seen[number] + rests[number] == whole


async def test_sigterm_between_requests_is_an_orderly_end(tmp_path: Path) -> None:
    async with serve(tmp_path, "demo:echo") as server, session(server) as client:
        async with client.post("/api/agent/chat", json={"message": "Hi"}) as response:
            assert (await response.json())["response"] == "Hi"
        server.terminate()
        assert await server.exit_code(EXIT_SECONDS) == 0


async def test_while_it_ends_nothing_new_is_taken(tmp_path: Path) -> None:
    """An answer that is not streamed may still be waited for; meanwhile the server says that it will be back."""
    async with serve(tmp_path, "demo:echo?count=5&pace_ms=100") as server, session(server) as client:
        whole = asyncio.create_task(client.post("/api/agent/chat", json={"message": "Hi"}))
        while not (await (await client.get("/api/runs")).json())["runs"]:
            pass
        spare = await client.get("/health/ready")
        assert spare.status == 200
        server.terminate()
        while True:
            try:
                response = await client.post("/api/agent/chat?stream=true", json={"message": "Hi"})
            except aiohttp.ClientError:
                break  # it is gone
            if response.status == 503:
                assert (await response.json())["code"] == "server.draining"
                assert response.headers["Retry-After"] == "1"
                assert (await client.get("/health/ready")).status == 503
                break
            await response.read()
        response = await whole
        assert response.status in (200, 503)
        assert await server.exit_code(EXIT_SECONDS) == 0
