"""Around every request: an id, one log line, headers that protect browsers. Pure ASGI, so disconnects stay visible."""

import secrets
import time

import structlog
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.errors import HeadraceError
from headrace.limits import Limiter
from headrace.server.auth import redact_query
from headrace.server.problem import problem_response

HANDOVER = "headrace.handover"

logger = structlog.get_logger("headrace.access")

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "frame-ancestors 'none'",
}


class RequestLog:
    """The outermost layer. A response that is a `Handover` is run here, after everything inside has returned: so a
    stream that lasts for hours does not hold the framework's frames, and does not send through its wrappers."""

    def __init__(self, app: ASGIApp, *, limits: Limiter) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = tuple(scope)
        request_id = f"req_{secrets.token_hex(12)}"
        structlog.contextvars.bind_contextvars(request_id=request_id)
        began = time.perf_counter()
        status, ended = 0, False

        async def send_and_note(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(scope, message, request_id)
            else:
                ended = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
            if (handed_over := scope["state"].pop(HANDOVER, None)) is not None:
                for key in scope.keys() - given:  # the framework's, kilobytes of it
                    del scope[key]
                await handed_over(scope, receive, send_and_note)
        except Exception:
            logger.exception("request failed")
            if not status:
                await problem_response(HeadraceError())(scope, receive, send_and_note)
            elif not ended:
                raise  # the listener cuts the response, so that it does not look complete
        finally:
            logger.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                query=redact_query(scope["query_string"]).decode("latin-1"),
                status=status,
                seconds=round(time.perf_counter() - began, 4),
            )

    def _add_headers(self, scope: Scope, message: Message, request_id: str) -> None:
        headers = MutableHeaders(raw=message["headers"])
        headers["X-Request-Id"] = request_id
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
        if (principal := scope["state"].get("principal")) is not None:
            headers.raw.extend(self._limits.headers(principal))


class Handover(Response):
    """A response whose `respond` is called once the app has returned, if `RequestLog` is around it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"][HANDOVER] = self.respond

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError
