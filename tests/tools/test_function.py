"""A typed function as a tool."""

import threading
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from headrace.errors import ConfigurationError, ToolArgumentsInvalid
from headrace.identity import Owner
from headrace.ports import Run, ToolContext
from headrace.toolbox import Toolbox
from headrace.tools.function import tool

CONTEXT = ToolContext(
    run=Run(id="run_1", epoch="e", owner=Owner("t", "ann"), agent="a", input={}, created=1), tool_call_id="c"
)


class Place(BaseModel):
    city: str
    floor: int = 0


@tool(idempotent=True, timeout=2.0, concurrency=3, scope="maps", approval=True)
async def find(
    place: Place, kind: Literal["shop", "mill"] = "mill", *, most: Annotated[int, Field(ge=1, description="Most.")] = 5
) -> list[str]:
    """Finds places."""
    assert isinstance(place, Place)
    return [f"{kind} {number} in {place.city}" for number in range(most)]


def test_the_signature_is_the_schema_and_the_docstring_the_description() -> None:
    assert (find.name, find.description) == ("find", "Finds places.")
    properties = find.parameters["properties"]
    assert find.parameters["required"] == ["place"]
    assert properties["kind"] == {"default": "mill", "enum": ["shop", "mill"], "type": "string"}
    assert properties["most"] == {"default": 5, "description": "Most.", "minimum": 1, "type": "integer"}
    assert find.parameters["additionalProperties"] is False
    assert (find.idempotent, find.timeout, find.concurrency, find.scope, find.approval) == (True, 2.0, 3, "maps", True)
    Toolbox([find])  # the schema is one


async def test_it_gets_values_of_its_types() -> None:
    result = await find.call({"place": {"city": "Ulm"}, "most": 2}, CONTEXT)
    assert result == ["mill 0 in Ulm", "mill 1 in Ulm"]


async def test_what_only_its_types_can_tell_is_told_with_pointers() -> None:
    with pytest.raises(ToolArgumentsInvalid) as caught:
        await find.call({"place": {"city": "Ulm", "floor": "x"}, "more": 1}, CONTEXT)
    assert {fault["pointer"] for fault in caught.value.extra["errors"]} == {"/place/floor", "/more"}


async def test_a_plain_function_runs_beside_the_loop() -> None:
    @tool(name="where")
    def thread(number: int = 1) -> int:
        """Which thread."""
        return threading.get_ident()

    assert thread.name == "where"
    assert await thread.call({}, CONTEXT) != threading.get_ident()


async def test_the_context_is_no_argument() -> None:
    @tool
    async def who(context: ToolContext) -> str:
        """Who asks."""
        return context.run.owner.subject

    assert who.parameters["properties"] == {}
    assert await who.call({}, CONTEXT) == "ann"


async def test_a_model_is_given_as_json() -> None:
    @tool
    async def here() -> Place:
        """Here."""
        return Place(city="Ulm")

    assert await here.call({}, CONTEXT) == {"city": "Ulm", "floor": 0}


async def _no_docstring(a: int) -> int:
    return a


async def _no_type(a, b: int) -> int:  # type: ignore[no-untyped-def]
    """Adds."""
    return b


async def _any_number(*numbers: int) -> int:
    """Adds."""
    return sum(numbers)


async def _no_json(lock: threading.Event) -> None:
    """Waits."""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_no_docstring, "needs a docstring"),
        (_no_type, "'a' .* needs a type"),
        (_any_number, "every argument needs a name of its own"),
        (_no_json, "a type that JSON cannot bring"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_refused(function: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        tool(function)


@pytest.mark.parametrize("option", ["aproval", "call", "timeot"])
def test_an_option_that_is_none_is_refused(option: str) -> None:
    with pytest.raises(TypeError):
        tool(**{option: True})  # type: ignore[call-overload]


async def test_what_a_plain_function_raises_is_raised() -> None:
    @tool
    def fail() -> None:
        """Fails."""
        raise KeyError("k")

    @tool
    def leave() -> None:
        """Leaves."""
        raise SystemExit(3)

    with pytest.raises(KeyError):
        await fail.call({}, CONTEXT)
    with pytest.raises(RuntimeError, match="SystemExit"):
        await leave.call({}, CONTEXT)
