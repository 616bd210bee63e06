"""The log as it is: each event as its JSON, with its offset and run id in front. What `/api/runs` speaks."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from headrace.events import ErrorInfo, Event, Unknown
from headrace.json_schema import check as check_output_schema
from headrace.ports import Run, StartCommand, View
from headrace.protocols.name import Name
from headrace.protocols.payload import one_line, to_json


class StartRun(BaseModel):
    """Body of `POST /api/runs`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    agent: Name = Field(default="default", examples=["default"])
    input: dict[str, Any] = Field(
        description="What the agent gets. A chat agent reads `message`, `history`, `max_tokens`, `temperature` and "
        "`output_schema`.",
        examples=[{"message": "What is a headrace?"}],
    )
    conversation_id: Name | None = None

    def command(self) -> StartCommand:
        """Raises `InvalidField` for an `output_schema` that cannot be used, whatever the agent makes of it."""
        if isinstance(schema := self.input.get("output_schema"), dict):
            check_output_schema(schema, "/input/output_schema")
        return StartCommand(agent=self.agent, input=self.input, conversation_id=self.conversation_id)


class Native:
    name = "native"
    stateless = True
    restarts = True

    def view(self, run: Run) -> View:
        return NativeView(run)


class NativeView:
    def __init__(self, run: Run) -> None:
        self._run_id = run.id.encode()

    def frames(self, offset: int, event: Event | Unknown, encoded: bytes) -> Sequence[bytes]:
        return (placed(self._run_id, offset, encoded),)

    def error(self, error: ErrorInfo) -> bytes:
        return to_json({"kind": "error", "error": error})


def placed(run_id: bytes, offset: int, encoded: bytes) -> bytes:
    """An event's JSON as stored, with its place in front."""
    return b'{"offset":%d,"run_id":"%b",%b' % (offset, run_id, one_line(encoded[1:]))
