"""What a chat agent reads of a run's input."""

from typing import Any, Literal

import msgspec

from headrace import json_schema
from headrace.errors import InvalidField
from headrace.ports import Message, Run, ToolCall


class HistoryTurn(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller may say of an earlier turn. The system prompt is the operator's."""

    role: Literal["user", "assistant", "tool"]
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def message(self) -> Message:
        return Message(role=self.role, content=self.content, tool_calls=self.tool_calls, tool_call_id=self.tool_call_id)


class ChatInput(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    history: tuple[HistoryTurn, ...] = ()
    """Earlier turns, oldest first."""
    max_tokens: int | None = None
    temperature: float | None = None
    output_schema: dict[str, Any] | None = None
    """JSON Schema of the answer, which is then JSON."""


def chat_input(run: Run) -> ChatInput:
    """Raises `InvalidField`."""
    try:
        chat = msgspec.convert(run.input, ChatInput)
    except msgspec.ValidationError as error:
        raise InvalidField(f"The input of a chat has a value that is not allowed: {error}.") from error
    if chat.output_schema is not None:
        json_schema.check(chat.output_schema)
    return chat
