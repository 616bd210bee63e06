"""A generator of strings as an agent."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from headrace.agents.generator import generator_agent
from headrace.events import MessageEnd, MessageStart, TextDelta
from headrace.identity import Owner
from headrace.ports import Run, RunContext

RUN = Run(id="run_1", epoch="e", owner=Owner("t", "ann"), agent="poet", input={"message": "hi"}, created=1)


async def said(generator: Callable[[RunContext], Any]) -> list[Any]:
    return [item async for item in generator_agent(generator)(RUN).run(RunContext(run=RUN))]


async def test_each_string_is_a_piece_of_one_message() -> None:
    async def poem(context: RunContext) -> AsyncGenerator[str, None]:
        yield str(context.run.input["message"])
        yield " there"

    start, one, two, end = await said(poem)
    assert (type(start), start.message_id, start.agent, start.role) == (MessageStart, "msg_1", "poet", "assistant")
    assert [type(one), one.delta, two.delta] == [TextDelta, "hi", " there"]
    assert (type(end), end.text, end.finish_reason) == (MessageEnd, "hi there", "stop")
    assert {event.message_id for event in (one, two, end)} == {"msg_1"}


async def test_a_generator_that_says_nothing_gives_an_empty_message() -> None:
    async def silence(context: RunContext) -> AsyncGenerator[str, None]:
        for text in context.run.input.get("texts", []):
            yield text

    assert [type(event) for event in await said(silence)] == [MessageStart, MessageEnd]


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["text"]])
async def test_what_is_no_string_does_not_get_into_the_log(wrong: Any) -> None:
    """An event that holds it could be written, and never be read again."""

    async def poem(context: RunContext) -> AsyncGenerator[Any, None]:
        yield "before"
        yield wrong

    items = generator_agent(poem)(RUN).run(RunContext(run=RUN))
    for _ in range(2):
        await anext(items)
    with pytest.raises(TypeError, match="yields strings"):
        await anext(items)


async def test_leaving_it_closes_the_generator() -> None:
    closed = []

    async def poem(context: RunContext) -> AsyncGenerator[str, None]:
        try:
            yield "before"
            yield "after"
        finally:
            closed.append(True)

    items: Any = generator_agent(poem)(RUN).run(RunContext(run=RUN))
    await anext(items)
    await anext(items)
    await items.aclose()
    assert closed == [True]


async def test_it_does_not_go_on_after_another_worker() -> None:
    async def poem(context: RunContext) -> AsyncGenerator[str, None]:
        yield ""

    agent = generator_agent(poem)(RUN)
    assert not agent.resumable
    await agent.cancel()
