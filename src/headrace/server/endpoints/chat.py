"""`POST /api/agent/chat`: a chat answer, streamed or whole."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from headrace.errors import InvalidField, StreamDisabled
from headrace.protocols.agent_chat import ChatRequest, answer
from headrace.server.services import Services
from headrace.server.starting import EVENT_STREAM, JSON, Starting
from headrace.server.strict_request import StrictRoute

router = APIRouter(route_class=StrictRoute, tags=["chat"])


@router.post("/api/agent/chat", summary="Ask an agent")
async def chat(body: ChatRequest, starter: Starting, stream: bool = False) -> Response:
    starter.choose(EVENT_STREAM if stream else JSON)
    services = starter.services
    if stream and not services.stream_enabled:
        raise StreamDisabled
    _check_model(services, body.model)
    await starter.start(body.command())
    protocol = services.protocols["agent_chat"]
    if stream:
        return starter.stream(protocol)
    end = await starter.end()
    if isinstance(end, Response):
        return end
    return JSONResponse(answer(starter.head.run, end), headers=starter.headers(protocol))


def _check_model(services: Services, model: str | None) -> None:
    if model is not None and model not in services.models():
        detail = f"one of: {', '.join(sorted(services.models())) or 'none here'}"
        raise InvalidField(errors=[{"pointer": "/model", "detail": detail}])
