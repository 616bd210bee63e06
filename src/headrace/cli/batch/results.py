"""`headrace batch results`."""

from contextlib import aclosing
from typing import Annotated

import msgspec
from cyclopts import Parameter

from headrace.cli.output import line
from headrace.cli.server import LOCAL_SERVER, Server, connected

_encode = msgspec.json.Encoder().encode


async def results(
    job_id: str,
    /,
    *,
    server: Server = LOCAL_SERVER,
    failed: Annotated[bool | None, Parameter(env_var="HEADRACE_FAILED", negative="--succeeded")] = None,
) -> None:
    """Print the results of a batch job as JSON lines, as they come, to its end.

    Parameters
    ----------
    job_id
        Which job.
    failed
        Only those that failed, or only those that succeeded.
    """
    async with connected(server) as client, aclosing(client.job(job_id).results()) as all_results:
        async for result in all_results:
            if failed is None or result.failed is failed:
                line(_encode(result).decode())
