"""`/api/tools`: which tools there are, and one call of one of them."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from headrace.errors import InvalidField, NotFound
from headrace.ports import StartCommand, Tool
from headrace.protocols.payload import to_json
from headrace.server.endpoints.parameters import Caller, Door
from headrace.server.starting import EVENT_STREAM, JSON, LINES, Starting
from headrace.server.strict_request import StrictRoute

router = APIRouter(prefix="/api/tools", route_class=StrictRoute, tags=["tools"])


class Execute(BaseModel):
    """Body of `POST /api/tools/{name}/execute`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    parameters: dict[str, Any] = Field(default_factory=dict, description="The arguments, as the tool's schema says.")


@router.get("", summary="List the tools that you may use")
async def list_tools(principal: Caller, services: Door) -> Response:
    return JSONResponse({"tools": [_describe(tool) for tool in services.tools.open_to(principal.scopes)]})


@router.post("/{name}/execute", summary="Call a tool")
async def execute(name: str, body: Execute, starter: Starting) -> Response:
    """The call is a run: with `Accept: text/event-stream` the reply is its stream of events."""
    starter.choose(JSON, EVENT_STREAM, LINES)
    services = starter.services
    if services.tools.find(name, starter.principal.scopes) is None:
        raise NotFound
    if faults := services.tools.faults(name, body.parameters):
        raise InvalidField(errors=[{**fault, "pointer": f"/parameters{fault['pointer']}"} for fault in faults])
    await starter.start(StartCommand(agent="tool", input={"tool": name, "parameters": body.parameters}), own=True)
    protocol = services.protocols["native"]
    if starter.streams:
        return starter.stream(protocol)
    end = await starter.end()
    if isinstance(end, Response):
        return end
    result = (await services.runs.outcome(starter.head)).result
    assert result is not None
    output = result.output.encode() if result.is_json else to_json(result.output)
    return Response(b'{"result":%b}' % output, headers=starter.headers(protocol), media_type=JSON)


def _describe(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
        "idempotent": tool.idempotent,
        "timeout": tool.timeout,
        "approval": tool.approval,
    }
