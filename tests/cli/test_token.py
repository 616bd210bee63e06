"""`headrace token`: what it prints lets its owner in, and nobody else."""

import json
from pathlib import Path

import jwt
from tests.cli.conftest import Command
from tests.server.serving import Serving, settings

from headrace.client import AsyncClient


async def test_a_token_alone_on_standard_output(headrace: Command, tmp_path: Path) -> None:
    data = tmp_path / "data"
    code, out, err = await headrace("token", "--user", "ann", "--tenant", "mill", "--ttl", "60", "--data", str(data))
    assert code == 0
    assert "credential" in err
    assert out.count("\n") == 1
    claims = jwt.decode(out.strip(), options={"verify_signature": False})
    assert (claims["sub"], claims["tenant"], claims["exp"] - claims["iat"]) == ("ann", "mill", 60)
    assert (data / "token.secret").stat().st_mode & 0o777 == 0o600
    assert (await headrace("token", "--user", "bob")).err == ""
    async with Serving(settings(data)).open() as server:
        async with AsyncClient(server.url, token=out.strip()) as client:
            await client.ask("hello")
            headrace.environment |= {"HEADRACE_URL": server.url, "HEADRACE_TOKEN": out.strip()}
        assert (await headrace("runs", "list")).out.count("\n") == 1
        del headrace.environment["HEADRACE_TOKEN"]
        code, _, err = await headrace("runs", "list")
        assert (code, "credential" in err) == (1, True)


async def test_keys_are_made_listed_and_disabled(headrace: Command, tmp_path: Path) -> None:
    key = await headrace("token", "key", "--user", "ann", "--scope", "metrics", "--scope", "admin")
    assert key.code == 0
    key_id = key.err.split()[-1]
    listed = (await headrace("token", "list")).out.rstrip("\n").split("\t")
    assert listed[:4] == [key_id, "good", "default", "ann"]
    assert listed[-1] == "metrics admin"
    assert key.out.strip() not in (tmp_path / "data" / "auth.json").read_text()
    serving = Serving(settings(tmp_path / "data"))
    async with serving.open() as server, AsyncClient(server.url, token=key.out.strip()) as client:
        assert await client.ask("hello") == "hello"
    assert await headrace("token", "disable", key_id) == (0, f"{key_id} disabled\n", "")
    assert (await headrace("token", "list")).out.split("\t")[1] == "disabled"
    assert [entry["disabled"] for entry in json.loads((tmp_path / "data" / "auth.json").read_text())["keys"]] == [True]


async def test_a_key_that_is_not_there(headrace: Command) -> None:
    code, _, err = await headrace("token", "disable", "key_x")
    assert (code, "headrace token list" in err) == (1, True)


async def test_names_that_cannot_be(headrace: Command) -> None:
    assert (await headrace("token", "--user", "a\nb")).code == 1
    code, _, err = await headrace("token", "key", "--user", "a\nb")
    assert (code, "/subject" in err) == (1, True)
