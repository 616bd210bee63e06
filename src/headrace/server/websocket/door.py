"""The route of the socket: what is refused at the handshake, with a status; and what is served."""

import secrets
from contextlib import ExitStack

import structlog
from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from headrace.errors import HeadraceError
from headrace.identity import Principal
from headrace.server.problem import problem_response
from headrace.server.services import Services
from headrace.server.websocket.admission import admit, introduced
from headrace.server.websocket.ending import Ending, because_of, farewell
from headrace.server.websocket.open_socket import OpenSocket

logger = structlog.get_logger("headrace.access")

router = APIRouter()


@router.websocket("/api/ws")
async def door(websocket: WebSocket) -> None:
    """Many runs over one socket."""
    services: Services = websocket.app.state.services
    request_id = f"req_{secrets.token_hex(12)}"
    with structlog.contextvars.bound_contextvars(request_id=request_id), ExitStack() as held:
        principal = None
        try:
            principal = admit(websocket, services)
            socket = None if principal is None else _enter(websocket, services, principal, held)
        except HeadraceError as error:
            await _refuse(websocket, error, services.limits.headers(principal) if principal is not None else [])
            return
        await websocket.accept()
        logger.info("socket opened", path=websocket.scope["path"])
        ending = await _serve(websocket, services, socket, held)
        if ending is not None:
            await farewell(websocket, ending)
        logger.info("socket closed", code=None if ending is None else ending.code)


def _enter(websocket: WebSocket, services: Services, principal: Principal, held: ExitStack) -> OpenSocket:
    """Take one of the caller's streams, until `held` is left. Raises `TooManyStreams` or `Draining`."""
    socket = OpenSocket(websocket, services, principal)
    held.enter_context(services.limits.stream(principal))
    held.enter_context(services.open_streams.hold(socket))
    return socket


async def _refuse(websocket: WebSocket, error: HeadraceError, headers: list[tuple[bytes, bytes]]) -> None:
    response = problem_response(error)
    response.raw_headers.extend(headers)
    await websocket.send_denial_response(response)
    logger.info("socket refused", path=websocket.scope["path"], status=error.status, code=error.code)


async def _serve(websocket: WebSocket, services: Services, socket: OpenSocket | None, held: ExitStack) -> Ending | None:
    services.telemetry.open_streams["websocket"] += 1
    try:
        if socket is None:
            socket = _enter(websocket, services, await introduced(websocket, services), held)
        return await socket.serve()
    except WebSocketDisconnect:
        return None
    except HeadraceError as error:
        return because_of(error)
    except Exception:
        logger.exception("socket failed")
        return because_of(HeadraceError())
    finally:
        services.telemetry.open_streams["websocket"] -= 1
