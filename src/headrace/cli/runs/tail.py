"""`headrace runs tail`."""

from contextlib import aclosing
from typing import Annotated

import msgspec
from cyclopts import Parameter

from headrace.cli.output import line
from headrace.cli.server import LOCAL_SERVER, Server, connected
from headrace.client import LoggedEvent
from headrace.events import Unknown, encode, kind_of


async def tail(
    run_id: str,
    /,
    *,
    server: Server = LOCAL_SERVER,
    after: Annotated[str | None, Parameter(env_var="HEADRACE_AFTER")] = None,
    json: Annotated[bool, Parameter(env_var="HEADRACE_JSON", negative=(), show_default=False)] = False,
) -> None:
    """Print the events of a run as they happen, to its end.

    Ctrl-C only stops looking.

    Parameters
    ----------
    run_id
        Which run.
    after
        The position to go on after, as printed before.
    json
        One line of JSON for each event: its position as `id`, and the event as `data`.
    """
    async with connected(server) as client, aclosing(client.run(run_id).events(after)) as events:
        async for logged in events:
            line(_json(logged) if json else _columns(logged))


def _json(logged: LoggedEvent) -> str:
    return f'{{"id":"{logged.position}","data":{_encoded(logged).decode()}}}'


def _columns(logged: LoggedEvent) -> str:
    fields = msgspec.json.decode(_encoded(logged))
    rest = {name: value for name, value in fields.items() if name not in ("kind", "time", "offset", "run_id")}
    return f"{logged.position:<12} {kind_of(logged.event):<16} {msgspec.json.encode(rest).decode()}"


def _encoded(logged: LoggedEvent) -> bytes:
    return logged.event.raw if isinstance(logged.event, Unknown) else encode(logged.event)
