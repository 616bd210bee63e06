"""The whole answer to a request that never gets as far as the app."""

import json
import secrets
from collections.abc import Iterable
from http import HTTPStatus

from headrace.errors import HeadraceError


def refusal(error: HeadraceError, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A response with `application/problem+json` (RFC 9457) that ends the connection."""
    title = HTTPStatus(error.status).phrase
    request_id = f"req_{secrets.token_hex(12)}"
    problem = {
        "type": f"urn:headrace:error:{error.code}",
        "title": title,
        "status": error.status,
        "detail": error.message,
        "instance": request_id,
        "code": error.code,
    }
    body = json.dumps(problem, separators=(",", ":")).encode()
    lines = [
        b"HTTP/1.1 %d %s" % (error.status, title.encode()),
        *(b"%s: %s" % header for header in headers),
        b"content-type: application/problem+json",
        b"content-length: %d" % len(body),
        b"x-request-id: " + request_id.encode(),
        b"cache-control: no-store",
        b"connection: close",
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
