"""The fake provider does what its scripts say, and says who is there."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest

from headrace.fake_provider import DONE, SCRIPTS, Cut, FakeProvider, Head, Pause, Send, Step, finish, text


@pytest.fixture
async def fake() -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as provider:
        yield provider


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as client:
        yield client


def ask(model: str, *, stream: bool = True, content: str = "hi") -> dict[str, object]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": content}]}


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (counters of the fake have no event)
            await asyncio.sleep(0.002)


def contents(body: str) -> list[str]:
    payloads = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for payload in payloads for choice in payload["choices"]]
    return [delta["content"] for delta in deltas if delta.get("content")]


async def test_text_in_count_and_size(fake: FakeProvider, session: aiohttp.ClientSession) -> None:
    async with session.post(f"{fake.url}/chat/completions", json=ask("text?count=3&size=8")) as response:
        assert response.content_type == "text/event-stream"
        body = await response.text()
    assert contents(body) == ["word1 ..", "word2 ..", "word3 .."]
    assert body.endswith("data: [DONE]\n\n")
    assert '"completion_tokens":3' in body


async def test_not_streamed_if_not_asked_to(fake: FakeProvider, session: aiohttp.ClientSession) -> None:
    async with session.post(
        f"{fake.url}/chat/completions", json=ask("echo", stream=False, content="größer")
    ) as response:
        assert (await response.json())["choices"][0]["message"]["content"] == "größer"
    assert fake.requests[-1]["messages"][0]["content"] == "größer"


async def test_models_lists_every_script(fake: FakeProvider, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{fake.url}/models") as response:
        assert {model["id"] for model in (await response.json())["data"]} == set(SCRIPTS)


async def test_an_unknown_model_and_a_wrong_key(session: aiohttp.ClientSession) -> None:
    async with FakeProvider(api_key="right") as fake:
        url = f"{fake.url}/chat/completions"
        async with session.post(url, json=ask("text")) as response:
            assert response.status == 401
        async with session.post(url, json=ask("nobody"), headers={"Authorization": "Bearer right"}) as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "model_not_found"


async def test_a_storm_ends(fake: FakeProvider, session: aiohttp.ClientSession) -> None:
    answers = []
    for _ in range(3):
        async with session.post(f"{fake.url}/chat/completions", json=ask("storm?retry_after=7")) as response:
            answers.append((response.status, response.headers.get("Retry-After")))
    assert answers == [(429, "7"), (429, "7"), (200, None)]


async def test_own_scripts_and_their_steps(session: aiohttp.ClientSession) -> None:
    head = Head(status=203, headers={"X-Own": "1"})
    steps: list[Step] = [head, Send(text("abc"), piece=3), Pause(0.001), Send(finish() + DONE)]
    async with FakeProvider({"own": steps}) as fake:
        for _ in range(2):
            async with session.post(f"{fake.url}/chat/completions", json=ask("own")) as response:
                assert (response.status, response.headers["X-Own"]) == (203, "1")
                assert contents(await response.text()) == ["abc"]


async def read_raw(fake: FakeProvider, model: str) -> bytes:
    """Everything up to the FIN; raises ConnectionResetError for an RST."""
    body = json.dumps(ask(model)).encode()
    host, port = fake.url.removeprefix("http://").removesuffix("/v1").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: fake\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    try:
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("reset", [False, True])
async def test_cuts(reset: bool, framed: bool) -> None:
    steps: list[Step] = [Head(framed=framed), Send(text("abc")), Cut(reset=reset)]
    async with FakeProvider({"own": steps}) as fake:
        if reset:
            with pytest.raises(ConnectionResetError):
                await read_raw(fake, "own")
        else:
            reply = await read_raw(fake, "own")
            assert (b"Transfer-Encoding: chunked" in reply) is framed
            assert text("abc") in reply
            assert not reply.endswith(b"0\r\n\r\n"), "no orderly end"
        await eventually(lambda: fake.open_connections == 0)
        assert fake.cancelled == 0, "the fake left, not the client"


@pytest.mark.parametrize("at", ["first", "middle", "finish"])
async def test_it_notices_a_client_that_leaves(fake: FakeProvider, session: aiohttp.ClientSession, at: str) -> None:
    response = await session.post(f"{fake.url}/chat/completions", json=ask(f"stall?at={at}"))
    await response.content.readany()
    assert fake.open_connections == 1
    response.close()
    await eventually(lambda: fake.open_connections == 0 and fake.cancelled == 1)


async def test_stop_ends_what_stalls_and_counts_nobody_as_gone(session: aiohttp.ClientSession) -> None:
    fake = FakeProvider()
    url = await fake.start()
    response = await session.post(f"{url}/chat/completions", json=ask("stall"))
    async with asyncio.timeout(10):
        await fake.stop()
    assert fake.cancelled == 0
    assert fake.open_connections == 0
    response.close()
