"""`headrace batch show`."""

from headrace.cli.output import clock, line
from headrace.cli.server import LOCAL_SERVER, Server, connected
from headrace.client import JobInfo


async def show(job_id: str, /, *, server: Server = LOCAL_SERVER) -> None:
    """Show how far a batch job has got.

    Parameters
    ----------
    job_id
        Which job.
    """
    async with connected(server) as client:
        for name, value in fields(await client.job(job_id).info()):
            line(f"{name:<12} {value}")


def fields(info: JobInfo) -> list[tuple[str, str]]:
    counts = info.counts
    shown = [
        ("job", info.id),
        ("name", info.name or ""),
        ("state", info.state + (" (cancel requested)" if info.cancel_requested and not info.ended else "")),
        ("total", f"{counts.total:,}"),
        ("succeeded", number(counts.succeeded)),
        ("failed", number(counts.failed)),
        ("remaining", number(counts.remaining)),
        ("rate", f"{info.per_second:,.0f}/s" if info.per_second else ""),
        ("time left", f"{info.seconds_left:,.0f} s" if info.seconds_left is not None else ""),
        ("created", clock(info.created)),
        ("ended", f"{clock(info.ended)}, after {info.ended - info.created:.2f} s" if info.ended else ""),
        ("retry of", info.retry_of or ""),
        ("webhook", f"{info.webhook['state']}: {info.webhook['url']}" if info.webhook else ""),
    ]
    return [field for field in shown if field[1]]


def number(count: int | None) -> str:
    """Nothing where it is not known any more."""
    return "" if count is None else f"{count:,}"
