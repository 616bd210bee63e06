"""`headrace runs cancel`."""

from headrace.cli.output import line
from headrace.cli.server import LOCAL_SERVER, Server, connected


async def cancel(run_id: str, /, *, server: Server = LOCAL_SERVER) -> None:
    """Ask a run to end, and print its state.

    One that has ended stays as it is.

    Parameters
    ----------
    run_id
        Which run.
    """
    async with connected(server) as client:
        info = await client.run(run_id).cancel()
    line(info.state if info.ended else "cancel requested")
