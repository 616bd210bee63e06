"""Runs the calls of one message, each once, as far as that can be known."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from headrace.agents.chat.approval import Approval
from headrace.agents.chat.past import Past
from headrace.errors import ToolNotApproved, ToolOutcomeUnknown
from headrace.events import AnyEvent, ToolCallResult
from headrace.ports import Message, RunContext, ToolCall
from headrace.toolbox import Toolbox


class ToolUse:
    """One call after the other: a result is in the log before the next tool begins, so after a crash only the first
    call without a result may have run."""

    def __init__(self, tools: Toolbox, context: RunContext, *, approval_seconds: float) -> None:
        self._tools = tools
        self._context = context
        self._approval_seconds = approval_seconds

    async def run(
        self, step: int, calls: Sequence[ToolCall], messages: list[Message], *, past: Past | None = None
    ) -> AsyncGenerator[AnyEvent, None]:
        """The events of the calls of step `step`; what a model is told of each goes to `messages`.

        With `past`, `calls` are those that an earlier attempt left without a result. Raises `ToolOutcomeUnknown` where
        the first of them may have run and must not run twice.
        """
        done = past.answered if past is not None else 0
        may_have_run = past is not None
        for number, call in enumerate(calls, done + 1):
            approval = self._approval(f"approval_{step}_{number}", call, past)
            if approval is not None and not (approval.known and approval.granted):
                may_have_run = False
                async with aclosing(approval.events(self._context.inbox, self._approval_seconds)) as events:
                    async for event in events:
                        yield event
            if approval is not None and not approval.granted:
                result = _refused(call, approval)
                messages.append(_told(result))
                yield result
                continue
            if may_have_run and not self._tools.may_repeat(call.name, self._context.run.scopes):
                raise ToolOutcomeUnknown
            may_have_run = False
            async with aclosing(self._tools.execute(call, self._context.run)) as outcomes:
                async for outcome in outcomes:
                    result = outcome.event(call.id)
                    if not result.preliminary:
                        messages.append(_told(result))
                    yield result

    def _approval(self, request_id: str, call: ToolCall, past: Past | None) -> Approval | None:
        """None where nobody has to agree. Who was asked once is waited for, whatever has become of the tool since."""
        asked = past.asked.get(request_id) if past is not None else None
        answered = past.answers.get(request_id) if past is not None else None
        tool = self._tools.find(call.name, self._context.run.scopes)
        if asked is None and (tool is None or not tool.approval):
            return None
        return Approval(request_id, call, asked=asked, answered=answered)


def _refused(call: ToolCall, approval: Approval) -> ToolCallResult:
    words = ToolNotApproved.detail + (f" Reason: {approval.reason}" if approval.reason else "")
    return ToolCallResult(tool_call_id=call.id, output=words, is_error=True)


def _told(result: ToolCallResult) -> Message:
    return Message(role="tool", content=result.output, tool_call_id=result.tool_call_id)
