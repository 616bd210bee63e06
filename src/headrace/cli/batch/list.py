"""`headrace batch list`."""

from contextlib import aclosing
from typing import Annotated

from cyclopts import Parameter

from headrace.cli.output import clock, line
from headrace.cli.server import LOCAL_SERVER, Server, connected
from headrace.client import JobInfo


async def list_jobs(
    *, server: Server = LOCAL_SERVER, limit: Annotated[int, Parameter(env_var="HEADRACE_LIMIT")] = 20
) -> None:
    """List your batch jobs, the newest first.

    Parameters
    ----------
    limit
        How many, at most.
    """
    async with connected(server) as client, aclosing(client.jobs()) as jobs:
        left = limit
        async for job in jobs:
            if not left:
                return
            left -= 1
            line(f"{job.id}  {clock(job.created)}  {job.state:<9}  {_counted(job)}  {job.name or ''}".rstrip())


def _counted(job: JobInfo) -> str:
    counts = job.counts
    if counts.succeeded is None or counts.failed is None:  # trimmed
        return f"{counts.total:,}"
    failed = f", {counts.failed:,} failed" if counts.failed else ""
    return f"{counts.succeeded + counts.failed:,}/{counts.total:,}{failed}"
