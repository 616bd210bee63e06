"""Calls that people have to agree to: each is asked for by itself, and none is run without a yes, whatever crashes."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from tests.agents.test_chat import Continuing, Scripted, Step, answer, calling
from tests.workshop import ANN, PATIENCE, Workshop, eventually, within_patience

from headrace.agents.chat import ChatAgent
from headrace.agents.chat.approval import SCHEMA
from headrace.agents.chat.past import Past
from headrace.agents.chat.step import VOID
from headrace.errors import Fenced, InputDecided, LogClosed, ModelCut, ToolNotApproved
from headrace.events import (
    Event,
    InputReceived,
    InputRequested,
    MessageEnd,
    MessageStart,
    ToolCallArgs,
    ToolCallEnd,
    ToolCallResult,
    ToolCallStart,
    Unknown,
)
from headrace.execution import Execution
from headrace.identity import Owner
from headrace.ports import Input, ModelFinish, ModelText, ModelToolCall, Run, RunContext
from headrace.toolbox import Toolbox
from headrace.tools.function import FunctionTool

FIRST = "approval_1_1"
NOT_RUN = ToolNotApproved.detail


class Till:
    """A tool that pays, and what it has paid. With a `gate` it waits there, right after it has."""

    def __init__(self, *, gate: asyncio.Event | None = None, **options: Any) -> None:
        self.paid: list[Any] = []
        self.began = asyncio.Event()
        self._gate = gate
        given = {"name": "pay", "description": "Pays.", "parameters": {"type": "object"}, "approval": True, **options}
        self.tool = FunctionTool(function=self._pay, **given)

    async def _pay(self, amount: Any = None) -> str:
        self.paid.append(amount)
        self.began.set()
        if self._gate is not None:
            await self._gate.wait()
        return f"paid {amount}"


class Counter:
    """A chat at which people are asked, over as many attempts as it takes."""

    def __init__(
        self, workshop: Workshop, steps: Sequence[Step], *tools: FunctionTool, seconds: float | None = None
    ) -> None:
        """`seconds`: those in which somebody has to answer, if not the five minutes of every chat."""
        self.workshop = workshop
        self.tools: Sequence[FunctionTool] = tools
        self.run_id = ""
        self.model = Continuing()
        """Of the last attempt."""
        self._steps = steps
        self._options: dict[str, Any] = {} if seconds is None else {"approval_seconds": seconds}
        workshop.agents["default"] = self._make

    def _make(self, run: Run) -> ChatAgent:
        self.model = Continuing(*self._steps)
        return ChatAgent(self.model, tools=Toolbox(self.tools), **self._options)

    async def begin(self) -> Execution:
        run, self._lease = await self.workshop.claimed("default", message="hi")
        self.run_id = run.id
        return self.workshop.execute(self._lease)

    async def begin_after(self, *events: Event) -> None:
        """A run of which a worker has written these, and died."""
        run, self._lease = await self.workshop.claimed("default", message="hi")
        self.run_id = run.id
        if events:
            await self.workshop.engine.append(run.id, self._lease.attempt, events)
        await self.workshop.engine.release(self._lease)

    async def die(self, execution: Execution) -> None:
        execution.lose(Fenced())
        await within_patience(execution.done)
        await self.workshop.engine.release(self._lease)

    async def next(self) -> Execution:
        self._lease = await self.workshop.engine.claim("other")
        return self.workshop.execute(self._lease)

    async def asked(self) -> None:
        await self.workshop.until(self.run_id, "input.requested")

    async def say(self, execution: Execution, request_id: str, **value: Any) -> None:
        await self.workshop.runs.answer(ANN, self.run_id, request_id, value)
        execution.input_came()

    async def events(self) -> list[Event | Unknown]:
        return await self.workshop.events(self.run_id)

    async def end(self) -> Any:
        return await self.workshop.outcome(self.run_id)


def only(events: Sequence[Any], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def bill(amount: Any = 5, call_id: str | None = "c1") -> Step:
    return calling("pay", msgspec.json.encode({"amount": amount}).decode(), call_id)


# --- one call ---------------------------------------------------------------------------------------------------------


async def test_a_granted_call_is_run(workshop: Workshop) -> None:
    till = Till()
    counter = Counter(workshop, [bill(), answer("Done.")], till.tool)
    execution = await counter.begin()
    await counter.asked()
    assert till.paid == []
    await counter.say(execution, FIRST, approved=True)
    assert (await counter.end()).output == "Done."
    assert till.paid == [5]
    assert [kind for kind in await workshop.kinds(counter.run_id) if "tool" in kind or "input" in kind] == [
        "tool_call.start",
        "tool_call.args",
        "tool_call.args",
        "tool_call.end",
        "input.requested",
        "input.received",
        "tool_call.result",
    ]
    events = await counter.events()
    (requested,), (received,) = only(events, InputRequested), only(events, InputReceived)
    assert (requested.request_id, requested.type, requested.schema) == (FIRST, "approval", SCHEMA)
    assert requested.subject == {"tool_call_id": "c1", "tool": "pay", "arguments": {"amount": 5}}
    assert (received.request_id, received.value, received.by) == (FIRST, {"approved": True}, "ann")
    assert counter.model.requests[1].messages[-1].content == "paid 5"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"approved": False, "reason": "Too much."}, f"{NOT_RUN} Reason: Too much."),
        ({"approved": False, "reason": ""}, NOT_RUN),
        ({"approved": False}, NOT_RUN),
    ],
)
async def test_a_denied_call_is_not_run_and_the_model_reads_why(
    workshop: Workshop, value: dict[str, Any], told: str
) -> None:
    till = Till()
    counter = Counter(workshop, [bill(), answer("I see.")], till.tool)
    execution = await counter.begin()
    await counter.asked()
    await counter.say(execution, FIRST, **value)
    assert (await counter.end()).output == "I see."
    assert till.paid == []
    (result,) = only(await counter.events(), ToolCallResult)
    assert (result.tool_call_id, result.output, result.is_error) == ("c1", told, True)
    message = counter.model.requests[1].messages[-1]
    assert (message.role, message.tool_call_id, message.content) == ("tool", "c1", told)


async def test_nobody_who_answers_means_no(workshop: Workshop) -> None:
    till = Till()
    counter = Counter(workshop, [bill(), answer("Nobody there.")], till.tool, seconds=0.05)
    await counter.begin()
    assert (await counter.end()).output == "Nobody there."
    assert till.paid == []
    (received,) = only(await counter.events(), InputReceived)
    assert (received.request_id, received.by, received.value["approved"]) == (FIRST, "timeout", False)
    (result,) = only(await counter.events(), ToolCallResult)
    assert result.is_error
    assert result.output == f"{NOT_RUN} Reason: {received.value['reason']}"


async def test_who_comes_after_the_time_is_over_is_told(workshop: Workshop) -> None:
    counter = Counter(workshop, [bill(1), bill(2, "c2"), answer("x")], Till().tool, seconds=0.05)
    await counter.begin()
    await workshop.until(counter.run_id, "tool_call.result")
    with pytest.raises((InputDecided, LogClosed)):
        await workshop.runs.answer(ANN, counter.run_id, FIRST, {"approved": True})
    await counter.end()
    assert [each.by for each in only(await counter.events(), InputReceived)] == ["timeout", "timeout"]


@pytest.mark.parametrize("approved", [True, False])
async def test_an_answer_that_is_there_before_it_is_asked_for_counts(workshop: Workshop, approved: bool) -> None:
    """As where somebody answers right when the request is in the log, and the run hears of it only by its own look."""
    till = Till()
    counter = Counter(workshop, [bill(), answer("Done.")], till.tool)
    await counter.begin_after()
    await workshop.engine.put_input(counter.run_id, Input(FIRST, {"approved": approved}, "ann"))
    await counter.next()
    assert (await counter.end()).output == "Done."
    assert till.paid == [5] * approved


@pytest.mark.parametrize("value", [True, None, "yes", [], {}, {"approved": 1}, {"approved": "true"}, {"granted": True}])
async def test_only_a_clear_yes_is_one(workshop: Workshop, value: Any) -> None:
    """Whatever way such an answer may have come."""
    till = Till()
    counter = Counter(workshop, [bill(), answer("x")], till.tool)
    await counter.begin_after()
    await workshop.engine.put_input(counter.run_id, Input(FIRST, value, "ann"))
    await counter.next()
    await counter.end()
    assert till.paid == []


async def test_a_cancel_while_people_are_waited_for(workshop: Workshop) -> None:
    till = Till()
    counter = Counter(workshop, [bill(), answer("x")], till.tool)
    execution = await counter.begin()
    await counter.asked()
    await workshop.runs.cancel(ANN, counter.run_id)
    execution.cancel("ann")
    await within_patience(execution.done)
    assert (await workshop.kinds(counter.run_id))[-2:] == ["input.requested", "run.cancelled"]
    assert (till.paid, len(counter.model.requests)) == ([], 1)
    with pytest.raises(LogClosed):
        await workshop.runs.answer(ANN, counter.run_id, FIRST, {"approved": True})


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"amount": [5, {"of": "\\u2028"}]}', {"amount": [5, {"of": "\u2028"}]}),
        ("", {}),
        ('{"amount": 5', '{"amount": 5'),
        ("five", "five"),
        ("[5]", "[5]"),
        ('{"amount": "\\ud800"}', '{"amount": "\\ud800"}'),
        ('{"amount": 1e999}', '{"amount": 1e999}'),
        ('{"amount": ' + "9" * 5000 + "}", '{"amount": ' + "9" * 5000 + "}"),
        ('{"amount": ' + "[" * 64 + "]" * 64 + "}", '{"amount": ' + "[" * 64 + "]" * 64 + "}"),
        ("[" * 100_000, "[" * 100_000),
    ],
    ids=["JSON", "nothing", "cut", "text", "list", "half of a pair", "overflow", "long number", "deep", "very deep"],
)
async def test_people_see_what_the_model_wrote_whatever_that_is(workshop: Workshop, arguments: str, shown: Any) -> None:
    counter = Counter(workshop, [calling("pay", arguments), answer("x")], Till().tool)
    execution = await counter.begin()
    await counter.asked()
    (requested,) = only(await counter.events(), InputRequested)
    assert requested.subject["arguments"] == shown
    await counter.say(execution, FIRST, approved=False)
    assert (await counter.end()).output == "x"


async def test_where_nobody_can_be_asked_the_answer_is_no() -> None:
    till = Till()
    run = Run(id="run_1", epoch="e", owner=Owner("t", "ann"), agent="default", input={"message": "hi"}, created=1)
    agent = ChatAgent(Continuing(bill(), answer("x")), tools=Toolbox([till.tool]))
    events: list[Any] = []
    async with asyncio.timeout(PATIENCE):
        async for item in agent.run(RunContext(run=run)):
            events += item if isinstance(item, Sequence) else [item]
    assert [each.value["approved"] for each in only(events, InputReceived)] == [False]
    assert till.paid == []


@pytest.mark.parametrize("options", [{"scope": "payments"}, {"name": "other"}])
async def test_nobody_is_asked_about_a_tool_that_there_is_not(workshop: Workshop, options: dict[str, Any]) -> None:
    counter = Counter(workshop, [bill(), answer("x")], Till(**options).tool)
    await counter.begin()
    await counter.end()
    assert only(await counter.events(), InputRequested) == []
    (result,) = only(await counter.events(), ToolCallResult)
    assert result.output == "There is no tool named 'pay'."


async def test_only_the_tools_that_need_it_are_asked_for(workshop: Workshop) -> None:
    till = Till(approval=False)
    counter = Counter(workshop, [bill(), answer("x")], till.tool)
    await counter.begin()
    await counter.end()
    assert (till.paid, only(await counter.events(), InputRequested)) == ([5], [])


async def test_a_model_that_fails_after_the_call_does_not_run_it_again(workshop: Workshop) -> None:
    till = Till()
    counter = Counter(workshop, [], till.tool)
    failing: Step = [[ModelText("Now ")], ModelCut()]
    workshop.agents["default"] = lambda run: ChatAgent(Scripted(bill(), failing), tools=Toolbox([till.tool]))
    execution = await counter.begin()
    await counter.asked()
    await counter.say(execution, FIRST, approved=True)
    assert (await counter.end()).error.code == "model.cut"
    assert till.paid == [5]


# --- several calls ----------------------------------------------------------------------------------------------------


def two_bills(first: str, second: str) -> Step:
    return [
        [ModelText("Two bills.")],
        [ModelToolCall(index=0, id=first, name="pay", arguments='{"amount":5}')],
        [ModelToolCall(index=1, id=second, name="pay", arguments='{"amount":7}')],
        [ModelFinish("tool_calls")],
    ]


IDS = pytest.mark.parametrize(
    "ids", [("a", "b", "c"), ("a", "b", "a"), ("0", "0", "0")], ids=["own ids", "an id again later", "one id for all"]
)
DECISIONS: dict[int, dict[str, Any]] = {
    5: {"approved": True},
    7: {"approved": False, "reason": "Too much."},
    9: {"approved": True},
}
"""By amount."""


def conversation(ids: tuple[str, str, str]) -> Sequence[Step]:
    return [two_bills(ids[0], ids[1]), bill(9, ids[2]), answer("All ", "done.")]


class Clerk:
    """Answers what a run asks for, as soon as it is in the log, or the amounts of `knows` only."""

    def __init__(self, counter: Counter, *, knows: Sequence[int] = tuple(DECISIONS)) -> None:
        self.asked: list[tuple[str, int]] = []
        self._counter = counter
        self._knows = knows

    async def work(self, execution: Execution) -> None:
        """Until the run has ended."""
        engine, run_id = self._counter.workshop.engine, self._counter.run_id
        async for blocks in engine.read(run_id, live=True):
            for event in [event for block in blocks for event in block.events]:
                if isinstance(event, InputRequested):
                    amount = event.subject["arguments"]["amount"]
                    self.asked.append((event.request_id, amount))
                    if amount in self._knows and not (await engine.head(run_id)).closed:
                        await engine.put_input(run_id, Input(event.request_id, DECISIONS[amount], "ann"))
                        execution.input_came()


def facts(events: Sequence[Any]) -> list[tuple[Any, ...]]:
    """What a run comes to, without when, and by which attempt."""
    told: list[tuple[Any, ...]] = []
    for event in events:
        if isinstance(event, InputRequested):
            told.append(("asked", event.request_id, event.subject["arguments"]["amount"]))
        elif isinstance(event, InputReceived):
            told.append(("answered", event.request_id, event.value["approved"], event.by))
        elif isinstance(event, ToolCallResult) and event.output != VOID:
            told.append(("result", event.tool_call_id, event.output))
        elif isinstance(event, MessageEnd):
            told.append(("said", event.text))
    return told


WHOLE: list[tuple[Any, ...]] = [
    ("said", "Two bills."),
    ("asked", "approval_1_1", 5),
    ("answered", "approval_1_1", True, "ann"),
    ("result", 0, "paid 5"),
    ("asked", "approval_1_2", 7),
    ("answered", "approval_1_2", False, "ann"),
    ("result", 1, f"{NOT_RUN} Reason: Too much."),
    ("said", ""),
    ("asked", "approval_2_1", 9),
    ("answered", "approval_2_1", True, "ann"),
    ("result", 2, "paid 9"),
    ("said", "All done."),
]


def whole_of(ids: tuple[str, str, str]) -> list[tuple[Any, ...]]:
    return [("result", ids[fact[1]], fact[2]) if fact[0] == "result" else fact for fact in WHOLE]


async def ended(counter: Counter, execution: Execution) -> None:
    async with asyncio.timeout(PATIENCE):
        await Clerk(counter).work(execution)


@IDS
async def test_each_call_is_asked_for_by_itself(workshop: Workshop, ids: tuple[str, str, str]) -> None:
    till = Till()
    counter = Counter(workshop, conversation(ids), till.tool)
    await ended(counter, await counter.begin())
    assert facts(await counter.events()) == whole_of(ids)
    assert till.paid == [5, 9]
    told = [message.content for message in counter.model.requests[-1].messages if message.role == "tool"]
    assert told == ["paid 5", f"{NOT_RUN} Reason: Too much.", "paid 9"]


async def test_the_second_call_waits_for_the_first(workshop: Workshop) -> None:
    gate = asyncio.Event()
    till = Till(gate=gate)
    counter = Counter(workshop, [two_bills("a", "b"), answer("x")], till.tool)
    execution = await counter.begin()
    await counter.asked()
    await counter.say(execution, "approval_1_1", approved=True)
    await asyncio.wait_for(till.began.wait(), PATIENCE)
    assert len(only(await counter.events(), InputRequested)) == 1
    gate.set()
    await eventually_asked(counter, 2)
    await counter.say(execution, "approval_1_2", approved=True)
    await counter.end()
    assert till.paid == [5, 7]


async def eventually_asked(counter: Counter, count: int) -> None:
    seen = 0
    async with asyncio.timeout(PATIENCE):
        async for blocks in counter.workshop.engine.read(counter.run_id, live=True):
            seen += sum(isinstance(event, InputRequested) for block in blocks for event in block.events)
            if seen >= count:
                return


# --- after a crash ----------------------------------------------------------------------------------------------------


async def log_of(workshop: Workshop, ids: tuple[str, str, str]) -> list[Event]:
    """What an attempt that nothing interrupts writes."""
    counter = Counter(workshop, conversation(ids), Till().tool)
    await ended(counter, await counter.begin())
    return [event for event in (await counter.events())[1:-1] if isinstance(event, Event)]


def begun(events: Sequence[Event]) -> bool:
    """Whether a call that was granted may have run, and has no result."""
    last = (facts(events) or [("nothing",)])[-1]
    return last[0] == "answered" and last[2] is True


@pytest.mark.parametrize("early", [True, False], ids=["answered meanwhile", "answered later"])
@pytest.mark.parametrize("idempotent", [True, False])
@IDS
async def test_an_attempt_goes_on_from_every_cut(
    workshop: Workshop, ids: tuple[str, str, str], idempotent: bool, early: bool
) -> None:
    """What was asked is not asked again, what was answered counts, and what may have run is not run twice."""
    log, unknown = await log_of(workshop, ids), 0
    for cut in range(len(log) + 1):
        till = Till(idempotent=idempotent)
        counter = Counter(workshop, conversation(ids), till.tool)
        await counter.begin_after(*log[:cut])
        for request in only(log[:cut], InputRequested) if early else ():
            value = DECISIONS[request.subject["arguments"]["amount"]]
            await workshop.engine.put_input(counter.run_id, Input(request.request_id, value, "ann"))
        await ended(counter, await counter.next())
        end, events = await counter.end(), await counter.events()
        missing = [fact for fact in whole_of(ids)[len(facts(log[:cut])) :] if fact[0] == "result" and "paid" in fact[2]]
        if begun(log[:cut]) and not idempotent:
            assert end.error.code == "tool_outcome_unknown", cut
            assert till.paid == []
            unknown += 1
        else:
            assert end.output == "All done.", (cut, end)
            assert facts(events) == whole_of(ids), cut
            assert [f"paid {amount}" for amount in till.paid] == [fact[2] for fact in missing], cut
    assert unknown == (0 if idempotent else 2)


@IDS
async def test_two_attempts_that_die_ask_once(workshop: Workshop, ids: tuple[str, str, str]) -> None:
    """Each of them while people are waited for, and once more after the answer to the first."""
    till = Till(idempotent=True)
    counter = Counter(workshop, conversation(ids), till.tool)
    execution = await counter.begin()
    await counter.asked()
    for _ in range(2):
        await counter.die(execution)
        execution = await counter.next()
    await workshop.until(counter.run_id, "attempt.started")
    await counter.say(execution, "approval_1_1", approved=True)
    await eventually_asked(counter, 2)
    await counter.die(execution)
    await ended(counter, await counter.next())
    assert facts(await counter.events()) == whole_of(ids)
    assert till.paid == [5, 9]


async def test_a_worker_that_dies_while_the_tool_is_at_work(workshop: Workshop) -> None:
    """It was granted, and nobody knows what it did: it is not run again, and no new yes would allow it."""
    till = Till(gate=asyncio.Event())
    counter = Counter(workshop, [bill(), answer("x")], till.tool)
    execution = await counter.begin()
    await counter.asked()
    await counter.say(execution, FIRST, approved=True)
    await asyncio.wait_for(till.began.wait(), PATIENCE)
    await counter.die(execution)
    await counter.next()
    assert (await counter.end()).error.code == "tool_outcome_unknown"
    assert till.paid == [5]


@pytest.mark.parametrize("asks", [True, False])
async def test_only_the_first_call_without_a_result_may_have_run(workshop: Workshop, asks: bool) -> None:
    """Those after it are run, whether or not they may run twice."""
    look, pay = Till(name="look", approval=False, idempotent=True), Till(approval=asks)
    calls: Step = [
        [ModelToolCall(index=0, id="a", name="look", arguments='{"amount":1}')],
        [ModelToolCall(index=1, id="b", name="pay", arguments='{"amount":5}')],
        [ModelFinish("tool_calls")],
    ]
    counter = Counter(workshop, [calls, answer("Done.")], look.tool, pay.tool)
    log = request_after_a_bill()[:1]
    for call_id, name, args in (("a", "look", '{"amount":1}'), ("b", "pay", '{"amount":5}')):
        log.append(ToolCallStart(tool_call_id=call_id, name=name, message_id="msg_1", executed_by="server"))
        log.append(ToolCallEnd(tool_call_id=call_id, name=name, message_id="msg_1", args=args))
    await counter.begin_after(*log, request_after_a_bill()[-2])
    await ended(counter, await counter.next())
    assert (await counter.end()).output == "Done."
    assert (look.paid, pay.paid) == ([1], [5])


@pytest.mark.parametrize(
    ("asked_ago", "seconds"),
    [(301.0, None), (299.9, None), (-1000.0, 0.05)],
    ids=["it was over while nobody worked", "it is over in a moment", "the clock went back"],
)
async def test_what_is_left_of_the_time_is_left_after_a_crash(
    workshop: Workshop, asked_ago: float, seconds: float | None
) -> None:
    """All of this ends within `PATIENCE`, which is less than five minutes."""
    till = Till()
    counter = Counter(workshop, [bill(), answer("x")], till.tool, seconds=seconds)
    await counter.begin_after(*request_after_a_bill(asked_ago))
    await counter.next()
    assert (await counter.end()).output == "x"
    assert [each.by for each in only(await counter.events(), InputReceived)] == ["timeout"]
    assert till.paid == []


def request_after_a_bill(asked_ago: float = 0.0, amount: int = 5) -> list[Event]:
    """A log that ends with a request for an approval."""
    message: dict[str, Any] = {"message_id": "msg_1", "step_id": "step_1", "agent": "default"}
    subject = {"tool_call_id": "c1", "tool": "pay", "arguments": {"amount": amount}}
    return [
        MessageStart(**message, role="assistant"),
        ToolCallStart(tool_call_id="c1", name="pay", message_id="msg_1", executed_by="server"),
        ToolCallEnd(tool_call_id="c1", name="pay", message_id="msg_1", args=f'{{"amount":{amount}}}'),
        MessageEnd(**message, text="", finish_reason="tool_calls"),
        InputRequested(request_id=FIRST, type="approval", schema=SCHEMA, subject=subject, time=time.time() - asked_ago),
    ]


async def test_five_minutes_are_five_minutes(workshop: Workshop) -> None:
    """Of which four are over when the next worker comes."""
    till = Till()
    counter = Counter(workshop, [bill(), answer("x")], till.tool)
    await counter.begin_after(*request_after_a_bill(240.0))
    execution = await counter.next()
    await workshop.until(counter.run_id, "attempt.started")
    await eventually(lambda: execution._inbox.waiting)
    await counter.say(execution, FIRST, approved=True)
    assert (await counter.end()).output == "x"
    assert till.paid == [5]


async def test_an_answer_that_came_in_time_counts_also_where_the_worker_comes_late(workshop: Workshop) -> None:
    till = Till()
    counter = Counter(workshop, [bill(), answer("x")], till.tool)
    await counter.begin_after(*request_after_a_bill(1000.0))
    await workshop.engine.put_input(counter.run_id, Input(FIRST, {"approved": True}, "ann"))
    await counter.next()
    await counter.end()
    assert [each.by for each in only(await counter.events(), InputReceived)] == ["ann"]
    assert till.paid == [5]


@pytest.mark.parametrize("approved", [True, False])
@pytest.mark.parametrize("logged", [True, False])
@pytest.mark.parametrize(
    "options",
    [{"approval": False, "idempotent": True}, {"name": "other"}, {"scope": "s"}],
    ids=["free", "gone", "scope"],
)
async def test_what_was_asked_is_waited_for_even_if_it_would_not_be_asked_now(
    workshop: Workshop, options: dict[str, Any], logged: bool, approved: bool
) -> None:
    """The operator has changed the tool meanwhile; who was asked must not be passed over."""
    till = Till(**options)
    counter = Counter(workshop, [bill(), answer("x")], till.tool)
    value = {"approved": approved}
    received = [InputReceived(request_id=FIRST, value=value, by="ann")] if logged else []
    await counter.begin_after(*request_after_a_bill(), *received)
    execution = await counter.next()
    if not logged:
        await workshop.until(counter.run_id, "attempt.started")
        assert not execution.done.done()
        await counter.say(execution, FIRST, **value)
    end, events = await counter.end(), await counter.events()
    assert [each.by for each in only(events, InputReceived)] == ["ann"]
    assert till.paid == [5] * (approved and "idempotent" in options)
    if approved and logged and "idempotent" not in options:
        assert end.error.code == "tool_outcome_unknown", "it was there, and may have run"
    else:
        assert end.output == "x"
        (result,) = only(events, ToolCallResult)
        assert (result.output == NOT_RUN) is not approved


# --- what the next attempt reads of it --------------------------------------------------------------------------------


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_calls_of_one_message_are_told_apart_by_their_order(answered: int) -> None:
    """Some models name them all alike."""
    log = request_after_a_bill()[:-1]
    calls = [
        ToolCallEnd(tool_call_id="0", name="pay", message_id="msg_1", args=f'{{"amount":{amount}}}')
        for amount in (5, 7)
    ]
    starts = [ToolCallStart(tool_call_id="0", name="pay", message_id="msg_1", executed_by="server")] * 2
    results = [ToolCallResult(tool_call_id="0", output=f"result {number}") for number in range(answered)]
    past = Past.of([log[0], *starts, *calls, log[-1], *results])
    assert past.answered == answered
    assert [call.arguments for call in past.unanswered] == ['{"amount":5}', '{"amount":7}'][answered:]
    turn, *told = past.messages
    assert [call.arguments for call in turn.tool_calls] == ['{"amount":5}', '{"amount":7}']
    assert [message.content for message in told] == [f"result {number}" for number in range(answered)]


@pytest.mark.parametrize("voided", [0, 1, 2])
def test_calls_of_an_open_message_that_are_void_are_no_calls(voided: int) -> None:
    """A worker may have died in the middle of saying so."""
    pieces = ('{"amount":5}', '{"amount":')
    log: list[Event] = request_after_a_bill()[:1]
    for piece in pieces:
        log.append(ToolCallStart(tool_call_id="0", name="pay", message_id="msg_1", executed_by="server"))
        log.append(ToolCallArgs(tool_call_id="0", message_id="msg_1", delta=piece))
    for piece in pieces[:voided]:
        log.append(ToolCallEnd(tool_call_id="0", name="pay", message_id="msg_1", args=piece))
        log.append(ToolCallResult(tool_call_id="0", output="void", is_error=True))
    past = Past.of(log)
    assert [call.arguments for call in past.calls] == list(pieces[voided:])
    assert past.begun
    assert past.messages == []
