"""What every command has in common: options, help, errors, exit codes."""

import re
import subprocess
import sys

import pytest
from tests.cli.conftest import Command

from headrace.cli.commands import app

COMMANDS = [
    *[["serve"], ["ask"], ["index"], ["check"], ["fake-provider"]],
    *[["runs", name] for name in ("list", "show", "tail", "replay", "cancel")],
    *[["batch", name] for name in ("run", "list", "show", "results", "retry", "cancel")],
    *[["token"], ["token", "key"], ["token", "list"], ["token", "disable"]],
]


def described() -> dict[str, str]:
    """What the reference has under the name of each command."""
    parts = re.split(r"^#+ headrace (.+)\n", app.generate_docs(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_command_is_described() -> None:
    assert {" ".join(path) for path in COMMANDS} | {"runs", "batch"} == described().keys()
    for text in described().values():
        assert re.search(r"^[A-Z].*\.$", text, re.MULTILINE)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_is_explained_and_a_variable_too(path: list[str]) -> None:
    lines = re.findall(r"^\* `(-*)(.+?)`: (.*)", described()[" ".join(path)], re.MULTILINE)
    assert lines
    for dashes, name, text in lines:
        assert re.match(r"[A-Z`].*\.", text), name
        assert not dashes or re.search(r"\[env: HEADRACE_\w+\]", text), name


@pytest.mark.parametrize("path", [[], ["ask"], ["runs"], ["token", "key"]], ids=" ".join)
async def test_help(headrace: Command, path: list[str]) -> None:
    code, out, err = await headrace(*path, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(" ".join(["Usage: headrace", *path]))


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask"],
        ["nonsense"],
        ["ask", "x", "--nonsense"],
        ["runs", "list", "--limit", "x"],
        ["runs", "list", "--state", "x"],
    ],
    ids=" ".join,
)
async def test_what_cannot_be_understood_is_2(headrace: Command, arguments: list[str]) -> None:
    code, out, err = await headrace(*arguments)
    assert (code, out) == (2, "")
    assert err


@pytest.mark.parametrize(
    "arguments", [["ask", "x", "--url", "nowhere"], ["check"], ["serve"], ["index", "missing"]], ids=" ".join
)
async def test_a_configuration_that_cannot_be_used_is_78(headrace: Command, arguments: list[str]) -> None:
    headrace.environment["HEADRACE_MAX_BODY_BYTES"] = "none"
    code, out, err = await headrace(*arguments)
    assert (code, out) == (78, "")
    assert err.startswith("headrace: ")
    assert err.count("\n") == 1


def test_asking_loads_no_server() -> None:
    script = "import sys, headrace.cli; print(sorted({'fastapi', 'uvicorn', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"
