"""What a client may say over a socket: one JSON object per text message, told apart by `type`."""

import hashlib
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from headrace.errors import InvalidField, InvalidIdempotencyKey
from headrace.events import KINDS
from headrace.ports import Idempotency
from headrace.position import Position
from headrace.protocols.native import StartRun
from headrace.server.problem import field_error

_MAX_NAME = 128


def _known_kind(kind: str) -> str:
    if kind not in KINDS:
        raise PydanticCustomError("kind", "a kind of event")
    return kind


Name = Annotated[str, Field(min_length=1, max_length=_MAX_NAME)]
Kind = Annotated[str, AfterValidator(_known_kind)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Auth(_Message):
    """The first message of a client that could not send a header or a ticket with its handshake."""

    type: Literal["auth"]
    token: str


class Start(StartRun):
    """Start a run, and follow it from its first event unless `follow` is false."""

    type: Literal["start"]
    ref: Name
    """The client's own name for this request; the answer carries it."""
    idempotency_key: str | None = None
    view: Name = "native"
    follow: bool = True
    on_disconnect: Literal["detach", "cancel"] = "detach"

    def idempotency(self) -> Idempotency | None:
        """The key with a digest of what is asked, which `ref`, `view` and the like are no part of."""
        key = self.idempotency_key
        if key is None:
            return None
        if not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
            raise InvalidIdempotencyKey
        asked = msgspec.json.encode(["WS /api/ws", self.agent, self.input, self.conversation_id], order="deterministic")
        return Idempotency(key, hashlib.sha256(asked).hexdigest())


class Follow(_Message):
    """Follow a run, from its first event or after a position."""

    type: Literal["follow"]
    run_id: Name
    after: str | None = None
    view: Name = "native"
    kinds: Annotated[list[Kind], Field(min_length=1, max_length=len(KINDS))] | None = None

    def position(self) -> Position | None:
        """Raises `InvalidPosition`; `-1` and nothing mean from the start."""
        return None if not self.after or self.after == "-1" else Position.parse(self.after)

    def only(self) -> frozenset[str] | None:
        return None if self.kinds is None else frozenset(self.kinds)


class Unfollow(_Message):
    type: Literal["unfollow"]
    run_id: Name


class Cancel(_Message):
    type: Literal["cancel"]
    run_id: Name


class Ping(_Message):
    type: Literal["ping"]


Message: TypeAlias = Auth | Start | Follow | Unfollow | Cancel | Ping

_BY_TYPE: dict[str, type[Message]] = {
    "auth": Auth,
    "start": Start,
    "follow": Follow,
    "unfollow": Unfollow,
    "cancel": Cancel,
    "ping": Ping,
}


def parse(fields: dict[str, Any]) -> Message:
    """Raises `InvalidField` or `ForbiddenField` with JSON Pointers into the message."""
    kind = fields.get("type")
    model = _BY_TYPE.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise InvalidField(errors=[{"pointer": "/type", "detail": f"one of {', '.join(_BY_TYPE)}"}])
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        findings = error.errors(include_url=False, include_context=False, include_input=False)
        raise field_error([{**each, "loc": ("body", *each["loc"])} for each in findings]) from error


def about(fields: dict[str, Any]) -> dict[str, str]:
    """What names a message, so that the answer to it can be told from others, also where it is not valid."""
    named = {name: fields.get(name) for name in ("ref", "run_id")}
    return {name: value for name, value in named.items() if isinstance(value, str) and len(value) <= _MAX_NAME}
