"""The whole architecture as types: what an engine, an agent, a model, a tool and a protocol promise.

A run is an append-only log of events: an agent writes it, an engine keeps it, a protocol reads it. Adapters live in
`engines/`, `agents/`, `providers/` and `protocols/`; each begins by joining the contract tests of its port.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from headrace.events import AnyEvent, ErrorInfo, Event, Unknown
from headrace.identity import Limits, Owner, Principal

# --- runs -------------------------------------------------------------------------------------------------------------

RunState: TypeAlias = Literal["queued", "running", "completed", "failed", "cancelled"]


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One execution of one agent on one input for one principal: what is known when it starts, and never changes."""

    id: str
    """Of a child: that of its parent, `_`, and its number; see `child_id`."""
    epoch: str
    owner: Owner
    agent: str
    input: dict[str, Any]
    """What the agent gets; any JSON object. A chat agent reads `message`, `history`, `max_tokens`, `temperature` and
    `output_schema`."""
    created: float
    """Epoch seconds, for display."""
    conversation_id: str | None = None
    parent_run_id: str | None = None
    scopes: tuple[str, ...] = ()
    """What its caller's credential allowed when it was started, as `limits` and `credential_id`."""
    limits: Limits = Limits()
    credential_id: str | None = None
    by_token: bool = False
    """The credential was one that ends by itself."""

    @property
    def principal(self) -> Principal:
        """Who started it: for what is done in their name later on, also once their token has expired."""
        return Principal(
            subject=self.owner.subject,
            tenant=self.owner.tenant,
            scopes=frozenset(self.scopes),
            limits=self.limits,
            credential_id=self.credential_id,
            expires=math.inf if self.by_token else None,
        )


def child_id(parent_run_id: str, number: int) -> str:
    """Known before the child is there, and the same each time."""
    return f"{parent_run_id}_{number}"


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """A run and how far its log has got."""

    run: Run
    state: RunState
    offset: int
    """Of the last committed event."""
    first: int = 1
    """Offset of the first event that is still kept; `offset + 1` when all were trimmed."""
    attempt: int = 0
    """Of the worker that may write now; 0 before the first one."""
    cancel_by: str | None = None
    """Who asked for a cancel, once somebody has."""
    ended: float | None = None
    """Epoch seconds, for display."""

    @property
    def closed(self) -> bool:
        return self.state in ("completed", "failed", "cancelled")


class Idempotency(NamedTuple):
    """A caller's key and a digest of what was asked with it (method, path, body)."""

    key: str
    fingerprint: str


class Created(NamedTuple):
    head: Head
    new: bool
    """False where an earlier request with the same key had made the run."""


class Block:
    """Consecutive events of one run that were committed together. Immutable, shared by every reader.

    `views` caches what a stateless protocol made of the block, so that it is encoded once for all its readers.
    """

    __slots__ = ("encoded", "events", "first", "views")

    def __init__(self, first: int, events: Sequence[Event | Unknown], encoded: Sequence[bytes]) -> None:
        self.first = first
        self.events = events
        self.encoded = encoded
        """The same events as UTF-8 JSON, as stored."""
        self.views: dict[object, bytes] = {}

    @property
    def last(self) -> int:
        return self.first + len(self.events) - 1

    def after(self, offset: int) -> "Block":
        """The part of the block after `offset`: the very same block where that is all of it."""
        skip = offset + 1 - self.first
        if skip <= 0:
            return self
        return Block(offset + 1, self.events[skip:], self.encoded[skip:])


class FeedEntry(NamedTuple):
    """A block in the order in which an engine committed it, across runs."""

    sequence: int
    run_id: str
    block: Block


class Receipt(Protocol):
    """For appended events. Appends that are committed together may share one. Cancelling who awaits it is harmless."""

    error: Exception | None
    """Why the events are not in the log, once that is known; a refusal that needs no commit is known at once."""

    def done(self) -> bool: ...

    def __await__(self) -> Generator[Any, None, int]:
        """The offset of the last of the events, once they are committed. Raises `error`."""


class Subscriber(Protocol):
    """Is called on the event loop in the very turn in which a block was committed. Must neither wait nor raise."""

    def deliver(self, block: Block) -> bool:
        """Take the next block. False ends the subscription, with this block not taken."""

    def closed(self) -> None:
        """The log has ended, and its last block was delivered."""


Subscribed: TypeAlias = Literal["subscribed", "behind", "closed"]


class RunLog(Protocol):
    """Keeps logs. Every promise of this port is a test in `tests/engines/test_contract.py`.

    - An event is readable only once it is committed, and committed means what `durability` says.
    - Offsets of a run are 1, 2, 3 ... in the order of the appends; no hole, no repeat, for any reader at any time.
    - A terminal event closes the log in the same commit; after it nothing can be appended.
    - An unknown run raises `NotFound`. Ownership is the business of `runs`, not of an engine.
    """

    durability: str
    """One line for people: what survives what."""

    def create(self, run: Run, first: Event, idempotency: Idempotency | None = None) -> Awaitable[Created]:
        """Commit the run with its first event and put it in the queue, all in one. A run whose id is there already is
        given as it is: a parent that makes its children again, after a crash, makes none twice.

        With an `idempotency` key that the owner used before, give the run of then, or raise `IdempotencyMismatch`
        where the fingerprint differs. Raises `StorageFull`.
        """

    async def find(self, owner: Owner, idempotency: Idempotency) -> Head | None:
        """The run that the owner started with this key, if there is one. Raises `IdempotencyMismatch`."""

    async def head(self, run_id: str) -> Head: ...

    def append(self, run_id: str, attempt: int, events: Sequence[Event], *, urgent: bool = False) -> "Receipt":
        """Submit events at once, in order; await the receipt to know that they are committed.

        Not a coroutine: a hot path may call it for every event and await the last receipt only. `Fenced` where
        `attempt` is no longer the run's, checked in the same transaction, `LogClosed` where the log has its terminal
        event or the run is not known: then none of these events is in the log, and no later append of that attempt
        will be. Waits, rather than fails, while the disk is full. An engine may hold events back for some
        milliseconds to commit them with others, unless they are `urgent`: somebody waits for just these.
        """

    def read(self, run_id: str, after: int = 0, *, live: bool) -> AsyncIterator[Sequence[Block]]:
        """Every block after offset `after`, in order; with `live`, wait for more until the log is closed.

        One call for replay and follow, so nothing can get lost or doubled between the two. A slow reader holds
        nothing back and nothing is buffered for it. Raises `PositionAhead`, `PositionGone` (with `first_available`)
        and `LogCorrupt`.
        """

    def subscribe(self, run_id: str, after: int, subscriber: Subscriber) -> Subscribed:
        """Deliver every block after `after` as it is committed, for followers that can take them without a task.

        Only from the end of the log on: `behind` where there are committed events after `after` (`read` them first),
        `closed` where nothing more can come or the run is not known. Both leave nothing behind.
        """

    def unsubscribe(self, run_id: str, subscriber: Subscriber) -> None: ...

    def feed(self, owner: Owner, after: int | None, *, live: bool) -> AsyncIterator[Sequence[FeedEntry]]:
        """The blocks of all runs of an owner in commit order after sequence `after`; `None` starts at the end."""

    @property
    def feed_epoch(self) -> str:
        """The epoch of feed sequences."""

    async def list(
        self,
        owner: Owner,
        *,
        limit: int,
        before: str | None = None,
        state: RunState | None = None,
        parent: str | None = None,
        agent: str | None = None,
    ) -> Sequence[Head]:
        """Newest first: the runs that have no parent, or the children of `parent`; of one `agent`, or all. `before` is
        a run id; an unknown one raises `NotFound`."""

    async def request_cancel(
        self, run_id: str, by: str, *, at_once: bool = True
    ) -> Literal["requested", "already", "closed"]:
        """Note durably that the run shall end. A run that no worker has is closed in the same commit, unless not
        `at_once`: then one that a worker had before waits for the next one, whose agent has children to look after."""

    async def put_input(self, run_id: str, input: "Input") -> "Input":
        """Note durably what somebody answered to a request of the run, and tell its worker. Gives the answer that
        counts, which is the first one. Raises `LogClosed` where the run has ended."""

    async def find_input(self, run_id: str, request_id: str) -> "Input | None":
        """The answer to a request of an open run, if there is one yet."""

    async def delete(self, run_id: str) -> None:
        """Forget a closed run and its log. Raises `RunActive` while it is open."""

    async def trim(self, *, older_than: float | None = None, max_bytes: int | None = None) -> int:
        """Forget events of closed runs: all that ended more than `older_than` seconds ago, then the longest ended
        until the stored events take at most `max_bytes`. The runs stay known, their positions raise `PositionGone`.
        Gives the number of trimmed runs."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The right to write a run's log, until it expires or a higher attempt exists."""

    run_id: str
    agent: str
    attempt: int
    worker: str


class Signal(NamedTuple):
    """Something that happened to a run from outside while a worker has it."""

    run_id: str
    kind: Literal["cancel", "input"]


class RunQueue(Protocol):
    """Hands runs to workers: new ones, released ones, and those whose worker let its lease expire."""

    lease_seconds: float

    async def claim(self, worker: str) -> Lease:
        """Wait for a run and take it: the attempt number is raised in the same commit. The oldest claim is served
        first. Safe to cancel: a run is never lost to a claimer that went away."""

    async def renew(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        """Extend the leases by `lease_seconds`; gives those that are lost."""

    async def release(self, lease: Lease) -> None:
        """Give an unfinished run back to the queue, for the next worker. A lost lease is left alone."""

    def signals(self, worker: str) -> AsyncIterator[Signal]:
        """That a cancel was requested for one of this worker's runs, or an input was put, as it happens."""


class Engine(RunLog, RunQueue, Protocol):
    """Keeps logs, leases and the queue, so that what belongs together is committed together."""

    @property
    def writable(self) -> bool:
        """Whether a run could be started now."""


# --- agents and tools -------------------------------------------------------------------------------------------------


class Tool(Protocol):
    """Something a model, or a caller, may ask the server to do.

    A class that names `Tool` as its base inherits the answers that stand here. Arguments fit `parameters` when they
    come to `call`. What `call` raises is told in general words, but for a `ToolError`, which speaks for itself.
    """

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON Schema of the arguments."""

    @property
    def idempotent(self) -> bool:
        """Whether a call that may have run can be run again."""
        return False

    @property
    def timeout(self) -> float:
        """Seconds that one call may take."""
        return 30.0

    @property
    def concurrency(self) -> int | None:
        """Calls that may run at the same time in this process; `None`: any number."""
        return None

    @property
    def scope(self) -> str | None:
        """What the caller's credential has to allow; for everybody else the tool does not exist. `None`: nothing."""
        return None

    @property
    def approval(self) -> bool:
        """Whether the owner of the run has to agree each time before a model's call of it is run."""
        return False

    async def call(self, arguments: dict[str, Any], context: "ToolContext") -> Any:
        """The result, any JSON value."""


@dataclass(frozen=True, kw_only=True)
class ToolContext:
    run: Run
    tool_call_id: str
    report: Callable[[Any], None] = lambda result: None
    """Shows how far the call has got: any JSON value, in the log as a preliminary result."""


ToolSource: TypeAlias = Callable[[], AbstractAsyncContextManager[Sequence[Tool]]]
"""Tools that hold something open, such as a connection: entered at the start, left at the end."""


class Input(NamedTuple):
    """What somebody answered to a run's `input.requested`."""

    request_id: str
    value: Any
    """JSON."""
    by: str
    """A subject, or `timeout`."""


class Inbox(Protocol):
    """What people send to one run while it is worked on. Durable: what was sent is there after a crash as well."""

    async def answer(self, request_id: str) -> Input:
        """The first answer to a request, once there is one."""

    async def decide(self, input: Input) -> Input:
        """Answer in place of people; gives the answer that counts, which may be an earlier one."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What an agent is given for one run."""

    run: Run
    attempt: int = 1
    history: Sequence[Event | Unknown] = field(default_factory=tuple)
    """The log so far, when an earlier attempt had begun it."""
    inbox: Inbox | None = None
    """Answers to `input.requested`; `None` where nobody can be asked."""


AgentItem: TypeAlias = AnyEvent | Sequence[AnyEvent]
"""What an agent yields: an event, or several that arrived together."""


class Agent(Protocol):
    """Produces the events of one run; made anew for each run by an `AgentFactory`.

    An agent yields no `run.*`: those are the worker's. It yields `attempt.started` only where another model takes
    over. What it raises ends the run as failed. What it yields up to a `tool_call.end` or a `tool_call.result` is
    committed before it is asked for more, so that no tool runs without a trace in the log. Its `finally` blocks must
    release what it holds (upstream connections) within a second.
    """

    @property
    def resumable(self) -> bool | Literal["by itself"]:
        """Whether `run` can go on from `RunContext.history` after another worker died; `by itself`: without a
        history, since it reads what it needs of a log that may be long."""

    def run(self, context: RunContext) -> AsyncIterator[AgentItem]: ...

    async def cancel(self) -> None:
        """Ask the agent to end at once by itself. It may still yield what closes its messages, and its usage. If it
        has not ended half a second later, its task is cancelled."""


AgentFactory: TypeAlias = Callable[[Run], Agent]
"""Makes the agent of a run. Called by the worker, once per attempt."""


# --- models -----------------------------------------------------------------------------------------------------------


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call as the model wrote it; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One turn of a conversation as a model sees it."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    """Of an assistant turn."""
    provider_state: "ModelState | None" = None
    """Of an assistant turn: what its provider wants back with it. Other providers leave it alone."""
    tool_call_id: str | None = None
    """Of a tool turn: the call that it answers."""


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()
    """`Tool`s that the model may ask for."""
    max_tokens: int | None = None
    temperature: float | None = None
    prefix: str = ""
    """Text of the answer that is already shown; only for models that `continues`: they go on right after it."""
    output_schema: Mapping[str, Any] | None = None
    """JSON Schema of the answer, for models that can be held to one. Whoever asks validates the whole text."""


class ModelText(msgspec.Struct, frozen=True):
    text: str


class ModelReasoning(msgspec.Struct, frozen=True):
    text: str


class ModelToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a tool call. `id` and `name` come with the first piece of each `index`."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class ModelUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of the call so far, cumulative: a later one replaces an earlier one. `None`: the provider did not say."""

    input_tokens: int | None = None
    """All of the request, what was `cached` included."""
    output_tokens: int | None = None
    """All of the answer, `reasoning` included."""
    cached: int | None = None
    reasoning: int | None = None
    estimated: bool = False
    """Counted by us from the text, since the call ended before the provider told."""
    free: bool = False
    """No provider was asked, so what is said costs nothing."""


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """Opaque data that the same provider wants back with this turn, such as signed thinking. A later one replaces an
    earlier one."""

    provider: str
    value: Any


class ModelData(msgspec.Struct, frozen=True):
    """Anything else worth keeping, shown as a `data` event: sources, notices."""

    name: str
    value: Any


class ModelFinish(msgspec.Struct, frozen=True):
    """Why the model ended: `stop`, `length`, `tool_calls`, `content_filter`, `budget`, or the provider's own word."""

    reason: str


class ModelSpent(msgspec.Struct, frozen=True, kw_only=True):
    """What another call for this answer took: one that failed, or that lost a race. Told as soon as it is over.
    `ModelUsage` is of the call that answers; a count kept of that one begins anew here, since either it was this one,
    or it has said nothing yet."""

    model: str
    usage: ModelUsage


class ModelSwitch(msgspec.Struct, frozen=True, kw_only=True):
    """Another call answers from here on, since the one before failed. Tool calls that were open are void."""

    model: str
    """Of the call that answers now."""
    code: str
    """The failure, such as `model.cut`."""
    mode: Literal["continue", "restart"]
    """`continue`: what follows goes on after the text so far, if any. `restart`: the text so far is void."""


ModelEvent: TypeAlias = (
    ModelText
    | ModelReasoning
    | ModelToolCall
    | ModelUsage
    | ModelState
    | ModelSpent
    | ModelSwitch
    | ModelData
    | ModelFinish
)


class Model(Protocol):
    """Produces text, reasoning and tool calls. Made once, used by many runs at the same time."""

    name: str
    """As shown to people and in `usage` events, such as `openai:gpt-5` or `demo:echo`."""
    continues: bool
    """Whether `ModelRequest.prefix` is honoured."""

    def stream(self, request: ModelRequest) -> AsyncIterator[Sequence[ModelEvent]]:
        """The answer, several events at a time where several arrived together.

        Ends with a `ModelFinish`, else raises a `ModelError`: a stall, a cut, garbage or an empty answer is never an
        end. Closing the iterator closes the upstream request at once.
        """

    async def start(self) -> None: ...

    async def close(self) -> None: ...


# --- protocols --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StartCommand:
    """What every protocol's start request comes down to."""

    agent: str
    input: dict[str, Any]
    conversation_id: str | None = None


class View(Protocol):
    """One run as one reader sees it: a fold over its events. The same events always give the same bytes."""

    def frames(self, offset: int, event: Event | Unknown, encoded: bytes) -> Sequence[bytes]:
        """The payloads (one line of UTF-8 each) that show the event at `offset`; often one, maybe none."""

    def error(self, error: ErrorInfo) -> bytes:
        """The payload for a failure that is not in the log, such as a credential that was revoked."""


class WireProtocol(Protocol):
    """A pure two-way translation between the log and one wire format. No clock, no random, no I/O."""

    name: str
    """After the path or call that its users type; what `?view=` takes."""
    stateless: bool
    """Whether a view may start at any event; otherwise it is folded from event 1."""
    restarts: bool
    """Whether the format can say that the open message's text so far is void: `attempt.started` with mode `restart`.
    Where it cannot, the event is shown as the view's error with `AnswerRestarted`, and the stream ends there."""

    def view(self, run: Run) -> View: ...
