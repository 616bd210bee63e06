"""The Auth rows of PROMISE: what is taken as a credential, and the exact answer to what is not.

Attack tokens are put together by hand, since libraries refuse to make them.
"""

import base64
import hashlib
import hmac
import json
import math
import os
import socket
import stat
import subprocess
import sys
import time
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import (
    AuthAmbiguous,
    AuthInvalid,
    AuthMissing,
    ConfigurationError,
    InvalidField,
    NotFound,
    TooManyRequests,
)
from headrace.identity import LOCAL, Limits, Owner, Principal
from headrace.server.auth import (
    AuthConfig,
    Authenticator,
    KeyFile,
    TokenIssuer,
    check_bind,
    client_address,
    is_loopback,
    issue_token,
    load_secret,
    own_issuer,
    redact_query,
)

SECRET = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
ISSUER, AUDIENCE = "https://id.example", "https://headrace.example"
NOW = 1_900_000_000.0
PEER = "203.0.113.7"


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


# --- tokens by hand ---------------------------------------------------------------------------------------------------


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def encoded(part: dict[str, Any] | str) -> str:
    return b64((part if isinstance(part, str) else json.dumps(part)).encode())


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims with `changes`; None takes a claim out."""
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": NOW + 600, "iat": NOW}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def hmac_token(
    payload: dict[str, Any] | str | None = None,
    header: dict[str, Any] | str | None = None,
    *,
    secret: bytes = SECRET,
    digest: str = "sha256",
) -> str:
    signed = f"{encoded(header or {'alg': 'HS256', 'typ': 'JWT'})}.{encoded(payload or claims())}"
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), digest).digest())}"


def rsa_token(kid: Any) -> str:
    signed = f"{encoded({'alg': 'RS256', 'kid': kid})}.{encoded(claims())}"
    return f"{signed}.{b64(jwt.get_algorithm_by_name('RS256').sign(signed.encode(), RSA_KEY))}"


# --- a server's authentication ----------------------------------------------------------------------------------------


RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
STRANGER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_jwk(key: Any, algorithm: str, **members: Any) -> dict[str, Any]:
    jwk = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {**jwk, **members}


@pytest.fixture
def jwks(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    keys = [
        public_jwk(RSA_KEY, "RS256", kid="rsa", alg="RS256", use="sig"),
        public_jwk(EC_KEY, "ES256", kid="ec"),
        public_jwk(ED_KEY, "EdDSA", kid="ed"),
        public_jwk(STRANGER_KEY, "RS256", kid="enc", use="enc"),
        {"kty": "future", "kid": "future"},
    ]
    path.write_text(json.dumps({"keys": keys}))
    return path


class Server:
    """An `Authenticator` whose clocks stand still."""

    def __init__(self, folder: Path, *issuers: TokenIssuer, **config: Any) -> None:
        self.wall, self.clock = Clock(NOW), Clock(5_000.0)
        self.keys = KeyFile(folder / "auth.json")
        self.config = AuthConfig(keys=folder / "auth.json", issuers=issuers, **config)
        self.auth = Authenticator(self.config, wall=self.wall, clock=self.clock)

    def ask(self, *headers: tuple[bytes, bytes], ticket: str | None = None, client: str | None = PEER) -> Principal:
        return self.auth.authenticate(headers, ticket=ticket, client=client)

    def bearer(self, credential: str | bytes, client: str | None = PEER) -> Principal:
        raw = credential if isinstance(credential, bytes) else credential.encode("latin-1")
        return self.ask((b"authorization", b"Bearer " + raw), client=client)

    def refuses(self, credential: str | bytes) -> None:
        with pytest.raises(AuthInvalid) as refused:
            self.bearer(credential, client=os.urandom(4).hex())
        assert_one_answer(refused.value)


def assert_one_answer(error: AuthInvalid) -> None:
    """All faults of a credential look the same to the asker."""
    assert type(error) is AuthInvalid
    assert (error.status, error.code, error.message) == (401, "auth.invalid", AuthInvalid.detail)
    assert error.extra == {}
    assert error.retry_after is None


@pytest.fixture
def by_secret(tmp_path: Path) -> Server:
    return Server(tmp_path, TokenIssuer(issuer=ISSUER, audience=AUDIENCE, secret=SECRET))


@pytest.fixture
def by_jwks(tmp_path: Path, jwks: Path) -> Server:
    return Server(tmp_path, TokenIssuer(issuer=ISSUER, audience=AUDIENCE, jwks=jwks))


@pytest.fixture
def by_key(tmp_path: Path) -> tuple[Server, str]:
    secret = KeyFile(tmp_path / "auth.json").create("ada", tenant="acme", scopes=["runs", "admin"]).secret
    return Server(tmp_path), secret


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_a_loopback_server_without_auth_knows_only_the_local_user(tmp_path: Path) -> None:
    server = Server(tmp_path, local=True)
    assert server.ask() == LOCAL
    assert server.bearer("whatever an SDK insists on sending") == LOCAL
    assert server.auth.still_valid(LOCAL)
    assert not server.config.configured()


def test_the_first_key_closes_a_local_server_for_good(tmp_path: Path) -> None:
    server = Server(tmp_path, local=True)
    assert server.ask() == LOCAL
    secret = server.keys.create("ada").secret
    server.clock.now += 2
    with pytest.raises(AuthMissing):
        server.ask()
    assert server.bearer(secret).subject == "ada"
    assert not server.auth.still_valid(LOCAL)
    (tmp_path / "auth.json").unlink()
    server.clock.now += 2
    with pytest.raises(AuthMissing):
        server.ask()


def test_without_leave_for_local_nobody_is_local(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with pytest.raises(AuthMissing):
        server.ask()
    server.refuses("hr_x")
    server.refuses(hmac_token())


@pytest.mark.parametrize("prefix", [b"Bearer ", b"bearer ", b"BEARER   "])
def test_an_api_key_as_bearer(by_key: tuple[Server, str], prefix: bytes) -> None:
    server, secret = by_key
    principal = server.ask((b"authorization", prefix + secret.encode()))
    assert (principal.tenant, principal.subject) == ("acme", "ada")
    assert principal.scopes == {"runs", "admin"}
    assert principal.credential_id == server.keys.list()[0].id


def test_an_api_key_in_its_own_header_is_the_same(by_key: tuple[Server, str]) -> None:
    server, secret = by_key
    assert server.ask((b"X-API-Key", secret.encode())) == server.bearer(secret)


def test_limits_come_from_the_key_or_else_from_the_server(tmp_path: Path) -> None:
    server = Server(tmp_path, own_issuer(SECRET), limits=Limits(streams=100))
    plain = server.keys.create("ada").secret
    special = server.keys.create("bob", limits=Limits(requests_per_minute=5)).secret
    assert server.bearer(plain).limits == Limits(streams=100)
    assert server.bearer(special).limits == Limits(requests_per_minute=5)
    server.wall.now = time.time()
    assert server.bearer(issue_token(SECRET, subject="eve")).limits == Limits(streams=100)


def test_a_new_key_works_at_once(by_key: tuple[Server, str]) -> None:
    server, secret = by_key
    server.bearer(secret)
    assert server.bearer(server.keys.create("bob").secret).subject == "bob"


def test_a_token_of_our_own(tmp_path: Path) -> None:
    server = Server(tmp_path, own_issuer(SECRET))
    server.wall.now = time.time()
    principal = server.bearer(issue_token(SECRET, subject="ada", tenant="acme", ttl=60, scopes=["runs", "admin"]))
    assert (principal.tenant, principal.subject) == ("acme", "ada")
    assert principal.scopes == {"runs", "admin"}
    assert principal.credential_id is not None
    assert principal.expires == pytest.approx(server.wall.now + 60 + 60, abs=5)
    assert server.config.configured()


@pytest.mark.parametrize(("algorithm", "digest"), [("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512")])
def test_a_secret_verifies_hmac(by_secret: Server, algorithm: str, digest: str) -> None:
    principal = by_secret.bearer(hmac_token(header={"alg": algorithm}, digest=digest))
    assert (principal.tenant, principal.subject, principal.scopes) == ("default", "ada", frozenset())


def test_a_secret_verifies_only_what_it_is_long_enough_for(tmp_path: Path) -> None:
    server = Server(tmp_path, TokenIssuer(issuer=ISSUER, audience=AUDIENCE, secret=SECRET[:32]))
    server.bearer(hmac_token(secret=SECRET[:32]))
    server.refuses(hmac_token(header={"alg": "HS512"}, secret=SECRET[:32], digest="sha512"))


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(RSA_KEY, "RS256", "rsa"), (EC_KEY, "ES256", "ec"), (ED_KEY, "EdDSA", "ed")]
)
def test_keys_of_a_jwks_file(by_jwks: Server, key: Any, algorithm: str, kid: str) -> None:
    assert by_jwks.bearer(jwt.encode(claims(), key, algorithm=algorithm, headers={"kid": kid})).subject == "ada"
    by_jwks.refuses(jwt.encode(claims(), key, algorithm=algorithm))  # several keys, none named


def test_a_jwks_file_of_one_key_needs_no_kid(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"keys": [public_jwk(EC_KEY, "ES256")]}))
    server = Server(tmp_path, TokenIssuer(issuer=ISSUER, audience=AUDIENCE, jwks=path))
    assert server.bearer(jwt.encode(claims(), EC_KEY, algorithm="ES256")).subject == "ada"
    server.refuses(jwt.encode(claims(), EC_KEY, algorithm="ES256", headers={"kid": "other"}))


def test_keys_can_be_rotated(by_jwks: Server, jwks: Path) -> None:
    old = jwt.encode(claims(), RSA_KEY, algorithm="RS256", headers={"kid": "rsa"})
    new = jwt.encode(claims(), STRANGER_KEY, algorithm="RS256", headers={"kid": "next"})
    by_jwks.bearer(old)
    by_jwks.refuses(new)
    jwks.write_text(json.dumps({"keys": [public_jwk(STRANGER_KEY, "RS256", kid="next")]}))
    assert by_jwks.bearer(new).subject == "ada"
    by_jwks.refuses(old)
    jwks.write_text("{ half written")
    by_jwks.clock.now += 2
    assert by_jwks.bearer(new).subject == "ada"


def test_claims_name_tenant_and_scopes(tmp_path: Path) -> None:
    server = Server(tmp_path, TokenIssuer(issuer=ISSUER, audience=AUDIENCE, secret=SECRET, tenant_claim="org"))
    principal = server.bearer(hmac_token(claims(org="acme", tenant="evil", scope="a b", scopes=["b", "c"], jti="t1")))
    assert (principal.tenant, principal.subject) == ("acme", "ada")
    assert principal.scopes == {"a", "b", "c"}
    assert principal.credential_id == "token:t1"


def test_two_issuers_do_not_vouch_for_each_other(tmp_path: Path, jwks: Path) -> None:
    server = Server(
        tmp_path,
        TokenIssuer(issuer=ISSUER, audience=AUDIENCE, jwks=jwks),
        TokenIssuer(issuer="own", audience="own", secret=SECRET),
    )
    headers = {"kid": "rsa"}
    assert server.bearer(jwt.encode(claims(), RSA_KEY, "RS256", headers)).subject == "ada"
    assert server.bearer(hmac_token(claims(iss="own", aud="own"))).subject == "ada"
    server.refuses(jwt.encode(claims(iss="own", aud="own"), RSA_KEY, "RS256", headers))
    server.refuses(hmac_token(claims()))
    server.refuses(hmac_token(claims(iss="own")))


# --- the rows ---------------------------------------------------------------------------------------------------------


def test_row_01_no_credential(by_secret: Server) -> None:
    for headers in ((), ((b"cookie", b"token=x"),), ((b"x-user-id", b"root"),)):
        with pytest.raises(AuthMissing) as missing:
            by_secret.ask(*headers)
        assert (missing.value.status, missing.value.code) == (401, "auth.missing")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic YTpi",
        b"Negotiate x",
        b"Token x",
        b"hr_x",
        b"Bearer a b",
        b"Bearer \xff",
        b"Bearer a,Bearer b",
    ],
)
def test_a_header_that_holds_no_bearer_credential(by_secret: Server, value: bytes) -> None:
    with pytest.raises(AuthInvalid) as refused:
        by_secret.ask((b"authorization", value))
    assert_one_answer(refused.value)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", "HS256 ", "hs256", "HS1", "RS256"])
def test_row_02_alg_none_and_other_spellings(by_secret: Server, algorithm: str) -> None:
    by_secret.refuses(hmac_token(header={"alg": algorithm}))
    unsigned = f"{encoded({'alg': algorithm})}.{encoded(claims())}"
    by_secret.refuses(unsigned + ".")
    by_secret.refuses(unsigned)
    by_secret.refuses(unsigned + ".AA")


@pytest.mark.parametrize(
    "header",
    [
        '{"alg":"HS256","alg":"none"}',
        '{"alg":"none","alg":"HS256"}',
        '{"alg":"HS256","\\u0061lg":"HS256"}',
        '{"alg":["HS256"]}',
        '{"alg":null}',
        "{}",
        "[]",
        '"HS256"',
        '{"alg":"HS256"',
        "{" * 2000,
    ],
)
def test_row_02_duplicate_or_odd_alg(by_secret: Server, header: str) -> None:
    by_secret.refuses(hmac_token(header=header))
    assert by_secret.bearer(hmac_token(header='{"alg":"HS256"}')).subject == "ada"


@pytest.mark.parametrize("encoding", [serialization.Encoding.PEM, serialization.Encoding.DER])
@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_row_03_hmac_with_the_public_key_as_secret(
    by_jwks: Server, encoding: serialization.Encoding, algorithm: str
) -> None:
    public = RSA_KEY.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    for secret in (public, public.strip(), encoded(public_jwk(RSA_KEY, "RS256")).encode()):
        header = {"alg": algorithm, "kid": "rsa"}
        by_jwks.refuses(hmac_token(header=header, secret=secret, digest=algorithm.replace("HS", "sha")))


@pytest.mark.parametrize(
    ("algorithm", "kid"), [("RS512", "rsa"), ("PS256", "rsa"), ("RS256", "ed"), ("RS256", "enc"), ("RS256", "ec")]
)
def test_row_03_another_algorithm_than_the_keys(by_jwks: Server, algorithm: str, kid: str) -> None:
    key = STRANGER_KEY if kid == "enc" else RSA_KEY
    by_jwks.refuses(jwt.encode(claims(), key, algorithm=algorithm, headers={"kid": kid}))


@pytest.mark.parametrize(
    "extension",
    [
        {"crit": ["x"], "x": 1},
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": None},
        {"crit": ["b64"], "b64": True},
        {"b64": False},
        {"b64": True},
    ],
)
def test_row_04_critical_extensions(by_secret: Server, extension: dict[str, Any]) -> None:
    by_secret.refuses(hmac_token(header={"alg": "HS256", **extension}))
    assert by_secret.bearer(hmac_token(header={"alg": "HS256", "x": 1})).subject == "ada"


def test_row_04_an_unencoded_payload(by_secret: Server) -> None:
    header = encoded({"alg": "HS256", "b64": False, "crit": ["b64"]})
    for payload in (json.dumps(claims()).replace(".", ""), ""):
        signature = hmac.new(SECRET, f"{header}.{payload}".encode(), "sha256").digest()
        by_secret.refuses(f"{header}.{payload}.{b64(signature)}")


def test_row_05_exp_missing(by_secret: Server) -> None:
    by_secret.refuses(hmac_token(claims(exp=None)))


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "value",
    [f'"{NOW + 30:.0f}"', "NaN", "Infinity", "1e999", "true", "null", "[]", "{}", "-1", "1" + "0" * 400, "9" * 5000],
)
def test_row_05_times_that_are_no_numbers(by_secret: Server, name: str, value: str) -> None:
    payload = json.dumps(claims(**{name: "@"}))
    by_secret.refuses(hmac_token(payload.replace('"@"', value)))
    assert by_secret.bearer(hmac_token(payload.replace('"@"', f"{NOW:.1f}"))).subject == "ada"


def test_row_05_past_and_future_with_a_leeway_of_60_seconds(by_secret: Server) -> None:
    for good in ({"exp": NOW - 59.5}, {"nbf": NOW + 60}, {"iat": NOW + 60}, {"nbf": 0, "iat": 0}, {"exp": 2**53}):
        assert by_secret.bearer(hmac_token(claims(**good))).subject == "ada"
    for bad in ({"exp": NOW - 60}, {"exp": 0}, {"nbf": NOW + 60.5}, {"iat": NOW + 61}):
        by_secret.refuses(hmac_token(claims(**bad)))


@pytest.mark.parametrize(
    "value",
    [None, "", "other", AUDIENCE + "/", AUDIENCE.upper(), [AUDIENCE], [AUDIENCE, "other"], [], {AUDIENCE: 1}, 1, True],
)
@pytest.mark.parametrize("name", ["aud", "iss"])
def test_row_06_audience_and_issuer(by_secret: Server, name: str, value: Any) -> None:
    by_secret.refuses(hmac_token(claims(**{name: value})))


def test_row_06_issuer_as_a_list(by_secret: Server) -> None:
    by_secret.refuses(hmac_token(claims(iss=[ISSUER])))


def test_row_06_the_keys_of_another_issuer(by_jwks: Server, by_secret: Server) -> None:
    by_jwks.refuses(jwt.encode(claims(), STRANGER_KEY, algorithm="RS256", headers={"kid": "rsa"}))
    by_secret.refuses(hmac_token(secret=SECRET[::-1]))


@pytest.mark.parametrize(
    "kid", ["../../dev/null", "/etc/passwd", "' OR 1=1--", "k" * 4000, "", "\0", "é", 1, ["rsa"], {"rsa": 1}, True]
)
def test_row_07_kid_is_only_looked_up(by_jwks: Server, kid: Any) -> None:
    by_jwks.refuses(rsa_token(kid))
    assert by_jwks.bearer(rsa_token("rsa")).subject == "ada"


def test_row_07_an_empty_file_is_no_key(by_secret: Server) -> None:
    """The classic: `kid` names an empty file, and the token is signed with the empty secret."""
    by_secret.refuses(hmac_token(header={"alg": "HS256", "kid": "../../dev/null"}, secret=b""))
    by_secret.refuses(hmac_token(header={"alg": "HS256", "kid": "k" * 10_240}))


def test_row_08_keys_in_the_header_are_ignored(by_jwks: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_socket)
    jwk = public_jwk(STRANGER_KEY, "RS256", kid="rsa")
    pointers = {"jku": "http://127.0.0.1:9/jwks.json", "x5u": "http://127.0.0.1:9/x.pem", "jwk": jwk, "kid": "rsa"}
    for name in ("jku", "x5u", "jwk"):
        header = {name: pointers[name], "kid": "rsa"}
        by_jwks.refuses(jwt.encode(claims(), STRANGER_KEY, algorithm="RS256", headers=header))
    by_jwks.refuses(jwt.encode(claims(), STRANGER_KEY, algorithm="RS256", headers=pointers))
    assert by_jwks.bearer(jwt.encode(claims(), RSA_KEY, algorithm="RS256", headers=pointers)).subject == "ada"


def test_row_09_size(by_secret: Server) -> None:
    room = 8192 - len(hmac_token(claims(pad="")))
    assert by_secret.bearer(hmac_token(claims(pad="x" * (room * 3 // 4 - 3)))).subject == "ada"
    by_secret.refuses(hmac_token(claims(pad="x" * room)))
    by_secret.refuses(hmac_token(claims(pad="x" * 45_000)))
    by_secret.refuses("hr_" + "x" * 60_000)


def test_row_09_other_texts_of_the_same_token(by_secret: Server) -> None:
    token = hmac_token()
    assert by_secret.bearer(token).subject == "ada"
    header, payload, signature = token.split(".")
    for changed in (
        token + "=",
        token + "==",
        token + ".",
        token + ".x",
        "." + token,
        f"{header}=.{payload}.{signature}",
        f"{header}.{payload}=.{signature}",
        f"{header}.{payload}.{signature[:-1]}",
        f"{header}.{payload}.{signature}A",
        f"{header}..{signature}",
        f"{header}.{payload}",
        token.replace(".", ". "),
        token + "\u00a0",
        b64(token.encode()),
    ):
        by_secret.refuses(changed)


def test_row_09_spare_bits_of_base64(by_secret: Server) -> None:
    """Each last letter of 32 bytes has two spare bits: four texts, of which one is right."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    token = hmac_token()
    last = alphabet.index(token[-1])
    for other in {last & ~3 | spare for spare in range(4)} - {last}:
        by_secret.refuses(token[:-1] + alphabet[other])


@given(
    st.binary(max_size=200) | st.text().map(str.encode) | st.just(b"eyJ.").flatmap(lambda p: st.binary().map(p.__add__))
)
def test_random_credentials_are_refused_in_one_way(value: bytes) -> None:
    auth = Authenticator(AuthConfig(keys=Path("/nonexistent/auth.json"), issuers=(own_issuer(SECRET),)))
    for headers in ([(b"authorization", b"Bearer " + value)], [(b"x-api-key", value)], [(b"authorization", value)]):
        with pytest.raises(AuthInvalid) as refused:
            auth.authenticate(headers, client=PEER)
        assert_one_answer(refused.value)


@given(
    st.dictionaries(
        st.sampled_from(["sub", "tenant", "scope", "scopes", "jti", "exp", "iat"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=5)
        | st.lists(st.integers()),
    )
)
def test_random_signed_claims_give_a_principal_or_one_answer(changes: dict[str, Any]) -> None:
    auth = Authenticator(
        AuthConfig(
            keys=Path("/nonexistent/auth.json"),
            issuers=(TokenIssuer(issuer=ISSUER, audience=AUDIENCE, secret=SECRET),),
        ),
        wall=Clock(NOW),
    )
    token = hmac_token({**claims(), **changes})
    try:
        principal = auth.authenticate([(b"authorization", f"Bearer {token}".encode())], client=PEER)
    except AuthInvalid as error:
        assert_one_answer(error)
    else:
        assert principal.subject
        assert principal.tenant
        assert principal.expires is not None
        assert math.isfinite(principal.expires)


@pytest.mark.parametrize("name", ["sub", "tenant", "jti"])
@pytest.mark.parametrize("value", ["", 7, ["ada"], {"a": 1}, True, "a\nb", "a\0b", "a\u2028b", "x" * 256])
def test_claims_that_are_no_names(by_secret: Server, name: str, value: Any) -> None:
    by_secret.refuses(hmac_token(claims(**{name: value})))


def test_a_subject_is_required(by_secret: Server) -> None:
    by_secret.refuses(hmac_token(claims(sub=None)))


def test_claims_with_duplicates_are_refused(by_secret: Server) -> None:
    by_secret.refuses(hmac_token(json.dumps(claims())[:-1] + ',"sub":"root"}'))


def test_row_10_two_credentials(by_key: tuple[Server, str]) -> None:
    server, secret = by_key
    bearer = (b"authorization", b"Bearer " + secret.encode())
    key = (b"x-api-key", secret.encode())
    for headers in (
        [bearer, bearer],
        [bearer, (b"Authorization", b"Bearer other")],
        [bearer, (b"x-api-key", b"hr_other")],
        [(b"authorization", b"Basic YTpi"), key],
        [key, key],
        [key, (b"x-api-key", b"hr_other")],
        [bearer, (b"x-api-key", b"")],
    ):
        with pytest.raises(AuthAmbiguous) as ambiguous:
            server.ask(*headers)
        assert (ambiguous.value.status, ambiguous.value.code) == (400, "auth.ambiguous")
    assert server.ask(bearer, key).subject == "ada"


def test_row_10_scopes_are_the_keys_whatever_header_it_came_in(tmp_path: Path) -> None:
    server = Server(tmp_path)
    secret = server.keys.create("ada", scopes=["runs"]).secret.encode()
    for headers in ([(b"authorization", b"Bearer " + secret)], [(b"x-api-key", secret)]):
        assert server.ask(*headers, (b"x-scopes", b"admin")).scopes == {"runs"}


def test_row_10_a_ticket_beside_a_credential(by_key: tuple[Server, str]) -> None:
    server, secret = by_key
    ticket = server.auth.tickets.issue(server.bearer(secret))
    with pytest.raises(AuthAmbiguous):
        server.ask((b"x-api-key", secret.encode()), ticket=ticket)
    assert server.ask(ticket=ticket).subject == "ada"


def test_row_11_tickets(by_key: tuple[Server, str]) -> None:
    server, secret = by_key
    principal = server.bearer(secret)
    ticket = server.auth.tickets.issue(principal)
    assert server.ask(ticket=ticket) == principal
    for spent in (ticket, "", "x"):
        with pytest.raises(AuthInvalid) as refused:
            server.ask(ticket=spent)
        assert_one_answer(refused.value)


def test_row_11_a_ticket_ends_with_the_key_behind_it(by_key: tuple[Server, str]) -> None:
    server, secret = by_key
    ticket = server.auth.tickets.issue(server.bearer(secret))
    server.keys.disable(server.keys.list()[0].id)
    server.clock.now += 2
    with pytest.raises(AuthInvalid):
        server.ask(ticket=ticket)


@pytest.mark.parametrize(
    ("query", "redacted"),
    [
        (b"", b""),
        (b"stream=true", b"stream=true"),
        (b"token=abc", b"token=REDACTED"),
        (b"a=1&ticket=abc&b=2", b"a=1&ticket=REDACTED&b=2"),
        (b"api_key=a=b&access_token=", b"api_key=REDACTED&access_token=REDACTED"),
        (b"TOKEN=abc&%74oken=abc&+token=abc", b"TOKEN=REDACTED&%74oken=REDACTED&+token=REDACTED"),
        (b"a=1;token=abc", b"a=1;token=REDACTED"),
        (b"&&token=a&token=b&", b"&&token=REDACTED&token=REDACTED&"),
        (b"tokens=5&max_token=5&token", b"tokens=5&max_token=5&token"),
        (b"token=\xff\r\n", b"token=REDACTED"),
    ],
)
def test_row_11_secrets_in_a_query_are_kept_out_of_logs(query: bytes, redacted: bytes) -> None:
    assert redact_query(query) == redacted


@given(st.binary())
def test_row_11_redaction_takes_any_query(query: bytes) -> None:
    assert b"hr_secret" not in redact_query(query.replace(b"hr_secret", b"") + b"&token=hr_secret")


def test_row_12_a_disabled_key_ends_open_streams(by_key: tuple[Server, str]) -> None:
    server, secret = by_key
    principal = server.bearer(secret)
    assert server.auth.still_valid(principal)
    server.keys.disable(server.keys.list()[0].id)
    server.clock.now += 2
    assert not server.auth.still_valid(principal)
    server.refuses(secret)


def test_row_12_a_disabled_subject_ends_keys_and_tokens(tmp_path: Path) -> None:
    server = Server(tmp_path, TokenIssuer(issuer=ISSUER, audience=AUDIENCE, secret=SECRET))
    secret = server.keys.create("ada").secret
    by_key, by_token = server.bearer(secret), server.bearer(hmac_token())
    server.keys.disable_subject(Owner("other", "ada"))
    server.keys.disable_subject(Owner("default", "ada"))
    server.keys.disable_subject(Owner("default", "ada"))
    server.clock.now += 2
    assert not server.auth.still_valid(by_key)
    assert not server.auth.still_valid(by_token)
    server.refuses(secret)
    server.refuses(hmac_token())
    assert server.bearer(hmac_token(claims(sub="bob"))).subject == "bob"
    server.keys.enable_subject(Owner("default", "ada"))
    assert server.keys.disabled_subjects() == (Owner("other", "ada"),)
    server.clock.now += 2
    assert server.auth.still_valid(by_key)


def test_row_12_a_lowered_role_and_a_moved_key(tmp_path: Path) -> None:
    server = Server(tmp_path)
    secret = server.keys.create("ada", scopes=["runs", "admin"]).secret
    principal = server.bearer(secret)
    path = tmp_path / "auth.json"
    original = path.read_text()
    for changed in (original.replace('"admin"', '"viewer"'), original.replace('"ada"', '"eve"'), '{"keys": []}'):
        path.write_text(changed)
        server.clock.now += 2
        assert not server.auth.still_valid(principal)
        path.write_text(original)
        server.clock.now += 2
        assert server.auth.still_valid(principal)


def test_row_12_a_token_ends_when_it_expires(by_secret: Server) -> None:
    principal = by_secret.bearer(hmac_token())
    by_secret.wall.now = NOW + 659
    assert by_secret.auth.still_valid(principal)
    by_secret.wall.now = NOW + 660
    assert not by_secret.auth.still_valid(principal)


def test_row_12_the_file_is_looked_at_every_two_seconds_at_most(by_key: tuple[Server, str]) -> None:
    server, secret = by_key
    principal = server.bearer(secret)
    server.keys.disable(server.keys.list()[0].id)
    server.clock.now += 1.9
    assert server.auth.still_valid(principal)
    server.clock.now += 0.1
    assert not server.auth.still_valid(principal)


@pytest.mark.parametrize("credential", ["' OR 1=1--", "hr_' OR 1=1--", "hr_'OR/**/1=1--", "hr_%27%20OR%201=1"])
def test_row_13_sql(by_key: tuple[Server, str], credential: str) -> None:
    by_key[0].refuses(credential)


def test_row_14_identity_headers_of_others_are_ignored(by_key: tuple[Server, str]) -> None:
    server, secret = by_key
    forged = [(name, b"root") for name in (b"host", b"x-user-id", b"x-org-id", b"x-forwarded-user", b"x-tenant")]
    assert server.ask((b"x-api-key", secret.encode()), *forged) == server.bearer(secret)


PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1 , 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, garbage"], "10.0.0.1"),
        ("10.0.0.1", ["127.0.0.1, 10.0.0.3"], "127.0.0.1"),
        ("10.0.0.1", ["10.0.0.3"], "10.0.0.3"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["a\r\nb"], "10.0.0.1"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("testclient", ["198.51.100.1"], "testclient"),
    ],
)
def test_row_14_forwarded_addresses_only_from_trusted_proxies(peer: str, forwarded: list[str], client: str) -> None:
    headers = [(b"X-Forwarded-For", value.encode()) for value in forwarded]
    assert client_address((peer, 5), headers, PROXIES) == client


def test_row_14_no_peer_address() -> None:
    assert client_address(None, [(b"x-forwarded-for", b"198.51.100.1")], PROXIES) == "unknown"


def test_row_15_twenty_bad_credentials_a_minute(by_key: tuple[Server, str]) -> None:
    server, secret = by_key
    for _ in range(20):
        with pytest.raises(AuthInvalid):
            server.bearer("hr_wrong")
    server.clock.now += 12
    with pytest.raises(TooManyRequests) as refused:
        server.bearer("hr_wrong")
    assert (refused.value.status, refused.value.retry_after) == (429, 48)
    with pytest.raises(AuthInvalid):
        server.bearer("hr_wrong", client="203.0.113.8")
    assert server.bearer(secret).subject == "ada"
    with pytest.raises(AuthMissing):
        server.ask()
    server.clock.now += 48
    with pytest.raises(AuthInvalid):
        server.bearer("hr_wrong")


def test_row_15_a_subscriber_of_ipv6_is_one_peer(by_key: tuple[Server, str]) -> None:
    server, _ = by_key
    for number in range(20):
        with pytest.raises(AuthInvalid):
            server.bearer("hr_wrong", client=f"2001:db8::{number:x}")
    with pytest.raises(TooManyRequests):
        server.bearer("hr_wrong", client="2001:db8::ffff:1")
    with pytest.raises(AuthInvalid):
        server.bearer("hr_wrong", client="2001:db8:0:1::1")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", "LOCALHOST", "::ffff:127.0.0.1"]
)
def test_row_16_loopback_needs_no_auth(host: str) -> None:
    assert is_loopback(host)
    check_bind(host, auth_configured=False)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "192.168.1.2", "example.com", "localhost.example.com", "127.0.0.1.nip.io", "*", "2130706433"],
)
def test_row_16_a_public_bind_without_auth(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"without authentication.*headrace token") as refused:
        check_bind(host, auth_configured=False)
    assert "\n" not in refused.value.message
    check_bind(host, auth_configured=True)


def test_row_16_a_short_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="31 bytes"):
        check_bind("127.0.0.1", auth_configured=True, hmac_secret=b"x" * 31)
    check_bind("127.0.0.1", auth_configured=True, hmac_secret=b"x" * 32)
    with pytest.raises(ConfigurationError, match="31 bytes"):
        Server(tmp_path, own_issuer(b"x" * 31))


# --- files ------------------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_key_file_holds_digests_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "data" / "auth.json"
    new = KeyFile(path, clock=Clock(NOW)).create("ada", scopes=["runs"], limits=Limits(streams=3))
    assert mode(path) == 0o600
    assert new.secret.startswith("hr_")
    assert len(base64.urlsafe_b64decode(new.secret[3:] + "=")) == 32
    stored = path.read_text()
    assert new.secret not in stored
    assert json.loads(stored)["keys"][0]["sha256"] == hashlib.sha256(new.secret.encode()).hexdigest()
    assert KeyFile(path).list() == (new.key,)
    assert (new.key.created, new.key.limits) == (NOW, Limits(streams=3))
    assert sorted(file.name for file in path.parent.iterdir()) == ["auth.json", "auth.json.lock"]


def test_keys_are_listed_and_disabled(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "auth.json")
    assert keys.list() == ()
    first, second = keys.create("ada").key, keys.create("bob").key
    assert keys.disable(first.id).disabled
    assert keys.disable(first.id).disabled
    assert [(key.id, key.disabled) for key in keys.list()] == [(first.id, True), (second.id, False)]
    with pytest.raises(NotFound):
        keys.disable("key_unknown")


def test_names_of_a_new_key_are_checked(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "auth.json")
    with pytest.raises(InvalidField) as refused:
        keys.create("", tenant="a\nb", scopes=["fine", "not fine"])
    assert [error["pointer"] for error in refused.value.extra["errors"]] == ["/subject", "/tenant", "/scopes/1"]
    assert keys.list() == ()


def test_several_processes_may_write_at_once(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from headrace.server.auth import KeyFile\n"
        "for number in range(10): KeyFile(Path(sys.argv[1])).create(f'{sys.argv[2]}{number}')"
    )
    path = tmp_path / "auth.json"
    writers = [subprocess.Popen([sys.executable, "-c", program, path, name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert {key.subject for key in KeyFile(path).list()} == {
        f"{name}{number}" for name in "abc" for number in range(10)
    }


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "\x00",
        '{"keys": 1}',
        '{"keys": [{}]}',
        '{"unknown": 1}',
        '{"keys": [{"id": "a", "sha256": "short", "subject": "a", "created": 1}]}',
    ],
)
def test_a_damaged_key_file_is_told_with_the_next_step(tmp_path: Path, content: str) -> None:
    path = tmp_path / "auth.json"
    path.write_text(content)
    for use in (KeyFile(path).list, lambda: KeyFile(path).create("ada"), lambda: Server(tmp_path)):
        with pytest.raises(ConfigurationError, match=r"'auth.json' is damaged.*mend it"):
            use()
    assert path.read_text() == content


def test_two_keys_of_one_id_are_told(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    KeyFile(path).create("ada")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "keys": content["keys"] * 2}))
    with pytest.raises(ConfigurationError, match="same id"):
        KeyFile(path).list()


def test_damage_under_a_running_server_locks_nobody_out(by_key: tuple[Server, str], tmp_path: Path) -> None:
    server, secret = by_key
    principal = server.bearer(secret)
    (tmp_path / "auth.json").write_text("{ half edited")
    server.clock.now += 2
    assert server.auth.still_valid(principal)
    assert server.bearer(secret) == principal
    server.refuses("hr_wrong")


def test_a_removed_key_file_takes_all_keys_back(by_key: tuple[Server, str], tmp_path: Path) -> None:
    server, secret = by_key
    principal = server.bearer(secret)
    (tmp_path / "auth.json").unlink()
    server.clock.now += 2
    assert not server.auth.still_valid(principal)
    server.refuses(secret)


def test_the_signing_secret_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "data" / "token_secret"
    secret = load_secret(path)
    assert len(secret) >= 32
    assert mode(path) == 0o600
    assert load_secret(path) == secret
    assert load_secret(tmp_path / "other") != secret


def test_a_signing_secret_of_no_use_is_told(tmp_path: Path) -> None:
    path = tmp_path / "token_secret"
    load_secret(path)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_secret(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(ConfigurationError, match="shorter than 32 bytes"):
        load_secret(path)


WEAK_RSA = {"kty": "RSA", "kid": "weak", "e": "AQAB", "n": b64(b"\xc1" + b"\x01" * 127)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a JWKS file"),
        ("[]", "is not a JWKS file"),
        ('{"keys": 1}', "is not a JWKS file"),
        ('{"keys": [1]}', "is not a JWKS file"),
        ('{"keys": []}', "has no key"),
        ('{"keys": [{"kty": "future"}]}', "has no key"),
        (json.dumps({"keys": [WEAK_RSA]}), "has no key"),
        (json.dumps({"keys": [{"kty": "oct", "k": b64(b"x" * 31)}]}), "has no key"),
        (json.dumps({"keys": [public_jwk(RSA_KEY, "RS256", alg="PS256")]}), "has no key"),
        (json.dumps({"keys": [public_jwk(EC_KEY, "ES256"), public_jwk(ED_KEY, "EdDSA")]}), "the same `kid`"),
    ],
)
def test_a_jwks_file_of_no_use_is_told(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        Server(tmp_path, TokenIssuer(issuer=ISSUER, audience=AUDIENCE, jwks=path))
    with pytest.raises(ConfigurationError, match="is not a JWKS file"):
        Server(tmp_path, TokenIssuer(issuer=ISSUER, audience=AUDIENCE, jwks=tmp_path / "missing.json"))


def test_an_issuer_has_a_secret_or_a_file(tmp_path: Path) -> None:
    for wrong in (
        TokenIssuer(issuer=ISSUER, audience=AUDIENCE),
        TokenIssuer(issuer=ISSUER, audience=AUDIENCE, secret=SECRET, jwks=tmp_path / "jwks.json"),
    ):
        with pytest.raises(ConfigurationError, match="one of them"):
            Server(tmp_path, wrong)
    assert SECRET.decode() not in repr(own_issuer(SECRET))
