"""`headrace runs list`."""

import sys
from contextlib import aclosing
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.cli.output import clock, harmless, line
from headrace.cli.server import LOCAL_SERVER, Server, connected
from headrace.client import AsyncClient, RunInfo

_MESSAGE = 60


async def list_runs(
    *,
    server: Server = LOCAL_SERVER,
    state: Annotated[
        Literal["queued", "running", "completed", "failed", "cancelled"] | None, Parameter(env_var="HEADRACE_STATE")
    ] = None,
    limit: Annotated[int, Parameter(env_var="HEADRACE_LIMIT")] = 20,
    json: Annotated[bool, Parameter(env_var="HEADRACE_JSON", negative=(), show_default=False)] = False,
) -> None:
    """List your runs, the newest first.

    A table on a terminal; elsewhere lines, with tabs between the columns.

    Parameters
    ----------
    state
        Only runs in this state.
    limit
        Most runs to list.
    json
        One line of JSON for each.
    """
    async with connected(server) as client:
        infos = await _newest(client, state, limit)
    if json:
        for info in infos:
            line(msgspec.json.encode(info).decode())
    elif sys.stdout.isatty():
        Console().print(_table(infos))
    else:
        for info in infos:
            line("\t".join(_row(info)))


async def _newest(client: AsyncClient, state: str | None, limit: int) -> list[RunInfo]:
    infos: list[RunInfo] = []
    async with aclosing(client.runs(state)) as runs:
        async for info in runs:
            if len(infos) == limit:
                break
            infos.append(info)
    return infos


def _row(info: RunInfo) -> list[str]:
    message = " ".join(harmless(str(info.input.get("message", ""))).split())
    return [info.id, info.state, info.agent, clock(info.created), message[:_MESSAGE]]


def _table(infos: list[RunInfo]) -> Table:
    table = Table(box=None, header_style="bold")
    for name in ("run", "state", "agent", "created"):
        table.add_column(name, no_wrap=True, overflow="fold" if name == "run" else "ellipsis")
    table.add_column("message", no_wrap=True, overflow="ellipsis")
    for info in infos:
        table.add_row(*(Text(cell) for cell in _row(info)))
    return table
