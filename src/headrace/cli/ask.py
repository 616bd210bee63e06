"""`headrace ask`: a question, and its answer as it is written."""

import asyncio
import sys
import time
from contextlib import aclosing
from typing import Annotated, Any

from cyclopts import Parameter

from headrace.cli.output import Answer, remark
from headrace.cli.server import LOCAL_SERVER, Server, connected
from headrace.client import AsyncClient, RunHandle
from headrace.client.run_handle import completed
from headrace.events import TERMINAL, TextDelta, Usage

_SECONDS_TO_CANCEL = 5.0


async def ask(
    question: str,
    /,
    *,
    server: Server = LOCAL_SERVER,
    agent: Annotated[str, Parameter(env_var="HEADRACE_AGENT")] = "default",
    max_tokens: Annotated[int | None, Parameter(env_var="HEADRACE_MAX_TOKENS")] = None,
) -> None:
    """Ask an agent and print its answer as it is written.

    Ctrl-C ends the run on the server too.

    Parameters
    ----------
    question
        What to ask.
    agent
        Who is to answer.
    max_tokens
        Most tokens of the answer.
    """
    async with connected(server) as client:
        options = {} if max_tokens is None else {"max_tokens": max_tokens}
        await _ask(client, question, agent, options)


async def _ask(client: AsyncClient, question: str, agent: str, options: dict[str, Any]) -> None:
    figures = _Figures()
    starting = asyncio.create_task(client.start(question, input=options, agent=agent))
    try:
        await _print(await asyncio.shield(starting), figures)
    except asyncio.CancelledError:
        # The start is waited for first: its reply alone tells which run to cancel.
        async with asyncio.timeout(_SECONDS_TO_CANCEL):
            await (await starting).cancel()
        raise
    if sys.stderr.isatty():
        remark(figures.summary())


async def _print(run: RunHandle, figures: "_Figures") -> None:
    answer = Answer()
    try:
        async with aclosing(run.events()) as events:
            async for _, event in events:
                if isinstance(event, TextDelta):
                    figures.text()
                    answer.write(event.delta)
                elif isinstance(event, Usage):
                    figures.usage(event)
                elif isinstance(event, TERMINAL):
                    completed(event)
    finally:
        answer.end()


class _Figures:
    """How fast an answer came, as seen from here."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first: float | None = None
        self._last = 0.0
        self._pieces = 0
        self._tokens = 0

    def text(self) -> None:
        self._last = time.monotonic()
        self._first = self._first or self._last
        self._pieces += 1

    def usage(self, usage: Usage) -> None:
        self._tokens += usage.output_tokens or 0

    def summary(self) -> str:
        if self._first is None:
            return "no text"
        tokens = self._tokens or self._pieces
        seconds = self._last - self._first
        rate = f", {tokens / seconds:,.0f} tokens/s" if seconds > 0 else ""
        return f"{tokens:,} tokens{rate}, the first after {(self._first - self._began) * 1000:,.0f} ms"
