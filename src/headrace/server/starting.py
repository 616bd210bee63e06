"""A request that starts a run: what comes before there is one, and the ways to answer it."""

from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from headrace.errors import Draining
from headrace.events import ErrorInfo, RunCompleted, RunFailed
from headrace.identity import Principal
from headrace.limits import StreamSlot
from headrace.ports import Created, Head, Idempotency, StartCommand, WireProtocol
from headrace.protocols.agent_chat import CANCELLED
from headrace.server import accept
from headrace.server.endpoints.parameters import Caller, Door, OnDisconnect, RootPath, TokensPerSecond, idempotency
from headrace.server.follow import events_path, follow
from headrace.server.framing import NDJSON, SSE
from headrace.server.problem import failed_run_response
from headrace.server.services import Services
from headrace.server.waiting import Waiting

BIRTH = "birth"
"""In the state of a request that is an item of a batch: that its run is a child."""

JSON, EVENT_STREAM, LINES = "application/json", "text/event-stream", "application/x-ndjson"
_FRAMINGS = {EVENT_STREAM: SSE, LINES: NDJSON}


class Starter:
    """Made for each request that may start a run, by what the routes for it have in common."""

    def __init__(
        self,
        request: Request,
        principal: Principal,
        services: Services,
        root_path: str,
        idempotency: Idempotency | None,
        *,
        cancels: bool,
        pace: int | None,
    ) -> None:
        self.principal = principal
        self.services = services
        self.root_path = root_path
        self._request = request
        self._idempotency = idempotency
        self._cancels = cancels
        self._pace = pace
        self._media_type = JSON
        self._slot: StreamSlot | None = None
        self._head: Head | None = None

    @property
    def head(self) -> Head:
        assert self._head is not None
        return self._head

    @property
    def streams(self) -> bool:
        return self._media_type != JSON

    def choose(self, *offered: str) -> None:
        """Which of these types the answer has. Raises `NotAcceptable`."""
        self._media_type = accept.choose(self._request.headers.get("accept"), offered)

    async def start(self, command: StartCommand, *, own: bool = False) -> Created:
        """Raises `Draining`, `TooManyStreams`, and what `Runs.start` raises."""
        if self.services.open_streams.draining:
            raise Draining(retry_after=1)
        if self.streams:  # before there is a run that nobody could follow
            self._slot = self.services.limits.stream(self.principal)
        birth = getattr(self._request.state, BIRTH, None)
        created = await self.services.runs.start(self.principal, command, self._idempotency, own=own, birth=birth)
        self._head = created.head
        return created

    def stream(self, protocol: WireProtocol) -> Response:
        """The run from its beginning."""
        return follow(
            self.services,
            self.principal,
            self.head,
            protocol,
            _FRAMINGS[self._media_type],
            root_path=self.root_path,
            on_disconnect=self._cancel if self._cancels else None,
            slot=self._slot,
            pace=self._pace,
        )

    async def end(self) -> RunCompleted | Response:
        """Wait for the run's last event; a response where the run did not complete, or is waited for no longer."""
        run_id = self.head.run.id
        waiting = Waiting(self.principal)
        with self.services.open_streams.hold(waiting):
            end = await waiting.for_result(self._request, self.services.runs.result(self.head))
        if waiting.error is not None:
            raise type(waiting.error)(retry_after=1, run_id=run_id)  # which goes on, and can be followed
        if end is None:
            if self._cancels:
                await self._cancel()
            return Response(status_code=499)
        if isinstance(end, RunCompleted):
            return end
        error: ErrorInfo = end.error if isinstance(end, RunFailed) else CANCELLED
        return failed_run_response(error, run_id)

    def headers(self, protocol: WireProtocol) -> dict[str, str]:
        """Which run it was, and where it can be read again."""
        return {"X-Run-Id": self.head.run.id, "Location": self.root_path + events_path(self.head, protocol)}

    async def _cancel(self) -> None:
        await self.services.runs.cancel(self.principal, self.head.run.id, by="disconnect")


async def _starter(
    request: Request,
    principal: Caller,
    services: Door,
    root_path: RootPath,
    idempotency: Annotated[Idempotency | None, Depends(idempotency)],
    on_disconnect: OnDisconnect = "detach",
    pace: TokensPerSecond = None,
) -> Starter:
    return Starter(request, principal, services, root_path, idempotency, cancels=on_disconnect == "cancel", pace=pace)


Starting = Annotated[Starter, Depends(_starter)]
