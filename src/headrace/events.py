"""The vocabulary of a run's log: one frozen struct per kind of event.

An event is a fact. It never changes once it is in a log, and its place there (its `offset`, 1, 2, 3 ...) is given by
the log, not by the event. Adding a kind or a field is never a breaking change: readers ignore what they do not know,
and a kind this version does not know is read as `Unknown` with its JSON kept.

Source of the list: `docs/architecture.md`, section "Events".
"""

import time
from typing import Any, Literal, TypeAlias

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """A fact in a run's log. `time` is wall time in epoch seconds, for display only: order is the offset."""

    time: float = msgspec.field(default_factory=time.time)


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader is told about a failure. `message` comes from the catalogue in `errors`, never from outside."""

    code: str
    message: str
    status: int
    retryable: bool = False


class RunStarted(Event, frozen=True, kw_only=True, tag="run.started"):
    """Always event 1. `input_digest` is the SHA-256 of the run's canonical JSON input, which the run record keeps."""

    agent: str
    input_digest: str
    conversation_id: str | None = None
    parent_run_id: str | None = None


class RunCompleted(Event, frozen=True, kw_only=True, tag="run.completed"):
    output: str
    stop_reason: str = "stop"


class RunFailed(Event, frozen=True, kw_only=True, tag="run.failed"):
    error: ErrorInfo


class RunCancelled(Event, frozen=True, kw_only=True, tag="run.cancelled"):
    """`by` says who asked: a subject, or `disconnect` where a client that had asked for it went away."""

    reason: str
    by: str


class AttemptStarted(Event, frozen=True, kw_only=True, tag="attempt.started"):
    """A new worker, or another `model` because of `reason`, writes from here on. `continue`: what follows goes on after
    the open message's text so far; `restart`: readers drop that text, its reasoning and its tool calls."""

    attempt: int
    mode: Literal["continue", "restart"]
    model: str | None = None
    reason: str | None = None
    """The code of the error that ended the call before."""


class InputRequested(Event, frozen=True, kw_only=True, tag="input.requested"):
    """The run waits for an answer that fits `schema`. `subject` is what it is about: of an approval the call."""

    request_id: str
    type: Literal["approval", "question"]
    schema: dict[str, Any] = {}
    subject: dict[str, Any] = {}


class InputReceived(Event, frozen=True, kw_only=True, tag="input.received"):
    """The answer to an `input.requested`; for an approval `{"approved": true or false}`. `by` says whose it is: a
    subject, or `timeout` where nobody answered in time."""

    request_id: str
    value: Any
    by: str


class StepStarted(Event, frozen=True, kw_only=True, tag="step.started"):
    step_id: str
    agent: str
    parent_step_id: str | None = None
    via: str | None = None


class StepFinished(Event, frozen=True, kw_only=True, tag="step.finished"):
    step_id: str
    agent: str
    status: Literal["completed", "failed", "cancelled"] = msgspec.field(default="completed")


class Handoff(Event, frozen=True, kw_only=True, tag="handoff"):
    from_agent: str = msgspec.field(name="from")
    to_agent: str = msgspec.field(name="to")
    reason: str = ""


class MessageStart(Event, frozen=True, kw_only=True, tag="message.start"):
    message_id: str
    step_id: str
    agent: str
    role: str
    model: str | None = None
    """The model that is asked, where one is."""


class MessageEnd(Event, frozen=True, kw_only=True, tag="message.end"):
    """Carries the whole text, so that deltas may be compacted later."""

    message_id: str
    step_id: str
    agent: str
    text: str
    reasoning: str = ""
    finish_reason: str
    provider_state: dict[str, Any] | None = None
    """What the provider wants back with this turn, as `provider` and an opaque `value`."""


class TextDelta(Event, frozen=True, kw_only=True, tag="text.delta"):
    message_id: str
    step_id: str
    agent: str
    delta: str


class ReasoningDelta(Event, frozen=True, kw_only=True, tag="reasoning.delta"):
    message_id: str
    step_id: str
    agent: str
    delta: str


class ToolCallStart(Event, frozen=True, kw_only=True, tag="tool_call.start"):
    tool_call_id: str
    name: str
    message_id: str
    executed_by: Literal["server", "client", "provider"]


class ToolCallArgs(Event, frozen=True, kw_only=True, tag="tool_call.args"):
    tool_call_id: str
    message_id: str
    delta: str


class ToolCallEnd(Event, frozen=True, kw_only=True, tag="tool_call.end"):
    """Carries the whole arguments as the JSON text the model wrote."""

    tool_call_id: str
    name: str
    message_id: str
    args: str


class ToolCallResult(Event, frozen=True, kw_only=True, tag="tool_call.result"):
    """`preliminary` ones tell how far a call has got; the last one is its result."""

    tool_call_id: str
    output: str
    is_error: bool = False
    preliminary: bool = False
    is_json: bool = False
    """`output` is JSON text of something that is no string."""
    code: str | None = None
    """Of the error, where `is_error`."""


class Usage(Event, frozen=True, kw_only=True, tag="usage"):
    """Tokens of one model call, also of one that failed or was cancelled; totals of a run are a fold. `None` means that
    the provider did not say."""

    step_id: str
    model: str
    input_tokens: int | None = None
    """All of the request, what was `cached` included."""
    output_tokens: int | None = None
    """All of the answer, `reasoning` included."""
    cached: int | None = None
    reasoning: int | None = None
    estimated: bool = False
    """Counted from the text, since the call ended before the provider told."""
    cost: float | None = None
    """US dollars; `None` where the price of the model is unknown."""


class Progress(Event, frozen=True, kw_only=True, tag="progress"):
    label: str
    percent: float | None = None
    step: int | None = None
    of: int | None = None


class State(Event, frozen=True, kw_only=True, tag="state"):
    """Either a whole `snapshot` or a JSON Patch (RFC 6902) against the last one."""

    snapshot: Any = None
    patch: list[dict[str, Any]] | None = None


class Data(Event, frozen=True, kw_only=True, tag="data"):
    """Anything else a reader may want, by `name`: `source`, `file`, `notice` ..."""

    name: str
    value: Any


BATCH_RESPONSE = "batch.response"
"""Name of a `data` event: what an item of a batch was answered."""
BATCH_RESTARTED = "batch.restarted"
"""Name of a `data` event: the text of an item so far is void; the value is the item's id."""
JOB_RESULT = "job.result"
"""Name of a `data` event: what one operation of a batch job came to."""
JOB_TALLY = "job.tally"
"""Name of a `data` event: how many operations have succeeded and failed by now."""
OUTPUT = "output"
"""Name of a `data` event: what a run came to, as JSON."""


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a kind that this version does not know; `raw` is its JSON as stored."""

    kind: str
    time: float
    raw: bytes


TERMINAL = (RunCompleted, RunFailed, RunCancelled)
"""The kinds that close a log. Exactly one of them is the last event of every finished run."""

AnyEvent: TypeAlias = (
    RunStarted
    | RunCompleted
    | RunFailed
    | RunCancelled
    | AttemptStarted
    | InputRequested
    | InputReceived
    | StepStarted
    | StepFinished
    | Handoff
    | MessageStart
    | MessageEnd
    | TextDelta
    | ReasoningDelta
    | ToolCallStart
    | ToolCallArgs
    | ToolCallEnd
    | ToolCallResult
    | Usage
    | Progress
    | State
    | Data
)

KINDS: dict[str, type[Event]] = {str(cls.__struct_config__.tag): cls for cls in AnyEvent.__args__}
"""Every kind by its name on the wire."""

KIND_OF: dict[type, str] = {cls: kind for kind, cls in KINDS.items()}

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


class _Header(msgspec.Struct):
    kind: str
    time: float


_header_decoder = msgspec.json.Decoder(_Header)

encode = _encoder.encode
"""An event as one line of UTF-8 JSON without its offset."""


def decode(raw: bytes) -> "AnyEvent | Unknown":
    """The event in `raw`; a kind of a newer version becomes `Unknown`. Raises `msgspec.MsgspecError` on damage."""
    try:
        return _decoder.decode(raw)
    except msgspec.ValidationError:
        header = _header_decoder.decode(raw)
        if header.kind in KINDS:
            raise
        return Unknown(kind=header.kind, time=header.time, raw=raw)


def kind_of(event: "Event | Unknown") -> str:
    """The name of the event's kind on the wire."""
    if isinstance(event, Unknown):
        return event.kind
    return KIND_OF[type(event)]
