"""`headrace batch`: a file of operations, its results, and going on after Ctrl-C."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Command, Interrupt
from tests.server.serving import PATIENCE, Serving, read_until


def write_operations(path: Path, *bodies: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps({"id": f"op-{n}", "body": body}) + "\n" for n, body in enumerate(bodies, 1)))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def job_of(server: Serving) -> dict[str, Any]:
    [job] = (await server.ask("GET", "/api/batches")).json()["batches"]
    found: dict[str, Any] = job
    return found


async def test_a_file_is_worked_through(headrace: Command, server: Serving, tmp_path: Path) -> None:
    write_operations(tmp_path / "ops.jsonl", {"message": "one"}, {"message": "two"}, {"message": "three"})
    result = await headrace("batch", "run", "ops.jsonl", "--name", "three", "--concurrency", "2")
    assert result.code == 0
    assert result.out == "3 succeeded: ops.results.jsonl\n"
    answers = {line["id"]: line["body"]["response"] for line in read_lines(tmp_path / "ops.results.jsonl")}
    assert answers == {"op-1": "one", "op-2": "two", "op-3": "three"}
    assert not (tmp_path / "ops.failed.jsonl").exists()
    assert not (tmp_path / "ops.jsonl.job").exists()
    job = await job_of(server)
    assert (job["name"], job["concurrency"]) == ("three", 2)


async def test_what_failed_stands_apart_and_is_the_exit_code(
    headrace: Command, server: Serving, tmp_path: Path
) -> None:
    write_operations(
        tmp_path / "ops.jsonl", {"message": "one"}, {"message": "x", "agent_id": "fail"}, {"message": "three"}
    )
    result = await headrace("batch", "run", "ops.jsonl", "--output", "out.jsonl")
    assert result.code == 1
    assert result.out == "2 succeeded: out.jsonl\n1 failed: out.failed.jsonl\n"
    assert "headrace batch retry run_" in result.err
    assert [line["id"] for line in read_lines(tmp_path / "out.failed.jsonl")] == ["op-2"]
    job = await job_of(server)
    shown = await headrace("batch", "show", job["id"])
    assert "failed       1\n" in shown.out
    assert "state        completed\n" in shown.out
    failed = await headrace("batch", "results", job["id"], "--failed")
    assert [json.loads(line)["id"] for line in failed.out.splitlines()] == ["op-2"]
    succeeded = await headrace("batch", "results", job["id"], "--succeeded")
    assert {json.loads(line)["id"] for line in succeeded.out.splitlines()} == {"op-1", "op-3"}
    again = await headrace("batch", "retry", job["id"])
    retried = (await server.ask("GET", f"/api/batches/{again.out.strip()}")).json()
    assert (retried["retry_of"], retried["counts"]["total"]) == (job["id"], 1)
    listed = await headrace("batch", "list", "--limit", "1")
    assert listed.out.startswith(again.out.strip())


async def test_the_same_command_goes_on_after_an_interrupt(
    headrace: Command, server: Serving, tmp_path: Path, interrupt: Interrupt
) -> None:
    write_operations(tmp_path / "ops.jsonl", {"message": "one"}, {"message": "wait", "agent_id": "stall"})
    process = await headrace.begin("batch", "run", "ops.jsonl")
    assert process.stderr is not None
    told = await asyncio.wait_for(process.stderr.readline(), PATIENCE)
    assert b"works on it" in told
    assert (await interrupt(process)).code == 130
    job = await job_of(server)
    assert job["state"] == "running"
    server.agents.gate.set()
    result = await headrace("batch", "run", "ops.jsonl")
    assert result.err == f"Going on with {job['id']}.\n"
    assert result.code == 0
    assert {line["id"] for line in read_lines(tmp_path / "ops.results.jsonl")} == {"op-1", "op-2"}
    assert (await job_of(server))["id"] == job["id"]


async def test_another_content_is_another_job(
    headrace: Command, server: Serving, tmp_path: Path, interrupt: Interrupt
) -> None:
    write_operations(tmp_path / "ops.jsonl", {"message": "wait", "agent_id": "stall"})
    process = await headrace.begin("batch", "run", "ops.jsonl")
    assert process.stderr is not None
    await asyncio.wait_for(process.stderr.readline(), PATIENCE)
    await interrupt(process)
    write_operations(tmp_path / "ops.jsonl", {"message": "other"})
    result = await headrace("batch", "run", "ops.jsonl", "--output", "other.jsonl")
    assert result.code == 0
    assert read_lines(tmp_path / "other.jsonl")[0]["body"]["response"] == "other"
    assert len((await server.ask("GET", "/api/batches")).json()["batches"]) == 2
    server.agents.gate.set()


async def test_a_cancelled_job_keeps_what_is_done(headrace: Command, server: Serving, tmp_path: Path) -> None:
    write_operations(tmp_path / "ops.jsonl", {"message": "one"}, {"message": "wait", "agent_id": "stall"})
    process = await headrace.begin("batch", "run", "ops.jsonl", "--concurrency", "1")
    assert process.stderr is not None
    await asyncio.wait_for(process.stderr.readline(), PATIENCE)
    job = await job_of(server)
    stream = await server.begin(f"/api/batches/{job['id']}/results")
    await read_until(stream, b'"result"')
    stream.close()
    cancelled = await headrace("batch", "cancel", job["id"])
    assert cancelled.out in ("cancel requested\n", "cancelled\n")
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert b"1 succeeded: ops.results.jsonl\n" in out
    assert b"The run was cancelled." in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"body": {"message": 5}}\n', "line 1: /body/message"),
        (b"", "line 1: the file has no operation"),
        (b'{"body": {"message": "a"}, "path": "/api/batch"}\n', "line 1: no operation of a job"),
    ],
)
async def test_a_file_that_cannot_be_taken_is_told_line_by_line(
    headrace: Command, server: Serving, tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "ops.jsonl").write_bytes(content)
    result = await headrace("batch", "run", "ops.jsonl")
    assert result.code == 1
    assert words in result.err
    assert (await server.ask("GET", "/api/batches")).json()["batches"] == []


async def test_a_file_that_is_not_there_is_told(headrace: Command, server: Serving) -> None:
    result = await headrace("batch", "run", "nothing.jsonl")
    assert (result.code, result.err) == (78, "headrace: There is no file 'nothing.jsonl'.\n")


async def test_an_unknown_job_is_told(headrace: Command, server: Serving) -> None:
    for command in ("show", "cancel", "results", "retry"):
        result = await headrace("batch", command, "run_nothing")
        assert result.code == 1
        assert result.err == "headrace: There is nothing here that you can see.\n"


@pytest.mark.parametrize(
    ("there", "output"),
    [
        ("ops.results.jsonl", None),
        ("ops.failed.jsonl", None),
        ("ops.jsonl", "ops.jsonl"),
        ("out.failed.jsonl", "out.jsonl"),
    ],
)
async def test_nothing_that_is_there_is_overwritten(
    headrace: Command, server: Serving, tmp_path: Path, there: str, output: str | None
) -> None:
    write_operations(tmp_path / "ops.jsonl", {"message": "one"})
    (tmp_path / there).touch()
    before = (tmp_path / there).read_bytes()
    result = await headrace("batch", "run", "ops.jsonl", *(["--output", output] if output else []))
    assert (result.code, result.out) == (78, "")
    assert f"'{there}' is there already" in result.err
    assert (tmp_path / there).read_bytes() == before
    assert (await server.ask("GET", "/api/batches")).json()["batches"] == []


async def test_an_output_that_cannot_be_written_is_told_before_a_job_is_started(
    headrace: Command, server: Serving, tmp_path: Path
) -> None:
    write_operations(tmp_path / "ops.jsonl", {"message": "one"})
    result = await headrace("batch", "run", "ops.jsonl", "--output", "nowhere/out.jsonl")
    assert result.code == 78
    assert result.err == "headrace: 'nowhere/out.jsonl' cannot be written: No such file or directory.\n"
    assert (await server.ask("GET", "/api/batches")).json()["batches"] == []


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("ops*")]


async def test_a_file_that_was_refused_leaves_nothing_behind(
    headrace: Command, server: Serving, tmp_path: Path
) -> None:
    (tmp_path / "ops.jsonl").write_text("{")
    assert (await headrace("batch", "run", "ops.jsonl")).code == 1
    assert names_in(tmp_path) == ["ops.jsonl"]


async def test_options_cannot_be_changed_while_a_job_goes_on(
    headrace: Command, server: Serving, tmp_path: Path, interrupt: Interrupt
) -> None:
    write_operations(tmp_path / "ops.jsonl", {"message": "wait", "agent_id": "stall"})
    process = await headrace.begin("batch", "run", "ops.jsonl")
    assert process.stderr is not None
    await asyncio.wait_for(process.stderr.readline(), PATIENCE)
    await interrupt(process)
    result = await headrace("batch", "run", "ops.jsonl", "--concurrency", "3")
    assert result.code == 78
    assert "begun with other options" in result.err
    server.agents.gate.set()
    assert (await headrace("batch", "run", "ops.jsonl")).code == 0
