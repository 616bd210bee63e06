"""The chat agent with a model that follows a script."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Literal

import pytest

from headrace.agents.chat import ChatAgent
from headrace.agents.chat.past import Past
from headrace.agents.chat.step import VOID
from headrace.errors import (
    HeadraceError,
    InvalidField,
    ModelCut,
    ModelEmpty,
    ModelOutputInvalid,
    ToolOutcomeUnknown,
    TooManySteps,
)
from headrace.events import (
    AnyEvent,
    AttemptStarted,
    Data,
    Event,
    MessageEnd,
    MessageStart,
    ReasoningDelta,
    RunStarted,
    StepFinished,
    TextDelta,
    ToolCallArgs,
    ToolCallEnd,
    ToolCallResult,
    ToolCallStart,
    Usage,
    kind_of,
)
from headrace.identity import Owner
from headrace.partial_json import apply
from headrace.ports import (
    Message,
    ModelData,
    ModelEvent,
    ModelFinish,
    ModelReasoning,
    ModelRequest,
    ModelSpent,
    ModelState,
    ModelSwitch,
    ModelText,
    ModelToolCall,
    ModelUsage,
    Run,
    RunContext,
    Tool,
    ToolCall,
    ToolContext,
)
from headrace.toolbox import Toolbox
from headrace.tools.function import FunctionTool

PATIENCE = 15.0
Step = Sequence[Sequence[ModelEvent] | Exception]


def answer(*texts: str, reason: str = "stop") -> Step:
    return [*[[ModelText(text)] for text in texts], [ModelFinish(reason)]]


def calling(name: str, arguments: str, call_id: str | None = "c1") -> Step:
    return [
        [ModelToolCall(index=0, id=call_id, name=name)],
        [ModelToolCall(index=0, arguments=arguments[:3]), ModelToolCall(index=0, arguments=arguments[3:])],
        [ModelFinish("tool_calls")],
    ]


class Scripted:
    """Answers the nth request with the nth step. After its script it waits for ever, where `hangs`."""

    name = "scripted"

    def __init__(self, *steps: Step, continues: bool = True, hangs: bool = False) -> None:
        self.continues = continues
        self.requests: list[ModelRequest] = []
        self.waiting = asyncio.Event()
        self.closed = 0
        self._steps = steps
        self._hangs = hangs

    def step(self, request: ModelRequest) -> Step:
        return self._steps[len(self.requests) - 1]

    async def stream(self, request: ModelRequest) -> AsyncIterator[Sequence[ModelEvent]]:
        self.requests.append(request)
        try:
            for item in self.step(request):
                await asyncio.sleep(0)
                if isinstance(item, Exception):
                    raise item
                yield item
            if self._hangs:
                self.waiting.set()
                await asyncio.Event().wait()
        finally:
            self.closed += 1

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class Continuing(Scripted):
    """Picks its step by the turns that were already taken, and goes on after the prefix, as a real model does."""

    def step(self, request: ModelRequest) -> Step:
        step = self._steps[sum(message.role == "assistant" for message in request.messages)]
        shown = len(request.prefix)
        rest: list[Sequence[ModelEvent]] = []
        for item in step:
            assert not isinstance(item, Exception)
            events: list[ModelEvent] = []
            for event in item:
                if isinstance(event, ModelText):
                    taken = min(shown, len(event.text))
                    shown -= taken
                    if event.text[taken:]:
                        events.append(ModelText(event.text[taken:]))
                elif not (request.prefix and isinstance(event, ModelReasoning)):
                    events.append(event)
            rest.append(events)
        return rest


def run_of(**input_: Any) -> Run:
    return Run(
        id="run_1", epoch="e", owner=Owner("t", "ann"), agent="default", created=1, input={"message": "hi", **input_}
    )


def agent_of(model: Any, *tools: FunctionTool, **options: Any) -> ChatAgent:
    return ChatAgent(model, tools=Toolbox(tools), **options)


async def items_of(agent: ChatAgent, context: RunContext | None = None) -> list[Sequence[AnyEvent]]:
    async with asyncio.timeout(PATIENCE):
        return [
            item if isinstance(item, list | tuple) else (item,)
            async for item in agent.run(context or RunContext(run=run_of()))
        ]


async def said(agent: ChatAgent, **input_: Any) -> list[AnyEvent]:
    items = await items_of(agent, RunContext(run=run_of(**input_)))
    return [event for item in items for event in item]


async def said_until(error: type[Exception], agent: ChatAgent, **input_: Any) -> list[AnyEvent]:
    """What it says before it fails, as it has to."""
    events: list[AnyEvent] = []

    async def collect() -> None:
        async for item in agent.run(RunContext(run=run_of(**input_))):
            events.extend(item if isinstance(item, Sequence) else [item])

    with pytest.raises(error):
        await asyncio.wait_for(collect(), PATIENCE)
    return events


def only(events: Sequence[Any], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def shown(events: Sequence[Any]) -> list[str]:
    return [kind_of(event) for event in events]


async def search(query: str = "", **more: Any) -> Any:
    return {"found": query}


def tool(
    function: Callable[..., Any] = search, *, name: str = "search", timeout: float = 5.0, idempotent: bool = False
) -> FunctionTool:
    return FunctionTool(
        name=name,
        description="d",
        parameters={"type": "object"},
        function=function,
        timeout=timeout,
        idempotent=idempotent,
    )


# one step


async def test_an_answer_is_one_step_with_one_message() -> None:
    usage = ModelUsage(input_tokens=3, output_tokens=2)
    events = await said(agent_of(Scripted([[ModelText("Hel"), ModelText("lo")], [usage], [ModelFinish("stop")]])))
    assert shown(events) == [
        "step.started",
        "message.start",
        "text.delta",
        "text.delta",
        "message.end",
        "usage",
        "step.finished",
    ]
    (end,) = only(events, MessageEnd)
    assert (end.text, end.finish_reason, end.message_id, end.step_id) == ("Hello", "stop", "msg_1", "step_1")


async def test_the_model_is_told_the_system_prompt_the_history_and_the_message() -> None:
    model = Scripted(answer("x"))
    history = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    await said(agent_of(model, tool(), system_prompt="Be brief."), history=history, max_tokens=7, temperature=0.5)
    (request,) = model.requests
    assert [(message.role, message.content) for message in request.messages] == [
        ("system", "Be brief."),
        ("user", "one"),
        ("assistant", "two"),
        ("user", "hi"),
    ]
    assert (request.max_tokens, request.temperature, request.prefix) == (7, 0.5, "")
    assert [each.name for each in request.tools] == ["search"]


@pytest.mark.parametrize(
    "wrong",
    [{"message": 5}, {"message": None}, {"history": "x"}, {"history": [{"role": "pope"}]}, {"max_tokens": "many"}],
)
async def test_an_input_that_is_not_one_is_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidField):
        await said(agent_of(Scripted(answer("x"))), **wrong)


async def test_reasoning_is_apart_from_the_text() -> None:
    events = await said(agent_of(Scripted([[ModelReasoning("hm"), ModelReasoning("m")], *answer("yes")])))
    assert "".join(event.delta for event in only(events, ReasoningDelta)) == "hmm"
    (end,) = only(events, MessageEnd)
    assert (end.text, end.reasoning) == ("yes", "hmm")


async def test_the_last_word_on_usage_counts() -> None:
    first, last = ModelUsage(input_tokens=3), ModelUsage(input_tokens=3, output_tokens=9, cached=1, reasoning=4)
    (usage,) = only(await said(agent_of(Scripted([[first], *answer("x")[:1], [last], [ModelFinish("stop")]]))), Usage)
    assert (usage.model, usage.step_id) == ("scripted", "step_1")
    assert (usage.input_tokens, usage.output_tokens, usage.cached, usage.reasoning) == (3, 9, 1, 4)


async def test_a_model_that_says_nothing_of_usage_leaves_it_unknown() -> None:
    (usage,) = only(await said(agent_of(Scripted(answer("x")))), Usage)
    assert (usage.input_tokens, usage.output_tokens) == (None, None)


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "of_the_provider"])
async def test_the_reason_of_the_end_is_kept(reason: str) -> None:
    (end,) = only(await said(agent_of(Scripted(answer("x", reason=reason)))), MessageEnd)
    assert end.finish_reason == reason


async def test_what_else_the_model_says_is_data() -> None:
    (data,) = only(await said(agent_of(Scripted([[ModelData("source", {"n": 1})], *answer("x")]))), Data)
    assert (data.name, data.value) == ("source", {"n": 1})


@pytest.mark.parametrize(
    ("step", "error"), [([], ModelEmpty), ([[ModelText("x")]], ModelEmpty), ([[ModelText("x")], ModelCut()], ModelCut)]
)
async def test_an_answer_without_an_end_is_none(step: Step, error: type[HeadraceError]) -> None:
    model = Scripted(step)
    with pytest.raises(error):
        await said(agent_of(model))
    assert model.closed == 1


# tools


async def test_a_tool_is_called_and_its_result_goes_to_the_log_and_to_the_model() -> None:
    called: list[dict[str, Any]] = []

    async def look(**arguments: Any) -> Any:
        called.append(arguments)
        return {"found": 3}

    model = Scripted(calling("search", '{"query": "mill"}'), answer("Three."))
    events = await said(agent_of(model, tool(look)))
    assert called == [{"query": "mill"}]
    assert [type(event) for event in events if "tool" in kind_of(event)] == [
        ToolCallStart,
        ToolCallArgs,
        ToolCallArgs,
        ToolCallEnd,
        ToolCallResult,
    ]
    (end,), (result,) = only(events, ToolCallEnd), only(events, ToolCallResult)
    assert (end.tool_call_id, end.name, end.args) == ("c1", "search", '{"query": "mill"}')
    assert (result.tool_call_id, result.output, result.is_error) == ("c1", '{"found":3}', False)
    assert model.requests[1].messages[-2:] == (
        Message(role="assistant", tool_calls=(ToolCall(id="c1", name="search", arguments='{"query": "mill"}'),)),
        Message(role="tool", content='{"found":3}', tool_call_id="c1"),
    )
    assert [end.message_id for end in only(events, MessageEnd)] == ["msg_1", "msg_1_2"]


async def test_a_tool_knows_for_whom_it_works() -> None:
    contexts: list[ToolContext] = []

    class Knowing(Tool):
        name, description = "search", "d"
        parameters: dict[str, Any] = {}  # noqa: RUF012

        async def call(self, arguments: dict[str, Any], context: ToolContext) -> Any:
            contexts.append(context)
            return "x"

    agent = ChatAgent(Scripted(calling("search", ""), answer("x")), tools=Toolbox([Knowing()]))
    await said(agent)
    assert [(context.run, context.tool_call_id) for context in contexts] == [(run_of(), "c1")]


async def test_several_calls_of_one_turn_are_answered_in_order() -> None:
    both: Step = [
        [ModelToolCall(index=0, id="a", name="search", arguments='{"query":')],
        [ModelToolCall(index=1, id="b", name="search", arguments='{"query":"two"}')],
        [ModelToolCall(index=0, arguments='"one"}'), ModelFinish("tool_calls")],
    ]
    events = await said(agent_of(Scripted(both, answer("x")), tool()))
    assert [(result.tool_call_id, result.output) for result in only(events, ToolCallResult)] == [
        ("a", '{"found":"one"}'),
        ("b", '{"found":"two"}'),
    ]


async def _raises(**arguments: Any) -> Any:
    raise RuntimeError("sk-canary")


async def _hangs(**arguments: Any) -> Any:
    await asyncio.Event().wait()


async def _unshowable(**arguments: Any) -> Any:
    return object()


@pytest.mark.parametrize(
    ("step", "used", "words"),
    [
        (calling("find", "{}"), tool(), "There is no tool named 'find'."),
        (calling("search", '{"query'), tool(), "The arguments are not a JSON object."),
        (calling("search", "[1, 2]"), tool(), "The arguments are not a JSON object."),
        (calling("search", "{}"), tool(_raises), "The tool failed."),
        (calling("search", "{}"), tool(_unshowable), "The tool failed."),
        (calling("search", "{}"), tool(_hangs, timeout=0.01), "The tool took longer than 0.01 seconds."),
    ],
    ids=["unknown", "cut", "no object", "raises", "unshowable", "hangs"],
)
async def test_the_model_is_told_in_general_words_what_went_wrong(step: Step, used: FunctionTool, words: str) -> None:
    model = Scripted(step, answer("Sorry."))
    events = await said(agent_of(model, used))
    (result,) = only(events, ToolCallResult)
    assert (result.output, result.is_error) == (words, True)
    assert model.requests[1].messages[-1].content == words
    assert only(events, MessageEnd)[-1].text == "Sorry."


async def test_a_call_without_an_id_gets_one_that_every_attempt_would_give() -> None:
    events = await said(agent_of(Scripted(calling("search", "{}", None), answer("x")), tool()))
    assert only(events, ToolCallStart)[0].tool_call_id == "call_1_0"


async def test_a_model_that_never_ends_has_so_many_steps() -> None:
    model = Scripted(*[calling("search", "{}")] * 5)
    with pytest.raises(TooManySteps):
        await said(agent_of(model, tool(), max_steps=3))
    assert len(model.requests) == 3


# cancel


async def test_a_cancel_closes_the_message_and_notes_the_usage() -> None:
    model = Scripted([[ModelText("half")], [ModelUsage(output_tokens=1)]], hangs=True)
    agent = agent_of(model)
    saying = asyncio.create_task(said(agent))
    await asyncio.wait_for(model.waiting.wait(), PATIENCE)
    await agent.cancel()
    events = await asyncio.wait_for(saying, PATIENCE)
    assert shown(events)[-3:] == ["message.end", "usage", "step.finished"]
    (end,), (usage,), (step,) = only(events, MessageEnd), only(events, Usage), only(events, StepFinished)
    assert (end.text, end.finish_reason, usage.output_tokens, step.status) == ("half", "cancelled", 1, "cancelled")
    assert model.closed == 1


async def test_a_cancel_before_the_first_word_closes_the_model_too() -> None:
    model = Scripted([], hangs=True)
    agent = agent_of(model)
    saying = asyncio.create_task(said(agent))
    await asyncio.wait_for(model.waiting.wait(), PATIENCE)
    await agent.cancel()
    (end,) = only(await asyncio.wait_for(saying, PATIENCE), MessageEnd)
    assert (end.text, end.finish_reason, model.closed) == ("", "cancelled", 1)


async def test_a_cancel_during_a_tool_calls_no_model_again() -> None:
    began = asyncio.Event()

    async def hangs(**arguments: Any) -> Any:
        began.set()
        await asyncio.Event().wait()

    model = Scripted(calling("search", "{}"), answer("x"))
    agent = agent_of(model, tool(hangs))
    saying = asyncio.create_task(said(agent))
    await asyncio.wait_for(began.wait(), PATIENCE)
    await agent.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(saying, PATIENCE)
    assert len(model.requests) == 1


async def test_a_foreign_cancel_is_let_through() -> None:
    model = Scripted([[ModelText("half")]], hangs=True)
    saying = asyncio.create_task(said(agent_of(model)))
    await asyncio.wait_for(model.waiting.wait(), PATIENCE)
    saying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saying
    assert model.closed == 1


# going on after another attempt


def tale(call_ids: tuple[str, str] = ("c1", "c2")) -> Continuing:
    return Continuing(
        [
            [ModelReasoning("I should ")],
            [ModelReasoning("search.")],
            *answer("Let ", "me ")[:2],
            *calling("search", '{"query":"a"}', call_ids[0]),
        ],
        calling("search", '{"query":"b"}', call_ids[1]),
        [[ModelReasoning("Now I know.")], *answer("The ", "headrace ", "ends.")],
    )


def history_of(items: Sequence[Sequence[Event]]) -> list[Event]:
    started = RunStarted(agent="default", input_digest="")
    return [started, *[event for item in items for event in item], AttemptStarted(attempt=2, mode="continue")]


def context_of(history: Sequence[Event]) -> RunContext:
    return RunContext(run=run_of(), attempt=2, history=tuple(history))


def flat(items: Iterable[Sequence[AnyEvent]]) -> list[AnyEvent]:
    return [event for item in items for event in item]


def final(events: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The text of each message, by its end and by its deltas."""
    ends = only(events, MessageEnd)
    deltas = [
        "".join(event.delta for event in only(events, TextDelta) if event.message_id == end.message_id) for end in ends
    ]
    return [end.text for end in ends], deltas


def open_call(before: Sequence[Event]) -> bool:
    """A whole message asked for a tool that has no result: whether the tool ran is not known."""
    asked = 0
    for event in before:
        if isinstance(event, MessageEnd):
            asked = event.finish_reason == "tool_calls"
        elif isinstance(event, ToolCallResult):
            asked = 0
    return bool(asked)


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("call_ids", [("c1", "c2"), ("0", "0")], ids=["own ids", "one id for all"])
async def test_an_attempt_goes_on_from_every_cut(call_ids: tuple[str, str], idempotent: bool) -> None:
    whole = await items_of(agent_of(tale(call_ids), tool(idempotent=idempotent)))
    expected, refused = final([event for item in whole for event in item]), 0
    for cut in range(len(whole) + 1):
        before = history_of(whole[:cut])
        agent = agent_of(tale(call_ids), tool(idempotent=idempotent))
        context = RunContext(run=run_of(), attempt=2, history=before)
        if open_call(before) and not idempotent:
            with pytest.raises(ToolOutcomeUnknown):
                await items_of(agent, context)
            refused += 1
            continue
        after = await items_of(agent, context)
        events = [*before, *[event for item in after for event in item]]
        assert final(events) == expected, cut
        assert shown(events).count("message.start") == shown(events).count("message.end") == 3
        results = only(events, ToolCallResult)
        assert sum(result.output != VOID for result in results) == 2
        assert len(only(events, ToolCallStart)) == len(only(events, ToolCallEnd)) == len(results)
        for end in only(events, MessageEnd):
            reasoning = [each.delta for each in only(events, ReasoningDelta) if each.message_id == end.message_id]
            assert end.reasoning == "".join(reasoning), cut
    assert refused == (0 if idempotent else 2)


async def test_what_a_killed_call_said_is_paid_for_once() -> None:
    def model() -> Continuing:
        return Continuing(answer("four", "four", "four"))

    whole = await items_of(agent_of(model()))
    (end,) = [index for index, item in enumerate(whole) if only(item, MessageEnd)]
    for cut in range(end):
        history = history_of(whole[:cut])
        said_before = len(only(history, TextDelta))
        second = await items_of(agent_of(model()), context_of(history))
        estimated = [usage.output_tokens for usage in only(flat(second), Usage) if usage.estimated]
        assert estimated == ([said_before] if said_before else [])
        if said_before:  # killed again, before the second attempt said anything
            third = await items_of(agent_of(model()), context_of([*history, *second[0]]))
            assert not any(usage.estimated for usage in only(flat(third), Usage))


async def test_a_model_that_cannot_go_on_begins_anew_and_says_so() -> None:
    whole = await items_of(agent_of(Scripted(answer("The ", "end"))))
    for cut, says_so in [(0, False), (1, False), (2, True), (3, True), (4, False)]:
        history = history_of(whole[:cut])
        events = [
            *history,
            *flat(await items_of(agent_of(Scripted(answer("A", "new"), continues=False)), context_of(history))),
        ]
        restarts = [event for event in only(events, AttemptStarted) if event.mode == "restart"]
        assert [(event.reason, event.model) for event in restarts] == ([("interrupted", "scripted")] if says_so else [])
        assert only(events, MessageEnd)[-1].text == ("The end" if cut == 4 else "Anew")


async def test_a_tool_that_is_gone_may_have_run() -> None:
    """As one of a server that could not be reached at the start: "there is no such tool" would be read as: not run."""
    whole = await items_of(agent_of(tale(), tool()))
    (end,) = [index for index, item in enumerate(whole) if only(item, MessageEnd)][:1]
    with pytest.raises(ToolOutcomeUnknown):
        await items_of(agent_of(tale()), context_of(history_of(whole[: end + 1])))


# another model takes over


def switch(mode: Literal["continue", "restart"], code: str = "model.cut") -> ModelSwitch:
    return ModelSwitch(model="other", code=code, mode=mode)


async def test_another_model_goes_on_and_each_call_is_paid() -> None:
    spent = ModelSpent(model="scripted", usage=ModelUsage(input_tokens=3, output_tokens=1, estimated=True))
    model = Scripted([[ModelText("Hel")], [spent, switch("continue")], [ModelText("lo")], [ModelFinish("stop")]])
    events = await said(agent_of(model))
    assert only(events, MessageEnd)[0].text == "Hello"
    (started,) = only(events, AttemptStarted)
    assert (started.attempt, started.mode, started.model, started.reason) == (1, "continue", "other", "model.cut")
    assert [(usage.model, usage.output_tokens) for usage in only(events, Usage)] == [("scripted", 1), ("other", None)]


async def test_a_restart_drops_text_reasoning_and_calls() -> None:
    model = Scripted(
        [
            [ModelReasoning("hm"), ModelText("Hel"), ModelToolCall(index=0, id="c", name="search", arguments='{"q')],
            [switch("restart")],
            *answer("Good day"),
        ]
    )
    ran: list[Any] = []

    async def search(**arguments: Any) -> None:
        ran.append(arguments)

    events = await said(agent_of(model, tool(search)))
    (end,) = only(events, MessageEnd)
    assert (end.text, end.reasoning) == ("Good day", "")
    assert [event.mode for event in only(events, AttemptStarted)] == ["restart"]
    assert ran == []


@pytest.mark.parametrize("mode", ["continue", "restart"])
async def test_a_call_that_was_open_at_a_switch_is_closed_and_never_run(mode: Literal["continue", "restart"]) -> None:
    ran: list[Any] = []

    async def search(query: str) -> str:
        ran.append(query)
        return "found"

    torn = ModelToolCall(index=0, id="c1", name="search", arguments='{"query":"a')
    again = ModelToolCall(index=1, id="c2", name="search", arguments='{"query":"b"}')
    model = Scripted([[torn], [switch(mode)], [again], [ModelFinish("tool_calls")]], answer("done"))
    events = await said(agent_of(model, tool(search)))
    assert ran == ["b"]
    assert [(result.tool_call_id, result.is_error) for result in only(events, ToolCallResult)] == [
        ("c1", True),
        ("c2", False),
    ]
    assert [call.id for call in model.requests[1].messages[-2].tool_calls] == ["c2"]


async def test_what_a_failed_call_said_is_paid_for() -> None:
    model = Scripted([[ModelText("12345")], ModelCut()])
    events = await said_until(ModelCut, agent_of(model))
    (usage,) = only(events, Usage)
    assert (usage.model, usage.output_tokens, usage.estimated) == ("scripted", 2, True)


async def test_a_call_that_said_nothing_costs_nothing() -> None:
    events = await said_until(ModelCut, agent_of(Scripted([ModelCut()])))
    assert only(events, Usage) == []


async def test_the_price_stands_beside_the_usage() -> None:
    model = Scripted([[ModelUsage(output_tokens=2)], *answer("x")])
    prices = {"scripted": 0.25}
    events = await said(agent_of(model, cost=lambda name, usage: prices[name] * (usage.output_tokens or 0)))
    assert [usage.cost for usage in only(events, Usage)] == [0.5]


async def test_what_a_provider_wants_back_goes_back_with_its_turn_also_after_a_crash() -> None:
    state = ModelState(provider="p", value=[{"signature": "s"}])

    def model() -> Continuing:
        first = calling("search", '{"query":"a"}')
        return Continuing([*first[:-1], [state], first[-1]], answer("done"))

    one = model()
    whole = await items_of(agent_of(one, tool(idempotent=True)))
    assert one.requests[1].messages[-2].provider_state == state
    (end,) = [index for index, item in enumerate(whole) if only(item, MessageEnd)][:1]
    two = model()
    await items_of(agent_of(two, tool(idempotent=True)), context_of(history_of(whole[: end + 1])))
    assert two.requests[0].messages[-2].provider_state == state


@pytest.mark.parametrize("reason", ["budget", "length", "content_filter"])
@pytest.mark.parametrize("arguments", ["", '{"query":"a"}'])
async def test_a_call_of_a_message_that_broke_off_is_never_run(reason: str, arguments: str) -> None:
    ran: list[Any] = []

    async def search(**given: Any) -> None:
        ran.append(given)

    step: Step = [[ModelToolCall(index=0, id="c1", name="search", arguments=arguments)], [ModelFinish(reason)]]
    model = Scripted(step)
    events = await said(agent_of(model, tool(search)))
    assert only(events, MessageEnd)[0].finish_reason == reason
    assert [(result.output, result.is_error) for result in only(events, ToolCallResult)] == [(VOID, True)]
    assert (ran, len(model.requests)) == ([], 1)


@pytest.mark.parametrize("reason", ["budget", "length", "cancelled"])
async def test_a_message_that_broke_off_is_the_last_one_after_a_crash_as_well(reason: str) -> None:
    step: Step = [[ModelToolCall(index=0, id="c1", name="search", arguments="{}")], [ModelFinish(reason)]]
    whole = await items_of(agent_of(Scripted(step), tool()))
    (end,) = [index for index, item in enumerate(whole) if only(item, MessageEnd)]
    model = Scripted()
    assert await items_of(agent_of(model, tool()), context_of(history_of(whole[: end + 1]))) == []
    assert model.requests == []


async def test_a_cancel_while_the_log_takes_what_was_said_closes_the_message() -> None:
    model = Scripted([[ModelText("one")], [ModelText("two")], [ModelFinish("stop")]])
    agent = agent_of(model)
    events: list[AnyEvent] = []
    items = agent.run(RunContext(run=run_of()))
    async with asyncio.timeout(PATIENCE):
        async for item in items:
            events += item if isinstance(item, list | tuple) else (item,)
            if shown(events)[-1] == "text.delta":
                await agent.cancel()  # as happens while the log confirms, in the same task
                await asyncio.sleep(0)
    assert shown(events)[-4:] == ["text.delta", "message.end", "usage", "step.finished"]
    assert (only(events, MessageEnd)[0].text, only(events, MessageEnd)[0].finish_reason) == ("one", "cancelled")
    assert model.closed == 1


async def test_a_history_brings_no_system_prompt_and_nothing_for_a_provider() -> None:
    turn = {"role": "assistant", "content": "x", "provider_state": {"provider": "anthropic", "value": 7}}
    model = Scripted(answer("x"))
    await said(agent_of(model), history=[turn])
    assert model.requests[0].messages[0] == Message(role="assistant", content="x")
    with pytest.raises(InvalidField):
        await said(agent_of(Scripted()), history=[{"role": "system", "content": "Obey."}])


def test_a_long_past_is_read_in_linear_time() -> None:
    """Counted by what is kept: one piece for each delta, joined once."""
    deltas = [TextDelta(message_id="m", step_id="s", agent="a", delta="x" * 50) for _ in range(1000)]
    start = MessageStart(message_id="m", step_id="s", agent="a", role="assistant")
    past = Past.of([start, *deltas])
    assert past.text == "x" * 50_000
    assert past._text == ["x" * 50] * 1000


# structured output

BOAT = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}


def shown_json(events: Sequence[Any]) -> Any:
    """What a reader has put together from the updates."""
    document = None
    for event in events:
        if isinstance(event, AttemptStarted) and event.mode == "restart":
            document = None
        if isinstance(event, Data) and event.name == "partial_json":
            document = apply(document, event.value)
    return document


async def test_a_json_answer_is_shown_path_by_path_and_told_whole() -> None:
    model = Scripted(answer('{"na', 'me": "Ar', 'go"}'))
    events = await said(agent_of(model), output_schema=BOAT)
    assert model.requests[0].output_schema == BOAT
    assert [event.value for event in only(events, Data) if event.name == "partial_json"] == [
        {"path": "", "value": {}},
        {"path": "/name", "value": "Ar"},
        {"path": "/name", "append": "go"},
    ]
    assert shown_json(events) == {"name": "Argo"}
    assert [event.value for event in only(events, Data) if event.name == "output"] == [{"name": "Argo"}]
    assert shown(events)[-1] == "data"


@pytest.mark.parametrize("text", ["Argo", '{"name": 5}', '{"name": "Ar', ""])
async def test_an_answer_that_does_not_fit_is_kept_and_fails(text: str) -> None:
    events = await said_until(ModelOutputInvalid, agent_of(Scripted(answer(text))), output_schema=BOAT)
    assert only(events, MessageEnd)[0].text == text
    assert not any(event.name == "output" for event in only(events, Data))


async def test_only_the_last_message_has_to_fit() -> None:
    model = Scripted([[ModelText("Let me look.")], *calling("search", "{}")], answer('{"name": "Argo"}'))
    events = await said(agent_of(model, tool()), output_schema=BOAT)
    assert [event.value for event in only(events, Data) if event.name == "output"] == [{"name": "Argo"}]


async def test_a_budget_may_end_a_json_answer() -> None:
    events = await said(agent_of(Scripted(answer('{"na', reason="budget"))), output_schema=BOAT)
    assert only(events, MessageEnd)[0].finish_reason == "budget"


async def test_a_json_answer_that_begins_anew_is_shown_anew() -> None:
    model = Scripted([[ModelText('{"name": "Ar')], [switch("restart")], *answer('{"name": "Swan"}')])
    events = await said(agent_of(model), output_schema=BOAT)
    assert shown_json(events) == {"name": "Swan"}


async def test_a_json_answer_goes_on_after_a_crash_at_every_cut() -> None:
    def agent() -> ChatAgent:
        return agent_of(Continuing(answer('{"na', 'me": "A', "r", 'go"', "}")))

    run = run_of(output_schema=BOAT)
    whole = await items_of(agent(), RunContext(run=run))
    for cut in range(len(whole) + 1):
        history = history_of(whole[:cut])
        events = [*history, *flat(await items_of(agent(), RunContext(run=run, attempt=2, history=history)))]
        assert shown_json(events) == {"name": "Argo"}, cut
        assert [event.value for event in only(events, Data) if event.name == "output"] == [{"name": "Argo"}], cut


async def test_an_answer_that_did_not_fit_before_a_crash_fails_after_it() -> None:
    run = run_of(output_schema=BOAT)
    history = history_of([await said_until(ModelOutputInvalid, agent_of(Scripted(answer("x"))), output_schema=BOAT)])
    with pytest.raises(ModelOutputInvalid):
        await items_of(agent_of(Scripted()), RunContext(run=run, attempt=2, history=history))


async def test_a_schema_that_is_none_is_refused() -> None:
    model = Scripted(answer("x"))
    await said_until(InvalidField, agent_of(model), output_schema={"type": "ship"})
    assert model.requests == []
