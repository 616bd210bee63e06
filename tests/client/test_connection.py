"""What a network and a restart do to requests and streams."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from tests.client.fault_proxy import Fault, FaultProxy
from tests.server.serving import Serving

from headrace.client import AsyncClient, RunHandle
from headrace.errors import (
    AuthRevoked,
    ConfigurationError,
    Draining,
    HeadraceError,
    NotFound,
    StreamCut,
    UnexpectedAnswer,
    Unreachable,
)

COUNTED = "".join(f"{number:04d} " for number in range(400))
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
READY = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n{"status":"ready"}'
STARTED = b'id: aaaaaa-1\ndata: {"kind":"run.started","time":1,"agent":"a","input_digest":"x"}\n\n'
COMPLETED = b'id: aaaaaa-2\ndata: {"kind":"run.completed","time":1,"output":"done"}\n\n'


def reply(status: str, body: bytes = b"", *headers: bytes) -> bytes:
    lines = [f"HTTP/1.1 {status}".encode(), *headers, b"Content-Length: %d" % len(body), b"Connection: close"]
    return b"\r\n".join([*lines, b"", body])


def problem(status: int, code: str, *headers: bytes, more: bytes = b"") -> bytes:
    body = b'{"status":%d,"code":"%b","detail":"told"%b}' % (status, code.encode(), more)
    return reply(f"{status} X", body, b"Content-Type: application/problem+json", *headers)


async def text_of(run: RunHandle) -> str:
    return "".join([text async for text in run.text()])


async def test_300_random_cuts_lose_and_repeat_nothing(echo: Serving) -> None:
    rng = random.Random(7)

    def plan() -> Fault:
        how = rng.choices(["fin", "rst", "stall"], [10, 10, 1])[0]
        piece, turns = rng.choice([1, 100, 65_536]), rng.choice([0, 5, 5])
        return Fault(after=rng.randrange(6000), how=how, piece=piece, turns=turns)  # type: ignore[arg-type]

    async with AsyncClient(echo.url) as direct, FaultProxy(echo.port, plan) as proxy:
        run = await direct.start("count")
        assert await text_of(run) == COUNTED
        uncut = [logged async for logged in run.events()]
        async with AsyncClient(proxy.url, idle_timeout=0.5) as client:
            readers = [text_of(client.run(run.id)) for _ in range(12)]
            assert await asyncio.gather(*readers) == [COUNTED] * 12
            assert [logged async for logged in client.run(run.id).events()] == uncut
        assert proxy.cuts >= 300


async def test_a_start_whose_reply_is_lost_makes_one_run(server: Serving) -> None:
    faults = [Fault(after=0), Fault(after=40, how="fin"), None]
    proxy = FaultProxy(server.port, lambda: faults.pop(0) if faults else None)
    async with proxy, AsyncClient(proxy.url) as client:
        run = await client.start("once")
        assert await text_of(run) == "once"
        assert [info.id async for info in client.runs()] == [run.id]
    assert proxy.cuts == 2


async def test_a_delete_whose_reply_is_lost_is_done(server: Serving) -> None:
    run_id = await server.finished()
    faults: list[Fault | None] = [Fault(after=0)]
    proxy = FaultProxy(server.port, lambda: faults.pop() if faults else None)
    async with proxy, AsyncClient(proxy.url) as client:
        await client.run(run_id).delete()
        with pytest.raises(NotFound):
            await client.run(run_id).head()


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    async with AsyncClient("http://127.0.0.1:1", patience=0.05) as client:
        with pytest.raises(Unreachable) as caught:
            await client.ask("hello")
        assert caught.value.__cause__ is not None
        with pytest.raises(Unreachable):
            await client.run("run_x").result()


async def test_a_stream_that_is_always_cut_is_given_up(server: Serving) -> None:
    run_id = await server.finished()
    proxy = FaultProxy(server.port, lambda: Fault(after=20))
    async with proxy, AsyncClient(proxy.url, patience=0.3) as client:
        with pytest.raises(StreamCut):
            await client.run(run_id).result()
    assert proxy.cuts > 1


Script = Callable[..., Any]


async def test_an_end_without_a_terminal_event_is_a_cut_and_is_resumed(scripted: Script) -> None:
    server = await scripted(EVENTS + b"retry: 1\n" + STARTED + b": the server restarts\n\n", EVENTS + COMPLETED)
    async with AsyncClient(server.url) as client:
        assert [position async for position, _ in client.run("r").events()] == ["aaaaaa-1", "aaaaaa-2"]
    assert b"Last-Event-ID" not in server.requests[0]
    assert b"Last-Event-ID: aaaaaa-1\r\n" in server.requests[1]


async def test_damage_is_a_cut_too(scripted: Script) -> None:
    server = await scripted(EVENTS + STARTED + COMPLETED.replace(b'"time":1', b'"time":'), EVENTS + COMPLETED)
    async with AsyncClient(server.url) as client:
        assert (await client.run("r").result()).output == "done"
    assert b"Last-Event-ID: aaaaaa-1\r\n" in server.requests[1]


async def test_what_the_server_says_of_itself_ends_the_stream(scripted: Script) -> None:
    error = b'data: {"kind":"error","error":{"code":"auth.revoked","message":"told","status":401}}\n\n'
    server = await scripted(EVENTS + STARTED + error)
    async with AsyncClient(server.url) as client:
        with pytest.raises(AuthRevoked, match="told"):
            await client.run("r").result()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "first",
    [
        problem(503, "server.draining", b"Retry-After: 0"),
        problem(429, "limit.streams"),
        reply("502 Bad Gateway", b"<html>", b"Content-Type: text/html"),
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["draining", "busy", "proxy", "nothing", "no HTTP"],
)
async def test_what_passes_is_waited_for(scripted: Script, first: bytes) -> None:
    server = await scripted(first, EVENTS + COMPLETED)
    async with AsyncClient(server.url) as client:
        assert (await client.run("r").result()).output == "done"
    assert len(server.requests) == 2


async def test_a_server_that_asks_for_more_time_than_there_is_raises_its_error(scripted: Script) -> None:
    server = await scripted(problem(503, "server.draining", b"Retry-After: 90"))
    async with AsyncClient(server.url) as client:
        with pytest.raises(Draining) as caught:
            await client.start("hello")
        assert caught.value.retry_after == 90


@pytest.mark.parametrize(
    "answer",
    [
        reply("200 OK", b"<html>", b"Content-Type: text/html"),
        reply("302 Found", b"", b"Location: http://127.0.0.1:1/"),
        reply("404 Not Found", b"<html>"),
        reply("200 OK", b'{"id": 7}', b"Content-Type: application/json"),
        problem(409, "cursor.foreign").replace(b'"detail"', b'"dental"'),
    ],
    ids=["page", "redirect", "not found", "other JSON", "other problem"],
)
async def test_what_is_not_headrace_is_told_apart(scripted: Script, answer: bytes) -> None:
    server = await scripted(answer)
    async with AsyncClient(server.url) as client:
        for call in (client.start("hello"), client.run("r").result(), client.run("r").head()):
            with pytest.raises(UnexpectedAnswer):
                await call
    assert len(server.requests) == 3


async def test_an_error_of_a_newer_server_keeps_its_code(scripted: Script) -> None:
    server = await scripted(problem(418, "tea.pot", more=b',"self":1,"detail_level":2'))
    async with AsyncClient(server.url) as client:
        with pytest.raises(HeadraceError, match="told") as caught:
            await client.run("r").head()
    assert type(caught.value) is HeadraceError
    assert caught.value.extra == {"code": "tea.pot", "self": 1, "detail_level": 2}


async def test_the_credential_is_sent(scripted: Script) -> None:
    server = await scripted(READY)
    async with AsyncClient(server.url, token="hr_secret") as client:
        assert await client.ready()
    assert b"Authorization: Bearer hr_secret\r\n" in server.requests[0]


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://x/?a=b", "http://x:99999"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        AsyncClient(url)


@pytest.mark.parametrize("token", ["a b", "a\r\nX-Y: z", "ä"])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(ConfigurationError):
        AsyncClient("http://127.0.0.1:8000", token=token)
