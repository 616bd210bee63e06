"""Around every request: an id, one log line, headers that protect browsers. Pure ASGI, so disconnects stay visible."""

import secrets
import time

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.limits import Limiter
from headrace.server.auth import redact_query

logger = structlog.get_logger("headrace.access")

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "frame-ancestors 'none'",
}


class RequestLog:
    def __init__(self, app: ASGIApp, *, limits: Limiter) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        began = time.perf_counter()
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers["X-Request-Id"] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if (principal := scope.get("state", {}).get("principal")) is not None:
                    headers.raw.extend(self._limits.headers(principal))
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_and_note)
            finally:
                logger.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    query=redact_query(scope["query_string"]).decode("latin-1"),
                    status=status,
                    seconds=round(time.perf_counter() - began, 4),
                )
