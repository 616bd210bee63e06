"""A TCP proxy that cuts what a server says: after so many bytes, by FIN, by RST, or by saying nothing more."""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Fault:
    after: int
    """Bytes of the server that are passed on, over one connection."""
    how: Literal["fin", "rst", "stall"] = "rst"
    piece: int = 65_536
    """Most bytes of one write."""
    turns: int = 0
    """Of the event loop, from the last byte to the cut: time for the client to see it."""


class FaultProxy:
    """`plan` says for each connection what happens to it; `None` leaves it alone."""

    def __init__(self, port: int, plan: Callable[[], Fault | None]) -> None:
        self.cuts = 0
        self._port = port
        self._plan = plan
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "FaultProxy":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        asking = asyncio.create_task(_pass_on(reader, up_writer))
        try:
            with suppress(OSError):
                await self._answer(up_reader, writer, self._plan())
        finally:
            asking.cancel()
            up_writer.close()
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault | None) -> None:
        left = fault.after if fault else None
        while data := await reader.read(65_536):
            piece = fault.piece if fault else len(data)
            for start in range(0, len(data if left is None else data[:left]), piece):
                writer.write(data[start : start + piece if left is None else min(start + piece, left)])
                await writer.drain()
            if left is not None and left <= len(data):
                assert fault is not None
                return await self._cut(writer, fault)
            left = None if left is None else left - len(data)
        return None

    async def _cut(self, writer: asyncio.StreamWriter, fault: Fault) -> None:
        self.cuts += 1
        for _ in range(fault.turns):
            await asyncio.sleep(0)
        if fault.how == "stall":
            await asyncio.get_running_loop().create_future()
        if fault.how == "rst":
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
