"""The search tool finds what the index finds, within its limits."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.documents import DocumentIndex, default_documents
from headrace.identity import Owner
from headrace.ports import Run, ToolCall, ToolContext
from headrace.toolbox import Toolbox, ToolOutcome
from headrace.tools.search import SearchTool

RUN = Run(id="run_1", epoch="e", owner=Owner("t", "ann"), agent="a", input={}, created=1)
CONTEXT = ToolContext(run=RUN, tool_call_id="c")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[DocumentIndex]:
    (tmp_path / "mill.md").write_text("# The mill\n\n## Wheel\n\nThe wheel turns the stones.\n")
    for number in range(30):
        (tmp_path / f"grain{number}.md").write_text(f"# Grain {number}\n\nA sack of grain, number {number}.\n")
    built = DocumentIndex.build(tmp_path)
    yield built
    built.close()


async def search(index: DocumentIndex, **arguments: Any) -> list[dict[str, Any]]:
    result = await SearchTool(index).call(arguments, CONTEXT)
    assert list(result) == ["results"]
    found: list[dict[str, Any]] = result["results"]
    return found


async def test_a_passage_says_where_it_is_from(index: DocumentIndex) -> None:
    (found,) = await search(index, query="Which wheels turn?")
    score = found.pop("score")
    assert score > 0
    assert found == {
        "source": "mill.md",
        "title": "The mill",
        "heading": "Wheel",
        "text": "The wheel turns the stones.",
    }


@pytest.mark.parametrize(("arguments", "count"), [({}, 5), ({"limit": 1}, 1), ({"limit": 20}, 20), ({"limit": 3.0}, 3)])
async def test_there_are_at_most_so_many_best_first(
    index: DocumentIndex, arguments: dict[str, Any], count: int
) -> None:
    found = await search(index, query="grain", **arguments)
    assert len(found) == count
    assert found == sorted(found, key=lambda each: -each["score"])


@pytest.mark.parametrize(
    "query",
    ["machine learning", "the", "???", "\x00", '"', "grain\x00' OR", "* NEAR(", "x" * 1000, "title_terms:mill*"],
)
async def test_any_text_is_a_query(index: DocumentIndex, query: str) -> None:
    found = await search(index, query=query)
    assert all("grain" in each["text"] or "wheel" in each["text"] for each in found)


async def test_nothing_found_is_no_error(index: DocumentIndex) -> None:
    assert await search(index, query="machine learning") == []


async def outcome(index: DocumentIndex, arguments: str) -> ToolOutcome:
    call = ToolCall(id="c", name="search", arguments=arguments)
    *_, last = [each async for each in Toolbox([SearchTool(index)]).execute(call, RUN)]
    return last


@pytest.mark.parametrize(
    "arguments",
    [
        "{}",
        '{"query": ""}',
        '{"query": 5}',
        '{"query": "' + "x" * 1001 + '"}',
        '{"query": "x", "limit": 0}',
        '{"query": "x", "limit": 21}',
        '{"query": "x", "limit": 1.5}',
        '{"query": "x", "limit": "5"}',
        '{"query": "x", "path": "/etc"}',
    ],
)
async def test_other_arguments_do_not_fit(index: DocumentIndex, arguments: str) -> None:
    error = (await outcome(index, arguments)).error
    assert error is not None
    assert error.code == "tool.arguments_invalid"


async def test_the_most_and_longest_passages_are_still_whole_json(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.md").write_text(f"# {'é' * 500}\n\n" + '"grain" \\ \t' * 70)
    index = DocumentIndex.build(tmp_path)
    given = await outcome(index, '{"query": "grain", "limit": 20}')
    index.close()
    assert given.is_json
    assert len(json.loads(given.output)["results"]) == 20


async def test_calls_at_the_same_time_find_the_same(index: DocumentIndex) -> None:
    box = [search(index, query="grain", limit=20) for _ in range(20)]
    first, *others = await asyncio.gather(*box)
    assert all(other == first for other in others)


async def test_a_model_is_told_what_is_there(index: DocumentIndex, tmp_path: Path) -> None:
    assert "Grain 0" in SearchTool(index).description
    (tmp_path / "empty").mkdir()
    empty = DocumentIndex.build(tmp_path / "empty")
    assert SearchTool(empty).description.endswith("best first.")
    empty.close()


async def test_the_projects_own_documents_are_found() -> None:
    index = DocumentIndex.build(default_documents())
    found = await search(index, query="How is a run cancelled?")
    index.close()
    assert found
    assert all(each["source"].endswith(".md") for each in found)
