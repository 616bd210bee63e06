"""What takes too long fails with the code that says so, in every view, and lets the model's connection go."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from tests.server.serving import SSE, Serving, eventually, parse_sse, settings

from headrace.fake_provider import SCRIPTS, Call, FakeProvider, Script, ScriptMaker

SHORT = 0.3
LONG = 60.0


def limits(**given: float) -> dict[str, float]:
    names = ("stream_timeout", "idle_timeout", "first_event_timeout", "model_idle_timeout")
    return {**dict.fromkeys(names, LONG), **given}


async def failure(server: Serving) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The error of a run that was asked for by a chat stream, and the payloads of that stream. Both doors agree."""
    stream = await server.chat(stream=True, headers=SSE)
    assert stream.status == 200
    native = [frame.data for frame in await server.frames(stream.headers["X-Run-Id"])]
    assert sum(event["kind"].startswith("run.") for event in native) == 2
    assert native[-1]["kind"] == "run.failed"
    error: dict[str, Any] = native[-1]["error"]
    payloads = [frame.data for frame in parse_sse(stream.body)]
    assert payloads[-1] == {"type": "error", "message": error["message"], "code": error["status"]}
    whole = await server.chat()
    assert whole.problem == (error["status"], error["code"])
    return error, payloads


def as_named(reference: str) -> ScriptMaker:
    """One of the fake provider's scripts with its options, for models whose name may hold none."""
    name, _, options = reference.partition("?")

    def make(call: Call) -> Script:
        script = SCRIPTS[name]
        return script(replace(call, options=dict(parse_qsl(options)))) if callable(script) else script

    return make


def said(payloads: list[dict[str, Any]]) -> str:
    return "".join([payload.get("content", "") for payload in payloads])


async def test_the_time_of_a_run_is_up(tmp_path: Path) -> None:
    """An agent that talks and talks is not idle, and is stopped all the same."""
    options = settings(tmp_path, model="demo:echo?count=1000000&pace_ms=10", **limits(stream_timeout=SHORT))
    async with Serving(options, agents={}).open() as server:
        error, payloads = await failure(server)
    assert (error["code"], error["status"]) == ("limit.total_time", 504)
    assert said(payloads).startswith("0000 ")


async def test_an_agent_falls_silent(tmp_path: Path) -> None:
    options = settings(tmp_path, model="demo:echo?count=10&stall_after=3", **limits(idle_timeout=SHORT))
    async with Serving(options, agents={}).open() as server:
        error, payloads = await failure(server)
    assert (error["code"], error["status"]) == ("limit.idle_time", 504)
    assert said(payloads) == "0000 0001 0002 "


@pytest.mark.parametrize("given", ["stream_timeout", "idle_timeout"])
async def test_a_limit_also_holds_before_the_first_word(tmp_path: Path, given: str) -> None:
    options = settings(tmp_path, model="demo:echo?count=10&stall_after=0", **limits(**{given: SHORT}))
    async with Serving(options, agents={}).open() as server:
        error, payloads = await failure(server)
    assert error["status"] == 504
    assert said(payloads) == ""


@pytest.mark.parametrize(
    ("script", "given", "text"),
    [
        ("stall?at=headers", "first_event_timeout", ""),
        ("stall?at=first", "first_event_timeout", ""),
        ("ping?at=first", "first_event_timeout", ""),
        ("stall?at=middle", "model_idle_timeout", "Hello"),
        ("stall?at=torn", "model_idle_timeout", "Hello"),
        ("stall?at=finish", "model_idle_timeout", "Hello, wörld"),
        ("ping?at=middle", "model_idle_timeout", "Hello"),
        ("ping?at=middle&kind=data", "model_idle_timeout", "Hello"),
        ("ping?at=middle&kind=chunk", "model_idle_timeout", "Hello"),
    ],
)
async def test_a_model_stalls(tmp_path: Path, script: str, given: str, text: str) -> None:
    async with FakeProvider({"scripted": as_named(script)}) as provider:
        more: dict[str, Any] = {"model": f"{provider.url}#scripted", **limits(**{given: SHORT})}
        async with Serving(settings(tmp_path, **more), agents={}).open() as server:
            error, payloads = await failure(server)
            await eventually(lambda: provider.cancelled == len(provider.requests))
    assert (error["code"], error["status"]) == ("model.timeout", 504)
    assert said(payloads) == text
    assert json.dumps(payloads).count('"type": "error"') == 1


@pytest.mark.parametrize(("script", "given"), [("ping?at=middle", "stream_timeout"), ("stall", "idle_timeout")])
async def test_a_limit_of_the_run_closes_the_connection_to_the_model(tmp_path: Path, script: str, given: str) -> None:
    async with FakeProvider({"scripted": as_named(script)}) as provider:
        more: dict[str, Any] = {"model": f"{provider.url}#scripted", **limits(**{given: SHORT})}
        async with Serving(settings(tmp_path, **more), agents={}).open() as server:
            error, _ = await failure(server)
            await eventually(lambda: provider.cancelled == len(provider.requests))
    assert error["status"] == 504
    assert error["code"].startswith("limit.")
