"""kill -9 of the server while it works on batches: each goes on, each item is answered once, each of its runs is run
once, and readers that resume get the exact rest.

Run as a program, this is the server: `headrace serve` with two tools that write a line, `look`, which may run twice,
and `pay`, which may not.

    python test_kill_batch.py --port PORT --data DIR --model MODEL
"""

import argparse
import asyncio
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import uvloop
from tests.torture.clients import RUNS, read_whole
from tests.torture.frames import ACCEPT, Frame, Frames, Framing, parse
from tests.torture.process import ServerProcess
from tests.torture.scale import number, seed
from tests.torture.wire import ask, request, send_and_leave

from headrace import Headrace
from headrace.log_output import configure
from headrace.ports import ToolContext
from headrace.server.listener import Listener
from headrace.settings import load_settings
from headrace.tools.function import tool

BATCH = "/api/batch"
TOKENS = 60
MODEL = f"demo:echo?count={TOKENS}&size=5&pace_ms=10&batch=4"
WHOLE = "".join(f"{token:04d} " for token in range(TOKENS))
LEDGER = "ledger"
TO_END = 60.0
"""Seconds in which all batches have to be answered."""


# --- the server -------------------------------------------------------------------------------------------------------


def write_line(ledger: Path, name: str, context: ToolContext) -> None:
    """On the disk before the tool goes on."""
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{name} {context.run.id}\n".encode())
        os.fsync(file)
    finally:
        os.close(file)


async def serve(arguments: argparse.Namespace) -> None:
    ledger = arguments.data.with_name(LEDGER)

    @tool(idempotent=True)
    async def look(context: ToolContext) -> str:
        """Writes a line; may run twice."""
        write_line(ledger, "look", context)
        await asyncio.sleep(0.2)  # the time that it takes, in which it may be killed
        return "looked"

    @tool
    async def pay(context: ToolContext) -> str:
        """Writes a line; may not run twice."""
        write_line(ledger, "pay", context)
        await asyncio.sleep(0.2)
        return "paid"

    settings = load_settings(data=arguments.data, model=arguments.model, tools=())
    configure(settings.log_level, settings.log_format)
    headrace = Headrace(settings, tools=[look, pay])
    app: Any = headrace.app
    listener = Listener(app, port=arguments.port, drain=headrace.drain)
    serving = asyncio.create_task(listener.serve())
    started = asyncio.create_task(listener.started.wait())
    await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    print("Headrace serves", flush=True)
    await serving


# --- clients ----------------------------------------------------------------------------------------------------------


def chat(id: str, *depends_on: str, **body: Any) -> dict[str, Any]:
    said = {"message": "go", "max_tokens": TOKENS, **body}
    return {"id": id, "method": "POST", "path": "/api/agent/chat", "body": said, "dependsOn": [*depends_on]}


def execute(id: str, name: str, *depends_on: str) -> dict[str, Any]:
    path = f"/api/tools/{name}/execute"
    return {"id": id, "method": "POST", "path": path, "body": {"parameters": {}}, "dependsOn": [*depends_on]}


ITEMS = [
    chat("long"),
    execute("looks", "look"),
    chat("then", "long", message={"$text": ["Go on after: ", {"$ref": "long#/body/response"}]}),
    execute("pays", "pay", "short"),
    {"id": "lists", "method": "GET", "path": "/api/tools"},
    chat("short", max_tokens=TOKENS // 3),
    chat("wrong", agent_id="nobody"),
    chat("never", "wrong", "long"),
    execute("looks again", "look", "then"),
]
RUN_ITEMS = {1: "long", 2: "looks", 3: "then", 4: "pays", 6: "short", 9: "looks again"}
"""The number of the child of each item that is a run."""
SAID = {"long": WHOLE, "then": WHOLE, "short": WHOLE[: 5 * (TOKENS // 3)]}


class Reader:
    """Sends a batch and reads its stream to the end, over as many connections as that takes."""

    def __init__(self, server: ServerProcess, key: str, framing: Framing) -> None:
        self.frames: list[Frame] = []
        self.connections = 0
        self.run = ""
        self.ended = False
        self._server = server
        self._key = key
        self._framing = framing
        self._news = asyncio.Condition()

    @property
    def said(self) -> list[Any]:
        return [json.loads(frame.payload) for frame in self.frames]

    async def read(self, *, lose_reply: bool) -> None:
        headers = {"Idempotency-Key": self._key, "Accept": ACCEPT[self._framing]}
        if lose_reply:
            await self._lose_reply(headers)
        while not self.ended:
            await self._server.up.wait()
            try:
                await self._read_on(headers)
            except ConnectionError:
                continue

    async def has(self, enough: Callable[["Reader"], bool]) -> None:
        """Until it holds, or the batch has ended."""
        async with self._news:
            await self._news.wait_for(lambda: self.ended or enough(self))

    async def _lose_reply(self, headers: Mapping[str, str]) -> None:
        try:
            await send_and_leave(self._server.port, request("POST", BATCH, headers=headers, body={"requests": ITEMS}))
        except ConnectionError:
            return

    async def _read_on(self, headers: Mapping[str, str]) -> None:
        method, target, more, body = "POST", BATCH, dict(headers), {"requests": ITEMS}
        if self.frames:
            method, target, more, body = "GET", f"{RUNS}/{self.run}/events?view=batch", dict(headers), {}
            more["Last-Event-ID"] = str(self.frames[-1].position)
        async with ask(self._server.port, method, target, headers=more, body=body or None) as response:
            assert response.status == 200, response.status
            self.connections += 1
            assert response.headers["x-run-id"] == (self.run or response.headers["x-run-id"])
            self.run = response.headers["x-run-id"]
            frames = Frames(self._framing)
            async for part in response.parts():
                self.frames += frames.feed(part)
                async with self._news:
                    self._news.notify_all()
        self.ended = True
        async with self._news:
            self._news.notify_all()
        assert self.said[-1]["type"] == "batch_finished", "it ended in order without an end"


def finished(*items: str) -> Callable[[Reader], bool]:
    return lambda reader: (
        {*items} <= {frame.get("request_id") for frame in reader.said if frame["type"] == "item_finished"}
    )


def begun(item: str) -> Callable[[Reader], bool]:
    return lambda reader: any(frame["type"] == "item_started" and frame["request_id"] == item for frame in reader.said)


def tokens(count: int) -> Callable[[Reader], bool]:
    return lambda reader: sum(frame["type"] == "token" for frame in reader.said) >= count


POINTS: Sequence[tuple[str, Callable[[Reader], bool]]] = [
    ("it has begun", lambda reader: bool(reader.frames)),
    ("in a text", tokens(3)),
    ("an item has its response", finished("lists", "wrong", "never")),
    ("a tool is at work", begun("pays")),
    ("what depends has begun", begun("then")),
    ("all but the last one", finished(*(item["id"] for item in ITEMS if item["id"] != "looks again"))),
]
"""In the order in which a batch comes to them."""


# --- what must hold ---------------------------------------------------------------------------------------------------


async def get(server: ServerProcess, target: str) -> Any:
    async with ask(server.port, "GET", target, headers={"Accept": "application/json"}) as response:
        assert response.status == 200
        return await response.json()


async def check(server: ServerProcess, reader: Reader, ledger: Counter[str]) -> str:
    """Of one batch. Gives the status of the item that nobody may run twice."""
    whole = parse(await read_whole(server.port, reader.run, "batch", "ndjson"), "ndjson")
    assert [(frame.position, frame.payload) for frame in reader.frames] == [
        (frame.position, frame.payload) for frame in whole
    ]
    said = reader.said
    answers = {frame["request_id"]: frame for frame in said if frame["type"] == "item_finished"}
    assert Counter(frame["type"] for frame in said if frame["type"] != "token") == {
        "batch_started": 1,
        "item_started": len(ITEMS),
        "item_finished": len(ITEMS),
        "batch_finished": 1,
    }
    assert answers.keys() == {item["id"] for item in ITEMS}
    paid = answers["pays"]["status"]
    assert {id: answer["status"] for id, answer in answers.items()} == {
        **dict.fromkeys(answers, 200),
        "wrong": 404,
        "never": 424,
        "pays": paid,
    }
    for item in answers:
        shown = "".join(frame["content"] for frame in said if frame["type"] == "token" and frame["request_id"] == item)
        assert shown == SAID.get(item, "")
        if item in SAID:
            assert answers[item]["body"]["response"] == SAID[item]
    await _check_children(server, reader, answers)
    _check_ledger(reader, ledger, answers["pays"])
    return str(paid)


async def _check_children(server: ServerProcess, reader: Reader, answers: Mapping[str, Any]) -> None:
    page = await get(server, f"{RUNS}?limit=200&parent={reader.run}")
    children = {child["id"]: child for child in page["runs"]}
    assert children.keys() == {f"{reader.run}_{number}" for number in RUN_ITEMS}
    for number_, item in RUN_ITEMS.items():
        run = f"{reader.run}_{number_}"
        assert answers[item]["run_id"] == run
        log = [
            json.loads(frame.payload)
            for frame in parse(await read_whole(server.port, run, "native", "ndjson"), "ndjson")
        ]
        kinds = Counter(event["kind"] for event in log)
        assert kinds["run.started"] == 1
        assert kinds["run.completed"] + kinds["run.failed"] + kinds["run.cancelled"] == 1
        assert kinds["message.start"] == kinds["message.end"] == (item in SAID)
        assert "".join(event["delta"] for event in log if event["kind"] == "text.delta") == SAID.get(item, "")
        if answers[item]["status"] == 200:
            assert log[-1]["kind"] == "run.completed"


def _check_ledger(reader: Reader, ledger: Counter[str], pays: Mapping[str, Any]) -> None:
    assert ledger[f"look {reader.run}_2"] >= 1
    assert ledger[f"look {reader.run}_9"] >= 1
    paid = ledger[f"pay {reader.run}_4"]
    if pays["status"] == 200:
        assert paid == 1
    else:
        assert (pays["status"], pays["code"]) == (409, "tool_outcome_unknown")
        assert paid <= 1


def ledger_of(path: Path) -> Counter[str]:
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


# --- the tests --------------------------------------------------------------------------------------------------------


def server_of(tmp_path: Path) -> ServerProcess:
    return ServerProcess(
        tmp_path / "data", MODEL, program=[str(Path(__file__))], BATCH_TIMEOUT="600", PYTHONPATH=os.getcwd()
    )


@pytest.mark.timeout(number(120, 3600))
async def test_batches_go_on_after_a_kill_at_each_point(tmp_path: Path) -> None:
    """Of one batch; each kill strikes all that are under way, wherever they are."""
    random = Random(seed())
    server = server_of(tmp_path)
    struck = 0
    async with server:
        for round_ in range(number(1, 20)):
            framings: list[Framing] = ["sse", "ndjson"]
            readers = [Reader(server, f"{round_}/{index}", random.choice(framings)) for index in range(number(3, 8))]
            reading = [asyncio.create_task(reader.read(lose_reply=random.random() < 0.3)) for reader in readers]
            for index in sorted(random.sample(range(len(POINTS)), number(4, 6))):
                await asyncio.wait_for(readers[0].has(POINTS[index][1]), TO_END)
                struck += sum(not reader.ended for reader in readers)
                await server.kill()
                await server.start()
            await asyncio.wait_for(asyncio.gather(*reading), TO_END)
            ledger = ledger_of(tmp_path / LEDGER)
            statuses = Counter([await check(server, reader, ledger) for reader in readers])
            print(f"{statuses} paid, {[reader.connections for reader in readers]} connections")
        listed = await get(server, f"{RUNS}?limit=200")
        assert {run["agent"] for run in listed["runs"]} == {"batch"}
        assert len(listed["runs"]) == min(200, number(3, 8) * number(1, 20))
        assert server.said() == ""
    assert struck > 0


async def test_what_has_run_right_before_the_kill_does_not_run_again(tmp_path: Path) -> None:
    """The tool has written its line, and its result is nowhere."""
    server = server_of(tmp_path)
    async with server:
        reader = Reader(server, "key", "sse")
        reading = asyncio.create_task(reader.read(lose_reply=False))
        async with asyncio.timeout(TO_END):
            while not any(line.startswith("pay") for line in ledger_of(tmp_path / LEDGER)):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await server.kill()
        await server.start()
        await asyncio.wait_for(reading, TO_END)
        assert await check(server, reader, ledger_of(tmp_path / LEDGER)) == "409"
        assert server.said() == ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(parser.parse_args()))
