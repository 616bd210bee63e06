"""S1's chat stream to the byte, and its request."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from headrace.errors import AuthRevoked
from headrace.events import RunCompleted, TextDelta, decode
from headrace.identity import Owner
from headrace.ports import Run
from headrace.protocols.agent_chat import AgentChat, ChatRequest, answer, message_id

RUN = Run(id="run_abc", epoch="e", owner=Owner("t", "ann"), agent="default", input={}, created=1)
CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "agent_chat.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_these_events_are_these_bytes(case: dict[str, Any]) -> None:
    run = msgspec.structs.replace(RUN, id=case["run_id"])
    view = AgentChat(**case["options"]).view(run)
    for offset, (event, payloads) in enumerate(case["events"], 1):
        encoded = msgspec.json.encode(event)
        assert list(view.frames(offset, decode(encoded), encoded)) == [payload.encode() for payload in payloads]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50), st.integers(1, 12))
def test_long_text_is_split_and_nothing_is_lost(text: str, size: int) -> None:
    event = TextDelta(message_id="m", step_id="s", agent="a", delta=text)
    tokens = [json.loads(payload) for payload in AgentChat(size).view(RUN).frames(2, event, b"")]
    assert "".join(token["content"] for token in tokens) == text
    assert all(0 < len(token["content"]) <= size for token in tokens)
    assert len(tokens) == -(-len(text) // size)


def test_an_error_that_is_not_in_the_log_has_the_same_form() -> None:
    shown = AgentChat().view(RUN).error(AuthRevoked().info())
    assert shown == b'{"type":"error","message":"The credential is no longer valid. Sign in again.","code":401}'


def test_the_reply_without_streaming() -> None:
    assert answer(RUN, RunCompleted(output="Hello")) == {
        "response": "Hello",
        "message_id": message_id(RUN),
        "run_id": "run_abc",
    }


def test_the_least_request() -> None:
    command = ChatRequest.model_validate({"message": "hi"}).command()
    assert (command.agent, command.input, command.conversation_id) == ("default", {"message": "hi"}, None)


def test_the_whole_request() -> None:
    body = {"message": "hi", "agent_id": "a", "conversation_id": "c", "max_tokens": 5, "model": "demo:echo"}
    command = ChatRequest.model_validate(body).command()
    assert (command.agent, command.conversation_id) == ("a", "c")
    assert command.input == {"message": "hi", "max_tokens": 5}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"message": ""},
        {"message": 5},
        {"message": "x" * 200_001},
        {"message": "hi", "agent_id": ""},
        {"message": "hi", "agent_id": "a\nb"},
        {"message": "hi", "agent_id": "a\n"},
        {"message": "hi", "agent_id": "ä"},
        {"message": "hi", "conversation_id": "x" * 129},
        {"message": "hi", "max_tokens": 0},
        {"message": "hi", "max_tokens": True},
        {"message": "hi", "max_tokens": "5"},
        {"message": "hi", "max_tokens": 1.5},
        {"message": "hi", "api_base": "http://elsewhere"},
    ],
    ids=lambda wrong: str(wrong)[:50],
)
def test_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate(wrong)
