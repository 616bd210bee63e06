"""The promises of `RunLog` and `RunQueue`, one test each, over every engine."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

import msgspec
import pytest
from tests.engines.story import ANN, BOB, Story, completed, delta, entries, lines, started

from headrace.errors import (
    Fenced,
    IdempotencyMismatch,
    LogClosed,
    NotFound,
    PositionAhead,
    PositionGone,
    RunActive,
)
from headrace.events import RunCancelled, encode
from headrace.ports import Block, Created, FeedEntry, Idempotency, Input, Lease, Signal, child_id
from headrace.position import Position


async def collect(batches: AsyncIterator[Sequence[Block]]) -> list[bytes]:
    return lines([blocks async for blocks in batches])


async def next_batch(feed: AsyncIterator[Sequence[FeedEntry]]) -> Sequence[FeedEntry]:
    return await anext(feed)


async def next_entries(feed: AsyncIterator[Sequence[FeedEntry]], count: int) -> list[FeedEntry]:
    found: list[Sequence[FeedEntry]] = []
    while sum(map(len, found)) < count:
        found.append(await anext(feed))
    return entries(found)


async def stays_pending(task: "asyncio.Task[object]", story: Story) -> bool:
    """Whether the task still waits after the engine has committed something else."""
    await story.engine.delete(await story.ended(BOB))
    return not task.done()


# create


async def test_a_created_run_is_queued_with_its_first_event(story: Story) -> None:
    run, first = story.run(), started()
    created = await story.engine.create(run, first)
    assert created.new
    assert created.head == await story.engine.head(run.id)
    assert (created.head.run, created.head.state, created.head.offset, created.head.first) == (run, "queued", 1, 1)
    assert await story.texts(run.id) == [encode(first)]


async def test_an_unknown_run_is_not_found(story: Story) -> None:
    with pytest.raises(NotFound):
        await story.engine.head("nobody")
    with pytest.raises(NotFound):
        await story.texts("nobody")
    with pytest.raises(NotFound):
        await story.engine.request_cancel("nobody", "ann")
    with pytest.raises(NotFound):
        await story.engine.delete("nobody")


async def test_the_same_key_and_fingerprint_give_the_same_run(story: Story) -> None:
    first = await story.engine.create(story.run(), started(), Idempotency("k", "f"))
    again = await story.engine.create(story.run(), started(), Idempotency("k", "f"))
    assert (first.new, again.new) == (True, False)
    assert again.head == first.head
    assert len(await story.engine.list(ANN, limit=10)) == 1


async def test_fifty_parallel_requests_with_one_key_make_one_run(story: Story) -> None:
    creating = [story.engine.create(story.run(), started(), Idempotency("k", "f")) for _ in range(50)]
    created = await asyncio.gather(*creating)
    assert sum(one.new for one in created) == 1
    assert len({one.head.run.id for one in created}) == 1
    assert len(await story.engine.list(ANN, limit=10)) == 1


async def test_a_key_with_another_fingerprint_is_a_mismatch(story: Story) -> None:
    first = await story.engine.create(story.run(), started(), Idempotency("k", "f"))
    with pytest.raises(IdempotencyMismatch):
        await story.engine.create(story.run(), started(), Idempotency("k", "g"))
    with pytest.raises(IdempotencyMismatch):
        await story.engine.find(first.head.run.owner, Idempotency("k", "g"))


async def test_the_run_of_a_key_is_found_by_its_owner_alone(story: Story) -> None:
    created = await story.engine.create(story.run(ANN), started(), Idempotency("k", "f"))
    assert await story.engine.find(ANN, Idempotency("k", "f")) == created.head
    assert await story.engine.find(ANN, Idempotency("l", "f")) is None
    assert await story.engine.find(BOB, Idempotency("k", "f")) is None
    assert len(await story.engine.list(ANN, limit=10)) == 1


async def test_another_owners_key_is_another_key(story: Story) -> None:
    await story.engine.create(story.run(ANN), started(), Idempotency("k", "f"))
    other = await story.engine.create(story.run(BOB), started(), Idempotency("k", "g"))
    assert other.new
    assert other.head.run.owner == BOB


async def test_the_key_of_a_deleted_run_is_free_again(story: Story) -> None:
    run = story.run()
    await story.engine.create(run, started(), Idempotency("k", "f"))
    await story.engine.request_cancel(run.id, "ann")
    await story.engine.delete(run.id)
    assert (await story.engine.create(story.run(), started(), Idempotency("k", "g"))).new


async def test_what_cannot_be_encoded_fails_its_caller_alone(story: Story) -> None:
    with pytest.raises(UnicodeEncodeError):
        await story.engine.create(story.run(), delta("\ud800"))
    lease = await story.claimed()
    good = story.engine.append(lease.run_id, 1, [delta("good")])
    bad = story.engine.append(lease.run_id, 1, [delta("lost"), delta("\ud800")])
    with pytest.raises(UnicodeEncodeError):
        await bad
    await good
    assert await story.engine.append(lease.run_id, 1, [delta("also good")]) == 3
    assert [b"good" in line for line in await story.texts(lease.run_id)] == [False, True, True]
    await story.queued()


# append


async def test_offsets_have_neither_hole_nor_repeat(story: Story) -> None:
    lease = await story.claimed()
    events = [delta(number) for number in range(200)]
    futures = [story.engine.append(lease.run_id, 1, events[at : at + 1 + at % 3]) for at in range(0, 200, 4)]
    offsets = await asyncio.gather(*futures)
    assert offsets == sorted(offsets)
    expected = [event for at in range(0, 200, 4) for event in events[at : at + 1 + at % 3]]
    assert (await story.texts(lease.run_id))[1:] == [encode(event) for event in expected]
    assert (await story.engine.head(lease.run_id)).offset == offsets[-1] == len(expected) + 1


async def test_an_event_is_readable_once_its_future_is_done_and_not_before(story: Story) -> None:
    lease = await story.claimed()
    future = story.engine.append(lease.run_id, 1, [delta("a")])
    offset = (await story.engine.head(lease.run_id)).offset
    assert offset == (2 if future.done() else 1)
    assert await future == 2
    assert len(await story.texts(lease.run_id)) == 2


async def test_an_old_attempt_is_fenced_and_leaves_nothing(story: Story) -> None:
    lease = await story.claimed()
    await story.engine.release(lease)
    assert (await story.engine.claim("next")).attempt == 2
    with pytest.raises(Fenced):
        await story.engine.append(lease.run_id, 1, [delta("old")])
    with pytest.raises(Fenced):
        await story.engine.append(lease.run_id, 3, [delta("future")])
    assert len(await story.texts(lease.run_id)) == 1


async def test_the_old_attempts_waiting_events_do_not_fence_the_next_attempt(story: Story) -> None:
    lease = await story.claimed()
    next_claim = asyncio.create_task(story.engine.claim("next"))
    releasing = asyncio.create_task(story.engine.release(lease))
    old = []
    while not next_claim.done():
        old.append(story.engine.append(lease.run_id, 1, [delta("old")]))
        await asyncio.sleep(0)
    old.append(story.engine.append(lease.run_id, 1, [completed()]))
    taken = next_claim.result()
    new = story.engine.append(lease.run_id, taken.attempt, [delta("new")])
    offset = await new
    await releasing
    results = await asyncio.gather(*old, return_exceptions=True)
    kept = [result for result in results if isinstance(result, int)]
    assert isinstance(results[-1], Fenced)
    stored = await story.texts(lease.run_id)
    assert len(stored) == offset
    assert b"new" in stored[-1]
    assert not kept or max(kept) < offset


async def test_nothing_follows_the_terminal_event(story: Story) -> None:
    lease = await story.claimed()
    end = story.engine.append(lease.run_id, 1, [delta("a"), completed()])
    late = story.engine.append(lease.run_id, 1, [delta("late")])
    twice = story.engine.append(lease.run_id, 1, [completed()])
    assert await end == 3
    for future in (late, twice, story.engine.append(lease.run_id, 1, [completed()])):
        with pytest.raises(LogClosed):
            await future
    assert len(await story.texts(lease.run_id)) == 3
    head = await story.engine.head(lease.run_id)
    assert (head.state, head.offset, head.closed) == ("completed", 3, True)
    assert head.ended is not None


async def test_events_that_go_on_after_an_end_are_refused_whole(story: Story) -> None:
    lease = await story.claimed()
    with pytest.raises(LogClosed):
        await story.engine.append(lease.run_id, 1, [completed(), delta("late")])
    with pytest.raises(LogClosed):
        await story.engine.append(lease.run_id, 1, [completed(), completed()])
    assert await story.engine.append(lease.run_id, 1, [delta("goes on")]) == 2


async def test_appends_to_no_run_at_all_are_refused(story: Story) -> None:
    with pytest.raises(LogClosed):
        await story.engine.append("nobody", 1, [delta("a")])


# read


async def test_replay_and_follow_give_the_same(story: Story) -> None:
    lease = await story.claimed()
    following = asyncio.create_task(collect(story.engine.read(lease.run_id, live=True)))
    for number in range(20):
        await story.engine.append(lease.run_id, 1, [delta(number)] * (number % 3 + 1))
    await story.engine.append(lease.run_id, 1, [completed()])
    assert await following == await story.texts(lease.run_id)


async def test_without_live_a_read_ends_at_what_is_committed(story: Story) -> None:
    lease = await story.claimed()
    await story.engine.append(lease.run_id, 1, [delta("a")])
    assert len(await story.texts(lease.run_id)) == 2
    assert await story.texts(lease.run_id, 2) == []


@pytest.mark.parametrize("open_run", [True, False])
async def test_a_read_goes_on_after_any_offset_also_inside_a_block(story: Story, open_run: bool) -> None:
    lease = await story.claimed()
    for at in range(4):
        await story.engine.append(lease.run_id, 1, [delta(f"{at}.{inner}") for inner in range(3)])
    if not open_run:
        await story.engine.append(lease.run_id, 1, [completed()])
    whole = await story.texts(lease.run_id)
    for after in range(len(whole) + 1):
        assert await story.texts(lease.run_id, after) == whole[after:]


@pytest.mark.parametrize("open_run", [True, False])
async def test_a_position_after_the_last_event_is_ahead(story: Story, open_run: bool) -> None:
    run_id = (await story.claimed()).run_id if open_run else await story.ended()
    offset = (await story.engine.head(run_id)).offset
    with pytest.raises(PositionAhead):
        await story.texts(run_id, offset + 1)


async def test_a_slow_reader_behind_the_tail_catches_up(story: Story) -> None:
    lease = await story.claimed()
    reader = story.engine.read(lease.run_id, live=True)
    found = [await anext(reader)]
    for number in range(150):
        await story.engine.append(lease.run_id, 1, [delta(f"{number}" + "x" * 20_000)])
    found += [await anext(reader)]
    await story.engine.append(lease.run_id, 1, [completed()])
    found += [blocks async for blocks in reader]
    got = lines(found)
    assert len(got) == 152
    assert got == await story.texts(lease.run_id)


async def test_all_followers_get_the_very_same_blocks(story: Story) -> None:
    lease = await story.claimed()

    async def follow() -> list[Block]:
        return [block async for blocks in story.engine.read(lease.run_id, 1, live=True) for block in blocks]

    followers = [asyncio.create_task(follow()) for _ in range(1000)]
    for number in range(5):
        await story.engine.append(lease.run_id, 1, [delta(number)])
    await story.engine.append(lease.run_id, 1, [completed()])
    first, *others = await asyncio.gather(*followers)
    assert sum(len(block.events) for block in first) == 6
    assert all(len(other) == len(first) for other in others)
    assert all(mine is yours for other in others for mine, yours in zip(other, first, strict=True))


async def test_a_cancelled_follower_leaves_nothing_behind(story: Story) -> None:
    lease = await story.claimed()
    tasks_before = asyncio.all_tasks()
    for _ in range(100):
        log = asyncio.create_task(collect(story.engine.read(lease.run_id, live=True)))
        feed = asyncio.create_task(next_batch(story.engine.feed(ANN, None, live=True)))
        for _ in range(3):
            await asyncio.sleep(0)
        for task in (log, feed):
            task.cancel()
        await asyncio.wait([log, feed])
    assert asyncio.all_tasks() == tasks_before
    assert waiting(story, lease.run_id) == 0


def waiting(story: Story, run_id: str) -> int:
    """Followers that the log of a run still knows."""
    engine = story.engine
    logs = getattr(engine, "_logs", None) or getattr(engine, "_live", {})
    return len(logs[run_id].tail._futures)


# trim and delete


async def test_what_ended_long_ago_is_trimmed_and_told(story: Story) -> None:
    run_id = await story.ended()
    open_run = await story.claimed()
    assert await story.engine.trim(older_than=3600) == 0
    assert await story.engine.trim(older_than=-1) == 1
    head = await story.engine.head(run_id)
    assert (head.state, head.offset, head.first) == ("completed", 5, 6)
    with pytest.raises(PositionGone) as gone:
        await story.texts(run_id, 2)
    assert gone.value.extra["first_available"] == str(Position(head.run.epoch, 5))
    assert await story.texts(run_id, 5) == []
    assert len(await story.texts(open_run.run_id)) == 1
    assert await story.engine.trim(older_than=-1) == 0


async def test_the_longest_ended_are_trimmed_until_the_rest_fits(story: Story) -> None:
    runs = [await story.ended(deltas=10) for _ in range(4)]
    size = sum(map(len, await story.texts(runs[0])))
    assert await story.engine.trim(max_bytes=5 * size) == 0
    assert await story.engine.trim(max_bytes=2 * size + size // 2) == 2
    firsts = [(await story.engine.head(run_id)).first for run_id in runs]
    assert firsts == [13, 13, 1, 1]


async def test_the_events_of_open_runs_count_but_stay(story: Story) -> None:
    ended = await story.ended()
    lease = await story.claimed()
    await story.engine.append(lease.run_id, 1, [delta("x" * 10_000)])
    assert await story.engine.trim(max_bytes=5_000) == 1
    assert (await story.engine.head(ended)).first == 6
    assert len(await story.texts(lease.run_id)) == 2


@pytest.mark.parametrize("how", ["trim", "delete"])
async def test_a_reader_is_told_when_its_run_goes_away_meanwhile(story: Story, how: str) -> None:
    lease = await story.claimed()
    for _ in range(100):  # more than an engine reads at a time
        await story.engine.append(lease.run_id, 1, [delta("x" * 2000)])
    await story.engine.append(lease.run_id, 1, [completed()])
    reader = story.engine.read(lease.run_id, 0, live=True)
    got = lines([await anext(reader)])
    await (story.engine.trim(older_than=-1) if how == "trim" else story.engine.delete(lease.run_id))
    if len(got) < 102:
        with pytest.raises((PositionGone, NotFound)):
            async for _ in reader:
                pass
    with pytest.raises(PositionGone if how == "trim" else NotFound):
        await story.texts(lease.run_id, 3)


async def test_an_open_run_is_not_deleted(story: Story) -> None:
    lease = await story.claimed()
    with pytest.raises(RunActive):
        await story.engine.delete(lease.run_id)
    assert len(await story.texts(lease.run_id)) == 1


async def test_a_deleted_run_is_unknown(story: Story) -> None:
    run_id, other = await story.ended(), await story.ended()
    await story.engine.delete(run_id)
    with pytest.raises(NotFound):
        await story.engine.head(run_id)
    with pytest.raises(NotFound):
        await story.engine.delete(run_id)
    assert [head.run.id for head in await story.engine.list(ANN, limit=10)] == [other]
    assert len(await story.texts(other)) == 5


# list


async def test_list_is_newest_first_in_pages(story: Story) -> None:
    runs = [(await story.queued()).id for _ in range(7)]
    newest_first, before = [], None
    while page := await story.engine.list(ANN, limit=3, before=before):
        assert len(page) <= 3
        newest_first += [head.run.id for head in page]
        before = newest_first[-1]
    assert newest_first == runs[::-1]


async def test_list_filters_by_state_as_it_is_now(story: Story) -> None:
    ended = await story.ended()
    running = await story.claimed()
    released = await story.claimed()
    await story.engine.append(running.run_id, 1, [delta("a")])
    await story.engine.release(released)
    cancelled = await story.queued()
    await story.engine.request_cancel(cancelled.id, "ann")
    states = {
        state: [head.run.id for head in await story.engine.list(ANN, limit=10, state=state)]
        for state in ("queued", "running", "completed", "cancelled", "failed")
    }
    assert states == {
        "queued": [released.run_id],
        "running": [running.run_id],
        "completed": [ended],
        "cancelled": [cancelled.id],
        "failed": [],
    }
    assert [head.offset for head in await story.engine.list(ANN, limit=10, state="running")] == [2]


async def test_list_shows_no_run_of_another_owner(story: Story) -> None:
    mine, foreign = await story.queued(ANN), await story.queued(BOB)
    assert [head.run.id for head in await story.engine.list(ANN, limit=10)] == [mine.id]
    for before in (foreign.id, "nobody"):
        with pytest.raises(NotFound):
            await story.engine.list(ANN, limit=10, before=before)


# cancel


async def test_a_queued_run_is_closed_at_once(story: Story) -> None:
    run = await story.queued()
    following = asyncio.create_task(collect(story.engine.read(run.id, live=True)))
    assert await story.engine.request_cancel(run.id, "ann") == "requested"
    head = await story.engine.head(run.id)
    assert (head.state, head.offset, head.cancel_by) == ("cancelled", 2, "ann")
    [block] = [block async for blocks in story.engine.read(run.id, 1, live=True) for block in blocks]
    [event] = block.events
    assert isinstance(event, RunCancelled)
    assert (event.reason, event.by) == ("requested", "ann")
    assert len(await following) == 2
    claim = asyncio.create_task(story.engine.claim("w"))
    other = await story.queued()
    assert (await claim).run_id == other.id


async def test_a_run_that_had_a_worker_can_be_left_to_the_next_one(story: Story) -> None:
    lease = await story.claimed()
    await story.engine.release(lease)
    assert await story.engine.request_cancel(lease.run_id, "ann", at_once=False) == "requested"
    again = await story.engine.claim("next")
    head = await story.engine.head(again.run_id)
    assert (again.run_id, head.state, head.cancel_by) == (lease.run_id, "running", "ann")
    never_had = await story.queued()
    await story.engine.request_cancel(never_had.id, "ann", at_once=False)
    assert (await story.engine.head(never_had.id)).state == "cancelled"


async def test_a_run_that_is_made_again_stays_its_worker_s(story: Story) -> None:
    run = story.run()
    await story.engine.create(run, started())
    lease = await story.engine.claim("w")
    waiting = asyncio.create_task(story.engine.claim("another"))
    await asyncio.sleep(0)
    assert not (await story.engine.create(run, started())).new
    await story.engine.append(lease.run_id, lease.attempt, [delta("still mine")])
    other = await story.queued()
    assert (await waiting).run_id == other.id


async def test_the_worker_of_a_running_run_is_told(story: Story) -> None:
    lease = await story.claimed(worker="w")
    told = story.engine.signals("w")
    assert await story.engine.request_cancel(lease.run_id, "ann") == "requested"
    assert await anext(told) == Signal(lease.run_id, "cancel")
    head = await story.engine.head(lease.run_id)
    assert (head.state, head.offset, head.cancel_by) == ("running", 1, "ann")
    assert await story.engine.request_cancel(lease.run_id, "bob") == "already"
    assert (await story.engine.head(lease.run_id)).cancel_by == "ann"
    await story.engine.append(lease.run_id, 1, [RunCancelled(reason="requested", by="ann")])
    assert await story.engine.request_cancel(lease.run_id, "ann") == "closed"


async def test_the_first_answer_to_a_request_counts(story: Story) -> None:
    lease = await story.claimed(worker="w")
    told = story.engine.signals("w")
    assert await story.engine.find_input(lease.run_id, "r") is None
    first = Input("r", {"approved": True}, "ann")
    assert await story.engine.put_input(lease.run_id, first) == first
    assert await anext(told) == Signal(lease.run_id, "input")
    assert await story.engine.put_input(lease.run_id, Input("r", {"approved": False}, "timeout")) == first
    other = Input("s", ["any", {"json": None}], "bob")
    assert await story.engine.put_input(lease.run_id, other) == other
    assert await story.engine.find_input(lease.run_id, "r") == first
    assert await story.engine.find_input(lease.run_id, "s") == other


async def test_an_answer_waits_for_the_next_worker(story: Story) -> None:
    run = await story.queued()
    answer = Input("r", 1, "ann")
    await story.engine.put_input(run.id, answer)
    await story.engine.claim("w")
    assert await story.engine.find_input(run.id, "r") == answer


async def test_an_ended_run_takes_no_answer(story: Story) -> None:
    run_id = await story.ended()
    with pytest.raises(LogClosed):
        await story.engine.put_input(run_id, Input("r", 1, "ann"))
    with pytest.raises(NotFound):
        await story.engine.put_input("unknown", Input("r", 1, "ann"))
    await story.engine.delete(run_id)


async def test_a_run_is_not_made_twice(story: Story) -> None:
    """Not while it waits, nor while a worker has it, nor once it has ended, nor at the same time."""
    parent = await story.queued()
    await story.engine.claim("of the parent")
    child = msgspec.structs.replace(story.run(), id=child_id(parent.id, 1), parent_run_id=parent.id)

    def create() -> Coroutine[Any, Any, Created]:
        return story.engine.create(child, started())

    both = await asyncio.gather(create(), create())
    assert sorted(created.new for created in both) == [False, True]
    assert not (await create()).new
    lease = await story.engine.claim("w")
    claiming = asyncio.create_task(story.engine.claim("another"))
    await asyncio.sleep(0)
    again = await create()
    assert (again.new, again.head.state, again.head.attempt) == (False, "running", lease.attempt)
    await story.engine.append(child.id, lease.attempt, [RunCancelled(reason="r", by="b")])
    assert (await create()).head.state == "cancelled"
    other = await story.queued()
    assert (await claiming).run_id == other.id


async def test_children_are_listed_with_their_parent_only(story: Story) -> None:
    parent, other = await story.queued(), await story.queued()
    children = [
        msgspec.structs.replace(story.run(), id=child_id(parent.id, number), parent_run_id=parent.id)
        for number in (1, 2, 10)
    ]
    for child in children:
        await story.engine.create(child, started())
    assert [head.run.id for head in await story.engine.list(ANN, limit=10)] == [other.id, parent.id]
    ids = [head.run.id for head in await story.engine.list(ANN, limit=10, parent=parent.id)]
    assert ids == [child.id for child in reversed(children)]
    before = children[2].id
    page = await story.engine.list(ANN, limit=1, before=before, parent=parent.id)
    assert [head.run.id for head in page] == [children[1].id]
    assert await story.engine.list(ANN, limit=10, parent=other.id) == []
    assert await story.engine.list(BOB, limit=10, parent=parent.id) == []


async def test_a_run_that_ended_by_itself_is_closed(story: Story) -> None:
    assert await story.engine.request_cancel(await story.ended(), "ann") == "closed"


async def test_a_released_run_is_closed_after_all_that_its_worker_had_written(story: Story) -> None:
    lease = await story.claimed()
    writing = story.engine.append(lease.run_id, 1, [delta("a"), delta("b")])
    while not (writing.done() or getattr(story.engine, "_committing", True)):  # noqa: ASYNC110
        await asyncio.sleep(0)  # until it is being committed, so that what follows waits for the next commit
    releasing = asyncio.create_task(story.engine.release(lease))
    await asyncio.sleep(0)
    assert await story.engine.request_cancel(lease.run_id, "ann") == "requested"
    await releasing
    assert await writing == 3
    assert len(await story.texts(lease.run_id)) == 4
    assert (await story.engine.head(lease.run_id)).state == "cancelled"


# the queue


async def test_the_oldest_run_and_the_oldest_claim_go_first(story: Story) -> None:
    waiting_runs = [(await story.queued()).id for _ in range(3)]
    assert [(await story.engine.claim("w")).run_id for _ in range(3)] == waiting_runs
    claims = [asyncio.create_task(story.engine.claim(f"w{number}")) for number in range(3)]
    await asyncio.sleep(0)
    new_runs = [(await story.queued()).id for _ in range(3)]
    leases = await asyncio.gather(*claims)
    assert leases == [
        Lease(run_id=run_id, agent="chat", attempt=1, worker=f"w{at}") for at, run_id in enumerate(new_runs)
    ]


async def test_a_claim_raises_the_attempt_and_shows(story: Story) -> None:
    lease = await story.claimed()
    head = await story.engine.head(lease.run_id)
    assert (lease.attempt, head.attempt, head.state) == (1, 1, "running")


async def test_claims_go_on_waiting_in_their_order_when_a_run_was_known_already(story: Story) -> None:
    known = story.run()
    await story.engine.create(known, started(), Idempotency("k", "f"))
    await story.engine.request_cancel(known.id, "ann")
    claims = [asyncio.create_task(story.engine.claim(f"w{number}")) for number in range(3)]
    await asyncio.sleep(0)
    repeats = [story.engine.create(story.run(), started(), Idempotency("k", "f")) for _ in range(3)]
    repeats += [story.engine.create(story.run(), started(), Idempotency("k", "g"))]
    results = await asyncio.gather(*repeats, return_exceptions=True)
    assert [isinstance(result, IdempotencyMismatch) for result in results] == [False, False, False, True]
    assert not any(claim.done() for claim in claims)
    runs = [(await story.queued()).id for _ in range(3)]
    assert [(await claim).run_id for claim in claims] == runs


@pytest.mark.parametrize("turns", range(12))
async def test_a_run_is_never_lost_to_a_claimer_that_went_away(story: Story, turns: int) -> None:
    claim = asyncio.create_task(story.engine.claim("gone"))
    await asyncio.sleep(0)
    creating = asyncio.create_task(story.queued())
    for _ in range(turns):
        await asyncio.sleep(0)
    claim.cancel()
    await asyncio.wait([claim])
    run = await creating
    if claim.cancelled():
        async with asyncio.timeout(30):
            lease = await story.engine.claim("next")
    else:
        lease = claim.result()
    assert lease.run_id == run.id
    assert await story.engine.append(run.id, lease.attempt, [completed()]) == 2


async def test_a_run_is_never_lost_to_a_release_that_was_cut_short(story: Story) -> None:
    lease = await story.claimed()
    releasing = asyncio.create_task(story.engine.release(lease))
    await asyncio.sleep(0)
    releasing.cancel()
    await asyncio.wait([releasing])
    async with asyncio.timeout(30):
        assert (await story.engine.claim("next")).run_id == lease.run_id


async def test_claimers_that_went_away_leave_nothing_behind(story: Story) -> None:
    for _ in range(20):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(story.engine.claim("w"), 0)
        claim = asyncio.create_task(story.engine.claim("w"))
        await asyncio.sleep(0)
        claim.cancel()
        await asyncio.wait([claim])
    assert story.engine._dispatch._claimers == []


async def test_an_expired_lease_requeues_the_run_for_a_higher_attempt(story: Story) -> None:
    lease = await story.claimed(worker="silent")
    story.clock.expire_leases()
    async with asyncio.timeout(30):
        taken = await story.engine.claim("next")
    assert taken == Lease(run_id=lease.run_id, agent="chat", attempt=2, worker="next")
    with pytest.raises(Fenced):
        await story.engine.append(lease.run_id, 1, [delta("old")])
    assert await story.engine.renew([lease, taken]) == [lease]


async def test_a_run_whose_worker_fell_silent_is_closed_by_a_cancel(story: Story) -> None:
    lease = await story.claimed(worker="silent")
    story.clock.expire_leases()
    async with asyncio.timeout(30):
        while (await story.engine.head(lease.run_id)).state != "queued":  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    assert await story.engine.request_cancel(lease.run_id, "ann") == "requested"
    assert (await story.engine.head(lease.run_id)).state == "cancelled"


async def test_a_renewed_lease_lives_on(story: Story) -> None:
    kept, lost = await story.claimed(), await story.claimed()
    story.clock.now += story.engine.lease_seconds * 0.9
    assert await story.engine.renew([kept]) == []
    story.clock.now += story.engine.lease_seconds * 0.9
    async with asyncio.timeout(30):
        assert (await story.engine.claim("next")).run_id == lost.run_id
    assert await story.engine.renew([kept, lost]) == [lost]
    assert await story.engine.append(kept.run_id, 1, [completed()]) == 2
    assert await story.engine.renew([kept]) == [kept]


async def test_a_released_run_is_claimed_again(story: Story) -> None:
    lease = await story.claimed(worker="first")
    await story.engine.release(lease)
    assert (await story.engine.head(lease.run_id)).state == "queued"
    taken = await story.engine.claim("second")
    assert taken == Lease(run_id=lease.run_id, agent="chat", attempt=2, worker="second")
    await story.engine.release(lease)  # lost, so left alone
    assert (await story.engine.head(lease.run_id)).state == "running"
    assert await story.engine.append(lease.run_id, 2, [completed()]) == 2
    await story.engine.release(taken)
    assert (await story.engine.head(lease.run_id)).state == "completed"


# the feed


async def test_the_feed_has_all_blocks_of_the_owner_in_order(story: Story) -> None:
    first, second = await story.claimed(), await story.claimed()
    foreign = await story.claimed(BOB)
    for number in range(3):
        for lease in (first, foreign, second):
            await story.engine.append(lease.run_id, 1, [delta(number)])
    found = entries([batch async for batch in story.engine.feed(ANN, 0, live=False)])
    for lease in (first, second):
        blocks = [entry.block for entry in found if entry.run_id == lease.run_id]
        assert lines([blocks]) == await story.texts(lease.run_id)
    assert {entry.run_id for entry in found} == {first.run_id, second.run_id}


async def test_the_feed_goes_on_after_any_sequence(story: Story) -> None:
    for _ in range(3):
        await story.ended()
        await story.ended(BOB)
    whole = entries([batch async for batch in story.engine.feed(ANN, 0, live=False)])
    for at, entry in enumerate(whole):
        rest = entries([batch async for batch in story.engine.feed(ANN, entry.sequence, live=False)])
        assert [(one.sequence, one.run_id) for one in rest] == [(one.sequence, one.run_id) for one in whole[at + 1 :]]
    with pytest.raises(PositionAhead):
        await anext(story.engine.feed(ANN, whole[-1].sequence + 1000, live=False))


async def test_the_live_feed_begins_at_the_end_and_keeps_the_order_of_mixed_commits(story: Story) -> None:
    await story.ended()
    feed = story.engine.feed(ANN, None, live=True)
    first = asyncio.create_task(next_batch(feed))
    await asyncio.sleep(0)
    lease = await story.claimed()
    writing = []
    creating = []
    for number in range(20):
        writing.append(story.engine.append(lease.run_id, 1, [delta(number)]))
        creating.append(asyncio.create_task(story.queued()))
        await asyncio.sleep(0)
    await asyncio.gather(*writing, *creating)
    committed = len(entries([batch async for batch in story.engine.feed(ANN, 0, live=False)])) - 5
    found = entries([await first])
    found += await next_entries(feed, committed - len(found))
    assert len(found) == len({entry.sequence for entry in found}) == committed
    assert lines([[entry.block for entry in found if entry.run_id == lease.run_id]]) == await story.texts(lease.run_id)
    await feed.aclose()  # type: ignore[attr-defined]


async def test_a_slow_feed_reader_beyond_the_tail_misses_nothing(story: Story) -> None:
    lease = await story.claimed()
    feed = story.engine.feed(ANN, 0, live=True)
    found = [await anext(feed)]
    for number in range(1300):
        story.engine.append(lease.run_id, 1, [delta(number)])
        if number % 8 == 0:
            await story.engine.append(lease.run_id, 1, [delta("sync")])
    await story.engine.append(lease.run_id, 1, [completed()])
    seen = [block for batch in found for _, _, block in batch]
    while seen[-1].last < (await story.engine.head(lease.run_id)).offset:
        seen += [block for _, _, block in await anext(feed)]
    assert lines([seen]) == await story.texts(lease.run_id)
    await feed.aclose()  # type: ignore[attr-defined]


async def test_a_trimmed_feed_position_is_gone_and_the_next_one_is_told(story: Story) -> None:
    await story.ended()
    reader = story.engine.feed(ANN, None, live=True)
    waiting_reader = asyncio.create_task(next_batch(reader))
    await asyncio.sleep(0)
    await story.engine.trim(older_than=-1)
    with pytest.raises(PositionGone) as gone:
        await anext(story.engine.feed(ANN, 0, live=False))
    first = Position.parse(gone.value.extra["first_available"])
    assert first.epoch == story.engine.feed_epoch
    run = await story.queued()
    rest = entries([batch async for batch in story.engine.feed(ANN, first.offset, live=False)])
    assert [entry.run_id for entry in rest] == [run.id]
    assert [entry.run_id for entry in await waiting_reader] == [run.id]
    await reader.aclose()  # type: ignore[attr-defined]


async def test_a_slow_feed_reader_is_told_when_what_it_lacks_is_trimmed(story: Story) -> None:
    lease = await story.claimed()
    feed = story.engine.feed(ANN, 0, live=True)
    await anext(feed)
    for number in range(1200):
        await story.engine.append(lease.run_id, 1, [delta(number)])
    await story.engine.append(lease.run_id, 1, [completed()])
    await story.engine.trim(older_than=-1)
    with pytest.raises(PositionGone):
        await _read_on(feed)


async def _read_on(feed: AsyncIterator[Sequence[FeedEntry]]) -> None:
    while True:
        await anext(feed)
