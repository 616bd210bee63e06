"""Tools over HTTP: which there are and for whom, one call of one of them, and what never gets out."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import aiohttp
import pytest
from pydantic import Field
from tests.server.serving import (
    JSON,
    NDJSON,
    PATIENCE,
    SSE,
    Answer,
    Frame,
    Serving,
    eventually,
    parse_lines,
    parse_sse,
    read_until,
    settings,
)

from headrace.bootstrap import Headrace
from headrace.bootstrap import headrace as wiring
from headrace.errors import ConfigurationError, ToolRefused
from headrace.ports import Tool, ToolContext
from headrace.server.auth import KeyFile
from headrace.server.listener import Listener
from headrace.settings import Settings
from headrace.tools.function import FunctionTool, tool

CANARY = "sk-canary-of-a-tool"
HOSTILE = (
    '</script><script>alert(1)</script>\r\n\r\ndata: {"kind":"run.completed"}\nid: 9\n\n: x\rretry: 1\n\n'
    '\x1b[2J\x1b]0;title\x07\x00\x85\u2028\u2029\ufeff"\\'
)


class Bench:
    """Tools that do what a test needs. `wait` and `two` wait at `gate`."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.calls: list[str] = []
        self.began = asyncio.Event()
        self.ended = 0
        self.running = 0
        self.most = 0

    def tools(self) -> list[Tool]:
        return [
            add,
            self.tool(give),
            self.tool(self.count),
            self.tool(self.wait, timeout=PATIENCE),
            self.tool(self.two, concurrency=2),
            self.tool(report),
            self.tool(self.progress),
            self.tool(fail),
            self.tool(refuse),
            self.tool(hang, timeout=0.05),
            self.tool(big),
            self.tool(big_json),
            self.tool(hostile),
            self.tool(give, name="pay", approval=True),
            self.tool(give, name="secret", scope="payments"),
            strict,
        ]

    def tool(self, function: Any, **options: Any) -> Any:
        given = {"name": function.__name__.strip("_"), "description": f"Does {function.__name__}.", **options}
        return Contextual(parameters={"type": "object"}, function=function, **given)

    async def count(self, context: ToolContext, **arguments: Any) -> dict[str, int]:
        self.calls.append(context.run.id)
        return {"calls": len(self.calls)}

    async def wait(self, context: ToolContext, **arguments: Any) -> str:
        self.calls.append(context.run.id)
        self.began.set()
        completed = False
        try:
            await self.gate.wait()
            completed = True
        finally:
            self.ended += not completed
        return "waited"

    async def two(self, context: ToolContext, **arguments: Any) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        await self.gate.wait()
        self.running -= 1
        return self.most

    async def progress(self, context: ToolContext, **arguments: Any) -> str:
        context.report({"done": 1, "of": 2})
        await self.gate.wait()
        return "all"


class Contextual(FunctionTool):
    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Any:
        return await self.function(context, **arguments)


@tool(idempotent=True, timeout=2.5)
async def add(a: int, b: Annotated[int, Field(description="Another one.")] = 1) -> int:
    """Adds two numbers."""
    return a + b


@tool
async def strict(when: Annotated[str, Field(pattern=r"^\d{4}$")], odd: int = 1) -> str:
    """Takes a year."""
    if odd % 2 == 0:
        raise ToolRefused("Only odd ones.")
    return when


async def give(context: ToolContext, value: Any = None) -> Any:
    return value


async def report(context: ToolContext, **arguments: Any) -> str:
    context.report("half")
    await asyncio.sleep(0)
    return "all"


async def fail(context: ToolContext, **arguments: Any) -> None:
    raise RuntimeError(f"{CANARY} /etc/secret SELECT * FROM keys")


async def refuse(context: ToolContext, **arguments: Any) -> None:
    raise ToolRefused("Say which year.")


async def hang(context: ToolContext, **arguments: Any) -> None:
    await asyncio.Event().wait()


async def big(context: ToolContext, **arguments: Any) -> str:
    return "é" * (50 << 20)


async def big_json(context: ToolContext, **arguments: Any) -> list[str]:
    return ["<b>" * 1000] * 17_000


async def hostile(context: ToolContext, **arguments: Any) -> str:
    return HOSTILE


class Workshop(Serving):
    """A server whose program hands in tools."""

    def __init__(self, settings: Settings, tools: list[Tool]) -> None:
        super().__init__(settings)
        self.headrace = Headrace(settings, agents=self.agents.all(), tools=tools)
        app: Any = self.headrace.app
        self.listener = Listener(app, port=0, drain=self.headrace.drain, grace=1.0)

    async def execute(self, name: str, query: str = "", headers: Any = None, **parameters: Any) -> Answer:
        return await self.post(f"/api/tools/{name}/execute{query}", {"parameters": parameters}, headers=headers or {})


@pytest.fixture
async def bench() -> Bench:
    return Bench()


@pytest.fixture(params=["memory"])
async def server(request: pytest.FixtureRequest, bench: Bench, tmp_path: Path) -> AsyncIterator[Workshop]:
    """Everybody is the local caller."""
    async with Workshop(settings(tmp_path, engine=request.param), bench.tools()).open() as server:
        assert isinstance(server, Workshop)
        yield server


BOTH_ENGINES = pytest.mark.parametrize("server", ["memory", "sqlite"], indirect=True)


async def runs(server: Serving) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (await server.ask("GET", "/api/runs?limit=200")).json()["runs"]
    return listed


# --- which there are --------------------------------------------------------------------------------------------------


async def test_the_list_says_what_a_caller_needs(server: Workshop) -> None:
    answer = await server.ask("GET", "/api/tools")
    assert answer.status == 200
    listed = answer.json()["tools"]
    assert list(answer.json()) == ["tools"]
    assert listed[0] == {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "integer"},
                "b": {"type": "integer", "default": 1, "description": "Another one."},
            },
            "required": ["a"],
            "additionalProperties": False,
        },
        "idempotent": True,
        "timeout": 2.5,
        "approval": False,
    }
    approvals = {each["name"]: each["approval"] for each in listed}
    assert approvals["pay"] is True
    assert "secret" not in approvals


async def test_parameters_may_be_any_mapping(tmp_path: Path) -> None:
    schema = MappingProxyType({"type": "object", "properties": {"n": {"type": "integer"}}})
    used = FunctionTool(name="frozen", description="d", parameters=schema, function=_nothing)
    async with Workshop(settings(tmp_path), [used]).open() as server:
        answer = await server.ask("GET", "/api/tools")
        assert answer.status == 200
        assert answer.json()["tools"][0]["parameters"] == {
            "type": "object",
            "properties": {"n": {"type": "integer"}},
        }


async def _nothing(**arguments: Any) -> None:
    return None


async def test_a_server_has_a_search(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "mill.md").write_text("# Mill\n\nThe headrace leads water to the wheel.\n")
    async with Serving(settings(tmp_path, documents=tmp_path / "docs", tools=("search",))).open() as server:
        answer = await server.post("/api/tools/search/execute", {"parameters": {"query": "headrace"}})
        assert answer.status == 200
        assert list(answer.json()) == ["result"]
        assert "water" in answer.body.decode()


# --- a call -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["text", "", '{"looks": "like JSON"}', HOSTILE, None, 0, -1.5, 10**30, True, [], {"a": [None, {"": "é"}]}]
)
@BOTH_ENGINES
async def test_the_answer_is_the_result_and_nothing_else(server: Workshop, value: Any) -> None:
    answer = await server.execute("give", value=value)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == {"result": value}
    run_id = answer.headers["X-Run-Id"]
    assert answer.headers["Location"] == f"/api/runs/{run_id}/events"
    frames = await server.frames(run_id)
    assert [frame.data["kind"] for frame in frames] == [
        "run.started",
        "tool_call.start",
        "tool_call.end",
        "tool_call.result",
        "run.completed",
    ]
    assert [run["id"] for run in await runs(server)] == [run_id]


async def test_the_answer_to_the_letter(server: Workshop) -> None:
    assert (await server.execute("add", a=1, b=2)).body == b'{"result":3}'
    assert (await server.execute("give", value="a\u2028b")).body == b'{"result":"a\\u2028b"}'


async def test_parameters_may_be_left_out(server: Workshop) -> None:
    assert (await server.post("/api/tools/give/execute", {})).json() == {"result": None}
    assert (await server.post("/api/tools/give/execute", {"parameters": {}})).json() == {"result": None}


async def test_who_calls_a_tool_needs_nobody_s_approval(server: Workshop) -> None:
    assert (await server.execute("pay", value=5)).json() == {"result": 5}


@pytest.mark.parametrize(
    "name", ["nothing", "ADD", "add%20", "%0aadd", "..", "add%00", "%C3%A4", "x" * 200, "secret", "tool", "batch"]
)
async def test_row_54_a_tool_that_there_is_not(server: Workshop, name: str) -> None:
    answer = await server.execute(name, a=1)
    assert answer.problem == (404, "not_found")
    assert await runs(server) == []


@pytest.mark.parametrize(
    ("name", "parameters", "pointers"),
    [
        ("add", {}, ["/parameters"]),
        ("add", {"a": "1"}, ["/parameters/a"]),
        ("add", {"a": True}, ["/parameters/a"]),
        ("add", {"a": 1.5, "b": None}, ["/parameters/a", "/parameters/b"]),
        ("add", {"a": 1, "c": 2}, ["/parameters"]),
        ("add", None, ["/parameters"]),
        ("add", [1], ["/parameters"]),
        ("add", '{"a": 1}', ["/parameters"]),
        ("strict", {"when": "year"}, ["/parameters/when"]),
    ],
)
async def test_row_54_parameters_that_do_not_fit(
    server: Workshop, name: str, parameters: Any, pointers: list[str]
) -> None:
    answer = await server.post(f"/api/tools/{name}/execute", {"parameters": parameters})
    assert answer.problem == (422, "field.invalid")
    assert [error["pointer"] for error in answer.json()["errors"]] == pointers
    assert await runs(server) == []


async def test_a_field_that_it_does_not_take(server: Workshop) -> None:
    answer = await server.post("/api/tools/give/execute", {"parameters": {}, "user_id": "root"})
    assert answer.problem == (422, "field.forbidden")
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/user_id"]


async def test_what_every_route_refuses(server: Workshop) -> None:
    path = "/api/tools/count/execute"
    assert (await server.ask("GET", path)).problem == (405, "method_not_allowed")
    assert (await server.post(path, b"{")).problem == (400, "body.invalid_json")
    assert (await server.post(path, {}, headers={"Content-Type": "text/plain"})).problem[0] == 415
    assert (await server.post(path, {}, headers={"Accept": "image/png"})).problem == (406, "not_acceptable")
    assert (await server.post(f"{path}?on_disconnect=maybe", {})).problem == (422, "field.invalid")
    assert await runs(server) == []


async def test_another_caller_needs_the_scope(bench: Bench, tmp_path: Path) -> None:
    """Without it the tool does not exist: the answer is that to an unknown one, in every byte but the request's id."""
    keys = KeyFile(tmp_path / "auth.json")
    holders = {scopes: keys.create("ada", scopes=scopes).secret for scopes in ((), ("runs",), ("payments", "runs"))}
    async with Workshop(settings(tmp_path), bench.tools()).open() as server:
        assert isinstance(server, Workshop)
        for path in ("/api/tools", "/api/tools/secret/execute"):
            answer = await (server.ask("GET", path) if path == "/api/tools" else server.execute("secret"))
            assert answer.problem == (401, "auth.missing")
        for scopes, secret in holders.items():
            headers = {"Authorization": f"Bearer {secret}"}
            names = [each["name"] for each in (await server.ask("GET", "/api/tools", headers=headers)).json()["tools"]]
            answer = await server.execute("secret", headers=headers, value=1)
            if "payments" in scopes:
                assert "secret" in names
                assert answer.json() == {"result": 1}
            else:
                assert "secret" not in names
                unknown = await server.execute("nothing", headers=headers, value=1)
                assert answer.problem == (404, "not_found")
                assert _without_instance(answer) == _without_instance(unknown)


def _without_instance(answer: Answer) -> dict[str, Any]:
    return {name: value for name, value in answer.json().items() if name != "instance"}


# --- a call that fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "problem", "detail"),
    [
        ("fail", {}, (500, "tool.failed"), "The tool failed."),
        ("hang", {}, (504, "tool.timeout"), "The tool took longer than 0.05 seconds."),
        ("refuse", {}, (422, "tool.refused"), "Say which year."),
        ("strict", {"when": "2026", "odd": 2}, (422, "tool.refused"), "Only odd ones."),
    ],
)
@BOTH_ENGINES
async def test_a_tool_that_fails_is_a_problem(
    server: Workshop, name: str, parameters: Any, problem: tuple[int, str], detail: str
) -> None:
    answer = await server.execute(name, **parameters)
    assert answer.problem == problem
    document = answer.json()
    assert document["detail"] == detail
    assert set(document) == {"type", "title", "status", "detail", "instance", "code", "run_id"}
    assert document["run_id"] == answer.headers["X-Run-Id"]
    last = (await server.frames(document["run_id"]))[-1].data
    assert (last["kind"], last["error"]["code"], last["error"]["status"]) == ("run.failed", problem[1], problem[0])


async def test_row_59_what_a_tool_raises_is_shown_to_nobody(server: Workshop) -> None:
    shown = await server.execute("fail")
    run_id = shown.headers["X-Run-Id"]
    seen = [
        shown.body,
        str(shown.headers).encode(),
        (await server.execute("fail", headers=SSE)).body,
        (await server.execute("fail", headers=NDJSON)).body,
        (await server.events(run_id)).body,
        (await server.events(run_id, "?view=agent_chat")).body,
        (await server.events(run_id, **JSON)).body,
        (await server.ask("GET", f"/api/runs/{run_id}")).body,
        (await server.ask("GET", "/metrics")).body,
    ]
    for body in seen:
        assert body
        assert b"canary" not in body
        assert b"SELECT" not in body


PROGRAM = """
import asyncio, os
from headrace import Headrace, tool
from headrace.log_output import configure
from headrace.server.listener import Listener
from headrace.settings import load_settings

@tool
async def slip() -> str:
    "Lets a secret slip."
    raise RuntimeError(os.environ["CANARY"])

async def main():
    settings = load_settings(port=0)
    configure(settings.log_level, settings.log_format)
    headrace = Headrace(settings, tools=[slip])
    listener = Listener(headrace.app, port=0, drain=headrace.drain, grace=1.0)
    serving = asyncio.create_task(listener.serve())
    await listener.started.wait()
    print(listener.ports[0], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, input)
    listener.stop()
    await serving

asyncio.run(main())
"""


async def test_what_a_tool_raises_is_told_to_the_operator_in_one_line(tmp_path: Path) -> None:
    """Whatever is in it: no line of the log is made up by who could get words into an exception."""
    forged = f'{CANARY}\n{{"event": "forged"}}\r\x1b[2J\u2028'
    chosen = {"DATA": tmp_path, "MODEL": "demo:echo", "TOOLS": "[]", "LOG_FORMAT": "json", "LOG_LEVEL": "DEBUG"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    environment = {**inherited, "CANARY": forged, **{f"HEADRACE_{name}": str(each) for name, each in chosen.items()}}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, stdin=pipe, stdout=pipe, stderr=pipe, env=environment
    )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        port = int(await process.stdout.readline())
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://127.0.0.1:{port}/api/tools/slip/execute", json={}) as response,
        ):
            body = await response.text()
        _, logged = await process.communicate(b"\n")
    assert (response.status, process.returncode) == (500, 0)
    assert CANARY not in body
    assert logged.isascii()
    lines = [json.loads(line) for line in logged.splitlines()]
    (told,) = [line for line in lines if CANARY in str(line)]
    assert (told["event"], told["tool"]) == ("tool failed", "slip")


# --- as a stream ------------------------------------------------------------------------------------------------------


def parsed(body: bytes, accept: dict[str, str]) -> list[Frame]:
    return parse_sse(body) if accept is SSE else parse_lines(body)


@pytest.mark.parametrize("accept", [SSE, NDJSON], ids=["sse", "ndjson"])
@BOTH_ENGINES
async def test_a_stream_shows_how_far_it_has_got(server: Workshop, bench: Bench, accept: dict[str, str]) -> None:
    response = await server.begin("/api/tools/progress/execute", {"parameters": {}}, accept)
    assert response.status == 200
    assert response.headers["Content-Type"].startswith(accept["Accept"])
    begun = await read_until(response, b"preliminary")
    assert b"run.completed" not in begun
    bench.gate.set()
    whole = begun + await asyncio.wait_for(response.read(), PATIENCE)
    run_id = response.headers["X-Run-Id"]
    events = [frame.data for frame in parsed(whole, accept)]
    results = [event for event in events if event["kind"] == "tool_call.result"]
    assert [(result["output"], result.get("preliminary", False)) for result in results] == [
        ('{"done":1,"of":2}', True),
        ("all", False),
    ]
    assert (events[-1]["kind"], events[-1]["output"]) == ("run.completed", "all")
    assert [frame.data for frame in await server.frames(run_id, **accept)] == events


async def test_a_stream_of_a_call_that_fails_ends_with_why(server: Workshop) -> None:
    answer = await server.execute("hang", headers=SSE)
    assert answer.status == 200
    last = parse_sse(answer.body)[-1].data
    assert (last["kind"], last["error"]["code"]) == ("run.failed", "tool.timeout")


async def test_what_is_refused_is_refused_before_the_stream(server: Workshop) -> None:
    assert (await server.execute("nothing", headers=SSE)).problem == (404, "not_found")
    assert (await server.execute("add", headers=SSE, a="1")).problem == (422, "field.invalid")


# --- row 58: results that are too long, or hostile --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["big", "big_json"])
@BOTH_ENGINES
async def test_row_58_a_result_of_50_mb_is_cut_and_says_so(server: Workshop, name: str) -> None:
    answer = await server.execute(name)
    result = answer.json()["result"]
    assert isinstance(result, str), "half of a JSON text is none"
    assert result.endswith("\n[cut: the result was longer than the limit]")
    assert len(result) == 65_536 + len("\n[cut: the result was longer than the limit]")
    assert len((await server.events(answer.headers["X-Run-Id"])).body) < 1_000_000


@pytest.mark.parametrize("accept", [SSE, NDJSON], ids=["sse", "ndjson"])
async def test_row_58_hostile_text_is_one_frame(server: Workshop, accept: dict[str, str]) -> None:
    answer = await server.execute("hostile", headers=accept)
    harmless = await server.execute("give", headers=accept, value="x")
    for control in (b"\x1b", b"\x07", b"\x00", b"\r", "\x85".encode(), "\u2028".encode(), "\u2029".encode()):
        assert control not in answer.body
    assert answer.body.count(b"\n") == harmless.body.count(b"\n")
    frames = parsed(answer.body, accept)
    events = [frame.data for frame in frames]
    assert [event["kind"] for event in events][-2:] == ["tool_call.result", "run.completed"]
    assert (events[-2]["output"], events[-1]["output"]) == (HOSTILE, HOSTILE)
    assert [frame.id for frame in frames] == [f"{str(frames[0].id)[:-1]}{number}" for number in range(1, 6)]


async def test_row_58_hostile_text_is_data_in_the_whole_answer(server: Workshop) -> None:
    answer = await server.execute("hostile")
    assert answer.json() == {"result": HOSTILE}
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert b"\x1b" not in answer.body


# --- once -------------------------------------------------------------------------------------------------------------


def keyed(key: str, **headers: str) -> dict[str, str]:
    return {"Idempotency-Key": key, **headers}


@BOTH_ENGINES
async def test_a_key_runs_the_tool_once(server: Workshop, bench: Bench) -> None:
    first = await server.execute("count", headers=keyed("k"), n=1)
    again = await server.execute("count", headers=keyed("k"), n=1)
    assert first.json() == again.json() == {"result": {"calls": 1}}
    assert first.headers["X-Run-Id"] == again.headers["X-Run-Id"]
    streamed = await server.execute("count", headers=keyed("k", **SSE), n=1)
    assert parse_sse(streamed.body)[-1].data["output"] == '{"calls":1}'
    assert len(bench.calls) == 1
    assert (await server.execute("count", headers=keyed("other"), n=1)).json() == {"result": {"calls": 2}}


@BOTH_ENGINES
async def test_a_key_that_is_sent_many_times_at_once_runs_the_tool_once(server: Workshop, bench: Bench) -> None:
    answers = [asyncio.create_task(server.execute("wait", headers=keyed("k"))) for _ in range(20)]
    await asyncio.wait_for(bench.began.wait(), PATIENCE)
    bench.gate.set()
    done = await asyncio.gather(*answers)
    assert {answer.status for answer in done} == {200}
    assert {answer.headers["X-Run-Id"] for answer in done} == set(bench.calls)
    assert len(bench.calls) == 1


@pytest.mark.parametrize(("name", "parameters"), [("count", {"n": 2}), ("count", {}), ("give", {"n": 1})])
async def test_a_key_is_for_one_call(server: Workshop, bench: Bench, name: str, parameters: Any) -> None:
    await server.execute("count", headers=keyed("k"), n=1)
    assert (await server.execute(name, headers=keyed("k"), **parameters)).problem == (422, "idempotency.mismatch")
    assert len(bench.calls) == 1


async def test_a_call_that_failed_is_not_tried_again_with_its_key(server: Workshop) -> None:
    first = await server.execute("refuse", headers=keyed("k"))
    again = await server.execute("refuse", headers=keyed("k"))
    assert first.problem == again.problem == (422, "tool.refused")
    assert first.headers["X-Run-Id"] == again.headers["X-Run-Id"]


# --- clients that leave, cancels, the end of the server ---------------------------------------------------------------


@asynccontextmanager
async def client(server: Serving, path: str, accept: str) -> AsyncIterator[None]:
    """One on a bare socket, that leaves at the end of the block."""
    body = b'{"parameters":{}}'
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\nContent-Type: application/json\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    try:
        yield
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "application/x-ndjson"])
async def test_leaving_ends_the_tool_where_that_was_asked_for(server: Workshop, bench: Bench, accept: str) -> None:
    async with client(server, "/api/tools/wait/execute?on_disconnect=cancel", accept):
        await asyncio.wait_for(bench.began.wait(), PATIENCE)
        (run,) = await runs(server)
    await eventually(lambda: bench.ended == 1)
    last = (await server.frames(run["id"]))[-1].data
    assert (last["kind"], last["by"]) == ("run.cancelled", "disconnect")


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_leaving_is_nothing_to_the_tool_otherwise(server: Workshop, bench: Bench, accept: str) -> None:
    async with client(server, "/api/tools/wait/execute", accept):
        await asyncio.wait_for(bench.began.wait(), PATIENCE)
        (run,) = await runs(server)
    assert (await server.ask("GET", f"/api/runs/{run['id']}")).json()["state"] == "running"
    bench.gate.set()
    last = (await server.frames(run["id"]))[-1].data
    assert (last["kind"], last["output"], bench.ended) == ("run.completed", "waited", 0)


async def test_a_cancel_ends_the_tool_and_tells_who_waits(server: Workshop, bench: Bench) -> None:
    waiting = asyncio.create_task(server.execute("wait"))
    await asyncio.wait_for(bench.began.wait(), PATIENCE)
    (run,) = await runs(server)
    assert (await server.ask("POST", f"/api/runs/{run['id']}/cancel")).status == 202
    answer = await asyncio.wait_for(waiting, PATIENCE)
    assert answer.problem == (499, "run.cancelled")
    assert answer.json()["run_id"] == run["id"]
    assert bench.ended == 1


async def test_who_waits_is_told_when_the_server_stops(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "_GRACE_SECONDS", 0.05)
    async with Workshop(settings(tmp_path), bench.tools()).open() as server:
        assert isinstance(server, Workshop)
        waiting = asyncio.create_task(server.execute("wait"))
        await asyncio.wait_for(bench.began.wait(), PATIENCE)
        server.listener.stop()
        answer = await asyncio.wait_for(waiting, PATIENCE)
    assert answer.problem == (503, "server.draining")
    assert answer.json()["run_id"] == bench.calls[0]
    assert int(answer.headers["Retry-After"]) >= 1
    assert bench.ended == 1, "and nothing of it runs on"


async def test_no_more_calls_than_a_tool_takes_run_at_the_same_time(server: Workshop, bench: Bench) -> None:
    calls = [asyncio.create_task(server.execute("two")) for _ in range(6)]
    async with asyncio.timeout(PATIENCE):
        while [run["state"] for run in await runs(server)].count("running") < 6 or bench.running < 2:
            pass
    assert bench.running == 2, "the others are there, and wait"
    bench.gate.set()
    answers = [await asyncio.wait_for(call, PATIENCE) for call in calls]
    assert [answer.json() for answer in answers] == [{"result": 2}] * 6
    assert bench.most == 2


# --- the agents behind it ---------------------------------------------------------------------------------------------

OWN_NAMES = sorted(wiring._OWN_NAMES)


def test_these_names_are_the_server_s() -> None:
    assert {"tool", "batch"} <= {*OWN_NAMES}


@pytest.mark.parametrize("name", OWN_NAMES)
async def test_nobody_starts_an_agent_of_the_server_by_its_name(server: Workshop, bench: Bench, name: str) -> None:
    """Else the schema, the scope and the limits of what it does could be passed by."""
    input_ = {"tool": "secret", "parameters": {}, "message": "Hi"}
    for accept in (JSON, SSE):
        answer = await server.post("/api/runs", {"agent": name, "input": input_}, headers=accept)
        assert answer.problem == (404, "not_found")
    assert (await server.post("/api/agent/chat", {"message": "Hi", "agent_id": name})).problem == (404, "not_found")
    assert await runs(server) == []


@pytest.mark.parametrize("name", OWN_NAMES)
async def test_no_program_can_hand_in_an_agent_of_such_a_name(server: Workshop, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{name}'"):
        Headrace(server.headrace.settings, agents={name: server.agents.all()["default"]})
