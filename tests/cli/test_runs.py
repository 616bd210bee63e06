"""`headrace runs`."""

import asyncio
import json
from typing import Any

import pytest
from tests.cli.conftest import Command
from tests.server.serving import PATIENCE, Serving

from headrace.client import AsyncClient


async def test_list(headrace: Command, server: Serving) -> None:
    first = await server.finished(message="one\ttwo\nthree")
    second = await server.finished("fail")
    lines = (await headrace("runs", "list")).out.splitlines()
    assert [line.split("\t")[:3] for line in lines] == [[second, "failed", "fail"], [first, "completed", "default"]]
    assert lines[1].endswith("\tone two three")
    assert (await headrace("runs", "list", "--limit", "1")).out.splitlines() == lines[:1]
    assert (await headrace("runs", "list", "--state", "completed")).out.splitlines() == lines[1:]
    described = [json.loads(line) for line in (await headrace("runs", "list", "--json")).out.splitlines()]
    assert [run["id"] for run in described] == [second, first]


async def test_show(headrace: Command, server: Serving) -> None:
    run_id = await server.finished(message="hello", texts=["a", "b"])
    code, out, _ = await headrace("runs", "show", run_id)
    assert code == 0
    fields = dict(line.split(maxsplit=1) for line in out.split("\n\n")[0].splitlines())
    assert (fields["run"], fields["state"], fields["message"]) == (run_id, "completed", "hello")
    assert "2 text.delta" in fields["events"]
    assert out.endswith("\n\nab\n")


async def test_show_does_not_wait_for_a_run_that_goes_on(headrace: Command, server: Serving) -> None:
    run_id = await server.start("stall")
    assert "state         " in (await headrace("runs", "show", run_id)).out


async def test_tail_follows_to_the_end(headrace: Command, server: Serving) -> None:
    run_id = await server.start("stall")
    process = await headrace.begin("runs", "tail", run_id, "--json")
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        lines: list[dict[str, Any]] = []
        while not lines or lines[-1]["data"]["kind"] != "text.delta":
            lines.append(json.loads(await process.stdout.readline()))
        server.agents.gate.set()
        rest, _ = await process.communicate()
    assert process.returncode == 0
    lines += [json.loads(line) for line in rest.splitlines()]
    async with AsyncClient(server.url) as client:
        positions = [position async for position, _ in client.run(run_id).events()]
    assert [line["id"] for line in lines] == positions
    assert lines[-1]["data"]["output"] == "beforeafter"
    after = await headrace("runs", "tail", run_id, "--after", positions[-2])
    assert after.out.startswith(f"{positions[-1]} ")
    assert after.out.split()[1] == "run.completed"
    assert after.out.count("\n") == 1


async def test_tail_into_a_pipe_that_closes(headrace: Command, server: Serving) -> None:
    run_id = await server.finished(texts=["x" * 1000] * 200)
    process = await headrace.begin("runs", "tail", run_id)
    assert process.stdout is not None
    assert process.stderr is not None
    await process.stdout.readline()
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    assert await asyncio.wait_for(process.wait(), PATIENCE) == 141
    assert await process.stderr.read() == b""


async def test_replay(headrace: Command, server: Serving) -> None:
    run_id = await server.finished(texts=["a ", "b"])
    assert await headrace("runs", "replay", run_id, "--speed", "1000") == (0, "a b\n", "")
    failed = await server.finished("fail", texts=["some"])
    assert await headrace("runs", "replay", failed) == (1, "some\n", "headrace: The agent failed.\n")
    assert (await headrace("runs", "replay", run_id, "--speed", "0")).code == 2


async def test_cancel(headrace: Command, server: Serving) -> None:
    run_id = await server.start("stall")
    assert (await headrace("runs", "cancel", run_id)).code == 0
    async with AsyncClient(server.url) as client:
        kinds = [type(event).__name__ async for _, event in client.run(run_id).events()]
    assert kinds[-1] == "RunCancelled"
    assert await headrace("runs", "cancel", run_id) == (0, "cancelled\n", "")


@pytest.mark.parametrize("command", ["show", "tail", "replay", "cancel"])
async def test_a_run_that_is_not_there(headrace: Command, server: Serving, command: str) -> None:
    assert await headrace("runs", command, "run_x") == (1, "", "headrace: There is nothing here that you can see.\n")
