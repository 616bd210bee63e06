"""The client without `await`: the async one on an event loop in a thread of its own. Nothing is written twice."""

import asyncio
import functools
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import suppress
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from headrace.client.async_client import DEFAULT_URL, AsyncClient
from headrace.client.job_handle import JobHandle
from headrace.client.run_handle import RunHandle

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")


class _LoopThread:
    """An event loop in a thread. What is awaited there is cancelled when its caller is interrupted."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="headrace-client", daemon=True)
        thread.start()
        # Also when nobody closes it, and before the interpreter stops daemon threads in the middle of something.
        self._end = weakref.finalize(self, _end, self._loop, thread)

    def run(self, start: Callable[[], Awaitable[T]]) -> T:
        if not self._end.alive:
            raise RuntimeError("The client is closed.")
        future = asyncio.run_coroutine_threadsafe(_awaited(start), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def each(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        try:
            while (item := self.run(lambda: anext(items, None))) is not None:
                yield item
        finally:
            # After an interrupt the generator may still be at its end, and needs no second one.
            with suppress(RuntimeError):
                self.run(items.aclose)

    def close(self, inner: Callable[[], Awaitable[None]]) -> None:
        """Cancel what is awaited, close `inner`, and end the thread. Twice is as good as once."""
        if self._end.alive:
            self.run(_all_cancelled)
            self.run(self._loop.shutdown_asyncgens)
            self.run(inner)
            self._end()


async def _awaited(start: Callable[[], Awaitable[T]]) -> T:
    return await start()


async def _all_cancelled() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join()
        loop.close()


class _Face:
    """Something async, seen from outside of its loop."""

    def __init__(self, inner: object, thread: _LoopThread) -> None:
        self._inner = inner
        self._thread = thread


F = TypeVar("F", bound=_Face)


def _call(method: Callable[Concatenate[A, P], Awaitable[T]]) -> Callable[Concatenate[_Face, P], T]:
    @functools.wraps(method)
    def call(face: _Face, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return face._thread.run(lambda: method(face._inner, *args, **kwargs))  # type: ignore[arg-type]

    return call


def _each(
    method: Callable[Concatenate[A, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[_Face, P], Generator[T, None, None]]:
    @functools.wraps(method)
    def each(face: _Face, /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        return face._thread.each(method(face._inner, *args, **kwargs))  # type: ignore[arg-type]

    return each


class SyncRunHandle(_Face):
    """`RunHandle` without `await`."""

    _inner: RunHandle

    @property
    def id(self) -> str:
        return self._inner.id

    events = _each(RunHandle.events)
    text = _each(RunHandle.text)
    result = _call(RunHandle.result)
    head = _call(RunHandle.head)
    cancel = _call(RunHandle.cancel)
    delete = _call(RunHandle.delete)


class SyncJobHandle(_Face):
    """`JobHandle` without `await`."""

    _inner: JobHandle

    @property
    def id(self) -> str:
        return self._inner.id

    info = _call(JobHandle.info)
    follow = _each(JobHandle.follow)
    results = _each(JobHandle.results)
    cancel = _call(JobHandle.cancel)
    delete = _call(JobHandle.delete)

    def retry(self, *, idempotency_key: str | None = None) -> "SyncJobHandle":
        """A new job of the operations that did not succeed."""
        inner = self._thread.run(lambda: self._inner.retry(idempotency_key=idempotency_key))
        return SyncJobHandle(inner, self._thread)


H = TypeVar("H")
S = TypeVar("S", bound=_Face)


def _handle(
    method: Callable[Concatenate[A, P], Awaitable[H]], handle_type: Callable[[H, _LoopThread], S]
) -> Callable[Concatenate[_Face, P], S]:
    call = _call(method)

    @functools.wraps(method)
    def handle(face: _Face, /, *args: P.args, **kwargs: P.kwargs) -> S:
        return handle_type(call(face, *args, **kwargs), face._thread)

    return handle


class Client(_Face):
    """`AsyncClient` without `await`: the same calls, and plain iterators. Use it as `with`, or `close` it.

    It may be shared by threads.
    """

    _inner: AsyncClient

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: str | None = None,
        timeout: float = 30.0,
        idle_timeout: float = 45.0,
        patience: float = 60.0,
    ) -> None:
        """As for `AsyncClient`."""
        inner = AsyncClient(url, token=token, timeout=timeout, idle_timeout=idle_timeout, patience=patience)
        super().__init__(inner, _LoopThread())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread. Iterators that are still open end with it."""
        self._thread.close(self._inner.close)

    def run(self, run_id: str) -> SyncRunHandle:
        """The run with this id, whoever started it."""
        return SyncRunHandle(self._inner.run(run_id), self._thread)

    ready = _call(AsyncClient.ready)

    def job(self, job_id: str) -> SyncJobHandle:
        """The batch job with this id."""
        return SyncJobHandle(self._inner.job(job_id), self._thread)

    start = _handle(AsyncClient.start, SyncRunHandle)
    batch = _call(AsyncClient.batch)
    start_job = _handle(AsyncClient.start_job, SyncJobHandle)
    jobs = _each(AsyncClient.jobs)
    runs = _each(AsyncClient.runs)
    ask = _call(AsyncClient.ask)
    stream = _each(AsyncClient.stream)
    feed = _each(AsyncClient.feed)
