"""What a request presents to say who is asking."""

import re
from collections.abc import Sequence
from typing import TypeGuard
from urllib.parse import unquote_to_bytes

from headrace.errors import AuthAmbiguous, AuthInvalid

MAX_LENGTH = 8192
"""Characters of a credential."""

_CREDENTIAL = re.compile(rb"[\x21-\x7e]{1,%d}" % MAX_LENGTH)
_SECRET_PARAMETERS = {b"access_token", b"api_key", b"ticket", b"token", b"webhook"}


def presented(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """The key or token in `Authorization: Bearer` or `X-API-Key`; it means the same in both.

    Raises `AuthAmbiguous` where there could be two, and `AuthInvalid` for anything that is neither.
    """
    bearers = [_bearer(value) for name, value in headers if name.lower() == b"authorization"]
    keys = [value for name, value in headers if name.lower() == b"x-api-key"]
    if len(bearers) > 1 or len(keys) > 1 or len({*bearers, *keys}) > 1:
        raise AuthAmbiguous
    if not bearers and not keys:
        return None
    credential = (bearers or keys)[0]
    if not _CREDENTIAL.fullmatch(credential):
        raise AuthInvalid
    return credential.decode("ascii")


def _bearer(value: bytes) -> bytes:
    """Empty for any other scheme."""
    scheme, _, credential = value.partition(b" ")
    return credential.strip(b" ") if scheme.lower() == b"bearer" else b""


def redact_query(query: bytes) -> bytes:
    """A query string as it may stand in a log: without the values of parameters that people put secrets into."""
    return b"".join(_redact(part) for part in re.split(rb"([&;])", query))


def _redact(part: bytes) -> bytes:
    name, equals, _ = part.partition(b"=")
    if equals and unquote_to_bytes(name.replace(b"+", b" ")).strip().lower() in _SECRET_PARAMETERS:
        return name + b"=REDACTED"
    return part


def is_name(value: object) -> TypeGuard[str]:
    """Whether `value` can name a subject, a tenant or a scope: 1 to 255 printable characters."""
    return isinstance(value, str) and 1 <= len(value) <= 255 and value.isprintable()
