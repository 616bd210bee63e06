"""What earlier attempts at a run had done, read from its log."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from headrace.agents.chat.call import Call
from headrace.events import (
    AttemptStarted,
    Event,
    InputReceived,
    InputRequested,
    MessageEnd,
    MessageStart,
    ReasoningDelta,
    TextDelta,
    ToolCallArgs,
    ToolCallEnd,
    ToolCallResult,
    ToolCallStart,
    Unknown,
    Usage,
)
from headrace.ports import Message, ModelState, ToolCall

AnyCall = TypeVar("AnyCall", Call, ToolCall)


class Past:
    """Whole steps as messages, the calls of the last one that have no result, and what was said in an open one."""

    def __init__(self) -> None:
        self.steps = 0
        """That ended."""
        self.messages: list[Message] = []
        self.unanswered: list[ToolCall] = []
        """Calls of the last whole message, in order, the first of which may have run."""
        self.answered = 0
        """Calls of that message that have a result."""
        self.asked: dict[str, InputRequested] = {}
        self.answers: dict[str, InputReceived] = {}
        """By the id of the request."""
        self.finish_reason = ""
        """Of the last whole message."""
        self.begun = False
        """A message was open."""
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._begun_calls: list[Call] = []
        """Of the open message, in order. Some models give several calls of a message the same id."""
        self._whole_calls: list[Call] = []
        self.model: str | None = None
        """That was asked for the open message."""
        self.usages = 0
        """That are in the log."""
        self.unpaid = 0
        """Characters that this model said, and whose usage is not in the log."""

    @classmethod
    def of(cls, history: Sequence[Event | Unknown]) -> "Past":
        past = cls()
        for event in history:
            past._take(event)
        return past

    @property
    def text(self) -> str:
        """Of the open message."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """That the open message had begun."""
        return tuple(call.whole() for call in (*self._whole_calls, *self._begun_calls))

    @property
    def finished(self) -> bool:
        """All was said, only the run's end was not written yet."""
        return bool(self.messages) and not self.begun and not self.unanswered and self.messages[-1].role == "assistant"

    def _take(self, event: Event | Unknown) -> None:
        if isinstance(event, TextDelta):
            self._text.append(event.delta)
            self.unpaid += len(event.delta)
        elif isinstance(event, ReasoningDelta):
            self._reasoning.append(event.delta)
            self.unpaid += len(event.delta)
        elif isinstance(event, MessageStart):
            self._open(event)
        elif isinstance(event, MessageEnd):
            self._close(event)
        elif isinstance(event, AttemptStarted):
            self._go_on(event)
        elif isinstance(event, Usage):
            self.usages += 1
            self.unpaid = 0
        elif isinstance(event, InputRequested):
            self.asked[event.request_id] = event
        elif isinstance(event, InputReceived):
            self.answers[event.request_id] = event
        else:
            self._take_call(event)

    def _take_call(self, event: Event | Unknown) -> None:
        if isinstance(event, ToolCallStart):
            self._begun_calls.append(Call(event.tool_call_id, event.name))
        elif isinstance(event, ToolCallArgs):
            self._go_on_with_call(event)
        elif isinstance(event, ToolCallEnd):
            _take_first(self._begun_calls, event.tool_call_id)
            self._whole_calls.append(Call(event.tool_call_id, event.name, [event.args]))
        elif isinstance(event, ToolCallResult) and not event.preliminary:
            self._answer(event)

    def _go_on_with_call(self, event: ToolCallArgs) -> None:
        """A model writes one call after the other, so of several with this id it is the last."""
        self.unpaid += len(event.delta)
        for call in reversed(self._begun_calls):
            if call.id == event.tool_call_id:
                call.arguments.append(event.delta)
                return

    def _open(self, event: MessageStart) -> None:
        self.begun = True
        self._void()
        self.model, self.unpaid = event.model, 0

    def _go_on(self, event: AttemptStarted) -> None:
        if event.mode == "restart":
            self._void()
        if event.model is not None:
            self.model = event.model

    def _void(self) -> None:
        self._text, self._reasoning, self._begun_calls, self._whole_calls = [], [], [], []

    def _close(self, event: MessageEnd) -> None:
        calls = self.calls
        state = msgspec.convert(event.provider_state, ModelState) if event.provider_state is not None else None
        self.messages.append(Message(role="assistant", content=event.text, tool_calls=calls, provider_state=state))
        self.unanswered = list(calls)
        self.answered = 0
        self.begun, self.finish_reason = False, event.finish_reason
        self._void()
        self.steps += 1

    def _answer(self, event: ToolCallResult) -> None:
        """A call of the open message that has a result is void: its model broke off, and it was never run."""
        if _take_first(self._whole_calls, event.tool_call_id):
            return
        _take_first(self.unanswered, event.tool_call_id)
        self.answered += 1
        self.messages.append(Message(role="tool", content=event.output, tool_call_id=event.tool_call_id))


def _take_first(calls: list[AnyCall], call_id: str) -> bool:
    """Calls of one id are ended, and answered, in their order."""
    for index, call in enumerate(calls):
        if call.id == call_id:
            del calls[index]
            return True
    return False
