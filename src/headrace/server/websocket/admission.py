"""Who may open a socket: decided at the handshake, or by the first message where a browser could send nothing else."""

import asyncio

from starlette.websockets import WebSocket, WebSocketDisconnect

from headrace.errors import AuthInvalid, AuthMissing, Draining, RequestError
from headrace.identity import Principal
from headrace.server import origin, strict_json
from headrace.server.auth import client_address
from headrace.server.services import Services
from headrace.server.websocket import messages
from headrace.server.websocket.messages import Auth

AUTH_SECONDS = 5.0
"""For the first message, where it has to bring the credential."""


def admit(websocket: WebSocket, services: Services) -> Principal | None:
    """Who opens the socket; None where they have still to say so. Raises what the handshake is refused with."""
    origin.check(websocket.headers, services.allowed_origins)
    if websocket.scope["subprotocols"]:
        # Credentials hidden in subprotocols, and old dialects that ask for none, have been ways around the door.
        raise AuthInvalid("This socket takes no subprotocol: send the credential as header, ticket or first message.")
    if services.open_streams.draining:
        raise Draining(retry_after=1)
    try:
        principal = _authenticate(websocket, services, websocket.scope["headers"], websocket.query_params.get("ticket"))
    except AuthMissing:
        return None
    if principal.is_local:
        origin.check_unasked(websocket.headers, services.allowed_origins)
    return principal


async def introduced(websocket: WebSocket, services: Services) -> Principal:
    """Who sends the first message. Raises `AuthMissing` for any other than `auth`, or none in time, `AuthInvalid`,
    `AuthAmbiguous`, `TooManyRequests`, and `WebSocketDisconnect`."""
    try:
        async with asyncio.timeout(AUTH_SECONDS):
            message = await websocket.receive()
    except TimeoutError:
        raise AuthMissing from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
    token = await _token(message.get("text"))
    return _authenticate(websocket, services, [(b"authorization", b"Bearer " + token.encode())], None)


async def _token(text: str | None) -> str:
    try:
        message = messages.parse(await strict_json.load((text or "").encode()))
    except RequestError as error:
        raise AuthMissing from error
    if not isinstance(message, Auth):
        raise AuthMissing
    return message.token


def _authenticate(
    websocket: WebSocket, services: Services, headers: list[tuple[bytes, bytes]], ticket: str | None
) -> Principal:
    client = client_address(websocket.scope.get("client"), websocket.scope["headers"], services.trusted_proxies)
    return services.authenticator.authenticate(headers, ticket=ticket, client=client)
