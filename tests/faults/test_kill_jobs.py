"""kill -9 of the server in the middle of a batch job: each line comes to exactly one result, each of its runs is made
once, and a live reader that comes back gets every result once.

Run as a program, this is the server: `headrace serve` with two tools that write a line, `look`, which may run twice,
and `pay`, which may not.

    python test_kill_jobs.py --port PORT --data DIR --model MODEL
"""

import argparse
import asyncio
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
import uvloop
from tests.torture.frames import ACCEPT, Frame, Frames, Framing, parse
from tests.torture.process import PATIENCE, ServerProcess
from tests.torture.scale import TORTURE, number, seed
from tests.torture.wire import Response, ask, request

from headrace import Headrace
from headrace.log_output import configure
from headrace.ports import ToolContext, child_id
from headrace.server.listener import Listener
from headrace.settings import load_settings
from headrace.tools.function import tool

ROOT = Path(__file__).parents[2]
JOBS = "/api/batches"
ITEMS = number(300, 50_000)
KILLS = number(4, 10)
TO_END = number(60, 600)
"""Seconds in which a job has to end that nothing stops any more."""
LEDGER = "ledger"
FRAMINGS: tuple[Framing, ...] = ("sse", "ndjson")


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
    async def look(context: ToolContext) -> dict[str, str]:
        """Writes a line; may run twice."""
        write_line(ledger, "look", context)
        await asyncio.sleep(0.05)  # the time that it takes, in which it may be killed
        return {"looked": context.run.id}

    @tool
    async def pay(context: ToolContext) -> dict[str, str]:
        """Writes a line; may not run twice."""
        write_line(ledger, "pay", context)
        await asyncio.sleep(0.05)
        return {"paid": context.run.id}

    settings = load_settings(data=arguments.data, model=arguments.model, tools=())
    configure(settings.log_level, settings.log_format)
    app: Any = (headrace := Headrace(settings, tools=[look, pay])).app
    listener = Listener(app, port=arguments.port, drain=headrace.drain)
    serving = asyncio.create_task(listener.serve())
    started = asyncio.create_task(listener.started.wait())
    await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    print("Headrace serves", flush=True)
    await serving


# --- clients ----------------------------------------------------------------------------------------------------------


async def upload(server: ServerProcess, content: bytes, key: str, query: str = "") -> dict[str, Any]:
    """The job that there is once somebody has answered, however often that takes."""
    while True:
        await server.up.wait()
        try:
            return await _upload(server, content, key, query)
        except ConnectionError:
            continue


async def _upload(server: ServerProcess, content: bytes, key: str, query: str) -> dict[str, Any]:
    fields = {"Content-Type": "application/jsonl", "Content-Length": str(len(content)), "Idempotency-Key": key}
    stream, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request("POST", JOBS + query, headers=fields))
        writer.write(content)
        response = Response(stream, None)
        await response.head()
        said: dict[str, Any] = await response.json()
        assert response.status in (200, 201), said
        return said
    finally:
        writer.transport.abort()


async def tell(server: ServerProcess, method: str, path: str) -> Any:
    async with ask(server.port, method, path, headers={"Accept": "application/json"}) as response:
        assert response.status < 300, response.status
        return await response.json()


class LiveReader:
    """Follows a job to its end, over as many connections as that takes."""

    def __init__(self, server: ServerProcess, job_id: str, framing: Framing) -> None:
        self.frames: list[Frame] = []
        self.results = 0
        self.connections = 0
        self._server = server
        self._path = f"{JOBS}/{job_id}/results"
        self._framing = framing
        self._ended = False
        self._progress = asyncio.Condition()

    async def read(self) -> None:
        while not self._ended:
            await self._server.up.wait()
            try:
                await self._read_on()
            except ConnectionError:
                continue

    @property
    def said(self) -> list[tuple[str | None, bytes]]:
        return [said(frame) for frame in self.frames]

    async def has(self, results: int) -> None:
        """Until so many results came, or the job has ended."""
        async with self._progress:
            await self._progress.wait_for(lambda: self.results >= results or self._ended)

    async def _read_on(self) -> None:
        target, headers = self._path, {"Accept": ACCEPT[self._framing]}
        if self.frames and self._framing == "sse":
            headers["Last-Event-ID"] = str(self.frames[-1].position)
        elif self.frames:
            target += f"?after={self.frames[-1].position}"
        async with ask(self._server.port, "GET", target, headers=headers) as response:
            assert response.status in (200, 204), response.status
            self.connections += 1
            frames = Frames(self._framing)
            async for part in response.parts():
                self.frames += (new := frames.feed(part))
                self.results += sum(b'"type":"result"' in frame.payload for frame in new)
                async with self._progress:
                    self._progress.notify_all()
        assert json.loads(self.frames[-1].payload)["type"] in ("finished", "error"), "ended in order without an end"
        self._ended = True
        async with self._progress:
            self._progress.notify_all()


def said(frame: Frame) -> tuple[str | None, bytes]:
    """Without what stands before the first frame of a connection: when to come back."""
    return frame.position, frame.payload


def results_of(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    documents = [json.loads(frame.payload) for frame in frames]
    return [document for document in documents if document["type"] == "result"]


async def read_whole(server: ServerProcess, job_id: str, framing: Framing) -> Sequence[Frame]:
    """Over one connection that nothing cuts."""
    async with ask(server.port, "GET", f"{JOBS}/{job_id}/results", headers={"Accept": ACCEPT[framing]}) as response:
        return parse(await response.body(), framing)


def words(line: int) -> str:
    return f"line {line} in words of its own"


def chats(count: int) -> bytes:
    lines = [json.dumps({"id": f"q{line}", "body": {"message": words(line)}}) for line in range(1, count + 1)]
    return "\n".join(lines).encode()


# --- the log as it lies on the disk -----------------------------------------------------------------------------------


def check_children(data: Path, job_id: str, lines: Sequence[int]) -> Counter[str]:
    """Each line is one run, which was started once and ended once. Gives how many ended in which way."""
    with closing(sqlite3.connect(data / "log.db")) as db:
        rows = db.execute("SELECT no, id, state FROM runs WHERE parent = ?", (job_id,)).fetchall()
        assert sorted(id for _, id, _ in rows) == sorted(child_id(job_id, line) for line in lines)
        numbers = {no: id for no, id, _ in rows}
        started: Counter[str] = Counter()
        ended: Counter[str] = Counter()
        for no, body in db.execute("SELECT run, body FROM blocks"):
            if (id := numbers.get(no)) is not None:
                started[id] += body.count(b'{"kind":"run.started"')
                ended[id] += sum(
                    body.count(b'{"kind":"run.%b"' % end) for end in (b"completed", b"failed", b"cancelled")
                )
    assert set(started.values()) <= {1}
    assert started == ended
    assert len(started) == len(lines)
    return Counter(state for _, _, state in rows)


# --- tests ------------------------------------------------------------------------------------------------------------


async def kill_in_the_middle(
    server: ServerProcess, reader: LiveReader, random: Random, *, kills: int, items: int
) -> None:
    """Each time some results after the last one; now and then in the middle of a start."""
    for kill in range(kills):
        async with asyncio.timeout(TO_END):
            await reader.has(int(items * (kill + random.random()) / (kills + 1)))
        if random.random() < 0.2:
            await server.kill()
            await server.spawn()
            await asyncio.sleep(random.uniform(0, 0.7))  # where in its start it is struck is chance
        await server.kill()
        await server.start()


class Memory:
    """What the server takes, as often as it is asked."""

    def __init__(self, server: ServerProcess, reader: LiveReader) -> None:
        self.marks: list[tuple[int, int]] = []
        self._server = server
        self._reader = reader

    async def watch(self) -> None:
        for mark in range(1, 20):
            await self._reader.has(ITEMS * mark // 20)
            if self._server.up.is_set():
                self.marks.append((self._reader.results, self._server.resident() >> 20))


@pytest.mark.timeout(TO_END * 3)
async def test_each_line_comes_to_one_result_however_often_the_server_is_killed(tmp_path: Path) -> None:
    random = Random(seed())
    data = tmp_path / "data"
    model = "demo:echo" if TORTURE else "demo:echo?pace_ms=5"
    async with ServerProcess(data, model, HEADRACE_JOB_CONCURRENCY="64") as server:
        job = await upload(server, chats(ITEMS), "key", "?concurrency=64")
        began = time.perf_counter()
        readers = {framing: LiveReader(server, job["id"], framing) for framing in FRAMINGS}
        reading = asyncio.gather(*(reader.read() for reader in readers.values()))
        memory = Memory(server, readers["sse"])
        watching = asyncio.create_task(memory.watch())
        await kill_in_the_middle(server, readers["sse"], random, kills=KILLS, items=ITEMS)
        await asyncio.wait_for(reading, TO_END)
        seconds = time.perf_counter() - began
        watching.cancel()
        again = await upload(server, chats(ITEMS), "key", "?concurrency=64")
        assert again["id"] == job["id"]
        assert again["counts"] == {"total": ITEMS, "succeeded": ITEMS, "failed": 0, "remaining": 0}
        for framing, reader in readers.items():
            assert reader.connections > 1, "the kills did cut it"
            assert reader.said == [said(frame) for frame in await read_whole(server, job["id"], framing)]
        results = results_of(readers["sse"].frames)
        async with ask(server.port, "GET", again["files"]["succeeded"]) as response:
            kept = [json.loads(line) for line in (await response.body()).splitlines()]
        assert [{"type": "result", **line} for line in kept] == results
        assert server.said() == ""
    assert sorted(result["line"] for result in results) == list(range(1, ITEMS + 1))
    for result in results:
        line = result["line"]
        assert (result["id"], result["status"]) == (f"q{line}", 200)
        assert result["body"]["response"] == words(line)
        assert result["run_id"] == child_id(job["id"], line)
    assert check_children(data, job["id"], range(1, ITEMS + 1)) == {"completed": ITEMS}
    assert [path.name for path in (data / "batches").iterdir()] == [f"{job['id']}.jsonl"]
    print(f"{ITEMS} items, {KILLS} kills, {seconds:.1f} s with the restarts, {ITEMS / seconds:.0f} items/s")
    print("results and MiB:", *memory.marks)


@pytest.mark.timeout(TO_END * 2)
async def test_what_may_not_run_twice_does_not(tmp_path: Path) -> None:
    random = Random(seed())
    data = tmp_path / "data"
    count = number(200, 2_000)
    names = [random.choice(["look", "pay"]) for _ in range(count)]
    lines = [json.dumps({"path": f"/api/tools/{name}/execute", "body": {}}) for name in names]
    async with ServerProcess(data, "demo:echo", program=[__file__], PYTHONPATH=str(ROOT)) as server:
        job = await upload(server, "\n".join(lines).encode(), "key", "?concurrency=16")
        reader = LiveReader(server, job["id"], "sse")
        reading = asyncio.create_task(reader.read())
        await kill_in_the_middle(server, reader, random, kills=KILLS, items=count)
        await asyncio.wait_for(reading, TO_END)
        assert reader.said == [said(frame) for frame in await read_whole(server, job["id"], "sse")]
    ledger = Counter((tmp_path / LEDGER).read_text().splitlines())
    results = {result["line"]: result for result in results_of(reader.frames)}
    assert sorted(results) == list(range(1, count + 1))
    unknown = 0
    for line, name in enumerate(names, 1):
        result, runs = results[line], ledger[f"{name} {child_id(job['id'], line)}"]
        if result["status"] == 200:
            assert result["body"] == {"result": {{"look": "looked", "pay": "paid"}[name]: result["run_id"]}}
            assert runs >= 1
        else:
            unknown += 1
            assert (name, result["status"], result["code"]) == ("pay", 409, "tool_outcome_unknown")
        if name == "pay":
            assert runs <= 1
    assert unknown <= 16 * (2 * KILLS), "only what ran when the server was killed"
    states = check_children(data, job["id"], range(1, count + 1))
    assert states == Counter(completed=count - unknown, failed=unknown)


async def test_a_kill_while_a_file_is_taken_leaves_one_job_or_none(tmp_path: Path) -> None:
    """Who sends it again with the same key, until somebody answers, has one job."""
    random = Random(seed())
    data = tmp_path / "data"
    rounds = number(4, 60)
    content = chats(2_000)
    async with ServerProcess(data, "demo:echo") as server:
        for round_ in range(rounds):
            uploading = asyncio.create_task(upload(server, content, f"key {round_}", f"?name={round_}"))
            await asyncio.sleep(random.uniform(0, 0.15))  # where it is struck is chance
            await server.kill()
            await server.start()
            job = await asyncio.wait_for(uploading, PATIENCE)
            again = await upload(server, content, f"key {round_}", f"?name={round_}")
            assert again["id"] == job["id"]
            await tell(server, "POST", f"{JOBS}/{job['id']}/cancel")
        listed = (await tell(server, "GET", f"{JOBS}?limit=100"))["batches"]
        assert [job["name"] for job in listed] == [str(round_) for round_ in reversed(range(rounds))]
        await server.kill()
        await server.start()
        files = sorted(path.name for path in (data / "batches").iterdir())
        assert files == sorted(f"{job['id']}.jsonl" for job in listed)


async def test_a_kill_after_a_cancel_does_not_bring_the_job_back(tmp_path: Path) -> None:
    random = Random(seed())
    data = tmp_path / "data"
    async with ServerProcess(data, "demo:echo?pace_ms=20") as server:
        job = await upload(server, chats(500), "key", "?concurrency=16")
        reader = LiveReader(server, job["id"], "sse")
        reading = asyncio.create_task(reader.read())
        await reader.has(random.randint(1, 60))
        await tell(server, "POST", f"{JOBS}/{job['id']}/cancel")
        await asyncio.sleep(random.uniform(0, 0.05))  # where it is struck is chance
        await server.kill()
        await server.start()
        await asyncio.wait_for(reading, PATIENCE)
        now = await tell(server, "GET", f"{JOBS}/{job['id']}")
        assert now["state"] == "cancelled"
        lines = [result["line"] for result in results_of(reader.frames)]
        assert len(lines) == len(set(lines)) == now["counts"]["succeeded"] + now["counts"]["failed"]
        retried = await tell(server, "POST", f"{JOBS}/{job['id']}/retry")
        assert retried["counts"]["total"] == 500 - now["counts"]["succeeded"]
    states = check_children(data, job["id"], lines)
    assert states == Counter(completed=now["counts"]["succeeded"], cancelled=now["counts"]["failed"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(parser.parse_args()))
