"""`/api/runs`: start, look at, list, follow, cancel and delete runs, in the log's own words."""

from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from headrace.errors import InvalidField
from headrace.events import KIND_OF, TERMINAL
from headrace.ports import Head, RunState
from headrace.position import Position
from headrace.protocols.native import StartRun
from headrace.protocols.payload import to_json
from headrace.server import accept
from headrace.server.endpoints.parameters import After, Caller, Door, Kinds, RootPath, TokensPerSecond
from headrace.server.follow import before_restart, check_frame, follow
from headrace.server.framing import NDJSON, SSE, BlockEncoder
from headrace.server.run_stream import until_stopped
from headrace.server.services import Services
from headrace.server.starting import EVENT_STREAM, JSON, LINES, Starting
from headrace.server.strict_request import StrictRoute

router = APIRouter(prefix="/api/runs", route_class=StrictRoute, tags=["runs"])

_ENDS = frozenset(KIND_OF[kind] for kind in TERMINAL)


class Answer(BaseModel):
    """Body of `POST /api/runs/{id}/input`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: str = Field(min_length=1, max_length=256, description="Of the `input.requested` that is answered.")
    value: Any = Field(description="What its schema asks for; of an approval, `approved` and maybe a `reason`.")


@router.post("", status_code=201, summary="Start a run")
async def start(body: StartRun, starter: Starting) -> Response:
    """With `Accept: text/event-stream` or `application/x-ndjson` the reply is the run's stream of events."""
    starter.choose(JSON, EVENT_STREAM, LINES)
    created = await starter.start(body.command())
    if starter.streams:
        return starter.stream(starter.services.protocols["native"])
    run_id = created.head.run.id
    headers = {"Location": f"{starter.root_path}/api/runs/{run_id}", "X-Run-Id": run_id}
    return JSONResponse(describe(created.head, starter.root_path), 201 if created.new else 200, headers)


@router.get("", summary="List your runs")
async def list_runs(
    principal: Caller,
    services: Door,
    root_path: RootPath,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(max_length=128, description="A run id: the page after it.")] = None,
    state: RunState | None = None,
    parent: Annotated[str | None, Query(max_length=128, description="The children of this run.")] = None,
) -> Response:
    """Runs that another run has started are listed with `parent` only."""
    heads = await services.runs.list(principal, limit=limit + 1, before=before, state=state, parent=parent)
    shown = heads[:limit]
    following = shown[-1].run.id if len(heads) > limit else None
    return JSONResponse({"runs": [describe(head, root_path) for head in shown], "next": following})


@router.get("/{run_id}", summary="Look at a run")
async def look(run_id: str, principal: Caller, services: Door, root_path: RootPath) -> Response:
    return JSONResponse(describe(await services.runs.get(principal, run_id), root_path))


@router.get("/{run_id}/events", summary="Read or follow a run's events")
async def events(
    request: Request,
    run_id: str,
    principal: Caller,
    services: Door,
    root_path: RootPath,
    after: After,
    kinds: Kinds,
    view: Annotated[str, Query(max_length=64, description="Any protocol's name.")] = "native",
    limit: Annotated[int, Query(ge=1, le=1000, description="Events of a JSON page.")] = 100,
    pace: TokensPerSecond = None,
) -> Response:
    """SSE or NDJSON follow the run to its end; JSON gives one page of what there is.

    The end is of no kind that can be left out: without it a stream cannot be told from one that was cut.
    """
    if kinds is not None:
        kinds |= _ENDS
    offered = ["text/event-stream", "application/x-ndjson", "application/json"]
    media_type = accept.choose(request.headers.get("accept"), offered)
    protocol = services.protocols.get(view)
    if protocol is None:
        detail = f"one of {', '.join(sorted(services.protocols))}"
        raise InvalidField(errors=[{"parameter": "view", "detail": detail}])
    head = await services.runs.get(principal, run_id)
    await check_frame(services, head, protocol, after)
    after = await before_restart(services, head, protocol, after)
    if media_type == "application/json":
        return await page(services, head, view, after, kinds, limit)
    if media_type == "text/event-stream" and head.closed and after == Position(head.run.epoch, head.offset):
        return Response(status_code=204)  # tells an EventSource to stop coming back
    framing = SSE if media_type == "text/event-stream" else NDJSON
    return follow(
        services, principal, head, protocol, framing, root_path=root_path, after=after, kinds=kinds, pace=pace
    )


@router.post("/{run_id}/cancel", status_code=202, summary="Cancel a run")
async def cancel(run_id: str, principal: Caller, services: Door, root_path: RootPath) -> Response:
    """202 for the first request, 200 once it was asked for before or the run has ended."""
    outcome = await services.runs.cancel(principal, run_id)
    head = await services.runs.get(principal, run_id)
    return JSONResponse(describe(head, root_path), 202 if outcome == "requested" else 200)


@router.post("/{run_id}/input", status_code=202, summary="Answer what a run asks for")
async def answer(run_id: str, body: Answer, principal: Caller, services: Door) -> Response:
    """Such as an approval. 409 where it was answered before: the first answer counts."""
    await services.runs.answer(principal, run_id, body.request_id, body.value)
    return JSONResponse({"run_id": run_id, "request_id": body.request_id}, 202)


@router.delete("/{run_id}", status_code=204, summary="Delete a run that has ended")
async def delete(run_id: str, principal: Caller, services: Door) -> Response:
    await services.runs.delete(principal, run_id)
    return Response(status_code=204)


def describe(head: Head, root_path: str) -> dict[str, Any]:
    run = head.run
    return {
        "id": run.id,
        "agent": run.agent,
        "state": head.state,
        "created": run.created,
        "ended": head.ended,
        "position": str(Position(run.epoch, head.offset)),
        "first_available": str(Position(run.epoch, head.first - 1)),
        "events": f"{root_path}/api/runs/{run.id}/events",
        "input": run.input,
        "conversation_id": run.conversation_id,
        "parent_run_id": run.parent_run_id,
        "attempt": head.attempt,
        "cancel_requested": head.cancel_by is not None,
    }


async def page(
    services: Services, head: Head, view: str, after: Position | None, kinds: frozenset[str] | None, limit: int
) -> Response:
    """Up to `limit` frames, in a list; `next` is where the following page starts. `end`: none will ever follow."""
    protocol = services.protocols[view]
    encoder = BlockEncoder(protocol, head.run, NDJSON, after=after, kinds=kinds)
    lines: list[bytes] = []
    upto = after or Position(head.run.epoch, 0)
    source = services.runs.follow(head, after if protocol.stateless else None, live=False)
    async with aclosing(until_stopped(source, encoder)) as batches:
        async for blocks in batches:
            for block in blocks:
                lines += encoder(block).splitlines()
                upto = max(upto, Position(head.run.epoch, block.last))
            if len(lines) >= limit:
                break
    if encoder.stopped_at is not None:
        upto, over = encoder.stopped_at, True
    else:
        over = head.closed and upto.offset == head.offset
    shown = lines[:limit]
    following = _line_position(shown[-1]) if len(lines) > limit else str(upto)
    fields = (b",".join(shown), to_json(following), to_json(over and len(lines) <= limit))
    return Response(b'{"events":[%b],"next":%b,"end":%b}' % fields, media_type="application/json")


def _line_position(line: bytes) -> str:
    return line[len(b'{"id":"') :].split(b'"', 1)[0].decode()
