"""`POST /api/batch`: several calls in one, answered together, or item by item as they come.

Source: seed S1, with `dependsOn` as in Microsoft Graph's `$batch`, and `docs/protocols/batch.md`.
"""

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from headrace.errors import BatchTooLarge, Cancelled, InvalidField
from headrace.events import (
    BATCH_RESPONSE,
    BATCH_RESTARTED,
    Data,
    ErrorInfo,
    Event,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    StepStarted,
    TextDelta,
    Unknown,
)
from headrace.ports import Run, StartCommand, View
from headrace.protocols.name import Name
from headrace.protocols.payload import pieces, to_json

_CANCELLED = Cancelled().info()
_MAX_HEADERS = 16


class BatchItem(BaseModel):
    """A call, as it would be made by itself."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Name
    method: Annotated[str, Field(max_length=64)] = Field(examples=["POST"])
    path: Annotated[str, Field(max_length=8192)] = Field(examples=["/api/agent/chat"])
    body: dict[str, Any] | None = Field(default=None, examples=[{"message": "What is a headrace?"}])
    headers: dict[str, str] | None = Field(default=None, max_length=_MAX_HEADERS)
    depends_on: list[Name] | None = Field(
        default=None, alias="dependsOn", description="Items that have to be answered well before this one is called."
    )


class BatchRequest(BaseModel):
    """Body of `POST /api/batch`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    requests: list[BatchItem] = Field(min_length=1)

    def command(self, max_size: int) -> StartCommand:
        """Raises `BatchTooLarge`, and `InvalidField` for ids that are not unique or dependencies that cannot be met."""
        if len(self.requests) > max_size:
            raise BatchTooLarge(f"A batch has at most {max_size} items here. Send several, or a batch job.")
        self._check_ids()
        self._check_dependencies()
        items = [item.model_dump(by_alias=True, exclude_none=True) for item in self.requests]
        return StartCommand(agent="batch", input={"requests": items})

    def _check_ids(self) -> None:
        seen: set[str] = set()
        for number, item in enumerate(self.requests):
            if item.id in seen:
                raise _invalid(number, "id", "another item has this id")
            seen.add(item.id)

    def _check_dependencies(self) -> None:
        graph = {item.id: item.depends_on or [] for item in self.requests}
        for number, item in enumerate(self.requests):
            if not graph.keys() >= set(graph[item.id]):
                raise _invalid(number, "dependsOn", "names an item that is not in this batch")
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            first = list(graph).index(error.args[1][0])
            raise _invalid(first, "dependsOn", "this item waits for itself") from error


def _invalid(number: int, field: str, detail: str) -> InvalidField:
    return InvalidField(errors=[{"pointer": f"/requests/{number}/{field}", "detail": detail}])


class Batch:
    """`chunk_size`: most characters in one `token`."""

    name = "batch"
    stateless = True
    restarts = False
    """Of a run that is no batch. A batch never begins anew; that an item does, it says by itself."""

    def __init__(self, chunk_size: int = 100) -> None:
        self._chunk_size = chunk_size

    def view(self, run: Run) -> View:
        return BatchView(run, self._chunk_size)


class BatchView:
    """Every frame of an item has its `request_id`."""

    def __init__(self, run: Run, chunk_size: int) -> None:
        self._run = run
        self._chunk_size = chunk_size

    def frames(self, offset: int, event: Event | Unknown, encoded: bytes) -> Sequence[bytes]:
        if isinstance(event, TextDelta):
            return [
                to_json({"type": "token", "request_id": event.step_id, "content": piece})
                for piece in pieces(event.delta, self._chunk_size)
            ]
        if isinstance(event, Data):
            return self._data(event)
        if isinstance(event, StepStarted):
            return (to_json({"type": "item_started", "request_id": event.step_id}),)
        if isinstance(event, RunStarted):
            return (to_json({"type": "batch_started", "batch_id": self._run.id}),)
        if isinstance(event, RunCompleted):
            seconds = total_processing_time(self._run, event)
            return (to_json({"type": "batch_finished", "batch_id": self._run.id, "total_processing_time": seconds}),)
        if isinstance(event, RunFailed):
            return (self.error(event.error),)
        if isinstance(event, RunCancelled):
            return (self.error(_CANCELLED),)
        return ()

    def error(self, error: ErrorInfo) -> bytes:
        return to_json({"type": "error", "message": error.message, "code": error.status})

    def _data(self, event: Data) -> Sequence[bytes]:
        if event.name == BATCH_RESPONSE:
            response = dict(event.value)
            return (to_json({"type": "item_finished", "request_id": response.pop("id"), **response}),)
        if event.name == BATCH_RESTARTED:
            return (to_json({"type": "item_restarted", "request_id": event.value}),)
        return ()


def total_processing_time(run: Run, end: RunCompleted) -> float:
    """Seconds."""
    return round(max(0.0, end.time - run.created), 6)


def answer(run: Run, responses: Mapping[str, Any], end: RunCompleted) -> bytes:
    """The reply without streaming: the responses by id, in the order of the requests."""
    ordered = [responses[item["id"]] for item in run.input["requests"]]
    return to_json({"responses": ordered, "total_processing_time": total_processing_time(run, end)})
