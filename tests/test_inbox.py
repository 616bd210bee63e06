"""What people send to a run, and how it gets there: none of it is missed, and none of it is lost."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from tests.workshop import ANN, BOB, PATIENCE, Workshop, end, eventually, within_patience

from headrace.errors import HeadraceError, InputDecided, InvalidField, LogClosed, NotFound
from headrace.events import InputReceived, InputRequested, RunCancelled, RunCompleted
from headrace.inbox import RunInbox
from headrace.ports import Input, Lease, RunContext, RunLog, Signal
from headrace.runs import Runs

YES, NO = {"approved": True}, {"approved": False, "reason": "no"}
SCHEMA = {
    "type": "object",
    "properties": {"approved": {"type": "boolean"}, "list": {"type": "array", "items": {"type": "integer"}}},
    "required": ["approved"],
}


async def _silent(context: RunContext) -> AsyncGenerator[Any, None]:
    yield end("")


@pytest.fixture
async def lease(workshop: Workshop) -> Lease:
    """Of a run that nobody works on."""
    workshop.add("agent", _silent)
    return (await workshop.claimed())[1]


def inbox_of(workshop: Workshop, lease: Lease) -> RunInbox:
    return RunInbox(workshop.engine, lease.run_id)


def waiting(inbox: RunInbox, request_id: str = "r") -> "asyncio.Task[Input]":
    return asyncio.create_task(inbox.answer(request_id))


# --- one run's inbox --------------------------------------------------------------------------------------------------


async def test_an_answer_that_came_before_the_wait_is_there(workshop: Workshop, lease: Lease) -> None:
    answer = Input("r", YES, "ann")
    await workshop.engine.put_input(lease.run_id, answer)
    assert await asyncio.wait_for(inbox_of(workshop, lease).answer("r"), PATIENCE) == answer


async def test_an_answer_that_comes_later_is_waited_for(workshop: Workshop, lease: Lease) -> None:
    inbox = inbox_of(workshop, lease)
    asked = waiting(inbox)
    await eventually(lambda: inbox.waiting)
    answer = Input("r", ["any", {"json": None}], "ann")
    await workshop.engine.put_input(lease.run_id, answer)
    inbox.wake()
    assert await within_patience(asked) == answer
    assert not inbox.waiting


async def test_what_is_meant_for_others_ends_no_wait(workshop: Workshop, lease: Lease) -> None:
    """Another request of the run, and the same one of another run."""
    inbox = inbox_of(workshop, lease)
    _, other = await workshop.claimed()
    mine = waiting(inbox)
    await eventually(lambda: inbox.waiting)
    await workshop.engine.put_input(lease.run_id, Input("s", YES, "ann"))
    await workshop.engine.put_input(other.run_id, Input("r", YES, "ann"))
    inbox.wake()
    assert await asyncio.wait_for(inbox.answer("s"), PATIENCE) == Input("s", YES, "ann")
    assert not mine.done()
    await workshop.engine.put_input(lease.run_id, Input("r", NO, "ann"))
    inbox.wake()
    assert await within_patience(mine) == Input("r", NO, "ann")


class SlowLook:
    """A log in which a look for an answer finds what was there when it began, and ends when the test says so."""

    def __init__(self, log: RunLog) -> None:
        self.looks: list[tuple[str, asyncio.Event]] = []
        self._log = log

    async def find_input(self, run_id: str, request_id: str) -> Input | None:
        found = await self._log.find_input(run_id, request_id)
        gate = asyncio.Event()
        self.looks.append((request_id, gate))
        await gate.wait()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def look(self, number: int) -> str:
        """Wait for the look of this number, and let it end. Gives what it is for."""
        await eventually(lambda: len(self.looks) > number)
        request_id, gate = self.looks[number]
        gate.set()
        return request_id


async def test_what_comes_during_a_look_is_not_missed(workshop: Workshop, lease: Lease) -> None:
    log = SlowLook(workshop.engine)
    inbox = RunInbox(cast("RunLog", log), lease.run_id)
    asked = waiting(inbox)
    await eventually(lambda: log.looks)
    await workshop.engine.put_input(lease.run_id, Input("r", YES, "ann"))
    inbox.wake()
    assert [await log.look(0), await log.look(1)] == ["r", "r"]
    assert (await within_patience(asked)).value == YES


async def test_two_who_wait_miss_nothing_by_each_other(workshop: Workshop, lease: Lease) -> None:
    """The second begins to wait after the news for the first, and before the first has finished its look."""
    log = SlowLook(workshop.engine)
    inbox = RunInbox(cast("RunLog", log), lease.run_id)
    first = waiting(inbox, "r")
    await eventually(lambda: log.looks)
    await workshop.engine.put_input(lease.run_id, Input("r", YES, "ann"))
    inbox.wake()
    second = waiting(inbox, "s")
    await eventually(lambda: len(log.looks) == 2)
    assert [await log.look(0), await log.look(1), await log.look(2)] == ["r", "s", "r"]
    assert (await within_patience(first)).value == YES
    await workshop.engine.put_input(lease.run_id, Input("s", NO, "ann"))
    inbox.wake()
    assert await log.look(3) == "s"
    assert (await within_patience(second)).value == NO


async def test_who_waits_no_longer_leaves_nothing_behind(workshop: Workshop, lease: Lease) -> None:
    inbox = inbox_of(workshop, lease)
    asked = waiting(inbox)
    await eventually(lambda: inbox.waiting)
    asked.cancel()
    await asyncio.wait([asked])
    assert asked.cancelled()
    assert not inbox.waiting
    await workshop.engine.put_input(lease.run_id, Input("r", YES, "ann"))
    assert (await asyncio.wait_for(inbox.answer("r"), PATIENCE)).value == YES


async def test_the_time_of_several_waits_is_told_once_when_the_last_is_over(workshop: Workshop, lease: Lease) -> None:
    told: list[float] = []
    inbox = RunInbox(workshop.engine, lease.run_id, on_waited=told.append)
    loop = asyncio.get_running_loop()
    before = loop.time()
    first, second = waiting(inbox, "r"), waiting(inbox, "s")
    await eventually(lambda: inbox.waiting)
    for request_id, asked, times in (("s", second, 0), ("r", first, 1)):
        assert inbox.waiting
        await workshop.engine.put_input(lease.run_id, Input(request_id, YES, "ann"))
        inbox.wake()
        await within_patience(asked)
        assert len(told) == times
    assert 0 < told[0] <= loop.time() - before


async def test_who_decides_in_place_of_people_comes_after_them(workshop: Workshop, lease: Lease) -> None:
    inbox = inbox_of(workshop, lease)
    theirs, ours = Input("r", YES, "ann"), Input("r", NO, "timeout")
    await workshop.engine.put_input(lease.run_id, theirs)
    assert await inbox.decide(ours) == theirs
    assert await inbox.answer("r") == theirs
    late = Input("s", NO, "timeout")
    assert await inbox.decide(late) == late
    assert await workshop.engine.put_input(lease.run_id, Input("s", YES, "ann")) == late


async def test_nothing_is_decided_for_a_run_that_has_ended(workshop: Workshop, lease: Lease) -> None:
    await workshop.engine.append(lease.run_id, lease.attempt, [RunCancelled(reason="requested", by="ann")])
    with pytest.raises(LogClosed):
        await inbox_of(workshop, lease).decide(Input("r", NO, "timeout"))


# --- from people to the agent -----------------------------------------------------------------------------------------


async def test_an_answer_whose_sender_is_gone_is_told_all_the_same(workshop: Workshop, lease: Lease) -> None:
    """It is durable, so the worker has to hear of it."""
    told = workshop.engine.signals("test")
    hearing = asyncio.ensure_future(anext(told))
    sending = asyncio.create_task(workshop.engine.put_input(lease.run_id, Input("r", YES, "ann")))
    await asyncio.sleep(0)  # a turn in which it is submitted
    sending.cancel()
    await asyncio.wait([sending])
    assert await within_patience(hearing) == Signal(lease.run_id, "input")
    assert await workshop.engine.find_input(lease.run_id, "r") is not None


def asking(*request_ids: str, **schema: Any) -> Any:
    """An agent that asks all of it at once, and says what it was answered."""

    async def acts(context: RunContext) -> AsyncGenerator[Any, None]:
        assert context.inbox is not None
        for request_id in request_ids:
            yield InputRequested(request_id=request_id, type="question", schema=schema)
        answers = await asyncio.gather(*map(context.inbox.answer, request_ids))
        for answer in answers:
            yield InputReceived(request_id=answer.request_id, value=answer.value, by=answer.by)
        yield end(" ".join(f"{answer.by}:{answer.value}" for answer in answers))

    return acts


async def asked(workshop: Workshop, *request_ids: str, **schema: Any) -> str:
    """The id of a run that waits for these."""
    workshop.add("agent", asking(*request_ids, **schema))
    workshop.worker()
    run_id = (await workshop.start()).run.id
    async with asyncio.timeout(PATIENCE):
        async for blocks in workshop.engine.read(run_id, live=True):
            seen = {event.request_id for block in blocks for event in block.events if isinstance(event, InputRequested)}
            if request_ids[-1] in seen:
                return run_id
    raise AssertionError


async def test_an_answer_gets_to_the_agent_that_waits(workshop: Workshop) -> None:
    run_id = await asked(workshop, "r")
    given = await workshop.runs.answer(ANN, run_id, "r", {"any": ["json"]})
    assert given == Input("r", {"any": ["json"]}, "ann")
    assert (await workshop.outcome(run_id)).output == "ann:{'any': ['json']}"
    assert (await workshop.kinds(run_id))[1:] == [
        "input.requested",
        "input.received",
        "message.end",
        "run.completed",
    ]


async def test_several_requests_are_answered_in_any_order(workshop: Workshop) -> None:
    names = [f"r{number}" for number in range(20)]
    run_id = await asked(workshop, *names)
    await asyncio.gather(*(workshop.runs.answer(ANN, run_id, name, name) for name in reversed(names)))
    assert (await workshop.outcome(run_id)).output == " ".join(f"ann:{name}" for name in names)


@pytest.mark.parametrize("same", [True, False], ids=["the same answer", "different ones"])
async def test_of_answers_at_the_same_time_one_counts(workshop: Workshop, same: bool) -> None:
    run_id = await asked(workshop, "r")
    answers = [workshop.runs.answer(ANN, run_id, "r", 0 if same else number) for number in range(20)]
    async with asyncio.timeout(PATIENCE):
        given = await asyncio.gather(*answers, return_exceptions=True)
    (counted,) = [answer for answer in given if isinstance(answer, Input)]
    others = [answer for answer in given if answer is not counted]
    assert all(isinstance(answer, InputDecided | LogClosed) for answer in others), others
    assert (await workshop.outcome(run_id)).output == f"ann:{counted.value}"


async def test_who_answers_right_when_the_time_is_over_is_told_which_counts(workshop: Workshop) -> None:
    """The agent decides between the look whether there is an answer and the answer."""
    run_id = await asked(workshop, "r")
    log = SlowLook(workshop.engine)
    answering = asyncio.create_task(Runs(cast("RunLog", log), workshop.agents).answer(ANN, run_id, "r", YES))
    await eventually(lambda: log.looks)
    await workshop.engine.put_input(run_id, Input("r", NO, "timeout"))
    await log.look(0)
    with pytest.raises((InputDecided, LogClosed)):
        await within_patience(answering)
    assert (await workshop.outcome(run_id)).output == f"timeout:{NO}"


@pytest.mark.parametrize(("who", "request_id"), [(BOB, "r"), (ANN, "s"), (ANN, ""), (BOB, "s")])
async def test_what_is_not_asked_of_somebody_does_not_exist(workshop: Workshop, who: Any, request_id: str) -> None:
    run_id = await asked(workshop, "r")
    with pytest.raises(NotFound):
        await workshop.runs.answer(who, run_id, request_id, 1)
    with pytest.raises(NotFound):
        await workshop.runs.answer(who, "run_unknown", "r", 1)
    assert await workshop.engine.find_input(run_id, "r") is None


@pytest.mark.parametrize(
    ("value", "pointers"),
    [
        (None, ["/value"]),
        ("yes", ["/value"]),
        ({}, ["/value"]),
        ({"approved": "true"}, ["/value/approved"]),
        ({"approved": 1}, ["/value/approved"]),
        ({"approved": True, "list": [1, "2", None]}, ["/value/list/1", "/value/list/2"]),
    ],
)
async def test_an_answer_that_does_not_fit_is_told_where_and_counts_for_nothing(
    workshop: Workshop, value: Any, pointers: list[str]
) -> None:
    run_id = await asked(workshop, "r", **SCHEMA)
    with pytest.raises(InvalidField) as refused:
        await workshop.runs.answer(ANN, run_id, "r", value)
    assert [error["pointer"] for error in refused.value.extra["errors"]] == pointers
    await workshop.runs.answer(ANN, run_id, "r", YES)
    assert isinstance(await workshop.outcome(run_id), RunCompleted)


@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("decided", [False, True])
async def test_after_the_end_of_the_run_nothing_is_taken(workshop: Workshop, trimmed: bool, decided: bool) -> None:
    run_id = await asked(workshop, "r")
    if decided:
        await workshop.runs.answer(ANN, run_id, "r", 1)
    else:
        await workshop.runs.cancel(ANN, run_id)
    await workshop.outcome(run_id)
    if trimmed:
        await workshop.engine.trim(max_bytes=0)
    with pytest.raises(HeadraceError) as refused:
        await workshop.runs.answer(ANN, run_id, "r", 1)
    assert refused.value.status == 409
    assert type(refused.value) is (InputDecided if decided and not trimmed else LogClosed)


async def test_an_answer_given_while_no_worker_has_the_run_is_there_for_the_next(workshop: Workshop) -> None:
    async def asks(context: RunContext) -> AsyncGenerator[Any, None]:
        if context.attempt == 1:
            yield InputRequested(request_id="r", type="question")
        assert context.inbox is not None
        answer = await context.inbox.answer("r")
        yield InputReceived(request_id="r", value=answer.value, by=answer.by)
        yield end(f"attempt {context.attempt}")

    workshop.add("agent", asks, resumable=True)
    run, lease = await workshop.claimed()
    first = workshop.execute(lease)
    await workshop.until(run.id, "input.requested")
    first.stop()
    await within_patience(first.done)
    await workshop.runs.answer(ANN, run.id, "r", 1)
    with pytest.raises(InputDecided):
        await workshop.runs.answer(ANN, run.id, "r", 2)
    workshop.worker()
    assert (await workshop.outcome(run.id)).output == "attempt 2"
