"""Who is asking, from what a request presents."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from headrace.errors import AuthAmbiguous, AuthInvalid, AuthMissing, TooManyRequests
from headrace.identity import LOCAL, Limits, Principal
from headrace.limits import Rate
from headrace.server.auth import api_keys
from headrace.server.auth.api_keys import Keys
from headrace.server.auth.credential import presented
from headrace.server.auth.peer import rate_key
from headrace.server.auth.tickets import Tickets
from headrace.server.auth.tokens import TokenIssuer, TokenVerifier
from headrace.server.auth.watched import Watched

logger = structlog.get_logger("headrace.server.auth")


@dataclass(frozen=True, kw_only=True)
class AuthConfig:
    keys: Path
    """The key file. It need not exist."""
    issuers: tuple[TokenIssuer, ...] = ()
    local: bool = False
    """Whether everybody is `LOCAL` as long as there is neither a key nor an issuer: for loopback only."""
    limits: Limits = field(default_factory=Limits)
    """Of principals whose key has none of its own."""
    faults_per_minute: int = 20
    """Wrong credentials of one peer that are answered as such; more are told to wait."""

    def configured(self) -> bool:
        """Whether there is any way to say who one is. Reads the key file; raises `ConfigurationError`."""
        return bool(self.issuers) or bool(api_keys.read(self.keys).all)


class Authenticator:
    """Makes principals of credentials. Quick, without I/O but a look at the key file; for one event loop.

    Raises `ConfigurationError` when it is made from unusable files.
    """

    def __init__(
        self,
        config: AuthConfig,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tickets = Tickets(clock=clock)
        self._config = config
        self._wall = wall
        self._keys: Watched[Keys] = Watched(config.keys, api_keys.read, clock=clock)
        self._tokens = TokenVerifier(config.issuers, wall=wall, clock=clock)
        self._faults = Rate(clock=clock)
        self._open = config.local and not config.issuers
        self._local = msgspec.structs.replace(LOCAL, limits=config.limits)

    def authenticate(
        self, headers: Sequence[tuple[bytes, bytes]], *, ticket: str | None = None, client: str | None
    ) -> Principal:
        """Who sent a request with these `headers` from the address `client`.

        `ticket` is what the request's query has under that name, on routes that take one. Nothing else of a query is
        a credential. Raises `AuthMissing`, `AuthInvalid` (one for all faults), `AuthAmbiguous`, and `TooManyRequests`
        with `retry_after` in place of `AuthInvalid` for a peer that makes too many faults. A good credential is
        always taken, so that one bad client behind a shared address does not lock out the others.
        """
        if self._is_open():
            return self._local
        try:
            return self._principal(presented(headers), ticket)
        except AuthInvalid as error:
            wait = self._faults.take(rate_key(client), self._config.faults_per_minute)
            if wait:
                raise TooManyRequests(retry_after=wait) from error
            logger.info("credential_refused", client=client, reason=str(error.__cause__ or "unknown or ended"))
            raise

    def still_valid(self, principal: Principal) -> bool:
        """Whether what made `principal` would still make it: for streams and sockets that stay open.

        False within seconds after its key or its subject was disabled, its key lost a scope, or its token ended.
        """
        if principal.is_local:
            return self._is_open()
        keys = self._keys.get()
        if principal.owner in keys.disabled_subjects:
            return False
        if principal.expires is not None:
            return principal.expires > self._wall()
        return keys.grants(principal)

    def _principal(self, credential: str | None, ticket: str | None) -> Principal:
        if credential is not None and ticket is not None:
            raise AuthAmbiguous
        if ticket is not None:
            principal = self.tickets.redeem(ticket)
        elif credential is None:
            raise AuthMissing
        elif credential.startswith(api_keys.PREFIX):
            principal = self._key_holder(credential)
        else:
            principal = msgspec.structs.replace(self._tokens.verify(credential), limits=self._config.limits)
        if not self.still_valid(principal):
            raise AuthInvalid
        return principal

    def _key_holder(self, secret: str) -> Principal:
        # Looked up afresh before it is refused, so that a new key works at once.
        key = self._keys.get().find(secret) or self._keys.get(fresh=True).find(secret)
        if key is None:
            raise AuthInvalid
        return key.principal(self._config.limits)

    def _is_open(self) -> bool:
        """Once the first key is made, the server stays closed, even if the file goes away again."""
        if self._open and self._keys.get().all:
            self._open = False
        return self._open
