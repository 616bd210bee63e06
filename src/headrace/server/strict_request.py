"""Request bodies are read once, within a limit, and as strict JSON, before FastAPI validates them.

Of nobody, though, who may not ask: a body costs more to read than a credential.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from headrace.errors import BodyTooLarge, UnsupportedMediaType
from headrace.server import strict_json
from headrace.server.endpoints.parameters import caller


class StrictRequest(Request):
    """Holds the parsed body where Starlette's `json()` looks for it."""

    async def load(self, max_bytes: int) -> None:
        """Raises `UnsupportedMediaType`, `BodyTooLarge`, or what `strict_json` raises."""
        self._check_headers(max_bytes)
        body = bytearray()
        async for chunk in self.stream():
            body += chunk
            if len(body) > max_bytes:
                raise BodyTooLarge
        self._body = bytes(body)
        self._json = await strict_json.load(self._body)

    def _check_headers(self, max_bytes: int) -> None:
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType
        media_type, _, parameters = self.headers.get("content-type", "").partition(";")
        if media_type.strip().lower() != "application/json" or not _is_utf8(parameters):
            raise UnsupportedMediaType
        if int(self.headers.get("content-length", 0)) > max_bytes:
            raise BodyTooLarge


class StrictRoute(APIRoute):
    """A route whose JSON body, where it takes one, is a `StrictRequest`'s, of a known caller."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def load_first(request: Request) -> Response:
            await caller(request)
            strict = StrictRequest(request.scope, request.receive)
            await strict.load(request.app.state.services.max_body_bytes)
            return await handler(strict)

        return load_first


def _is_utf8(parameters: str) -> bool:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"').lower() in ("utf-8", "utf8")
    return True
