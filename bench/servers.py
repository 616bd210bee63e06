"""The servers that are compared, how each is started, and the fake model provider behind all of them."""

import http.client
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec

from binaries import BUILD, binary
from measure import cores, on_core

HERE = Path(__file__).parent
START_SECONDS = 30
STOP_SECONDS = 15


class Place(NamedTuple):
    """Where a server listens, where its upstream does, and the folder that it may write to."""

    port: int
    upstream: int
    data: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.upstream}/v1"


class Server(NamedTuple):
    name: str
    pid: int
    port: int


class DidNotStart(Exception):
    """A server ended, or was not ready in time; the text is the end of what it printed."""


def headrace(place: Place, engine: str, model: str | None = None) -> list[str | Path]:
    address = ["--host", "127.0.0.1", "--port", str(place.port)]
    storage: list[str | Path] = ["--engine", engine, "--data", place.data]
    options = ["--model", model or f"{place.url}#bench", "--max-runs", "2000"]
    return [sys.executable, "-m", "headrace", "serve", *address, *options, *storage]


def relay(place: Place, *options: str) -> list[str | Path]:
    ports = [str(place.port), str(place.upstream)]
    return [binary("relay"), *ports, "bench", place.data / "segment", *options]


def python(program: str, *arguments: str | Path) -> list[str | Path]:
    return [sys.executable, HERE / program, *arguments]


COMMANDS: dict[str, Callable[[Place], list[str | Path]]] = {
    "C relay": relay,
    "C relay, fsync": lambda place: relay(place, "fsync"),
    "ASGI relay, no log": lambda place: python("asgi_relay.py", str(place.port), place.url, "bench"),
    "Headrace, memory": lambda place: headrace(place, "memory"),
    "Headrace, sqlite": lambda place: headrace(place, "sqlite"),
    "by hand": lambda place: python("handwritten.py", str(place.port), place.url, "bench", place.data),
    "Headrace, echo": lambda place: headrace(place, "sqlite", "demo:echo"),
    "Headrace, echo after 1 s": lambda place: headrace(place, "sqlite", "demo:echo?first_ms=1000"),
    "raw protocol": lambda place: python("raw_fanout.py", str(place.port)),
}
RELAY, RELAY_FSYNC, ASGI, MEMORY, SQLITE, HANDWRITTEN, ECHO, SLOW_ECHO, RAW_FANOUT = COMMANDS


@contextmanager
def upstream() -> Iterator[int]:
    """The fake provider's port."""
    port = free_port()
    with on_core(cores()[1]):
        process = subprocess.Popen([binary("upstream"), str(port)])
    try:
        wait_ready(process, port, START_SECONDS)
        yield port
    finally:
        stop(process)


@contextmanager
def serving(name: str, upstream_port: int) -> Iterator[Server]:
    """A server on the core of servers, with a folder of its own on the disk of this checkout; `ECHO`, which has nobody
    to share the machine with, on all cores.

    Raises `DidNotStart`.
    """
    BUILD.mkdir(exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="data-", dir=BUILD))
    place = Place(free_port(), upstream_port, data)
    with (data / "output").open("wb") as output, nullcontext() if name == ECHO else on_core(cores()[0]):
        process = subprocess.Popen(COMMANDS[name](place), stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_ready(process, place.port, START_SECONDS, data / "output")
        yield Server(name, process.pid, place.port)
    finally:
        stop(process)
        shutil.rmtree(data)


def wait_ready(process: "subprocess.Popen[bytes]", port: int, seconds: float, output: Path | None = None) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if ask(port, "GET", "/health/ready").status == 200:
                return
        except OSError:
            time.sleep(0.05)
    lines = output.read_text(errors="replace").strip().splitlines() if output else []
    raise DidNotStart(lines[-1] if lines else "no answer")


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def ask(port: int, method: str, path: str) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return Reply(response.status, dict(response.headers), response.read())
    finally:
        connection.close()


def open_gate(port: int, speed: str) -> None:
    """Let waiting streams go; `speed` (`count=N&pace_us=P`) is for a server that has no provider behind it."""
    ask(port, "POST", f"/gate?{speed}")


def wait_open(upstream_port: int, streams: int) -> None:
    """Until this many streams are open at the provider."""
    deadline = time.monotonic() + START_SECONDS
    while (count := open_streams(upstream_port)) < streams:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{count} of {streams} streams reached the provider")
        time.sleep(0.1)


def open_streams(upstream_port: int) -> int:
    counts: dict[str, int] = msgspec.json.decode(ask(upstream_port, "GET", "/stats").body, type=dict[str, int])
    return counts["open"]
