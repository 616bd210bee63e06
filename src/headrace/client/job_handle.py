"""One batch job of a server, as a client sees it."""

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import msgspec

from headrace.client.connection import Connection
from headrace.errors import BatchError, Cancelled, NotFound, StreamCut


class JobCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Of a job whose results were trimmed only the `total` is known."""

    total: int
    succeeded: int | None = None
    failed: int | None = None
    remaining: int | None = None


class JobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A job and how far it has got. Times are epoch seconds."""

    id: str
    name: str | None = None
    state: Literal["queued", "running", "completed", "failed", "cancelled"]
    created: float
    ended: float | None = None
    counts: JobCounts
    per_second: float
    """Of the last seconds; of all of a job that has ended."""
    seconds_left: float | None = None
    concurrency: int
    rate: float | None = None
    retry_of: str | None = None
    cancel_requested: bool = False
    webhook: dict[str, Any] | None = None


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    batches: list[JobInfo]
    next: str | None = None


class JobResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one operation came to: `body` as a single call would have been answered with, or `error` and `code`."""

    line: int
    id: str
    status: int
    body: Any = msgspec.UNSET
    error: str | None = None
    code: str | None = None
    errors: list[dict[str, Any]] | None = None
    run_id: str | None = None

    @property
    def failed(self) -> bool:
        return self.status >= 400


class JobProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the job has got."""

    total: int
    succeeded: int = 0
    failed: int = 0
    per_second: float = 0.0


class JobEnd(msgspec.Struct, frozen=True, kw_only=True):
    """All results were given, or the job was cancelled or failed for the reason `error`."""

    error: str | None = None
    code: int | None = None

    def check(self) -> None:
        """Raises why not all results were given: `Cancelled`, or `BatchError` where the job itself failed."""
        if self.error is not None:
            raise Cancelled if self.code == Cancelled.status else BatchError(self.error)


class JobNews(NamedTuple):
    """Something that a job tells, and where to go on after it."""

    position: str
    news: JobResult | JobProgress | JobEnd


class JobHandle:
    """Made by a client, without asking the server: that there is no such job shows with the first call."""

    def __init__(self, connection: Connection, job_id: str) -> None:
        self.id = job_id
        self._connection = connection
        self._path = "/api/batches/" + quote(job_id, safe="").replace(".", "%2E")

    async def info(self) -> JobInfo:
        return await self._connection.request("GET", self._path, JobInfo)

    async def follow(self, after: str | None = None) -> AsyncGenerator[JobNews, None]:
        """What the job tells after a position, each once and in order, to its end, whatever happens to the connection
        or the server. Raises as `RunHandle.events` does."""
        stream = self._connection.follow(f"{self._path}/results", _news, query={}, after=after)
        async with aclosing(stream) as items:
            async for item in items:
                yield item
                if isinstance(item.news, JobEnd):
                    return

    async def results(self) -> AsyncGenerator[JobResult, None]:
        """Every result, as it comes. Without an error they are all: raises `Cancelled`, or `BatchError` where the job
        itself failed."""
        async with aclosing(self.follow()) as items:
            async for _, news in items:
                if isinstance(news, JobResult):
                    yield news
                elif isinstance(news, JobEnd):
                    news.check()
                    return
        raise StreamCut

    async def cancel(self) -> JobInfo:
        """Start no more operations and cancel those that run. Results that there are stay."""
        return await self._connection.request("POST", f"{self._path}/cancel", JobInfo)

    async def retry(self, *, idempotency_key: str | None = None) -> "JobHandle":
        """A new job of the operations that did not succeed."""
        headers = {"Idempotency-Key": secrets.token_hex(16) if idempotency_key is None else idempotency_key}
        info = await self._connection.request("POST", f"{self._path}/retry", JobInfo, body={}, headers=headers)
        return JobHandle(self._connection, info.id)

    async def delete(self) -> None:
        """Forget the job, its results and its runs. Raises `RunActive` while it has not ended."""
        with suppress(NotFound):
            await self._connection.request("DELETE", self._path, type(None))


class _Kind(msgspec.Struct, frozen=True):
    type: str


_TYPES: dict[str, type[JobResult | JobProgress | JobEnd]] = {
    "started": JobProgress,
    "progress": JobProgress,
    "result": JobResult,
    "finished": JobEnd,
}


def _news(position: str, data: bytes) -> JobNews:
    kind = msgspec.json.decode(data, type=_Kind).type
    if kind == "error":
        told = msgspec.json.decode(data, type=dict[str, Any])
        return JobNews(position, JobEnd(error=told["message"], code=told["code"]))
    return JobNews(position, msgspec.json.decode(data, type=_TYPES[kind]))
