"""The same without `await`. It stands in another thread than its server, as it does in another process."""

import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest
from tests.server.serving import Serving

from headrace.client import AsyncClient, Client, RunHandle, SyncRunHandle
from headrace.errors import AgentFailed, Cancelled, NotFound

T = TypeVar("T")


async def with_client(server: Serving, use: Callable[[Client], T]) -> T:
    def work() -> T:
        with Client(server.url) as client:
            return use(client)

    return await asyncio.to_thread(work)


async def test_all_of_it(server: Serving) -> None:
    def use(client: Client) -> None:
        assert client.ready()
        assert client.ask("hello") == "hello"
        assert list(client.stream("hello")) == ["hello"]
        run = client.start(input={"texts": ["a", "b"]})
        assert list(run.text()) == ["a", "b"]
        assert run.result().output == "ab"
        events = list(run.events())
        assert list(run.events(events[2].position, kinds=["run.completed"])) == events[-1:]
        assert list(client.run(run.id).events(live=False)) == events
        assert next(info.id for info in client.runs("completed")) == run.id == run.head().id
        run.delete()
        with pytest.raises(NotFound):
            run.head()
        with pytest.raises(AgentFailed):
            client.start(agent="fail").result()

    await with_client(server, use)


async def test_a_stream_can_be_left_and_its_run_cancelled(server: Serving) -> None:
    def use(client: Client) -> None:
        run = client.start(agent="stall")
        for text in run.text():
            assert text == "before"
            break
        run.cancel()
        with pytest.raises(Cancelled):
            run.result()
        assert {type(item.event).__name__ for item in run.events()} >= {"RunStarted", "RunCancelled"}

    await with_client(server, use)


async def test_close_ends_the_thread_and_what_waits_in_it(server: Serving) -> None:
    def use() -> None:
        client = Client(server.url)
        texts = client.start(agent="stall").text()
        assert next(texts) == "before"
        client.close()
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            next(texts)
        with pytest.raises(RuntimeError, match="closed"):
            client.ask("hello")
        assert "headrace-client" not in [thread.name for thread in threading.enumerate()]

    await asyncio.to_thread(use)


async def test_threads_may_share_it(server: Serving) -> None:
    def use(client: Client) -> None:
        answers: list[str] = []
        threads = [threading.Thread(target=lambda: answers.append(client.ask("hi"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == ["hi"] * 8

    await with_client(server, use)


async def test_a_script_that_forgets_to_close_it_ends(server: Serving) -> None:
    script = f"""
from headrace import Client
client = Client({server.url!r})
texts = client.start(agent="stall").text()
print(next(texts))
"""
    command = [sys.executable, "-c", script]
    result = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stdout) == (0, "before\n")


def parameters(call: Callable[..., object]) -> list[str]:
    return list(inspect.signature(call).parameters)[1:]


def test_it_has_every_call_of_the_async_one() -> None:
    for sync, original in ((Client, AsyncClient), (SyncRunHandle, RunHandle)):
        for name in vars(original):
            if not name.startswith("_"):
                assert getattr(sync, name).__doc__
                assert parameters(getattr(sync, name)) == parameters(getattr(original, name))
    assert inspect.signature(Client).parameters == inspect.signature(AsyncClient).parameters


def test_importing_the_client_loads_no_server() -> None:
    script = "import sys, headrace.client; print(sorted({'fastapi', 'uvicorn', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"
