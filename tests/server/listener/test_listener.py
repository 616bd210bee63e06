"""The start and the end of the server, with real signals to real processes."""

import asyncio
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import ConfigurationError
from headrace.server.listener import Listener

STREAMS = 1_000
WEBSOCKETS = 50
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Server:
    def __init__(self, mode: str, grace: float) -> None:
        script = Path(__file__).with_name("stream_server.py")
        command = [sys.executable, str(script), mode, str(grace)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline().strip()
        self._clients: list[socket.socket] = []

    def open(self, request: bytes, count: int = 1) -> list[socket.socket]:
        """Clients that have got the first part of their response."""
        clients = []
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", int(self.first_line)), timeout=20)
            client.sendall(request)
            clients.append(client)
        self._clients += clients
        for client in clients:
            head = b""
            while not (b"data: open\n\n\r\n" in head or b"101 Switching" in head):
                block = client.recv(4096)
                assert block
                head += block
        return clients

    def end(self, *signals: signal.Signals) -> tuple[int, float, str, str]:
        """Exit code, seconds, and what was written."""
        started = time.monotonic()
        for number in signals:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, time.monotonic() - started, out, err

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    servers: list[Server] = []

    def make(mode: str, *, grace: float = 5) -> Server:
        servers.append(Server(mode, grace))
        return servers[-1]

    yield make
    for each in servers:
        each.close()


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def rest(client: socket.socket) -> bytes:
    received = b""
    try:
        while block := client.recv(4096):
            received += block
    except ConnectionResetError:
        pass
    return received


# --- signals (row 13) -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_without_connections_ends_at_once(start: Start, number: signal.Signals) -> None:
    code, seconds, out, err = start("polite").end(number)
    assert (code, out, err) == (0, "draining\nclosing\n", "")
    assert seconds < 4  # not the grace; in practice a tenth of a second


def test_idle_connections_do_not_hold_the_end(start: Start) -> None:
    server = start("polite", grace=20)
    with socket.create_connection(("127.0.0.1", int(server.first_line)), timeout=20) as client:
        client.sendall(b"GET / HT")
        code, seconds, _, err = server.end(signal.SIGTERM)
        assert rest(client) == b""
    assert (code, err) == (0, "")
    assert seconds < 15


@pytest.mark.usefixtures("many_files")
def test_sigterm_with_1000_open_streams_ends_each_properly(start: Start) -> None:
    server = start("polite")
    streams, sockets = server.open(GET, STREAMS), server.open(UPGRADE, WEBSOCKETS)
    code, seconds, out, err = server.end(signal.SIGTERM)
    assert (code, out, err) == (0, "draining\nclosing\n", "")
    assert seconds < 10
    assert all(rest(client).endswith(b"data: reconnect\n\n\r\n0\r\n\r\n") for client in streams)
    assert all(rest(client).endswith((1012).to_bytes(2) + b"restart") for client in sockets)


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize(("mode", "seconds_at_most"), [("deaf", 10), ("stubborn", 10)])
def test_sigterm_with_1000_streams_of_an_app_that_does_not_listen(
    start: Start, mode: str, seconds_at_most: float
) -> None:
    server = start(mode, grace=1)
    streams, sockets = server.open(GET, STREAMS), server.open(UPGRADE, WEBSOCKETS)
    code, seconds, _, err = server.end(signal.SIGTERM)
    assert code == 0
    assert seconds < seconds_at_most
    assert "Traceback" not in err
    assert not any(b"0\r\n\r\n" in rest(client) for client in streams)  # a cut stream does not look finished
    assert all(rest(client).endswith((1012).to_bytes(2) + b"restart") for client in sockets)


def test_default_grace_leaves_room_within_10_seconds(start: Start) -> None:
    server = start("stubborn")
    server.open(GET)
    code, seconds, _, _ = server.end(signal.SIGTERM)
    assert code == 0
    assert seconds < 10


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ((signal.SIGTERM, signal.SIGTERM), 143),
        ((signal.SIGTERM, signal.SIGINT), 130),
        ((signal.SIGINT, signal.SIGINT), 130),
    ],
)
def test_second_signal_ends_now(start: Start, signals: tuple[signal.Signals, signal.Signals], code: int) -> None:
    server = start("stubborn", grace=60)
    server.open(GET)
    server.process.send_signal(signals[0])
    assert server.process.stdout is not None
    assert server.process.stdout.readline() == "draining\n"
    found, seconds, _, _ = server.end(signals[1])
    assert found == code
    assert seconds < 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_start_up_ends_properly(start: Start, number: signal.Signals) -> None:
    server = start("slow-start")
    assert server.first_line == "starting"
    code, seconds, out, err = server.end(number)
    assert (code, out, err) == (0, "", "")
    assert seconds < 10


def test_requests_during_the_end_reach_the_app(start: Start) -> None:
    """Readiness is 503 at once, rather than a refused connection."""
    server = start("deaf", grace=3)
    server.open(GET)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.stdout is not None
    assert server.process.stdout.readline() == "draining\n"
    with socket.create_connection(("127.0.0.1", int(server.first_line)), timeout=20) as client:
        client.sendall(GET)
        answer = rest(client)  # and the connection is not kept
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"connection: close" in answer


# --- the start --------------------------------------------------------------------------------------------------------


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


async def test_it_says_where_it_listens_and_stops() -> None:
    listener = Listener(hello, port=0)
    serving = asyncio.create_task(listener.serve())
    await asyncio.wait_for(listener.started.wait(), 10)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.ports[0])
    writer.write(GET)
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"\r\ndate: " in head
    assert b"server:" not in head
    writer.close()
    listener.stop()
    await asyncio.wait_for(serving, 10)


async def test_port_that_is_taken_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"HEADRACE_PORT {port} on 127.0.0.1 is taken") as raised:
            await Listener(hello, port=port).serve()
    assert "\n" not in raised.value.message


async def test_host_of_another_machine_is_one_clear_line() -> None:
    with pytest.raises(ConfigurationError, match=r"HEADRACE_HOST '192\.0\.2\.1' is not an address of this machine"):
        await Listener(hello, "192.0.2.1", 0).serve()


async def test_what_the_app_raises_at_its_start_is_raised() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "a traceback"})
        raise ConfigurationError("AUTH_SECRET is too short.")

    with pytest.raises(ConfigurationError, match="AUTH_SECRET"):
        await Listener(app, port=0).serve()


async def test_app_without_a_start_is_refused() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        return

    with pytest.raises(ConfigurationError, match=r"lifespan\.startup"):
        await Listener(app, port=0).serve()


async def test_drain_that_fails_does_not_hold_the_end() -> None:
    async def drain() -> None:
        raise RuntimeError

    listener = Listener(hello, port=0, drain=drain)
    serving = asyncio.create_task(listener.serve())
    await asyncio.wait_for(listener.started.wait(), 10)
    listener.stop()
    await asyncio.wait_for(serving, 10)


async def test_as_many_files_as_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 512), before[1]))
    listener = Listener(hello, port=0)
    serving = asyncio.create_task(listener.serve())
    await asyncio.wait_for(listener.started.wait(), 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert soft == hard
    listener.stop()
    await asyncio.wait_for(serving, 10)
