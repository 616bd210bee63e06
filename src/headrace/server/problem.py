"""Errors as RFC 9457 problem documents: `type, title, status, detail, instance, code`; `instance` is the request id."""

import math
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from headrace.errors import (
    AuthError,
    ForbiddenField,
    HeadraceError,
    InvalidField,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
)
from headrace.events import ErrorInfo
from headrace.json_schema import to_pointer
from headrace.protocols.payload import to_json

MEDIA_TYPE = "application/problem+json"
_TITLES = {499: "Client Closed Request"}
_MOST_ERRORS = 20
"""That are listed: an answer must not grow with the nonsense it answers."""
_LONGEST = 200
"""Characters of a pointer, which has names in it that the client made up."""


def problem_response(error: HeadraceError, **headers: str) -> Response:
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, AuthError) and error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _response(error.info(), error.extra, headers)


def failed_run_response(error: ErrorInfo, run_id: str) -> Response:
    """The answer to a caller that waited for a run which failed."""
    return _response(error, {"run_id": run_id}, {"X-Run-Id": run_id})


def install(app: FastAPI) -> None:
    """Let every error that leaves an endpoint become a problem document."""

    @app.exception_handler(HeadraceError)
    async def headrace_error(request: Request, error: HeadraceError) -> Response:
        return problem_response(error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return problem_response(field_error(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_exception(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            return problem_response(MethodNotAllowed(), Allow=", ".join(_allowed_methods(request)))
        if error.status_code == 404:
            return problem_response(NotFound())
        return problem_response(InvalidRequest())

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return problem_response(HeadraceError())


def field_error(errors: Any) -> HeadraceError:
    """pydantic's findings as JSON Pointers into the body, or names of query parameters."""
    entries = []
    for error in errors[:_MOST_ERRORS]:
        where, *path = error["loc"]
        entry = {"detail": error["msg"]}
        if where == "body":
            entry["pointer"] = to_pointer(path)[:_LONGEST]
        else:
            entry["parameter"] = str(path[0]) if path else str(where)
        entries.append(entry)
    if any(error["type"] == "extra_forbidden" for error in errors):
        return ForbiddenField(errors=entries)
    return InvalidField(errors=entries)


def _allowed_methods(request: Request) -> list[str]:
    methods: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return sorted(methods)


def _response(error: ErrorInfo, extra: dict[str, Any], headers: dict[str, str]) -> Response:
    instance = structlog.contextvars.get_contextvars().get("request_id", "")
    document = {
        "type": f"urn:headrace:error:{error.code}",
        "title": _TITLES.get(error.status) or HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "instance": instance,
        "code": error.code,
        **extra,
    }
    return Response(to_json(document), error.status, headers, media_type=MEDIA_TYPE)
