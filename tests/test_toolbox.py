"""Tools by name, for whom they are, and one safe way to run one."""

import asyncio
import threading
from contextlib import aclosing
from typing import Any

import pytest

from headrace.errors import (
    ConfigurationError,
    ToolArgumentsInvalid,
    ToolError,
    ToolFailed,
    ToolRefused,
    ToolTimeout,
)
from headrace.identity import Owner
from headrace.ports import Run, ToolCall, ToolContext
from headrace.toolbox import Toolbox, ToolOutcome
from headrace.tools.function import FunctionTool, tool

RUN = Run(id="run_1", epoch="e", owner=Owner("t", "ann"), agent="a", input={}, created=1)
PATIENCE = 20.0


async def give(value: Any = None) -> Any:
    return value


def function_tool(function: Any = give, *, name: str = "give", **options: Any) -> FunctionTool:
    return FunctionTool(name=name, description="d", parameters={}, function=function, **{"timeout": 5.0, **options})


async def outcomes(box: Toolbox, arguments: str, *, name: str = "give", run: Run = RUN) -> list[ToolOutcome]:
    async with aclosing(box.execute(ToolCall(id="c", name=name, arguments=arguments), run)) as given:
        return [outcome async for outcome in given]


async def outcome(arguments: str, used: Any = None, *, name: str = "give", run: Run = RUN) -> ToolOutcome:
    [only] = await outcomes(Toolbox([used or function_tool()]), arguments, name=name, run=run)
    return only


def told(outcome: ToolOutcome) -> tuple[str, type[ToolError]]:
    """Of a call that failed: the words for a model, and the error for a caller."""
    assert outcome.is_error
    assert outcome.error is not None
    return outcome.output, type(outcome.error)


@pytest.mark.parametrize(
    ("arguments", "output", "is_json"),
    [
        ("", "null", True),
        ("{}", "null", True),
        ('{"value": "text as it is"}', "text as it is", False),
        ('{"value": [1, {"a": null}]}', '[1,{"a":null}]', True),
        ('{"value": "\\u2028 \\"é"}', '\u2028 "é', False),
    ],
)
async def test_a_result_is_text_or_json(arguments: str, output: str, is_json: bool) -> None:
    assert await outcome(arguments) == ToolOutcome(output, is_json=is_json)


@pytest.mark.parametrize(
    "arguments", ["{", "[]", "5", '"x"', "null", '{"value": NaN}', "{} {}", "[" * 10_000, '{"a":' * 100_000]
)
async def test_arguments_that_are_no_object_do_not_reach_the_tool(arguments: str) -> None:
    assert told(await outcome(arguments)) == ("The arguments are not a JSON object.", ToolArgumentsInvalid)


async def test_arguments_that_the_function_does_not_take_fail_it() -> None:
    assert told(await outcome('{"unexpected": 1}')) == ("The tool failed.", ToolFailed)


async def test_an_unknown_tool_is_told() -> None:
    assert told(await outcome("{}", name="take")) == ("There is no tool named 'take'.", ToolFailed)


async def test_arguments_are_held_to_the_schema_before_the_tool_runs() -> None:
    ran = False

    @tool
    async def add(a: int, b: int = 1) -> int:
        """Adds."""
        nonlocal ran
        ran = True
        return a + b

    words, error = told(await outcome('{"a": "1", "c": 2}', add, name="add"))
    assert error is ToolArgumentsInvalid
    assert "/a: " in words
    assert not ran
    assert await outcome('{"a": 1}', add, name="add") == ToolOutcome("2", is_json=True)


async def test_a_tool_speaks_for_itself_by_its_own_error() -> None:
    async def refuse() -> None:
        raise ToolRefused("Say which year.")

    assert told(await outcome("{}", function_tool(refuse))) == ("Say which year.", ToolRefused)


async def test_a_tool_of_a_scope_does_not_exist_for_others() -> None:
    secret = function_tool(scope="payments")
    with_scope = Run(
        id="run_2", epoch="e", owner=RUN.owner, agent="a", input={}, created=1, scopes=("payments", "other")
    )
    assert await outcome("{}", secret, run=with_scope) == ToolOutcome("null", is_json=True)
    assert told(await outcome("{}", secret)) == told(await outcome("{}", function_tool(name="another")))
    box = Toolbox([secret, function_tool(name="open")])
    assert [each.name for each in box.open_to(())] == ["open"]
    assert [each.name for each in box.open_to(["payments"])] == ["give", "open"]
    assert box.find("give", ()) is None


@pytest.mark.parametrize("result", ["half of a pair: \ud800", ["\ud800"], object()])
async def test_a_result_that_no_log_can_hold_fails_the_call_alone(result: Any) -> None:
    async def find() -> Any:
        return result

    assert told(await outcome("{}", function_tool(find))) == ("The tool failed.", ToolFailed)


async def test_a_long_result_is_cut_and_says_so() -> None:
    long = await outcome('{"value": "' + "x" * 70_000 + '"}')
    assert long.output == "x" * 65_536 + "\n[cut: the result was longer than the limit]"
    exact = await outcome('{"value": "' + "x" * 65_536 + '"}')
    assert exact.output == "x" * 65_536
    cut_json = await outcome('{"value": ["' + "x" * 70_000 + '"]}')
    assert not cut_json.is_json


@pytest.mark.parametrize(
    "error", [RuntimeError("sk-canary"), KeyError("sk-canary"), ExceptionGroup("sk-canary", [OSError()])]
)
async def test_what_a_tool_raises_is_not_told_to_the_model(error: Exception) -> None:
    async def fail() -> None:
        raise error

    assert told(await outcome("{}", function_tool(fail))) == ("The tool failed.", ToolFailed)


async def test_a_tool_that_takes_too_long_is_ended() -> None:
    ended = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    late = await outcome("{}", function_tool(hang, timeout=0.01))
    assert told(late) == ("The tool took longer than 0.01 seconds.", ToolTimeout)
    assert ended.is_set()


async def test_a_timeout_inside_a_tool_is_a_failure_of_the_tool() -> None:
    async def fail() -> None:
        raise TimeoutError

    assert told(await outcome("{}", function_tool(fail))) == ("The tool failed.", ToolFailed)


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError()])
async def test_a_tool_ends_neither_the_server_nor_its_caller(error: BaseException) -> None:
    async def leave() -> None:
        raise error

    assert told(await outcome("{}", function_tool(leave))) == ("The tool failed.", ToolFailed)


async def test_a_cancel_ends_the_tool() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.create_task(outcome("{}", function_tool(hang)))
    await began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


async def test_reports_are_shown_while_the_tool_is_at_work() -> None:
    go_on = asyncio.Event()

    @tool
    async def count(context: ToolContext) -> str:
        """Counts."""
        for number in range(3):
            context.report({"done": number})
            await go_on.wait()
            go_on.clear()
        return "all"

    given: list[ToolOutcome] = []
    async with aclosing(Toolbox([count]).execute(ToolCall(id="c", name="count", arguments=""), RUN)) as outcomes:
        async for each in outcomes:
            given.append(each)
            go_on.set()
    assert given == [
        *(ToolOutcome(f'{{"done":{number}}}', is_json=True, preliminary=True) for number in range(3)),
        ToolOutcome("all"),
    ]


async def test_of_many_reports_the_newest_is_shown() -> None:
    @tool
    async def count(context: ToolContext) -> str:
        """Counts."""
        for number in range(100_000):
            context.report(number)
        return "all"

    assert await outcomes(Toolbox([count]), "", name="count") == [
        ToolOutcome("99999", is_json=True, preliminary=True),
        ToolOutcome("all"),
    ]


async def test_no_more_calls_than_a_tool_takes_run_at_the_same_time() -> None:
    running, most = 0, 0
    go_on = asyncio.Event()

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            go_on.set()
        await go_on.wait()
        running -= 1

    box = Toolbox([function_tool(work, concurrency=2)])
    part = box.only(["give"])  # which shares the limit
    await asyncio.wait_for(asyncio.gather(*(outcomes([box, part][number % 2], "{}") for number in range(8))), PATIENCE)
    assert most == 2


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="Two tools are named 'give': rename one"):
        Toolbox([function_tool(), function_tool()])


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "x" * 129, "ü"])
def test_a_name_that_no_request_could_bring_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="name of a tool"):
        Toolbox([function_tool(name=name)])


@pytest.mark.parametrize("schema", [{"type": "no such type"}, {"$ref": "http://127.0.0.1/schema"}])
def test_a_schema_that_is_none_is_refused(schema: dict[str, Any]) -> None:
    used = FunctionTool(name="give", description="d", parameters=schema, function=give)
    with pytest.raises(ConfigurationError, match="JSON Schema"):
        Toolbox([used])


def test_a_part_of_a_toolbox_has_only_what_there_is() -> None:
    box = Toolbox([function_tool(name="one"), function_tool(name="two")])
    assert [each.name for each in box.only(["two"]).open_to(())] == ["two"]
    with pytest.raises(ConfigurationError, match=r"no tool 'three'\. There are: one, two"):
        box.only(["three"])


@pytest.mark.parametrize(("idempotent", "name", "may"), [(True, "give", True), (False, "give", False)])
def test_whether_a_call_may_be_repeated_is_the_tool_s_word(idempotent: bool, name: str, may: bool) -> None:
    box = Toolbox([function_tool(idempotent=idempotent)])
    assert box.may_repeat(name, ()) is may
    assert not box.may_repeat("gone", ())


@pytest.mark.parametrize("limits", [{"concurrency": 0}, {"concurrency": -1}, {"timeout": 0}])
def test_limits_that_let_nothing_through_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="more than nothing"):
        Toolbox([function_tool(**limits)])


@pytest.mark.parametrize("words", ["x" * 10_000_000, "half of a pair: \ud800"])
async def test_what_a_tool_says_of_its_failure_is_no_more_than_a_log_can_hold(words: str) -> None:
    async def refuse() -> None:
        raise ToolRefused(words)

    refused = await outcome("{}", function_tool(refuse))
    assert refused.error is not None
    for said in (refused.output, refused.error.message):
        assert len(said.encode()) < 70_000


async def test_a_plain_function_reports_while_it_is_at_work() -> None:
    go_on = threading.Event()

    @tool
    def count(context: ToolContext) -> str:
        """Counts."""
        context.report("half")
        assert go_on.wait(PATIENCE)
        return "all"

    given: list[ToolOutcome] = []
    async with aclosing(Toolbox([count]).execute(ToolCall(id="c", name="count", arguments=""), RUN)) as outcomes:
        async for each in outcomes:
            given.append(each)
            go_on.set()
    assert given == [ToolOutcome("half", preliminary=True), ToolOutcome("all")]


async def test_plain_functions_that_hang_hold_up_nobody_else() -> None:
    go_on = threading.Event()

    @tool(timeout=0.01, concurrency=20)
    def hang() -> None:
        """Hangs."""
        go_on.wait(PATIENCE)

    try:
        box = Toolbox([hang])
        late = await asyncio.gather(*(outcomes(box, "", name="hang") for _ in range(20)))
        assert {told(only) for [only] in late} == {("The tool took longer than 0.01 seconds.", ToolTimeout)}
        await asyncio.wait_for(asyncio.to_thread(int), PATIENCE)  # the loop's own threads are free
    finally:
        go_on.set()
