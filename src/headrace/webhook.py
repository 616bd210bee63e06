"""Brings one JSON document to a URL that a user gave: signed, and again until it is taken.

Signed as the Standard Webhooks specification says (https://www.standardwebhooks.com), so that receivers need no code of
ours. Nothing a receiver says goes further than its status.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import random
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import msgspec
import structlog

from headrace.egress import Egress
from headrace.errors import ToolError

logger = structlog.get_logger("headrace.webhook")

_PREFIX = "whsec_"
_SECRET_BYTES = range(24, 65)
"""How long a secret may be."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
"""Without a full stop, which separates it from what is signed with it."""
_AGAIN = frozenset((408, 425, 429))
_LONGEST_REPLY = 64 * 1024


class Delivery(NamedTuple):
    """How it ended."""

    delivered: bool
    attempts: int
    status: int | None
    """Of the last answer; `None` where the last attempt brought none."""
    code: str | None = None
    """Of the error that the last attempt brought instead, such as `tool.url_denied`."""


class Webhooks:
    """Any number of deliveries at the same time. They are in memory only: a restart forgets those under way."""

    def __init__(
        self,
        egress: Egress,
        *,
        attempts: int = 8,
        first_delay: float = 1.0,
        longest_delay: float = 300.0,
        timeout: float = 15.0,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Seconds. The delay doubles with each attempt, less up to its half at random; a receiver that asks for more
        by Retry-After gets it up to `longest_delay`. `timeout` is for one attempt. `clock` gives epoch seconds."""
        self._egress = egress
        self._attempts = attempts
        self._first_delay = first_delay
        self._longest_delay = longest_delay
        self._timeout = timeout
        self._clock = clock
        self._sleep = sleep

    async def deliver(self, url: str, delivery_id: str, document: Any, *, secret: bytes) -> Delivery:
        """POST the document until it is answered with 2xx.

        It is tried again after a network fault, silence, 408, 425, 429 and 5xx. Any other answer, a redirect among
        them, and a URL that may not be asked end it at once. Every attempt has the same id, by which a receiver knows
        a repeat. Each receiver needs a `secret` of its own: who has it can sign. Raises `ValueError` for an id that is
        not 1 to 255 letters, digits, `_` and `-`, and for a secret that is too short or too long.
        """
        if not _ID.fullmatch(delivery_id):
            raise ValueError("The id of a delivery is 1 to 255 letters, digits, _ and -.")
        body = msgspec.json.encode(document)
        attempt = 1
        while True:
            outcome = await self._attempt(url, delivery_id, body, secret)
            if not outcome.again or attempt >= self._attempts:
                break
            await self._sleep(self._delay(attempt, outcome.retry_after))
            attempt += 1
        delivery = Delivery(outcome.delivered, attempt, outcome.status, outcome.code)
        logger.info("webhook ended", delivery_id=delivery_id, **delivery._asdict())
        return delivery

    async def _attempt(self, url: str, delivery_id: str, body: bytes, secret: bytes) -> "_Outcome":
        timestamp = int(self._clock())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(secret, delivery_id, timestamp, body),
        }
        outcome = _Outcome()
        try:
            async with self._egress.open("POST", url, headers=headers, body=body, timeout=self._timeout) as reply:
                outcome = _Outcome(reply.status, retry_after=self._retry_after(reply.headers.get("Retry-After")))
                # Some receivers take a connection that closes on them for a request that was given up.
                await reply.read(_LONGEST_REPLY)
        except ToolError as error:
            if outcome.status is None:  # else it has answered, however it went on
                return _Outcome(code=error.code, is_passing=error.retryable)
        return outcome

    def _delay(self, attempt: int, retry_after: float) -> float:
        doubled: float = min(self._first_delay * 2 ** (attempt - 1), self._longest_delay)
        jittered = doubled * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
        return max(jittered, min(retry_after, self._longest_delay))

    def _retry_after(self, header: str | None) -> float:
        """Seconds, by either form of the header; 0 where it says nothing usable."""
        text = (header or "").strip()
        if text.isascii() and text.isdigit():
            return float(text)
        with suppress(ValueError, OverflowError):
            return max(parsedate_to_datetime(text).timestamp() - self._clock(), 0.0)
        return 0.0


class _Outcome(NamedTuple):
    """Of one attempt."""

    status: int | None = None
    code: str | None = None
    is_passing: bool = False
    """Whether the error of `code` may be gone at the next attempt."""
    retry_after: float = 0.0

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status <= 299

    @property
    def again(self) -> bool:
        return self.is_passing or (self.status is not None and (self.status >= 500 or self.status in _AGAIN))


def signature(secret: bytes, delivery_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`. Raises `ValueError` for a secret that is too short or too long."""
    if len(secret) not in _SECRET_BYTES:
        raise ValueError("A webhook secret has 24 to 64 bytes.")
    digest = hmac.digest(secret, f"{delivery_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def new_secret() -> bytes:
    return secrets.token_bytes(32)


def secret_text(secret: bytes) -> str:
    """The form in which a receiver is given it."""
    return _PREFIX + base64.b64encode(secret).decode()


def secret_of(text: str) -> bytes:
    """Reads what `secret_text` writes. Raises `ValueError`, without the text."""
    try:
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not text.startswith(_PREFIX) or len(secret) not in _SECRET_BYTES:
        raise ValueError("A webhook secret is `whsec_` and 24 to 64 bytes in base64.")
    return secret
