"""An HTTP client that shares nothing with the server or with `headrace.client`: one request, one connection, and every
byte that comes is seen, also the last ones before a cut."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httptools


class Cut(ConnectionError):
    """The connection ended before the response did."""


class Response:
    def __init__(self, stream: asyncio.StreamReader, silence: float | None) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.received = 0
        """Bytes of the connection so far, headers and framing among them."""
        self._stream = stream
        self._silence = silence
        self._parser = httptools.HttpResponseParser(self)
        self._headed = False
        self._complete = False
        self._parts: list[bytes] = []

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `ConnectionError` where it is cut."""
        while True:
            parts, self._parts = self._parts, []
            for part in parts:
                yield part
            if self._complete:
                return
            await self._more()

    async def body(self) -> bytes:
        return b"".join([part async for part in self.parts()])

    async def json(self) -> Any:
        return json.loads(await self.body())

    async def head(self) -> None:
        while not self._headed:
            await self._more()
        self.status = self._parser.get_status_code()

    async def _more(self) -> None:
        try:
            async with asyncio.timeout(self._silence):
                data = await self._stream.read(65_536)
        except TimeoutError:
            raise Cut from None
        if not data:
            raise Cut
        self.received += len(data)
        self._parser.feed_data(data)

    # the parser's calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self._headed = True

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        self._complete = True


@asynccontextmanager
async def ask(
    port: int,
    method: str,
    target: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: object = None,
    receive_buffer: int | None = None,
    silence: float | None = None,
) -> AsyncIterator[Response]:
    """The response once its headers are there. Raises `ConnectionError`. With a `receive_buffer` (bytes), nothing more
    than that and a read's worth leaves the server unless the body is read. After so many seconds of `silence` the
    connection is given up as cut."""
    stream, writer = await _connect(port, receive_buffer)
    try:
        writer.write(request(method, target, headers=headers, body=body))
        response = Response(stream, silence)
        await response.head()
        yield response
    finally:
        writer.transport.abort()


def request(method: str, target: str, *, headers: Mapping[str, str] | None = None, body: object = None) -> bytes:
    """A request as bytes; `body` is sent as JSON."""
    content = b"" if body is None else json.dumps(body).encode()
    fields = {"Host": "127.0.0.1", "Content-Length": str(len(content)), **(headers or {})}
    if content:
        fields["Content-Type"] = "application/json"
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + content


async def send_and_leave(port: int, asked: bytes) -> None:
    """Send a request and go away, so that its reply is lost."""
    _, writer = await _connect(port, None)
    writer.write(asked)
    writer.close()
    await writer.wait_closed()


async def _connect(port: int, receive_buffer: int | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if receive_buffer is None:
        return await asyncio.open_connection("127.0.0.1", port)
    made = socket.socket()
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)  # before the connect: it sets the window
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=made, limit=receive_buffer)
