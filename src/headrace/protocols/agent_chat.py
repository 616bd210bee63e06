"""`POST /api/agent/chat`: a chat answer as `start`, `token`s, and one `end` or `error`.

Source: seed S1, and `docs/protocols/agent_chat.md`.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from headrace.errors import Cancelled
from headrace.events import ErrorInfo, Event, RunCancelled, RunCompleted, RunFailed, RunStarted, TextDelta, Unknown
from headrace.json_schema import check as check_output_schema
from headrace.ports import Run, StartCommand, View
from headrace.protocols.name import Name
from headrace.protocols.payload import pieces, to_json

CANCELLED = Cancelled().info()
_MAX_MESSAGE = 200_000


class ChatRequest(BaseModel):
    """Body of `POST /api/agent/chat`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    message: str = Field(min_length=1, max_length=_MAX_MESSAGE, examples=["What is a headrace?"])
    agent_id: Name = "default"
    conversation_id: Name | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    model: str | None = Field(default=None, min_length=1, max_length=256, description="A model that is served here.")
    output_schema: dict[str, Any] | None = Field(default=None, description="JSON Schema of the answer.")

    def command(self) -> StartCommand:
        """Raises `InvalidField` for a schema that cannot be used."""
        chat: dict[str, Any] = {"message": self.message}
        if self.max_tokens is not None:
            chat["max_tokens"] = self.max_tokens
        if self.output_schema is not None:
            check_output_schema(self.output_schema)
            chat["output_schema"] = self.output_schema
        return StartCommand(agent=self.agent_id, input=chat, conversation_id=self.conversation_id)


class AgentChat:
    """`chunk_size`: most characters in one `token`; longer pieces are split, never inside a character."""

    name = "agent_chat"
    stateless = True
    restarts = False

    def __init__(self, chunk_size: int = 100) -> None:
        self._chunk_size = chunk_size

    def view(self, run: Run) -> View:
        return AgentChatView(run, self._chunk_size)


class AgentChatView:
    def __init__(self, run: Run, chunk_size: int) -> None:
        self._message_id = message_id(run)
        self._chunk_size = chunk_size

    def frames(self, offset: int, event: Event | Unknown, encoded: bytes) -> Sequence[bytes]:
        if type(event) is TextDelta:
            return [to_json({"type": "token", "content": piece}) for piece in pieces(event.delta, self._chunk_size)]
        if isinstance(event, RunStarted):
            return (to_json({"type": "start", "message_id": self._message_id}),)
        if isinstance(event, RunCompleted):
            return (to_json({"type": "end", "message_id": self._message_id}),)
        if isinstance(event, RunFailed):
            return (self.error(event.error),)
        if isinstance(event, RunCancelled):
            return (self.error(CANCELLED),)
        return ()

    def error(self, error: ErrorInfo) -> bytes:
        return to_json({"type": "error", "message": error.message, "code": error.status})


def message_id(run: Run) -> str:
    """Derived, so that every reader of a run is told the same one."""
    return message_id_of(run.id)


def message_id_of(run_id: str) -> str:
    return f"msg_{run_id.removeprefix('run_')}"


def answer(run: Run, completed: RunCompleted) -> dict[str, str]:
    """The reply without streaming."""
    return {"response": completed.output, "message_id": message_id(run), "run_id": run.id}
