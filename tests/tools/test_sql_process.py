"""The processes in which queries run: they end when they shall, hold no keys, and nothing is left behind."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from tests.tools.postgres_server import PostgresServer
from tests.tools.postgres_server import postgres_server as postgres_server
from tests.tools.sql_shop import ENDLESS, Shop, ask, make_shop, opened, postgres_shop, sqlite_shop
from tests.tools.sql_shop import shop as shop

from headrace.errors import ToolError, ToolRefused, ToolTimeout
from headrace.tools.sql.location import Location
from headrace.tools.sql.reading import READY, Query

LONG = 60.0
"""Seconds that no test waits for."""

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it looks into /proc")


def children() -> set[int]:
    """The processes of this test's queries."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"headrace.tools.sql.child" in (stat.parent / "cmdline").read_bytes():
                found.add(int(stat.parent.name))
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # nothing tells of a process, or of a server's session
            await asyncio.sleep(0.02)


def of_process(child: int, file: str) -> str:
    return Path(f"/proc/{child}/{file}").read_text()


def is_computing(child: int) -> bool:
    """Whether it is past its start, which takes a fraction of this."""
    user, system = of_process(child, "stat").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") > 1.0


@needs_proc
@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
async def test_a_cancelled_query_has_ended(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    async with opened(make_shop(kind, tmp_path, request).url, seconds=LONG) as tool:
        (child,) = children()
        task = asyncio.create_task(ask(tool, ENDLESS))
        await until(lambda: is_computing(child))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert children() == set()
        assert (await ask(tool, "SELECT 1"))["rows"] == [[1]]
    assert children() == set()


SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'clerk'"


@pytest.mark.parametrize("query", ["SELECT pg_sleep(60)", ENDLESS, "SELECT pg_advisory_lock(1), pg_sleep(60)"])
async def test_a_server_does_not_go_on_with_a_query_that_is_late(postgres_server: PostgresServer, query: str) -> None:
    shop = postgres_shop(postgres_server)
    async with opened(shop.url, seconds=0.5) as tool:
        with pytest.raises(ToolTimeout):
            await ask(tool, query)
        await until(lambda: postgres_server.run(SESSIONS) == "0\n")


@needs_proc
async def test_processes_are_used_again_and_end_with_the_tool(shop: Shop) -> None:
    async with opened(shop.url) as tool:
        first = children()
        for query in ("SELECT 1", "SELECT nope", "DROP TABLE orders"):
            with contextlib.suppress(ToolError):
                await ask(tool, query)
        assert children() == first
        assert len(first) == 1
        await asyncio.gather(*(ask(tool, "SELECT 1") for _ in range(2)))
        assert len(children()) == 2
    assert children() == set()


@needs_proc
async def test_a_process_that_was_killed_is_replaced(tmp_path: Path) -> None:
    async with opened(sqlite_shop(tmp_path).url, seconds=LONG) as tool:
        (child,) = children()
        task = asyncio.create_task(ask(tool, ENDLESS))
        await until(lambda: is_computing(child))
        os.kill(child, signal.SIGKILL)
        with pytest.raises(ToolRefused, match="ended the process"):
            await task
        assert (await ask(tool, "SELECT 1"))["rows"] == [[1]]


@needs_proc
async def test_a_process_has_limits_and_none_of_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    monkeypatch.setenv("PGPASSWORD", "sk-canary")
    async with opened(sqlite_shop(tmp_path).url):
        (child,) = children()
        assert "canary" not in of_process(child, "environ")
        limits = of_process(child, "limits")
        assert "Max data size             1073741824" in limits
        assert "Max core file size        0" in limits
        assert os.getpgid(child) == child


def test_a_process_without_a_parent_ends_itself(tmp_path: Path) -> None:
    location = Location("sqlite", sqlite_shop(tmp_path).url.removeprefix("sqlite:///"))
    query = Query(location=location, sql=ENDLESS, seconds=0.1, max_rows=1, max_bytes=1000)
    command = [sys.executable, "-m", "headrace.tools.sql.child", "sqlite"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        child.stdin.write(msgspec.json.encode(query) + b"\n")
        child.stdin.flush()
        assert child.wait(timeout=60) == -signal.SIGALRM
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as idle:
        assert idle.communicate(timeout=60)[0] == READY
        assert idle.returncode == 0


def test_it_works_on_the_event_loop_of_the_server(tmp_path: Path) -> None:
    async def main() -> Any:
        async with opened(sqlite_shop(tmp_path).url, seconds=0.5) as tool:
            with pytest.raises(ToolTimeout):
                await ask(tool, ENDLESS)
            return await ask(tool, "SELECT 1")

    assert uvloop.run(main())["rows"] == [[1]]
