"""`headrace runs replay`."""

import asyncio
from contextlib import aclosing
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from headrace.cli.output import Answer
from headrace.cli.server import LOCAL_SERVER, Server, connected
from headrace.client.run_handle import completed
from headrace.events import TERMINAL, TextDelta


async def replay(
    run_id: str,
    /,
    *,
    server: Server = LOCAL_SERVER,
    speed: Annotated[float, Parameter(env_var="HEADRACE_SPEED", validator=Number(gt=0))] = 1.0,
) -> None:
    """Print the text of a run again, at the pace at which it was written.

    No model is asked.

    Parameters
    ----------
    run_id
        Which run.
    speed
        How many times as fast.
    """
    answer, pace = Answer(), _Pace(speed)
    try:
        async with connected(server) as client, aclosing(client.run(run_id).events()) as events:
            async for _, event in events:
                await pace.reach(event.time)
                if isinstance(event, TextDelta):
                    answer.write(event.delta)
                elif isinstance(event, TERMINAL):
                    completed(event)
    finally:
        answer.end()


class _Pace:
    """The time of the events on our clock: from the first one on, so many times as fast."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._origin: tuple[float, float] | None = None

    async def reach(self, time: float) -> None:
        now = asyncio.get_running_loop().time()
        if self._origin is None:
            self._origin = time, now
        then, started = self._origin
        await asyncio.sleep(max(0.0, started + (time - then) / self._speed - now))
