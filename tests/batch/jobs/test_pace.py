"""So many starts a second, on a clock that goes only where somebody waits for it."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batch.jobs.pace import Pace


class _Skipping(selectors.DefaultSelector):
    """Does not wait: moves the clock."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += max(timeout or 0.0, 0.0)
        return super().select(0)


class SkippingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Skipping()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def lived(story: Callable[[], Awaitable[list[float]]]) -> list[float]:
    """What the story gives, in seconds from its beginning."""

    async def main() -> list[float]:
        began = asyncio.get_running_loop().time()
        return [time - began for time in await story()]

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        return runner.run(main())


def starts(per_second: float | None, delays: Sequence[float]) -> list[float]:
    """When each start is, where one takes so long before the next is asked for."""

    async def story() -> list[float]:
        pace, times = Pace(per_second), []
        for delay in delays:
            await pace.next()
            times.append(asyncio.get_running_loop().time())
            await asyncio.sleep(delay)
        return times

    return lived(story)


@pytest.mark.parametrize(
    ("per_second", "delays", "expected"),
    [
        (4.0, [0] * 5, [0, 0.25, 0.5, 0.75, 1.0]),
        (0.5, [0] * 3, [0, 2, 4]),
        (4.0, [0.1] * 4, [0, 0.25, 0.5, 0.75]),  # what a start takes is part of the gap
        (4.0, [3, 0, 0], [0, 3, 3.25]),  # the twelve that were not started do not come in a heap
        (4.0, [0.3, 0.3, 0], [0, 0.3, 0.6]),
        (None, [0] * 4, [0, 0, 0, 0]),
        (None, [1, 1, 0], [0, 1, 2]),
    ],
)
def test_starts_are_even_and_never_in_a_heap(
    per_second: float | None, delays: list[float], expected: list[float]
) -> None:
    assert starts(per_second, delays) == pytest.approx(expected, abs=1e-6)


def test_waiting_a_little_too_long_each_time_does_not_add_up() -> None:
    """Timers are coarse: what one wait was too long, the next one is shorter."""

    async def story() -> list[float]:
        loop, pace, times = asyncio.get_running_loop(), Pace(100.0), []
        assert isinstance(loop, SkippingLoop)
        for _ in range(500):
            await pace.next()
            loop._clock.now += 0.004
            times.append(loop.time())
        return times

    assert lived(story)[-1] == pytest.approx(499 * 0.01 + 0.004, abs=0.001)


def test_who_stops_waiting_does_not_use_a_start_up() -> None:
    async def story() -> list[float]:
        loop, pace = asyncio.get_running_loop(), Pace(1.0)
        await pace.next()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pace.next(), 0.5)
        await pace.next()
        return [loop.time()]

    assert lived(story) == pytest.approx([1.0], abs=1e-6)


@given(
    per_second=st.floats(0.01, 10_000),
    delays=st.lists(st.floats(0, 5), min_size=2, max_size=40),
)
def test_two_starts_are_never_closer_than_the_rate_says(per_second: float, delays: list[float]) -> None:
    times = starts(per_second, delays)
    for earlier, later in pairwise(times):
        assert later - earlier >= 1 / per_second - 1e-6


@given(per_second=st.floats(1e-320, 1e-300) | st.just(5e-324))
def test_a_rate_of_almost_nothing_starts_one_and_waits(per_second: float) -> None:
    async def story() -> list[float]:
        pace = Pace(per_second)
        await pace.next()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pace.next(), 1e6)
        return []

    assert lived(story) == []
