import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from headrace.providers.discovery import MAX_REPLY_BYTES, PORTS, LocalServer, discover

Replies = dict[str, Any]
Serve = Callable[[Replies], Awaitable[int]]


def models(owner: str, *names: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": owner} for name in names]}


def tags(*names: str, **more: str) -> dict[str, Any]:
    return {"models": [{"name": name, "model": name, "digest": "d37", "size": 1, **more} for name in names]}


SERVERS: dict[str, Replies] = {
    "Ollama": {"/api/version": {"version": "0.12.6"}, "/api/tags": tags("nomic-embed-text:latest", "llama3.2:3b")},
    "LM Studio": {
        "/lmstudio-greeting": {"lmstudio": True},
        "/v1/models": models("organization_owner", "text-embedding-nomic-embed-text-v1.5", "qwen/qwen3.5-9b"),
    },
    "llama.cpp": {"/health": {"status": "ok"}, "/v1/models": models("llamacpp", "tiny.gguf")},
    "vLLM": {"/version": {"version": "0.14.0"}, "/v1/models": models("vllm", "Qwen/Qwen3-8B")},
}
CHOSEN = {"Ollama": "llama3.2:3b", "LM Studio": "qwen/qwen3.5-9b", "llama.cpp": "tiny.gguf", "vLLM": "Qwen/Qwen3-8B"}
PATIENT = 10.0


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serves JSON (or what a handler gives) by path on a free port of loopback, and gives the port."""
    async with contextlib.AsyncExitStack() as running:

        async def serve(replies: Replies) -> int:
            async def answer(request: web.Request) -> web.StreamResponse:
                reply = replies.get(request.path)
                if reply is None:
                    raise web.HTTPNotFound
                return await reply(request) if callable(reply) else web.json_response(reply)

            app = web.Application()
            app.router.add_get("/{path:.*}", answer)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            running.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = runner.addresses[0][1]
            assert isinstance(port, int)
            return port

        yield serve


@pytest.mark.parametrize("product", SERVERS)
async def test_each_product_is_found_with_a_model_to_chat_with(serve: Serve, product: str) -> None:
    port = await serve(SERVERS[product])
    found = await discover(PATIENT, ports={product: port})
    assert found == LocalServer(product, f"http://127.0.0.1:{port}/v1", CHOSEN[product])


@pytest.mark.parametrize("product", SERVERS)
async def test_another_product_on_the_port_is_not_mistaken(serve: Serve, product: str) -> None:
    for other, replies in SERVERS.items():
        if other != product:
            assert await discover(PATIENT, ports={product: await serve(replies)}) is None


async def test_the_first_in_order_wins_however_slow(serve: Serve) -> None:
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.2)
        return web.json_response(SERVERS["Ollama"]["/api/version"])

    ports = {product: await serve(SERVERS[product]) for product in ("vLLM", "llama.cpp", "LM Studio")}
    ports["Ollama"] = await serve({**SERVERS["Ollama"], "/api/version": slow})
    for product in PORTS:
        found = await discover(PATIENT, ports=ports)
        assert found is not None
        assert found.product == product
        del ports[product]
    assert await discover(PATIENT, ports=ports) is None


async def test_our_own_port_is_not_asked(serve: Serve) -> None:
    asked: list[str] = []

    async def note(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"status": "ok"})

    port = await serve({**SERVERS["llama.cpp"], "/health": note})
    assert await discover(PATIENT, exclude_port=port, ports={"llama.cpp": port}) is None
    assert asked == []


async def test_nothing_listens() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    assert await discover(PATIENT, ports=dict.fromkeys(PORTS, port)) is None


def raw(body: bytes, *, status: int = 200, encoding: str = "identity") -> Callable[..., Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        headers = {"Content-Encoding": encoding}
        return web.Response(body=body, status=status, headers=headers, content_type="application/json")

    return answer


GOOD_TAGS = json.dumps(SERVERS["Ollama"]["/api/tags"]).encode()


@pytest.mark.parametrize(
    "reply",
    [
        raw(b"<html>It works!</html>"),
        raw(b""),
        raw(b"[]"),
        raw(b"null"),
        raw(b'{"models": "many"}'),
        raw(b'{"models": [{"name": 3, "digest": "x"}]}'),
        raw(b"\xff\xfe"),
        raw(b"[" * 100_000),
        raw(GOOD_TAGS, status=503),
        raw(GOOD_TAGS, status=401),
        raw(gzip.compress(GOOD_TAGS), encoding="gzip"),
        raw(GOOD_TAGS + b" " * MAX_REPLY_BYTES),
        {"models": []},
        {"error": "Unexpected endpoint or method. (GET /api/tags)"},
        tags("mxbai-embed-large"),
        tags("evil\x1b[31m", "a b", "", "x" * 300),
        tags("gpt-oss:120b-cloud", remote_host="https://ollama.com:443"),
    ],
    ids=range(17),
)
async def test_what_is_no_model_list_counts_as_nothing(serve: Serve, reply: Any) -> None:
    port = await serve({**SERVERS["Ollama"], "/api/tags": reply})
    assert await discover(PATIENT, ports={"Ollama": port}) is None


@pytest.mark.parametrize(
    ("product", "path", "reply"),
    [
        ("LM Studio", "/lmstudio-greeting", {"error": "Unexpected endpoint"}),
        ("LM Studio", "/lmstudio-greeting", {"lmstudio": False}),
        ("llama.cpp", "/health", {"status": "loading model"}),
        ("llama.cpp", "/v1/models", models("somebody", "gpt-5")),
        ("vLLM", "/v1/models", models("sglang", "x")),
        ("vLLM", "/version", {"build": 3}),
    ],
)
async def test_a_server_that_is_alike_is_not_mistaken(serve: Serve, product: str, path: str, reply: Any) -> None:
    assert await discover(PATIENT, ports={product: await serve({**SERVERS[product], path: reply})}) is None


async def test_redirects_are_not_followed(serve: Serve) -> None:
    followed: list[str] = []

    async def target(request: web.Request) -> web.Response:
        followed.append(request.path)
        return web.json_response(SERVERS["Ollama"]["/api/version"])

    async def redirect(request: web.Request) -> web.Response:
        raise web.HTTPFound(f"http://127.0.0.1:{elsewhere}/api/version")

    elsewhere = await serve({"/api/version": target})
    port = await serve({**SERVERS["Ollama"], "/api/version": redirect})
    assert await discover(PATIENT, ports={"Ollama": port}) is None
    assert followed == []


async def test_a_proxy_in_the_environment_is_not_used(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    port = await serve(SERVERS["vLLM"])
    assert await discover(PATIENT, ports={"vLLM": port}) is not None


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def speaking(talk: Talk) -> AsyncIterator[int]:
    """A server that says what `talk` says; gives its port."""
    talks: list[asyncio.Task[None]] = []

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.append(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def test_silent_and_endless_servers_take_no_longer_than_the_timeout() -> None:
    met = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.set()
        await reader.read()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with speaking(silent) as first, speaking(endless) as second:
        found = await asyncio.wait_for(discover(0.3, ports={"Ollama": first, "llama.cpp": second}), PATIENT)
    assert found is None
    assert met.is_set()


async def test_a_server_that_speaks_no_http_counts_as_nothing() -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail ready\r\n")

    async with speaking(rude) as port:
        assert await discover(PATIENT, ports=dict.fromkeys(PORTS, port)) is None
