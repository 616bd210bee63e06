"""Which address is asking."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network

UNKNOWN = "unknown"
"""The address of a peer that has none, as on a Unix socket."""


def client_address(
    scope_client: tuple[str, int] | None, headers: Sequence[tuple[bytes, bytes]], trusted: Sequence[Network]
) -> str:
    """The address that asks: the peer's, or what trusted proxies say in X-Forwarded-For.

    The header is read from its end, where our own proxies write, and only as far as they vouch for it: the first
    address that is no trusted proxy is the client's. Anybody can have written what stands before.
    """
    client = _address(scope_client[0]) if scope_client else None
    if client is None:
        return scope_client[0] if scope_client else UNKNOWN
    for entry in reversed(_forwarded_for(headers)):
        if not _is_trusted(client, trusted):
            break
        previous = _address(entry)
        if previous is None:
            break
        client = previous
    return str(client)


def rate_key(client: str | None) -> str:
    """Under what the faults of `client` are counted: an IPv6 subscriber has a /64, not one address."""
    address = _address(client) if client else None
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address), 64), strict=False))
    return str(address or client or UNKNOWN)


def _forwarded_for(headers: Sequence[tuple[bytes, bytes]]) -> list[str]:
    values = [value.decode("latin-1") for name, value in headers if name.lower() == b"x-forwarded-for"]
    return [entry.strip() for entry in ",".join(values).split(",")] if values else []


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_trusted(address: IPv4Address | IPv6Address, trusted: Sequence[Network]) -> bool:
    return any(address in network for network in trusted)
