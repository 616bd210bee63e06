"""The least that a fan-out costs in Python: one frame, encoded once, written to every connection of a raw protocol.

python bench/raw_fanout.py PORT

Any GET under /api/ follows; `POST /gate?count=N&pace_us=P` starts the one run: N tokens to every follower on an
absolute schedule.
"""

import asyncio
import re
import sys
from typing import cast

import uvloop

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache, no-transform\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
GATE = re.compile(rb"POST /gate\?count=(\d+)&pace_us=(\d+) ")
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


def frame(offset: int, json: str) -> bytes:
    data = f"id: abcdef-{offset}\ndata: {json}\n\n"
    return f"{len(data):x}\r\n{data}\r\n".encode()


class Run:
    """One run and the connections that follow it."""

    def __init__(self) -> None:
        self.followers: list[asyncio.Transport] = []
        self.task: asyncio.Task[None] | None = None

    def start(self, count: int, pace: float) -> None:
        if self.task is None:
            self.task = asyncio.ensure_future(self.tell(count, pace))

    async def tell(self, count: int, pace: float) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for offset in range(2, count + 2):
            self.write(frame(offset, '{"type":"token","content":" token"}'))
            await asyncio.sleep(max(0.0, start + (offset - 1) * pace - loop.time()))
        self.write(frame(count + 2, '{"type":"end","message_id":"m"}') + b"0\r\n\r\n")

    def write(self, data: bytes) -> None:
        for follower in self.followers:
            follower.write(data)


class Connection(asyncio.Protocol):
    def __init__(self, run: Run) -> None:
        self.run = run
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET /api/"):
            self.transport.write(HEAD + frame(1, '{"type":"start","message_id":"m"}'))
            self.run.followers.append(self.transport)
            return
        if gate := GATE.match(data):
            self.run.start(int(gate[1]), int(gate[2]) / 1e6)
        self.transport.write(EMPTY)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport in self.run.followers:
            self.run.followers.remove(self.transport)


async def main(port: int) -> None:
    run = Run()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(run), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
