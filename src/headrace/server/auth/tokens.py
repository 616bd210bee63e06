"""JSON Web Tokens: verified against the keys of configured issuers, and issued for development.

Stricter than RFC 7519 where leniency has been a hole elsewhere: JSON is read strictly (no duplicate members), the
algorithm is bound to the key and never taken from the token, critical extensions are refused, and nothing in a header
but `alg` and `kid` is looked at. RFC 8725 gives the reasons.
"""

import base64
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jwt

from headrace.errors import AuthInvalid, ConfigurationError, RequestError
from headrace.identity import Limits, Owner, Principal
from headrace.server import strict_json
from headrace.server.auth import private_file
from headrace.server.auth.credential import is_name
from headrace.server.auth.watched import Watched

LEEWAY = 60.0
"""Seconds by which the clocks of issuer and server may differ."""
MIN_SECRET = 32
"""Bytes."""
OWN_ISSUER = "headrace"
"""Issuer and audience of the tokens of `issue_token`."""

_SEGMENT = r"[A-Za-z0-9_-]+"
_TOKEN = re.compile(rf"({_SEGMENT})\.({_SEGMENT})\.({_SEGMENT})")
_HMAC_SECRETS = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Bytes that a secret needs for each algorithm (RFC 7518, 3.2)."""
_ALGORITHMS = {"oct": set(_HMAC_SECRETS), "RSA": {"RS256"}, "EC": {"ES256"}, "OKP": {"EdDSA"}}
"""What a key of each type may verify."""
_MAX_INSTANT = 2**53


class TokenFault(Exception):
    """Why a token is refused, in fixed words: for the operator's log, never for the asker."""


@dataclass(frozen=True, kw_only=True)
class TokenIssuer:
    """Whose tokens are taken: exactly this `iss` and `aud`, signed with a secret or with a key of a JWKS file."""

    issuer: str
    audience: str
    secret: bytes | None = field(default=None, repr=False)
    """For HS256, HS384 and HS512: at least 32, 48 and 64 bytes."""
    jwks: Path | None = None
    """Read again when it changes, so keys can be rotated."""
    tenant_claim: str = "tenant"
    """The claim that names the tenant; a token without it belongs to the tenant `default`."""


def own_issuer(secret: bytes) -> TokenIssuer:
    """The issuer of `issue_token`."""
    return TokenIssuer(issuer=OWN_ISSUER, audience=OWN_ISSUER, secret=secret)


def issue_token(
    secret: bytes, *, subject: str, tenant: str = "default", ttl: float = 3600, scopes: Sequence[str] = ()
) -> str:
    """A token of `own_issuer(secret)` for `ttl` seconds. For development: only the end of it can take it back."""
    now = int(time.time())
    claims = {
        "iss": OWN_ISSUER,
        "aud": OWN_ISSUER,
        "sub": subject,
        "tenant": tenant,
        "scope": " ".join(scopes),
        "iat": now,
        "exp": now + ttl,
        "jti": secrets.token_hex(8),
    }
    return jwt.encode(claims, secret, algorithm="HS256")


def load_secret(path: Path) -> bytes:
    """The signing secret in the file at `path`, which is made, 0600, if there is none."""
    try:
        return _read_secret(path)
    except FileNotFoundError:
        pass
    with private_file.locked(path):
        if not path.exists():
            private_file.write(path, secrets.token_hex(32).encode())
    return _read_secret(path)


def _read_secret(path: Path) -> bytes:
    if path.stat().st_mode & 0o007:
        raise ConfigurationError(f"Others can read the secret in {path.name!r}: `chmod 600` it, then replace it.")
    secret = path.read_bytes().strip()
    if len(secret) < MIN_SECRET:
        raise ConfigurationError(f"The secret in {path.name!r} is shorter than {MIN_SECRET} bytes: remove the file.")
    return secret


class _Key(NamedTuple):
    key: jwt.PyJWK | bytes
    algorithms: frozenset[str]


_KeyRing = Mapping[str | None, _Key]
"""By `kid`."""


class TokenVerifier:
    """Verifies the tokens of some issuers. Reads their files; raises `ConfigurationError` for one of no use."""

    def __init__(
        self,
        issuers: Sequence[TokenIssuer],
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuers = [_Issuer(issuer, clock) for issuer in issuers]
        self._wall = wall

    def verify(self, token: str) -> Principal:
        """The principal a token stands for, without limits. Raises `AuthInvalid`; its cause says why."""
        faults = []
        try:
            header = _header(token)
            for issuer in self._issuers:
                try:
                    return issuer.verify(token, header, self._wall())
                except TokenFault as fault:
                    faults.append(f"{issuer.name}: {fault}")
            raise TokenFault("; ".join(faults) or "no issuer is configured")
        except TokenFault as fault:
            raise AuthInvalid from fault


class _Issuer:
    def __init__(self, config: TokenIssuer, clock: Callable[[], float]) -> None:
        self.name = config.issuer
        self._config = config
        self._keys = _key_source(config, clock)
        self._jws = jwt.PyJWS()

    def verify(self, token: str, header: "_Header", now: float) -> Principal:
        key = self._key(header)
        try:
            payload = self._jws.decode(token, key.key, algorithms=[header.algorithm])
            claims = strict_json.loads(payload)
        except (jwt.PyJWTError, RequestError) as error:
            raise TokenFault("the signature or the claims cannot be read") from error
        return _principal(claims, self._config, now)

    def _key(self, header: "_Header") -> _Key:
        key = _pick(self._keys(False), header.kid) or _pick(self._keys(True), header.kid)
        if key is None:
            raise TokenFault("no such key")
        if header.algorithm not in key.algorithms:
            raise TokenFault("not an algorithm of this key")
        return key


def _pick(keys: _KeyRing, kid: str | None) -> _Key | None:
    if kid is None and len(keys) == 1:
        return next(iter(keys.values()))
    return keys.get(kid)


# --- keys -------------------------------------------------------------------------------------------------------------


def _key_source(config: TokenIssuer, clock: Callable[[], float]) -> Callable[[bool], _KeyRing]:
    """Gives the keys of an issuer; called with True, as of this moment."""
    if (config.secret is None) == (config.jwks is None):
        raise ConfigurationError(f"The token issuer {config.issuer!r} needs a secret or a JWKS file, one of them.")
    if config.secret is not None:
        keys: _KeyRing = {None: _secret_key(config.secret)}
        return lambda _fresh: keys
    assert config.jwks is not None
    watched = Watched(config.jwks, _read_jwks, clock=clock)
    return lambda fresh: watched.get(fresh=fresh)


def _secret_key(secret: bytes) -> _Key:
    if len(secret) < MIN_SECRET:
        raise ConfigurationError(
            f"The HMAC secret has {len(secret)} bytes: use {MIN_SECRET} or more, such as from `openssl rand -hex 32`."
        )
    return _Key(secret, frozenset(name for name, length in _HMAC_SECRETS.items() if len(secret) >= length))


def _read_jwks(path: Path) -> _KeyRing:
    try:
        entries = strict_json.loads(path.read_bytes())["keys"]
        found = [(entry.get("kid"), _jwk(entry)) for entry in entries]
    except (OSError, RequestError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f'{path.name!r} is not a JWKS file: it has to hold {{"keys": [...]}}.') from error
    keys = {kid: key for kid, key in found if key is not None}
    if not keys:
        raise ConfigurationError(
            f"The JWKS file {path.name!r} has no key for HS256, RS256 (2048 bits or more), ES256 or EdDSA: add one."
        )
    if len(keys) < sum(key is not None for _, key in found):
        raise ConfigurationError(f"The JWKS file {path.name!r} has two keys with the same `kid`: give each its own.")
    return keys


def _jwk(entry: dict[str, Any]) -> _Key | None:
    """None for a key that we do not verify with, such as one for encryption: it may stand beside others."""
    try:
        key = jwt.PyJWK(entry)
    except jwt.PyJWTError:
        return None
    usable = entry.get("use", "sig") == "sig" and key.algorithm_name in _ALGORITHMS.get(entry["kty"], ())
    if not usable or key.Algorithm.check_key_length(key.key):
        return None
    return _Key(key, frozenset({key.algorithm_name}))


# --- the parts of a token ---------------------------------------------------------------------------------------------


class _Header(NamedTuple):
    algorithm: str
    kid: str | None


def _header(token: str) -> _Header:
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise TokenFault("not three parts of base64url")
    try:
        header = strict_json.loads(base64.urlsafe_b64decode(match[1] + "=" * (-len(match[1]) % 4)))
    except (ValueError, RequestError) as error:
        raise TokenFault("the header cannot be read") from error
    if "crit" in header or "b64" in header:
        raise TokenFault("the header has an extension")
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not isinstance(kid, str | None):
        raise TokenFault("`alg` or `kid` is not text")
    return _Header(algorithm, kid)


def _principal(claims: Mapping[str, Any], issuer: TokenIssuer, now: float) -> Principal:
    """`expires` has the leeway in it: it is when the token is no longer taken."""
    expires = _instant(claims, "exp") + LEEWAY
    if expires <= now:
        raise TokenFault("`exp` is past")
    for name in ("nbf", "iat"):
        if name in claims and _instant(claims, name) > now + LEEWAY:
            raise TokenFault(f"`{name}` is ahead")
    for name, expected in (("iss", issuer.issuer), ("aud", issuer.audience)):
        if claims.get(name) != expected:
            raise TokenFault(f"`{name}` is not what is configured")
    owner = Owner(_name(claims.get(issuer.tenant_claim, "default"), "the tenant"), _name(claims.get("sub"), "`sub`"))
    return Principal(
        subject=owner.subject,
        tenant=owner.tenant,
        scopes=_scopes(claims.get("scope", "")) | _scopes(claims.get("scopes", [])),
        limits=Limits(),
        credential_id="token:" + _name(claims["jti"], "`jti`") if "jti" in claims else None,
        expires=expires,
    )


def _instant(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _MAX_INSTANT:
        raise TokenFault(f"`{name}` is not a time")
    return float(value)


def _name(value: object, what: str) -> str:
    if not is_name(value):
        raise TokenFault(f"{what} is not a name")
    return value


def _scopes(value: object) -> frozenset[str]:
    scopes = value.split() if isinstance(value, str) else value
    if not isinstance(scopes, list) or not all(is_name(scope) for scope in scopes):
        raise TokenFault("the scopes are not names")
    return frozenset(scopes)
