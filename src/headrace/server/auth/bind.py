"""What may be served on which address."""

from ipaddress import ip_address

from headrace.errors import ConfigurationError
from headrace.server.auth.tokens import MIN_SECRET


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. A name other than `localhost` may lead anywhere, so it is not."""
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def check_bind(host: str, *, auth_configured: bool, hmac_secret: bytes | None = None) -> None:
    """Raises `ConfigurationError` where a server must not start: the process then exits 78 with its message."""
    if not auth_configured and not is_loopback(host):
        raise ConfigurationError(
            f"Listening on {host or 'all addresses'!r} without authentication would let anybody in: "
            "make an API key with `headrace token key`, or listen on 127.0.0.1."
        )
    if hmac_secret is not None and len(hmac_secret) < MIN_SECRET:
        raise ConfigurationError(
            f"The HMAC secret has {len(hmac_secret)} bytes: use {MIN_SECRET} or more, "
            "such as from `openssl rand -hex 32`."
        )
