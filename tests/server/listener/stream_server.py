"""A server for the tests of signals: `python stream_server.py <mode> <grace>` prints its port and streams for ever.

polite      ends its streams when it is told of the end
deaf        ignores the end, but not that it is cancelled
stubborn    ignores that as well, and does not close
slow-start  never gets ready
"""

import asyncio
import sys
from contextlib import suppress
from typing import Any

from headrace.server.listener import Listener

mode, grace = sys.argv[1], float(sys.argv[2])
ending = asyncio.Event()


async def drain() -> None:
    print("draining", flush=True)
    ending.set()


async def app(scope: Any, receive: Any, send: Any) -> None:
    await {"lifespan": lifespan, "http": stream, "websocket": echo}[scope["type"]](receive, send)


async def lifespan(receive: Any, send: Any) -> None:
    await receive()
    if mode == "slow-start":
        print("starting", flush=True)
        await asyncio.Event().wait()
    announcing = asyncio.create_task(announce())
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await announcing
    print("closing", flush=True)
    if mode == "stubborn":
        await ignore_everything()
    await send({"type": "lifespan.shutdown.complete"})


async def announce() -> None:
    await listener.started.wait()
    print(listener.ports[0], flush=True)


async def ignore_everything() -> None:
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


async def stream(receive: Any, send: Any) -> None:
    if ending.is_set():
        await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"data: open\n\n", "more_body": True})
    if mode == "stubborn":
        await ignore_everything()
    if mode == "deaf":
        await asyncio.Event().wait()
    await ending.wait()
    await send({"type": "http.response.body", "body": b"data: reconnect\n\n"})


async def echo(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


if __name__ == "__main__":
    listener = Listener(app, port=0, drain=drain, grace=grace)
    listener.run()
