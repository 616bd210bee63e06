"""A bare ASGI relay on the software that Headrace stands on, without a log: the cost of server and client in it.

python bench/asgi_relay.py PORT UPSTREAM_URL MODEL
"""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import msgspec
import uvicorn

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SSE_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache, no-transform")]


class ChatRequest(msgspec.Struct):
    message: str


class Delta(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    delta: Delta


class Chunk(msgspec.Struct):
    choices: list[Choice]


class Token(msgspec.Struct, tag_field="type", tag="token"):
    content: str


chat_request = msgspec.json.Decoder(ChatRequest)
chunk = msgspec.json.Decoder(Chunk)
encode = msgspec.json.Encoder().encode


async def read_body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def deltas(lines: AsyncIterator[list[bytes]]) -> AsyncIterator[list[str]]:
    """The texts of a chat completion stream, as many at once as one read brought."""
    async for group in lines:
        data = [line[6:] for line in group if line.startswith(b"data: {")]
        yield [choice.delta.content for each in data for choice in chunk.decode(each).choices if choice.delta.content]


async def whole_lines(content: aiohttp.StreamReader) -> AsyncIterator[list[bytes]]:
    rest = b""
    async for part in content.iter_any():
        *lines, rest = (rest + part).split(b"\n")
        yield lines


class Relay:
    """The ASGI application; its upstream session lives as long as its lifespan."""

    def __init__(self, url: str, model: str) -> None:
        self.url = f"{url}/chat/completions"
        self.model = model
        self.session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.lifespan(receive, send)
        elif scope["method"] == "POST":
            await self.chat(chat_request.decode(await read_body(receive)), send)
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

    async def lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as self.session:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def chat(self, request: ChatRequest, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        await send(body(b'id: 1\ndata: {"type":"start","message_id":"m"}\n\n'))
        offset = 1
        async for texts in self.ask(request.message):
            frames = []
            for text in texts:
                offset += 1
                frames.append(b"id: %d\ndata: %b\n\n" % (offset, encode(Token(text))))
            if frames:
                await send(body(b"".join(frames)))
        await send(body(b'id: %d\ndata: {"type":"end","message_id":"m"}\n\n' % (offset + 1)))
        await send({"type": "http.response.body", "body": b""})

    async def ask(self, message: str) -> AsyncIterator[list[str]]:
        assert self.session is not None
        question = {"model": self.model, "stream": True, "messages": [{"role": "user", "content": message}]}
        async with self.session.post(self.url, data=encode(question)) as response:
            response.raise_for_status()
            async for texts in deltas(whole_lines(response.content)):
                yield texts


def body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


if __name__ == "__main__":
    port, url, model = sys.argv[1:]
    uvicorn.run(
        Relay(url, model),
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )
