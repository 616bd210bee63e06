"""`POST /api/batch` over HTTP: the seed's shape, streams and resumes, and the rows of PROMISE, each with its answer."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
import structlog
from tests.e2e.far_side import Gated, serving
from tests.server.serving import (
    JSON,
    NDJSON,
    PATIENCE,
    SSE,
    Answer,
    Serving,
    Start,
    eventually,
    parse_lines,
    parse_sse,
    read_until,
    settings,
)
from tests.workshop import Actor, begin, end, text

from headrace.agents.generator import generator_agent
from headrace.bootstrap import headrace as wiring
from headrace.events import AttemptStarted
from headrace.fake_provider import FakeProvider, Head, Send, Step, Usage, failure
from headrace.identity import Limits
from headrace.ports import RunContext
from headrace.server import open_streams
from headrace.server.auth import KeyFile, watched
from headrace.tools.function import tool

BATCH = "/api/batch"
CHAT = "/api/agent/chat"
S1 = {
    "requests": [
        {
            "id": "req_1",
            "method": "POST",
            "path": "/api/agent/chat",
            "body": {"message": "What is Python?", "agent_id": "default"},
        },
        {
            "id": "req_2",
            "method": "POST",
            "path": "/api/tools/search/execute",
            "body": {"parameters": {"query": "machine learning"}},
        },
    ]
}
"""As printed in the seed."""


@pytest.fixture(autouse=True)
def logged() -> Any:
    """Tracebacks are long to print."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def call(id: str, method: str, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": id, "method": method, "path": path, **({} if body is None else {"body": body}), **more}


def chat(id: str, message: Any = "Hello", agent: str = "default", *depends_on: str, **more: Any) -> dict[str, Any]:
    depends = {"dependsOn": list(depends_on)} if depends_on else {}
    return call(id, "POST", CHAT, {"message": message, "agent_id": agent}, **depends, **more)


def starts(id: str, agent: str, **input_: Any) -> dict[str, Any]:
    return call(id, "POST", "/api/runs", {"agent": agent, "input": input_})


async def send(server: Serving, *items: Mapping[str, Any], query: str = "", **request: Any) -> Answer:
    return await server.post(BATCH + query, {"requests": items}, **request)


async def responses(server: Serving, *items: Mapping[str, Any], **request: Any) -> dict[str, dict[str, Any]]:
    """By id, in their order."""
    answer = await send(server, *items, **request)
    assert answer.status == 200, answer
    found = {response["id"]: response for response in answer.json()["responses"]}
    assert list(found) == [item["id"] for item in items]
    return found


async def response(server: Serving, item: Mapping[str, Any]) -> dict[str, Any]:
    """Of one item among others, which are not touched by whatever it is."""
    found = await responses(server, chat("before"), item, chat("after"))
    assert (found["before"]["status"], found["after"]["status"]) == (200, 200)
    return found[str(item["id"])]


async def one(server: Serving, item: Mapping[str, Any]) -> tuple[int, str | None]:
    """Its status and code."""
    got = await response(server, item)
    if got["status"] < 400:
        assert "error" not in got
    else:
        assert "body" not in got
        assert got["error"].endswith(".")
        assert "Traceback" not in got["error"]
    return got["status"], got.get("code")


def statuses(found: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    return {id: each["status"] for id, each in found.items()}


async def children(server: Serving, batch: str, **headers: str) -> list[dict[str, Any]]:
    """By their number."""
    answer = await server.ask("GET", f"/api/runs?limit=200&parent={batch}", headers=headers)
    assert answer.status == 200
    return sorted(answer.json()["runs"], key=lambda run: int(run["id"].rsplit("_", 1)[1]))


async def ended(server: Serving, run_id: str) -> list[Any]:
    """All events of a run, once it has ended."""
    return [frame.data for frame in await server.frames(run_id)]


# --- as the seed prints it --------------------------------------------------------------------------------------------


async def test_the_batch_that_the_seed_prints(start: Start) -> None:
    server = await start(tools=("search",))
    answer = await server.post(BATCH, S1)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    document = answer.json()
    assert list(document) == ["responses", "total_processing_time"]
    assert isinstance(document["total_processing_time"], float)
    assert 0 < document["total_processing_time"] < PATIENCE
    first, second = document["responses"]
    run_id = answer.headers["X-Run-Id"]
    assert first == {
        "id": "req_1",
        "status": 200,
        "body": {"response": "What is Python?", "message_id": f"msg_{run_id[4:]}_1", "run_id": f"{run_id}_1"},
        "run_id": f"{run_id}_1",
    }
    assert second.keys() == {"id", "status", "body", "run_id"}
    assert (second["id"], second["status"]) == ("req_2", 200)
    assert second["body"]["result"]
    single = await server.post("/api/tools/search/execute", S1["requests"][1]["body"])
    assert second["body"] == single.json()


async def test_an_item_that_fails_does_not_touch_the_others(server: Serving) -> None:
    found = await responses(server, chat("req_1"), chat("req_2", ""), chat("req_3", agent="fail"))
    assert statuses(found) == {"req_1": 200, "req_2": 422, "req_3": 500}
    assert found["req_2"] == {
        "id": "req_2",
        "status": 422,
        "error": "A field has a value that is not allowed; see `errors`.",
        "code": "field.invalid",
        "errors": [{"detail": "String should have at least 1 character", "pointer": "/message"}],
    }
    assert found["req_3"].keys() == {"id", "status", "error", "code", "run_id"}
    assert (found["req_3"]["error"], found["req_3"]["code"]) == ("The agent failed.", "agent.failed")


async def test_every_call_that_can_be_made_by_itself_answers_the_same_in_a_batch(server: Serving) -> None:
    """But for what is of the one run: its ids, its times."""

    @tool
    async def double(number: int) -> int:
        """Doubles."""
        return 2 * number

    server.headrace.tools.add(double)
    run_id = await server.finished(message="Hi")
    for method, path, body in (
        ("POST", CHAT, {"message": "Hi"}),
        ("POST", CHAT, {"message": "Hi", "agent_id": "nobody"}),
        ("POST", CHAT, {"message": "Hi", "agent_id": "batch"}),
        ("POST", CHAT, {"message": "Hi", "agent_id": "tool"}),
        ("POST", CHAT, {"message": "Hi", "stream": True}),
        ("POST", CHAT, {"message": "Hi", "agent_id": "fail"}),
        ("POST", CHAT, {}),
        ("GET", "/api/tools", None),
        ("GET", "/api/tools", {"ignored": 1}),
        ("POST", "/api/tools/double/execute", {"parameters": {"number": 2}}),
        ("POST", "/api/tools/double/execute", {"parameters": {"number": "2"}}),
        ("POST", "/api/tools/nothing/execute", {"parameters": {}}),
        ("POST", "/api/runs", {"agent": "nobody", "input": {}}),
        ("POST", "/api/runs", {"agent": "batch", "input": {"requests": []}}),
        ("POST", "/api/runs", {"input": 1}),
        ("GET", f"/api/runs/{run_id}", None),
        ("GET", "/api/runs/run_unknown", None),
        ("POST", f"/api/runs/{run_id}/cancel", None),
        ("POST", "/api/runs/run_unknown/cancel", None),
    ):
        got = await response(server, call("it", method, path, body))
        data = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        single = await server.ask(method, path, data=data, headers=headers)
        said = single.json()
        assert got["status"] == single.status, (method, path, body, got)
        if single.status < 400:
            assert got["body"].keys() == said.keys()
            assert {**got["body"], "run_id": 0, "message_id": 0} == {**said, "run_id": 0, "message_id": 0}
        else:
            assert (got["error"], got["code"]) == (said["detail"], said["code"])
            assert got.get("errors") == said.get("errors")
        assert ("run_id" in got) == ("X-Run-Id" in single.headers)


async def test_an_empty_body_is_no_message(server: Serving) -> None:
    assert await one(server, call("it", "POST", CHAT)) == (400, "body.invalid_json")


async def test_responses_stand_in_the_order_of_the_requests_whichever_ends_first(server: Serving) -> None:
    sending = asyncio.create_task(
        responses(server, chat("z", agent="stall"), chat("a"), chat("m", agent="stall"), chat("b"))
    )
    await eventually(lambda: server.headrace.telemetry.runs_ended["completed"] == 2)
    server.agents.gate.set()
    assert statuses(await sending) == {"z": 200, "a": 200, "m": 200, "b": 200}


async def test_all_items_are_under_way_at_the_same_time(server: Serving) -> None:
    response = await server.begin(BATCH, {"requests": [chat(str(n), agent="stall") for n in range(10)]})
    got = b""
    while got.count(b'"before"') < 10:
        got += await read_until(response, b"before")
    server.agents.gate.set()
    frames = [frame.data for frame in parse_sse(got + await response.read())]
    assert Counter(frame["type"] for frame in frames) == {
        "batch_started": 1,
        "item_started": 10,
        "token": 20,
        "item_finished": 10,
        "batch_finished": 1,
    }


async def test_a_later_item_has_results_of_earlier_ones(server: Serving) -> None:
    found = await responses(
        server,
        chat("sum", {"$text": ["Say ", {"$ref": "one#/body/response"}, "!"]}, "default", "one"),
        chat("one", "Eins"),
        chat("list", {"$ref": "one#/body"}, "default", "one"),
        chat("nowhere", {"$ref": "one#/body/nothing"}, "default", "one"),
        chat("literal", {"$ref": "one#/body/response"}),
        chat("after", "Hi", "default", "nowhere", "one"),
    )
    assert statuses(found) == {"sum": 200, "one": 200, "list": 422, "nowhere": 422, "literal": 422, "after": 424}
    assert found["sum"]["body"]["response"] == "Say Eins!"
    assert found["list"]["errors"][0]["pointer"] == "/message"
    assert found["nowhere"]["code"] == "batch.reference_invalid"
    assert found["after"]["code"] == "batch.dependency_failed"
    assert "run_id" not in found["after"]


async def test_what_references_make_of_a_body_is_held_to_the_limits_of_a_body(server: Serving) -> None:
    @tool
    async def deep() -> Any:
        """Gives what is nested."""
        value: Any = "bottom"
        for _ in range(70):
            value = [value]
        return value

    server.headrace.tools.add(deep)
    execute = call("deep", "POST", "/api/tools/deep/execute", {"parameters": {}})
    found = await responses(
        server,
        execute,
        {**starts("it", "default", texts={"$ref": "deep#/body/result"}), "dependsOn": ["deep"]},
        chat("long", "x" * 150_000),
        {**starts("multiplied", "default", texts=[{"$ref": "long#/body/response"}] * 8), "dependsOn": ["long"]},
        {**starts("fits", "default", texts=[{"$ref": "long#/body/response"}] * 3), "dependsOn": ["long"]},
    )
    assert statuses(found) == {"deep": 200, "it": 400, "long": 200, "multiplied": 422, "fits": 201}
    assert (found["it"]["code"], found["multiplied"]["code"]) == ("body.too_deep", "batch.reference_invalid")


# --- a run whose children are runs ------------------------------------------------------------------------------------


async def test_a_batch_is_a_run_and_its_items_are_its_children(server: Serving) -> None:
    answer = await send(server, chat("a"), call("b", "GET", "/api/tools"), chat("c", agent="fail"))
    batch = answer.headers["X-Run-Id"]
    listed = (await server.ask("GET", "/api/runs")).json()["runs"]
    assert [(run["id"], run["agent"], run["state"]) for run in listed] == [(batch, "batch", "completed")]
    assert [(run["id"], run["state"], run["parent_run_id"]) for run in await children(server, batch)] == [
        (f"{batch}_1", "completed", batch),
        (f"{batch}_3", "failed", batch),
    ]
    events = await ended(server, batch)
    assert json.loads(events[-1]["output"]) == {"succeeded": 2, "failed": 1}
    assert (await ended(server, f"{batch}_1"))[0]["parent_run_id"] == batch
    assert (await server.ask("DELETE", f"/api/runs/{batch}")).status == 204
    assert (await server.ask("GET", f"/api/runs/{batch}_1")).status == 404


async def test_a_batch_cannot_be_deleted_before_it_and_its_children_have_ended(server: Serving) -> None:
    stream = await server.begin(BATCH, {"requests": [chat("a", agent="stall"), starts("b", "stall")]})
    await read_until(stream, b"item_finished")
    batch = stream.headers["X-Run-Id"]
    assert (await server.ask("DELETE", f"/api/runs/{batch}")).problem == (409, "run.active")
    server.agents.gate.set()
    await stream.read()
    await ended(server, f"{batch}_2")
    assert (await server.ask("DELETE", f"/api/runs/{batch}")).status == 204


async def test_a_batch_takes_no_place_from_its_items(start: Start) -> None:
    server = await start(max_runs=1)
    found = await responses(server, *(chat(str(n)) for n in range(5)), chat("after", "Hi", "default", "0", "4"))
    assert set(statuses(found).values()) == {200}


async def test_a_cancel_of_the_batch_ends_its_items(server: Serving) -> None:
    waiting = asyncio.create_task(send(server, chat("a", agent="stall"), chat("b"), chat("c", "Hi", "default", "a")))
    await eventually(lambda: server.headrace.telemetry.runs_ended["completed"] == 1)
    (batch,) = (await server.ask("GET", "/api/runs")).json()["runs"]
    assert (await server.ask("POST", f"/api/runs/{batch['id']}/cancel")).status == 202
    answer = await waiting
    assert answer.problem == (499, "run.cancelled")
    assert answer.json()["run_id"] == batch["id"]
    assert server.agents.left == 1
    view = [frame.data for frame in await server.frames(batch["id"], "?view=batch")]
    finished = {frame["request_id"]: frame["status"] for frame in view if frame["type"] == "item_finished"}
    assert finished == {"a": 499, "b": 200, "c": 424}
    assert view[-1] == {"type": "error", "message": "The run was cancelled.", "code": 499}
    assert [run["state"] for run in await children(server, batch["id"])] == ["cancelled", "completed"]


async def test_a_run_that_an_item_only_starts_is_answered_at_once_and_outlives_the_batch(start: Start) -> None:
    server = await start(batch_timeout=5)
    found = await responses(server, starts("it", "stall"), chat("other"))
    assert statuses(found) == {"it": 201, "other": 200}
    run_id = found["it"]["body"]["id"]
    assert found["it"]["run_id"] == run_id
    assert (await server.ask("GET", f"/api/runs/{run_id}")).json()["state"] == "running"
    server.agents.gate.set()
    assert (await ended(server, run_id))[-1]["kind"] == "run.completed"


async def test_no_batch_can_be_started_but_by_its_own_route(server: Serving) -> None:
    for body in ({"agent": "batch", "input": {"requests": []}}, {"agent": "tool", "input": {}}):
        assert (await server.post("/api/runs", body)).problem == (404, "not_found")


# --- streams ----------------------------------------------------------------------------------------------------------

STORY = [chat("a", "Grüße aus Köln"), chat("b", "", "default"), chat("c", "\u2028 end", "default", "a")]


async def test_the_stream_of_a_batch_frame_by_frame(start: Start) -> None:
    server = await start(stream_chunk_size=6)
    answer = await send(server, chat("a", "Grüße aus Köln"), headers=SSE)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    batch = answer.headers["X-Run-Id"]
    assert answer.headers["Location"] == f"/api/runs/{batch}/events?view=batch"
    frames = [frame.data for frame in parse_sse(answer.body)]
    seconds = frames[-1].pop("total_processing_time")
    assert 0 <= seconds < PATIENCE
    run_id = f"{batch}_1"
    body = {"response": "Grüße aus Köln", "message_id": f"msg_{batch[4:]}_1", "run_id": run_id}
    assert frames == [
        {"type": "batch_started", "batch_id": batch},
        {"type": "item_started", "request_id": "a"},
        {"type": "token", "request_id": "a", "content": "Grüße "},
        {"type": "token", "request_id": "a", "content": "aus Kö"},
        {"type": "token", "request_id": "a", "content": "ln"},
        {"type": "item_finished", "request_id": "a", "status": 200, "body": body, "run_id": run_id},
        {"type": "batch_finished", "batch_id": batch},
    ]


async def test_every_way_to_read_it_says_the_same(start: Start) -> None:
    server = await start(stream_chunk_size=3)
    answer = await send(server, *STORY, headers={**SSE, "Idempotency-Key": "k"})
    batch = answer.headers["X-Run-Id"]
    opening, frames = answer.body.split(b"\n", 1)
    assert opening.startswith(b"retry: ")
    again = await server.events(batch, "?view=batch")
    assert again.body.split(b"\n", 1)[1] == frames
    lines = await send(server, *STORY, headers={**NDJSON, "Idempotency-Key": "k"})
    assert (lines.headers["X-Run-Id"], lines.headers["Content-Type"]) == (batch, "application/x-ndjson")
    assert parse_lines(lines.body) == parse_sse(answer.body)
    page = (await server.events(batch, "?view=batch&limit=1000", **JSON)).json()
    assert ([event["data"] for event in page["events"]], page["end"]) == (
        [frame.data for frame in parse_sse(answer.body)],
        True,
    )
    whole = await send(server, *STORY, headers={"Idempotency-Key": "k"})
    assert whole.headers["X-Run-Id"] == batch
    finished = {
        frame.data["request_id"]: {"id": frame.data["request_id"], **frame.data}
        for frame in parse_sse(answer.body)
        if frame.data["type"] == "item_finished"
    }
    for each in whole.json()["responses"]:
        assert {**each, "type": "item_finished", "request_id": each["id"]} == finished[each["id"]]
    last = parse_sse(answer.body)[-1].data
    assert whole.json()["total_processing_time"] == last["total_processing_time"]


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
@pytest.mark.parametrize("accept", [SSE, NDJSON], ids=["sse", "ndjson"])
async def test_a_reader_that_comes_back_at_any_position_gets_the_rest_to_the_byte(
    start: Start, engine: str, accept: dict[str, str]
) -> None:
    server = await start(stream_chunk_size=3, engine=engine)
    answer = await send(server, *STORY, headers=accept)
    path = answer.headers["Location"]
    body = answer.body.split(b"\n", 1)[1] if accept == SSE else answer.body
    parse, gap = (parse_sse, b"\n\n") if accept == SSE else (parse_lines, b"\n")
    pieces = body.split(gap)[:-1]
    ids = [str(frame.id) for frame in parse(body)]
    assert len(ids) == len(pieces) == len(set(ids))
    assert any("." in id for id in ids), "some lie inside an event"
    for number, id in enumerate(ids, 1):
        rest = await server.ask("GET", f"{path}&after={id}", headers=accept)
        if number == len(ids) and accept == SSE:
            assert rest.status == 204
            continue
        got = rest.body.split(b"\n", 1)[1] if accept == SSE and rest.body else rest.body
        assert got == b"".join(piece + gap for piece in pieces[number:]), id


async def test_a_reader_that_is_cut_in_the_middle_goes_on_live(start: Start) -> None:
    server = await start(stream_chunk_size=3)
    stream = await server.begin(BATCH, {"requests": [chat("a", agent="stall"), chat("b", "Hi", "default", "a")]})
    got = parse_sse(await read_until(stream, b"ore"))
    stream.close()
    rest = await server.begin(stream.headers["Location"], headers={**SSE, "Last-Event-ID": str(got[-2].id)})
    first = await read_until(rest, b"ore")
    server.agents.gate.set()
    frames = [*got[:-1], *parse_sse(first + await rest.read())]
    assert frames == await server.frames(stream.headers["X-Run-Id"], "?view=batch")
    assert "".join(frame.data.get("content", "") for frame in frames) == "beforeafterHi"
    assert server.agents.left == 0


async def test_each_response_comes_as_soon_as_it_is_there(server: Serving) -> None:
    """Items that hang hold none of the others up."""
    items = [chat("stalls", agent="stall"), *(chat(str(n)) for n in range(8)), starts("last", "stall")]
    stream = await server.begin(BATCH, {"requests": items}, NDJSON)
    got = b""
    while got.count(b"item_finished") < 9:
        got += await read_until(stream, b"item_finished")
    finished = [frame.data for frame in parse_lines(got) if frame.data["type"] == "item_finished"]
    assert {frame["request_id"] for frame in finished} == {*map(str, range(8)), "last"}
    server.agents.gate.set()
    rest = [frame.data for frame in parse_lines(await stream.read())]
    assert [frame["type"] for frame in rest] == ["token", "item_finished", "batch_finished"]
    assert rest[0]["content"] == "after"


async def test_the_text_of_an_item_that_fails_is_shown_up_to_there(start: Start) -> None:
    async def breaks_off(context: RunContext) -> AsyncGenerator[str, None]:
        yield "So"
        yield " far"
        raise RuntimeError

    server = await start(agents={"default": generator_agent(breaks_off)})
    frames = [frame.data for frame in parse_sse((await send(server, chat("it"), headers=SSE)).body)]
    assert "".join(frame.get("content", "") for frame in frames) == "So far"
    assert (frames[-2]["type"], frames[-2]["status"]) == ("item_finished", 500)


async def test_an_answer_that_is_begun_anew_is_shown_as_such(start: Start) -> None:
    async def story(context: RunContext) -> AsyncGenerator[Any, None]:
        yield [begin(), text("Hel")]
        yield [AttemptStarted(attempt=1, mode="restart", model="b", reason="model.cut"), text("Good"), text("bye")]
        yield end("Goodbye")

    server = await start(agents={"default": lambda run: Actor(story)})
    answer = await send(server, chat("it"), headers=SSE)
    frames = [frame.data for frame in parse_sse(answer.body)]
    assert [frame["type"] for frame in frames][2:-1] == ["token", "item_restarted", "token", "item_finished"]
    assert [frame.get("content") for frame in frames][2:-2] == ["Hel", None, "Goodbye"]
    run_id = f"{answer.headers['X-Run-Id']}_1"
    foreign = [frame.data for frame in await server.frames(run_id, "?view=batch")]
    assert foreign[-1]["code"] == 409, "a chat that is read as if it were a batch does not show its text twice"


async def test_a_stream_at_reading_speed_has_the_same_frames(server: Serving) -> None:
    answer = await send(server, *STORY, query="?pace=1000", headers=SSE)
    assert answer.status == 200
    assert parse_sse(answer.body) == await server.frames(answer.headers["X-Run-Id"], "?view=batch")


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/json, text/event-stream", "application/json"),
        ("text/*", "text/event-stream; charset=utf-8"),
        ("application/json;q=0.5, text/event-stream", "text/event-stream; charset=utf-8"),
        ("Application/X-NDJSON", "application/x-ndjson"),
    ],
)
async def test_the_accept_header_says_how_it_is_answered(
    server: Serving, accept: str | None, content_type: str
) -> None:
    answer = await send(server, chat("a"), headers={} if accept is None else {"Accept": accept})
    assert (answer.status, answer.headers["Content-Type"]) == (200, content_type)


async def test_what_cannot_be_had_is_told_before_anything_runs(server: Serving) -> None:
    assert (await send(server, chat("a"), headers={"Accept": "image/png"})).problem == (406, "not_acceptable")
    assert (await server.ask("GET", BATCH)).problem == (405, "method_not_allowed")
    assert (await send(server, chat("a"), query="?on_disconnect=maybe")).problem == (422, "field.invalid")
    assert (await server.ask("GET", "/api/runs")).json()["runs"] == []


async def test_an_item_takes_no_stream_of_the_caller(start: Start) -> None:
    server = await start(max_streams=1)
    answer = await send(server, *(chat(str(n)) for n in range(5)), headers=SSE)
    assert {frame.data["status"] for frame in parse_sse(answer.body) if frame.data["type"] == "item_finished"} == {200}
    assert statuses(await responses(server, chat("a"), chat("b"))) == {"a": 200, "b": 200}


# --- Idempotency-Key --------------------------------------------------------------------------------------------------


async def test_the_same_key_gives_the_same_batch_and_the_same_responses(server: Serving) -> None:
    key = {"Idempotency-Key": "k"}
    first = await send(server, *STORY, headers=key)
    again = await send(server, *STORY, headers=key)
    assert (again.headers["X-Run-Id"], again.body) == (first.headers["X-Run-Id"], first.body)
    other = await send(server, *STORY, headers={"Idempotency-Key": "l"})
    assert other.headers["X-Run-Id"] != first.headers["X-Run-Id"]
    assert (await send(server, chat("a"), headers=key)).problem == (422, "idempotency.mismatch")
    assert (await send(server, chat("a"), headers={"Idempotency-Key": "k" * 300})).problem == (
        400,
        "idempotency.invalid_key",
    )
    assert len((await server.ask("GET", "/api/runs")).json()["runs"]) == 2


async def test_one_batch_that_is_sent_many_times_at_once_is_one(server: Serving) -> None:
    key = {"Idempotency-Key": "k"}
    sending = [asyncio.create_task(send(server, chat("a", agent="stall"), chat("b"), headers=key)) for _ in range(20)]
    await eventually(lambda: server.headrace.telemetry.runs_ended["completed"] == 1)
    server.agents.gate.set()
    answers = await asyncio.gather(*sending)
    assert len({(answer.status, answer.headers["X-Run-Id"], answer.body) for answer in answers}) == 1
    (batch,) = (await server.ask("GET", "/api/runs")).json()["runs"]
    assert len(await children(server, batch["id"])) == 2
    assert server.headrace.telemetry.runs_started == 3


async def test_a_key_of_an_item_is_one_of_the_caller(server: Serving) -> None:
    item = chat("it", "Hello", headers={"Idempotency-Key": "k"})
    first = await responses(server, item, {**item, "id": "twin"}, chat("other", headers={"Idempotency-Key": "k"}))
    assert first["it"]["run_id"] == first["twin"]["run_id"] == first["other"]["run_id"]
    assert first["it"]["body"] == first["twin"]["body"]
    again = await responses(server, item)
    assert again["it"] == first["it"]
    assert (await one(server, chat("it", "Another", headers={"Idempotency-Key": "k"}))) == (422, "idempotency.mismatch")
    assert (await one(server, chat("it", headers={"Idempotency-Key": ""}))) == (400, "idempotency.invalid_key")


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "auth.json")


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def test_another_callers_key_is_another_key(start: Start, keys: KeyFile) -> None:
    ann, bob = bearer(keys.create("ann").secret), bearer(keys.create("bob").secret)
    server = await start()
    runs = [
        (await send(server, chat("a"), headers={**who, "Idempotency-Key": "k"})).headers["X-Run-Id"]
        for who in (ann, bob, ann)
    ]
    assert runs[0] == runs[2] != runs[1]
    assert (await send(server, chat("a"))).problem == (401, "auth.missing")


# --- rows 42 to 53 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"requests": []}, (422, "field.invalid")),
        ({"requests": chat("a")}, (422, "field.invalid")),
        ({"requests": "a"}, (422, "field.invalid")),
        ({}, (422, "field.invalid")),
        ([chat("a")], (400, "body.invalid_json")),
        ({"requests": [chat(str(n)) for n in range(11)]}, (413, "batch.too_large")),
        ({"requests": [chat(str(n), "x" * (1 << 20)) for n in range(10)]}, (413, "body.too_large")),
    ],
    ids=["none", "no list", "text", "nothing", "array", "11", "10 x 1 MiB"],
)
async def test_row_42_too_few_too_many_too_large(server: Serving, body: Any, problem: tuple[int, str]) -> None:
    answer = await server.post(BATCH, body)
    assert answer.problem == problem
    if problem[1] == "field.invalid":
        assert answer.json()["errors"][0]["pointer"] == "/requests"
    assert (await server.ask("GET", "/api/runs")).json()["runs"] == []
    assert statuses(await responses(server, *(chat(str(n)) for n in range(10)))) == {str(n): 200 for n in range(10)}


FORBIDDEN = (400, "batch.path_forbidden")


@pytest.mark.parametrize(
    "path",
    [
        "/api/batch",
        "//api/batch",
        "/api/%62atch",
        "/api/./batch",
        "/API/BATCH",
        "/api/Batch",
        "/api//batch",
        "/api/batch/",
        "/api/x/../batch",
        "/./api/batch",
        "api/batch",
        "/api/batch?x",
        "/api/batch#",
        "/api/batch;x=1",
        "/api/b\u0430tch",
        "/api/batch\u200b",
        "/\u212api/batch",
        "/api/batches",
        "/api/batch%00",
    ],
)
async def test_row_43_a_batch_is_in_no_batch(server: Serving, path: str) -> None:
    assert await one(server, call("it", "POST", path, {"requests": [chat("inner")]})) == FORBIDDEN
    runs = (await server.ask("GET", "/api/runs?limit=200")).json()["runs"]
    assert len(runs) == 1
    assert {run["agent"] for run in await children(server, runs[0]["id"])} == {"default"}


@pytest.fixture
async def elsewhere() -> AsyncIterator[tuple[int, list[object]]]:
    """A port, and who has come to it."""
    visits: list[object] = []

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.append(writer.get_extra_info("peername"))
        writer.transport.abort()

    listening = await asyncio.start_server(visit, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1], visits


@pytest.mark.parametrize(
    "path",
    [
        "http://169.254.169.254/",
        "http://127.0.0.1:PORT/api/agent/chat",
        "//127.0.0.1:PORT/api/agent/chat",
        "//evil",
        "///evil",
        "/..//x",
        "/../api/agent/chat",
        "/api/agent/../agent/chat",
        "/api/agent/chat/..",
        "/api/runs/..",
        "/api/runs/.",
        "/api/runs/%2e%2e",
        "\\\\evil",
        "/api\\agent\\chat",
        "#",
        "/api/agent/chat#x",
        "?",
        "/api/agent/chat?",
        "/api/agent/chat?on_disconnect=cancel",
        "/api/agent/chat?x=1&stream=true",
        "/api/agent/chat\r\nHost: evil",
        "/api/agent/chat\n",
        "\r/api/agent/chat",
        "/api/agent/chat\t",
        " /api/agent/chat",
        "/api/agent/chat ",
        "/api/agent/chat\0",
        "/api/agent/chat/",
        "/api/agent/%63hat",
        "/api/agent/ch\u0430t",
        "/\uff0e\uff0e/x",
        "api/agent/chat",
        "*",
        "",
        "/",
        "file:///etc/passwd",
        "@127.0.0.1:PORT/",
        "x" * 8192,
    ],
)
async def test_row_44_no_url_is_fetched(server: Serving, elsewhere: tuple[int, list[object]], path: str) -> None:
    port, visits = elsewhere
    path = path.replace("PORT", str(port))
    assert await one(server, chat("it") | {"path": path}) == FORBIDDEN
    assert visits == []


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/admin",
        "/health",
        "/health/live",
        "/health/ready",
        "/client",
        "/graphql",
        "/api/graphql",
        "/docs",
        "/openapi.json",
        "/api/tickets",
        "/api/feed",
        "/api/ws",
        "/api/unknown",
        "/api/agent/Chat",
        "/API/agent/chat",
        "/api/runs/run_x/events",
        "/api/runs/run_x/input",
        "/api/tools/search",
        "/api/tools/search/execute/more",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_row_45_what_is_no_operation_does_not_exist(server: Serving, path: str, method: str) -> None:
    found = await responses(server, call("it", method, path, {}), call("unknown", method, "/nothing", {}))
    assert {**found["it"], "id": 0} == {**found["unknown"], "id": 0}
    assert (found["it"]["status"], found["it"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer hr_x"},
        {"authorization": "Basic YTpi"},
        {"X-API-Key": "hr_x"},
        {"Cookie": "session=1"},
        {"Host": "evil"},
        {"X-Forwarded-For": "10.0.0.1"},
        {"X-Forwarded-Host": "evil"},
        {"X-Forwarded-Proto": "https"},
        {"Forwarded": "for=10.0.0.1"},
        {"X-User-Id": "bob"},
        {"X-Real-IP": "10.0.0.1"},
        {"Content-Length": "5"},
        {"Content-Encoding": "gzip"},
        {"Transfer-Encoding": "chunked"},
        {"Connection": "upgrade"},
        {"Upgrade": "websocket"},
        {"Origin": "http://evil"},
        {"Expect": "100-continue"},
        {"Last-Event-ID": "x-1"},
        {"X-HTTP-Method-Override": "DELETE"},
        {"": "x"},
        {" accept": "application/json"},
        {"accept ": "application/json"},
        {"accept:": "application/json"},
        {"accept\r\nAuthorization": "x"},
        {"Accept": "application/json\r\nAuthorization: Bearer x"},
        {"Accept": "application/json\n"},
        {"Accept": "\0"},
        {"Accept": "é"},
        {"Accept": "application/json", "accept": "application/json"},
        {"Idempotency-\u212aey": "k"},
        {"Accept": "application/json", "Authorization": "x"},
    ],
    ids=str,
)
async def test_row_46_an_item_says_nothing_about_who_it_is(server: Serving, headers: dict[str, str]) -> None:
    assert await one(server, chat("it", headers=headers)) == (422, "batch.header_forbidden")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Accept": "application/json"}, 200),
        ({"ACCEPT": "*/*"}, 200),
        ({"Accept": "application/json;q=0.9, text/event-stream;q=0.1"}, 200),
        ({"Accept": ""}, 200),
        ({"Accept": "image/png"}, 406),
        ({"Accept-Language": "de", "traceparent": "00-1-1-01", "tracestate": "a=b"}, 200),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"Content-Type": "application/json; charset=utf-16"}, 415),
    ],
    ids=str,
)
async def test_row_46_some_headers_may_be_set(server: Serving, headers: dict[str, str], status: int) -> None:
    assert (await one(server, chat("it", headers=headers)))[0] == status


async def test_row_46_an_item_is_called_as_who_sent_the_batch(start: Start, keys: KeyFile) -> None:
    ann, bob = bearer(keys.create("ann").secret), bearer(keys.create("bob").secret)
    server = await start()
    found = await responses(server, chat("a"), starts("b", "default"), headers=ann)
    for id in ("a", "b"):
        path = f"/api/runs/{found[id]['run_id']}"
        assert (await server.ask("GET", path, headers=ann)).status == 200
        assert (await server.ask("GET", path, headers=bob)).status == 404


async def test_row_46_an_item_has_the_scopes_of_who_sent_the_batch(start: Start, keys: KeyFile) -> None:
    @tool(scope="maps")
    async def places() -> str:
        """Finds places."""
        return "here"

    ann, bob = bearer(keys.create("ann", scopes=["maps"]).secret), bearer(keys.create("bob").secret)
    server = await start()
    server.headrace.tools.add(places)
    items = [call("list", "GET", "/api/tools"), call("call", "POST", "/api/tools/places/execute", {"parameters": {}})]
    found = await responses(server, *items, headers=ann)
    assert [each["name"] for each in found["list"]["body"]["tools"]] == ["places"]
    assert found["call"]["body"] == {"result": "here"}
    found = await responses(server, *items, headers=bob)
    assert (found["list"]["body"], found["call"]["status"]) == ({"tools": []}, 404)


@pytest.mark.parametrize(
    "method", ["TRACE", "PO ST", "post", "Post", "", "GET", "DELETE", "POST\r\n", " POST", "CONNECT"]
)
async def test_row_47_a_method_is_one_that_the_path_takes(server: Serving, method: str) -> None:
    assert await one(server, chat("it") | {"method": method}) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("/api/runs", "GET"),
        ("/api/runs/run_x", "DELETE"),
        ("/api/runs/run_x", "POST"),
        ("/api/runs/run_x/cancel", "GET"),
        ("/api/tools", "POST"),
        ("/api/tools/search/execute", "GET"),
    ],
)
async def test_row_47_what_a_batch_does_not_offer_of_a_path(server: Serving, path: str, wrong: str) -> None:
    assert await one(server, call("it", wrong, path, {})) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    ("items", "pointer"),
    [
        ([chat("a"), chat("b"), chat("a")], "/requests/2/id"),
        ([chat("a"), {"method": "POST", "path": CHAT}], "/requests/1/id"),
        ([chat("x" * 10_240)], "/requests/0/id"),
        ([chat("a\nb")], "/requests/0/id"),
        ([chat("a\n")], "/requests/0/id"),
        ([chat("a", "Hi", "default", "b"), chat("b", "Hi", "default", "a")], "/requests/0/dependsOn"),
        ([chat("a", "Hi", "default", "nobody")], "/requests/0/dependsOn"),
    ],
    ids=["duplicate", "missing", "10 KB", "newline", "newline at the end", "cycle", "unknown"],
)
async def test_row_48_ids_and_dependencies_that_cannot_be(server: Serving, items: list[Any], pointer: str) -> None:
    answer = await send(server, *items)
    assert answer.problem == (422, "field.invalid")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert len(answer.body) < 1000
    assert (await server.ask("GET", "/api/runs")).json()["runs"] == []


async def test_row_49_each_item_is_a_request(start: Start) -> None:
    server = await start(requests_per_minute=5)
    found = await responses(server, *(chat(str(n)) for n in range(10)))
    assert Counter(statuses(found).values()) == {200: 5, 429: 5}
    refused = [each for each in found.values() if each["status"] == 429]
    assert {each["code"] for each in refused} == {"limit.requests"}
    assert all("run_id" not in each for each in refused)
    assert (await server.chat()).problem == (429, "limit.requests")
    assert (await send(server, chat("a"))).problem == (429, "limit.requests")


async def test_row_49_neither_is_guessing_free(start: Start) -> None:
    server = await start(requests_per_minute=5)
    guesses = [call(str(n), "GET", f"/api/runs/run_{n}") for n in range(10)]
    found = await responses(server, *guesses)
    assert Counter(statuses(found).values()) == {404: 5, 429: 5}


async def test_row_49_one_item_is_one_request(start: Start) -> None:
    server = await start(requests_per_minute=3)
    for _ in range(3):
        assert statuses(await responses(server, chat("a"))) == {"a": 200}
    assert (await send(server, chat("a"))).problem == (429, "limit.requests")


async def test_row_49_a_key_has_limits_of_its_own(start: Start, keys: KeyFile) -> None:
    ann = bearer(keys.create("ann", limits=Limits(requests_per_minute=2)).secret)
    bob = bearer(keys.create("bob").secret)
    server = await start()
    items = [chat(str(n)) for n in range(6)]
    assert Counter(statuses(await responses(server, *items, headers=ann)).values()) == {200: 2, 429: 4}
    assert Counter(statuses(await responses(server, *items, headers=bob)).values()) == {200: 6}


async def test_row_49_an_item_that_is_called_again_after_a_crash_is_no_new_request(start: Start) -> None:
    patient = Patient()
    server = await start(requests_per_minute=3, agents={"default": patient})
    sending = asyncio.create_task(responses(server, *(chat(str(n), f"wait {n}") for n in range(3))))
    await eventually(lambda: patient.begun.total() == 3)
    worker = server.headrace.worker
    (batch,) = [execution.lease for execution in worker._executions.values() if execution.lease.agent == "batch"]
    await server.headrace.engine.release(batch)
    await eventually(lambda: worker._executions[batch.run_id].lease.attempt == 2)
    patient.may_end.set()
    assert statuses(await sending) == {"0": 200, "1": 200, "2": 200}
    assert patient.begun.total() == 3


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_row_50_a_budget_for_two_lets_two_run(tmp_path: Path, engine: str) -> None:
    gated = Gated(Usage(3, 2))
    budgets = json.dumps({"principal": {"tokens": 200}, "slice": {"tokens": 100}})
    async with (
        FakeProvider({"gated": gated}) as provider,
        serving(tmp_path, provider, "openai:gated", budgets=budgets, engine=engine) as server,
    ):
        stream = await server.begin(BATCH, {"requests": [chat(str(n)) for n in range(10)]})
        got = b""
        while got.count(b"item_finished") < 8:
            got += await read_until(stream, b"item_finished")
        assert len(provider.requests) <= 2
        gated.is_open = True
        frames = [frame.data for frame in parse_sse(got + await stream.read())]
        finished = [frame for frame in frames if frame["type"] == "item_finished"]
        assert [frame["status"] for frame in finished] == [402] * 8 + [200] * 2
        refused = finished[0]
        assert (refused["code"], refused["budget"]) == ("budget.exceeded", "principal")
        assert "run_id" not in refused
        assert len(provider.requests) == 2
        assert len(await children(server, stream.headers["X-Run-Id"])) == 2


async def test_row_51_items_that_hang_raise_or_stream(start: Start) -> None:
    server = await start(batch_timeout=0.4)
    found = await responses(
        server,
        chat("hangs", agent="stall"),
        chat("waits for it", "Hi", "default", "hangs"),
        chat("raises", agent="fail"),
        chat("streams") | {"path": f"{CHAT}?stream=true"},
        chat("accepts", headers={"Accept": "text/event-stream"}),
        chat("ok"),
    )
    assert {id: (each["status"], each.get("code")) for id, each in found.items()} == {
        "hangs": (504, "batch.timeout"),
        "waits for it": (504, "batch.timeout"),
        "raises": (500, "agent.failed"),
        "streams": (422, "batch.stream_forbidden"),
        "accepts": (422, "batch.stream_forbidden"),
        "ok": (200, None),
    }
    events = await ended(server, found["hangs"]["run_id"])
    assert (events[-1]["kind"], events[-1]["by"]) == ("run.cancelled", "batch timeout")
    assert server.agents.left == 1


@pytest.mark.parametrize(
    "accept",
    [
        "text/event-stream",
        "Text/Event-Stream",
        "application/x-ndjson",
        "APPLICATION/X-NDJSON",
        "text/*",
        "text/event-stream, application/json;q=0.9",
        "application/json;q=0, */*",
    ],
)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"message": "Hi"}),
        ("/api/runs", {"input": {"message": "Hi"}}),
        ("/api/tools/double/execute", {"parameters": {"number": 1}}),
    ],
)
async def test_row_51_no_item_streams_however_it_asks_for_it(
    server: Serving, accept: str, path: str, body: dict[str, Any]
) -> None:
    @tool
    async def double(number: int) -> int:
        """Doubles."""
        return 2 * number

    server.headrace.tools.add(double)
    it = call("it", "POST", path, body, headers={"accept": accept})
    assert await one(server, it) == (422, "batch.stream_forbidden")


async def test_row_51_a_bug_is_told_in_general_words(
    server: Serving, monkeypatch: pytest.MonkeyPatch, logged: list[dict[str, Any]]
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret /etc/path SELECT")

    monkeypatch.setattr(server.headrace.runs, "get", broken)
    found = await responses(server, call("it", "GET", "/api/runs/run_x"), chat("other"))
    assert found["it"] == {
        "id": "it",
        "status": 500,
        "error": "The server failed to handle this. Its operator finds why by the request id.",
        "code": "internal",
    }
    assert found["other"]["status"] == 200
    assert any(line["log_level"] == "error" for line in logged)


async def test_row_52_what_is_another_users_does_not_exist(start: Start, keys: KeyFile) -> None:
    ann, bob = bearer(keys.create("ann").secret), bearer(keys.create("bob").secret)
    server = await start()
    run_id = await server.start("stall", headers=ann)
    batch = (await send(server, chat("a"), headers=ann)).headers["X-Run-Id"]
    for method, path in (("GET", "/api/runs/{}"), ("POST", "/api/runs/{}/cancel")):
        found = await responses(
            server,
            call("theirs", method, path.format(run_id)),
            call("their batch", method, path.format(batch)),
            call("their item", method, path.format(f"{batch}_1")),
            call("nobody's", method, path.format("run_nothing")),
            headers=bob,
        )
        assert len({json.dumps({**each, "id": 0}) for each in found.values()}) == 1
        assert (found["theirs"]["status"], found["theirs"]["code"]) == (404, "not_found")
    assert (await server.ask("GET", f"/api/runs?parent={batch}", headers=bob)).json()["runs"] == []
    assert (await server.events(batch, "?view=batch", **bob)).problem == (404, "not_found")
    assert (await server.ask("GET", f"/api/runs/{run_id}", headers=ann)).json()["cancel_requested"] is False
    server.agents.gate.set()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("on_disconnect", ["detach", "cancel", None])
async def test_row_53_a_client_that_leaves(server: Serving, stream: bool, on_disconnect: str | None) -> None:
    query = "" if on_disconnect is None else f"?on_disconnect={on_disconnect}"
    items = [chat("a", agent="stall"), chat("b"), chat("c", "Hi", "default", "a")]
    headers = {**(SSE if stream else JSON), "Idempotency-Key": "k"}
    leaving = asyncio.create_task(_leave(server, query, items, headers))
    await eventually(lambda: server.headrace.telemetry.runs_ended["completed"] == 1)
    (batch,) = (await server.ask("GET", "/api/runs")).json()["runs"]
    leaving.cancel()
    await asyncio.wait([leaving])
    if on_disconnect == "cancel":
        events = await ended(server, batch["id"])
        assert (events[-1]["kind"], events[-1]["by"]) == ("run.cancelled", "disconnect")
        assert [run["state"] for run in await children(server, batch["id"])] == ["cancelled", "completed"]
        assert server.agents.left == 1
        replayed = await send(server, *items, query=query, headers={"Idempotency-Key": "k"})
        assert replayed.problem == (499, "run.cancelled")
    else:
        server.agents.gate.set()
        replayed = await send(server, *items, query=query, headers={"Idempotency-Key": "k"})
        assert [each["status"] for each in replayed.json()["responses"]] == [200, 200, 200]
        again = await send(server, *items, query=query, headers={"Idempotency-Key": "k"})
        assert again.body == replayed.body
    assert [run["id"] for run in (await server.ask("GET", "/api/runs")).json()["runs"]] == [batch["id"]]
    assert len(await children(server, batch["id"])) == (2 if on_disconnect == "cancel" else 3)


async def _leave(server: Serving, query: str, items: Sequence[Any], headers: Mapping[str, str]) -> None:
    """Reads until it is cancelled."""
    async with aiohttp.ClientSession(server.url) as session:
        request = {"json": {"requests": items}, "headers": headers}
        async with session.post(BATCH + query, **request) as response:  # type: ignore[arg-type]
            await response.read()


# --- switched off -----------------------------------------------------------------------------------------------------


async def test_batches_can_be_switched_off(start: Start) -> None:
    server = await start(batch_enabled=False)
    for headers in (JSON, SSE):
        assert (await send(server, chat("a"), headers=headers)).problem == (403, "batch.disabled")
    assert (await server.chat()).status == 200


async def test_the_most_items_can_be_set(start: Start) -> None:
    server = await start(batch_max_size=2)
    assert (await send(server, chat("a"), chat("b"))).status == 200
    answer = await send(server, chat("a"), chat("b"), chat("c"))
    assert answer.problem == (413, "batch.too_large")
    assert " 2 items" in answer.json()["detail"]


# --- who may go on ----------------------------------------------------------------------------------------------------


@pytest.fixture
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_streams, "_LOOK_AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(watched, "INTERVAL", 0.02)


async def _all_were_looked_at(server: Serving, keys: KeyFile) -> None:
    """Streams that are open now were looked at before one that is opened later is ended."""
    eve = keys.create("eve")
    stream = await server.begin("/api/feed", headers={**SSE, **bearer(eve.secret)})
    keys.disable(eve.key.id)
    assert b"auth.revoked" in await asyncio.wait_for(stream.read(), PATIENCE)


@pytest.mark.usefixtures("_looks_often")
@pytest.mark.parametrize("by", ["key", "token"])
async def test_an_item_that_lasts_is_not_taken_for_one_of_nobody(start: Start, keys: KeyFile, by: str) -> None:
    key, secret = keys.create("ann"), "s" * 32
    claims = {"sub": "ann", "aud": "headrace", "iss": "me", "exp": time.time() + 600}
    credential = key.secret if by == "key" else jwt.encode(claims, secret)
    server = await start(jwt_secret=secret, jwt_audience="headrace", jwt_issuer="me")
    sending = asyncio.create_task(responses(server, chat("a", agent="stall"), headers=bearer(credential)))
    await eventually(lambda: server.headrace.worker.running == 2)
    for _ in range(2):
        await _all_were_looked_at(server, keys)
    server.agents.gate.set()
    assert statuses(await sending) == {"a": 200}


async def test_no_item_is_called_in_the_name_of_somebody_whose_key_is_gone(
    start: Start, keys: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "INTERVAL", 0.0)
    key = keys.create("ann")
    server = await start()
    items = [chat("a", agent="stall"), chat("b", "Hi", "default", "a"), chat("c", "Hi", "default", "b")]
    stream = await server.begin(BATCH, {"requests": items}, {**SSE, **bearer(key.secret)})
    await read_until(stream, b"before")
    keys.disable(key.key.id)
    server.agents.gate.set()
    frames = [frame.data for frame in parse_sse(await stream.read())]
    finished = [(frame["status"], frame.get("code")) for frame in frames if frame["type"] == "item_finished"]
    assert finished == [(200, None), (401, "auth.revoked"), (424, "batch.dependency_failed")]


@pytest.mark.usefixtures("_looks_often")
async def test_an_item_ends_like_a_single_call_when_its_key_is_gone(start: Start, keys: KeyFile) -> None:
    ann, bob = keys.create("ann"), keys.create("ann")
    server = await start()
    stream = await server.begin(
        BATCH,
        {"requests": [chat("a", agent="stall"), chat("b", "Hi", "default", "a")]},
        {**SSE, **bearer(ann.secret)},
    )
    await read_until(stream, b"before")
    keys.disable(ann.key.id)
    assert b'"code":401' in await asyncio.wait_for(stream.read(), PATIENCE)
    server.agents.gate.set()
    batch = stream.headers["X-Run-Id"]
    frames = [frame.data for frame in await server.frames(batch, "?view=batch", **SSE, **bearer(bob.secret))]
    finished = {frame["request_id"]: frame for frame in frames if frame["type"] == "item_finished"}
    assert (finished["a"]["status"], finished["a"]["code"]) == (401, "auth.revoked"), "as a single call that waits"
    assert (finished["b"]["status"], finished["b"]["code"]) == (424, "batch.dependency_failed")
    (child,) = await children(server, batch, **bearer(bob.secret))
    assert (await server.frames(child["id"], **SSE, **bearer(bob.secret)))[-1].data["kind"] == "run.completed"


# --- secrets ----------------------------------------------------------------------------------------------------------

CANARY = "canary-7f3a"


async def test_no_secret_comes_out_by_a_batch(tmp_path: Path) -> None:
    @tool
    async def slips() -> str:
        """Lets a secret slip."""
        raise RuntimeError(f"{CANARY}-tool")

    told: list[Step] = [Head(status=401), Send(json.dumps(failure(f"{CANARY}-provider")).encode())]
    async with (
        FakeProvider({"m": told}) as provider,
        serving(tmp_path, provider, "openai:m", openai_api_key=f"{CANARY}-key") as server,
    ):
        server.headrace.tools.add(slips)
        items = [
            chat("model"),
            call("tool", "POST", "/api/tools/slips/execute", {"parameters": {}}),
            starts("run", "default", message="Hi"),
            chat("path") | {"path": f"http://{CANARY}/"},
            chat("after", "Hi", "default", "model"),
        ]
        whole = await send(server, *items)
        streamed = await send(server, *items, headers=SSE)
        seen = [whole.body, streamed.body, str(whole.headers).encode()]
        for answer in (whole, streamed):
            batch = answer.headers["X-Run-Id"]
            seen.append((await server.events(batch, "?view=batch")).body)
            seen += [(await server.events(child["id"])).body for child in await children(server, batch)]
        found = {each["id"]: each for each in whole.json()["responses"]}
        assert statuses(found) == {"model": 502, "tool": 500, "run": 201, "path": 400, "after": 424}
        assert not any(CANARY.encode() in body for body in seen)
        native = (await server.events(batch)).body
        assert CANARY.encode() not in native


# --- the server stops -------------------------------------------------------------------------------------------------


class Patient:
    """An agent that says its message, and waits in the middle until it `may_end`; a later attempt goes on."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.begun: Counter[str] = Counter()
        """How often a run was begun, and not gone on with, by its message."""

    def __call__(self, run: Any) -> Actor:
        return Actor(self._acts, resumable=True)

    async def _acts(self, context: RunContext) -> AsyncGenerator[Any, None]:
        message = context.run.input["message"]
        if not context.history:
            self.begun[message] += 1
            yield [begin(), text(message)]
        if message.startswith("wait"):
            await self.may_end.wait()
        yield [text("!"), end(f"{message}!")]


@pytest.mark.parametrize("accept", [SSE, JSON], ids=["stream", "whole"])
async def test_a_batch_goes_on_after_a_restart_and_runs_nothing_twice(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accept: dict[str, str]
) -> None:
    monkeypatch.setattr(wiring, "_GRACE_SECONDS", 0.05)
    patient = Patient()
    data, agents = tmp_path / "data", {"default": patient}
    items = [
        chat("a", "wait a"),
        chat("b", "now b"),
        chat("c", {"$text": ["wait for ", {"$ref": "a#/body/response"}]}, "default", "a"),
        chat("d", "now d", "default", "b"),
    ]
    first = Serving(settings(data, engine="sqlite"), agents=agents, grace=5.0)
    async with first.open():
        sending = asyncio.create_task(send(first, *items, headers={**accept, "Idempotency-Key": "k"}))
        await eventually(lambda: patient.begun.total() == 3 and first.headrace.worker.running == 2)
        await first.headrace.drain()
        cut = await sending
    batch = cut.json()["run_id"] if accept == JSON else cut.headers["X-Run-Id"]
    if accept == JSON:
        assert cut.problem == (503, "server.draining")
    else:
        assert cut.body.endswith(b": the server restarts; reconnect with Last-Event-ID\n\n")
    assert patient.begun == {"wait a": 1, "now b": 1, "now d": 1}

    second = await start(data=data, engine="sqlite", agents=agents)
    patient.may_end.set()
    replayed = await send(second, *items, headers={"Idempotency-Key": "k"})
    assert replayed.headers["X-Run-Id"] == batch
    found = {each["id"]: each for each in replayed.json()["responses"]}
    assert {id: each["body"]["response"] for id, each in found.items()} == {
        "a": "wait a!",
        "b": "now b!",
        "c": "wait for wait a!!",
        "d": "now d!",
    }
    assert patient.begun == {"wait a": 1, "now b": 1, "now d": 1, "wait for wait a!": 1}
    assert len(await children(second, batch)) == 4
    whole = await second.frames(batch, "?view=batch")
    if accept == SSE:
        got = parse_sse(cut.body)
        rest = await second.events(batch, "?view=batch", **SSE, **{"Last-Event-ID": str(got[-1].id)})
        assert [*got, *parse_sse(rest.body)] == whole
    assert "".join(frame.data.get("content", "") for frame in whole if frame.data.get("request_id") == "a") == "wait a!"
    assert Counter(frame.data["type"] for frame in whole)["item_finished"] == 4


async def test_while_the_server_stops_no_batch_is_taken(server: Serving) -> None:
    await server.headrace.drain()
    for headers in (JSON, SSE):
        assert (await send(server, chat("a"), headers=headers)).problem == (503, "server.draining")


async def test_batches_of_many_callers_at_once_stay_apart(start: Start, keys: KeyFile) -> None:
    callers = {name: bearer(keys.create(name).secret) for name in ("ann", "bob", "cat")}
    server = await start(agents={"default": generator_agent(_who)})
    sending = [
        (name, asyncio.create_task(responses(server, *(chat(str(n)) for n in range(8)), headers=headers)))
        for name, headers in callers.items()
        for _ in range(4)
    ]
    for name, task in sending:
        assert {each["body"]["response"] for each in (await task).values()} == {name}


async def _who(context: RunContext) -> AsyncGenerator[str, None]:
    await asyncio.sleep(0)
    yield context.run.owner.subject
