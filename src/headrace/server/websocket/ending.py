"""Why a socket ends, and how the client is told."""

from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected

from headrace.errors import AuthError, Draining, HeadraceError, LimitError
from headrace.server.websocket import frames

UNSUPPORTED_DATA = 1003
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012
TRY_AGAIN_LATER = 1013
UNAUTHORIZED = 4401
"""Of our own, after the HTTP status: RFC 6455 leaves 4000 to 4999 to applications."""


class Ending(NamedTuple):
    code: int
    error: HeadraceError
    about: Mapping[str, str] = {}
    """The `ref` or `run_id` of the message that led to it."""


def because_of(error: HeadraceError) -> Ending:
    """The end for an error that no message of the client led to."""
    if isinstance(error, AuthError):
        return Ending(UNAUTHORIZED, error)
    if isinstance(error, Draining):
        return Ending(SERVICE_RESTART, error)
    if isinstance(error, LimitError):
        return Ending(TRY_AGAIN_LATER, error)
    return Ending(INTERNAL_ERROR, error)


async def farewell(websocket: WebSocket, ending: Ending) -> None:
    """An error frame, then the close with the error's code as its reason. Nobody else may be sending."""
    with suppress(WebSocketDisconnect, WebSocketDisconnected):
        await websocket.send_text(frames.error(ending.error, ending.about))
        await websocket.close(ending.code, ending.error.code)
