"""`headrace check`."""

import os
from pathlib import Path

from tests.cli.conftest import Command
from tests.server.serving import Serving, settings


def fields(out: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in out.splitlines())


async def test_what_is_configured(headrace: Command, tmp_path: Path) -> None:
    headrace.environment |= {"HEADRACE_PORT": "1", "OPENAI_API_KEY": "sk-secret", "HEADRACE_MODEL": "demo:echo"}
    code, out, _ = await headrace("check")
    assert code == 0
    found = fields(out)
    assert found["HEADRACE_PORT"] == "1"
    assert found["OPENAI_API_KEY"] == "(secret)"
    assert "sk-secret" not in out
    assert found["model"] == "demo:echo"
    assert found["engine"].startswith("sqlite: committed events survive")
    assert found["access"].startswith("open")
    assert found["data"] == f"{tmp_path / 'data'} (will be made)"
    assert "headrace serve" in found["server"]
    assert not (tmp_path / "data").exists()


async def test_the_model_that_quotes_is_tried_elsewhere(headrace: Command, tmp_path: Path) -> None:
    headrace.environment["HEADRACE_PORT"] = "1"
    assert fields((await headrace("check")).out)["model"] == "demo:extractive"
    assert os.listdir(tmp_path) == []


async def test_a_server_that_answers(headrace: Command, server: Serving) -> None:
    code, out, _ = await headrace("check")
    found = fields(out)
    assert code == 0
    assert found["server"] == f"{server.url} is live and ready"
    assert found["answer"].startswith("streamed in 1 pieces")


async def test_a_server_that_is_not_there(headrace: Command) -> None:
    code, _, err = await headrace("check", "--url", "http://127.0.0.1:1")
    assert (code, err.count("\n")) == (1, 1)


async def test_a_server_that_asks_for_a_credential(headrace: Command, tmp_path: Path) -> None:
    token = (await headrace("token", "--user", "ann")).out.strip()
    async with Serving(settings(tmp_path / "data")).open() as server:
        code, out, err = await headrace("check", "--url", server.url)
        assert (code, "does not answer" in err) == (1, True)
        assert fields(out)["access"] == "0 API keys; tokens of headrace"
        code, out, _ = await headrace("check", "--url", server.url, "--token", token)
        assert (code, "streamed" in fields(out)["answer"]) == (0, True)
