"""Which web pages may open a socket, and which may ask a server that asks for no credential. Browsers let any page
try, and send cookies along, so the server has to ask.

A client that is no browser sends no Origin, and no cookie that a page could have borrowed.
"""

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from headrace.errors import OriginDenied


def check(headers: Headers, allowed: Collection[str]) -> None:
    """Raises `OriginDenied` for a page that neither this server served nor `allowed` names."""
    origin = _origin(headers)
    if origin is None:
        if "cookie" in headers:
            raise OriginDenied
        return
    host = headers.get("host", "").lower()
    if origin not in (f"http://{host}", f"https://{host}") and origin not in allowed:
        raise OriginDenied


def check_unasked(headers: Headers, allowed: Collection[str]) -> None:
    """As well, where no credential is asked for: raises `OriginDenied` for a page from a name.

    Whoever owns a name can point it at this machine after their page was loaded from theirs, and Host and Origin
    still agree (DNS rebinding). Addresses and `localhost` cannot be pointed elsewhere.
    """
    origin = _origin(headers)
    if origin is not None and origin not in allowed and not _is_local(origin):
        raise OriginDenied


def check_host_unasked(headers: Headers) -> None:
    """The same for requests, of which many carry no Origin: raises `OriginDenied` where the Host is such a name."""
    if not _is_local(f"//{headers.get('host', '')}"):
        raise OriginDenied


def _origin(headers: Headers) -> str | None:
    origins = headers.getlist("origin")
    if len(origins) > 1:
        raise OriginDenied
    return origins[0].lower() if origins else None


def _is_local(origin: str) -> bool:
    try:
        host = urlsplit(origin).hostname or ""
        return host == "localhost" or ip_address(host) is not None
    except ValueError:
        return False
