"""The `Model` port over POST <base_url>/chat/completions."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import aiohttp
from yarl import URL

from headrace.errors import ConfigurationError, ModelError
from headrace.ports import ModelEvent, ModelRequest
from headrace.providers.openai.faults import (
    RETRIED,
    cause_of,
    fault_of_exception,
    fault_of_status,
    retry_after,
    without_key,
)
from headrace.providers.openai.reply import Reply
from headrace.providers.openai.wire import request_body

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 8.0
_LONGEST_ERROR_BODY = 64 * 1024
_ERROR_BODY_TIME = 5.0


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """In seconds."""

    connect: float = 10.0
    """For name lookup, TCP and TLS together."""
    first_event: float = 60.0
    """From the request to the first model event, retries included."""
    idle: float = 30.0
    """Between model events. Bytes that are none, such as pings and empty chunks, do not count."""


class OpenAIModel:
    """A model behind an OpenAI-compatible server. Any number of streams at the same time, over one connection pool.

    `base_url` is what the server's users put into their SDK, such as `https://api.openai.com/v1`. Raises
    `ConfigurationError` for a URL or key that cannot be sent.
    """

    continues = False

    def __init__(
        self,
        *,
        model: str,
        base_url: str,
        api_key: str | None = None,
        name: str | None = None,
        timeouts: Timeouts | None = None,
        max_attempts: int = 3,
    ) -> None:
        self.name = name or f"openai:{model}"
        self._model = model
        self._url = _endpoint(base_url)
        self._key = _checked_key(api_key)
        self._timeouts = timeouts or Timeouts()
        self._max_attempts = max_attempts
        # OpenAI's own models refuse `max_tokens`, everybody else's know nothing newer.
        self._limit_field = "max_completion_tokens" if self._url.host == "api.openai.com" else "max_tokens"
        self._session: aiohttp.ClientSession | None = None
        self._replies: set[Reply] = set()

    async def start(self) -> None:
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "User-Agent": "headrace"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers | {"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=None, connect=self._timeouts.connect),
        )

    async def close(self) -> None:
        """Streams that are still open end in `ModelCut`."""
        for reply in self._replies:  # a closed session does not wake who reads from it
            reply.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def stream(self, request: ModelRequest) -> AsyncIterator[Sequence[ModelEvent]]:
        body = request_body(self._model, request, limit_field=self._limit_field)
        reply, events = await self._begin(body)
        self._replies.add(reply)
        try:
            while events:
                yield events
                events = await reply.next()
            await reply.drain()
        finally:
            self._replies.discard(reply)
            reply.close()

    async def _begin(self, body: bytes) -> tuple[Reply, Sequence[ModelEvent]]:
        """The reply and its first events, after as many attempts as that takes."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._timeouts.first_event
        attempt = 1
        while True:
            try:
                return await self._attempt(body, deadline)
            except RETRIED as fault:
                pause = _pause(attempt) if fault.retry_after is None else fault.retry_after
                if attempt >= self._max_attempts or clock() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)
            attempt += 1

    async def _attempt(self, body: bytes, deadline: float) -> tuple[Reply, Sequence[ModelEvent]]:
        response = await self._open(body, deadline)
        left = deadline - asyncio.get_running_loop().time()
        reply = Reply(response, first=left, idle=self._timeouts.idle, key=self._key)
        try:
            return reply, await reply.next()
        except BaseException:
            reply.close()
            raise

    async def _open(self, body: bytes, deadline: float) -> aiohttp.ClientResponse:
        """A response with status 200; its body is still to come."""
        assert self._session is not None, "start() comes before stream()"
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._session.post(self._url, data=body, allow_redirects=False)
                if response.status == 200:
                    return response
                fault = await self._refusal(response)
        except (aiohttp.ClientError, OSError) as cause:
            fault = fault_of_exception(cause)
            fault.__cause__ = cause_of(cause, self._key)
        raise fault

    async def _refusal(self, response: aiohttp.ClientResponse) -> ModelError:
        body = await _error_body(response)
        fault = fault_of_status(response.status, body, retry_after(response.headers.get("Retry-After")))
        fault.__cause__ = without_key(f"HTTP {response.status}: {body}", self._key)
        return fault


async def _error_body(response: aiohttp.ClientResponse) -> str:
    """As much as comes soon: the status alone is enough for an error."""
    body = b""
    try:
        with suppress(Exception):
            async with asyncio.timeout(_ERROR_BODY_TIME):
                while len(body) < _LONGEST_ERROR_BODY and (chunk := await response.content.readany()):
                    body += chunk
    finally:
        response.close()
    return body.decode(errors="replace")


def _pause(attempt: int) -> float:
    """Seconds before the next attempt: doubled each time, with jitter so that many callers do not return at once."""
    longest: float = min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)


def _endpoint(base_url: str) -> URL:
    try:
        url = URL(base_url)
        usable = url.scheme in ("http", "https") and url.host and url.user is None and url.password is None
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError("The model's base URL must be http(s)://host[:port]/path, without a user or password.")
    return (url / "chat" / "completions").with_query(url.query)


def _checked_key(api_key: str | None) -> str | None:
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise ConfigurationError("The model's API key must be printable ASCII. Was it pasted with a line break?")
    return api_key or None
