"""PROMISE rows 17 and 19 to 24: what a body may be, and the exact error for what it may not be."""

import asyncio
import json
import threading
import time
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.errors import BodyTooDeep, DuplicateKey, HeadraceError, InvalidJSON
from headrace.server import strict_json
from headrace.server.strict_json import INLINE_SIZE, MAX_DEPTH, load, loads

text = st.text(st.characters(codec="utf-8"))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=10)
objects = st.dictionaries(text, values)


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    """A body of `depth` levels, its own object included."""
    return b'{"a":' + opening * (depth - 1) + closing * (depth - 1) + b"}"


@given(objects)
def test_what_json_writes_is_read_back(value: dict[str, Any]) -> None:
    assert loads(json.dumps(value).encode()) == value
    assert loads(json.dumps(value, ensure_ascii=False, indent=1).encode()) == value


@given(objects)
def test_what_msgspec_writes_is_read_back(value: dict[str, Any]) -> None:
    assert loads(msgspec.json.encode(value)) == value


@given(objects)
def test_what_is_taken_can_be_stored_and_read_back(value: dict[str, Any]) -> None:
    taken = loads(json.dumps(value).encode())
    assert msgspec.json.decode(msgspec.json.encode(taken)) == value


@given(st.binary() | st.text().map(lambda t: t.encode("utf-8", "surrogatepass")))
@example(b'{"a":"' + b"\\" * 1001)
@example(b"\xef\xbb\xbf{}")
def test_random_bytes_raise_nothing_but_our_errors(body: bytes) -> None:
    try:
        value = loads(body)
    except (InvalidJSON, BodyTooDeep, DuplicateKey):
        return
    assert value == json.loads(body)


@given(
    st.lists(st.sampled_from([b'"', b"\\", b"[", b"]", b"{", b"}", b":", b",", b"a", b"\\u", b"d800", b"1e9", b"\n"]))
)
def test_random_tokens_raise_nothing_but_our_errors(tokens: list[bytes]) -> None:
    body = b'{"a":' + b"".join(tokens)
    try:
        value = loads(body)
    except (InvalidJSON, BodyTooDeep, DuplicateKey):
        return
    assert value == json.loads(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"a"',
        b'{"a":}',
        b"{} x",
        b"{}{}",
        b"{},",
        b"[]",
        b"[{}]",
        b'"a"',
        b"1",
        b"null",
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":"\n"}',
    ],
)
def test_row_17_not_one_object(body: bytes) -> None:
    with pytest.raises(InvalidJSON):
        loads(body)


@pytest.mark.parametrize(
    "body",
    [
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-16-le"),
        '{"a":1}'.encode("utf-32"),
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\xff"}',
        b'{"a":"\xc0\xaf"}',
        b'{"a":"\xe2\x82"}',
        b'{"a":"\xed\xa0\x80"}',
    ],
)
def test_row_19_not_utf_8(body: bytes) -> None:
    with pytest.raises(InvalidJSON):
        loads(body)


@pytest.mark.parametrize(
    "number",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999",
        "9" * 5000,
        "-" + "9" * 5000,
        "9" * 1001,
        "9" * 500 + ".0",
        "01",
        "+1",
        ".5",
        "1.",
        "0x1",
        "١",
    ],
)
def test_row_20_numbers(number: str) -> None:
    for body in (f'{{"a":{number}}}', f'{{"a":[1,{{"b":{number}}}]}}'):
        with pytest.raises(InvalidJSON):
            loads(body.encode())


def test_row_20_does_not_hang_on_the_interpreters_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held also where PYTHONINTMAXSTRDIGITS=0 has switched Python's limit off."""
    assert loads(b'{"a":' + b"9" * 1000 + b"}") == {"a": int("9" * 1000)}
    monkeypatch.setattr(strict_json, "MAX_INTEGER_LENGTH", 3)
    with pytest.raises(InvalidJSON):
        loads(b'{"a":1234}')


@pytest.mark.parametrize(
    "body",
    [
        rb'{"a":"\ud800"}',
        rb'{"a":"\uDFFF x"}',
        rb'{"a":"\udc00\ud800"}',
        rb'{"a":"\ud83d\\ude00"}',
        rb'{"\ud800":1}',
        rb'{"a":[{"b":["\uD83d"]}]}',
    ],
)
def test_row_21_lone_surrogates(body: bytes) -> None:
    with pytest.raises(InvalidJSON):
        loads(body)


@pytest.mark.parametrize(
    ("body", "value"),
    [(rb'{"a":"\ud83d\ude00"}', "\U0001f600"), (rb'{"a":"\\ud800"}', "\\ud800"), (rb'{"a":"\u0064"}', "d")],
)
def test_row_21_pairs_and_look_alikes_are_text(body: bytes, value: str) -> None:
    assert loads(body) == {"a": value}


def test_row_22_nul_in_text_is_text() -> None:
    assert loads(rb'{"a":"x\u0000y"}') == {"a": "x\0y"}


@pytest.mark.parametrize(
    "body",
    [
        nested(100_000),
        nested(100_000, b'{"a":', b"}"),
        nested(100_000, b"[", b""),
        nested(100_000, b"[1,2,", b"]"),
        b"[" * 100_000,
        nested(MAX_DEPTH + 1),
        b'{"a":["\\"]]]]]",' + b'["",' * 70,
    ],
)
def test_row_23_too_deep(body: bytes) -> None:
    with pytest.raises(BodyTooDeep):
        loads(body)


def test_row_23_depth_costs_next_to_nothing() -> None:
    body = nested(100_000)
    before = time.thread_time()
    for _ in range(10):
        with pytest.raises(BodyTooDeep):
            loads(body)
    assert (time.thread_time() - before) / 10 < 0.010


def test_row_23_up_to_the_limit() -> None:
    assert json.dumps(loads(nested(MAX_DEPTH))).count("[") == MAX_DEPTH - 1


def test_row_23_width_and_brackets_in_text_are_not_depth() -> None:
    assert len(loads(b'{"a":[' + b",".join([b'{"b":[]}'] * 1000) + b"]}")["a"]) == 1000
    assert loads(b'{"a":"' + b"[{" * 1000 + b'\\"' + b"[" * 1000 + b'"}')["a"].count("[") == 2000


@pytest.mark.parametrize("hostile", [b'"' + b'\\"' * 500_000, b'"' * 1_000_000, b"\\" * 1_000_000, b"[]" * 500_000])
def test_row_23_the_scan_for_depth_is_linear(hostile: bytes) -> None:
    body = b'{"a":' + b"[" * MAX_DEPTH + hostile
    before = time.thread_time()
    with pytest.raises(HeadraceError):
        loads(body)
    assert time.thread_time() - before < 5


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":1}',
        b'{"a":[{"b":1,"c":2,"b":3}]}',
        rb'{"a":1,"\u0061":2}',
        b'{"":1,"":2}',
        b'{"a":{"x":{"y":1,"y":1}}}',
    ],
)
def test_row_24_duplicate_keys(body: bytes) -> None:
    with pytest.raises(DuplicateKey):
        loads(body)


def test_row_24_the_same_key_in_two_objects_is_fine() -> None:
    assert loads(b'{"a":{"a":1},"b":[{"a":1},{"a":2}]}')["b"][1] == {"a": 2}


async def test_only_large_bodies_leave_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def noting(body: bytes) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return loads(body)

    monkeypatch.setattr(strict_json, "loads", noting)
    small = b'{"a":"' + b"x" * (INLINE_SIZE - 8) + b'"}'
    assert len(small) == INLINE_SIZE
    assert await load(small) == json.loads(small)
    large = b'{"a":"' + b"x" * INLINE_SIZE + b'"}'
    assert await load(large) == json.loads(large)
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()


async def test_errors_come_out_of_the_thread() -> None:
    large = b" " * INLINE_SIZE
    results = await asyncio.gather(load(large + b"{"), load(large + b'{"a":1,"a":2}'), return_exceptions=True)
    assert [type(result) for result in results] == [InvalidJSON, DuplicateKey]
