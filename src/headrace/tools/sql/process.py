"""Processes that run queries, for the server.

A query is text from anywhere, and what it does inside a database's library can be neither interrupted nor bounded from
the outside: one call of one function may run for a minute, or take all memory. So it runs in a process that is ended.
"""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog

from headrace.errors import BY_CODE, SQLDenied, ToolRefused, ToolTimeout, ToolUnavailable
from headrace.tools.sql.location import Dialect
from headrace.tools.sql.reading import READY, Answer, Query, late

logger = structlog.get_logger("headrace.tools.sql")

_LONGEST_ANSWER = 1024 * 1024
"""Bytes; what is read is bounded by far less."""
_GRACE: Mapping[Dialect, float] = {"postgresql": 1.0}
"""Seconds for a process to tell the server that it shall stop: that the process is gone, a server may not notice."""
_OF_THE_QUERY = frozenset((SQLDenied.code, ToolRefused.code, ToolTimeout.code))
_PASSED_ON = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "SYSTEMROOT", "TZ")
"""Environment variables of the process. It holds no key of this server, since a query may find a way to read them."""


class QueryProcesses:
    """Starts them when they are needed, and keeps those that did well for the next query."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._idle: list[Process] = []
        self._closed = False

    async def ask(self, query: Query) -> Any:
        """The result of a query. Raises what the process tells, and `ToolTimeout` after `query.seconds`.

        When this is cancelled, the query has ended before it returns.
        """
        process = await self._take()
        answer = None
        try:
            async with asyncio.timeout(query.seconds + _GRACE.get(self._dialect, 0)):
                answer = await _exchange(process, query)
        except TimeoutError as error:
            raise ToolTimeout(late(query.seconds)) from error
        finally:
            if answer is None or answer.ended or self._closed:
                await _end(process)
            else:
                self._idle.append(process)
        if answer is None:
            logger.warning("sql process ended", exit_code=process.returncode)
            raise ToolRefused("The query ended the process that it ran in. It may need too much memory: ask for less.")
        if answer.code is not None:
            if answer.code not in _OF_THE_QUERY:
                logger.warning("sql database failed", code=answer.code, cause=answer.cause)
            raise BY_CODE[answer.code](answer.message)
        return answer.result

    async def close(self) -> None:
        self._closed = True
        while self._idle:
            await _end(self._idle.pop())

    async def _take(self) -> Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return await _start(self._dialect)


async def _start(dialect: Dialect) -> Process:
    """A process that waits for queries. Raises `ToolUnavailable`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "headrace.tools.sql.child", dialect),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env=_environment(dialect),
        start_new_session=True,  # what a terminal sends to this server, such as Ctrl-C, is not for it
        limit=_LONGEST_ANSWER,
    )
    ready = False
    try:
        assert process.stdout
        ready = await process.stdout.readline() == READY
    finally:
        if not ready:
            await _end(process)
    if not ready:
        logger.warning("sql process did not start", exit_code=process.returncode)
        raise ToolUnavailable("The database's library cannot be loaded.")
    return process


def _environment(dialect: Dialect) -> Mapping[str, str]:
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    if dialect == "postgresql":  # PGPASSFILE, PGSSLROOTCERT and so on
        passed_on |= {name: value for name, value in os.environ.items() if name.startswith("PG")}
    return {**passed_on, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


async def _exchange(process: Process, query: Query) -> Answer | None:
    """`None` where the process ends over it."""
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(msgspec.json.encode(query) + b"\n")
        await process.stdin.drain()
    except ConnectionError:
        return None
    line = await process.stdout.readline()
    return msgspec.json.decode(line, type=Answer) if line.endswith(b"\n") else None


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
