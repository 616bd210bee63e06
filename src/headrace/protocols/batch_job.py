"""`POST /api/batches`: a job's results, one by one, each looking like the answer to a single call.

Source: `docs/protocols/batch_jobs.md`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from headrace.errors import Cancelled
from headrace.events import (
    JOB_RESULT,
    JOB_TALLY,
    Data,
    ErrorInfo,
    Event,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    Unknown,
)
from headrace.ports import Run, View
from headrace.protocols.agent_chat import message_id_of
from headrace.protocols.payload import to_json

_CANCELLED = Cancelled().info()

Which: TypeAlias = Literal["succeeded", "failed"]


class BatchJob:
    """All of a job: results, how far it has got, its end. Of a run that is no job, its start and its end."""

    name = "batch_job"
    stateless = True
    restarts = True

    def view(self, run: Run) -> View:
        return BatchJobView(run)


class BatchJobView:
    def __init__(self, run: Run) -> None:
        self._run_id = run.id
        self._total = run.input.get("items")

    def frames(self, offset: int, event: Event | Unknown, encoded: bytes) -> Sequence[bytes]:
        if isinstance(event, Data):
            if event.name == JOB_RESULT:
                return (to_json({"type": "result", **line(event.value)}),)
            if event.name == JOB_TALLY:
                return (to_json({"type": "progress", "total": self._total, **event.value}),)
            return ()
        if isinstance(event, RunStarted):
            return (to_json({"type": "started", "job_id": self._run_id, "total": self._total}),)
        if isinstance(event, RunCompleted):
            return (to_json({"type": "finished", "job_id": self._run_id}),)
        if isinstance(event, RunFailed):
            return (self.error(event.error),)
        if isinstance(event, RunCancelled):
            return (self.error(_CANCELLED),)
        return ()

    def error(self, error: ErrorInfo) -> bytes:
        return to_json({"type": "error", "message": error.message, "code": error.status})


class JobLines:
    """The result file of a job: `which` of its results, and nothing else."""

    stateless = True
    restarts = True

    def __init__(self, which: Which) -> None:
        self.name = f"batch_job_{which}"
        self._which = which

    def view(self, run: Run) -> View:
        return JobLinesView(self._which)


class JobLinesView:
    def __init__(self, which: Which) -> None:
        self._failed = which == "failed"

    def frames(self, offset: int, event: Event | Unknown, encoded: bytes) -> Sequence[bytes]:
        if not (isinstance(event, Data) and event.name == JOB_RESULT):
            return ()
        return (to_json(line(event.value)),) if is_failure(event.value) is self._failed else ()

    def error(self, error: ErrorInfo) -> bytes:
        return to_json({"error": error})


def is_failure(result: Mapping[str, Any]) -> bool:
    return bool(result["status"] >= 400)


def line(result: Mapping[str, Any]) -> dict[str, Any]:
    """What one operation came to, with the body that a single call would have been answered with."""
    shown = {name: value for name, value in result.items() if name != "kind"}
    if not is_failure(result):
        shown["body"] = _body(result)
    return shown


def _body(result: Mapping[str, Any]) -> dict[str, Any]:
    output, run_id = result["body"], result["run_id"]
    if result["kind"] == "chat":
        return {"response": output, "message_id": message_id_of(run_id), "run_id": run_id}
    return {"result": output} if result["kind"] == "tool" else {"output": output, "run_id": run_id}
