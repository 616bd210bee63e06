"""Calls of a batch, made through the real routes in this process, in the name of who sent the batch.

No URL is ever fetched: a path is looked up in a short list of operations, and the app is called with it.
"""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message

from headrace.batch.item import Item, Response, refusal
from headrace.errors import (
    AuthRevoked,
    BatchHeaderForbidden,
    BatchPathForbidden,
    BatchStreamForbidden,
    HeadraceError,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
)
from headrace.identity import Principal
from headrace.limits import Limiter
from headrace.runs import Birth
from headrace.server import accept
from headrace.server.starting import BIRTH, EVENT_STREAM, JSON, LINES

_OPERATIONS: tuple[tuple[re.Pattern[str], frozenset[str]], ...] = tuple(
    (re.compile(pattern), frozenset(methods))
    for pattern, methods in (
        (r"/api/agent/chat", ["POST"]),
        (r"/api/tools", ["GET"]),
        (r"/api/tools/[^/]+/execute", ["POST"]),
        (r"/api/runs", ["POST"]),
        (r"/api/runs/[^/]+", ["GET"]),
        (r"/api/runs/[^/]+/cancel", ["POST"]),
    )
)
_PLAIN = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)+")
"""No query, no escapes, no segment that is empty or of dots: nothing that two readers could take for two paths."""
_ITSELF = "/api/batch"
_HEADERS = frozenset({"accept", "accept-language", "content-type", "idempotency-key", "traceparent", "tracestate"})


class InProcess:
    """The `Call` of batches. `still_valid` says whether a caller may go on: a batch may be older than their key."""

    def __init__(self, app: ASGIApp, *, limits: Limiter, still_valid: Callable[[Principal], bool]) -> None:
        self._app = app
        self._limits = limits
        self._still_valid = still_valid

    async def __call__(self, principal: Principal, item: Item, birth: Birth) -> Response:
        """Raises what is wrong with the item itself; what its call comes to is the response."""
        _check_operation(item)
        headers = _headers(item.headers)
        if not self._still_valid(principal):
            raise AuthRevoked
        if birth.number > 1 and not birth.again:  # the request that brought the batch was counted for the first one
            self._limits.request(principal)
        body = json.dumps(item.body).encode() if item.body is not None else b""
        reply = _Reply(body)
        await self._app(_scope(item, headers, len(body), principal, birth), reply.receive, reply.send)
        return reply.response(item.id)


def _check_operation(item: Item) -> None:
    path, question, query = item.path.partition("?")
    if question and query.startswith("stream=") and _methods(path) is not None:
        raise BatchStreamForbidden
    if not _PLAIN.fullmatch(item.path) or path.lower().startswith(_ITSELF):
        raise BatchPathForbidden
    methods = _methods(path)
    if methods is None:
        raise NotFound
    if item.method not in methods:
        raise MethodNotAllowed(
            f"This path does not take that method in a batch. It takes {', '.join(sorted(methods))}."
        )


def _methods(path: str) -> frozenset[str] | None:
    return next((methods for pattern, methods in _OPERATIONS if pattern.fullmatch(path)), None)


def _headers(given: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    headers = []
    for name, value in given.items():
        if not (name.isascii() and name.lower() in _HEADERS and value.isascii() and value.isprintable()):
            raise BatchHeaderForbidden
        headers.append((name.lower().encode(), value.encode()))
    if len({name for name, _ in headers}) != len(headers):
        raise BatchHeaderForbidden
    if any(name == b"accept" and _asks_for_stream(value.decode()) for name, value in headers):
        raise BatchStreamForbidden
    return headers


def _asks_for_stream(value: str) -> bool:
    try:
        return accept.choose(value, [JSON, EVENT_STREAM, LINES]) != JSON
    except NotAcceptable:
        return False  # as its route will say


def _scope(
    item: Item, headers: list[tuple[bytes, bytes]], length: int, principal: Principal, birth: Birth
) -> dict[str, Any]:
    if b"content-type" not in {name for name, _ in headers}:
        headers.append((b"content-type", b"application/json"))
    headers.append((b"content-length", str(length).encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": item.method,
        "scheme": "http",
        "path": item.path,
        "raw_path": item.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        "state": {"principal": principal, BIRTH: birth},
    }


class _Reply:
    """The far side of one call."""

    def __init__(self, body: bytes) -> None:
        self._request: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._status = 0
        self._run_id: str | None = None
        self._body = bytearray()

    async def receive(self) -> Message:
        if self._request:
            return self._request.pop()
        await asyncio.get_running_loop().create_future()  # who called is never gone: a call that is no longer wanted
        raise AssertionError  # is cancelled

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            run_ids = [value.decode() for name, value in message["headers"] if name.lower() == b"x-run-id"]
            self._run_id = run_ids[0] if run_ids else None
        else:
            self._body += message.get("body", b"")

    def response(self, item_id: str) -> Response:
        try:
            document = msgspec.json.decode(self._body) if self._body else None
        except msgspec.MsgspecError:
            return refusal(item_id, HeadraceError(), run_id=self._run_id)
        if self._status < 400:
            return Response(id=item_id, status=self._status, body=document, run_id=self._run_id)
        problem = document if isinstance(document, dict) else {}
        return Response(
            id=item_id,
            status=self._status,
            error=problem.get("detail", HeadraceError.detail),
            code=problem.get("code", HeadraceError.code),
            errors=problem.get("errors"),
            budget=problem.get("budget"),
            run_id=self._run_id,
        )
