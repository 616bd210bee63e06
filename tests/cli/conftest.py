"""The command as people run it: a process of its own, here beside a server in the test's loop."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.server.serving import PATIENCE, Serving, settings


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Command:
    """`headrace`, with nothing in its environment that was not given to it."""

    def __init__(self, folder: Path) -> None:
        self.environment: dict[str, str] = {"HEADRACE_DISCOVER": "false", "HEADRACE_DATA": str(folder / "data")}
        self._folder = folder

    async def begin(self, *arguments: str, **streams: int) -> asyncio.subprocess.Process:
        foreign = ("HEADRACE_", "OPENAI_", "STREAM_", "LOG_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, **streams}
        return await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "headrace", *arguments],
            cwd=self._folder,
            env=kept | self.environment,
            **pipes,  # type: ignore[arg-type]
        )

    async def __call__(self, *arguments: str) -> Result:
        process = await self.begin(*arguments)
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode is not None
        assert b"Traceback" not in err, err.decode()
        return Result(process.returncode, out.decode(), err.decode())


Interrupt = Callable[[asyncio.subprocess.Process], Awaitable[Result]]


@pytest.fixture
def interrupt() -> Interrupt:
    """Ctrl-C, and how the process ends."""

    async def send(process: asyncio.subprocess.Process) -> Result:
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode is not None
        return Result(process.returncode, out.decode(), err.decode())

    return send


@pytest.fixture
def headrace(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture
async def server(tmp_path: Path, headrace: Command) -> AsyncIterator[Serving]:
    """Agents as in `tests/server/serving.py`; the command's environment says where it is."""
    async with Serving(settings(tmp_path / "server")).open() as serving:
        headrace.environment["HEADRACE_URL"] = serving.url
        yield serving
