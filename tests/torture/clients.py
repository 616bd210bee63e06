"""Clients that start, follow and cancel runs through every cut, and write down what they see."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tests.torture.checker import Log
from tests.torture.frames import ACCEPT, Frames, Framing, parse
from tests.torture.journal import Accepted, Acked, Delivered, Ended, Journal, Reader, Resumed
from tests.torture.wire import Response, ask, request, send_and_leave

CHAT = "/api/agent/chat"
RUNS = "/api/runs"


class Server(Protocol):
    port: int
    up: asyncio.Event


class Follower:
    """Reads one run in one view to its end, over as many connections as that takes."""

    def __init__(self, server: Server, journal: Journal, client: str, run: str, *, view: str, framing: Framing) -> None:
        self.reader = Reader(client, run, view)
        self.delivered = 0
        self._server = server
        self._journal = journal
        self._framing = framing
        self._last: str | None = None
        self._has_terminal = False
        self._ended = False
        self._progress = asyncio.Condition()

    async def read(self) -> None:
        while not self._ended:
            await self._server.up.wait()
            try:
                await self._read_on()
            except ConnectionError:
                continue

    async def take(self, response: Response) -> None:
        """What comes on one connection. Raises `ConnectionError` where it is cut."""
        self._journal.write(Resumed(self.reader, self._last))
        frames = Frames(self._framing)
        async for part in response.parts():
            for frame in frames.feed(part):
                self._journal.write(Delivered(self.reader, frame.position, frame.payload.decode()))
                self._last = frame.position
                self._has_terminal = frame.terminal
                self.delivered += 1
            async with self._progress:
                self._progress.notify_all()
        assert self._has_terminal, f"{self.reader} was ended in order without a terminal event"
        self._ended = True
        self._journal.write(Ended(self.reader))
        async with self._progress:
            self._progress.notify_all()

    async def has(self, count: int) -> None:
        """Until so many frames were delivered, or the run has ended."""
        async with self._progress:
            await self._progress.wait_for(lambda: self.delivered >= count or self._ended)

    async def _read_on(self) -> None:
        target, headers = f"{RUNS}/{self.reader.run}/events?view={self.reader.view}", self._accept()
        if self._last is not None and self._framing == "sse":
            headers["Last-Event-ID"] = self._last
        elif self._last is not None:
            target += f"&after={self._last}"
        async with ask(self._server.port, "GET", target, headers=headers) as response:
            assert response.status in (200, 204), response.status
            await self.take(response)

    def _accept(self) -> dict[str, str]:
        return {"Accept": ACCEPT[self._framing]}


class Client:
    """Repeats every request until it is answered: a start always with its Idempotency-Key."""

    def __init__(self, server: Server, journal: Journal, name: str) -> None:
        self.name = name
        self._server = server
        self._journal = journal

    async def lose_reply(self, target: str, body: object, key: str, **headers: str) -> None:
        """Start a run and leave before the reply."""
        try:
            await send_and_leave(self._server.port, request("POST", target, headers=_keyed(key, headers), body=body))
        except ConnectionError:
            return

    async def start_and_follow(self, target: str, body: object, key: str, *, view: str, framing: Framing) -> None:
        """Start a run whose reply is its stream, and read it to its end."""
        headers = _keyed(key, {"Accept": ACCEPT[framing]})
        follower: Follower | None = None
        while follower is None:
            await self._server.up.wait()
            try:
                async with ask(self._server.port, "POST", target, headers=headers, body=body) as response:
                    assert response.status in (200, 201), response.status
                    run = response.headers["x-run-id"]
                    self._journal.write(Accepted(self.name, key, run))
                    follower = Follower(self._server, self._journal, self.name, run, view=view, framing=framing)
                    await follower.take(response)
            except ConnectionError:
                continue
        await follower.read()

    async def start(self, body: object, key: str) -> str:
        """The id of a new run."""
        described = await self.tell(RUNS, body, key, statuses=(200, 201))
        run: str = described["id"]
        self._journal.write(Accepted(self.name, key, run))
        self._note_offset(described)
        return run

    async def answer(self, body: object, key: str) -> None:
        """Start a run whose reply is the whole answer."""
        said = await self.tell(CHAT, body, key, statuses=(200,))
        run = said["run_id"]
        self._journal.write(Accepted(self.name, key, run))
        self._journal.write(Acked(self.name, run, {"kind": "run.completed", "output": said["response"]}))

    async def cancel(self, run: str) -> Mapping[str, Any]:
        """The run as the server described it right after the cancel was noted."""
        described = await self.tell(f"{RUNS}/{run}/cancel", None, None, statuses=(200, 202))
        self._note_offset(described)
        return described

    async def tell(self, target: str, body: object, key: str | None, *, statuses: Sequence[int]) -> dict[str, Any]:
        headers = _keyed(key, {"Accept": "application/json"})
        while True:
            await self._server.up.wait()
            try:
                async with ask(self._server.port, "POST", target, headers=headers, body=body) as response:
                    said: dict[str, Any] = await response.json()
            except ConnectionError:
                continue
            assert response.status in statuses, (response.status, said)
            return said

    def acked(self, run: str, **fields: object) -> None:
        self._journal.write(Acked(self.name, run, fields))

    def follower(self, run: str, *, view: str = "native", framing: Framing) -> Follower:
        return Follower(self._server, self._journal, f"{self.name}/{framing}", run, view=view, framing=framing)

    def _note_offset(self, described: Mapping[str, Any]) -> None:
        self.acked(described["id"], offset=offset_of(described))


def offset_of(described: Mapping[str, Any]) -> int:
    return int(described["position"].rsplit("-", 1)[1])


async def read_logs(port: int) -> dict[str, Log]:
    """Every run that there is, read to its end in both views, over connections that nothing cuts."""
    logs: dict[str, Log] = {}
    before = ""
    while True:
        page = await _get(port, f"{RUNS}?limit=200{before}")
        for run in page["runs"]:
            logs[run["id"]] = {
                "native": parse(await read_whole(port, run["id"], "native", "ndjson"), "ndjson"),
                "agent_chat": parse(await read_whole(port, run["id"], "agent_chat", "sse"), "sse"),
            }
        if page["next"] is None:
            return logs
        before = f"&before={page['next']}"


async def read_whole(port: int, run: str, view: str, framing: Framing) -> bytes:
    """The body of one uncut stream."""
    target = f"{RUNS}/{run}/events?view={view}"
    async with ask(port, "GET", target, headers={"Accept": ACCEPT[framing]}) as response:
        assert response.status == 200
        return await response.body()


async def _get(port: int, target: str) -> dict[str, Any]:
    async with ask(port, "GET", target, headers={"Accept": "application/json"}) as response:
        assert response.status == 200
        found: dict[str, Any] = await response.json()
        return found


def _keyed(key: str | None, headers: Mapping[str, str]) -> dict[str, str]:
    return {**headers, "Idempotency-Key": key} if key is not None else dict(headers)
