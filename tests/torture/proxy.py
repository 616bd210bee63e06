"""A TCP proxy that does to connections what networks do: it cuts them at a byte, stalls them, slices and delays."""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Literal, Self, TypeAlias

Cut: TypeAlias = Literal["rst", "fin", "half_close_down", "half_close_up", "stall"]
"""`rst` and `fin` end both sides. `half_close_down` is an end for the client only: what the server still says is read
and dropped. `half_close_up` is one for the server only, as if the client had nothing more to ask: what the server still
says gets through. `stall`: nothing more gets through, and nothing ends."""


@dataclass(frozen=True, kw_only=True)
class Conduct:
    """What is done to the bytes that one connection brings from the server to the client."""

    cut: Cut = "fin"
    cut_at: int | None = None
    """How many bytes get through before the cut; None: there is none."""
    slice: int | None = None
    """Bytes per write."""
    delay: float = 0.0
    """Seconds before each write."""


Choose: TypeAlias = Callable[[Random], Conduct]


class FaultProxy:
    """Stands before a port of this machine. `choose` says how each connection is treated, from a random source of its
    own that `seed` and the number of the connection decide."""

    def __init__(self, target: int, choose: Choose, *, seed: object = 0) -> None:
        self.port = 0
        self.connections = 0
        """So many have been made."""
        self._target = target
        self._choose = choose
        self._seed = seed
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        conduct = self._choose(Random(f"{self._seed}/{self.connections}"))
        task = asyncio.create_task(self._connect(reader, writer, conduct))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, conduct: Conduct) -> None:
        with suppress(OSError):
            try:
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
            except OSError:
                _reset(writer)
                raise
            try:
                await _Link(reader, writer, server_reader, server_writer, conduct).run()
            finally:
                writer.close()
                server_writer.close()


class _Link:
    """One connection on both sides."""

    def __init__(
        self,
        client_reader: asyncio.StreamReader,
        client_writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
        conduct: Conduct,
    ) -> None:
        self._client_reader = client_reader
        self._client_writer = client_writer
        self._server_reader = server_reader
        self._server_writer = server_writer
        self._conduct = conduct
        self._passed = 0
        self._told_end = False
        """The server was told that the client has nothing more to say."""

    async def run(self) -> None:
        """Until either side is at its end."""
        up = asyncio.create_task(self._pass_up())
        down = asyncio.create_task(self._pass_down())
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _pass_up(self) -> None:
        with suppress(OSError):
            while data := await self._client_reader.read(65_536):
                if not self._told_end:
                    self._server_writer.write(data)
                    await self._server_writer.drain()

    async def _pass_down(self) -> None:
        cut_at = self._conduct.cut_at
        try:
            while cut_at is None or self._passed < cut_at:
                data = await self._server_reader.read(65_536 if cut_at is None else cut_at - self._passed)
                if not data:
                    return
                await self._write(data)
        except ConnectionError:
            _reset(self._client_writer)  # as the server did
            return
        await self._cut()

    async def _write(self, data: bytes) -> None:
        size = self._conduct.slice or len(data)
        for start in range(0, len(data), size):
            await asyncio.sleep(self._conduct.delay)
            self._client_writer.write(data[start : start + size])
            await self._client_writer.drain()
        self._passed += len(data)

    async def _cut(self) -> None:
        if self._conduct.cut == "rst":
            _reset(self._client_writer)
            _reset(self._server_writer)
        elif self._conduct.cut == "half_close_down":
            self._client_writer.write_eof()
            while await self._server_reader.read(65_536):
                pass
            await asyncio.Event().wait()  # until the client leaves
        elif self._conduct.cut == "half_close_up":
            self._told_end = True
            self._server_writer.write_eof()
            while data := await self._server_reader.read(65_536):
                await self._write(data)
        elif self._conduct.cut == "stall":
            await asyncio.Event().wait()  # until the client leaves


def _reset(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
