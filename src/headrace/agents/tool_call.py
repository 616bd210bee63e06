"""One call of one tool as a run: what `POST /api/tools/{name}/execute` starts.

Who asks for it has decided on it: nobody is asked for an approval.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from headrace.errors import BY_CODE, HeadraceError, InvalidField, ToolFailed, ToolOutcomeUnknown
from headrace.events import Event, ToolCallEnd, ToolCallResult, ToolCallStart, Unknown
from headrace.ports import AgentItem, RunContext, ToolCall
from headrace.toolbox import Toolbox

NAME = "tool"
"""Of the agent."""
_CALL_ID = "call_1"


class ToolInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it reads of a run's input."""

    tool: str
    parameters: dict[str, object]


class ToolCallAgent:
    """Fails with the error of the tool. After a crash it runs again only a tool that says it may."""

    resumable = True

    def __init__(self, tools: Toolbox) -> None:
        self._tools = tools
        self._task: asyncio.Task[Any] | None = None

    async def run(self, context: RunContext) -> AsyncIterator[AgentItem]:
        self._task = asyncio.current_task()
        try:
            asked = msgspec.convert(context.run.input, ToolInput)
        except msgspec.ValidationError as error:
            raise InvalidField(f"The input of a tool has a value that is not allowed: {error}.") from error
        call = ToolCall(id=_CALL_ID, name=asked.tool, arguments=msgspec.json.encode(asked.parameters).decode())
        if (result := _result(context.history)) is not None:
            if result.is_error:
                raise _error_of(result)
            return
        if _was_begun(context.history):
            if not self._tools.may_repeat(call.name, context.run.scopes):
                raise ToolOutcomeUnknown
        else:
            yield [
                ToolCallStart(tool_call_id=call.id, name=call.name, message_id="", executed_by="server"),
                ToolCallEnd(tool_call_id=call.id, name=call.name, message_id="", args=call.arguments),
            ]
        async with aclosing(self._tools.execute(call, context.run)) as outcomes:
            async for outcome in outcomes:
                yield outcome.event(call.id)
                if outcome.error is not None:
                    raise outcome.error

    async def cancel(self) -> None:
        """Cancel the tool at once."""
        if self._task is not None:
            self._task.cancel()


def _result(history: Sequence[Event | Unknown]) -> ToolCallResult | None:
    results = (event for event in history if isinstance(event, ToolCallResult) and not event.preliminary)
    return next(results, None)


def _error_of(result: ToolCallResult) -> HeadraceError:
    return BY_CODE.get(result.code or "", ToolFailed)(result.output)


def _was_begun(history: Sequence[Event | Unknown]) -> bool:
    return any(isinstance(event, ToolCallEnd) for event in history)
