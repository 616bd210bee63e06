"""One run of a server, as a client sees it."""

from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing, suppress
from urllib.parse import quote

from headrace.client.answers import EventPage, LoggedEvent, RunInfo, error_of, event_of
from headrace.client.connection import Connection
from headrace.errors import Cancelled, NotFound, StreamCut
from headrace.events import (
    KIND_OF,
    TERMINAL,
    RunCancelled,
    RunCompleted,
    RunFailed,
    TextDelta,
    kind_of,
)
from headrace.position import Position

_TERMINAL_KINDS = frozenset(KIND_OF[cls] for cls in TERMINAL)
_PAGE = 1000


class RunHandle:
    """Made by a client, without asking the server: that there is no such run shows with the first call."""

    def __init__(self, connection: Connection, run_id: str) -> None:
        self.id = run_id
        self._connection = connection
        # A dot is escaped too, so that no run id can lead to another path.
        self._path = "/api/runs/" + quote(run_id, safe="").replace(".", "%2E")

    async def events(
        self, after: str | None = None, *, kinds: Collection[str] | None = None, live: bool = True
    ) -> AsyncGenerator[LoggedEvent, None]:
        """The events after a position, each once and in order, up to the terminal event, whatever happens to the
        connection or the server. `kinds` are the only ones to be given; `live=False` ends with what there is now.

        Raises `PositionGone`, `ForeignPosition` and `PositionAhead` for a position that cannot be served, and
        `Unreachable` or `StreamCut` once the client's patience is over.
        """
        source = self._follow(after, kinds) if live else self._pages(after, kinds)
        async with aclosing(source) as events:
            async for logged in events:
                if kinds is None or kind_of(logged.event) in kinds:
                    yield logged

    async def text(self) -> AsyncGenerator[str, None]:
        """The answer as it is written, from its beginning. Raises as `result` does: without an error it is whole."""
        async with aclosing(self._follow(None, {KIND_OF[TextDelta]})) as events:
            async for _, event in events:
                if isinstance(event, TextDelta):
                    yield event.delta
                elif isinstance(event, TERMINAL):
                    completed(event)
                    return
        raise StreamCut

    async def result(self) -> RunCompleted:
        """The end of the run, once it is there. A run that failed raises its error, a cancelled one `Cancelled`."""
        async with aclosing(self._follow(None, ())) as events:
            async for _, event in events:
                if isinstance(event, TERMINAL):
                    return completed(event)
        raise StreamCut

    async def head(self) -> RunInfo:
        """The run and how far it has got."""
        return await self._connection.request("GET", self._path, RunInfo)

    async def cancel(self) -> RunInfo:
        """Ask the run to end; it does within seconds. A run that has ended stays as it is."""
        return await self._connection.request("POST", f"{self._path}/cancel", RunInfo)

    async def delete(self) -> None:
        """Forget the run and its events. One that is not there is as good as deleted: the reply to an earlier request
        may have been lost. Raises `RunActive` while the run has not ended."""
        with suppress(NotFound):
            await self._connection.request("DELETE", self._path, type(None))

    async def _follow(self, after: str | None, kinds: Collection[str] | None) -> AsyncGenerator[LoggedEvent, None]:
        """The events of some kinds and, always, the terminal one."""
        query = {} if kinds is None else {"kinds": ",".join(sorted({*kinds, *_TERMINAL_KINDS}))}
        stream = self._connection.follow(f"{self._path}/events", event_of, query=query, after=after)
        async with aclosing(stream) as events:
            async for logged in events:
                yield logged
                if isinstance(logged.event, TERMINAL):
                    return

    async def _pages(self, after: str | None, kinds: Collection[str] | None) -> AsyncGenerator[LoggedEvent, None]:
        query = {"limit": str(_PAGE)}
        if after is not None:
            query["after"] = str(Position.parse(after))
        if kinds is not None:
            query["kinds"] = ",".join(sorted(kinds))
        while True:
            page = await self._connection.request("GET", f"{self._path}/events", EventPage, query=query)
            for line in page.events:
                yield line.logged()
            if len(page.events) < _PAGE:
                return
            query["after"] = page.next


def completed(event: RunCompleted | RunFailed | RunCancelled) -> RunCompleted:
    """Raises what ended the run otherwise."""
    if isinstance(event, RunFailed):
        raise error_of(event.error)
    if isinstance(event, RunCancelled):
        raise Cancelled
    return event
