"""Who is asking, and what belongs to them."""

import msgspec


def is_printable_name(text: str) -> bool:
    """1 to 128 printable ASCII characters: names and ids come back in headers, logs and other people's programs."""
    return 0 < len(text) <= 128 and text.isascii() and text.isprintable()


class Owner(msgspec.Struct, frozen=True):
    """Whose a run is. Runs of another owner do not exist for the asker (404, never 403)."""

    tenant: str
    subject: str


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one principal may use at a time; `None` means no limit."""

    streams: int | None = None
    """Open streams and sockets."""
    requests_per_minute: int | None = None


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """The verified asker. Made by authentication only, never from a body or an unverified header."""

    subject: str
    tenant: str = "default"
    scopes: frozenset[str] = frozenset()
    limits: Limits = Limits()
    credential_id: str | None = None
    """Names the API key or token (never the secret), so that an open stream can notice its revocation."""
    expires: float | None = None
    """Epoch seconds at which the credential ends, if it does."""

    @property
    def owner(self) -> Owner:
        return Owner(self.tenant, self.subject)

    @property
    def is_local(self) -> bool:
        """Whether this is `LOCAL`, whatever it may use."""
        return msgspec.structs.replace(self, limits=LOCAL.limits) == LOCAL


LOCAL = Principal(subject="local", tenant="local", scopes=frozenset({"admin", "metrics"}))
"""The asker on a loopback server without authentication."""
