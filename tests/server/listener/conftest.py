"""A listener on a real port, in a thread with a loop of its own, and an app that shows what it was told."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import pytest

from headrace.server.listener import Deadlines, Listener
from headrace.server.listener.listener import _config

Message = MutableMapping[str, Any]


class Probe:
    """An ASGI app with one path per behaviour. `disconnected` is set when a request was told that its client left."""

    def __init__(self) -> None:
        self.disconnected = threading.Event()
        self.sent = 0
        self.closed_with: Future[int] = Future()
        self.seen: list[str] = []
        self.buffered = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        self.seen.append(scope["path"])
        await getattr(self, scope["type"] + "_" + scope["path"].strip("/"))(scope, receive, send)

    async def http_hello(self, scope: Any, receive: Any, send: Any) -> None:
        await self._respond(send, b"hello")

    async def http_headers(self, scope: Any, receive: Any, send: Any) -> None:
        await self._body(receive)
        await self._respond(send, b"\n".join(name for name, _ in scope["headers"]))

    async def http_echo(self, scope: Any, receive: Any, send: Any) -> None:
        body = await self._body(receive)
        if body is not None:
            await self._respond(send, body)

    async def http_early(self, scope: Any, receive: Any, send: Any) -> None:
        await self._respond(send, b"too large", status=413)

    async def http_late(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        if await self._body(receive) is not None:
            await send({"type": "http.response.body", "body": b"done"})

    async def http_stream(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self._until_left(receive, self._tick(send, b"data: x\n\n", 0.02))

    async def http_flood(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self._until_left(receive, self._tick(send, b"x" * 16_384, 0))

    async def http_little(self, scope: Any, receive: Any, send: Any) -> None:
        """Less than any buffer holds, to a reader that takes none of it."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 300_000, "more_body": True})
        await self._until_left(receive, asyncio.sleep(60))

    async def websocket_echo(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            with suppress(OSError):  # the answer may come too late; the reason is the last thing to read
                await send({"type": "websocket.send", "text": message.get("text") or "bytes"})
        self.closed_with.set_result(message["code"])

    async def websocket_flood(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "x" * 16_384})
        except OSError:
            self.disconnected.set()

    async def websocket_reject(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        status = int(scope["query_string"])
        headers = [(b"content-type", b"application/problem+json"), (b"retry-after", b"7")]
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"{}"})

    async def _body(self, receive: Any) -> bytes | None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected.set()
                return None
            body += bytes(message["body"])
            if not message["more_body"]:
                break
        return body

    async def _respond(self, send: Any, body: bytes, *, status: int = 200) -> None:
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _tick(self, send: Any, block: bytes, pause: float) -> None:
        while True:
            await send({"type": "http.response.body", "body": block, "more_body": True})
            self.sent += len(block)
            await asyncio.sleep(pause)

    async def _until_left(self, receive: Any, work: Any) -> None:
        task = asyncio.ensure_future(work)
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.disconnected.set()
        finally:
            task.cancel()


class Served:
    def __init__(self, app: Any, options: dict[str, Any]) -> None:
        self.app = app
        self.listener = Listener(app, port=0, **options)
        self._loop: asyncio.AbstractEventLoop
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        assert self._up.wait(10)
        self.port = self.listener.ports[0]

    def _main(self) -> None:
        factory = _config(self.app, Deadlines()).get_loop_factory()
        with asyncio.Runner(loop_factory=factory) as runner:
            self._loop = runner.get_loop()
            runner.run(self._serve())

    async def _serve(self) -> None:
        serving = asyncio.create_task(self.listener.serve())
        await self.listener.started.wait()
        self._up.set()
        await serving

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(20)
        client.connect(("127.0.0.1", self.port))
        return client

    def call(self, function: Callable[[], Any]) -> Any:
        """Run in the loop's thread."""
        result: Future[Any] = Future()
        self._loop.call_soon_threadsafe(lambda: result.set_result(function()))
        return result.result(10)

    def connections(self) -> list[Any]:
        found: list[Any] = self.call(lambda: list(self.listener._room.connections))
        return found

    def connection(self) -> Any:
        """The only one there is, once it has been accepted."""
        while not (found := self.connections()):
            pass
        (one,) = found
        return one

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.listener.stop)
        self._thread.join(15)
        assert not self._thread.is_alive()


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    running: list[Served] = []

    def start(app: Any = None, **options: Any) -> Served:
        options.setdefault("grace", 0.1)
        running.append(Served(app or Probe(), options))
        return running[-1]

    yield start
    for each in running:
        each.stop()
