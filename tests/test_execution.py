"""One attempt at a run, whatever its agent does."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any, cast

import pytest
from tests.workshop import ANN, PATIENCE, Actor, Workshop, begin, end, eventually, text, within_patience

from headrace.errors import AgentFailed, Fenced, ModelCut
from headrace.events import (
    AnyEvent,
    AttemptStarted,
    Data,
    Event,
    InputReceived,
    InputRequested,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    TextDelta,
    ToolCallEnd,
    ToolCallResult,
    Unknown,
    Usage,
    kind_of,
)
from headrace.execution import Execution
from headrace.ports import Inbox, Input, Receipt, Run, RunContext, RunLog

SECRET = "sk-canary"


def usage() -> Usage:
    return Usage(step_id="s", model="m")


async def outcome_of(workshop: Workshop, *items: Any) -> tuple[Any, list[str]]:
    """How a run of an agent that yields these items ends, and the kinds in its log."""

    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        for item in items:
            yield item

    workshop.add("agent", acts)
    run, lease = await workshop.claimed()
    await within_patience(workshop.execute(lease).done)
    return await workshop.outcome(run.id), await workshop.kinds(run.id)


# what an agent says


async def test_what_the_agent_yields_is_the_log(workshop: Workshop) -> None:
    outcome, kinds = await outcome_of(workshop, begin(), [text("a"), text("b")], end("ab", "length"))
    assert kinds == ["run.started", "message.start", "text.delta", "text.delta", "message.end", "run.completed"]
    assert (outcome.output, outcome.stop_reason) == ("ab", "length")


async def test_the_last_message_is_the_output(workshop: Workshop) -> None:
    outcome, _ = await outcome_of(workshop, begin(), end("first"), begin(), [end("second"), usage()])
    assert outcome.output == "second"


async def test_an_agent_that_says_nothing_completes(workshop: Workshop) -> None:
    outcome, kinds = await outcome_of(workshop)
    assert kinds == ["run.started", "run.completed"]
    assert (outcome.output, outcome.stop_reason) == ("", "stop")


async def test_empty_batches_are_nothing(workshop: Workshop) -> None:
    _, kinds = await outcome_of(workshop, [], (), begin(), [], end(""), ())
    assert kinds == ["run.started", "message.start", "message.end", "run.completed"]


async def test_an_agent_tells_that_another_model_takes_over(workshop: Workshop) -> None:
    switch = AttemptStarted(attempt=1, mode="restart", model="m", reason="model.cut")
    outcome, kinds = await outcome_of(workshop, begin(), text("no"), switch, text("yes"), end("yes"))
    assert kinds[3:5] == ["attempt.started", "text.delta"]
    assert outcome.output == "yes"


class Reluctant:
    """A log whose commits wait for a sign."""

    def __init__(self, workshop: Workshop) -> None:
        self.log = workshop.engine
        self.gate = asyncio.Event()
        self.appended: list[str] = []

    def append(self, run_id: str, attempt: int, events: Sequence[Event], *, urgent: bool = False) -> Any:
        self.appended += [kind_of(event) for event in events]
        receipt = self.log.append(run_id, attempt, events, urgent=urgent)
        return Held(receipt, self.gate)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)


class Held:
    def __init__(self, receipt: Receipt, gate: asyncio.Event) -> None:
        self.error = receipt.error
        self._receipt = receipt
        self._gate = gate

    def done(self) -> bool:
        return self._gate.is_set() and self._receipt.done()

    def __await__(self) -> Generator[Any, None, int]:
        yield from self._gate.wait().__await__()
        return (yield from self._receipt.__await__())


TRACES: list[AnyEvent] = [
    ToolCallEnd(tool_call_id="c", name="n", message_id="m", args="{}"),
    ToolCallResult(tool_call_id="c", output="done"),
    InputRequested(request_id="r", type="question"),
    InputReceived(request_id="r", value=True, by="ann"),
]


@pytest.mark.parametrize("trace", TRACES, ids=kind_of)
async def test_no_tool_runs_before_its_call_is_committed(workshop: Workshop, trace: AnyEvent) -> None:
    ran = asyncio.Event()

    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        yield begin()
        yield [text("x"), trace]
        ran.set()
        yield end("x")

    workshop.add("agent", acts)
    log = Reluctant(workshop)
    _, lease = await workshop.claimed()
    execution = workshop.execute(lease, log=cast("RunLog", log))
    await eventually(lambda: kind_of(trace) in log.appended)
    for _ in range(20):  # turns of the loop in which it could go on
        await asyncio.sleep(0)
    assert not ran.is_set()
    log.gate.set()
    await within_patience(execution.done)
    assert ran.is_set()


@pytest.mark.parametrize(
    "forbidden",
    [
        RunStarted(agent="a", input_digest=""),
        RunCompleted(output="forged"),
        RunFailed(error=AgentFailed().info()),
        RunCancelled(reason="forged", by="agent"),
        Unknown(kind="run.completed", time=0, raw=b"{}"),
        "text",
        b"bytes",
        None,
        5,
        {"kind": "text.delta"},
        "",
    ],
    ids=lambda value: f"{type(value).__name__}-{bool(value)}",
)
@pytest.mark.parametrize("batch", [False, True])
async def test_what_is_no_event_of_an_agent_fails_it(workshop: Workshop, forbidden: Any, batch: bool) -> None:
    """What belongs to the worker, and what is no event at all: the log must stay one that can be read."""
    item = [text("with it"), forbidden] if batch else forbidden
    outcome, kinds = await outcome_of(workshop, begin(), item, text("not reached"))
    assert kinds == ["run.started", "message.start", "run.failed"]
    assert outcome.error == AgentFailed().info()


@pytest.mark.parametrize("value", [object(), "\ud800", {1: object()}], ids=["object", "half of a pair", "nested"])
async def test_a_value_that_json_cannot_hold_fails_the_run(workshop: Workshop, value: Any) -> None:
    outcome, kinds = await outcome_of(workshop, begin(), Data(name="x", value=value), text("not reached"))
    assert (kinds[:2], kinds[-1]) == (["run.started", "message.start"], "run.failed")
    assert outcome.error == AgentFailed().info()


@pytest.mark.parametrize(
    "error", [RuntimeError(SECRET), ValueError("\ud800"), ModelCut(), ExceptionGroup(SECRET, [OSError()])]
)
async def test_what_the_agent_raises_fails_the_run_and_is_not_shown(workshop: Workshop, error: Exception) -> None:
    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        yield text("before")
        raise error

    workshop.add("agent", acts)
    run, lease = await workshop.claimed()
    await within_patience(workshop.execute(lease).done)
    outcome = await workshop.outcome(run.id)
    assert outcome.error == (error if isinstance(error, ModelCut) else AgentFailed()).info()
    assert SECRET not in repr(await workshop.events(run.id))


async def test_a_factory_that_raises_fails_the_run(workshop: Workshop) -> None:
    def broken(run: Run) -> Actor:
        raise RuntimeError(SECRET)

    workshop.agents["agent"] = broken
    run, lease = await workshop.claimed()
    await within_patience(workshop.execute(lease).done)
    assert (await workshop.outcome(run.id)).error == AgentFailed().info()


async def test_an_agent_that_this_worker_does_not_have_fails_the_run(workshop: Workshop) -> None:
    workshop.add("agent", _waits_for_ever)
    run, lease = await workshop.claimed()
    del workshop.agents["agent"]
    await within_patience(workshop.execute(lease).done)
    assert (await workshop.outcome(run.id)).error.code == "not_found"


# cancel


async def _waits_for_ever(context: RunContext) -> AsyncGenerator[Any, None]:
    yield text("before")
    await asyncio.Event().wait()


async def test_an_agent_that_ends_by_itself_may_close_its_message(workshop: Workshop) -> None:
    asked = asyncio.Event()

    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        yield text("before")
        await asked.wait()
        yield [end("before", "cancelled"), usage()]

    workshop.add("agent", acts, on_cancel=asked.set)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease, cancel_by_itself=PATIENCE, cancel_grace=PATIENCE)
    await workshop.until(run.id, "text.delta")
    execution.cancel("ann")
    execution.cancel("bob")  # the first counts
    await within_patience(execution.done)
    assert (await workshop.kinds(run.id))[2:] == ["message.end", "usage", "run.cancelled"]
    assert (await workshop.outcome(run.id)).by == "ann"


async def test_an_agent_that_does_not_is_cancelled(workshop: Workshop) -> None:
    closed = asyncio.Event()

    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        try:
            async for item in _waits_for_ever(context):
                yield item
        finally:
            closed.set()

    workshop.add("agent", acts)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease, cancel_by_itself=0.01, cancel_grace=PATIENCE)
    await workshop.until(run.id, "text.delta")
    execution.cancel("ann")
    await within_patience(execution.done)
    assert closed.is_set()
    assert (await workshop.kinds(run.id))[2:] == ["run.cancelled"]


@pytest.mark.parametrize("raises", [False, True])
async def test_an_agent_whose_own_cancel_fails_or_hangs_is_cancelled(workshop: Workshop, raises: bool) -> None:
    class Stubborn(Actor):
        async def cancel(self) -> None:
            if raises:
                raise RuntimeError(SECRET)
            await asyncio.Event().wait()

    workshop.agents["agent"] = lambda run: Stubborn(_waits_for_ever)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease, cancel_by_itself=0.01, cancel_grace=PATIENCE)
    await workshop.until(run.id, "text.delta")
    execution.cancel("ann")
    await within_patience(execution.done)
    assert (await workshop.kinds(run.id))[2:] == ["run.cancelled"]


async def test_an_agent_that_swallows_the_cancel_is_left_behind(workshop: Workshop) -> None:
    gate, ended = asyncio.Event(), asyncio.Event()

    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        yield text("before")
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue
        try:
            yield text("too late")
            yield end("too late")
        finally:
            ended.set()

    workshop.add("agent", acts)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease, cancel_by_itself=0.01, cancel_grace=0.05)
    await workshop.until(run.id, "text.delta")
    execution.cancel("ann")
    await within_patience(execution.done)
    expected = ["run.started", "text.delta", "run.cancelled"]
    assert await workshop.kinds(run.id) == expected
    gate.set()
    await asyncio.wait_for(ended.wait(), PATIENCE)
    assert await workshop.kinds(run.id) == expected


async def test_an_agent_that_swallows_the_cancel_and_returns_is_cancelled_all_the_same(workshop: Workshop) -> None:
    workshop.add("agent", _swallows)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease, cancel_by_itself=0.01, cancel_grace=PATIENCE)
    await workshop.until(run.id, "text.delta")
    execution.cancel("ann")
    await within_patience(execution.done)
    assert isinstance(await workshop.outcome(run.id), RunCancelled)


async def _swallows(context: RunContext) -> AsyncGenerator[Any, None]:
    yield text("before")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return


async def test_a_run_that_is_cancelled_before_its_agent_began_never_begins(workshop: Workshop) -> None:
    workshop.agents["agent"] = lambda run: pytest.fail("the agent was made")
    run, lease = await workshop.claimed()
    await workshop.runs.cancel(ANN, run.id)
    await within_patience(workshop.execute(lease).done)
    assert await workshop.kinds(run.id) == ["run.started", "run.cancelled"]


async def test_an_agent_that_cancels_itself_has_failed(workshop: Workshop) -> None:
    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        yield text("before")
        raise asyncio.CancelledError

    workshop.add("agent", acts)
    run, lease = await workshop.claimed()
    await within_patience(workshop.execute(lease).done)
    assert (await workshop.outcome(run.id)).error == AgentFailed().info()


# time


@pytest.mark.parametrize(
    ("limits", "code"), [({"idle": 0.05}, "limit.idle_time"), ({"total": 0.05}, "limit.total_time")]
)
@pytest.mark.parametrize("swallows", [False, True])
async def test_a_run_that_takes_too_long_fails(
    workshop: Workshop, limits: dict[str, Any], code: str, swallows: bool
) -> None:
    workshop.add("agent", _swallows if swallows else _waits_for_ever)
    run, lease = await workshop.claimed()
    await within_patience(workshop.execute(lease, **limits).done)
    assert (await workshop.outcome(run.id)).error.code == code


async def test_an_agent_that_goes_on_talking_is_not_idle(workshop: Workshop) -> None:
    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        loop = asyncio.get_running_loop()
        until = loop.time() + 0.6  # twice as long as it may say nothing
        while loop.time() < until:
            await asyncio.sleep(0.001)
            yield text(".")

    workshop.add("agent", acts)
    run, lease = await workshop.claimed()
    await within_patience(workshop.execute(lease, idle=0.3).done)
    assert isinstance(await workshop.outcome(run.id), RunCompleted)


# time, and people who are waited for

LIMIT = 0.3
"""Enough for what a run does besides, also on a slow machine."""
SOON: dict[str, Any] = {"cancel_by_itself": 0.01}
EACH_LIMIT = pytest.mark.parametrize(
    ("limits", "code"), [({"idle": LIMIT, **SOON}, "limit.idle_time"), ({"total": LIMIT, **SOON}, "limit.total_time")]
)


def inbox_of(context: RunContext) -> Inbox:
    assert context.inbox is not None
    return context.inbox


async def answered(workshop: Workshop, execution: Execution, request_id: str) -> None:
    await workshop.engine.put_input(execution.lease.run_id, Input(request_id, request_id, "ann"))
    execution.input_came()


async def limit_passes(workshop: Workshop, **limits: Any) -> None:
    """As long as it takes until a run that says nothing has come to its limit."""
    workshop.add("silent", _waits_for_ever)
    run, lease = await workshop.claimed("silent")
    await within_patience(workshop.execute(lease, **limits).done)
    assert isinstance(await workshop.outcome(run.id), RunFailed)


async def _asks(context: RunContext) -> AsyncGenerator[Any, None]:
    yield InputRequested(request_id="r", type="question")
    answer = await inbox_of(context).answer("r")
    yield InputReceived(request_id="r", value=answer.value, by=answer.by)


@EACH_LIMIT
@pytest.mark.parametrize("hangs", [True, False])
async def test_while_people_are_waited_for_no_limit_comes_nearer(
    workshop: Workshop, limits: dict[str, Any], code: str, hangs: bool
) -> None:
    """And after their answer each holds again."""

    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        async for item in _asks(context):
            yield item
        yield text("still there")
        if hangs:
            await asyncio.Event().wait()

    workshop.add("agent", acts)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease, **limits)
    await workshop.until(run.id, "input.requested")
    await limit_passes(workshop, **limits)
    assert not execution.done.done()
    await answered(workshop, execution, "r")
    await within_patience(execution.done)
    *kinds, last = (await workshop.kinds(run.id))[1:]
    assert kinds == ["input.requested", "input.received", "text.delta"]
    assert last == ("run.failed" if hangs else "run.completed")
    if hangs:
        assert (await workshop.outcome(run.id)).error.code == code


@pytest.mark.parametrize("order", ["ab", "ba"])
async def test_the_time_of_several_requests_is_given_back_whole(workshop: Workshop, order: str) -> None:
    """The second is asked when the limit would have passed by the first, and the first may be answered before it."""
    second = asyncio.Event()

    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        inbox = inbox_of(context)
        yield InputRequested(request_id="a", type="question")
        first = asyncio.ensure_future(inbox.answer("a"))
        await second.wait()
        yield InputRequested(request_id="b", type="question")
        for answer in await asyncio.gather(first, inbox.answer("b")):
            yield InputReceived(request_id=answer.request_id, value=answer.value, by=answer.by)
        yield end("a and b")

    workshop.add("agent", acts)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease, total=LIMIT, **SOON)
    await workshop.until(run.id, "input.requested")
    await limit_passes(workshop, total=LIMIT, **SOON)
    second.set()
    await eventually_in(workshop, run.id, "input.requested", 2)
    for request_id in order:
        await answered(workshop, execution, request_id)
    await within_patience(execution.done)
    assert (await workshop.outcome(run.id)).output == "a and b"


async def eventually_in(workshop: Workshop, run_id: str, kind: str, count: int) -> None:
    """Wait until the log has so many events of a kind."""
    seen = 0
    async with asyncio.timeout(PATIENCE):
        async for blocks in workshop.engine.read(run_id, live=True):
            seen += sum(kind_of(event) == kind for block in blocks for event in block.events)
            if seen >= count:
                return


@EACH_LIMIT
async def test_who_waits_no_longer_has_the_limits_of_everybody(
    workshop: Workshop, limits: dict[str, Any], code: str
) -> None:
    """A request that stays open in the log stops no clock."""

    async def gives_up(context: RunContext) -> AsyncGenerator[Any, None]:
        yield InputRequested(request_id="r", type="question")
        waiting = asyncio.ensure_future(inbox_of(context).answer("r"))
        await asyncio.sleep(0)
        waiting.cancel()
        yield text("never mind")
        await asyncio.Event().wait()

    workshop.add("agent", gives_up)
    run, lease = await workshop.claimed()
    await within_patience(workshop.execute(lease, **limits).done)
    assert (await workshop.kinds(run.id))[1:] == ["input.requested", "text.delta", "run.failed"]
    assert (await workshop.outcome(run.id)).error.code == code


@EACH_LIMIT
@pytest.mark.parametrize("waits", [True, False])
async def test_what_an_earlier_attempt_asked_stops_the_clock_only_of_who_waits_for_it(
    workshop: Workshop, limits: dict[str, Any], code: str, waits: bool
) -> None:
    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        if context.attempt == 1:
            yield InputRequested(request_id="r", type="question")
        if context.attempt == 1 or waits:
            yield end((await inbox_of(context).answer("r")).value)
        await asyncio.Event().wait()

    workshop.add("agent", acts, resumable=True)
    run, lease = await workshop.claimed()
    first = workshop.execute(lease)
    await workshop.until(run.id, "input.requested")
    first.stop()
    await within_patience(first.done)
    second = workshop.execute(await workshop.engine.claim("other"), **limits)
    await workshop.until(run.id, "attempt.started")
    if waits:
        await limit_passes(workshop, **limits)
        assert not second.done.done()
        await answered(workshop, second, "r")
        await workshop.until(run.id, "message.end")
    await within_patience(second.done)
    assert (await workshop.outcome(run.id)).error.code == code


async def test_a_cancel_ends_the_wait_for_people(workshop: Workshop) -> None:
    workshop.add("agent", _asks)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease, cancel_by_itself=0.01, cancel_grace=PATIENCE)
    await workshop.until(run.id, "input.requested")
    await workshop.runs.cancel(ANN, run.id)
    execution.cancel("ann")
    await within_patience(execution.done)
    assert (await workshop.kinds(run.id))[1:] == ["input.requested", "run.cancelled"]


async def test_a_run_that_waits_for_people_is_handed_over(workshop: Workshop) -> None:
    workshop.add("agent", _asks, resumable=True)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease)
    await workshop.until(run.id, "input.requested")
    execution.stop()
    await within_patience(execution.done)
    head = await workshop.engine.head(run.id)
    assert (head.state, await workshop.kinds(run.id)) == ("queued", ["run.started", "input.requested"])


# leases


@pytest.mark.parametrize("acts", [_waits_for_ever, _swallows])
async def test_nothing_is_written_once_the_lease_is_lost(workshop: Workshop, acts: Any) -> None:
    """Also where the log would still take it: that the lease could not be confirmed is enough."""
    workshop.add("agent", acts)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease)
    await workshop.until(run.id, "text.delta")
    execution.lose(Fenced())
    await within_patience(execution.done)
    assert await workshop.kinds(run.id) == ["run.started", "text.delta"]


async def test_an_append_that_is_fenced_ends_the_attempt(workshop: Workshop) -> None:
    gate = asyncio.Event()

    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        yield text(f"attempt {context.attempt}")
        await gate.wait()
        while True:
            yield text("of a zombie")
            await asyncio.sleep(0)

    workshop.add("agent", acts)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease)
    await workshop.until(run.id, "text.delta")
    await workshop.engine.release(lease)
    second = await workshop.engine.claim("other")
    gate.set()
    await within_patience(execution.done)
    assert second.attempt == 2
    assert await workshop.kinds(run.id) == ["run.started", "text.delta"]


@pytest.mark.parametrize("acts", [_waits_for_ever, _swallows])
async def test_stop_gives_the_run_back(workshop: Workshop, acts: Any) -> None:
    workshop.add("agent", acts)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease)
    await workshop.until(run.id, "text.delta")
    execution.stop()
    await within_patience(execution.done)
    head = await workshop.engine.head(run.id)
    assert (head.state, await workshop.kinds(run.id)) == ("queued", ["run.started", "text.delta"])


async def test_the_next_attempt_is_given_what_was_said(workshop: Workshop) -> None:
    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        said = [event.delta for event in context.history if isinstance(event, TextDelta)]
        if context.attempt == 1:
            yield [begin(), text("one ")]
            await asyncio.Event().wait()
        yield text("two")
        yield end("".join([*said, "two"]))

    workshop.add("agent", acts, resumable=True)
    run, lease = await workshop.claimed()
    first = workshop.execute(lease)
    await workshop.until(run.id, "text.delta")
    first.stop()
    await within_patience(first.done)
    await within_patience(workshop.execute(await workshop.engine.claim("other")).done)
    kinds = ["message.start", "text.delta", "attempt.started", "text.delta", "message.end", "run.completed"]
    assert (await workshop.kinds(run.id))[1:] == kinds
    assert (await workshop.outcome(run.id)).output == "one two"


async def test_what_cannot_go_on_is_interrupted(workshop: Workshop) -> None:
    workshop.add("agent", _waits_for_ever)
    run, lease = await workshop.claimed()
    first = workshop.execute(lease)
    await workshop.until(run.id, "text.delta")
    first.stop()
    await within_patience(first.done)
    await within_patience(workshop.execute(await workshop.engine.claim("other")).done)
    assert (await workshop.outcome(run.id)).error.code == "interrupted"


async def test_what_had_not_begun_begins_again(workshop: Workshop) -> None:
    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        yield end(f"attempt {context.attempt}")

    workshop.add("agent", acts)
    run, lease = await workshop.claimed()
    await workshop.engine.release(lease)
    await within_patience(workshop.execute(await workshop.engine.claim("other")).done)
    assert (await workshop.outcome(run.id)).output == "attempt 2"


# the disk


class SlowReceipt:
    """Settled by the test."""

    def __init__(self, receipt: Receipt, gate: asyncio.Event) -> None:
        self.error = receipt.error
        self._receipt = receipt
        self._gate = gate

    def done(self) -> bool:
        return self._gate.is_set() and self._receipt.done()

    def __await__(self) -> Any:
        yield from self._gate.wait().__await__()
        return (yield from self._receipt.__await__())


class SlowLog:
    """A log whose commits take until `gate` opens."""

    def __init__(self, log: RunLog) -> None:
        self.gate = asyncio.Event()
        self.appended: list[tuple[list[Event], bool]] = []
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append(self, run_id: str, attempt: int, events: Sequence[Event], *, urgent: bool = False) -> SlowReceipt:
        self.appended.append((list(events), urgent))
        return SlowReceipt(self._log.append(run_id, attempt, events, urgent=urgent), self.gate)


async def test_an_agent_does_not_run_far_ahead_of_the_disk(workshop: Workshop) -> None:
    said = 0

    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        nonlocal said
        while said < 5000:
            said += 1
            yield text(".")

    workshop.add("agent", acts)
    log: Any = SlowLog(workshop.engine)
    run, lease = await workshop.claimed()
    execution = workshop.execute(lease, log=log)
    await eventually(lambda: said > 1000)
    for _ in range(100):
        await asyncio.sleep(0)
    assert said <= 1001
    log.gate.set()
    await within_patience(execution.done)
    assert said == 5000
    assert (await workshop.engine.head(run.id)).offset == 5002


async def test_only_the_first_text_is_urgent(workshop: Workshop) -> None:
    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        yield begin()
        yield [text("a"), text("b")]
        yield text("c")
        yield end("abc")

    workshop.add("agent", acts)
    log: Any = SlowLog(workshop.engine)
    log.gate.set()
    _, lease = await workshop.claimed()
    await within_patience(workshop.execute(lease, log=log).done)
    assert [urgent for _, urgent in log.appended] == [False, True, False, False, False]


async def test_what_is_counted(workshop: Workshop) -> None:
    await outcome_of(workshop, begin(), [text("a"), text("b")], text("c"), end("abc"))
    telemetry = workshop.telemetry
    assert (telemetry.runs_started, telemetry.runs_ended["completed"], telemetry.tokens) == (1, 1, 3)
    assert (sum(telemetry.first_token.counts), sum(telemetry.token_gap.counts)) == (1, 1)
