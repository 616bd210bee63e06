"""`headrace batch retry`."""

from headrace.cli.output import line
from headrace.cli.server import LOCAL_SERVER, Server, connected


async def retry(job_id: str, /, *, server: Server = LOCAL_SERVER) -> None:
    """Start a new job of those operations that did not succeed, and print its id.

    Parameters
    ----------
    job_id
        Which job, that has ended.
    """
    async with connected(server) as client:
        line((await client.job(job_id).retry()).id)
