"""Payloads are one line, whatever is in them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocols.payload import one_line, to_json

_TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\r\n\0\x0b\x0c\x1c\x85\u2028\u2029"))


@given(_TEXT)
def test_no_text_breaks_the_line_or_changes(text: str) -> None:
    payload = to_json({"text": text, text: 1})
    assert len(payload.decode().splitlines()) == 1
    assert json.loads(payload) == {"text": text, text: 1}


@given(_TEXT)
def test_json_of_others_means_the_same_afterwards(text: str) -> None:
    raw = json.dumps([text], ensure_ascii=False).encode()
    assert json.loads(one_line(raw)) == [text]
    assert len(one_line(raw).decode().splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "payload"),
    [
        ({"a": 1, "b": [None, True, "x"]}, b'{"a":1,"b":[null,true,"x"]}'),
        ("\u0085\u2028\u2029", rb'"\u0085\u2028\u2029"'),
        ("a\r\n\0b", rb'"a\r\n\u0000b"'),
        ("é𝄞", '"é𝄞"'.encode()),
        ("\u2027\u202a\u0084\u0086", '"\u2027\u202a\u0084\u0086"'.encode()),
    ],
)
def test_to_the_byte(value: object, payload: bytes) -> None:
    assert to_json(value) == payload
