"""Every kind is kept as it was written, and what a newer version wrote is not lost."""

import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.events import (
    KIND_OF,
    KINDS,
    TERMINAL,
    AnyEvent,
    ErrorInfo,
    Event,
    TextDelta,
    Unknown,
    decode,
    encode,
    kind_of,
)

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_NUMBER = st.floats(allow_nan=False, allow_infinity=False)
_INTEGER = st.integers(-(2**63), 2**63 - 1)
_JSON = st.recursive(
    st.none() | st.booleans() | _INTEGER | _NUMBER | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
_PRIMITIVES: dict[Any, st.SearchStrategy[Any]] = {
    str: _TEXT,
    int: _INTEGER,
    float: _NUMBER,
    bool: st.booleans(),
    type(None): st.none(),
    Any: _JSON,
}


def _of(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, for every type that the vocabulary uses."""
    if annotation in _PRIMITIVES:
        return _PRIMITIVES[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(_of(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(_of(arguments[0]), _of(arguments[1]), max_size=3)
    if arguments:
        return st.one_of([_of(one) for one in arguments])
    return _struct(annotation)


def _struct(cls: type[Any]) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{name: _of(kind) for name, kind in typing.get_type_hints(cls).items()})


events = st.sampled_from(sorted(KINDS)).flatmap(lambda kind: _struct(KINDS[kind]))


@given(events)
def test_an_event_is_read_as_it_was_written(event: AnyEvent) -> None:
    line = encode(event)
    assert b"\n" not in line
    assert b"\r" not in line
    assert decode(line) == event
    assert encode(decode(line)) == line


@given(events)
def test_fields_of_a_newer_version_are_ignored(event: AnyEvent) -> None:
    newer = msgspec.json.decode(encode(event)) | {"added_later": {"any": ["thing"]}}
    assert decode(msgspec.json.encode(newer)) == event


@given(events)
def test_the_kind_is_the_name_on_the_wire(event: AnyEvent) -> None:
    assert kind_of(event) == msgspec.json.decode(encode(event))["kind"]


@given(_TEXT.filter(lambda kind: kind not in KINDS), _NUMBER, st.dictionaries(_TEXT, _JSON, max_size=3))
def test_a_kind_of_a_newer_version_is_kept_as_it_was_stored(kind: str, time: float, fields: dict[str, Any]) -> None:
    line = msgspec.json.encode({**fields, "kind": kind, "time": time})
    event = decode(line)
    assert event == Unknown(kind=kind, time=time, raw=line)
    assert kind_of(event) == kind


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text.delta"',
        b"{}",
        b'{"time":1}',
        b'{"kind":1,"time":1}',
        b'{"kind":"not.known"}',
        b'{"kind":"text.delta","time":1}',
        b'{"kind":"text.delta","time":1,"message_id":"m","step_id":"s","agent":"a","delta":5}',
        b'{"kind":"text.delta","time":1,"message_id":"m","step_id":"s","agent":"a","delta":"\xff"}',
    ],
)
def test_damage_is_not_taken_for_an_event(damaged: bytes) -> None:
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
        decode(damaged)


def test_every_kind_is_in_the_tables() -> None:
    assert set(KINDS.values()) == set(Event.__subclasses__())
    assert {cls: kind for kind, cls in KINDS.items()} == KIND_OF


def test_an_event_never_changes() -> None:
    event = TextDelta(message_id="m", step_id="s", agent="a", delta="d")
    with pytest.raises(AttributeError):
        event.delta = "other"  # type: ignore[misc]


def test_time_is_always_written_and_defaults_are_not() -> None:
    """Bytes are stable where a default is added later, and reading them never asks the clock."""
    stored = msgspec.json.decode(encode(KINDS["progress"](label="x")))  # type: ignore[call-arg]
    assert stored.keys() == {"kind", "time", "label"}


def test_three_kinds_close_a_log() -> None:
    assert [KIND_OF[kind] for kind in TERMINAL] == ["run.completed", "run.failed", "run.cancelled"]


def test_an_error_is_not_retryable_unless_it_says_so() -> None:
    assert not ErrorInfo(code="x", message="y", status=500).retryable
