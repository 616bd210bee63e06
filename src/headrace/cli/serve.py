"""`headrace serve`: the whole product in one process."""

import asyncio
import gc
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import uvloop
from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from headrace.bootstrap import Headrace, names_of
from headrace.log_output import configure
from headrace.server.listener import Listener
from headrace.settings import load_settings

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

_SWITCH_SECONDS = 0.0005
"""How long the event loop may hold the interpreter while the thread that commits wants it (Python's default: 5 ms)."""


def serve(
    *,
    host: Annotated[str | None, Parameter(env_var="HEADRACE_HOST")] = None,
    port: Annotated[int | None, Parameter(env_var="HEADRACE_PORT")] = None,
    data: Annotated[Path | None, Parameter(env_var="HEADRACE_DATA")] = None,
    model: Annotated[str | None, Parameter(env_var="HEADRACE_MODEL")] = None,
    engine: Annotated[Literal["sqlite", "memory"] | None, Parameter(env_var="HEADRACE_ENGINE")] = None,
    max_runs: Annotated[int | None, Parameter(env_var="HEADRACE_MAX_RUNS")] = None,
) -> None:
    """Serve agents over HTTP and WebSocket.

    Parameters
    ----------
    host
        Address to listen on. Beyond loopback it needs authentication.
    port
        Port to listen on; 0 takes a free one.
    data
        Directory of the log, the keys and the document index.
    model
        Which model answers: `demo`, `openai:NAME`, `anthropic:NAME`, a URL, or a JSON list of them to stand in.
    engine
        What keeps the logs.
    max_runs
        Runs that are worked on at the same time.
    """
    settings = load_settings(host=host, port=port, data=data, model=model, engine=engine, max_runs=max_runs)
    configure(settings.log_level, settings.log_format)
    headrace = Headrace(settings)
    listener = Listener(cast("ASGI3Application", headrace.app), settings.host, settings.port, drain=headrace.drain)

    async def main() -> None:
        serving = asyncio.create_task(listener.serve())
        started = asyncio.create_task(listener.started.wait())
        await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if listener.started.is_set():
            _settle()
            _announce(headrace, listener.ports[0])
        await serving

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def _settle() -> None:
    """What lives as long as the process is not looked at again by the garbage collector."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _announce(headrace: Headrace, port: int) -> None:
    settings = headrace.settings
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    say = partial(Console(highlight=False).print, soft_wrap=True, markup=False)
    say(Text.assemble(("Headrace", "bold"), f" serves http://{host}:{port}  (API page: /docs)"))
    say(f"  model  {', then '.join(names_of(headrace.model)) if headrace.model else 'none'}")
    if tools := headrace.tools.names:
        say(f"  tools  {', '.join(tools)}")
    say(f"  log    {headrace.engine.durability}")
    say(f"  data   {settings.data}")
