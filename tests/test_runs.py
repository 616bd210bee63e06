"""Runs on behalf of a principal: their own, and nobody else's."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from tests.workshop import ANN, BOB, PATIENCE, Workshop, begin, end, text

from headrace.errors import (
    ForeignPosition,
    HeadraceError,
    IdempotencyMismatch,
    InvalidField,
    NotFound,
    PositionAhead,
    PositionGone,
    RunActive,
)
from headrace.events import RunCancelled, RunCompleted, RunStarted
from headrace.identity import Principal
from headrace.ports import Head, Idempotency, RunContext, StartCommand
from headrace.position import Position
from headrace.runs import new_run_id

COMMAND = StartCommand(agent="agent", input={"message": "hi"}, conversation_id="c")


async def says(context: RunContext) -> AsyncGenerator[Any, None]:
    yield [begin(), text("hi"), end("hi")]


@pytest.fixture(autouse=True)
def _agent(workshop: Workshop) -> None:
    workshop.add("agent", says)


async def ended(workshop: Workshop) -> Head:
    """A run of Ann's with five events."""
    if not workshop.workers:
        workshop.worker()
    head = (await workshop.runs.start(ANN, COMMAND)).head
    await workshop.outcome(head.run.id)
    return await workshop.runs.get(ANN, head.run.id)


async def test_a_run_begins_with_what_was_asked(workshop: Workshop) -> None:
    head, new = await workshop.runs.start(ANN, COMMAND)
    assert new
    assert (head.run.agent, head.run.input, head.run.conversation_id) == ("agent", {"message": "hi"}, "c")
    assert (head.run.owner, head.state, head.offset) == (ANN.owner, "queued", 1)
    (started,) = await workshop.events(head.run.id)
    assert isinstance(started, RunStarted)
    assert (started.agent, started.conversation_id, started.time) == ("agent", "c", head.run.created)


async def test_the_digest_is_that_of_the_input_whatever_its_order(workshop: Workshop) -> None:
    digests = []
    for input_ in ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}, {"a": 2}):
        head = await workshop.start(**input_)
        (started,) = await workshop.events(head.run.id)
        assert isinstance(started, RunStarted)
        digests.append(started.input_digest)
    assert digests[0] == digests[1] != digests[2]


async def test_an_unknown_agent_is_not_found(workshop: Workshop) -> None:
    with pytest.raises(NotFound):
        await workshop.start("nobody")


@pytest.mark.parametrize("name", ["", "a\nb", "ä", "x" * 129])
async def test_a_conversation_id_that_would_break_a_header_is_refused(workshop: Workshop, name: str) -> None:
    with pytest.raises(InvalidField):
        await workshop.runs.start(ANN, StartCommand(agent="agent", input={}, conversation_id=name))


async def test_a_key_gives_the_same_run_to_the_same_caller_only(workshop: Workshop) -> None:
    key = Idempotency("k", "f")
    first, again = await workshop.runs.start(ANN, COMMAND, key), await workshop.runs.start(ANN, COMMAND, key)
    other = await workshop.runs.start(BOB, COMMAND, key)
    assert (first.new, again.new, other.new) == (True, False, True)
    assert first.head.run.id == again.head.run.id != other.head.run.id
    with pytest.raises(IdempotencyMismatch):
        await workshop.runs.start(ANN, COMMAND, Idempotency("k", "other"))


@pytest.mark.parametrize("stranger", [BOB, Principal(subject="ann", tenant="other")])
async def test_what_is_of_others_does_not_exist(workshop: Workshop, stranger: Principal) -> None:
    head = await ended(workshop)
    for run_id in (head.run.id, "run_unknown"):
        for call in (workshop.runs.get, workshop.runs.cancel, workshop.runs.delete):
            with pytest.raises(NotFound):
                await call(stranger, run_id)
    with pytest.raises(NotFound):
        await workshop.runs.list(stranger, limit=5, before=head.run.id)
    assert await workshop.runs.list(stranger, limit=5) == []
    assert await workshop.runs.get(ANN, head.run.id) == head


async def offsets(workshop: Workshop, head: Head, after: Position | None) -> list[int]:
    found: list[int] = []
    async for blocks in workshop.runs.follow(head, after, live=True):
        for block in blocks:
            found += range(block.first, block.last + 1)
    return found


async def test_following_goes_on_after_a_position(workshop: Workshop) -> None:
    head = await ended(workshop)
    epoch = head.run.epoch
    assert head.offset == 5
    assert await offsets(workshop, head, None) == [1, 2, 3, 4, 5]
    assert await offsets(workshop, head, Position(epoch, 3)) == [4, 5]
    assert await offsets(workshop, head, Position(epoch, 3, 1)) == [4, 5]  # inside event 4
    assert await offsets(workshop, head, Position(epoch, 5)) == []


@pytest.mark.parametrize(
    ("offset", "frame", "epoch", "error"),
    [
        (6, 0, None, PositionAhead),
        (5, 1, None, PositionAhead),
        (2, 0, "other", ForeignPosition),
        (9, 0, "other", ForeignPosition),
    ],
)
async def test_a_position_that_cannot_be_served_is_told_at_once(
    workshop: Workshop, offset: int, frame: int, epoch: str | None, error: type[HeadraceError]
) -> None:
    head = await ended(workshop)
    with pytest.raises(error):
        workshop.runs.follow(head, Position(epoch or head.run.epoch, offset, frame), live=True)


async def test_a_trimmed_position_is_told_with_the_first_that_is_there(workshop: Workshop) -> None:
    head = await ended(workshop)
    await workshop.engine.trim(max_bytes=0)
    head = await workshop.runs.get(ANN, head.run.id)
    with pytest.raises(PositionGone) as raised:
        workshop.runs.follow(head, None, live=True)
    first = Position.parse(raised.value.extra["first_available"])
    assert await offsets(workshop, head, first) == []


async def test_the_result_is_the_last_event(workshop: Workshop) -> None:
    waiting = await workshop.start()
    result = asyncio.ensure_future(workshop.runs.result(waiting))
    done = await ended(workshop)
    assert isinstance(await asyncio.wait_for(result, PATIENCE), RunCompleted)
    assert isinstance(await workshop.runs.result(done), RunCompleted)


async def test_a_queued_run_is_cancelled_at_once(workshop: Workshop) -> None:
    head = await workshop.start()
    with pytest.raises(RunActive):
        await workshop.runs.delete(ANN, head.run.id)
    assert await workshop.runs.cancel(ANN, head.run.id, by="disconnect") == "requested"
    result = await workshop.runs.result(head)
    assert isinstance(result, RunCancelled)
    assert (result.reason, result.by) == ("requested", "disconnect")
    assert await workshop.runs.cancel(ANN, head.run.id) == "closed"
    await workshop.runs.delete(ANN, head.run.id)
    with pytest.raises(NotFound):
        await workshop.runs.get(ANN, head.run.id)


async def test_a_list_is_newest_first_and_of_one_owner(workshop: Workshop) -> None:
    ids = [(await workshop.runs.start(who, COMMAND)).head.run.id for who in (ANN, BOB, ANN, ANN)]
    page = await workshop.runs.list(ANN, limit=2)
    assert [head.run.id for head in page] == [ids[3], ids[2]]
    rest = await workshop.runs.list(ANN, limit=2, before=ids[2])
    assert [head.run.id for head in rest] == [ids[0]]
    assert await workshop.runs.list(ANN, limit=2, state="completed") == []


async def test_a_feed_of_another_epoch_is_foreign(workshop: Workshop) -> None:
    with pytest.raises(ForeignPosition):
        workshop.runs.feed(ANN, Position("other", 0), live=False)
    head = await workshop.start()
    start = Position(workshop.runs.feed_epoch, 0)
    entries = [entry async for batch in workshop.runs.feed(ANN, start, live=False) for entry in batch]
    assert [entry.run_id for entry in entries] == [head.run.id]


def test_run_ids_cannot_be_guessed() -> None:
    ids = {new_run_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(run_id) == 30 and run_id.startswith("run_") for run_id in ids)
