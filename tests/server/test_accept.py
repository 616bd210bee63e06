"""Which type a client gets for its Accept header (RFC 9110, section 12.5.1)."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import NotAcceptable
from headrace.server.accept import choose

OFFERED = ["application/json", "text/event-stream", "application/x-ndjson"]


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/event-stream", "text/event-stream"),
        ("TEXT/Event-Stream", "text/event-stream"),
        ("text/*", "text/event-stream"),
        ("application/*", "application/json"),
        ("application/x-ndjson, */*;q=0.1", "application/x-ndjson"),
        ("application/json;q=0.5, text/event-stream;q=0.9", "text/event-stream"),
        ("application/json; q=0.5 , text/event-stream ; Q=0.9", "text/event-stream"),
        ("text/event-stream;charset=utf-8", "text/event-stream"),
        ("image/png, text/event-stream", "text/event-stream"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "application/json"),
        ("application/json;q=0, */*", "text/event-stream"),
        ("*/*, application/json;q=0", "text/event-stream"),
        ("application/*;q=0, */*;q=0.1", "text/event-stream"),
        ("*/*;q=0.9, application/json;q=0.1", "text/event-stream"),
        ("application/x-ndjson;q=1.000, application/json;q=0.999", "application/x-ndjson"),
    ],
)
def test_chosen(accept: str | None, chosen: str) -> None:
    assert choose(accept, OFFERED) == chosen


@pytest.mark.parametrize(
    "accept",
    [
        "image/png",
        "text/html",
        "application/json;q=0",
        "*/*;q=0",
        ",",
        "json",
        "application",
        "*/json",
        "text/event-stream;q=nan",
        "text/event-stream;q=-1",
        "text/event-stream;q=",
        "text/event-streams",
    ],
)
def test_nothing_suits(accept: str) -> None:
    with pytest.raises(NotAcceptable):
        choose(accept, OFFERED)


@given(st.text(max_size=60) | st.from_regex(r"([a-z*]{1,4}/[a-z*]{1,4}(;q=[0-9.]{1,4})?,?){0,4}", fullmatch=True))
def test_whatever_is_sent_there_is_an_answer(accept: str) -> None:
    with suppress(NotAcceptable):
        assert choose(accept, OFFERED) in OFFERED
