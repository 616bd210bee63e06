"""One call of one tool as a run: what its log says, how it ends, and what a crash leaves of it."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tests.workshop import PATIENCE, Workshop, begin, within_patience
from tests.workshop import end as said

from headrace.agents.tool_call import ToolCallAgent
from headrace.errors import ToolFailed, ToolOutcomeUnknown, ToolRefused
from headrace.events import (
    AnyEvent,
    AttemptStarted,
    Event,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    ToolCallEnd,
    ToolCallResult,
    ToolCallStart,
    Unknown,
    kind_of,
)
from headrace.identity import Owner
from headrace.ports import Run, RunContext, ToolContext
from headrace.toolbox import Toolbox
from headrace.tools.function import FunctionTool

CANARY = "sk-canary"
CALL = ["run.started", "tool_call.start", "tool_call.end"]


async def give(value: Any = None) -> Any:
    return value


def tool_of(function: Callable[..., Any] = give, **options: Any) -> FunctionTool:
    given = {"name": "give", "description": "Gives.", "parameters": {"type": "object"}, "timeout": PATIENCE, **options}
    return FunctionTool(function=function, **given)


class Counted:
    """A tool that counts its calls, and waits at `gate` where there is one; `ended` counts those that were closed."""

    def __init__(self, result: Any = "done", *, gate: asyncio.Event | None = None, **options: Any) -> None:
        self.calls: list[dict[str, Any]] = []
        self.began = asyncio.Event()
        self.ended = 0
        self.tool = tool_of(self._work, **options)
        self._result = result
        self._gate = gate

    async def _work(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        self.began.set()
        try:
            if self._gate is not None:
                await self._gate.wait()
        finally:
            self.ended += 1
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


async def run_in(
    workshop: Workshop, *tools: FunctionTool, **input_: Any
) -> tuple[RunCompleted | RunFailed | RunCancelled, list[Event | Unknown]]:
    """How such a run ends, and its log."""
    workshop.agents["tool"] = lambda run: ToolCallAgent(Toolbox(tools))
    run, lease = await workshop.claimed("tool", **{"tool": "give", "parameters": {}, **input_})
    await within_patience(workshop.execute(lease).done)
    return await workshop.outcome(run.id), await workshop.events(run.id)


# --- the result -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "output", "is_json"),
    [
        ("text as it is", "text as it is", False),
        ("", "", False),
        ('{"looks": "like JSON"}', '{"looks": "like JSON"}', False),
        ("null", "null", False),
        (None, "null", True),
        (0, "0", True),
        ([1, {"a": "\u2028é"}], '[1,{"a":"\u2028é"}]', True),
    ],
)
async def test_the_result_is_the_output_of_the_run(workshop: Workshop, value: Any, output: str, is_json: bool) -> None:
    end, events = await run_in(workshop, tool_of(), parameters={"value": value})
    assert [kind_of(event) for event in events] == [*CALL, "tool_call.result", "run.completed"]
    _, start, called, result, _ = events
    assert isinstance(start, ToolCallStart)
    assert isinstance(called, ToolCallEnd)
    assert isinstance(result, ToolCallResult)
    assert (start.name, called.name, start.executed_by) == ("give", "give", "server")
    assert start.tool_call_id == called.tool_call_id == result.tool_call_id
    assert json.loads(called.args) == {"value": value}
    assert (result.output, result.is_json, result.is_error, result.preliminary) == (output, is_json, False, False)
    assert isinstance(end, RunCompleted)
    assert (end.output, end.stop_reason) == (output, "stop")


async def test_the_tool_gets_what_was_given_and_knows_its_run(workshop: Workshop) -> None:
    contexts: list[ToolContext] = []

    class Knowing(FunctionTool):
        async def call(self, arguments: dict[str, Any], context: ToolContext) -> Any:
            contexts.append(context)
            return arguments

    given = {"text": '"\u2028\0', "list": [[], {"": None}], "big": 10**30, "small": -0.5}
    used = Knowing(name="give", description="d", parameters={"type": "object"}, function=give)
    end, _ = await run_in(workshop, used, parameters=given)
    assert isinstance(end, RunCompleted)
    assert json.loads(end.output) == given
    assert [(context.run.agent, context.run.input["parameters"]) for context in contexts] == [("tool", given)]


async def test_it_is_seen_how_far_the_call_has_got(workshop: Workshop) -> None:
    seen = asyncio.Event()

    class Reporting(FunctionTool):
        async def call(self, arguments: dict[str, Any], context: ToolContext) -> Any:
            context.report({"done": 1})
            await seen.wait()
            return "all"

    used = Reporting(name="give", description="d", parameters={"type": "object"}, function=give)
    workshop.agents["tool"] = lambda run: ToolCallAgent(Toolbox([used]))
    run, lease = await workshop.claimed("tool", tool="give", parameters={})
    execution = workshop.execute(lease)
    await workshop.until(run.id, "tool_call.result")
    assert not execution.done.done(), "it is in the log while the tool is at work"
    seen.set()
    end = await workshop.outcome(run.id)
    results = [event for event in await workshop.events(run.id) if isinstance(event, ToolCallResult)]
    assert [(result.output, result.preliminary, result.is_json) for result in results] == [
        ('{"done":1}', True, True),
        ("all", False, False),
    ]
    assert end.output == "all"


# --- what goes wrong --------------------------------------------------------------------------------------------------


async def _hang(**arguments: Any) -> None:
    await asyncio.Event().wait()


async def _no_json(**arguments: Any) -> Any:
    return [object()]


def raising(error: Exception) -> Callable[..., Any]:
    async def fail(**arguments: Any) -> None:
        raise error

    return fail


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("used", "code", "status", "words"),
    [
        (tool_of(raising(ToolRefused("Say which year."))), "tool.refused", 422, "Say which year."),
        (tool_of(raising(RuntimeError(CANARY))), "tool.failed", 500, "The tool failed."),
        (tool_of(raising(ExceptionGroup(CANARY, [OSError(CANARY)]))), "tool.failed", 500, "The tool failed."),
        (tool_of(_no_json), "tool.failed", 500, "The tool failed."),
        (tool_of(_hang, timeout=0.01), "tool.timeout", 504, "The tool took longer than 0.01 seconds."),
        (tool_of(parameters=SCHEMA), "tool.arguments_invalid", 422, "The arguments do not fit the tool's schema."),
        (tool_of(name="other"), "tool.failed", 500, "There is no tool named 'give'."),
        (tool_of(scope="payments"), "tool.failed", 500, "There is no tool named 'give'."),
    ],
    ids=["refuses", "raises", "raises a group", "no JSON", "hangs", "wrong type", "unknown", "of a scope"],
)
async def test_the_run_fails_with_the_error_of_the_tool(
    workshop: Workshop, used: FunctionTool, code: str, status: int, words: str
) -> None:
    end, events = await run_in(workshop, used, parameters={"n": "x"})
    assert [kind_of(event) for event in events] == [*CALL, "tool_call.result", "run.failed"]
    assert isinstance(end, RunFailed)
    assert (end.error.code, end.error.status, end.error.message) == (code, status, words)
    result = events[-2]
    assert isinstance(result, ToolCallResult)
    assert (result.is_error, result.is_json) == (True, False)
    assert result.output.startswith(words)
    assert CANARY not in repr(events)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tool": None},
        {"tool": 5},
        {"tool": ["give"]},
        {"parameters": None},
        {"parameters": []},
        {"parameters": "{}"},
        {"message": "Hi"},
    ],
    ids=str,
)
async def test_an_input_that_is_none_fails_and_runs_nothing(workshop: Workshop, wrong: dict[str, Any]) -> None:
    used = Counted()
    end, events = await run_in(workshop, used.tool, **wrong)
    assert isinstance(end, RunFailed)
    assert (end.error.code, end.error.status) == ("field.invalid", 422)
    assert [kind_of(event) for event in events] == ["run.started", "run.failed"]
    assert used.calls == []


async def test_an_approval_is_not_asked_for_of_who_calls_it_themselves(workshop: Workshop) -> None:
    end, events = await run_in(workshop, tool_of(approval=True), parameters={"value": "x"})
    assert [kind_of(event) for event in events] == [*CALL, "tool_call.result", "run.completed"]
    assert isinstance(end, RunCompleted)


async def test_a_cancel_ends_the_tool(workshop: Workshop) -> None:
    used = Counted(gate=asyncio.Event())
    workshop.agents["tool"] = lambda run: ToolCallAgent(Toolbox([used.tool]))
    run, lease = await workshop.claimed("tool", tool="give", parameters={})
    execution = workshop.execute(lease, cancel_by_itself=0.01, cancel_grace=PATIENCE)
    await asyncio.wait_for(used.began.wait(), PATIENCE)
    execution.cancel("ann")
    await within_patience(execution.done)
    assert used.ended == 1
    assert await workshop.kinds(run.id) == [*CALL, "run.cancelled"]


# --- after a crash ----------------------------------------------------------------------------------------------------


def run_of(**input_: Any) -> Run:
    return Run(
        id="run_1",
        epoch="e",
        owner=Owner("t", "ann"),
        agent="tool",
        input={"tool": "give", "parameters": {"n": 1}, **input_},
        created=1,
    )


async def items_of(used: FunctionTool | None, history: Sequence[Event] = ()) -> list[list[AnyEvent]]:
    agent = ToolCallAgent(Toolbox([used] if used is not None else []))
    attempt = 2 if history else 1
    async with asyncio.timeout(PATIENCE):
        items = agent.run(RunContext(run=run_of(), attempt=attempt, history=history))
        return [list(item) if isinstance(item, Sequence) else [item] async for item in items]


def flat(items: Sequence[Sequence[AnyEvent]]) -> list[AnyEvent]:
    return [event for item in items for event in item]


def history_of(items: Sequence[Sequence[AnyEvent]]) -> list[Event]:
    """What a worker left that died after these, twice."""
    started = RunStarted(agent="tool", input_digest="")
    died = [AttemptStarted(attempt=attempt, mode="continue") for attempt in (2, 3)]
    return [started, *flat(items), *died]


PROGRESS = ToolCallResult(tool_call_id="call_1", output="half", preliminary=True)


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("progress", [0, 2])
async def test_a_call_that_may_have_run_is_run_again_only_where_the_tool_says_so(
    idempotent: bool, progress: int
) -> None:
    called = (await items_of(Counted().tool))[:1]
    history = history_of([*called, *[[PROGRESS]] * progress])
    used = Counted(idempotent=idempotent)
    if not idempotent:
        with pytest.raises(ToolOutcomeUnknown):
            await items_of(used.tool, history)
        assert used.calls == []
        return
    events = flat(await items_of(used.tool, history))
    assert [(kind_of(event), getattr(event, "output", None)) for event in events] == [("tool_call.result", "done")]
    assert used.calls == [{"n": 1}]


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_call_that_is_not_in_the_log_has_not_run(idempotent: bool) -> None:
    used = Counted(idempotent=idempotent)
    events = flat(await items_of(used.tool, history_of([])))
    assert [kind_of(event) for event in events] == [*CALL[1:], "tool_call.result"]
    assert used.calls == [{"n": 1}]


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_result_that_is_there_is_not_asked_for_again(idempotent: bool) -> None:
    whole = await items_of(Counted().tool)
    used = Counted(idempotent=idempotent)
    assert await items_of(used.tool, history_of(whole)) == []
    assert used.calls == []


@pytest.mark.parametrize("idempotent", [True, False])
async def test_an_error_that_is_there_fails_the_run_in_the_same_words(idempotent: bool) -> None:
    failed = ToolCallResult(tool_call_id="call_1", output="Say which year.", is_error=True)
    history = history_of([*(await items_of(Counted().tool))[:1], [failed]])
    used = Counted(idempotent=idempotent)
    with pytest.raises(ToolFailed, match=r"^Say which year\.$"):
        await items_of(used.tool, history)
    assert used.calls == []


@pytest.mark.parametrize("left", [None, tool_of(name="other", idempotent=True), tool_of(scope="s", idempotent=True)])
async def test_a_tool_that_is_gone_may_have_run_before(left: FunctionTool | None) -> None:
    """That there is no such tool now would be read as: it was not run."""
    history = history_of((await items_of(Counted().tool))[:1])
    with pytest.raises(ToolOutcomeUnknown):
        await items_of(left, history)


@pytest.mark.parametrize("idempotent", [True, False])
async def test_the_next_worker_goes_on_as_far_as_the_tool_allows(workshop: Workshop, idempotent: bool) -> None:
    used = Counted(idempotent=idempotent, gate=asyncio.Event())
    workshop.agents["tool"] = lambda run: ToolCallAgent(Toolbox([used.tool]))
    run, lease = await workshop.claimed("tool", tool="give", parameters={"n": 1})
    first = workshop.execute(lease)
    await asyncio.wait_for(used.began.wait(), PATIENCE)
    first.stop()
    await within_patience(first.done)
    assert used.ended == 1
    assert used._gate is not None
    used._gate.set()
    await within_patience(workshop.execute(await workshop.engine.claim("other")).done)
    end = await workshop.outcome(run.id)
    if idempotent:
        assert (end.output, len(used.calls)) == ("done", 2)
        assert await workshop.kinds(run.id) == [*CALL, "attempt.started", "tool_call.result", "run.completed"]
    else:
        assert (end.error.code, end.error.status, len(used.calls)) == ("tool_outcome_unknown", 409, 1)
        assert await workshop.kinds(run.id) == [*CALL, "attempt.started", "run.failed"]


@pytest.mark.parametrize("deaths", [1, 3])
async def test_a_result_is_that_of_the_run_also_where_only_the_end_was_missing(workshop: Workshop, deaths: int) -> None:
    """Workers died right after it. Who asks then, or asks again for what has ended, gets the same."""
    used = Counted()
    workshop.agents["tool"] = lambda run: ToolCallAgent(Toolbox([used.tool]))
    run, lease = await workshop.claimed("tool", tool="give", parameters={})
    first = await workshop.engine.head(run.id)
    result = ToolCallResult(tool_call_id="call_1", output='{"n":1}', is_json=True)
    await workshop.engine.append(run.id, lease.attempt, [*flat((await items_of(used.tool))[:1]), result])
    used.calls.clear()
    heads = [first, await workshop.engine.head(run.id)]
    for _ in range(deaths):
        await workshop.engine.release(lease)
        lease = await workshop.engine.claim("other")
        begun = AttemptStarted(attempt=lease.attempt, mode="continue")
        await workshop.engine.append(run.id, lease.attempt, [begun])
        heads.append(await workshop.engine.head(run.id))
    await workshop.engine.release(lease)
    await within_patience(workshop.execute(await workshop.engine.claim("last")).done)
    assert ((await workshop.outcome(run.id)).output, used.calls) == ('{"n":1}', [])
    for head in [*heads, await workshop.engine.head(run.id)]:
        end, found = await workshop.runs.outcome(head)
        assert isinstance(end, RunCompleted)
        assert found == result, head.offset


async def test_what_is_said_after_a_result_is_no_result(workshop: Workshop) -> None:
    """A chat that has used a tool comes to its text, which is no JSON."""
    workshop.agents["tool"] = lambda run: ToolCallAgent(Toolbox())
    run, lease = await workshop.claimed("tool", tool="give", parameters={})
    head = await workshop.engine.head(run.id)
    result = ToolCallResult(tool_call_id="call_1", output='{"n":1}', is_json=True)
    completed = RunCompleted(output="One.")
    await workshop.engine.append(run.id, lease.attempt, [result, begin(), said("One."), completed])
    assert await workshop.runs.outcome(head) == (completed, None)
