"""Which tools a server has, and which of them its chat agent offers to the model."""

import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from tests.server.serving import Serving
from tests.server.serving import settings as serving_settings

from headrace import Headrace, Settings, agent, tool
from headrace.bootstrap import tools as bootstrap_tools
from headrace.errors import ConfigurationError
from headrace.identity import LOCAL
from headrace.ports import StartCommand, Tool


@tool
async def double(number: int) -> int:
    """Twice the number."""
    return 2 * number


@tool(name="search")
async def own_search(query: str) -> str:
    """Finds nothing."""
    return "nothing"


@asynccontextmanager
async def source() -> AsyncIterator[Sequence[Tool]]:
    yield [double]


def settings(data: Path, **more: Any) -> Settings:
    return serving_settings(data, **{"tools": ("search", "calculate"), **more})


async def names(headrace: Headrace) -> list[str]:
    async with headrace.running():
        return [each.name for each in headrace.tools.open_to(())]


async def test_without_a_word_there_are_search_and_arithmetic(tmp_path: Path) -> None:
    assert Settings.model_fields["tools"].default == ("search", "calculate")
    assert await names(Headrace(settings(tmp_path))) == ["search", "calculate"]


async def test_what_reaches_out_has_to_be_named(tmp_path: Path) -> None:
    assert await names(Headrace(settings(tmp_path, tools=("http_fetch",)))) == ["http_fetch"]


async def test_a_started_server_can_be_started_again(tmp_path: Path) -> None:
    headrace = Headrace(settings(tmp_path))
    assert await names(headrace) == await names(headrace)


async def test_a_tool_of_the_program_takes_the_place_of_ours(tmp_path: Path) -> None:
    headrace = Headrace(settings(tmp_path), tools=[own_search])
    async with headrace.running():
        assert headrace.tools.find("search", ()) is own_search


async def test_a_database_is_a_tool(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "mill.db")
    db.execute("CREATE TABLE wheels (name TEXT)")
    db.commit()
    db.close()
    headrace = Headrace(settings(tmp_path, tools=(), sql_url=f"sqlite:///{tmp_path}/mill.db"))
    async with headrace.running():
        [sql] = headrace.tools.open_to(())
        assert sql.name == "sql"
        assert "wheels" in sql.description


async def test_tools_of_mcp_servers(tmp_path: Path) -> None:
    server = Path(__file__).parent / "tools" / "mcp_server.py"
    servers = json.dumps({"mill": {"command": sys.executable, "args": [str(server)]}})
    headrace = Headrace(settings(tmp_path, tools=(), mcp_servers=servers))
    found = await names(headrace)
    assert found
    assert all(name.startswith("mill_") for name in found)


@pytest.mark.parametrize("brought", [double, source])
async def test_tools_of_packages_have_to_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought: Any
) -> None:
    module = type(sys)("a_package_of_tools")
    module.brought = brought  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_package_of_tools", module)
    entry = EntryPoint("double", "a_package_of_tools:brought", bootstrap_tools.ENTRY_POINTS)
    monkeypatch.setattr(bootstrap_tools, "entry_points", lambda group: EntryPoints([entry]))
    assert await names(Headrace(settings(tmp_path))) == ["search", "calculate"]
    assert await names(Headrace(settings(tmp_path, tools=("double",)))) == ["double"]


async def test_a_tool_that_is_not_installed_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'mill', which is not installed"):
        await names(Headrace(settings(tmp_path, tools=("mill",))))


@pytest.mark.parametrize(
    ("variable", "value"),
    [("sql_url", "oracle://a"), ("mcp_servers", "{"), ("chat_tools", ("mill",)), ("egress_allow", ("all",))],
)
async def test_settings_of_tools_that_cannot_be_used_are_told(tmp_path: Path, variable: str, value: Any) -> None:
    with pytest.raises(ConfigurationError):
        await names(Headrace(settings(tmp_path, **{variable: value})))


@pytest.mark.parametrize(
    ("chat_tools", "offered"),
    [(None, {"double"}), ((), set()), (("calculate", "double"), {"calculate", "double"})],
)
async def test_the_model_is_offered_what_the_program_brings_or_the_settings_say(
    tmp_path: Path, chat_tools: tuple[str, ...] | None, offered: set[str]
) -> None:
    headrace = Headrace(settings(tmp_path, chat_tools=chat_tools), tools=[double])
    async with headrace.running():
        model: Any = headrace.model
        seen: list[set[str]] = []
        stream = model.stream

        def watched(request: Any) -> Any:
            seen.append({each.name for each in request.tools})
            return stream(request)

        model.stream = watched
        created = await headrace.runs.start(LOCAL, StartCommand(agent="default", input={"message": "hello"}))
        await headrace.runs.result(created.head)
    assert seen == [offered]


@pytest.mark.parametrize("name", ["tool", "batch", "batch_job", "batch_notice"])
def test_names_of_the_server_s_own_agents_are_taken(tmp_path: Path, name: str) -> None:
    async def say(context: Any) -> AsyncIterator[str]:
        yield "hello"

    with pytest.raises(ConfigurationError, match=r"an agent .* of its own"):
        Headrace(settings(tmp_path), agents={name: agent(say)})  # type: ignore[arg-type]


async def test_seed_s1_finds_its_search_tool(tmp_path: Path) -> None:
    async with Serving(settings(tmp_path)).open() as serving:
        answer = await serving.post("/api/tools/search/execute", {"parameters": {"query": "resume a stream"}})
    assert answer.status == 200
    assert answer.json()["result"]["results"]
