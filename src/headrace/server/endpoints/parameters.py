"""What several routes take: the caller, a position, an idempotency key, a filter."""

import hashlib
from typing import Annotated, Literal

from fastapi import Depends, Query, Request

from headrace.errors import AmbiguousPosition, InvalidField, InvalidIdempotencyKey
from headrace.events import KIND_OF, KINDS, AttemptStarted
from headrace.identity import LOCAL, Principal
from headrace.ports import Idempotency
from headrace.position import Position
from headrace.server import origin
from headrace.server.auth import client_address
from headrace.server.services import Services


async def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def caller(request: Request) -> Principal:
    """The verified asker, within their limit of requests. A one-time `ticket` serves where headers cannot be sent.

    A request is asked once, however often this is called for it.
    """
    known: Principal | None = getattr(request.state, "principal", None)
    if known is not None:
        return known
    services = await services_of(request)
    principal = services.authenticator.authenticate(
        request.scope["headers"],
        ticket=request.query_params.get("ticket"),
        client=client_address(request.scope.get("client"), request.scope["headers"], services.trusted_proxies),
    )
    if principal == LOCAL:
        origin.check_host_unasked(request.headers)
    request.state.principal = principal
    services.limits.request(principal)
    return principal


async def position(request: Request, after: str | None = None) -> Position | None:
    """Where to go on, from `after` or the Last-Event-ID header; `-1` and nothing mean from the start."""
    last_event_id = request.headers.get("last-event-id")
    if after and last_event_id and after != last_event_id:
        raise AmbiguousPosition
    text = after or last_event_id
    return None if not text or text == "-1" else Position.parse(text)


async def mounted_at(request: Request) -> str:
    """The path before ours where this app is mounted into another."""
    return str(request.scope.get("root_path", ""))


async def event_kinds(
    kinds: Annotated[str | None, Query(description="Only these kinds, separated by commas.")] = None,
) -> frozenset[str] | None:
    """What says that earlier text is void cannot be left out, or the text would look doubled."""
    if kinds is None:
        return None
    wanted = frozenset(kinds.split(","))
    if unknown := wanted - KINDS.keys():
        detail = (
            f"unknown kinds: {', '.join(sorted(unknown))[:200]}" if all(map(str.isprintable, unknown)) else "unknown"
        )
        raise InvalidField(errors=[{"parameter": "kinds", "detail": detail}])
    return wanted | {KIND_OF[AttemptStarted]}


async def idempotency(request: Request) -> Idempotency | None:
    """The key with a digest of what is asked. Call it after the body was read."""
    key = idempotency_key(request)
    if key is None:
        return None
    asked = b"\n".join([request.method.encode(), request.url.path.encode(), await request.body()])
    return Idempotency(key, hashlib.sha256(asked).hexdigest())


def idempotency_key(request: Request) -> str | None:
    """Raises `InvalidIdempotencyKey`."""
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise InvalidIdempotencyKey
    return key


Caller = Annotated[Principal, Depends(caller)]
After = Annotated[Position | None, Depends(position)]
Kinds = Annotated[frozenset[str] | None, Depends(event_kinds)]
RootPath = Annotated[str, Depends(mounted_at)]
Door = Annotated[Services, Depends(services_of)]
TokensPerSecond = Annotated[
    int | None,
    Query(ge=1, le=1000, description="Shows the text of a stream evenly: at most so many 4 characters a second."),
]
OnDisconnect = Annotated[
    Literal["detach", "cancel"],
    Query(description="What a client that goes away does to the run it started: nothing, or cancel it."),
]
