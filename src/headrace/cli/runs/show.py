"""`headrace runs show`."""

from collections import Counter
from contextlib import aclosing

from headrace.cli.output import clock, line
from headrace.cli.server import LOCAL_SERVER, Server, connected
from headrace.client import RunHandle, RunInfo
from headrace.events import RunCompleted, RunFailed, Usage, kind_of


async def show(run_id: str, /, *, server: Server = LOCAL_SERVER) -> None:
    """Show what a run was asked, how far it has got, and what it said.

    Parameters
    ----------
    run_id
        Which run.
    """
    async with connected(server) as client:
        run = client.run(run_id)
        for name, value in _fields(await run.head()):
            line(f"{name:<13} {value}")
        await _show_events(run)


def _fields(info: RunInfo) -> list[tuple[str, str]]:
    fields = [
        ("run", info.id),
        ("state", info.state + (" (cancel requested)" if info.cancel_requested and not info.ended else "")),
        ("agent", info.agent),
        ("message", str(info.input.get("message", ""))),
        ("conversation", info.conversation_id or ""),
        ("parent", info.parent_run_id or ""),
        ("created", clock(info.created)),
        ("ended", f"{clock(info.ended)}, after {info.ended - info.created:.2f} s" if info.ended else ""),
        ("attempts", str(info.attempt)),
        ("position", info.position),
    ]
    return [field for field in fields if field[1]]


async def _show_events(run: RunHandle) -> None:
    kinds: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    end = ""
    async with aclosing(run.events(live=False)) as events:
        async for _, event in events:
            kinds[kind_of(event)] += 1
            if isinstance(event, Usage):
                tokens.update({"in": event.input_tokens or 0, "out": event.output_tokens or 0})
            elif isinstance(event, RunCompleted):
                end = event.output
            elif isinstance(event, RunFailed):
                end = f"{event.error.code}: {event.error.message}"
    line(f"{'events':<13} {', '.join(f'{count:,} {kind}' for kind, count in kinds.items())}")
    if tokens:
        line(f"{'tokens':<13} {tokens['in']:,} in, {tokens['out']:,} out")
    if end:
        line(f"\n{end}")
