"""Tickets for browsers, whose EventSource and WebSocket cannot send a credential in a header.

A ticket is asked for with the credential, put in the query of one request, and is worth nothing after that: what a
log, a history or a Referer keeps of it is harmless. In memory only, so it is redeemed where it was issued.
"""

import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from headrace.errors import AuthInvalid, TooManyRequests
from headrace.identity import Principal

LIFETIME = 30.0
"""Seconds."""
CAPACITY = 10_000
"""Tickets that wait to be redeemed."""


class _Issued(NamedTuple):
    principal: Principal
    ends: float


class Tickets:
    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._issued: dict[str, _Issued] = {}

    def __len__(self) -> int:
        return len(self._issued)

    def issue(self, principal: Principal) -> str:
        """A ticket for 30 seconds and one use. Raises `TooManyRequests` with `retry_after` when too many wait."""
        now = self._clock()
        self._forget_ended(now)
        if len(self._issued) >= CAPACITY:
            raise TooManyRequests(retry_after=next(iter(self._issued.values())).ends - now)
        ticket = secrets.token_urlsafe(32)
        self._issued[ticket] = _Issued(principal, now + LIFETIME)
        return ticket

    def redeem(self, ticket: str) -> Principal:
        """Whose ticket it is; it is used up. Raises `AuthInvalid`, for a second use as for any other fault."""
        issued = self._issued.pop(ticket, None)
        if issued is None or issued.ends <= self._clock():
            raise AuthInvalid
        return issued.principal

    def _forget_ended(self, now: float) -> None:
        """All live equally long, so those that end first stand first."""
        while self._issued:
            ticket, issued = next(iter(self._issued.items()))
            if issued.ends > now:
                return
            del self._issued[ticket]
