"""The server as a process of its own, which can be killed and started again on the same port and data."""

import asyncio
import os
import random
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 20.0
"""Seconds after which something is taken to hang."""
SERVE: Sequence[str] = ("-m", "headrace", "serve")


class ServerProcess:
    """`program` is what Python is given before the options of `headrace serve`."""

    def __init__(self, data: Path, model: str, *, program: Sequence[str] = SERVE, **environment: str) -> None:
        self.port = _free_port()
        self.up = asyncio.Event()
        """Set while it listens, as far as it was not us who ended that."""
        self._command = [sys.executable, *program, "--port", str(self.port), "--data", str(data), "--model", model]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        self._environment = {**inherited, "HEADRACE_LOG_LEVEL": "WARNING", **environment}
        self._errors = data.with_name(f"{data.name}.stderr")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def spawn(self) -> None:
        """Start it, and do not wait until it listens."""
        with self._errors.open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=asyncio.subprocess.PIPE, stderr=errors, env=self._environment
            )

    async def listening(self) -> None:
        """Until it says that it listens. Raises `RuntimeError` where it ends before that."""
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self._process.stdout.readline()
        if not line.startswith(b"Headrace serves"):
            raise RuntimeError(f"the server did not start: {self.said()}")
        self.up.set()

    async def start(self) -> None:
        await self.spawn()
        await self.listening()

    async def kill(self) -> None:
        """As `kill -9` does."""
        assert self._process is not None
        assert self._process.returncode is None, f"the server ended by itself: {self.said()}"
        self.up.clear()
        self._process.kill()
        await self._process.communicate()

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def resident(self) -> int:
        """Bytes of memory that it has now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def said(self) -> str:
        """On its standard error, in all of its lives."""
        return self._errors.read_text() if self._errors.exists() else ""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()


def _free_port() -> int:
    """Below the ports that the system gives out by itself, so that nobody else gets it while the server is dead."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
