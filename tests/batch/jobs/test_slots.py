"""Slots are never more than there are, never lost, and shared fairly between owners."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batch.jobs.slots import Slots
from headrace.identity import Owner

ANN, BOB, CYD = (Owner("t", name) for name in ("ann", "bob", "cyd"))


class Holders:
    """Tasks that each want one slot, and keep it until they are told to give it back."""

    def __init__(self, total: int) -> None:
        self.slots = Slots(total)
        self.granted: list[Owner] = []
        """In the order in which slots were given."""
        self.waiting: list[tuple[Owner, asyncio.Task[None]]] = []
        self.held: list[Owner] = []

    async def want(self, *owners: Owner) -> None:
        for owner in owners:
            task = asyncio.create_task(self._hold(owner))
            self.waiting.append((owner, task))
            await settle()

    async def _hold(self, owner: Owner) -> None:
        await self.slots.acquire(owner)
        self.granted.append(owner)
        self.held.append(owner)
        self.waiting = [each for each in self.waiting if each[1] is not asyncio.current_task()]

    def release(self, owner: Owner) -> None:
        self.held.remove(owner)
        self.slots.release(owner)

    def cancel(self, owner: Owner) -> asyncio.Task[None]:
        """The waiter of this owner that has waited longest."""
        index = next(index for index, (waiter, _) in enumerate(self.waiting) if waiter == owner)
        _, task = self.waiting.pop(index)
        task.cancel()
        return task

    async def give_all_back(self) -> None:
        while self.held or self.waiting:
            for owner in list(self.held):
                self.release(owner)
            await settle()

    @property
    def counts(self) -> Counter[Owner]:
        return Counter(self.held)


async def settle() -> None:
    """Let every task go as far as it gets by itself."""
    for _ in range(6):
        await asyncio.sleep(0)


async def all_there(slots: Slots, total: int) -> bool:
    """Whether exactly `total` slots can be had at once."""
    stranger = Owner("t", "stranger")
    for _ in range(total):
        await asyncio.wait_for(slots.acquire(stranger), 5)
    one_more = asyncio.create_task(slots.acquire(stranger))
    await settle()
    waits = not one_more.done()
    one_more.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await one_more
    for _ in range(total):
        slots.release(stranger)
    return waits


async def test_free_slots_are_given_at_once_and_no_more_than_there_are() -> None:
    holders = Holders(3)
    await holders.want(ANN, ANN, ANN, ANN, ANN)
    assert holders.granted == [ANN] * 3
    holders.release(ANN)
    await settle()
    assert holders.granted == [ANN] * 4
    await holders.give_all_back()
    assert await all_there(holders.slots, 3)


async def test_a_newcomer_is_served_before_those_who_hold_many() -> None:
    holders = Holders(4)
    await holders.want(*[ANN] * 10, BOB)
    holders.release(ANN)
    await settle()
    assert holders.granted == [ANN, ANN, ANN, ANN, BOB]
    await holders.give_all_back()


async def test_whoever_held_all_gives_way_until_all_hold_the_same() -> None:
    holders = Holders(6)
    await holders.want(*[ANN] * 20, *[BOB] * 20, *[CYD] * 20)
    for _ in range(4):
        holders.release(ANN)
        await settle()
    assert holders.counts == {ANN: 2, BOB: 2, CYD: 2}
    await holders.give_all_back()


async def test_among_equals_it_goes_round() -> None:
    holders = Holders(1)
    await holders.want(CYD, ANN, ANN, ANN, BOB, BOB, CYD)
    for _ in range(6):
        holders.release(holders.held[0])
        await settle()
    assert holders.granted == [CYD, ANN, BOB, CYD, ANN, BOB, ANN]


async def test_a_waiter_that_goes_away_takes_no_slot_with_it() -> None:
    holders = Holders(1)
    await holders.want(ANN, BOB, CYD)
    cancelled = holders.cancel(BOB)
    await settle()
    assert cancelled.cancelled()
    assert BOB not in holders.slots._waiting
    holders.release(ANN)
    await settle()
    assert holders.granted == [ANN, CYD]
    await holders.give_all_back()
    assert await all_there(holders.slots, 1)


@pytest.mark.parametrize("first", ["release", "cancel"])
async def test_one_that_goes_away_in_the_moment_of_its_turn_hands_the_slot_on(first: str) -> None:
    holders = Holders(1)
    await holders.want(ANN, BOB, CYD)
    actions: dict[str, Callable[[], Any]] = {
        "release": lambda: holders.release(ANN),
        "cancel": lambda: holders.cancel(BOB),
    }
    actions.pop(first)()
    actions.popitem()[1]()  # in the same turn of the loop
    await settle()
    assert holders.granted == [ANN, CYD]
    await holders.give_all_back()
    assert await all_there(holders.slots, 1)


async def test_the_last_waiter_of_all_may_go_away_as_well() -> None:
    holders = Holders(1)
    await holders.want(ANN, BOB)
    holders.release(ANN)
    holders.cancel(BOB)
    await settle()
    assert await all_there(holders.slots, 1)


# --- whatever happens -------------------------------------------------------------------------------------------------

OWNERS = [ANN, BOB, CYD]
Step = tuple[str, int]
steps = st.lists(st.tuples(st.sampled_from(["want", "want", "release", "cancel", "settle"]), st.integers(0, 50)))


async def _live_through(total: int, happens: Sequence[Step]) -> None:
    holders = Holders(total)
    for what, number in happens:
        if what == "want":
            holders.waiting.append((OWNERS[number % 3], asyncio.create_task(holders._hold(OWNERS[number % 3]))))
        elif what == "release" and holders.held:
            holders.release(holders.held[number % len(holders.held)])
        elif what == "cancel" and holders.waiting:
            holders.cancel(holders.waiting[number % len(holders.waiting)][0])
        elif what == "settle":
            await settle()
            assert not holders.waiting or len(holders.held) == total, "a slot is free while somebody waits"
        assert len(holders.held) <= total
    await settle()
    assert len(holders.held) == min(total, len(holders.held) + len(holders.waiting))
    await holders.give_all_back()
    assert await all_there(holders.slots, total)


@given(total=st.integers(1, 4), happens=steps)
def test_never_more_than_there_are_and_none_is_ever_lost(total: int, happens: Sequence[Step]) -> None:
    asyncio.run(_live_through(total, happens))


async def _share(total: int, released: Sequence[int]) -> None:
    holders = Holders(total)
    await holders.want(*OWNERS * 30)
    for number in released:
        holders.release(holders.held[number % total])
        await settle()
        counts = [holders.counts[owner] for owner in OWNERS]
        assert max(counts) - min(counts) <= 1, counts
    await holders.give_all_back()


@given(total=st.integers(1, 7), released=st.lists(st.integers(0, 100), max_size=40))
def test_those_who_always_want_more_hold_the_same_within_one(total: int, released: Sequence[int]) -> None:
    asyncio.run(_share(total, released))


async def _arrive_late(total: int, early: int, released: Sequence[int]) -> None:
    """Each slot that is given goes to a waiter with the fewest."""
    holders = Holders(total)
    await holders.want(*[ANN] * early)
    await holders.want(*OWNERS * 20)
    for number in released:
        holders.release(holders.held[number % total])
        before = holders.counts
        waiting = {owner for owner, _ in holders.waiting}
        await settle()
        assert before[holders.granted[-1]] == min(before[owner] for owner in waiting)
    await holders.give_all_back()


@given(total=st.integers(1, 6), early=st.integers(1, 20), released=st.lists(st.integers(0, 100), max_size=30))
def test_a_slot_goes_to_who_has_the_fewest(total: int, early: int, released: Sequence[int]) -> None:
    asyncio.run(_arrive_late(total, early, released))
