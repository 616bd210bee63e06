"""`headrace batch cancel`."""

from headrace.cli.output import line
from headrace.cli.server import LOCAL_SERVER, Server, connected


async def cancel(job_id: str, /, *, server: Server = LOCAL_SERVER) -> None:
    """Ask a batch job to end, and print its state. What is done stays.

    Parameters
    ----------
    job_id
        Which job.
    """
    async with connected(server) as client:
        info = await client.job(job_id).cancel()
    line(info.state if info.ended else "cancel requested")
