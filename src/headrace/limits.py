"""How much one principal may ask for: requests per minute and open streams.

Counted per owner, so that a second key of the same subject is no second share. Time is monotonic. Callers who have used
nothing for a window are forgotten, so memory is bounded by the traffic of one window. Not thread-safe: for one event
loop.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from math import ceil
from types import TracebackType
from typing import NamedTuple, Self

from headrace.errors import TooManyRequests, TooManyStreams
from headrace.identity import Owner, Principal

WINDOW = 60.0
"""Seconds."""
STREAM_RETRY = 5.0
"""Seconds after which to try again for a stream: when another one closes cannot be known."""

Clock = Callable[[], float]


class Usage(NamedTuple):
    """What a caller has used in the window that ends now."""

    used: int
    reset: float
    """Seconds until the oldest use leaves the window; 0 where there is none."""


class Rate:
    """Counts uses per key in a sliding window: never more than the limit in any `window` seconds.

    Holds at most `capacity` keys; beyond, the one unused for longest is forgotten.
    """

    def __init__(self, *, window: float = WINDOW, capacity: int = 100_000, clock: Clock = time.monotonic) -> None:
        self._window = window
        self._capacity = capacity
        self._clock = clock
        self._uses: OrderedDict[Hashable, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._uses)

    def take(self, key: Hashable, limit: int) -> float:
        """Count a use and give 0; or, where `limit` is reached, count nothing and give the seconds to wait."""
        now = self._clock()
        self._forget_idle(now)
        uses = self._uses.get(key) or deque()
        self._drop_old(uses, now)
        if len(uses) >= limit:
            return self._reset(uses, now) or self._window
        uses.append(now)
        self._uses[key] = uses
        self._uses.move_to_end(key)
        if len(self._uses) > self._capacity:
            self._uses.popitem(last=False)
        return 0.0

    def usage(self, key: Hashable) -> Usage:
        now = self._clock()
        self._forget_idle(now)
        uses = self._uses.get(key) or deque()
        self._drop_old(uses, now)
        return Usage(len(uses), self._reset(uses, now))

    def _reset(self, uses: deque[float], now: float) -> float:
        return uses[0] + self._window - now if uses else 0.0

    def _drop_old(self, uses: deque[float], now: float) -> None:
        while uses and uses[0] + self._window <= now:
            uses.popleft()

    def _forget_idle(self, now: float) -> None:
        """Keys stand in the order of their last use, so only the first ones need a look. Leaves no empty one."""
        while self._uses and next(iter(self._uses.values()))[-1] + self._window <= now:
            self._uses.popitem(last=False)


class StreamSlot:
    """The right to hold one stream open. A context manager; it may be released any number of times.

    A slot that is dropped without a release, as by a response whose body was never begun, releases itself.
    """

    __slots__ = ("_release",)

    def __init__(self, release: Callable[[], None] | None) -> None:
        self._release = release

    def release(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    __del__ = release


class Limiter:
    """Holds every principal to its `limits`."""

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self._requests = Rate(clock=clock)
        self._streams: dict[Owner, int] = {}

    def request(self, principal: Principal) -> None:
        """Count one request. Raises `TooManyRequests` with `retry_after`; a refused request is not counted."""
        limit = principal.limits.requests_per_minute
        if limit is None:
            return
        wait = self._requests.take(principal.owner, limit)
        if wait:
            raise TooManyRequests(retry_after=wait)

    def stream(self, principal: Principal) -> StreamSlot:
        """Take a slot for one open stream or socket. Raises `TooManyStreams` with `retry_after`."""
        limit = principal.limits.streams
        if limit is None:
            return StreamSlot(None)
        owner = principal.owner
        count = self._streams.get(owner, 0)
        if count >= limit:
            raise TooManyStreams(retry_after=STREAM_RETRY)
        self._streams[owner] = count + 1
        return StreamSlot(lambda: self._release(owner))

    def headers(self, principal: Principal) -> list[tuple[bytes, bytes]]:
        """`RateLimit-Policy` and `RateLimit` as of now, for any response to this principal; none without limits.

        As in draft-ietf-httpapi-ratelimit-headers-11. `t` is rounded up as Retry-After is, so the two agree.
        """
        policies, states = [], []
        owner, limits = principal.owner, principal.limits
        if limits.requests_per_minute is not None:
            usage = self._requests.usage(owner)
            policies.append(f'"requests";q={limits.requests_per_minute};w={WINDOW:.0f}')
            states.append(f'"requests";r={max(limits.requests_per_minute - usage.used, 0)};t={ceil(usage.reset)}')
        if limits.streams is not None:
            policies.append(f'"streams";q={limits.streams};qu="concurrent-requests"')
            states.append(f'"streams";r={max(limits.streams - self._streams.get(owner, 0), 0)}')
        if not policies:
            return []
        return [(b"ratelimit-policy", ", ".join(policies).encode()), (b"ratelimit", ", ".join(states).encode())]

    def _release(self, owner: Owner) -> None:
        count = self._streams[owner] - 1
        if count:
            self._streams[owner] = count
        else:
            del self._streams[owner]
