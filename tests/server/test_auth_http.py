"""The Auth rows of PROMISE through a running server; `test_auth.py` has every variant of them."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.server.serving import PATIENCE, SSE, Answer, Serving, Start, parse_sse, read_until

from headrace.identity import Limits, Owner
from headrace.server import open_streams
from headrace.server.auth import KeyFile, watched

ISSUER, AUDIENCE = "https://id.example", "headrace"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
NAMES = {"HEADRACE_JWT_ISSUER": ISSUER, "HEADRACE_JWT_AUDIENCE": AUDIENCE}
INVALID = (401, "auth.invalid")
_peers = count(1)


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims with `changes`; None takes a claim out."""
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": time.time() + 600}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(header: str | None = None, payload: str | None = None, key: Any = KEY) -> str:
    """By hand, since libraries refuse to make most of these. RS256, whatever the header says."""
    signed = f"{b64((header or json.dumps({'alg': 'RS256', 'kid': 'k1'})).encode())}."
    signed += b64((payload or json.dumps(claims())).encode())
    return f"{signed}.{b64(jwt.get_algorithm_by_name('RS256').sign(signed.encode(), key))}"


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "auth.json")


@pytest.fixture
def jwks(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    public = jwt.get_algorithm_by_name("RS256").to_jwk(KEY.public_key(), as_dict=True)
    path.write_text(json.dumps({"keys": [{**public, "kid": "k1", "alg": "RS256", "use": "sig"}]}))
    return path


@pytest.fixture
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_streams, "_LOOK_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(watched, "INTERVAL", 0.05)


@pytest.fixture
async def server(start: Start, keys: KeyFile, jwks: Path, _looks_often: None) -> Serving:
    """Takes API keys and tokens."""
    keys.create("ada")
    started: Serving = await start(jwt_jwks_file=jwks, jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    return started


def new_peer() -> str:
    high, low = divmod(next(_peers), 250)
    return f"127.0.{high}.{low + 2}"


async def ask(server: Serving, *headers: tuple[str, str], path: str = "/api/runs", peer: str | None = None) -> Answer:
    """From a peer of its own, so that the faults of another test do not count for it."""
    return await server.ask("GET", path, headers=list(headers), peer=peer or new_peer())


async def bearer(server: Serving, credential: str, **how: Any) -> Answer:
    return await ask(server, ("Authorization", f"Bearer {credential}"), **how)


async def test_a_good_token_and_a_good_key(server: Serving, keys: KeyFile) -> None:
    assert (await bearer(server, token())).status == 200
    secret = keys.create("bob").secret
    assert (await bearer(server, secret)).status == 200
    assert (await ask(server, ("X-API-Key", secret))).status == 200


async def test_row_01_no_credential(server: Serving) -> None:
    for method, path in (
        ("GET", "/api/runs"),
        ("POST", "/api/runs"),
        ("POST", "/api/agent/chat"),
        ("POST", "/api/agent/chat?stream=true"),
        ("GET", "/api/runs/run_x"),
        ("GET", "/api/runs/run_x/events"),
        ("POST", "/api/runs/run_x/cancel"),
        ("DELETE", "/api/runs/run_x"),
        ("GET", "/api/feed"),
        ("POST", "/api/tickets"),
    ):
        answer = await server.ask(method, path)
        assert answer.problem == (401, "auth.missing"), path
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert (await server.ask("GET", "/health/live")).status == 200


async def test_row_01_a_body_is_not_read_of_nobody(server: Serving) -> None:
    assert (await server.post("/api/agent/chat", b"{")).problem == (401, "auth.missing")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /api/agent/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n")
    first = await asyncio.wait_for(reader.readline(), PATIENCE)
    writer.close()
    assert first == b"HTTP/1.1 401 Unauthorized\r\n"


def faults() -> Iterator[tuple[str, str]]:
    pem = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    confused = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'k1'}).encode())}.{b64(json.dumps(claims()).encode())}"
    yield "02 none", f"{b64(json.dumps({'alg': 'none'}).encode())}.{b64(json.dumps(claims()).encode())}."
    yield "02 nOnE", token('{"alg":"nOnE","kid":"k1"}')
    yield "02 twice", token('{"alg":"none","alg":"RS256","kid":"k1"}')
    yield "03 HS256", f"{confused}.{b64(hmac.new(pem, confused.encode(), hashlib.sha256).digest())}"
    yield "04 crit", token('{"alg":"RS256","kid":"k1","crit":["x"],"x":1}')
    yield "04 b64", token('{"alg":"RS256","kid":"k1","crit":["b64"],"b64":false}')
    yield "05 no exp", token(payload=json.dumps(claims(exp=None)))
    yield "05 text", token(payload=json.dumps(claims(exp=str(time.time() + 600))))
    yield "05 NaN", token(payload=json.dumps(claims(exp=float("nan"))))
    yield "05 past", token(payload=json.dumps(claims(exp=time.time() - 61)))
    yield "05 nbf", token(payload=json.dumps(claims(nbf=time.time() + 300)))
    yield "06 aud", token(payload=json.dumps(claims(aud="another")))
    yield "06 list", token(payload=json.dumps(claims(aud=[AUDIENCE])))
    yield "06 iss", token(payload=json.dumps(claims(iss=None)))
    yield "06 key", token(key=STRANGER)
    yield "07 path", token('{"alg":"RS256","kid":"../../dev/null"}')
    yield "07 sql", token('{"alg":"RS256","kid":"k1\' OR 1=1--"}')
    yield "07 long", token(json.dumps({"alg": "RS256", "kid": "k" * 5000}))
    jku = {"alg": "RS256", "kid": "x", "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/"}
    stranger = jwt.get_algorithm_by_name("RS256").to_jwk(STRANGER.public_key(), as_dict=True)
    yield "08 jku", token(json.dumps(jku), key=STRANGER)
    yield "08 jwk", token(json.dumps({"alg": "RS256", "kid": "k1", "jwk": stranger}), key=STRANGER)
    yield "09 8 KB", "x" * 8193
    yield "09 60 KB", token() + "x" * 60_000
    yield "09 =", token() + "="
    yield "13 sql", "' OR 1=1--"
    yield "13 key", "hr_' OR 1=1--"


@pytest.mark.parametrize("fault", [name for name, _ in faults()])
async def test_rows_02_to_09_and_13_one_answer_to_all_faults(server: Serving, fault: str) -> None:
    credential = dict(faults())[fault]
    reference = await bearer(server, "wrong")
    answer = await bearer(server, credential)
    assert answer.problem == INVALID
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert {**answer.json(), "instance": ""} == {**reference.json(), "instance": ""}


async def test_row_09_a_header_beyond_all_limits(server: Serving) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /api/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " + b"x" * 66_000 + b"\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_row_10_two_credentials(server: Serving, keys: KeyFile) -> None:
    one, two = keys.create("ada").secret, keys.create("bob").secret
    ambiguous = (400, "auth.ambiguous")
    twice = [("Authorization", f"Bearer {one}")] * 2
    assert (await ask(server, *twice)).problem == ambiguous
    assert (await ask(server, ("Authorization", f"Bearer {one}"), ("X-API-Key", two))).problem == ambiguous
    assert (await ask(server, ("Authorization", f"Bearer {one}"), ("X-API-Key", one))).status == 200
    assert (await bearer(server, one, path="/api/runs?ticket=x")).problem == ambiguous


async def test_row_11_no_credential_in_a_query_but_a_ticket_once(server: Serving, keys: KeyFile) -> None:
    secret = keys.create("ada").secret
    for name in ("access_token", "token", "api_key", "authorization"):
        assert (await ask(server, path=f"/api/runs?{name}={secret}")).problem == (401, "auth.missing")
    issued = await server.ask("POST", "/api/tickets", headers={"Authorization": f"Bearer {secret}"})
    assert (issued.status, issued.json()["expires_in"]) == (201, 30)
    run = await server.post("/api/runs", {"input": {}}, headers={"Authorization": f"Bearer {secret}"})
    path = f"/api/runs/{run.json()['id']}/events?ticket={issued.json()['ticket']}"
    first = await server.ask("GET", path, headers=SSE)
    assert parse_sse(first.body)[-1].data["kind"] == "run.completed"
    assert (await server.ask("GET", path, headers=SSE)).problem == INVALID


async def test_row_12_revoked_while_a_stream_is_open(server: Serving, keys: KeyFile) -> None:
    made, other = keys.create("ada"), keys.create("bob")
    headers = {"Authorization": f"Bearer {made.secret}", **SSE}
    body = {"agent": "stall", "input": {}}
    chat = await server.begin("/api/agent/chat?stream=true", {"message": "Hi", "agent_id": "stall"}, headers)
    run = await server.begin("/api/runs", body, headers)
    feed = await server.begin("/api/feed", headers=headers)
    bystander = await server.begin("/api/runs", body, {"Authorization": f"Bearer {other.secret}", **SSE})
    for response in (chat, run, bystander):
        await read_until(response, b"before")
    keys.disable(made.key.id)
    for response in (run, feed):
        last = parse_sse(await asyncio.wait_for(response.read(), PATIENCE))[-1]
        assert last.id is None
        assert last.data["kind"] == "error"
        assert last.data["error"]["code"] == "auth.revoked"
    last = parse_sse(await asyncio.wait_for(chat.read(), PATIENCE))[-1]
    assert (last.data["type"], last.data["code"]) == ("error", 401)
    server.agents.gate.set()
    assert b"run.completed" in await asyncio.wait_for(bystander.read(), PATIENCE)
    again = await server.events(run.headers["X-Run-Id"], **headers)
    assert again.problem == INVALID


async def test_row_12_a_token_that_ends_and_a_subject_that_is_disabled(server: Serving, keys: KeyFile) -> None:
    ends_soon = token(payload=json.dumps(claims(sub="eve", exp=time.time() - 59)))
    disabled = token(payload=json.dumps(claims(sub="mallory")))
    feeds = [
        await server.begin("/api/feed", headers={"Authorization": f"Bearer {each}"}) for each in (ends_soon, disabled)
    ]
    keys.disable_subject(Owner("default", "mallory"))
    for feed in feeds:
        body = await asyncio.wait_for(feed.read(), PATIENCE)
        assert parse_sse(body)[-1].data["error"]["code"] == "auth.revoked"


async def test_row_14_headers_that_claim_to_be_somebody(server: Serving, keys: KeyFile) -> None:
    secret = keys.create("ada").secret
    mine = await server.post("/api/runs", {"input": {}}, headers={"Authorization": f"Bearer {secret}"})
    forged = [
        ("Host", "evil.example"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("X-User-Id", "bob"),
        ("X-Org-Id", "other"),
        ("X-Forwarded-Host", "evil.example"),
    ]
    answer = await ask(server, ("Authorization", f"Bearer {secret}"), *forged)
    assert [run["id"] for run in answer.json()["runs"]] == [mine.json()["id"]]
    assert b"evil.example" not in answer.body + str(answer.headers).encode()
    assert (await ask(server, *forged)).problem == (401, "auth.missing")


async def test_row_15_twenty_bad_credentials_of_a_peer(server: Serving, keys: KeyFile) -> None:
    secret = keys.create("ada").secret
    peer = new_peer()
    forged = ("X-Forwarded-For", "10.9.8.7")
    for number in range(20):
        assert (await bearer(server, f"wrong{number}", peer=peer)).problem == INVALID
    for headers in ([], [forged]):
        answer = await ask(server, ("Authorization", "Bearer wrong"), *headers, peer=peer)
        assert answer.problem == (429, "limit.requests")
        assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert (await bearer(server, secret, peer=peer)).status == 200
    assert (await bearer(server, "wrong")).problem == INVALID, "another peer"


async def test_limits_of_a_key(start: Start, keys: KeyFile) -> None:
    secret = keys.create("ada", limits=Limits(streams=1, requests_per_minute=3)).secret
    server = await start(requests_per_minute=1000)
    headers = {"Authorization": f"Bearer {secret}"}
    feed = await server.begin("/api/feed", headers=headers)
    assert (await server.ask("GET", "/api/feed", headers=headers)).problem == (429, "limit.streams")
    assert (await server.ask("GET", "/api/runs", headers=headers)).status == 200
    assert (await server.ask("GET", "/api/runs", headers=headers)).problem == (429, "limit.requests")
    feed.close()


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--host", "0.0.0.0"], {}, "without authentication"),
        (["--host", "::"], {}, "without authentication"),
        ([], {**NAMES, "HEADRACE_JWT_SECRET": "short"}, "32 or more"),
        ([], {"HEADRACE_JWT_SECRET": "x" * 64}, "HEADRACE_JWT_ISSUER"),
        ([], {**NAMES, "HEADRACE_JWT_JWKS_FILE": "/nowhere/jwks.json"}, "JWKS"),
        ([], {"HEADRACE_MAX_STREAMS": "many"}, "HEADRACE_MAX_STREAMS"),
        ([], {"HEADRACE_TRUSTED_PROXIES": '["nonsense"]'}, "HEADRACE_TRUSTED_PROXIES"),
        (["--model", "nothing"], {}, "demo"),
        (["--port", "taken"], {}, "HEADRACE_PORT"),
    ],
)
def test_row_16_a_server_that_must_not_start(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], words: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        if arguments == ["--port", "taken"]:
            arguments = ["--port", str(taken.getsockname()[1])]
        done = serve(tmp_path, arguments, environment)
    assert done.returncode == 78
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("headrace: ")
    assert words in lines[0]


def serve(data: Path, arguments: list[str], more: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "HEADRACE_MODEL": "demo:echo", "HEADRACE_PORT": "0", **more}
    command = [sys.executable, "-m", "headrace", "serve", "--data", str(data), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
