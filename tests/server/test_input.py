"""Answers to what runs ask for, over HTTP: who may give them, which one counts, and what becomes of the run."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.agents.test_approval import Till, bill, two_bills
from tests.agents.test_chat import Continuing, answer
from tests.server.serving import JSON, PATIENCE, SSE, Answer, Serving, Start, parse_sse, read_until, settings
from tests.workshop import Actor, end

from headrace.agents.chat import ChatAgent
from headrace.errors import ToolNotApproved
from headrace.events import InputReceived, InputRequested
from headrace.ports import AgentFactory, RunContext
from headrace.server.auth import KeyFile
from headrace.toolbox import Toolbox

FIRST = "approval_1_1"
YES = {"approved": True}
BOTH_ENGINES = pytest.mark.parametrize("engine", ["memory", "sqlite"])
SCHEMA = {
    "type": "object",
    "properties": {"ships": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
    "required": ["ships"],
}


def agents_with(till: Till, *, seconds: float = 300.0) -> dict[str, AgentFactory]:
    """`default` pays one bill, `two` pays two, each once it may; `question` asks something else."""

    def chat(*steps: Any) -> AgentFactory:
        return lambda run: ChatAgent(Continuing(*steps), tools=Toolbox([till.tool]), approval_seconds=seconds)

    return {
        "default": chat(bill(), answer("All ", "done.")),
        "two": chat(two_bills("a", "b"), answer("All done.")),
        "question": lambda run: Actor(_asks),
    }


async def _asks(context: RunContext) -> AsyncGenerator[Any, None]:
    assert context.inbox is not None
    yield InputRequested(request_id="which ship?", type="question", schema=SCHEMA)
    given = await context.inbox.answer("which ship?")
    yield InputReceived(request_id=given.request_id, value=given.value, by=given.by)
    yield end(", ".join(given.value["ships"]))


@pytest.fixture
async def till() -> Till:
    return Till()


@pytest.fixture
async def server(start: Start, till: Till) -> Serving:
    started: Serving = await start(agents=agents_with(till))
    return started


class Pending:
    """A run that waits for an answer, as its stream shows it."""

    def __init__(self, server: Serving, response: aiohttp.ClientResponse, begun: bytes) -> None:
        self.server = server
        self.run_id = response.headers["X-Run-Id"]
        self._response = response
        self._begun = begun

    @classmethod
    async def of(cls, server: Serving, agent: str = "default", **headers: str) -> "Pending":
        body = {"agent": agent, "input": {"message": "Hi"}}
        response = await server.begin("/api/runs", body, {**SSE, **headers})
        return cls(server, response, await read_until(response, b"input.requested"))

    async def say(self, value: Any = YES, request_id: str = FIRST, **headers: str) -> Answer:
        return await say(self.server, self.run_id, value, request_id, **headers)

    async def ended(self) -> list[dict[str, Any]]:
        """All events of the run."""
        whole = self._begun + await asyncio.wait_for(self._response.read(), PATIENCE)
        return [frame.data for frame in parse_sse(whole)]

    async def state(self) -> str:
        return str((await self.server.ask("GET", f"/api/runs/{self.run_id}")).json()["state"])


async def say(server: Serving, run_id: str, value: Any, request_id: str = FIRST, **headers: str) -> Answer:
    body = {"request_id": request_id, "value": value}
    return await server.post(f"/api/runs/{run_id}/input", body, headers=headers)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["kind"] for event in events]


def received(events: list[dict[str, Any]]) -> list[tuple[Any, str]]:
    return [(event["value"], event["by"]) for event in events if event["kind"] == "input.received"]


# --- an answer --------------------------------------------------------------------------------------------------------


@BOTH_ENGINES
async def test_a_yes_lets_the_run_go_on(start: Start, till: Till, engine: str) -> None:
    pending = await Pending.of(await start(agents=agents_with(till), engine=engine))
    assert (await pending.state(), till.paid) == ("running", [])
    taken = await pending.say()
    assert taken.status == 202
    assert taken.json() == {"run_id": pending.run_id, "request_id": FIRST}
    events = await pending.ended()
    assert kinds(events)[-8:] == [
        "step.started",
        "message.start",
        "text.delta",
        "text.delta",
        "message.end",
        "usage",
        "step.finished",
        "run.completed",
    ]
    assert received(events) == [(YES, "local")]
    (asked,) = [event for event in events if event["kind"] == "input.requested"]
    assert (asked["request_id"], asked["type"]) == (FIRST, "approval")
    assert asked["subject"] == {"tool_call_id": "c1", "tool": "pay", "arguments": {"amount": 5}}
    assert till.paid == [5]


async def test_a_no_is_read_by_the_model_and_by_readers(server: Serving, till: Till) -> None:
    pending = await Pending.of(server)
    assert (await pending.say({"approved": False, "reason": "Too\u2028much.\n\ndata: x"})).status == 202
    events = await pending.ended()
    (result,) = [event for event in events if event["kind"] == "tool_call.result"]
    assert result["output"] == f"{ToolNotApproved.detail} Reason: Too\u2028much.\n\ndata: x"
    assert result["is_error"] is True
    assert (kinds(events)[-1], till.paid) == ("run.completed", [])


async def test_a_whole_chat_answer_waits_for_people(server: Serving, till: Till) -> None:
    waiting = asyncio.create_task(server.chat())
    async with asyncio.timeout(PATIENCE):
        while not (listed := (await server.ask("GET", "/api/runs")).json()["runs"]):
            pass
        while (await say(server, listed[0]["id"], YES)).status == 404:  # it has not come to ask
            pass
    assert (await asyncio.wait_for(waiting, PATIENCE)).json()["response"] == "All done."
    assert till.paid == [5]


async def test_a_view_that_cannot_show_it_goes_on_with_what_it_can(server: Serving) -> None:
    pending = await Pending.of(server)
    reading = asyncio.create_task(server.frames(pending.run_id, "?view=agent_chat"))
    await pending.say()
    types = [frame.data["type"] for frame in await asyncio.wait_for(reading, PATIENCE)]
    assert types == ["start", "token", "token", "end"]


async def test_each_request_has_an_answer_of_its_own(server: Serving, till: Till) -> None:
    pending = await Pending.of(server, "two")
    assert (await pending.say(request_id="approval_1_2")).problem == (404, "not_found"), "it was not asked yet"
    assert (await pending.say({"approved": False})).status == 202
    async with asyncio.timeout(PATIENCE):
        while (await pending.say(request_id="approval_1_2")).status != 202:
            pass
    assert received(await pending.ended()) == [({"approved": False}, "local"), (YES, "local")]
    assert till.paid == [7]


async def test_an_agent_may_ask_for_something_else(server: Serving) -> None:
    pending = await Pending.of(server, "question")
    answer = await pending.say({"ships": ["Argo", 5]}, "which ship?")
    assert answer.problem == (422, "field.invalid")
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/value/ships/1"]
    assert (await pending.say({"ships": ["Argo", "Swan"]}, "which ship?")).status == 202
    assert (await pending.ended())[-1]["output"] == "Argo, Swan"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "pointers"),
    [
        (None, ["/value"]),
        (True, ["/value"]),
        ("yes", ["/value"]),
        ([], ["/value"]),
        ({}, ["/value"]),
        ({"approved": "true"}, ["/value/approved"]),
        ({"approved": 1}, ["/value/approved"]),
        ({"approved": None, "reason": 5}, ["/value/approved", "/value/reason"]),
        ({"approved": True, "arguments": {"amount": 5000}}, ["/value"]),
        ({"approved": False, "reason": "x" * 1001}, ["/value/reason"]),
    ],
)
async def test_a_value_that_does_not_fit(server: Serving, till: Till, value: Any, pointers: list[str]) -> None:
    pending = await Pending.of(server)
    answer = await pending.say(value)
    assert answer.problem == (422, "field.invalid")
    assert sorted(error["pointer"] for error in answer.json()["errors"]) == pointers
    assert (await pending.say()).status == 202, "it counted for nothing"
    assert received(await pending.ended()) == [(YES, "local")]


@pytest.mark.parametrize(
    ("body", "problem", "pointers"),
    [
        ({"value": YES}, (422, "field.invalid"), ["/request_id"]),
        ({"request_id": FIRST}, (422, "field.invalid"), ["/value"]),
        ({"request_id": "", "value": YES}, (422, "field.invalid"), ["/request_id"]),
        ({"request_id": "x" * 257, "value": YES}, (422, "field.invalid"), ["/request_id"]),
        ({"request_id": 5, "value": YES}, (422, "field.invalid"), ["/request_id"]),
        ({"request_id": FIRST, "value": YES, "by": "ann"}, (422, "field.forbidden"), ["/by"]),
    ],
)
async def test_a_body_that_is_none(
    server: Serving, till: Till, body: Any, problem: tuple[int, str], pointers: list[str]
) -> None:
    pending = await Pending.of(server)
    answer = await server.post(f"/api/runs/{pending.run_id}/input", body)
    assert answer.problem == problem
    assert [error["pointer"] for error in answer.json()["errors"]] == pointers
    assert (await pending.say()).status == 202, "it counted for nothing"
    assert received(await pending.ended()) == [(YES, "local")]


async def test_a_page_of_another_site_cannot_agree(server: Serving) -> None:
    """What a form can send without asking is not taken."""
    pending = await Pending.of(server)
    body = json.dumps({"request_id": FIRST, "value": YES}).encode()
    for media_type in ("text/plain", "application/x-www-form-urlencoded"):
        headers = {"Content-Type": media_type}
        answer = await server.post(f"/api/runs/{pending.run_id}/input", body, headers=headers)
        assert answer.problem == (415, "body.unsupported_media_type")
    assert await pending.state() == "running"


@pytest.mark.parametrize(
    "request_id", ["approval_1_2", "approval_2_1", "c1", "APPROVAL_1_1", "approval_1_1 ", "a\nb\0"]
)
async def test_a_request_that_there_is_not(server: Serving, till: Till, request_id: str) -> None:
    pending = await Pending.of(server)
    assert (await pending.say(request_id=request_id)).problem == (404, "not_found")
    assert (await say(server, "run_unknown", YES)).problem == (404, "not_found")
    other = await Pending.of(server, "question")
    assert (await other.say()).problem == (404, "not_found"), "that is asked by another run"
    assert (await other.say({"ships": ["Argo"]}, "which ship?")).status == 202
    assert received(await other.ended()) == [({"ships": ["Argo"]}, "local")]
    assert (await pending.state(), till.paid) == ("running", [])
    assert (await pending.say()).status == 202
    assert received(await pending.ended()) == [(YES, "local")]


@BOTH_ENGINES
async def test_row_61_somebody_else_s_call(start: Start, till: Till, tmp_path: Path, engine: str) -> None:
    """Is answered like one that there is not: whoever asks, whatever it is about, pending or decided."""
    keys = KeyFile(tmp_path / "auth.json")
    ann, other_key = keys.create("ann"), keys.create("ann")
    others = [
        keys.create("bob"),
        keys.create("ann", tenant="other"),
        keys.create("eve", scopes=["admin", "metrics"]),
    ]
    server = await start(agents=agents_with(till), engine=engine)
    pending = await Pending.of(server, **bearer(ann.secret))
    for _ in range(2):
        for stranger in others:
            mine = bearer(stranger.secret)
            for value, request_id in ((YES, FIRST), (YES, "unknown"), ("yes", FIRST)):
                foreign = await pending.say(value, request_id, **mine)
                unknown = await say(server, "run_unknown", value, request_id, **mine)
                assert foreign.problem == (404, "not_found")
                assert without_instance(foreign) == without_instance(unknown)
        assert (await pending.say()).problem == (401, "auth.missing")
        assert (await pending.say(**bearer("wrong"))).problem == (401, "auth.invalid")
        if not till.paid:
            assert (await pending.say(**bearer(other_key.secret))).status == 202, "who it is counts, not which key"
            events = await pending.ended()
    assert received(events) == [(YES, "ann")]
    assert till.paid == [5]


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def without_instance(answer: Answer) -> dict[str, Any]:
    return {name: value for name, value in answer.json().items() if name != "instance"}


# --- the first answer counts ------------------------------------------------------------------------------------------


@BOTH_ENGINES
@pytest.mark.parametrize("second", [YES, {"approved": False}], ids=["the same", "another"])
async def test_row_61_deciding_twice(start: Start, till: Till, engine: str, second: Any) -> None:
    pending = await Pending.of(await start(agents=agents_with(till), engine=engine), "two")
    assert (await pending.say()).status == 202
    assert (await pending.say(second)).problem == (409, "input.decided")
    async with asyncio.timeout(PATIENCE):
        while (await pending.say(request_id="approval_1_2")).status == 404:  # it has not come to ask
            pass
    assert received(await pending.ended()) == [(YES, "local"), (YES, "local")]
    assert till.paid == [5, 7]


@BOTH_ENGINES
@pytest.mark.parametrize("same", [True, False], ids=["the same answer", "different ones"])
async def test_of_many_answers_at_once_exactly_one_is_taken(start: Start, till: Till, engine: str, same: bool) -> None:
    pending = await Pending.of(await start(agents=agents_with(till), engine=engine))
    values = [{"approved": False, "reason": "no" if same else f"no {number}"} for number in range(20)]
    answers = await asyncio.gather(*(pending.say(value) for value in values))
    taken = [value for answer, value in zip(answers, values, strict=True) if answer.status == 202]
    assert sorted(answer.status for answer in answers) == [202, *[409] * 19]
    assert received(await pending.ended()) == [(taken[0], "local")]


@BOTH_ENGINES
@pytest.mark.parametrize("how", ["answered", "cancelled", "cancelled and trimmed", "answered and trimmed"])
async def test_after_the_end_nothing_is_taken(start: Start, till: Till, engine: str, how: str) -> None:
    server = await start(agents=agents_with(till), engine=engine)
    pending = await Pending.of(server)
    if how.startswith("answered"):
        assert (await pending.say()).status == 202
    else:
        assert (await server.ask("POST", f"/api/runs/{pending.run_id}/cancel")).status == 202
    paid = [5] if how.startswith("answered") else []
    last = (await pending.ended())[-1]
    assert last["kind"] == ("run.completed" if paid else "run.cancelled")
    if how.endswith("trimmed"):
        await server.headrace.engine.trim(max_bytes=0)
    again = await pending.say()
    assert again.problem == (409, "input.decided" if how == "answered" else "log.closed")
    assert till.paid == paid
    assert (await server.ask("DELETE", f"/api/runs/{pending.run_id}")).status == 204
    assert (await pending.say()).problem == (404, "not_found")


@BOTH_ENGINES
async def test_row_61_nobody_decides(start: Start, till: Till, engine: str) -> None:
    pending = await Pending.of(await start(agents=agents_with(till, seconds=0.05), engine=engine))
    events = await pending.ended()
    ((value, by),) = received(events)
    assert (value["approved"], by, kinds(events)[-1], till.paid) == (False, "timeout", "run.completed", [])
    assert (await pending.say()).problem == (409, "input.decided")


# --- a new start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("approved", [True, False])
async def test_what_is_pending_is_pending_after_an_orderly_restart(tmp_path: Path, till: Till, approved: bool) -> None:
    chosen = settings(tmp_path, engine="sqlite")
    async with Serving(chosen, agents=agents_with(till)).open() as server:
        run_id = (await Pending.of(server)).run_id
    async with Serving(chosen, agents=agents_with(till)).open() as server:
        following = await server.begin(f"/api/runs/{run_id}/events")
        begun = await read_until(following, b"attempt.started")
        assert b"input.received" not in begun
        assert (await say(server, run_id, {"approved": approved})).status == 202
        assert (await say(server, run_id, YES)).problem[0] == 409
        events = [frame.data for frame in parse_sse(begun + await asyncio.wait_for(following.read(), PATIENCE))]
        assert (await server.events(run_id, **JSON)).status == 200
    assert [kind for kind in kinds(events) if kind.startswith(("input", "attempt", "run"))] == [
        "run.started",
        "input.requested",
        "attempt.started",
        "input.received",
        "run.completed",
    ]
    assert received(events) == [({"approved": approved}, "local")]
    assert till.paid == [5] * approved
