"""A `headrace serve` of its own process."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

PATIENCE = 60.0
"""Seconds after which something is taken to hang."""


class Served:
    def __init__(self, process: asyncio.subprocess.Process, url: str, log: Path) -> None:
        self.url = url
        self._process = process
        self._log = log

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    async def exit_code(self, seconds: float) -> int:
        """Once it has ended. Raises `TimeoutError`."""
        return await asyncio.wait_for(self._process.wait(), seconds)

    @property
    def log(self) -> str:
        return self._log.read_text()


@asynccontextmanager
async def serve(data: Path, model: str, **environment: str) -> AsyncIterator[Served]:
    """The server, once it says where it is; killed at the end if it still runs."""
    with (data / "log.txt").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "headrace", "serve", "--port", "0", "--data", str(data), "--model", model],
            env={**os.environ, "HEADRACE_LOG_FORMAT": "json", **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            while not (found := re.search(rb"http://127\.0\.0\.1:\d+", line := await process.stdout.readline())):
                assert line, (data / "log.txt").read_text()
        yield Served(process, found[0].decode(), data / "log.txt")
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def parse(body: bytes) -> list[tuple[bytes, bytes]]:
    """Position and payload of each frame."""
    frames = []
    for block in body.split(b"\n\n"):
        lines = dict(line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith(b":") and line)
        if b"data" in lines:
            frames.append((lines[b"id"], lines[b"data"]))
    return frames
