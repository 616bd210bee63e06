"""`POST /api/tickets`: a one-time ticket for a browser's EventSource or WebSocket, which cannot send headers."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from headrace.server.auth.tickets import LIFETIME
from headrace.server.endpoints.parameters import Caller, Door

router = APIRouter(prefix="/api/tickets", tags=["access"])


@router.post("", status_code=201, summary="Get a one-time ticket")
async def issue(principal: Caller, services: Door) -> Response:
    """Use it once, within its seconds, as `?ticket=`."""
    ticket = services.tickets.issue(principal)
    return JSONResponse({"ticket": ticket, "expires_in": LIFETIME}, 201)
