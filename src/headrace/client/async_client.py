"""The client."""

import secrets
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from headrace.client.answers import FeedItem, RunInfo, RunPage, feed_item
from headrace.client.connection import Connection
from headrace.client.job_handle import JobHandle, JobInfo, JobPage
from headrace.client.run_handle import RunHandle
from headrace.errors import Unreachable

DEFAULT_URL = "http://127.0.0.1:8000"


class AsyncClient:
    """A server, as seen by one caller. Use it as `async with`, or `close` it. For one event loop.

    `timeout` seconds are given to a connection and to a whole request, `idle_timeout` to a stream that says nothing
    (a server says something every 15 s). What fails is tried again, and a stream resumed, until it has failed for
    `patience` seconds in a row: then `Unreachable`, `StreamCut` or the server's own error is raised.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: str | None = None,
        timeout: float = 30.0,
        idle_timeout: float = 45.0,
        patience: float = 60.0,
    ) -> None:
        """`token` is a token or an API key. Raises `ConfigurationError` for what cannot be a URL or a token."""
        self._connection = Connection(url, token=token, timeout=timeout, idle_timeout=idle_timeout, patience=patience)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._connection.close()

    async def ready(self) -> bool:
        """Whether the server takes runs now. Asked once; raises `Unreachable` where there is no server."""
        try:
            await self._connection.request("GET", "/health/ready", dict[str, str], patience=0)
        except Unreachable as error:
            if error.__cause__ is not None:
                raise
            return False  # something answered, and says that it cannot
        return True

    async def start(
        self,
        message: str | None = None,
        *,
        input: Mapping[str, Any] | None = None,
        agent: str = "default",
        conversation_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> RunHandle:
        """A new run on `input` with `message` in it.

        Every start has a key, a random one unless you give yours, so that one whose reply is lost is repeated without
        ever making a second run.
        """
        body: dict[str, Any] = {"agent": agent, "input": dict(input or {})}
        if message is not None:
            body["input"]["message"] = message
        if conversation_id is not None:
            body["conversation_id"] = conversation_id
        headers = {"Idempotency-Key": secrets.token_hex(16) if idempotency_key is None else idempotency_key}
        info = await self._connection.request("POST", "/api/runs", RunInfo, body=body, headers=headers)
        return self.run(info.id)

    def run(self, run_id: str) -> RunHandle:
        """The run with this id, whoever started it."""
        return RunHandle(self._connection, run_id)

    async def runs(self, state: str | None = None) -> AsyncGenerator[RunInfo, None]:
        """Your runs, the newest first, read page by page as you go on."""
        query = {} if state is None else {"state": state}
        while True:
            page = await self._connection.request("GET", "/api/runs", RunPage, query=query)
            for info in page.runs:
                yield info
            if page.next is None:
                return
            query["before"] = page.next

    async def ask(self, message: str, *, agent: str = "default", conversation_id: str | None = None) -> str:
        """The whole answer. Raises as `RunHandle.result` does."""
        run = await self.start(message, agent=agent, conversation_id=conversation_id)
        return (await run.result()).output

    async def stream(
        self, message: str, *, agent: str = "default", conversation_id: str | None = None
    ) -> AsyncGenerator[str, None]:
        """The answer as it is written. Leaving it leaves the run alone; to end it, `start` and `cancel`."""
        run = await self.start(message, agent=agent, conversation_id=conversation_id)
        async with aclosing(run.text()) as texts:
            async for text in texts:
                yield text

    async def batch(self, requests: Sequence[Mapping[str, Any]], *, idempotency_key: str | None = None) -> list[Any]:
        """Several calls at once: their responses, in the same order. One that failed has an `error`, not a `body`."""
        headers = {"Idempotency-Key": secrets.token_hex(16) if idempotency_key is None else idempotency_key}
        answer = await self._connection.request(
            "POST", "/api/batch", dict[str, Any], body={"requests": requests}, headers=headers
        )
        responses: list[Any] = answer["responses"]
        return responses

    async def start_job(
        self,
        operations: Path | Iterable[Mapping[str, Any]],
        *,
        concurrency: int | None = None,
        rate: float | None = None,
        name: str | None = None,
        webhook: str | None = None,
        idempotency_key: str | None = None,
    ) -> JobHandle:
        """A batch job of the operations in a file of JSON lines, or of those given here. Like `start`, it is made once
        however often it has to be sent."""
        options = {"concurrency": concurrency, "rate": rate, "name": name, "webhook": webhook}
        query = {option: str(value) for option, value in options.items() if value is not None}
        headers = {"Idempotency-Key": secrets.token_hex(16) if idempotency_key is None else idempotency_key}
        file = operations if isinstance(operations, Path) else b"\n".join(map(msgspec.json.encode, operations))
        info = await self._connection.request("POST", "/api/batches", JobInfo, query=query, file=file, headers=headers)
        return self.job(info.id)

    def job(self, job_id: str) -> JobHandle:
        """The batch job with this id."""
        return JobHandle(self._connection, job_id)

    async def jobs(self) -> AsyncGenerator[JobInfo, None]:
        """Your batch jobs, the newest first, read page by page as you go on."""
        query: dict[str, str] = {}
        while True:
            page = await self._connection.request("GET", "/api/batches", JobPage, query=query)
            for info in page.batches:
                yield info
            if page.next is None:
                return
            query["before"] = page.next

    async def feed(
        self, after: str | None = None, *, kinds: Collection[str] | None = None
    ) -> AsyncGenerator[FeedItem, None]:
        """What happens in all your runs, for ever, from now or after a position, across cuts and restarts."""
        query = {} if kinds is None else {"kinds": ",".join(sorted(kinds))}
        async with aclosing(self._connection.follow("/api/feed", feed_item, query=query, after=after)) as items:
            async for item in items:
                yield item
