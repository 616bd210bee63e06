"""What is read from the machine: CPU time and memory of a server, the core that a process runs on, a load's outcome."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the load client saw; `finish_*` are the durations of single streams."""

    ok: int
    errors: int
    cut: int
    tokens: int
    frames: int
    bytes: int
    seconds: float
    first_p50_ms: float
    first_p99_ms: float
    finish_median_s: float
    finish_slowest_s: float

    @property
    def failed(self) -> int:
        return self.errors + self.cut


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process so far, also of ended ones, to the nanosecond.

    Linux numbers the CPU clock of another process so; see clock_getcpuclockid(3).
    """
    return time.clock_gettime((~pid << 3) | 2)


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KIB


def cores() -> tuple[int, int]:
    """One core for the server, another for load and upstream."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise SystemExit("The bench needs two cores: one for the server, one for load and upstream.")
    return allowed[-1], allowed[0]


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Processes that are started within stay on this core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Load:
    """A running load client."""

    def __init__(self, command: list[str | Path], core: int) -> None:
        with on_core(core):
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE)

    def wait_ready(self) -> None:
        """Until every stream has its response head."""
        line = self._line()
        if b"ready" not in line:
            raise RuntimeError(f"streams ended before all were open: {line.decode().strip()}")

    def outcome(self) -> Outcome:
        line = self._line()
        if b"ready" in line:
            line = self._line()
        self._process.wait()
        return msgspec.json.decode(line, type=Outcome)

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load client ended without a result")
        return line
