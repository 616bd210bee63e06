"""The log as it is, to the byte."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError

from headrace.errors import AuthRevoked
from headrace.events import KINDS, decode
from headrace.identity import Owner
from headrace.ports import Run
from headrace.protocols.native import Native, StartRun

RUN = Run(id="run_abc", epoch="e", owner=Owner("t", "ann"), agent="default", input={}, created=1)
CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "native.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_these_events_are_these_bytes(case: dict[str, Any]) -> None:
    run = msgspec.structs.replace(RUN, id=case["run_id"])
    view = Native(**case["options"]).view(run)
    for offset, (event, payloads) in enumerate(case["events"], case["first_offset"]):
        encoded = msgspec.json.encode(event)
        shown = list(view.frames(offset, decode(encoded), encoded))
        assert shown == [payload.encode() for payload in payloads]
        assert [json.loads(payload) for payload in shown] == [{"offset": offset, "run_id": run.id, **event}]


def test_every_kind_has_a_case() -> None:
    kinds = {event["kind"] for case in CASES for event, _ in case["events"]}
    assert kinds >= KINDS.keys()


def test_an_error_that_is_not_in_the_log_is_of_no_kind_of_event() -> None:
    shown = json.loads(Native().view(RUN).error(AuthRevoked().info()))
    assert shown["kind"] == "error"
    assert "error" not in KINDS
    assert (shown["error"]["code"], shown["error"]["status"]) == ("auth.revoked", 401)


def test_a_request() -> None:
    body = {"agent": "a", "input": {"any": ["thing"]}, "conversation_id": "c"}
    command = StartRun.model_validate(body).command()
    assert (command.agent, command.input, command.conversation_id) == ("a", {"any": ["thing"]}, "c")
    assert StartRun.model_validate({"input": {}}).command().agent == "default"


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"input": []},
        {"input": "x"},
        {"input": {}, "agent": ""},
        {"input": {}, "agent": "a\r\nb"},
        {"input": {}, "agent": 5},
        {"input": {}, "conversation_id": ""},
        {"input": {}, "user_id": "bob"},
    ],
    ids=str,
)
def test_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StartRun.model_validate(wrong)
