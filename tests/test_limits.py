"""PROMISE row 40: the 61st request of a minute, the 101st stream, and what the headers say about both."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import TooManyRequests, TooManyStreams
from headrace.identity import LOCAL, Limits, Principal
from headrace.limits import Limiter, Rate


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def asker(subject: str = "ada", *, requests: int | None = None, streams: int | None = None) -> Principal:
    return Principal(subject=subject, limits=Limits(requests_per_minute=requests, streams=streams))


def headers(limiter: Limiter, principal: Principal) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in limiter.headers(principal)}


def test_row_40_the_61st_request_of_a_minute_is_refused() -> None:
    clock = Clock()
    limiter = Limiter(clock=clock)
    for _ in range(60):
        limiter.request(asker(requests=60))
        clock.now += 0.5
    with pytest.raises(TooManyRequests) as refused:
        limiter.request(asker(requests=60))
    assert refused.value.retry_after == 30
    clock.now += 30
    limiter.request(asker(requests=60))
    with pytest.raises(TooManyRequests):
        limiter.request(asker(requests=60))


def test_a_refused_request_is_not_counted() -> None:
    clock = Clock()
    limiter = Limiter(clock=clock)
    limiter.request(asker(requests=1))
    for _ in range(100):
        with pytest.raises(TooManyRequests):
            limiter.request(asker(requests=1))
        clock.now += 0.5
    clock.now += 10
    limiter.request(asker(requests=1))


def test_owners_do_not_share_but_credentials_of_one_owner_do() -> None:
    limiter = Limiter(clock=Clock())
    ada = asker(requests=1)
    limiter.request(ada)
    limiter.request(asker("bob", requests=1))
    limiter.request(Principal(subject="ada", tenant="other", limits=ada.limits))
    with pytest.raises(TooManyRequests):
        limiter.request(Principal(subject="ada", credential_id="another", limits=ada.limits))


def test_a_limit_of_zero_refuses_all_with_a_time_to_wait() -> None:
    limiter = Limiter(clock=Clock())
    with pytest.raises(TooManyRequests) as refused:
        limiter.request(asker(requests=0))
    assert refused.value.retry_after == 60
    with pytest.raises(TooManyStreams):
        limiter.stream(asker(streams=0))


@given(st.integers(1, 5), st.lists(st.floats(0, 40), max_size=60))
def test_never_more_than_the_limit_in_any_window(limit: int, gaps: list[float]) -> None:
    clock = Clock()
    rate = Rate(clock=clock)
    taken: list[float] = []
    for gap in gaps:
        clock.now += gap
        wait = rate.take("key", limit)
        in_window = [at for at in taken if at + 60 > clock.now]
        if wait:
            assert len(in_window) == limit
            assert wait == pytest.approx(in_window[0] + 60 - clock.now)
        else:
            assert len(in_window) < limit
            taken.append(clock.now)


def test_idle_callers_are_forgotten() -> None:
    clock = Clock()
    rate = Rate(clock=clock)
    for number in range(1_000):
        rate.take(number, 10)
    assert len(rate) == 1_000
    clock.now += 30
    rate.take(0, 10)
    clock.now += 30
    assert rate.usage(1) == (0, 0)
    rate.take("new", 10)
    assert len(rate) == 2
    clock.now += 60
    assert rate.usage("new") == (0, 0)
    assert len(rate) == 0


def test_asking_or_being_refused_leaves_nothing_behind() -> None:
    rate = Rate(clock=Clock())
    rate.usage("a")
    rate.take("b", 0)
    assert len(rate) == 0


def test_memory_is_bounded_whoever_calls() -> None:
    rate = Rate(capacity=100, clock=Clock())
    for number in range(1_000):
        rate.take(number, 1)
    assert len(rate) == 100
    assert all(rate.take(number, 1) for number in range(900, 1_000))
    assert rate.take(950, 2) == 0
    assert len(rate) == 100
    assert rate.take(0, 1) == 0


def test_row_40_the_101st_stream_is_refused_until_one_closes() -> None:
    limiter = Limiter()
    slots = [limiter.stream(asker(streams=100)) for _ in range(100)]
    with pytest.raises(TooManyStreams) as refused:
        limiter.stream(asker(streams=100))
    assert refused.value.retry_after == 5
    slots.pop().release()
    with limiter.stream(asker(streams=100)), pytest.raises(TooManyStreams):
        limiter.stream(asker(streams=100))
    limiter.stream(asker(streams=100)).release()


def test_a_slot_is_released_once() -> None:
    limiter = Limiter()
    first, second = limiter.stream(asker(streams=2)), limiter.stream(asker(streams=2))
    first.release()
    first.release()
    with first:
        pass
    limiter.stream(asker(streams=2)).release()
    third = limiter.stream(asker(streams=2))
    with pytest.raises(TooManyStreams):
        limiter.stream(asker(streams=2))
    second.release()
    third.release()


def test_a_slot_is_released_by_an_error_and_by_being_dropped() -> None:
    limiter = Limiter()
    with pytest.raises(ZeroDivisionError), limiter.stream(asker(streams=1)):
        raise ZeroDivisionError
    slot = limiter.stream(asker(streams=1))
    with pytest.raises(TooManyStreams):
        limiter.stream(asker(streams=1))
    del slot
    limiter.stream(asker(streams=1)).release()


def test_streams_leave_nothing_behind() -> None:
    limiter = Limiter()
    slots = [limiter.stream(asker(f"user {number}", streams=3)) for number in range(30)] * 2
    random.shuffle(slots)
    for slot in slots:
        slot.release()
    assert limiter._streams == {}


def test_without_limits_nothing_is_counted_and_nothing_said() -> None:
    limiter = Limiter()
    for _ in range(1_000):
        limiter.request(LOCAL)
    with limiter.stream(LOCAL):
        assert limiter.headers(LOCAL) == []


def test_headers_follow_the_draft() -> None:
    clock = Clock()
    limiter = Limiter(clock=clock)
    principal = asker(requests=60, streams=100)
    assert headers(limiter, principal) == {
        "ratelimit-policy": '"requests";q=60;w=60, "streams";q=100;qu="concurrent-requests"',
        "ratelimit": '"requests";r=60;t=0, "streams";r=100',
    }
    limiter.request(principal)
    clock.now += 10.5
    limiter.request(principal)
    with limiter.stream(principal):
        assert headers(limiter, principal)["ratelimit"] == '"requests";r=58;t=50, "streams";r=99'
    assert headers(limiter, asker(requests=60)) == {
        "ratelimit-policy": '"requests";q=60;w=60',
        "ratelimit": '"requests";r=58;t=50',
    }


def test_headers_agree_with_retry_after() -> None:
    clock = Clock()
    limiter = Limiter(clock=clock)
    principal = asker(requests=1)
    limiter.request(principal)
    clock.now += 17.25
    with pytest.raises(TooManyRequests) as refused:
        limiter.request(principal)
    assert refused.value.retry_after == 42.75
    assert headers(limiter, principal)["ratelimit"] == '"requests";r=0;t=43'


def test_a_lowered_limit_shows_no_negative_rest() -> None:
    limiter = Limiter(clock=Clock())
    for _ in range(5):
        limiter.request(asker(requests=5))
    slots = [limiter.stream(asker(streams=2)) for _ in range(2)]
    assert headers(limiter, asker(requests=3, streams=1))["ratelimit"] == '"requests";r=0;t=60, "streams";r=0'
    for slot in slots:
        slot.release()
