"""`POST /api/batch`: several calls in one."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from headrace.errors import BatchDisabled
from headrace.events import BATCH_RESPONSE, Data
from headrace.ports import Head
from headrace.protocols.batch import BatchRequest, answer
from headrace.runs import Runs
from headrace.server.starting import EVENT_STREAM, JSON, LINES, Starting
from headrace.server.strict_request import StrictRoute

router = APIRouter(route_class=StrictRoute, tags=["batch"])


@router.post("/api/batch", summary="Make several calls at once")
async def batch(body: BatchRequest, starter: Starting) -> Response:
    """Side by side, or in the order of `dependsOn`. One that fails does not touch the others.

    With `Accept: text/event-stream` or `application/x-ndjson` the reply is a stream: the text of each item as it is
    written, each response as soon as it is there.
    """
    services = starter.services
    if not services.batch.enabled:
        raise BatchDisabled
    starter.choose(JSON, EVENT_STREAM, LINES)
    await starter.start(body.command(services.batch.max_size), own=True)
    protocol = services.protocols["batch"]
    if starter.streams:
        return starter.stream(protocol)
    end = await starter.end()
    if isinstance(end, Response):
        return end
    reply = answer(starter.head.run, await _responses(services.runs, starter.head), end)
    return Response(reply, headers=starter.headers(protocol), media_type=JSON)


async def _responses(runs: Runs, head: Head) -> dict[str, Any]:
    """By the id of the item."""
    found: dict[str, Any] = {}
    async for blocks in runs.follow(head, live=True):
        for block in blocks:
            for event in block.events:
                if isinstance(event, Data) and event.name == BATCH_RESPONSE:
                    found[event.value["id"]] = event.value
    return found
