"""Tools of MCP servers: real programs over pipes and over HTTP, of the official package and written by hand."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
import uvloop
from mcp import MCPError, types
from structlog.testing import capture_logs
from tests.workshop import PATIENCE, eventually, within_patience

from headrace.errors import ConfigurationError, ToolError, ToolRefused, ToolTimeout, ToolUnavailable
from headrace.identity import Owner
from headrace.ports import Run, Tool, ToolCall, ToolContext
from headrace.toolbox import Toolbox, ToolOutcome
from headrace.tools.mcp import McpServer, mcp_tools, parse_servers
from headrace.tools.mcp.answer import explained, value

HERE = Path(__file__).parent
RUN = Run(id="run_1", epoch="e", owner=Owner("t", "ann"), agent="a", input={}, created=1)
CONTEXT = ToolContext(run=RUN, tool_call_id="c")
OFFICIAL = (sys.executable, str(HERE / "mcp_server.py"))
LISTING = (sys.executable, str(HERE / "mcp_listing_server.py"))

Open = Callable[..., Any]


def raw(how: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / "mcp_raw_server.py"), how)


@pytest.fixture
async def open_tools() -> AsyncIterator[Open]:
    """Enters a source, which is left at the end of the test, and gives its tools by name."""
    async with AsyncExitStack() as stack:

        async def open_one(command: Sequence[str] = (), **options: Any) -> dict[str, Tool]:
            server = McpServer(name="t", command=command, **options)
            return {tool.name: tool for tool in await stack.enter_async_context(mcp_tools(server)())}

        yield open_one


class HttpServer:
    """A server in a process of its own, which keeps its port over restarts."""

    def __init__(self, *command: str) -> None:
        self._command = command
        self.port = 0
        self.process: asyncio.subprocess.Process

    async def start(self) -> "HttpServer":
        self.process = await asyncio.create_subprocess_exec(
            *self._command, str(self.port), stdout=asyncio.subprocess.PIPE
        )
        self.port = int(await self.line())
        return self

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), PATIENCE)).decode()

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"


@pytest.fixture
async def official() -> AsyncIterator[HttpServer]:
    server = await HttpServer(*OFFICIAL, "--http").start()
    yield server
    await server.kill()


@pytest.fixture
async def old() -> AsyncIterator[HttpServer]:
    server = await HttpServer(*raw("http")).start()
    yield server
    await server.kill()


async def failure(call: Any) -> ToolError:
    with pytest.raises(ToolError) as raised:
        await within_patience(call)
    return raised.value


# --- the configuration ------------------------------------------------------------------------------------------------


def test_servers_are_read_as_other_clients_write_them() -> None:
    text = """{
        "files": {"type": "stdio", "command": "npx", "args": ["-y", "files"], "env": {"ROOT": "/srv"}},
        "search": {"type": "http", "url": "https://example.org/mcp", "headers": {"Authorization": "Bearer k"},
                   "timeout": 5, "tools": ["find"], "approval": ["find"], "scope": "search", "idempotent": []},
        "plain": {"url": "http://127.0.0.1:9/", "approval": true}
    }"""
    files, search, plain = parse_servers(text)
    assert files == McpServer(name="files", command=("npx", "-y", "files"), env={"ROOT": "/srv"})
    assert search == McpServer(
        name="search",
        url="https://example.org/mcp",
        headers={"Authorization": "Bearer k"},
        timeout=5,
        tools=("find",),
        approval=("find",),
        scope="search",
        idempotent=(),
    )
    assert plain == McpServer(name="plain", url="http://127.0.0.1:9/", approval=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("[]", "Expected `object`, got `array`"),
        ('{"a": 1}', "'a': Expected `object`, got `int`"),
        ('{"a": {"command": "x"}, "a": {"command": "y"}}', "the same key twice"),
        ('{"a": {"command": ["x"]}}', r"'a': Expected `str \| null`, got `array` - at `\$.command`"),
        ('{"a": {"command": "x", "comand": "y"}}', "'a': Object contains unknown field `comand`"),
        ('{"a": {"command": "x", "args": "y"}}', "`array`, got `str`"),
        ('{"a": {"command": "x", "type": "sse"}}', "Invalid enum value 'sse'"),
        ('{"a": {"command": "x", "type": "http"}}', "`type` is `stdio` with a `command`"),
        ('{"a": {"url": "http://x/", "type": "stdio"}}', "`type` is `stdio` with a `command`"),
        ('{"a": {"args": ["x"], "url": "http://x/"}}', "`args` are those of a `command`"),
        ('{"mcpServers": {"a": {"command": "x"}}}', "'mcpServers': Object contains unknown field `a`"),
        ("[" * 100_000, "not right"),
        ('{"a": {}}', "'a': give it a `command` or a `url`"),
        ('{"a": {"command": "x", "url": "http://x/"}}', "give it a `command` or a `url`"),
        ('{"a": {"command": ""}}', "`command` is a program"),
        ('{"a_b": {"command": "x"}}', "'a_b': name it with 1 to 32 letters"),
        ('{"": {"command": "x"}}', "name it with"),
        ('{"a": {"command": "x", "timeout": 0}}', "`timeout` is a number of seconds"),
        ('{"a": {"command": "x", "timeout": NaN}}', "`timeout` is a number of seconds"),
        ('{"a": {"command": "x", "scope": ""}}', "`scope` names what"),
        ('{"a": {"command": "x", "headers": {"a": "b"}}}', "`headers` are for a `url`"),
        ('{"a": {"command": "x", "env": {"A=B": "c"}}}', "no environment can hold"),
        ('{"a": {"command": "x", "env": {"A": "\\u0000"}}}', "no environment can hold"),
        ('{"a": {"url": "http://x/", "env": {"a": "b"}}}', "`env` is for a `command`"),
        ('{"a": {"url": "ftp://x/"}}', "`url` is an address"),
        ('{"a": {"url": "http:///mcp"}}', "`url` is an address"),
        ('{"a": {"url": "http://x:99999/"}}', "`url` is an address"),
        ('{"a": {"url": "http://x/", "headers": {"a": "b\\r\\nc: d"}}}', "`headers` are names and values"),
        ('{"a": {"url": "http://x/", "headers": {"a b": "c"}}}', "`headers` are names and values"),
        (
            '{"a": {"command": "x", "tools": ["y"], "approval": ["z"]}}',
            "`approval` names 'z', which `tools` leaves out",
        ),
        ('{"a": {"command": "x", "tools": ["y"], "idempotent": ["z"]}}', "`idempotent` names 'z'"),
    ],
)
def test_what_is_wrong_with_the_servers_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse_servers(text)


def test_a_command_is_no_string() -> None:
    with pytest.raises(ConfigurationError, match="`command` is a program and its arguments"):
        McpServer(name="a", command="npx")


def test_secrets_are_not_shown() -> None:
    program = McpServer(name="a", command=("x", "sk-canary"), env={"KEY": "sk-canary"})
    remote = McpServer(name="a", url="https://example.org/?key=sk-canary", headers={"Authorization": "sk-canary"})
    assert "canary" not in f"{program!r} {program} {remote!r} {[remote]}"


def test_the_package_that_is_needed_is_named() -> None:
    program = (
        "import sys; sys.modules['mcp'] = None\n"
        "from headrace.tools.mcp import McpServer, mcp_tools\n"
        "mcp_tools(McpServer(name='a', command=['x']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.endswith(
        "ConfigurationError: Tools of MCP servers need a package: pip install 'headrace[mcp]'.\n"
    )


# --- answers ----------------------------------------------------------------------------------------------------------

TEN_BYTES = "MDEyMzQ1Njc4OQ=="


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"content": []}, ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
        ({"content": [{"type": "text", "text": "{}"}], "structuredContent": {"a": [1]}}, {"a": [1]}),
        ({"content": [{"type": "text", "text": "null"}], "structuredContent": 0}, 0),
        (
            {"content": [{"type": "image", "data": TEN_BYTES, "mimeType": "image/png"}]},
            "[image, 10 bytes of image/png, not shown]",
        ),
        (
            {"content": [{"type": "audio", "data": "", "mimeType": "audio/wav"}]},
            "[audio, 0 bytes of audio/wav, not shown]",
        ),
        (
            {"content": [{"type": "resource_link", "name": "a", "uri": "file:///a"}]},
            "[resource 'a' at file:///a]",
        ),
        ({"content": [{"type": "resource", "resource": {"uri": "file:///a", "text": "what it says"}}]}, "what it says"),
        (
            {"content": [{"type": "resource", "resource": {"uri": "f:a", "blob": TEN_BYTES, "mimeType": "a/b"}}]},
            "[resource at f:a, 10 bytes of a/b, not shown]",
        ),
    ],
)
def test_what_an_answer_comes_to(result: dict[str, Any], expected: Any) -> None:
    assert value(types.CallToolResult.model_validate(result)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [("no such file", "no such file"), ("", ToolRefused.detail), ("x" * 3000, "x" * 2000 + "…")],
)
def test_an_answer_that_is_an_error_is_a_refusal(text: str, said: str) -> None:
    content: list[types.ContentBlock] = [types.TextContent(text=text)]
    with pytest.raises(ToolRefused) as raised:
        value(types.CallToolResult(content=content, structured_content={"a": 1}, is_error=True))
    assert raised.value.message == said


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (types.INVALID_PARAMS, ToolRefused),
        (types.INVALID_REQUEST, ToolRefused),
        (-31999, ToolRefused),
        (types.CONNECTION_CLOSED, ToolUnavailable),
        (types.REQUEST_TIMEOUT, ToolUnavailable),
        (types.INTERNAL_ERROR, ToolUnavailable),
        (types.PARSE_ERROR, ToolUnavailable),
        (types.METHOD_NOT_FOUND, ToolUnavailable),
    ],
)
def test_what_an_error_in_place_of_an_answer_is(code: int, kind: type[ToolError]) -> None:
    error = explained(MCPError(code=code, message="why " + "x" * 3000), "files")
    assert type(error) is kind
    assert "why xxx" in error.message
    assert len(error.message) < 2100


# --- what a source gives ----------------------------------------------------------------------------------------------


async def test_tools_of_a_program(open_tools: Open) -> None:
    tools = await open_tools(OFFICIAL, timeout=20.0, scope="math")
    adding = tools["t_add"]
    assert adding.description == "The sum of two numbers."
    assert adding.parameters["required"] == ["a", "b"]
    assert (adding.timeout, adding.scope, adding.approval, adding.concurrency) == (20.0, "math", False, None)
    assert {name for name, tool in tools.items() if tool.idempotent} == {"t_add", "t_say"}
    assert await adding.call({"a": 1, "b": 2}, CONTEXT) == {"sum": 3}
    assert await tools["t_say"].call({"text": "\u2028 é \U0001f600"}, CONTEXT) == "\u2028 é \U0001f600"
    shown = await tools["t_show"].call({}, CONTEXT)
    assert shown == "look:\n[image, 10 bytes of image/png, not shown]\nwhat it says"
    refused = await failure(tools["t_fail"].call({"text": "no such file"}, CONTEXT))
    assert (type(refused), refused.message) == (ToolRefused, "Error executing tool fail: no such file")
    assert type(await failure(tools["t_refuse"].call({"code": -32602, "text": "x"}, CONTEXT))) is ToolRefused
    assert type(await failure(tools["t_ask"].call({}, CONTEXT))) is ToolRefused


async def test_tools_over_http(open_tools: Open, official: HttpServer) -> None:
    tools = await open_tools(url=official.url)
    assert await tools["t_add"].call({"a": 1, "b": 2}, CONTEXT) == {"sum": 3}
    assert await tools["t_process"].call({}, CONTEXT) == str(official.process.pid)
    assert type(await failure(tools["t_fail"].call({"text": "no such file"}, CONTEXT))) is ToolRefused


async def test_the_toolbox_takes_them(open_tools: Open) -> None:
    toolbox = Toolbox((await open_tools(OFFICIAL)).values())
    call = ToolCall(id="c", name="t_add", arguments='{"a": 1, "b": 2}')
    assert [each async for each in toolbox.execute(call, RUN)] == [ToolOutcome('{"sum":3}', is_json=True)]
    call = ToolCall(id="c", name="t_add", arguments='{"a": "1"}')
    (outcome,) = [each async for each in toolbox.execute(call, RUN)]
    assert outcome.is_error


@pytest.mark.parametrize("over", ["pipes", "http"])
async def test_progress_is_reported(over: str, open_tools: Open, official: HttpServer) -> None:
    tools = await (open_tools(OFFICIAL) if over == "pipes" else open_tools(url=official.url))
    reports: list[Any] = []
    context = ToolContext(run=RUN, tool_call_id="c", report=reports.append)
    assert await tools["t_count"].call({"to": 2}, context) == "done"
    assert reports == [
        {"progress": 1.0, "total": 2.0, "message": "at 1"},
        {"progress": 2.0, "total": 2.0, "message": "at 2"},
    ]


async def test_names_and_schemas_that_cannot_be_used_leave_a_tool_out(open_tools: Open) -> None:
    with capture_logs() as lines:
        tools = await open_tools(LISTING)
    assert list(tools) == ["t_plain", "t_files_read_all", "t_" + "x" * 62, "t_liar"]
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,64}", name) for name in tools)
    assert [tool.description for tool in tools.values()][:2] == ["Plain.", "Reads"]
    left_out = [(line["tool"], line["reason"]) for line in lines if line["event"] == "mcp tool left out"]
    assert left_out == [
        ("files_read.all", "another has its name"),
        ("x" * 63, "its name is longer than 64 characters"),
        ("no_schema", "its input schema is none that can be used"),
        ("elsewhere", "its input schema is none that can be used"),
    ]
    Toolbox(tools.values())
    assert await tools["t_files_read_all"].call({"a": 1}, CONTEXT) == "files.read/all {'a': 1}"


async def test_a_result_that_does_not_keep_its_own_schema_is_none(open_tools: Open) -> None:
    tools = await open_tools(LISTING)
    with pytest.raises(RuntimeError):
        await tools["t_liar"].call({}, CONTEXT)
    assert await tools["t_plain"].call({}, CONTEXT) == "plain {}"


async def test_only_the_tools_that_are_wanted(open_tools: Open) -> None:
    options = {"tools": ("plain", "liar", "gone"), "approval": ("liar",), "idempotent": ("plain",)}
    with capture_logs() as lines:
        tools = await open_tools(LISTING, **options)
    assert {name: (tool.approval, tool.idempotent) for name, tool in tools.items()} == {
        "t_plain": (False, True),
        "t_liar": (True, False),
    }
    missing = {"event": "mcp server has no such tool", "server": "t", "tool": "gone", "log_level": "warning"}
    assert [line for line in lines if line["log_level"] == "warning"] == [missing]


@pytest.mark.parametrize(("approval", "needed"), [(True, True), (False, False), (("plain", "renamed"), True)])
async def test_what_needs_approval(open_tools: Open, approval: Any, needed: bool) -> None:
    tools = await open_tools(LISTING, approval=approval)
    assert {tool.approval for tool in tools.values()} == {needed}


async def test_a_program_gets_no_more_of_our_environment_than_it_needs(
    open_tools: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    tools = await open_tools(OFFICIAL, env={"GIVEN": "yes"})
    environment = await tools["t_environment"].call({}, CONTEXT)
    assert environment["GIVEN"] == "yes"
    assert environment["PATH"] == os.environ["PATH"]
    assert "canary" not in json.dumps(environment)


async def test_what_a_program_complains_of_is_in_the_log(open_tools: Open) -> None:
    with capture_logs() as lines:
        await open_tools(OFFICIAL)
        line = {"event": "mcp server wrote", "server": "t", "line": "a line for the log", "log_level": "debug"}
        await eventually(lambda: line in lines)


# --- cancels and limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["pipes", "http"])
async def test_a_cancel_reaches_the_server(over: str, open_tools: Open, official: HttpServer, tmp_path: Path) -> None:
    tools = await (open_tools(OFFICIAL) if over == "pipes" else open_tools(url=official.url))
    call = asyncio.create_task(tools["t_wait"].call({"folder": str(tmp_path)}, CONTEXT))
    await eventually((tmp_path / "began").exists)
    assert not (tmp_path / "cancelled").exists()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within_patience(call)
    await eventually((tmp_path / "cancelled").exists)
    assert await tools["t_say"].call({"text": "still there"}, CONTEXT) == "still there"


async def test_a_call_that_takes_too_long_is_cancelled_on_the_server(open_tools: Open, tmp_path: Path) -> None:
    waiting: Any = (await open_tools(OFFICIAL))["t_wait"]
    call = ToolCall(id="c", name="t_wait", arguments=json.dumps({"folder": str(tmp_path)}))
    (outcome,) = [each async for each in Toolbox([replace(waiting, timeout=3.0)]).execute(call, RUN)]
    assert type(outcome.error) is ToolTimeout
    await eventually((tmp_path / "cancelled").exists)


async def test_who_cancels_does_not_wait_for_a_server_that_reads_nothing(open_tools: Open) -> None:
    tools = await open_tools(raw("stall"))
    fills_the_pipe = asyncio.create_task(tools["t_process"].call({"x": "x" * 1_000_000}, CONTEXT))
    waits = asyncio.create_task(tools["t_process"].call({}, CONTEXT))
    for _ in range(50):
        await asyncio.sleep(0)
    for call in (fills_the_pipe, waits):
        call.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert fills_the_pipe.cancelled()
    assert waits.cancelled()


# --- servers that fail ------------------------------------------------------------------------------------------------


async def pid_of(tool: Tool) -> int:
    return int(await asyncio.wait_for(tool.call({}, CONTEXT), PATIENCE))


async def killed(tool: Tool) -> int:
    """Kill its program. Returns its id once that was noticed."""
    pid = await pid_of(tool)
    with capture_logs() as lines:
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: any(line["event"] == "mcp session ended" for line in lines))
    return pid


async def test_a_call_after_the_program_was_killed_starts_it_again(open_tools: Open) -> None:
    tool = (await open_tools(raw("chatter")))["t_process"]
    first = await killed(tool)
    assert await pid_of(tool) != first


async def test_a_call_whose_program_is_killed_fails_and_the_next_one_works(open_tools: Open, tmp_path: Path) -> None:
    tools = await open_tools(OFFICIAL)
    first = await pid_of(tools["t_process"])
    call = asyncio.create_task(tools["t_wait"].call({"folder": str(tmp_path)}, CONTEXT))
    await eventually((tmp_path / "began").exists)
    os.kill(first, signal.SIGKILL)
    error = await failure(call)
    assert type(error) is ToolUnavailable
    assert error.retryable
    assert await pid_of(tools["t_process"]) != first


async def test_a_call_that_ends_its_program_is_not_run_again(open_tools: Open) -> None:
    tool = (await open_tools(raw("quit")))["t_process"]
    for _ in range(2):
        assert type(await failure(tool.call({}, CONTEXT))) is ToolUnavailable


async def test_a_program_that_does_not_start_again_is_not_tried_all_the_time(open_tools: Open, tmp_path: Path) -> None:
    program, starts = tmp_path / "server.py", tmp_path / "starts"
    working = (HERE / "mcp_raw_server.py").read_text(encoding="utf-8")
    program.write_text(working, encoding="utf-8")
    tool = (await open_tools((sys.executable, str(program), "chatter")))["t_process"]
    program.write_text(f"with open({str(starts)!r}, 'a') as file: print('one', file=file)", encoding="utf-8")
    first = await killed(tool)
    async with asyncio.timeout(PATIENCE):
        error = await failure(tool.call({}, CONTEXT))
        while error.retry_after is None:
            error = await failure(tool.call({}, CONTEXT))
    assert 0 < error.retry_after <= 30
    assert starts.exists()

    program.write_text(working, encoding="utf-8")
    second = None
    async with asyncio.timeout(PATIENCE):
        while second is None:
            try:
                second = await pid_of(tool)
            except ToolUnavailable as error:
                await asyncio.sleep(error.retry_after or 0)
    assert second != first


async def test_a_new_session_does_not_speak_for_the_run_that_needed_it(open_tools: Open) -> None:
    tool = (await open_tools(raw("quit")))["t_process"]
    with capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        for run in ("run_1", "run_2"):
            with structlog.contextvars.bound_contextvars(run_id=run):
                await failure(tool.call({}, CONTEXT))
        await eventually(lambda: sum(line["event"] == "mcp session ended" for line in lines) == 2)
    assert [line for line in lines if "run_id" in line] == []


async def test_what_is_no_message_between_messages_is_passed_over(
    open_tools: Open, caplog: pytest.LogCaptureFixture
) -> None:
    tool = (await open_tools(raw("chatter")))["t_process"]
    assert await pid_of(tool) == await pid_of(tool)
    assert caplog.records == []


async def test_no_log_line_has_a_secret_of_an_address(
    open_tools: Open, old: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    options = {"url": old.url + "?key=sk-canary", "headers": {"X-Key": "k"}}
    with capture_logs() as lines:
        tool = (await open_tools(**options))["t_process"]
        assert await pid_of(tool) == old.process.pid
        await old.kill()
        assert type(await failure(tool.call({}, CONTEXT))) is ToolUnavailable
        assert await open_tools(**options) == {}
    assert "canary" not in f"{caplog.text} {lines}"
    assert caplog.records == []


@pytest.mark.parametrize(
    ("command", "timeout", "problem"),
    [
        (raw("rave"), 1.0, "no answer within 1 seconds"),
        (raw("hush"), 1.0, "no answer within 1 seconds"),
        ((sys.executable, "-c", "pass"), 30.0, "Connection closed"),
        (("no-such-program-anywhere",), 30.0, "FileNotFoundError"),
    ],
)
async def test_a_server_that_cannot_be_used_is_left_out(
    open_tools: Open, command: Sequence[str], timeout: float, problem: str
) -> None:
    with capture_logs() as lines:
        assert await asyncio.wait_for(open_tools(command, timeout=timeout), PATIENCE) == {}
        left_out = {"event": "mcp server left out: it cannot be reached", "server": "t", "log_level": "warning"}
        await eventually(lambda: left_out in lines)
        await eventually(lambda: any(problem in line.get("problem", "") for line in lines))


async def test_a_url_where_nobody_listens_is_left_out(open_tools: Open, old: HttpServer) -> None:
    await old.kill()
    assert await asyncio.wait_for(open_tools(url=old.url, headers={"X-Key": "k"}), PATIENCE) == {}


async def test_headers_are_sent(open_tools: Open, old: HttpServer) -> None:
    assert await open_tools(url=old.url) == {}
    tools = await open_tools(url=old.url, headers={"X-Key": "k"})
    assert await pid_of(tools["t_process"]) == old.process.pid


async def test_a_session_that_the_server_forgot_is_made_anew_within_the_call(open_tools: Open, old: HttpServer) -> None:
    tool = (await open_tools(url=old.url, headers={"X-Key": "k"}))["t_process"]
    first = await pid_of(tool)
    await old.kill()
    await old.start()
    second = await pid_of(tool)
    assert second == old.process.pid
    assert second != first
    assert await pid_of(tool) == second


async def test_calls_of_a_forgotten_session_all_get_the_new_one(open_tools: Open, old: HttpServer) -> None:
    tool = (await open_tools(url=old.url, headers={"X-Key": "k"}))["t_process"]
    await old.kill()
    await old.start()
    assert set(await asyncio.gather(*(pid_of(tool) for _ in range(8)))) == {old.process.pid}


async def test_a_session_is_given_back(old: HttpServer) -> None:
    async with mcp_tools(McpServer(name="t", url=old.url, headers={"X-Key": "k"}))():
        pass
    assert await old.line() == "left\n"


async def test_a_server_that_comes_back_is_used_again(open_tools: Open, official: HttpServer, tmp_path: Path) -> None:
    tools = await open_tools(url=official.url)
    call = asyncio.create_task(tools["t_wait"].call({"folder": str(tmp_path)}, CONTEXT))
    await eventually((tmp_path / "began").exists)
    await official.kill()
    assert type(await failure(call)) is ToolUnavailable
    assert type(await failure(tools["t_process"].call({}, CONTEXT))) is ToolUnavailable
    await official.start()
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                assert await pid_of(tools["t_process"]) == official.process.pid
                break
            except ToolUnavailable as error:
                await asyncio.sleep(error.retry_after or 0)


# --- the end ----------------------------------------------------------------------------------------------------------


def children() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def use(server: McpServer, folder: Path) -> None:
    """Enter, call, be killed, call again, and leave with a call that waits."""
    (folder / "began").unlink(missing_ok=True)
    async with mcp_tools(server)() as listed:
        tools = {tool.name: tool for tool in listed}
        if server.command:
            await killed(tools["t_process"])
        await pid_of(tools["t_process"])
        call = asyncio.create_task(tools["t_wait"].call({"folder": str(folder)}, CONTEXT))
        await eventually((folder / "began").exists)
    assert type(await failure(call)) is ToolUnavailable
    assert type(await failure(tools["t_process"].call({}, CONTEXT))) is ToolUnavailable


async def nothing_is_left_of(server: McpServer, folder: Path) -> None:
    await use(server, folder)  # what is made once and kept, such as the loop's own pipes
    processes, tasks, files = children(), len(asyncio.all_tasks()), open_files()
    await use(server, folder)
    await eventually(lambda: children() <= processes)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
    await eventually(lambda: open_files() <= files)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
class TestNothingIsLeft:
    async def test_of_a_program(self, tmp_path: Path) -> None:
        await nothing_is_left_of(McpServer(name="t", command=OFFICIAL), tmp_path)

    def test_of_a_program_on_the_loop_that_serves(self, tmp_path: Path) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(nothing_is_left_of(McpServer(name="t", command=OFFICIAL), tmp_path))

    async def test_over_http(self, official: HttpServer, tmp_path: Path) -> None:
        await nothing_is_left_of(McpServer(name="t", url=official.url), tmp_path)

    async def test_of_a_program_that_does_not_want_to_end(self) -> None:
        before = children()
        async with mcp_tools(McpServer(name="t", command=raw("cling")))() as (tool,):
            assert str(await pid_of(tool)) in children() - before
        assert children() <= before

    async def test_of_a_server_that_hangs(self, old: HttpServer) -> None:
        tasks = len(asyncio.all_tasks())
        async with asyncio.timeout(PATIENCE):
            async with mcp_tools(McpServer(name="t", url=old.url, headers={"X-Key": "k"}))():
                old.process.send_signal(signal.SIGSTOP)
        assert len(asyncio.all_tasks()) == tasks

    async def test_of_a_start_that_is_given_up(self) -> None:
        before = children()
        start = asyncio.create_task(mcp_tools(McpServer(name="t", command=raw("hush")))().__aenter__())
        await eventually(lambda: children() - before)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within_patience(start)
        # Where it was about to be started, it is killed, and dies a moment later.
        await eventually(lambda: children() <= before)
