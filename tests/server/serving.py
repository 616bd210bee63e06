"""A whole Headrace behind its listener on a real port, in the test's own loop, and agents that misbehave on demand."""

import asyncio
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from multidict import CIMultiDictProxy

from headrace.agents.generator import generator_agent
from headrace.bootstrap import Headrace
from headrace.ports import AgentFactory, RunContext
from headrace.server.listener import Deadlines, Listener
from headrace.settings import Settings

PATIENCE = 20.0
"""Seconds after which something is taken to hang."""
SSE = {"Accept": "text/event-stream"}
NDJSON = {"Accept": "application/x-ndjson"}
JSON = {"Accept": "application/json"}


class Answer(NamedTuple):
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> tuple[int, str]:
        """Status and code of a problem document, which it has to be."""
        assert self.headers["Content-Type"] == "application/problem+json", (self.status, self.body)
        document = self.json()
        assert document["status"] == self.status
        return self.status, document["code"]


class Frame(NamedTuple):
    id: str | None
    data: Any


class Agents:
    """`say` yields the strings of `input.texts`; `stall` says "before", waits at `gate`, and says "after"; `fail`
    says what `say` does and raises `failure`. `left` counts the stalls that were closed before their end."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.failure: Exception = RuntimeError("boom")
        self.left = 0

    def all(self) -> dict[str, AgentFactory]:
        return {
            "default": generator_agent(self.say),
            "stall": generator_agent(self.stall),
            "fail": generator_agent(self.fail),
        }

    async def say(self, context: RunContext) -> AsyncGenerator[str, None]:
        texts = context.run.input.get("texts", [context.run.input.get("message", "Hello")])
        for text in texts:
            yield text
            await asyncio.sleep(0)

    async def stall(self, context: RunContext) -> AsyncGenerator[str, None]:
        if not context.run.input.get("silent"):
            yield "before"
        ended = False
        try:
            await self.gate.wait()
            ended = True
        finally:
            self.left += not ended
        yield "after"

    async def fail(self, context: RunContext) -> AsyncGenerator[str, None]:
        for text in context.run.input.get("texts", []):
            yield text
        raise self.failure


class Serving:
    def __init__(
        self,
        settings: Settings,
        *,
        agents: Mapping[str, AgentFactory] | None = None,
        deadlines: Deadlines | None = None,
        grace: float = 1.0,
    ) -> None:
        self.agents = Agents()
        self.headrace = Headrace(settings, agents=self.agents.all() if agents is None else agents)
        app: Any = self.headrace.app
        self.listener = Listener(app, port=0, deadlines=deadlines, drain=self.headrace.drain, grace=grace)
        self.port = 0
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Serving"]:
        serving = asyncio.create_task(self.listener.serve())
        started = asyncio.create_task(self.listener.started.wait())
        await asyncio.wait({serving, started}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if serving.done():
            serving.result()
        self.port = self.listener.ports[0]
        try:
            yield self
        finally:
            for session in self._sessions.values():
                await session.close()
            self.listener.stop()
            await asyncio.wait_for(serving, PATIENCE)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def session(self, peer: str = "127.0.0.1") -> aiohttp.ClientSession:
        """Asks from the loopback address `peer`, and sends no header of its own accord that could decide a test."""
        if peer not in self._sessions:
            self._sessions[peer] = aiohttp.ClientSession(
                self.url,
                connector=aiohttp.TCPConnector(local_addr=(peer, 0), limit=0),
                timeout=aiohttp.ClientTimeout(total=PATIENCE),
                skip_auto_headers=["Content-Type", "Accept", "Accept-Encoding"],
            )
        return self._sessions[peer]

    async def ask(self, method: str, path: str, *, peer: str = "127.0.0.1", **request: Any) -> Answer:
        async with self.session(peer).request(method, path, allow_redirects=False, **request) as response:
            return Answer(response.status, response.headers, await response.read())

    async def post(self, path: str, body: Any = None, **request: Any) -> Answer:
        """`body` as JSON, or as it is if it is bytes."""
        headers = {"Content-Type": "application/json", **request.pop("headers", {})}
        data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        return await self.ask("POST", path, data=data, headers=headers, **request)

    async def chat(self, message: str = "Hello", *, stream: bool = False, **request: Any) -> Answer:
        body = {"message": message, **request.pop("body", {})}
        return await self.post(f"/api/agent/chat{'?stream=true' if stream else ''}", body, **request)

    async def begin(self, path: str, body: Any = None, headers: Mapping[str, str] = SSE) -> aiohttp.ClientResponse:
        """A response that is still open: POSTs a `body`, else GETs."""
        if body is None:
            return await self.session().get(path, headers=headers)
        all_headers = {**headers, "Content-Type": "application/json"}
        return await self.session().post(path, data=json.dumps(body).encode(), headers=all_headers)

    async def stalled(self, *, silent: bool = False, headers: Mapping[str, str] = SSE) -> aiohttp.ClientResponse:
        """The stream of a new run that has said "before", or nothing if `silent`, and waits at the gate."""
        response = await self.begin("/api/runs", {"agent": "stall", "input": {"silent": silent}}, headers)
        await read_until(response, b"message.start" if silent else b"before")
        return response

    async def start(self, agent: str = "default", headers: Mapping[str, str] | None = None, **input_: Any) -> str:
        """The id of a new run."""
        answer = await self.post("/api/runs", {"agent": agent, "input": input_}, headers=dict(headers or {}))
        assert answer.status == 201, answer
        run_id: str = answer.json()["id"]
        return run_id

    async def finished(self, agent: str = "default", **input_: Any) -> str:
        """The id of a run that has ended."""
        run_id = await self.start(agent, **input_)
        assert (await self.events(run_id)).status == 200
        return run_id

    async def events(self, run_id: str, query: str = "", **headers: str) -> Answer:
        return await self.ask("GET", f"/api/runs/{run_id}/events{query}", headers=headers or SSE)

    async def frames(self, run_id: str, query: str = "", **headers: str) -> list[Frame]:
        answer = await self.events(run_id, query, **headers)
        assert answer.status == 200, answer
        return parse_sse(answer.body) if "event-stream" in answer.headers["Content-Type"] else parse_lines(answer.body)


Start = Callable[..., Any]


def settings(data: Path, **more: Any) -> Settings:
    """Whatever the environment of the test says, no model is looked for. Without tools, since `search` reads documents
    at each start."""
    defaults = {"data": data, "engine": "memory", "discover": False, "model": "demo:echo", "tools": ()}
    return Settings(**{**defaults, **more})


def parse_sse(body: bytes) -> list[Frame]:
    """What an EventSource would dispatch (https://html.spec.whatwg.org/multipage/server-sent-events.html), by the
    letter: all three line ends, one BOM, comments, sticky ids, and no event for a last block without its end."""
    text = body.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    frames: list[Frame] = []
    last_id: str | None = None
    data: list[str] = []
    for line in text.split("\n")[:-1]:
        if not line:
            if data:
                frames.append(Frame(last_id, json.loads("\n".join(data))))
            data = []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "id" and "\0" not in value:
            last_id = value
    return frames


def parse_lines(body: bytes) -> list[Frame]:
    objects = [json.loads(line) for line in body.split(b"\n") if line]
    return [Frame(each.get("id"), each["data"]) for each in objects]


def offsets(frames: list[Frame]) -> list[int]:
    return [frame.data["offset"] for frame in frames]


async def read_until(response: aiohttp.ClientResponse, words: bytes) -> bytes:
    """What has come, up to and with the whole frame that has these words in it."""
    got = b""
    async with asyncio.timeout(PATIENCE):
        while words not in got or not got.endswith(b"\n"):
            part = await response.content.readany()
            assert part, got
            got += part
    return got


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
