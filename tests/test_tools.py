"""Tools by name, and one safe way to run one."""

import asyncio
from typing import Any

import pytest

from headrace.errors import ConfigurationError
from headrace.identity import Owner
from headrace.ports import Run, ToolCall, ToolContext
from headrace.tools import FunctionTool, Toolbox, ToolOutcome

CONTEXT = ToolContext(
    run=Run(id="run_1", epoch="e", owner=Owner("t", "ann"), agent="a", input={}, created=1), tool_call_id="c"
)


async def give(value: Any = None) -> Any:
    return value


def tool(function: Any = give, *, name: str = "give", timeout: float = 5.0) -> FunctionTool:
    return FunctionTool(name=name, description="d", parameters={}, function=function, timeout=timeout)


async def outcome(arguments: str, used: FunctionTool | None = None, *, name: str = "give") -> ToolOutcome:
    call = ToolCall(id="c", name=name, arguments=arguments)
    return await Toolbox([used or tool()]).execute(call, CONTEXT)


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ("", "null"),
        ("{}", "null"),
        ('{"value": "text as it is"}', "text as it is"),
        ('{"value": [1, {"a": null}]}', '[1,{"a":null}]'),
        ('{"value": "\\u2028 \\"é"}', '\u2028 "é'),
    ],
)
async def test_a_result_is_text_or_json(arguments: str, output: str) -> None:
    assert await outcome(arguments) == ToolOutcome(output, is_error=False)


@pytest.mark.parametrize("arguments", ["{", "[]", "5", '"x"', "null", '{"value": NaN}', "{} {}"])
async def test_arguments_that_are_no_object_do_not_reach_the_tool(arguments: str) -> None:
    assert await outcome(arguments) == ToolOutcome("The arguments are not a JSON object.", is_error=True)


@pytest.mark.parametrize("arguments", ['{"unexpected": 1}'])
async def test_arguments_that_the_function_does_not_take_fail_it(arguments: str) -> None:
    assert await outcome(arguments) == ToolOutcome("The tool failed.", is_error=True)


async def test_an_unknown_tool_is_told() -> None:
    assert await outcome("{}", name="take") == ToolOutcome("There is no tool named 'take'.", is_error=True)


@pytest.mark.parametrize("result", ["half of a pair: \ud800", ["\ud800"], object()])
async def test_a_result_that_no_log_can_hold_fails_the_call_alone(result: Any) -> None:
    async def find() -> Any:
        return result

    assert await outcome("{}", tool(find)) == ToolOutcome("The tool failed.", is_error=True)


async def test_a_long_result_is_cut_and_says_so() -> None:
    long = await outcome('{"value": "' + "x" * 70_000 + '"}')
    assert long.output == "x" * 65_536 + "\n[cut: the result was longer than the limit]"
    exact = await outcome('{"value": "' + "x" * 65_536 + '"}')
    assert exact.output == "x" * 65_536


@pytest.mark.parametrize(
    "error", [RuntimeError("sk-canary"), KeyError("sk-canary"), ExceptionGroup("sk-canary", [OSError()])]
)
async def test_what_a_tool_raises_is_not_told_to_the_model(error: Exception) -> None:
    async def fail() -> None:
        raise error

    assert await outcome("{}", tool(fail)) == ToolOutcome("The tool failed.", is_error=True)


async def test_a_tool_that_takes_too_long_is_ended() -> None:
    ended = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    late = await outcome("{}", tool(hang, timeout=0.01))
    assert late == ToolOutcome("The tool took longer than 0.01 seconds.", is_error=True)
    assert ended.is_set()


async def test_a_timeout_inside_a_tool_is_a_failure_of_the_tool() -> None:
    async def fail() -> None:
        raise TimeoutError

    assert await outcome("{}", tool(fail)) == ToolOutcome("The tool failed.", is_error=True)


async def test_a_cancel_is_let_through() -> None:
    began = asyncio.Event()

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(outcome("{}", tool(hang)))
    await began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="Two tools are named 'give': rename one"):
        Toolbox([tool(), tool()])


def test_a_toolbox_knows_its_tools() -> None:
    one, two = tool(name="one"), tool(name="two")
    box = Toolbox([one, two])
    assert box.all == (one, two)
