"""Binds the port, serves the app, and ends within seconds of a signal, whatever clients and the app do."""

import asyncio
import errno
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate

from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope
from uvicorn.config import Config

from headrace.errors import ConfigurationError
from headrace.server.listener.http_connection import HttpConnection
from headrace.server.listener.lifespan import Lifespan
from headrace.server.listener.room import Deadlines, Room
from headrace.server.listener.ws_connection import MAX_MESSAGE, WebSocketConnection

BACKLOG = 4096
UNSENT = 65_536
"""Bytes that the kernel takes for a reader beyond what is on its way. The default lets a reader that has stopped look
alive for 4 MB, which is half an hour of tokens."""
FORCED = 1.5
"""Seconds for tasks to end once they are cancelled, and for sockets to close."""
CLOSING = 2.0
"""Seconds for the app to close what it has opened."""
LAST_RESORT = 0.5

_log = logging.getLogger(__name__)


class Listener:
    """One HTTP/1.1 and WebSocket server for an ASGI app, on POSIX systems.

    The first SIGTERM or SIGINT begins the end: `drain` is called, idle connections are closed, and open responses have
    `grace` seconds to end by themselves; meanwhile new requests still reach the app, so that it can answer 503. Then
    sockets are closed (a WebSocket with 1012), tasks are cancelled and the app's lifespan is ended. The exit code is 0
    after at most `grace` + 4 s, even if the app ignores it all. A second signal ends the process at once.
    """

    def __init__(
        self,
        app: ASGI3Application,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        deadlines: Deadlines | None = None,
        drain: Callable[[], Awaitable[None]] | None = None,
        grace: float = 5.0,
    ) -> None:
        self.started = asyncio.Event()
        self.ports: tuple[int, ...] = ()
        """Where it listens, once `started`; the system chose them where `port` is 0."""
        self._host = host
        self._port = port
        self._drain = drain
        self._grace = grace
        self._stopping = asyncio.Event()
        self._room = Room(deadlines or Deadlines())
        self._lifespan = Lifespan(app)
        self._config = _config(_until_cancelled(app), self._room.deadlines)

    def run(self) -> None:
        """`serve` on an event loop of its own (uvloop). Raises `ConfigurationError` and what the app's start raises."""
        with asyncio.Runner(loop_factory=self._config.get_loop_factory()) as runner:
            runner.run(self.serve())

    def stop(self) -> None:
        """Begin the end, as the first signal does."""
        self._stopping.set()

    async def serve(self) -> None:
        """Serve until `stop` or a signal. Once per instance. Raises as `run` does."""
        signals = self._catch_signals()
        try:
            _raise_file_limit()
            sockets = _bind(self._host, self._port, self._room.deadlines)
            try:
                if await self._start():
                    await self._serve(sockets)
            finally:
                for each in sockets:
                    each.close()
                await self._end()
        finally:
            for number in signals:
                asyncio.get_running_loop().remove_signal_handler(number)

    # --- the start ---------------------------------------------------------------------------------------------------

    async def _start(self) -> bool:
        """Whether the app is ready; not so where the end was asked for meanwhile."""
        start = asyncio.create_task(self._lifespan.start())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({start, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if start.done():
            start.result()
            return True
        start.cancel()
        await self._lifespan.abandon(CLOSING)
        return False

    async def _serve(self, sockets: list[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        self._tell_time(loop)
        with _port_errors(self._host, self._port):
            servers = [await loop.create_server(self._connection, sock=each, backlog=BACKLOG) for each in sockets]
        self.ports = tuple(each.getsockname()[1] for each in sockets)
        self.started.set()
        await self._stopping.wait()
        await self._let_end()
        for server in servers:
            server.close()
        await self._make_end()
        self._clock.cancel()

    def _connection(self) -> HttpConnection:
        return HttpConnection(self._config, self._room, self._lifespan.state)

    def _tell_time(self, loop: asyncio.AbstractEventLoop) -> None:
        """Keep the Date header, which changes once per second and is written into every response."""
        self._room.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._clock = loop.call_later(1, self._tell_time, loop)

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _let_end(self) -> None:
        """Up to `grace` seconds in which what is open may end by itself."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._grace
        self._room.draining = True
        tasks = self._room.tasks
        draining = asyncio.create_task(self._call_drain())
        for connection in list(self._room.connections):
            if isinstance(connection, HttpConnection):
                connection.shutdown()
        await asyncio.wait({draining}, timeout=self._grace)
        draining.cancel()
        while tasks and (left := until - loop.time()) > 0:
            await asyncio.wait(set(tasks), timeout=left)

    async def _call_drain(self) -> None:
        if self._drain is None:
            return
        try:
            await self._drain()
        except Exception:
            _log.exception("drain failed")

    async def _make_end(self) -> None:
        """Close every socket, then cancel every task that still runs."""
        loop = asyncio.get_running_loop()
        until = loop.time() + FORCED
        await self._close_sockets(FORCED / 3)
        for task in self._room.tasks:
            task.cancel()
        while self._room.tasks and (left := until - loop.time()) > 0:
            await asyncio.wait(set(self._room.tasks), timeout=left)
        if self._room.tasks:
            _log.warning("%d requests ignore that they are cancelled", len(self._room.tasks))

    async def _close_sockets(self, patience: float) -> None:
        """WebSockets are told why, and responses that are complete may still flush; what is open is cut."""
        if not self._room.connections:
            return
        self._room.empty.clear()
        for connection in list(self._room.connections):
            if isinstance(connection, HttpConnection) and connection.answering:
                connection.abort()
            else:
                connection.shutdown()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._room.empty.wait(), patience)
        for connection in list(self._room.connections):
            connection.transport.abort()

    async def _end(self) -> None:
        try:
            await asyncio.wait_for(self._lifespan.stop(), CLOSING)
        except TimeoutError:
            _log.warning("the app did not close within %s s", CLOSING)
        except Exception:
            _log.exception("the app failed to close")

    # --- signals -----------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> tuple[signal.Signals, ...]:
        if threading.current_thread() is not threading.main_thread():
            return ()
        loop = asyncio.get_running_loop()
        caught = (signal.SIGTERM, signal.SIGINT)
        for number in caught:
            loop.add_signal_handler(number, self._on_signal, number)
        return caught

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            _exit(128 + number)
        self.stop()
        # A thread, since an app can also block the loop, or never let it finish.
        last_resort = threading.Timer(self._grace + FORCED + CLOSING + LAST_RESORT, _exit, (0,))
        last_resort.daemon = True
        last_resort.start()


def _exit(code: int) -> None:
    """End the process as it is, with only the logs flushed."""
    logging.shutdown()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)


def _until_cancelled(app: ASGI3Application) -> ASGI3Application:
    """Only the listener cancels a request, at the very end: uvicorn would log each as an error of the app."""

    async def run(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        with suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return run


def _config(app: ASGI3Application, deadlines: Deadlines) -> Config:
    return Config(
        app,
        loop="uvloop",
        http=HttpConnection,
        ws=WebSocketConnection,
        ws_max_size=MAX_MESSAGE,
        ws_ping_interval=deadlines.ping,
        ws_ping_timeout=deadlines.pong,
        ws_per_message_deflate=False,
        interface="asgi3",
        log_config=None,
        log_level="warning",  # below it are whole URLs, which may hold a ticket
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=deadlines.keep_alive,
    )


def _raise_file_limit() -> None:
    """Every stream is an open file, and the default of 1,024 is meant for programs that use `select`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS says `infinity` and takes less
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _bind(host: str, port: int, deadlines: Deadlines) -> list[socket.socket]:
    """A socket per address of the host. Raises `ConfigurationError`."""
    sockets: list[socket.socket] = []
    try:
        with _port_errors(host, port):
            found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, kind, protocol, _, address in dict.fromkeys(found):
                sockets.append(_socket(family, kind, protocol, deadlines))
                sockets[-1].bind(address)
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return sockets


def _socket(family: int, kind: int, protocol: int, deadlines: Deadlines) -> socket.socket:
    """A listening socket whose options the accepted ones inherit, at no cost per connection."""
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if sys.platform == "linux":
        # The kernel gives up a peer that acknowledges nothing, or takes nothing, while less is unsent than pauses us.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(deadlines.write * 1000))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
    return made


@contextmanager
def _port_errors(host: str, port: int) -> Iterator[None]:
    """Turns what the system says of an address into one line for the operator."""
    try:
        yield
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            why = f"HEADRACE_HOST {host!r} is not an address of this machine"
        elif error.errno == errno.EADDRINUSE:
            why = f"HEADRACE_PORT {port} on {host} is taken: stop what listens there, or set another"
        elif error.errno == errno.EACCES:
            why = f"HEADRACE_PORT {port} needs privileges: set one above 1023"
        else:
            why = (
                f"HEADRACE_PORT {port} on {host} cannot be opened ({errno.errorcode.get(error.errno or 0, 'OSError')})"
            )
        raise ConfigurationError(why + ".") from error
