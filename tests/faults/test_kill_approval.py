"""kill -9 of the server around an approval: while it is pending, right after the answer, and while the tool is at work.

What the tool does is seen in a ledger of its own, which outlives the server.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.torture.process import ServerProcess
from tests.torture.scale import number
from tests.torture.wire import ask

from headrace.fake_provider import Call, FakeProvider, Script, Send

MODEL = "payer"
PATIENCE = 60.0
RUNS = "/api/runs"
ARGUMENTS = json.dumps({"step": 1, "index": 0, "what": "the bill"})
TEXTS = ["Let me pay.", "That is all."]
FIRST = "approval_1_1"
REPEATED = 60
"""Characters that the model repeats where it is told to go on."""


class Far:
    """What outlives the server: the model, and the gate at which the tool waits, before and after what it does."""

    def __init__(self, held: str = "") -> None:
        """`held`: the place at which it waits until the server is dead."""
        self.held = held
        self.arrived = asyncio.Event()
        self.gate = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[FakeProvider]:
        async with await asyncio.start_server(self._tool, "127.0.0.1", 0) as gate:
            self.gate = gate.sockets[0].getsockname()[1]
            async with FakeProvider({MODEL: _say}) as provider:
                yield provider

    async def _tool(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if json.loads(await reader.readline())["place"] == self.held:
                self.arrived.set()
                await reader.read()
            else:
                writer.write(b"go\n")
        except ConnectionError:
            return
        finally:
            writer.close()


def _say(call: Call) -> Script:
    messages, dialect = call.body["messages"], call.dialect
    step = sum("tool_calls" in message for message in messages)
    shown = messages[-2]["content"] if messages[-1]["role"] == "user" and len(messages) > 1 else ""
    yield Send(dialect.start())
    yield Send(dialect.text(shown[-REPEATED:] + TEXTS[step][len(shown) :]))
    if step == 0:
        yield Send(dialect.tool_call("call_1", "pay"))
        yield Send(dialect.arguments(ARGUMENTS))
    yield Send(dialect.finish("tool_calls" if step == 0 else "stop"))
    yield Send(dialect.end)


def server_of(tmp_path: Path, provider: FakeProvider, far: Far, *options: str) -> ServerProcess:
    files = ["--gate", str(far.gate), "--ledger", str(tmp_path / "ledger")]
    program = ["-m", "tests.torture.serve_approval", *files, *options]
    return ServerProcess(tmp_path / "data", f"{provider.url}#{MODEL}", program=program)


class Paying:
    """A run that asks whether it may pay."""

    def __init__(self, tmp_path: Path, server: ServerProcess) -> None:
        self.server = server
        self.run = ""
        self._ledger = tmp_path / "ledger"

    async def begin(self) -> None:
        self.run = (await self._post(RUNS, {"input": {"message": "Pay."}}))["id"]
        await self.until("input.requested")

    async def say(self, **value: Any) -> int:
        """The status of the reply. Raises `ConnectionError`."""
        body = {"request_id": FIRST, "value": value}
        async with ask(self.server.port, "POST", f"{RUNS}/{self.run}/input", body=body) as response:
            await response.body()
            return response.status

    async def restart(self) -> None:
        await self.server.kill()
        with pytest.raises(ConnectionError):
            await self.say(approved=True)
        await self.server.start()

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """The events up to the first of this kind, or to the end of the run."""
        events: list[dict[str, Any]] = []
        accept = {"Accept": "application/x-ndjson"}
        async with (
            asyncio.timeout(PATIENCE),
            ask(self.server.port, "GET", f"{RUNS}/{self.run}/events", headers=accept) as response,
        ):
            rest = b""
            async for part in response.parts():
                *lines, rest = (rest + part).split(b"\n")
                events += [json.loads(line)["data"] for line in lines]
                if kind in [event["kind"] for event in events]:
                    break
        return events

    async def log(self) -> list[dict[str, Any]]:
        """The whole of it, once the run has ended; what holds for every log is asserted."""
        events = await self.until("")
        assert [event["offset"] for event in events] == list(range(1, len(events) + 1))
        kinds = [event["kind"] for event in events]
        assert sum(kind in ("run.completed", "run.failed", "run.cancelled") for kind in kinds) == 1
        assert kinds.count("input.requested") == 1, "nobody is asked twice"
        return events

    def paid(self) -> int:
        """How often it has."""
        lines = self._ledger.read_text().splitlines() if self._ledger.exists() else []
        return [json.loads(line)["run"] for line in lines].count(self.run)

    async def _post(self, target: str, body: Any) -> Any:
        async with ask(self.server.port, "POST", target, body=body) as response:
            assert response.status in (200, 201, 202), response.status
            return await response.json()


def values(events: list[dict[str, Any]]) -> list[tuple[bool, str]]:
    return [(event["value"]["approved"], event["by"]) for event in events if event["kind"] == "input.received"]


@pytest.mark.parametrize("approved", [True, False])
async def test_what_is_pending_is_pending_after_each_kill_and_goes_on_once(tmp_path: Path, approved: bool) -> None:
    far = Far()
    async with far.open() as provider, server_of(tmp_path, provider, far) as server:
        paying = Paying(tmp_path, server)
        await paying.begin()
        for _ in range(number(2, 20)):
            await paying.restart()
            assert values(await paying.until("attempt.started")) == []
            assert paying.paid() == 0
        assert await paying.say(approved=approved) == 202
        assert await paying.say(approved=True) == 409
        events = await paying.log()
        assert values(events) == [(approved, "local")]
        assert (events[-1]["kind"], events[-1]["output"]) == ("run.completed", TEXTS[-1])
        assert paying.paid() == approved
        await paying.restart()
        assert await paying.say(approved=True) == 409
        assert await paying.log() == events
        assert paying.paid() == approved


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("place", ["before", "after"])
async def test_a_kill_while_the_tool_is_at_work(tmp_path: Path, place: str, idempotent: bool) -> None:
    """The yes was for one call: a tool that may not run twice is not run again by it, nor is it asked for anew."""
    far = Far(place)
    async with (
        far.open() as provider,
        server_of(tmp_path, provider, far, *["--idempotent"] * idempotent) as server,
    ):
        paying = Paying(tmp_path, server)
        await paying.begin()
        assert await paying.say(approved=True) == 202
        await asyncio.wait_for(far.arrived.wait(), PATIENCE)
        far.held = ""
        await paying.restart()
        events = await paying.log()
    done = int(place == "after")
    assert values(events) == [(True, "local")]
    if idempotent:
        assert (events[-1]["kind"], paying.paid()) == ("run.completed", done + 1)
    else:
        assert (events[-1]["error"]["code"], paying.paid()) == ("tool_outcome_unknown", done)


async def test_an_answer_that_was_taken_counts_whenever_the_kill_comes(tmp_path: Path) -> None:
    """Runs that are answered one after the other, and a kill that finds each at another point after that."""
    far, answered = Far(), 0
    async with far.open() as provider, server_of(tmp_path, provider, far) as server:
        for _ in range(number(2, 100)):
            group = [Paying(tmp_path, server) for _ in range(12)]
            for paying in group:
                await paying.begin()
            taken = [paying for paying in group[:8] if await paying.say(approved=True) == 202]
            await server.kill()
            await server.start()
            for paying in group:
                if paying not in taken:
                    assert await paying.say(approved=False) == 202
                check(paying, await paying.log(), approved=paying in taken)
            answered += len(taken)
    assert answered == number(2, 100) * 8


def check(paying: Paying, events: list[dict[str, Any]], *, approved: bool) -> None:
    assert values(events) == [(approved, "local")]
    if events[-1]["kind"] == "run.completed":
        assert (events[-1]["output"], paying.paid()) == (TEXTS[-1], approved)
    else:
        assert events[-1]["error"]["code"] == "tool_outcome_unknown"
        assert approved
        assert paying.paid() <= 1
