"""Tickets: one use, 30 seconds, bounded."""

import pytest

from headrace.errors import AuthInvalid, TooManyRequests
from headrace.identity import Principal
from headrace.server.auth import Tickets
from headrace.server.auth.tickets import CAPACITY

ADA = Principal(subject="ada", scopes=frozenset({"runs"}))


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_row_11_a_ticket_is_redeemed_once() -> None:
    tickets = Tickets()
    ticket = tickets.issue(ADA)
    assert tickets.redeem(ticket) == ADA
    with pytest.raises(AuthInvalid):
        tickets.redeem(ticket)


def test_row_11_a_ticket_ends_after_30_seconds() -> None:
    clock = Clock()
    tickets = Tickets(clock=clock)
    early, late = tickets.issue(ADA), tickets.issue(ADA)
    clock.now += 29.9
    assert tickets.redeem(early) == ADA
    clock.now += 0.1
    with pytest.raises(AuthInvalid):
        tickets.redeem(late)


@pytest.mark.parametrize("ticket", ["", "x", "hr_" + "a" * 43, "é", "\0", "x" * 100_000])
def test_what_was_never_issued_is_refused(ticket: str) -> None:
    with pytest.raises(AuthInvalid):
        Tickets().redeem(ticket)


def test_tickets_differ_and_fit_into_a_url() -> None:
    tickets = Tickets()
    issued = [tickets.issue(ADA) for _ in range(100)]
    assert len(set(issued)) == 100
    assert all(len(ticket) == 43 and ticket.replace("-", "").replace("_", "").isalnum() for ticket in issued)


def test_memory_is_bounded_and_comes_back() -> None:
    clock = Clock()
    tickets = Tickets(clock=clock)
    first = tickets.issue(ADA)
    clock.now += 10
    for _ in range(CAPACITY - 1):
        tickets.issue(ADA)
    with pytest.raises(TooManyRequests) as refused:
        tickets.issue(ADA)
    assert refused.value.retry_after == 20
    tickets.redeem(first)
    tickets.issue(ADA)
    clock.now += 30
    tickets.issue(ADA)
    assert len(tickets) == 1
