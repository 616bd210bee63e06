"""`/api/batches` over real sockets: what a file may hold, what a job tells, and what nobody else may see of it."""

import asyncio
import base64
import hashlib
import hmac
import io
import json
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.server.serving import (
    JSON,
    NDJSON,
    PATIENCE,
    SSE,
    Agents,
    Answer,
    Frame,
    Serving,
    Start,
    eventually,
    parse_lines,
    parse_sse,
    read_until,
    settings,
)

from headrace.agents.generator import generator_agent
from headrace.batch.jobs.file import Operation
from headrace.bootstrap import Headrace
from headrace.errors import BatchFileInvalid, ConfigurationError, HeadraceError, ModelUnavailable
from headrace.identity import Principal
from headrace.ports import AgentFactory, RunContext
from headrace.server.auth import KeyFile
from headrace.server.job_lines import JobLines
from headrace.server.listener import Deadlines
from headrace.tools.function import tool

JOBS = "/api/batches"
FILE = {"Content-Type": "application/jsonl"}


def jsonl(*lines: Any) -> bytes:
    """Each line as JSON, or as it is where it is bytes."""
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


def chats(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"q{number}", "body": {"message": f"No. {number}", **more}} for number in range(1, count + 1)]


async def upload(server: Serving, content: bytes, query: str = "", **headers: str) -> Answer:
    return await server.ask("POST", f"{JOBS}{query}", data=io.BytesIO(content), headers={**FILE, **headers})


async def started(server: Serving, *lines: Any, query: str = "", **headers: str) -> dict[str, Any]:
    answer = await upload(server, jsonl(*lines), query, **headers)
    assert answer.status == 201, answer
    job: dict[str, Any] = answer.json()
    return job


async def look(server: Serving, job: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = await server.ask("GET", f"{JOBS}/{job['id']}", headers=headers)
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json()
    return found


async def frames_of(server: Serving, job: dict[str, Any], query: str = "", **headers: str) -> list[Frame]:
    answer = await server.ask("GET", f"{JOBS}/{job['id']}/results{query}", headers=headers or SSE)
    assert answer.status == 200, answer
    return parse_sse(answer.body) if "event-stream" in answer.headers["Content-Type"] else parse_lines(answer.body)


def results(frames: Sequence[Frame]) -> dict[str, dict[str, Any]]:
    """By the caller's id; each has exactly one."""
    found = [frame.data for frame in frames if frame.data["type"] == "result"]
    by_id = {result["id"]: result for result in found}
    assert len(by_id) == len(found)
    return by_id


async def ended(server: Serving, *lines: Any, query: str = "", **headers: str) -> dict[str, Any]:
    """A job that was followed to its end, as it is described then."""
    job = await started(server, *lines, query=query, **headers)
    await frames_of(server, job, **SSE, **headers)
    return await look(server, job, **headers)


def kept(server: Serving) -> list[str]:
    """What there is of files."""
    folder = server.headrace.settings.data / (
        "batches-memory" if server.headrace.settings.engine == "memory" else "batches"
    )
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


async def nothing_is_there(server: Serving) -> None:
    assert (await server.ask("GET", JOBS)).json() == {"batches": [], "next": None}
    assert (await server.ask("GET", "/api/runs")).json()["runs"] == []
    assert kept(server) == []


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "auth.json")


def as_(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


# --- what a file may hold ---------------------------------------------------------------------------------------------

GOOD = {"body": {"message": "Hi"}}
DEEP = b'{"body":{"message":"x","output_schema":' + b'{"a":' * 70 + b"1" + b"}" * 70 + b"}}"
CALCULATE = "/api/tools/calculate/execute"

FAULTY_LINES: list[tuple[Any, str]] = [
    (b"{", "not a JSON object"),
    (b"[]", "not a JSON object"),
    (b'"text"', "not a JSON object"),
    (b"null", "not a JSON object"),
    (b'{"body":{"message":"a"}} {"body":{"message":"b"}}', "not a JSON object"),
    (b'{"body":{"message":NaN}}', "not a JSON object"),
    (b'{"body":{"message":"\\ud800"}}', "not a JSON object"),
    (b'{"body":{"message":"\xff"}}', "not a JSON object"),
    (b'{"body":{"message":"\xc3"}}', "not a JSON object"),
    (b"\xff\xfe{\x00}\x00", "not a JSON object"),
    (b'{"body":{"message":"a"},"body":{"message":"b"}}', "twice"),
    (DEEP, "deep"),
    ({}, "/body"),
    ({"body": None}, "/body"),
    ({"body": []}, "/body"),
    ({"body": {}}, "/message"),
    ({"body": {"message": ""}}, "/message"),
    ({"body": {"message": 1}}, "/message"),
    ({"body": {"message": "x", "temperature": 1}}, "/temperature"),
    ({"body": {"message": "x", "agent_id": "nobody"}}, "no such agent"),
    ({"body": {"message": "x", "agent_id": "batch_job"}}, "no such agent"),
    ({"body": {"message": "x", "agent_id": "tool"}}, "no such agent"),
    ({"body": {"message": "x", "model": "gpt-none"}}, "/model"),
    ({"body": {"message": "x", "conversation_id": "a\nb"}}, "/conversation_id"),
    ({"body": {"message": "x", "output_schema": {"type": "strange"}}}, "/body/output_schema"),
    ({"path": "/api/runs", "body": {"input": {"output_schema": {"type": 1}}}}, "/body/input/output_schema"),
    ({**GOOD, "headers": {"Authorization": "Bearer x"}}, "/headers"),
    ({**GOOD, "dependsOn": ["1"]}, "/dependsOn"),
    ({**GOOD, "url": "http://169.254.169.254/"}, "/url"),
    ({**GOOD, "method": "GET"}, "POST"),
    ({**GOOD, "method": "post"}, "POST"),
    ({**GOOD, "method": "PO ST"}, "POST"),
    ({**GOOD, "method": 1}, "/method"),
    ({**GOOD, "path": ""}, "no operation of a job"),
    ({**GOOD, "path": "/api/batches"}, "no operation of a job"),
    ({**GOOD, "path": "/api/batch"}, "no operation of a job"),
    ({**GOOD, "path": "//api/agent/chat"}, "no operation of a job"),
    ({**GOOD, "path": "/api/./agent/chat"}, "no operation of a job"),
    ({**GOOD, "path": "/API/AGENT/CHAT"}, "no operation of a job"),
    ({**GOOD, "path": "/api/%61gent/chat"}, "no operation of a job"),
    ({**GOOD, "path": "/api/agent/chat?stream=true"}, "no operation of a job"),
    ({**GOOD, "path": "/api/agent/chat\n"}, "no operation of a job"),
    ({**GOOD, "path": "http://169.254.169.254/"}, "no operation of a job"),
    ({**GOOD, "path": "/metrics"}, "no operation of a job"),
    ({**GOOD, "path": "/x" * 5000}, "/path"),
    ({**GOOD, "id": ""}, "/id"),
    ({**GOOD, "id": "a\nb"}, "/id"),
    ({**GOOD, "id": "a\n"}, "/id"),
    ({**GOOD, "id": "ä"}, "/id"),
    ({**GOOD, "id": "x" * 129}, "/id"),
    ({**GOOD, "id": 7}, "/id"),
    ({"path": "/api/runs", "body": {"message": "x"}}, "/input"),
    ({"path": "/api/runs", "body": {"agent": "nobody", "input": {}}}, "no such agent"),
    ({"path": "/api/runs", "body": {"agent": "batch_notice", "input": {}}}, "no such agent"),
    ({"path": CALCULATE, "body": {"parameters": {}}}, "expression"),
    ({"path": CALCULATE, "body": {"parameters": {"expression": 1}}}, "/body/parameters/expression"),
    ({"path": CALCULATE, "body": {"parameters": {"expression": "1"}, "x": 1}}, "/x"),
    ({"path": CALCULATE, "body": {"expression": "1"}}, "/expression"),
    ({"path": "/api/tools/nothing/execute", "body": {}}, "no such tool"),
    ({"path": "/api/tools/../execute", "body": {}}, "no such tool"),
    ({"path": "/api/tools/a/b/execute", "body": {}}, "no operation of a job"),
    ({"path": "/api/tools/secret_tool/execute", "body": {}}, "no such tool"),
]


@pytest.fixture
async def checking(start: Start, keys: KeyFile) -> tuple[Serving, dict[str, str]]:
    """A server for callers with keys, with a tool that needs a scope, and a key without it."""
    ada = as_(keys.create("ada").secret)
    server: Serving = await start(tools=("calculate",))
    server.headrace.tools.add(_secret_tool)
    return server, ada


@tool(name="secret_tool", scope="secrets")
async def _secret_tool() -> str:
    """Needs a scope."""
    return "secret"


@pytest.mark.parametrize(("line", "words"), FAULTY_LINES, ids=lambda value: str(value)[:50])
async def test_a_faulty_line_is_named_and_nothing_is_started(
    checking: tuple[Serving, dict[str, str]], line: Any, words: str
) -> None:
    server, ada = checking
    answer = await upload(server, jsonl({**GOOD, "id": "first"}, b"", line, {**GOOD, "id": "last"}), **ada)
    assert answer.problem == (422, "batch.file_invalid"), answer
    (fault,) = answer.json()["errors"]
    assert fault["line"] == 3
    assert words in fault["detail"]
    assert len(fault["detail"]) <= 500
    assert (await server.ask("GET", JOBS, headers=ada)).json()["batches"] == []
    assert (await server.ask("GET", "/api/runs", headers=ada)).json()["runs"] == []
    assert kept(server) == []


async def test_at_most_twenty_faults_are_told_of_the_lines_that_have_them(server: Serving) -> None:
    lines = [b"{" if number % 2 else json.dumps({**GOOD, "id": str(number)}).encode() for number in range(1, 101)]
    answer = await upload(server, jsonl(*lines))
    assert answer.problem == (422, "batch.file_invalid")
    assert [fault["line"] for fault in answer.json()["errors"]] == list(range(1, 41, 2))
    await nothing_is_there(server)


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\r\n", b" \t\n \n\n"])
async def test_a_file_without_an_operation_is_none(server: Serving, content: bytes) -> None:
    answer = await upload(server, content)
    assert answer.problem == (422, "batch.file_invalid")
    assert answer.json()["errors"] == [{"line": 1, "detail": "the file has no operation"}]
    await nothing_is_there(server)


async def test_an_id_may_be_there_once(server: Serving) -> None:
    given = [
        {**GOOD, "id": "a"},
        {**GOOD, "id": "b"},
        {**GOOD, "id": "a"},
        {**GOOD, "id": "6"},
        {**GOOD, "id": "A"},
        GOOD,
    ]
    answer = await upload(server, jsonl(*given))
    assert answer.problem == (422, "batch.file_invalid")
    assert [fault["line"] for fault in answer.json()["errors"]] == [3, 6], "line 6 has its number as its id"


async def test_a_byte_order_mark_is_a_fault_of_the_first_line(server: Serving) -> None:
    answer = await upload(server, b"\xef\xbb\xbf" + jsonl(GOOD, GOOD))
    assert answer.problem == (422, "batch.file_invalid")
    assert [fault["line"] for fault in answer.json()["errors"]] == [1]


@pytest.mark.parametrize(
    "content",
    [
        jsonl(*chats(3)),
        jsonl(*chats(3)).removesuffix(b"\n"),
        jsonl(*chats(3)).replace(b"\n", b"\r\n"),
        jsonl(*chats(3)).replace(b"\n", b"\n\r\n \n"),
        jsonl(*chats(3)).replace(b"\n", b" \t\r\n  "),
        b"\n\n" + jsonl(*chats(3)) + b"\n\n",
        jsonl(*chats(3)).replace(b'": ', b'"\t : \r'),  # white space inside of JSON may be anything but a line feed
    ],
    ids=range(7),
)
async def test_lines_may_end_and_be_spaced_in_any_way(server: Serving, content: bytes) -> None:
    answer = await upload(server, content)
    assert answer.status == 201, answer
    found = results(await frames_of(server, answer.json()))
    assert {id: result["body"]["response"] for id, result in found.items()} == {
        "q1": "No. 1",
        "q2": "No. 2",
        "q3": "No. 3",
    }


async def test_without_an_id_the_number_of_the_line_is_it(server: Serving) -> None:
    job = await started(server, GOOD, b"", {**GOOD, "id": "x"}, GOOD)
    found = results(await frames_of(server, job))
    assert {id: result["line"] for id, result in found.items()} == {"1": 1, "x": 2, "4": 3}


async def test_operations_of_every_kind_are_answered_like_single_calls(start: Start) -> None:
    server = await start(tools=("calculate",))
    lines = [
        {"id": "chat", "body": {"message": "Hi", "conversation_id": "c"}},
        {"id": "run", "path": "/api/runs", "body": {"input": {"texts": ["a", "b"]}}},
        {"id": "tool", "path": CALCULATE, "body": {"parameters": {"expression": "6 * 7"}}},
        {"id": "wrong", "path": CALCULATE, "body": {"parameters": {"expression": "1 / 0"}}},
        {"id": "fails", "body": {"message": "Hi", "agent_id": "fail"}},
    ]
    job = await ended(server, *lines)
    found = results(await frames_of(server, job))
    chat = found["chat"]
    assert chat["status"] == 200
    assert chat["body"] == {
        "response": "Hi",
        "message_id": chat["run_id"].replace("run_", "msg_"),
        "run_id": chat["run_id"],
    }
    run = found["run"]
    assert run["body"] == {"output": "ab", "run_id": run["run_id"]}
    assert found["tool"]["body"] == {"result": {"value": 42}}
    for id, (status, code) in {"wrong": (422, "tool.refused"), "fails": (500, "agent.failed")}.items():
        assert (found[id]["status"], found[id]["code"]) == (status, code)
        assert found[id]["error"]
        assert "body" not in found[id]
    for result in found.values():
        described = (await server.ask("GET", f"/api/runs/{result['run_id']}")).json()
        assert described["parent_run_id"] == job["id"]
    described = (await server.ask("GET", f"/api/runs/{chat['run_id']}")).json()
    assert described["conversation_id"] == "c"
    assert job["counts"] == {"total": 5, "succeeded": 3, "failed": 2, "remaining": 0}


# --- how it may be sent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "application/json", "multipart/form-data; boundary=x", "application/jsonl2", "jsonl"],
)
async def test_only_a_file_of_lines_is_taken(server: Serving, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type is not None else {}
    answer = await server.ask("POST", JOBS, data=io.BytesIO(jsonl(GOOD)), headers=headers)
    assert answer.problem == (415, "body.unsupported_media_type")
    await nothing_is_there(server)


@pytest.mark.parametrize(
    "content_type",
    ["application/jsonl", "application/x-ndjson", "application/jsonlines", "Application/JSONL ; charset=utf-8"],
)
async def test_a_file_of_lines_has_several_names(server: Serving, content_type: str) -> None:
    assert (await upload(server, jsonl(GOOD), **{"Content-Type": content_type})).status == 201


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity", "identity, identity"])
async def test_no_encoding_is_undone(server: Serving, encoding: str) -> None:
    answer = await upload(server, jsonl(GOOD), **{"Content-Encoding": encoding})
    assert answer.problem == (415, "body.unsupported_media_type")
    assert (await upload(server, jsonl(GOOD), **{"Content-Encoding": "Identity"})).status == 201


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("extra", [0, 1, 100_000])
async def test_a_file_has_a_largest_size(start: Start, chunked: bool, extra: int) -> None:
    content = jsonl(*chats(60))
    server = await start(job_max_bytes=len(content))
    content += b" " * extra
    data: Any = _pieces(content) if chunked else io.BytesIO(content)
    answer = await server.ask("POST", JOBS, data=data, headers=FILE)
    if not extra:
        assert answer.status == 201
    else:
        assert answer.problem == (413, "body.too_large")
        await nothing_is_there(server)


async def test_a_file_that_says_it_is_too_large_is_not_read(start: Start) -> None:
    server = await start(job_max_bytes=2000)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"POST {JOBS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/jsonl\r\n".encode())
    writer.write(b"Content-Length: 1000000000\r\n\r\n")
    first = await asyncio.wait_for(reader.readline(), PATIENCE)
    writer.close()
    assert first.startswith(b"HTTP/1.1 413 ")
    await nothing_is_there(server)


async def _pieces(content: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start_ in range(0, len(content), size):
        yield content[start_ : start_ + size]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("size", [1, 700, 5000])
async def test_a_line_has_a_largest_size_however_it_comes(start: Start, size: int, end: bytes) -> None:
    server = await start(max_body_bytes=2000)
    frame = len(json.dumps({"body": {"message": ""}}))
    for length, status in ((2000, 201), (2001, 413)):
        line = json.dumps({"body": {"message": "x" * (length - frame)}}).encode()
        assert len(line) == length
        answer = await server.ask("POST", JOBS, data=_pieces(jsonl(GOOD) + line + end, size), headers=FILE)
        assert answer.status == status, answer
    assert answer.problem == (413, "body.too_large")
    assert "2" in answer.json()["detail"], "the number of the line"
    assert len(kept(server)) == 1


async def test_a_line_that_does_not_end_is_refused_before_it_is_all_there(start: Start) -> None:
    """Or it would be kept in memory up to the size of a file."""
    server = await start(max_body_bytes=2000)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST {JOBS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/jsonl\r\nContent-Length: 100000\r\n"
    writer.write(head.encode() + b"\r\n" + b"x" * 3000)
    assert (await asyncio.wait_for(reader.readline(), PATIENCE)).startswith(b"HTTP/1.1 413 ")
    writer.close()
    await eventually(lambda: not kept(server))


async def test_a_file_has_a_largest_number_of_lines(start: Start) -> None:
    server = await start(job_max_items=3)
    answer = await upload(server, jsonl(*chats(4)))
    assert answer.problem == (413, "batch.too_large")
    assert "3 operations" in answer.json()["detail"]
    await nothing_is_there(server)
    assert (await upload(server, jsonl(b"", *chats(3), b"", b""))).status == 201


async def test_a_file_of_nothing_but_line_ends_is_not_read_for_ever(start: Start) -> None:
    """200 MB of them would keep a core busy for a minute."""
    server = await start(job_max_items=100)
    answer = await upload(server, b"\n" * 1_000_000)
    assert answer.problem == (413, "batch.too_large")


async def test_nobody_is_asked_who_before_the_file_is_read(start: Start, keys: KeyFile) -> None:
    keys.create("ada")
    server = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"POST {JOBS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/jsonl\r\n".encode())
    writer.write(b"Content-Length: 1000000\r\n\r\n")
    first = await asyncio.wait_for(reader.readline(), PATIENCE)
    writer.close()
    assert first == b"HTTP/1.1 401 Unauthorized\r\n"
    assert kept(server) == []


@pytest.mark.parametrize("length", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
async def test_an_upload_that_breaks_off_leaves_nothing(server: Serving, length: bytes) -> None:
    with capture_logs() as logs:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = f"POST {JOBS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/jsonl\r\n".encode()
        content = jsonl(*chats(50))
        if b"chunked" in length:
            content = b"%x\r\n%b\r\n" % (len(content), content)
        writer.write(head + length + b"\r\n\r\n" + content)
        await eventually(lambda: kept(server))
        writer.transport.abort()
        await eventually(lambda: not kept(server))
        await eventually(lambda: any(log["event"] == "request" for log in logs))
    assert [log for log in logs if log["log_level"] in ("error", "critical")] == []
    await nothing_is_there(server)


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("concurrency=0", "concurrency"),
        ("concurrency=1001", "concurrency"),
        ("concurrency=x", "concurrency"),
        ("rate=0", "rate"),
        ("rate=-1", "rate"),
        ("rate=nan", "rate"),
        ("rate=inf", "rate"),
        ("rate=1e9", "rate"),
        ("name=", "name"),
        ("name=" + "x" * 129, "name"),
        ("webhook=" + "https://example.com/" + "x" * 2048, "webhook"),
    ],
)
async def test_an_option_that_cannot_be_is_named(server: Serving, query: str, parameter: str) -> None:
    answer = await upload(server, jsonl(GOOD), f"?{query}")
    assert answer.problem == (422, "field.invalid")
    assert [fault["parameter"] for fault in answer.json()["errors"]] == [parameter]
    await nothing_is_there(server)


async def test_jobs_can_be_switched_off(tmp_path: Path) -> None:
    async with Serving(settings(tmp_path, engine="sqlite")).open() as server:
        job = await ended(server, GOOD)
    async with Serving(settings(tmp_path, engine="sqlite", batch_enabled=False)).open() as server:
        assert (await upload(server, jsonl(GOOD))).problem == (403, "batch.disabled")
        assert (await server.ask("POST", f"{JOBS}/{job['id']}/retry")).problem == (403, "batch.disabled")
        assert (await look(server, job))["state"] == "completed", "what there is can be read, and deleted"
        assert (await server.ask("DELETE", f"{JOBS}/{job['id']}")).status == 204


async def test_while_the_server_stops_none_is_taken(server: Serving) -> None:
    job = await ended(server, GOOD)
    server.headrace.open_streams.draining = True
    for answer in (await upload(server, jsonl(GOOD)), await server.ask("POST", f"{JOBS}/{job['id']}/retry")):
        assert answer.problem == (503, "server.draining")
        assert answer.headers["Retry-After"]


# --- a file that takes its time ---------------------------------------------------------------------------------------

SOON = Deadlines(body=0.25, body_rate=4.0)
"""A byte in each quarter of a second is steady."""


async def test_a_file_that_comes_steadily_may_take_longer_than_a_body_may(start: Start) -> None:
    server = await start(deadlines=SOON)
    loop = asyncio.get_running_loop()
    sent = 0

    async def slowly() -> AsyncIterator[bytes]:
        nonlocal sent
        until = loop.time() + 4 * SOON.body
        while loop.time() < until:
            sent += 1
            yield jsonl({"body": {"message": f"No. {sent}"}})
            await asyncio.sleep(0.01)  # what is slow here is the sender

    answer = await server.ask("POST", JOBS, data=slowly(), headers=FILE)
    assert answer.status == 201, answer
    assert answer.json()["counts"]["total"] == sent


@pytest.mark.parametrize("begun", [b"", b'{"body":{"message":"x"}}\n'])
async def test_a_file_that_comes_no_further_is_given_up(start: Start, begun: bytes) -> None:
    server = await start(deadlines=SOON)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST {JOBS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/jsonl\r\nContent-Length: 999\r\n"
    writer.write(head.encode() + b"\r\n" + begun)
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    await eventually(lambda: not kept(server))
    await nothing_is_there(server)


async def test_a_body_that_nobody_wants_is_not_taken_for_ever(start: Start) -> None:
    """It was answered long ago, and comes as steadily as a good one."""
    server = await start(deadlines=SOON)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = "POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode())
    assert await asyncio.wait_for(reader.readline(), PATIENCE) == b"HTTP/1.1 404 Not Found\r\n"
    with suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            while not reader.at_eof():
                writer.write(b"5\r\nhello\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1000), 0.001)
    writer.close()


# --- the same file in any pieces --------------------------------------------------------------------------------------


class Written:
    """In place of a file: keeps what is written."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    @property
    def count(self) -> int:
        return len(self.operations)

    def write(self, operation: Operation) -> None:
        self.operations.append(operation)


@pytest.fixture(scope="module")
def door() -> Iterator[Headrace]:
    with tempfile.TemporaryDirectory() as data:
        yield Headrace(settings(Path(data), max_body_bytes=1024), agents=Agents().all())


async def _taken(door: Headrace, pieces: Sequence[bytes]) -> Any:
    file: Any = Written()
    lines = JobLines(door.app.state.services, Principal(subject="ada"), file)
    try:
        for piece in pieces:
            await lines.feed(piece)
        await lines.end()
    except BatchFileInvalid as error:
        return error.extra
    except HeadraceError as error:
        return error.code, error.message
    return file.operations, lines.digest.hexdigest()


def taken(door: Headrace, pieces: Sequence[bytes]) -> Any:
    """What comes of a file: its operations, or the error."""
    return asyncio.run(_taken(door, pieces))


line = st.sampled_from(
    [
        b"",
        b"\r",
        b'{"body":{"message":"hi"}}',
        b'{"id":"a","body":{"message":"\xc3\xa9\xf0\x9f\x8c\x8a"}}\r',
        b'  {"id":"b","path":"/api/runs","body":{"input":{"x":[1,2.5,null]}}}',
        b"{",
        b'{"body":{}}',
        b'{"body":{"message":"' + b"x" * 995 + b'"}}',
        b'{"body":{"message":"' + b"x" * 1100 + b'"}}',
    ]
)


@hypothesis_settings(max_examples=150)
@given(lines=st.lists(line, max_size=8), cuts=st.lists(st.integers(0, 4000), max_size=12), ended=st.booleans())
def test_it_does_not_matter_in_which_pieces_a_file_comes(
    door: Headrace, lines: list[bytes], cuts: list[int], ended: bool
) -> None:
    content = b"\n".join(lines) + (b"\n" if ended else b"")
    places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    pieces = [content[start_:end] for start_, end in pairwise(places)] or [content]
    assert taken(door, pieces) == taken(door, [content])
    assert taken(door, [bytes([byte]) for byte in content]) == taken(door, [content])


# --- the same key -----------------------------------------------------------------------------------------------------


async def test_the_same_key_and_file_are_the_same_job(server: Serving) -> None:
    first = await upload(server, jsonl(*chats(3)), "?name=a", **{"Idempotency-Key": "k"})
    again = await upload(server, jsonl(*chats(3)), "?name=a", **{"Idempotency-Key": "k"})
    assert (first.status, again.status) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert first.headers["Location"] == again.headers["Location"] == f"{JOBS}/{first.json()['id']}"
    assert kept(server) == [f"{first.json()['id']}.jsonl"]
    assert len(results(await frames_of(server, first.json()))) == 3
    late = await upload(server, jsonl(*chats(3)), "?name=a", **{"Idempotency-Key": "k"})
    assert (late.status, late.json()["id"], late.json()["state"]) == (200, first.json()["id"], "completed")
    assert kept(server) == [f"{first.json()['id']}.jsonl"], "that of the job that there is"
    assert len((await server.ask("GET", JOBS)).json()["batches"]) == 1


@pytest.mark.parametrize(
    ("content", "query"),
    [
        (jsonl(*chats(4)), "?name=a"),
        (jsonl(*chats(3)) + b"\n", "?name=a"),
        (jsonl(*chats(3)), "?name=b"),
        (jsonl(*chats(3)), ""),
    ],
    ids=["more", "blank", "query", "none"],
)
async def test_the_same_key_for_something_else_is_refused(server: Serving, content: bytes, query: str) -> None:
    first = await upload(server, jsonl(*chats(3)), "?name=a", **{"Idempotency-Key": "k"})
    other = await upload(server, content, query, **{"Idempotency-Key": "k"})
    assert other.problem == (422, "idempotency.mismatch")
    assert kept(server) == [f"{first.json()['id']}.jsonl"]


async def test_the_same_key_of_somebody_else_is_another_key(start: Start, keys: KeyFile) -> None:
    ada, bob = (as_(keys.create(name).secret) for name in ("ada", "bob"))
    server = await start()
    jobs = [await started(server, GOOD, **who, **{"Idempotency-Key": "k"}) for who in (ada, bob)]
    assert jobs[0]["id"] != jobs[1]["id"]


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_many_at_once_with_the_same_key_are_one_job(start: Start, engine: str) -> None:
    server = await start(engine=engine)
    key = {"Idempotency-Key": "k"}
    answers = await asyncio.gather(*(upload(server, jsonl(*chats(20)), **key) for _ in range(20)))
    assert sorted(answer.status for answer in answers) == [200] * 19 + [201]
    (job_id,) = {answer.json()["id"] for answer in answers}
    assert kept(server) == [f"{job_id}.jsonl"]
    assert len(results(await frames_of(server, answers[0].json()))) == 20


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
async def test_a_key_that_is_none_is_refused(server: Serving, key: str) -> None:
    answer = await upload(server, jsonl(GOOD), **{"Idempotency-Key": key})
    assert answer.problem == (400, "idempotency.invalid_key")
    await nothing_is_there(server)


# --- what is told of a job --------------------------------------------------------------------------------------------


async def test_a_job_is_described_from_its_start_to_its_end(server: Serving) -> None:
    lines = [*chats(3), *({"body": {"message": "x", "agent_id": "stall"}} for _ in range(2))]
    answer = await upload(server, jsonl(*lines), "?concurrency=2&rate=1000&name=n%C3%A4chtlich")
    job = answer.json()
    path = f"{JOBS}/{job['id']}"
    assert answer.headers["Location"] == path
    assert {name: job[name] for name in ("name", "concurrency", "rate", "retry_of", "webhook", "files")} == {
        "name": "nächtlich",
        "concurrency": 2,
        "rate": 1000.0,
        "retry_of": None,
        "webhook": None,
        "files": None,
    }
    assert job["state"] in ("queued", "running")
    assert job["results"] == f"{path}/results"
    response = await server.begin(f"{path}/results")
    await read_until(response, b'"id":"q3"')
    now = await look(server, job)
    assert (now["state"], now["ended"], now["cancel_requested"]) == ("running", None, False)
    assert now["counts"] == {"total": 5, "succeeded": 3, "failed": 0, "remaining": 2}
    assert now.keys() == job.keys()
    server.agents.gate.set()
    await response.read()
    end = await look(server, job)
    assert end["counts"] == {"total": 5, "succeeded": 5, "failed": 0, "remaining": 0}
    assert (end["state"], end["seconds_left"]) == ("completed", None)
    assert end["ended"] >= end["created"]
    assert end["per_second"] > 0
    assert end["files"] == {which: f"{path}/files/{which}" for which in ("succeeded", "failed")}
    run = (await server.ask("GET", f"/api/runs/{job['id']}")).json()
    assert (run["agent"], run["state"]) == ("batch_job", "completed")


async def test_the_time_left_is_what_the_rate_says(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.batch.jobs.agent._TALLY_SECONDS", 0.0)
    job = await started(server, *chats(6), {"body": {"message": "x", "agent_id": "stall"}}, query="?concurrency=1")
    response = await server.begin(f"{JOBS}/{job['id']}/results")
    await read_until(response, b'"succeeded":6')
    now = await look(server, job)
    assert now["per_second"] > 0
    assert now["seconds_left"] == round(1 / now["per_second"], 1)
    server.agents.gate.set()
    await response.read()


async def test_jobs_are_listed_newest_first_and_without_other_runs(server: Serving) -> None:
    jobs = [await started(server, GOOD, query=f"?name=n{number}") for number in range(5)]
    await server.start()
    listed = (await server.ask("GET", JOBS)).json()
    assert [job["id"] for job in listed["batches"]] == [job["id"] for job in reversed(jobs)]
    assert listed["next"] is None
    names: list[str] = []
    query = "?limit=2"
    for _ in range(3):
        page = (await server.ask("GET", JOBS + query)).json()
        names += [job["name"] for job in page["batches"]]
        query = f"?limit=2&before={page['next']}"
    assert names == ["n4", "n3", "n2", "n1", "n0"]
    assert page["next"] is None
    for query, problem in (("?limit=0", 422), ("?limit=101", 422), ("?before=run_nobody", 404)):
        assert (await server.ask("GET", JOBS + query)).status == problem


async def test_one_job_whose_log_is_gone_does_not_hide_the_others(start: Start) -> None:
    server = await start(engine="sqlite")
    old = await ended(server, *chats(2))
    assert await server.headrace.engine.trim(older_than=-1)
    new = await ended(server, GOOD)
    listed = (await server.ask("GET", JOBS)).json()["batches"]
    assert [(job["id"], job["counts"]["succeeded"]) for job in listed] == [(new["id"], 1), (old["id"], None)]
    for path in ("results", "files/succeeded"):
        assert (await server.ask("GET", f"{JOBS}/{old['id']}/{path}")).problem == (410, "cursor.gone")


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite"])
async def either(request: pytest.FixtureRequest, start: Start, monkeypatch: pytest.MonkeyPatch) -> Serving:
    monkeypatch.setattr("headrace.batch.jobs.agent._TALLY_SECONDS", 0.0)
    server: Serving = await start(engine=request.param)
    server.agents.failure = ModelUnavailable()
    return server


async def test_all_ways_to_read_show_the_same(either: Serving) -> None:
    server = either
    job = await started(server, *chats(30), {"body": {"message": "x", "agent_id": "fail"}}, query="?concurrency=4")
    live_sse, live_lines = await asyncio.gather(frames_of(server, job), frames_of(server, job, **NDJSON))
    assert live_sse == live_lines
    assert live_sse[0].data == {"type": "started", "job_id": job["id"], "total": 31}
    assert live_sse[-1].data == {"type": "finished", "job_id": job["id"]}
    assert live_sse[-2].data == {
        "type": "progress",
        "total": 31,
        "succeeded": 30,
        "failed": 1,
        "per_second": live_sse[-2].data["per_second"],
    }
    assert len(results(live_sse)) == 31
    assert await frames_of(server, job) == live_sse
    through_runs = await server.frames(job["id"], "?view=batch_job")
    assert through_runs == live_sse
    for limit in (1, 7, 1000):
        read: list[Frame] = []
        query, over = f"?limit={limit}", False
        while not over:
            page = (await server.ask("GET", f"{JOBS}/{job['id']}/results{query}")).json()
            assert len(page["events"]) <= limit
            read += [Frame(each["id"], each["data"]) for each in page["events"]]
            query, over = f"?limit={limit}&after={page['next']}", page["end"]
        assert read == live_sse


async def test_a_page_while_it_runs_goes_on_where_it_was(either: Serving) -> None:
    server = either
    job = await started(server, *chats(3), {"body": {"message": "x", "agent_id": "stall"}})
    response = await server.begin(f"{JOBS}/{job['id']}/results")
    await read_until(response, b'"succeeded":3')
    page = (await server.ask("GET", f"{JOBS}/{job['id']}/results", headers=JSON)).json()
    assert not page["end"]
    assert len([each for each in page["events"] if each["data"]["type"] == "result"]) == 3
    empty = (await server.ask("GET", f"{JOBS}/{job['id']}/results?after={page['next']}")).json()
    assert (empty["events"], empty["next"], empty["end"]) == ([], page["next"], False)
    server.agents.gate.set()
    await response.read()
    rest = (await server.ask("GET", f"{JOBS}/{job['id']}/results?after={page['next']}")).json()
    assert rest["end"]
    assert [each["data"]["id"] for each in rest["events"] if each["data"]["type"] == "result"] == ["4"]


async def test_a_reader_who_comes_back_anywhere_gets_the_same_bytes(either: Serving) -> None:
    server = either
    job = await started(server, *chats(12), query="?concurrency=3")
    path = f"{JOBS}/{job['id']}/results"
    sse = (await server.ask("GET", path, headers=SSE)).body.split(b"\n", 1)[1]
    lines = (await server.ask("GET", path, headers=NDJSON)).body
    positions = [frame.id for frame in parse_lines(lines)]
    for place, position in enumerate(positions):
        rest = b"".join(block + b"\n\n" for block in sse.split(b"\n\n")[place + 1 : -1])
        again = await server.ask("GET", path, headers={**SSE, "Last-Event-ID": str(position)})
        assert again.body.partition(b"\n")[2] == rest if rest else again.status == 204
        by_query = await server.ask("GET", f"{path}?after={position}", headers=NDJSON)
        assert by_query.body == b"".join(line + b"\n" for line in lines.split(b"\n")[place + 1 : -1])
    whole = await server.ask("GET", path, headers={**SSE, "Last-Event-ID": "-1"})
    assert whole.body.split(b"\n", 1)[1] == sse


async def test_a_live_reader_who_is_cut_gets_the_rest(either: Serving) -> None:
    server = either
    job = await started(server, *chats(5), *({"body": {"message": "x", "agent_id": "stall"}} for _ in range(3)))
    first = await server.begin(f"{JOBS}/{job['id']}/results")
    got = parse_sse(await read_until(first, b'"succeeded":5'))
    first.close()
    again = await server.session().get(f"{JOBS}/{job['id']}/results", headers={**SSE, "Last-Event-ID": str(got[-1].id)})
    server.agents.gate.set()
    got += parse_sse(await again.read())
    assert got == await frames_of(server, job)
    assert len(results(got)) == 8


async def test_positions_that_cannot_be_served_are_told(server: Serving) -> None:
    job, other = await ended(server, *chats(3)), await ended(server, GOOD)
    frames = await frames_of(server, job)
    epoch, offset = str(frames[-1].id).split("-")
    foreign = (await frames_of(server, other))[0].id
    for after, problem in (
        (f"{epoch}-{int(offset) + 1}", (409, "cursor.ahead")),
        (foreign, (409, "cursor.foreign")),
        ("abc", (400, "cursor.invalid")),
        ("-5", (400, "cursor.invalid")),
        (f"{epoch}-2.1", (400, "cursor.invalid")),  # no result is shown as several frames
        (f"{epoch}-3.7", (400, "cursor.invalid")),
        ("9" * 5_000, (400, "cursor.invalid")),
    ):
        for kind in (SSE, NDJSON, JSON):
            answer = await server.ask("GET", f"{JOBS}/{job['id']}/results?after={after}", headers=kind)
            assert answer.problem == problem, (after, kind)
    both = await server.ask(
        "GET", f"{JOBS}/{job['id']}/results?after={epoch}-1", headers={**SSE, "Last-Event-ID": f"{epoch}-2"}
    )
    assert both.problem == (400, "cursor.ambiguous")
    assert (await server.ask("GET", f"{JOBS}/{job['id']}/results", headers={"Accept": "text/csv"})).status == 406


@pytest.mark.parametrize("view", ["batch_job"])
@pytest.mark.parametrize("kind", [SSE, NDJSON, JSON])
async def test_the_view_of_jobs_says_little_of_a_run_that_is_none(
    server: Serving, view: str, kind: dict[str, str]
) -> None:
    for input_ in ({"texts": ["a"]}, {"items": "many"}):
        run_id = await server.finished(**input_)
        answer = await server.events(run_id, f"?view={view}", **kind)
        assert answer.status == 200
        types = [part.split('"')[0] for part in answer.body.decode().split('"type":"')[1:]]
        assert types == ["started", "finished"]


async def test_result_files_hold_each_result_in_one_of_the_two(either: Serving) -> None:
    server = either
    lines = [*chats(20), *({"id": f"f{n}", "body": {"message": "x", "agent_id": "fail"}} for n in range(7))]
    job = await ended(server, *lines)
    found = results(await frames_of(server, job))
    for which, count in (("succeeded", 20), ("failed", 7)):
        answer = await server.ask("GET", job["files"][which])
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/jsonl"
        assert answer.body.endswith(b"\n")
        assert "Location" not in answer.headers, "there is no other place where it could be read"
        part = [json.loads(line) for line in answer.body.splitlines()]
        assert len(part) == count
        assert [{"type": "result", **each} for each in part] == [found[each["id"]] for each in part]
        assert all((each["status"] < 400) is (which == "succeeded") for each in part)


async def test_a_file_of_none_is_empty(server: Serving) -> None:
    job = await ended(server, *chats(2))
    assert (await server.ask("GET", job["files"]["failed"])).body == b""


async def test_there_is_no_result_file_before_the_end(server: Serving) -> None:
    job = await started(server, {"body": {"message": "x", "agent_id": "stall"}})
    for which in ("succeeded", "failed"):
        assert (await server.ask("GET", f"{JOBS}/{job['id']}/files/{which}")).problem == (409, "run.active")
    assert (await server.ask("GET", f"{JOBS}/{job['id']}/files/all")).status == 422
    server.agents.gate.set()
    await frames_of(server, job)
    assert (await server.ask("GET", f"{JOBS}/{job['id']}/files/succeeded")).status == 200


async def test_a_result_file_that_the_end_of_the_server_cuts_does_not_look_whole(start: Start) -> None:
    """Its reader has no other sign: a file of lines has no last one."""
    server = await start(engine="sqlite", grace=5.0)
    large = [{"id": f"q{n}", "body": {"message": str(n) + "x" * 20_000}} for n in range(500)]
    job = await ended(server, *large)
    response = await server.session().get(job["files"]["succeeded"])
    got = await response.content.read(10_000)  # and no more, so that the server has to wait
    server.headrace.open_streams.drain()
    try:
        while part := await response.content.read(1_000_000):
            got += part
    except aiohttp.ClientError:
        return
    lines = [json.loads(line) for line in got.splitlines()]
    assert len(lines) <= 500
    assert "error" in lines[-1]
    assert "id" not in lines[-1]


# --- cancel, retry, delete --------------------------------------------------------------------------------------------


async def test_a_cancel_is_asked_for_once(either: Serving) -> None:
    server = either
    job = await started(
        server, *chats(2), *({"body": {"message": "x", "agent_id": "stall"}} for _ in range(20)), query="?concurrency=4"
    )
    response = await server.begin(f"{JOBS}/{job['id']}/results")
    await read_until(response, b'"succeeded":2')
    await eventually(lambda: server.headrace.worker.running == 5)
    cancel = f"{JOBS}/{job['id']}/cancel"
    first, second = await server.ask("POST", cancel), await server.ask("POST", cancel)
    assert (first.status, second.status) == (202, 200)
    assert first.json()["cancel_requested"]
    rest = parse_sse(await response.read())
    assert rest[-1].data == {"type": "error", "message": rest[-1].data["message"], "code": 499}
    late = await server.ask("POST", cancel)
    assert (late.status, late.json()["state"]) == (200, "cancelled")
    found = results(await frames_of(server, job))
    assert sorted(result["status"] for result in found.values()) == [200, 200, 499, 499, 499, 499]
    assert late.json()["counts"] == {"total": 22, "succeeded": 2, "failed": 4, "remaining": 16}
    assert server.agents.left == 4
    assert len((await server.ask("GET", late.json()["files"]["succeeded"])).body.splitlines()) == 2
    assert len((await server.ask("GET", late.json()["files"]["failed"])).body.splitlines()) == 4


async def test_what_did_not_succeed_is_tried_again(either: Serving) -> None:
    server = either
    lines = [*chats(3), *({"id": f"f{n}", "body": {"message": "x", "agent_id": "fail"}} for n in range(2))]
    job = await ended(server, *lines, query="?name=n&concurrency=3&rate=500")
    key = {"Idempotency-Key": "again"}
    answers = [await server.ask("POST", f"{JOBS}/{job['id']}/retry", headers=key) for _ in range(2)]
    assert [answer.status for answer in answers] == [201, 200]
    again, same = (answer.json() for answer in answers)
    assert again["id"] == same["id"] != job["id"]
    assert answers[0].headers["Location"] == f"{JOBS}/{again['id']}"
    assert {name: again[name] for name in ("retry_of", "name", "concurrency", "rate")} == {
        "retry_of": job["id"],
        "name": "n",
        "concurrency": 3,
        "rate": 500.0,
    }
    assert set(results(await frames_of(server, again))) == {"f0", "f1"}
    assert len(kept(server)) == 2


async def test_where_all_succeeded_there_is_nothing_to_try_again(server: Serving) -> None:
    job = await ended(server, GOOD)
    answer = await server.ask("POST", f"{JOBS}/{job['id']}/retry")
    assert answer.problem == (422, "field.invalid")
    assert "nothing to try again" in answer.json()["detail"]
    assert kept(server) == [f"{job['id']}.jsonl"]


async def test_a_retry_reads_no_body(server: Serving) -> None:
    """However large: there is nothing to be said in it."""
    job = await ended(server, {"body": {"message": "x", "agent_id": "fail"}})
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST {JOBS}/{job['id']}/retry HTTP/1.1\r\nHost: 127.0.0.1\r\nIdempotency-Key: k\r\n"
    writer.write(head.encode() + b"Content-Length: 1000000000\r\n\r\n")
    first = await asyncio.wait_for(reader.readline(), PATIENCE)
    writer.close()
    assert first == b"HTTP/1.1 201 Created\r\n"


async def test_a_job_that_runs_is_not_tried_again_and_not_deleted(server: Serving) -> None:
    job = await started(server, {"body": {"message": "x", "agent_id": "stall"}})
    assert (await server.ask("POST", f"{JOBS}/{job['id']}/retry")).problem == (409, "run.active")
    assert (await server.ask("DELETE", f"{JOBS}/{job['id']}")).problem == (409, "run.active")
    server.agents.gate.set()
    assert len(results(await frames_of(server, job))) == 1


async def test_deleting_takes_all_of_it(either: Serving) -> None:
    server = either
    job = await ended(server, *chats(5))
    children = [result["run_id"] for result in results(await frames_of(server, job)).values()]
    path = f"{JOBS}/{job['id']}"
    answer = await server.ask("DELETE", path)
    assert (answer.status, answer.body) == (204, b"")
    for method, gone in (
        ("GET", path),
        ("GET", f"{path}/results"),
        ("GET", f"{path}/files/succeeded"),
        ("POST", f"{path}/cancel"),
        ("POST", f"{path}/retry"),
        ("DELETE", path),
        ("GET", f"/api/runs/{job['id']}"),
        *(("GET", f"/api/runs/{child}") for child in children),
    ):
        assert (await server.ask(method, gone)).problem == (404, "not_found"), gone
    await nothing_is_there(server)


# --- who may see it ---------------------------------------------------------------------------------------------------

ROUTES = [
    ("GET", ""),
    ("GET", "/results"),
    ("GET", "/files/succeeded"),
    ("GET", "/files/failed"),
    ("POST", "/cancel"),
    ("POST", "/retry"),
    ("DELETE", ""),
]


@pytest.mark.parametrize("accept", [SSE, NDJSON, JSON], ids=["sse", "ndjson", "json"])
@pytest.mark.parametrize(("method", "route"), ROUTES)
async def test_what_is_not_yours_is_not_there(
    start: Start, keys: KeyFile, method: str, route: str, accept: dict[str, str]
) -> None:
    ada, bob = (as_(keys.create(name).secret) for name in ("ada", "bob"))
    elsewhere = as_(keys.create("ada", tenant="other").secret)
    server = await start()
    job = await ended(server, GOOD, {"body": {"message": "x", "agent_id": "fail"}}, **ada)
    run_id = (await server.post("/api/runs", {"input": {}}, headers=bob)).json()["id"]
    child = next(iter(results(await frames_of(server, job, **SSE, **ada)).values()))["run_id"]
    answers = [
        await server.ask(method, f"{JOBS}/{id}{route}", headers={**who, **accept})
        for who, id in (
            (bob, job["id"]),
            (elsewhere, job["id"]),
            (bob, "run_00000000000000000000000000"),
            (bob, run_id),  # Bob's own, but no job
            (ada, child),  # of a job, but none
            (bob, child),
        )
    ]
    bodies = []
    for answer in answers:
        assert answer.problem == (404, "not_found")
        document = answer.json()
        del document["instance"]
        bodies.append(document)
    assert all(body == bodies[0] for body in bodies)
    assert (await server.ask(method, f"{JOBS}/{job['id']}{route}", headers=accept)).problem == (401, "auth.missing")
    assert (await look(server, job, **ada))["state"] == "completed"


async def test_lists_hold_ones_own_only(start: Start, keys: KeyFile) -> None:
    ada, bob = (as_(keys.create(name).secret) for name in ("ada", "bob"))
    server = await start()
    job = await started(server, GOOD, **ada)
    assert [each["id"] for each in (await server.ask("GET", JOBS, headers=ada)).json()["batches"]] == [job["id"]]
    assert (await server.ask("GET", JOBS, headers=bob)).json()["batches"] == []
    assert (await server.ask("GET", JOBS)).problem == (401, "auth.missing")
    assert (await server.ask("GET", f"{JOBS}?before={job['id']}", headers=bob)).problem == (404, "not_found")


async def test_a_tool_of_a_scope_that_one_has_is_an_operation(start: Start, keys: KeyFile) -> None:
    eve = as_(keys.create("eve", scopes=["secrets"]).secret)
    server = await start()
    server.headrace.tools.add(_secret_tool)
    line = {"id": "s", "path": "/api/tools/secret_tool/execute", "body": {}}
    job = await ended(server, line, **eve)
    found = results(await frames_of(server, job, **SSE, **eve))
    assert found["s"]["body"] == {"result": "secret"}


# --- webhooks ---------------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """Answers with the given statuses, the last one again and again."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.told: list[Told] = []
        self._url = ""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.told.append(Told(headers, await request.read()))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return web.Response(status=status)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        """The query that names it."""
        async with RawTestServer(self) as server:
            yield f"?webhook={server.make_url('/hook')}"


def verified(told: Told, secret: str) -> bool:
    """As the specification says, with nothing of ours."""
    assert secret.startswith("whsec_")
    signed = b".".join([told.headers["webhook-id"].encode(), told.headers["webhook-timestamp"].encode(), told.body])
    digest = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}" in told.headers["webhook-signature"].split(" ")


ALLOWED: dict[str, Any] = {"egress_allow": ("127.0.0.0/8",)}


async def webhook_is(server: Serving, job: dict[str, Any], state: str, **headers: str) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE):
        while (now := await look(server, job, **headers))["webhook"]["state"] != state:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return now


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://0x7f.1/",
        "file:///etc/passwd",
        "ftp://example.com/",
        "gopher://example.com/",
        "//example.com/",
        "example.com",
        "http://user:canary@example.com/",
        "http://ok\\@127.0.0.1/",
        "http://exa mple.com/",
    ],
)
async def test_a_webhook_that_may_not_be_asked_is_refused_before_anything_is_read(server: Serving, url: str) -> None:
    answer = await server.ask("POST", JOBS, params={"webhook": url}, data=io.BytesIO(jsonl(GOOD)), headers=FILE)
    assert answer.problem == (422, "field.invalid")
    (fault,) = answer.json()["errors"]
    assert fault["parameter"] == "webhook"
    assert "canary" not in answer.body.decode()
    await nothing_is_there(server)


async def test_a_webhook_is_told_of_the_end_and_can_check_who_says_so(start: Start) -> None:
    server = await start(**ALLOWED)
    receiver = Receiver(204)
    async with receiver.open() as query:
        answer = await upload(
            server, jsonl(*chats(3), {"body": {"message": "x", "agent_id": "fail"}}), f"{query}&name=n"
        )
        job = answer.json()
        secret = job["webhook"]["secret"]
        now = await webhook_is(server, job, "delivered")
    (told,) = receiver.told
    assert verified(told, secret)
    assert not verified(Told(told.headers, told.body + b" "), secret)
    assert told.headers["content-type"] == "application/json"
    document = told.document
    assert document["type"] == "batch_job.completed"
    assert document["data"]["id"] == job["id"]
    assert document["data"]["state"] == "completed"
    assert document["data"]["counts"] == {"total": 4, "succeeded": 3, "failed": 1, "remaining": 0}
    assert document["data"]["name"] == "n"
    assert now["counts"] == document["data"]["counts"], "the notice is no operation"
    assert "error" not in told.body.decode()


async def test_the_secret_is_told_to_its_owner_alone_and_once(start: Start) -> None:
    """Whoever saw it could sign what all the receivers of this owner believe."""
    server = await start(**ALLOWED)
    receiver = Receiver(200)
    async with receiver.open() as query:
        job = await started(server, GOOD, query=query)
        secret = job["webhook"]["secret"]
        await webhook_is(server, job, "delivered")
    shown = [receiver.told[0].body.decode(), str(receiver.told[0].headers)]
    paths = (JOBS, f"{JOBS}/{job['id']}", f"/api/runs/{job['id']}", f"/api/runs/{job['id']}_0")
    shown += [(await server.ask("GET", path)).body.decode() for path in paths]
    shown += [(await server.events(run_id)).body.decode() for run_id in (job["id"], f"{job['id']}_0")]
    shown.append((await server.ask("POST", f"{JOBS}/{job['id']}/cancel")).body.decode())
    for text in shown:
        assert secret not in text
        assert secret.removeprefix("whsec_") not in text


async def test_a_webhook_that_fails_is_told_again(start: Start) -> None:
    server = await start(**ALLOWED)
    receiver = Receiver(500, 204)
    async with receiver.open() as query:
        job = await started(server, GOOD, query=query)
        assert job["webhook"]["state"] == "waiting"
        await webhook_is(server, job, "delivered")
    first, second = receiver.told
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert all(verified(told, job["webhook"]["secret"]) for told in receiver.told)


async def test_a_webhook_that_is_gone_has_failed(start: Start) -> None:
    server = await start(**ALLOWED)
    receiver = Receiver(410)
    async with receiver.open() as query:
        job = await started(server, GOOD, query=query)
        now = await webhook_is(server, job, "failed")
    assert len(receiver.told) == 1
    assert (now["state"], now["counts"]["succeeded"]) == ("completed", 1), "the job has nothing to do with it"


async def test_a_name_that_leads_to_a_private_address_is_never_asked(server: Serving) -> None:
    receiver = Receiver(204)
    async with receiver.open() as query:
        job = await started(server, GOOD, query=query.replace("127.0.0.1", "localhost"))
        await webhook_is(server, job, "failed")
    assert receiver.told == []


async def test_a_webhook_is_told_that_a_job_was_cancelled(start: Start) -> None:
    server = await start(**ALLOWED)
    receiver = Receiver(204)
    async with receiver.open() as query:
        job = await started(server, *chats(1), {"body": {"message": "x", "agent_id": "stall"}}, query=query)
        response = await server.begin(f"{JOBS}/{job['id']}/results")
        await read_until(response, b'"id":"q1"')
        await server.ask("POST", f"{JOBS}/{job['id']}/cancel")
        await response.read()
        await webhook_is(server, job, "delivered")
    (told,) = receiver.told
    assert verified(told, job["webhook"]["secret"])
    assert told.document["type"] == "batch_job.cancelled"
    assert told.document["data"]["counts"]["succeeded"] == 1


async def test_a_notice_that_somebody_stops_is_told_as_such(start: Start) -> None:
    server = await start(**ALLOWED)
    receiver = Receiver(503)
    async with receiver.open() as query:
        job = await ended(server, GOOD, query=query)
        await server.ask("POST", f"/api/runs/{job['id']}_0/cancel")
        await webhook_is(server, job, "cancelled")


async def test_a_job_can_be_deleted_while_its_webhook_is_still_asked(start: Start) -> None:
    server = await start(**ALLOWED)
    receiver = Receiver(503)
    async with receiver.open() as query:
        job = await ended(server, GOOD, query=query)
        await eventually(lambda: receiver.told)
        assert (await server.ask("DELETE", f"{JOBS}/{job['id']}")).status == 204
    await nothing_is_there(server)


async def test_each_owner_has_a_secret_and_it_stays(start: Start, keys: KeyFile, tmp_path: Path) -> None:
    who = {
        name: as_(keys.create(subject, tenant=tenant).secret)
        for name, subject, tenant in (
            ("ada", "ada", "default"),
            ("bob", "bob", "default"),
            ("other ada", "ada", "other"),
            ("shifted", "tada", "defaul"),  # whose names, written together, are those of the first one
        )
    }
    receiver = Receiver(204)
    secrets: dict[str, set[str]] = {name: set() for name in who}
    async with receiver.open() as query:
        for _ in range(2):
            async with Serving(settings(tmp_path, engine="sqlite", **ALLOWED)).open() as server:
                for name, headers in who.items():
                    job = await started(server, GOOD, query=query, **headers)
                    secrets[name].add(job["webhook"]["secret"])
                    await webhook_is(server, job, "delivered", **headers)
    assert [len(found) for found in secrets.values()] == [1, 1, 1, 1]
    assert len(set.union(*secrets.values())) == 4
    ids = {told.headers["webhook-id"]: told for told in receiver.told}
    assert len(ids) == 8
    for told in receiver.told:
        assert sum(verified(told, secret) for found in secrets.values() for secret in found) == 1
    assert (tmp_path / "webhook.secret").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("content", "mode"), [(b"", 0o600), (b"x" * 31, 0o600), (b"x" * 32, 0o604)])
def test_with_a_secret_that_is_none_the_server_does_not_start(tmp_path: Path, content: bytes, mode: int) -> None:
    """With nothing for a secret anybody could sign."""
    (tmp_path / "webhook.secret").write_bytes(content)
    (tmp_path / "webhook.secret").chmod(mode)
    with pytest.raises(ConfigurationError, match=r"webhook\.secret"):
        Headrace(settings(tmp_path, engine="sqlite"))


# --- max_runs, fairness, restarts -------------------------------------------------------------------------------------


async def test_with_one_run_at_a_time_jobs_and_batches_still_end(start: Start) -> None:
    server = await start(max_runs=1, **ALLOWED)
    receiver = Receiver(204)
    async with receiver.open() as query:
        batch = {
            "requests": [
                {"id": f"{n}", "method": "POST", "path": "/api/agent/chat", "body": {"message": "x"}} for n in range(3)
            ]
        }
        jobs = [await started(server, *chats(5), query=query) for _ in range(3)]
        answer = await server.post("/api/batch", batch)
        assert [each["status"] for each in answer.json()["responses"]] == [200] * 3
        for job in jobs:
            assert len(results(await frames_of(server, job))) == 5
            await webhook_is(server, job, "delivered")


class Turnstile:
    """An agent whose runs each wait to be let through."""

    def __init__(self) -> None:
        self.waiting = 0
        self.passes = asyncio.Semaphore(0)

    async def say(self, context: RunContext) -> AsyncGenerator[str, None]:
        self.waiting += 1
        await self.passes.acquire()
        self.waiting -= 1
        yield context.run.input["message"]

    def agents(self) -> dict[str, AgentFactory]:
        return {"default": generator_agent(self.say)}


async def test_a_small_job_is_not_starved_by_a_large_one_of_somebody_else(start: Start, keys: KeyFile) -> None:
    turnstile = Turnstile()
    ada, bob = (as_(keys.create(name).secret) for name in ("ada", "bob"))
    server = await start(agents=turnstile.agents(), job_slots=4)
    large = await started(server, *chats(300), **ada)
    await eventually(lambda: turnstile.waiting == 4)
    small = await started(server, *chats(1), **bob)
    await eventually(lambda: len(server.headrace._job_slots._waiting) == 2)
    for _ in range(8):
        turnstile.passes.release()
    assert len(results(await frames_of(server, small, **SSE, **bob))) == 1
    now = await look(server, large, **ada)
    assert now["counts"]["succeeded"] <= 7
    for _ in range(300):
        turnstile.passes.release()
    assert len(results(await frames_of(server, large, **SSE, **ada))) == 300


async def test_a_job_survives_a_stop_and_a_start_of_the_server(tmp_path: Path) -> None:
    options = settings(tmp_path, engine="sqlite", model="demo:echo?count=40&size=4&pace_ms=5")
    seen: list[Frame] = []
    job: dict[str, Any] = {}
    for life in range(4):
        async with Serving(options, agents={}, grace=0.2).open() as server:
            job = job or await started(server, *chats(60), query="?concurrency=8")
            headers = {**SSE, **({"Last-Event-ID": str(seen[-1].id)} if seen else {})}
            response = await server.session().get(f"{JOBS}/{job['id']}/results", headers=headers)
            assert response.status == 200
            if life < 3:
                seen += parse_sse(await read_until(response, b'"type":"result"'))
                response.close()
            else:
                seen += parse_sse(await response.read())
                whole = await frames_of(server, job)
                children = (await server.ask("GET", f"/api/runs?parent={job['id']}&limit=200")).json()["runs"]
                end = await look(server, job)
    assert seen == whole
    found = results(whole)
    assert {id: result["status"] for id, result in found.items()} == {f"q{n}": 200 for n in range(1, 61)}
    assert sorted(child["id"] for child in children) == sorted(result["run_id"] for result in found.values())
    assert end["counts"] == {"total": 60, "succeeded": 60, "failed": 0, "remaining": 0}
    assert (await asyncio.to_thread(lambda: sorted(path.name for path in (tmp_path / "batches").iterdir()))) == [
        f"{job['id']}.jsonl"
    ]


async def test_a_webhook_that_was_not_told_before_a_stop_is_told_after_the_start(tmp_path: Path) -> None:
    receiver = Receiver(503)
    options = settings(tmp_path, engine="sqlite", **ALLOWED)
    async with receiver.open() as query:
        async with Serving(options, grace=0.2).open() as server:
            job = await ended(server, GOOD, query=query)
            secret = (await upload(server, jsonl(GOOD), query)).json()["webhook"]["secret"]
            await eventually(lambda: receiver.told)
            assert (await look(server, job))["webhook"]["state"] == "waiting"
        receiver.statuses = [204]
        receiver.told.clear()
        async with Serving(options).open() as server:
            await webhook_is(server, job, "delivered")
    told = next(told for told in receiver.told if told.document["data"]["id"] == job["id"])
    assert verified(told, secret)
    assert told.headers["webhook-id"] == f"{job['id']}_0"
    assert told.document["type"] == "batch_job.completed"


async def test_files_of_uploads_that_a_stop_cut_are_gone_after_the_start(tmp_path: Path) -> None:
    options = settings(tmp_path, engine="sqlite")
    async with Serving(options, grace=0.2).open() as server:
        job = await ended(server, GOOD)
        folder = tmp_path / "batches"
        orphan = folder / "run_00000000000000000000000000.jsonl"
        await asyncio.to_thread(orphan.write_bytes, jsonl(GOOD))
        await asyncio.to_thread(orphan.with_suffix(".new").write_bytes, b"{")
    async with Serving(options).open() as server:
        assert kept(server) == [f"{job['id']}.jsonl"]
