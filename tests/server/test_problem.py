"""Errors as people and programs get them, and what they never tell."""

import asyncio
import json
import os
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from tests.server.serving import NDJSON, PATIENCE, SSE, Serving, read_until

from headrace.fake_provider import END, HELLO, FakeProvider, Head, Send, failure
from headrace.protocols.agent_chat import AgentChatView
from headrace.server.auth import KeyFile

MEMBERS = ["type", "title", "status", "detail", "instance", "code"]
SCRIPT = Path(__file__).with_name("canary_server.py")


async def errors(server: Serving) -> list[tuple[int, Any, bytes]]:
    """One answer of each part of the server that refuses."""
    run_id = await server.finished()
    answers = [
        await server.ask("GET", "/nothing"),
        await server.ask("PUT", "/api/runs"),
        await server.ask("GET", "/api/runs?limit=x"),
        await server.post("/api/agent/chat", b"{"),
        await server.post("/api/agent/chat", {"message": 1}),
        await server.post("/api/agent/chat", {"message": "Hi", "agent_id": "fail"}),
        await server.post("/api/agent/chat", b"x" * (1 << 21)),
        await server.ask("GET", "/api/runs", headers={"X": "x" * 70_000}),
        await server.ask("GET", "/" + "x" * 8001),
        await server.events(run_id, "?after=x"),
        await server.events(run_id, "", Accept="image/png"),
        await server.events(run_id, "?after=zzzzzz-1"),
    ]
    return [(answer.status, answer.headers, answer.body) for answer in answers]


async def test_the_shape_of_every_problem(server: Serving) -> None:
    seen = await errors(server)
    assert [status for status, *_ in seen] == [404, 405, 422, 400, 422, 500, 413, 431, 414, 400, 406, 409]
    instances = set()
    for status, headers, body in seen:
        document = json.loads(body)
        assert list(document)[:6] == MEMBERS
        assert set(document) <= {*MEMBERS, "errors", "run_id", "first_available"}
        assert document["status"] == status
        assert document["title"] == HTTPStatus(status).phrase
        assert document["type"] == f"urn:headrace:error:{document['code']}"
        assert document["instance"] == headers["X-Request-Id"]
        assert document["detail"].endswith(".")
        assert headers["Content-Type"] == "application/problem+json"
        instances.add(document["instance"])
    assert len(instances) == len(seen)


async def test_headers_that_protect_browsers(server: Serving) -> None:
    run_id = await server.finished()
    for answer in (
        await server.ask("GET", "/nothing"),
        await server.ask("GET", "/api/runs"),
        await server.ask("GET", "/docs"),
        await server.events(run_id),
        await server.chat(stream=True),
    ):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "Server" not in answer.headers


async def test_a_bug_is_a_500_that_the_operator_can_find(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret /etc/path SELECT")

    monkeypatch.setattr(server.headrace.runs, "list", broken)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logged:
        answer = await server.ask("GET", "/api/runs")
    assert answer.problem == (500, "internal")
    assert list(answer.json()) == MEMBERS
    assert b"secret" not in answer.body
    request_id = answer.headers["X-Request-Id"]
    assert answer.json()["instance"] == request_id
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    (told,) = [line for line in logged if line["log_level"] == "error"]
    assert told["request_id"] == request_id
    (access,) = [line for line in logged if line["event"] == "request"]
    assert (access["status"], access["request_id"]) == (500, request_id)
    assert (await server.chat()).status == 200


@pytest.mark.parametrize("live", [True, False])
async def test_a_bug_in_the_middle_of_a_stream_cuts_it(
    server: Serving, monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    """It must not look complete."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("secret")

    run_id = (await server.stalled()).headers["X-Run-Id"]
    if not live:
        server.agents.gate.set()
        await server.events(run_id)
        monkeypatch.setattr(AgentChatView, "frames", broken)
    response = await server.begin(f"/api/runs/{run_id}/events?view=agent_chat")
    got = b""
    if live:
        got = await read_until(response, b"before")
        monkeypatch.setattr(AgentChatView, "frames", broken)
        server.agents.gate.set()
    assert response.status == 200
    with pytest.raises(aiohttp.ClientPayloadError):
        got += await asyncio.wait_for(response.read(), PATIENCE)
    assert b'"end"' not in got
    assert b"secret" not in got
    assert (await server.events(run_id)).status == 200, "the run itself is well"


# --- nothing leaks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_no_secret_in_any_answer_or_log_line(tmp_path: Path, log_format: str) -> None:
    canaries = {
        name: f"canary{number}-{name.lower().replace('_', '-')}-{'x' * 40}"
        for number, name in enumerate(
            ["HEADRACE_OPENAI_API_KEY", "HEADRACE_JWT_SECRET", "HEADRACE_SYSTEM_PROMPT", "CANARY_LOCAL", "CANARY_ENV"]
        )
    }
    exception, provider_said, in_path = "canary-in-an-exception", "canary-of-the-provider", "canary-in-a-path"
    data = tmp_path / in_path
    data.mkdir()
    key = KeyFile(data / "auth.json").create("ada", scopes=["metrics"]).secret
    bad = Send(json.dumps(failure(provider_said, kind=provider_said)).encode())
    scripts = {
        "m": lambda call: [
            (Head(status=status, headers={"Content-Type": "application/json"}), bad) if status else (*HELLO, bad, *END)
            for status in (400, 401, 403, 404, 429, 500, 503, None)
        ][(call.number - 1) % 8]
    }
    async with FakeProvider(scripts) as provider:
        environment = {
            **os.environ,
            **canaries,
            "CANARY_EXCEPTION": exception,
            "HEADRACE_JWT_ISSUER": "issuer",
            "HEADRACE_JWT_AUDIENCE": "audience",
            "HEADRACE_DATA": str(data),
            "HEADRACE_MODEL": f"{provider.url}#m",
            "HEADRACE_LOG_FORMAT": log_format,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(SCRIPT),
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), PATIENCE))
        answers = await _ask_everything(f"http://127.0.0.1:{port}", key)
        _, log = await asyncio.wait_for(process.communicate(b""), PATIENCE)
    assert process.returncode == 0
    assert b"agent failed" in log
    for canary in (*canaries.values(), key, provider_said):
        assert canary.encode() not in answers
        assert canary.encode() not in log, "in the log"
    for canary in (exception, in_path, "Traceback", ".py", "site-packages", "aiohttp", "SELECT", provider.url):
        assert canary.encode() not in answers


async def _ask_everything(url: str, key: str) -> bytes:
    """Every byte that was answered, headers included."""
    got: list[bytes] = []
    good = {"Authorization": f"Bearer {key}"}
    chat = {"message": "Hi"}
    async with aiohttp.ClientSession(url) as session:

        async def ask(method: str, path: str, **request: Any) -> str:
            async with session.request(method, path, **{"headers": good, **request}) as response:
                body = await response.read()
                got.append(str(response.headers).encode() + body)
                return response.headers.get("X-Run-Id", "")

        for stream in ("false", "true"):
            for _ in range(8):
                run_id = await ask("POST", f"/api/agent/chat?stream={stream}", json=chat)
                for headers in (SSE, NDJSON, {"Accept": "application/json"}):
                    await ask("GET", f"/api/runs/{run_id}/events", headers={**good, **headers})
            await ask("POST", f"/api/agent/chat?stream={stream}", json={**chat, "agent_id": "slip"})
            await ask("POST", f"/api/agent/chat?stream={stream}", json={**chat, "api_key": key[:5]})
            await ask("POST", f"/api/agent/chat?stream={stream}", data=b"{", headers=good)
        await ask("POST", "/api/runs", json={"input": {"message": 5}})
        for path in ("/api/runs", "/api/runs/x", "/metrics", "/openapi.json", "/docs", "/health/ready", "/%00", "/x?"):
            await ask("GET", path)
        for wrong in ("x", key + "x", "a.b.c"):
            await ask("GET", f"/api/runs?ticket={key}", headers={})
            await ask("GET", f"/api/runs?access_token={key}", headers={"Authorization": f"Bearer {wrong}"})
    return b"\n".join(got)
