"""`POST /api/batch`: what a batch may be, to the pointer, and how it is shown, to the byte."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from headrace.errors import AuthRevoked, BatchTooLarge, InvalidField
from headrace.events import (
    BATCH_RESPONSE,
    BATCH_RESTARTED,
    OUTPUT,
    AnyEvent,
    AttemptStarted,
    Data,
    ErrorInfo,
    MessageEnd,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    StepFinished,
    StepStarted,
    TextDelta,
    Unknown,
    decode,
    encode,
)
from headrace.identity import Owner
from headrace.ports import Run
from headrace.protocols.batch import Batch, BatchRequest, answer, total_processing_time
from headrace.server.problem import field_error

CHAT = {"method": "POST", "path": "/api/agent/chat"}
S1: dict[str, Any] = {
    "requests": [
        {
            "id": "req_1",
            "method": "POST",
            "path": "/api/agent/chat",
            "body": {"message": "What is Python?", "agent_id": "default"},
        },
        {
            "id": "req_2",
            "method": "POST",
            "path": "/api/tools/search/execute",
            "body": {"parameters": {"query": "machine learning"}},
        },
    ]
}
"""As printed in the seed."""
RUN = Run(id="run_abc", epoch="e", owner=Owner("t", "ann"), agent="batch", input=S1, created=1000.25)


def item(id: Any = "a", **more: Any) -> dict[str, Any]:
    return {"id": id, **CHAT, **more}


def of(*items: Any) -> dict[str, Any]:
    return {"requests": list(items)}


def chain(**depends_on: list[str]) -> dict[str, Any]:
    return of(*(item(id, dependsOn=others) for id, others in depends_on.items()))


# the request


def test_the_request_that_the_seed_prints() -> None:
    command = BatchRequest.model_validate(S1).command(10)
    assert (command.agent, command.conversation_id) == ("batch", None)
    assert command.input == S1


def test_the_whole_request() -> None:
    whole = of(
        item("a", body={"message": None, "n": [1, None, {"x": None}]}, headers={"Accept": "application/json"}),
        item("b", dependsOn=["a"]),
        item("c", dependsOn=["b", "a", "a"], body={}, headers={}),
    )
    assert BatchRequest.model_validate(whole).command(3).input == whole


def test_what_is_null_is_left_out() -> None:
    nothing = of(item(body=None, headers=None, dependsOn=None))
    assert BatchRequest.model_validate(nothing).command(1).input == of(item())


@pytest.mark.parametrize("id", ["a", "0", " ", "a b", "~!#$%/\\'\"", "x" * 128])
def test_ids_are_printable_names(id: str) -> None:
    assert BatchRequest.model_validate(of(item(id))).command(1).input["requests"][0]["id"] == id


@pytest.mark.parametrize("path", ["", "/api/batch", "http://169.254.169.254/", "/a\r\nb", "#", "é\0", "x" * 8192])
@pytest.mark.parametrize("method", ["", "TRACE", "PO ST", "post", "x" * 64])
def test_what_an_item_calls_is_the_business_of_the_item(path: str, method: str) -> None:
    """One that calls what may not be called does not take the others with it."""
    one = {"id": "a", "method": method, "path": path}
    assert BatchRequest.model_validate(of(one)).command(1).input == of(one)


@pytest.mark.parametrize(
    ("wrong", "pointer", "code"),
    [
        ({}, "/requests", "field.invalid"),
        ({"requests": []}, "/requests", "field.invalid"),
        ({"requests": None}, "/requests", "field.invalid"),
        ({"requests": {"0": item()}}, "/requests", "field.invalid"),
        ({"requests": "a"}, "/requests", "field.invalid"),
        ({**S1, "user_id": "bob"}, "/user_id", "field.forbidden"),
        ({**S1, "atomicity_group": 1}, "/atomicity_group", "field.forbidden"),
        (of(1), "/requests/0", "field.invalid"),
        (of(None), "/requests/0", "field.invalid"),
        (of([]), "/requests/0", "field.invalid"),
        (of(item(), CHAT), "/requests/1/id", "field.invalid"),
        (of(item(None)), "/requests/0/id", "field.invalid"),
        (of(item(1)), "/requests/0/id", "field.invalid"),
        (of(item(True)), "/requests/0/id", "field.invalid"),
        (of(item("")), "/requests/0/id", "field.invalid"),
        (of(item("a\n")), "/requests/0/id", "field.invalid"),
        (of(item("a\nb")), "/requests/0/id", "field.invalid"),
        (of(item("a\0")), "/requests/0/id", "field.invalid"),
        (of(item("a\t")), "/requests/0/id", "field.invalid"),
        (of(item("\x7f")), "/requests/0/id", "field.invalid"),
        (of(item("é")), "/requests/0/id", "field.invalid"),
        (of(item("a\u2028")), "/requests/0/id", "field.invalid"),
        (of(item("x" * 129)), "/requests/0/id", "field.invalid"),
        (of(item("x" * 10_240)), "/requests/0/id", "field.invalid"),
        (of({"id": "a", "path": "/x"}), "/requests/0/method", "field.invalid"),
        (of(item(method=None)), "/requests/0/method", "field.invalid"),
        (of(item(method=1)), "/requests/0/method", "field.invalid"),
        (of(item(method="x" * 65)), "/requests/0/method", "field.invalid"),
        (of({"id": "a", "method": "GET"}), "/requests/0/path", "field.invalid"),
        (of(item(path=["/api/agent/chat"])), "/requests/0/path", "field.invalid"),
        (of(item(path="/" * 8193)), "/requests/0/path", "field.invalid"),
        (of(item(body="{}")), "/requests/0/body", "field.invalid"),
        (of(item(body=[])), "/requests/0/body", "field.invalid"),
        (of(item(body=1)), "/requests/0/body", "field.invalid"),
        (of(item(headers=[["Accept", "x"]])), "/requests/0/headers", "field.invalid"),
        (of(item(headers={"Accept": 1})), "/requests/0/headers/Accept", "field.invalid"),
        (of(item(headers={"Accept": ["x"]})), "/requests/0/headers/Accept", "field.invalid"),
        (of(item(headers={"Accept": None})), "/requests/0/headers/Accept", "field.invalid"),
        (of(item(headers={"a/~b": 1})), "/requests/0/headers/a~1~0b", "field.invalid"),
        (of(item(headers={f"x-{n}": "" for n in range(17)})), "/requests/0/headers", "field.invalid"),
        (of(item(dependsOn="a")), "/requests/0/dependsOn", "field.invalid"),
        (of(item(dependsOn={"a": 1})), "/requests/0/dependsOn", "field.invalid"),
        (of(item(dependsOn=["b", 1]), item("b")), "/requests/0/dependsOn/1", "field.invalid"),
        (of(item(dependsOn=["b\n"]), item("b")), "/requests/0/dependsOn/0", "field.invalid"),
        (of(item(dependsOn=[""]), item("b")), "/requests/0/dependsOn/0", "field.invalid"),
        (of(item(depends_on=["b"]), item("b")), "/requests/0/depends_on", "field.forbidden"),
        (of(item(url="http://elsewhere")), "/requests/0/url", "field.forbidden"),
        (of(item(user_id="bob")), "/requests/0/user_id", "field.forbidden"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_body_of_the_wrong_form_is_refused_in_its_place(wrong: Any, pointer: str, code: str) -> None:
    with pytest.raises(ValidationError) as refused:
        BatchRequest.model_validate(wrong)
    problem = field_error([{**error, "loc": ("body", *error["loc"])} for error in refused.value.errors()])
    assert (problem.status, problem.code) == (422, code)
    assert [error["pointer"] for error in problem.extra["errors"]] == [pointer]


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ValidationError) as refused:
        BatchRequest.model_validate(of({"id": "a\n", "method": 1, "path": None}, item()))
    assert [error["loc"] for error in refused.value.errors()] == [
        ("requests", 0, "id"),
        ("requests", 0, "method"),
        ("requests", 0, "path"),
    ]


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        (of(item("a"), item("a")), "/requests/1/id"),
        (of(item("a"), item("b"), item("a"), item("b")), "/requests/2/id"),
        (of(item("a"), item("A"), item(" a"), item("a ", dependsOn=["a"]), item("A")), "/requests/4/id"),
        (chain(a=["b"]), "/requests/0/dependsOn"),
        (chain(a=[], b=["a", "A"]), "/requests/1/dependsOn"),
        (chain(a=["a"]), "/requests/0/dependsOn"),
        (chain(a=[], b=["a", "b"]), "/requests/1/dependsOn"),
        (chain(a=["b"], b=["a"]), "/requests/0/dependsOn"),
        (chain(x=[], a=["c", "x"], b=["a"], c=["b"]), "/requests/1/dependsOn"),
        (chain(x=["a"], y=["x"], a=["b"], b=["c"], c=["a"]), "/requests/2/dependsOn"),
    ],
    ids=str,
)
def test_ids_are_unique_and_dependencies_lead_somewhere_and_never_back(wrong: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidField) as refused:
        BatchRequest.model_validate(wrong).command(10)
    (error,) = refused.value.extra["errors"]
    assert error["pointer"] == pointer


@pytest.mark.parametrize(
    "right",
    [
        chain(a=[]),
        chain(a=["b"], b=[]),
        chain(a=["b", "c"], b=["d"], c=["d"], d=[]),
        chain(**{str(n): [str(m) for m in range(n)] for n in range(9)}),
        chain(**{str(n): [str(m) for m in range(n + 1, 9)] for n in range(9)}),
    ],
    ids=str,
)
def test_dependencies_in_any_order_that_leads_to_an_end(right: dict[str, Any]) -> None:
    assert BatchRequest.model_validate(right).command(10).input == right


@given(st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=7))
def test_a_batch_is_refused_just_where_an_item_would_wait_for_itself(edges: list[list[int]]) -> None:
    depends_on = [{other for other in others if other < len(edges)} for others in edges]
    body = of(*(item(str(n), dependsOn=[str(other) for other in others]) for n, others in enumerate(depends_on)))
    waiting = set(range(len(edges)))
    while ready := {n for n in waiting if not depends_on[n] & waiting}:
        waiting -= ready
    if not waiting:
        assert BatchRequest.model_validate(body).command(10).input == body
        return
    with pytest.raises(InvalidField) as refused:
        BatchRequest.model_validate(body).command(10)
    (error,) = refused.value.extra["errors"]
    number = int(error["pointer"].removeprefix("/requests/").removesuffix("/dependsOn"))
    assert _leads_back(number, depends_on), "the one that is named is one of those"


def _leads_back(number: int, depends_on: list[set[int]]) -> bool:
    reached, new = set[int](), {number}
    while new:
        new = {other for each in new for other in depends_on[each]} - reached
        reached |= new
    return number in reached


def test_a_batch_has_only_so_many_items() -> None:
    most, more = of(*(item(str(n)) for n in range(10))), of(*(item(str(n)) for n in range(11)))
    assert BatchRequest.model_validate(most).command(10).input == most
    with pytest.raises(BatchTooLarge) as refused:
        BatchRequest.model_validate(more).command(10)
    assert (refused.value.status, refused.value.code) == (413, "batch.too_large")
    assert "10" in refused.value.message


def test_a_chain_of_a_thousand_items_is_no_matter() -> None:
    long = of(*(item(str(n), dependsOn=[str(n + 1)] if n < 999 else []) for n in range(1000)))
    assert BatchRequest.model_validate(long).command(1000).input == long
    long["requests"][-1]["dependsOn"] = ["0"]
    with pytest.raises(InvalidField):
        BatchRequest.model_validate(long).command(1000)


# the view

ERROR = ErrorInfo(code="agent.failed", message="The agent failed.", status=500)


def text(item: str, delta: str) -> TextDelta:
    return TextDelta(message_id="m", step_id=item, agent="a", delta=delta)


def response(**fields: Any) -> Data:
    return Data(name=BATCH_RESPONSE, value=fields, time=1)


FRAMES: list[tuple[AnyEvent, list[str]]] = [
    (RunStarted(agent="batch", input_digest="x"), ['{"type":"batch_started","batch_id":"run_abc"}']),
    (StepStarted(step_id="req_1", agent="batch"), ['{"type":"item_started","request_id":"req_1"}']),
    (text("req_1", "Py"), ['{"type":"token","request_id":"req_1","content":"Py"}']),
    (
        text('r"2', "thon is"),
        [
            r'{"type":"token","request_id":"r\"2","content":"thon"}',
            r'{"type":"token","request_id":"r\"2","content":" is"}',
        ],
    ),
    (
        text("req_1", "\u2028\n\u0085é"),
        [r'{"type":"token","request_id":"req_1","content":"\u2028\n\u0085é"}'],
    ),
    (text("req_1", ""), []),
    (Data(name=BATCH_RESTARTED, value="req_1"), ['{"type":"item_restarted","request_id":"req_1"}']),
    (
        response(id="req_1", status=200, body={"response": "Hi\u2029", "n": None}, run_id="run_abc_1"),
        [
            r'{"type":"item_finished","request_id":"req_1","status":200,"body":{"response":"Hi\u2029","n":null},'
            '"run_id":"run_abc_1"}'
        ],
    ),
    (
        response(id="x", status=200, body=None),
        ['{"type":"item_finished","request_id":"x","status":200,"body":null}'],
    ),
    (
        response(id="x", status=400, error="No.", code="request.invalid"),
        ['{"type":"item_finished","request_id":"x","status":400,"error":"No.","code":"request.invalid"}'],
    ),
    (StepFinished(step_id="req_1", agent="batch"), []),
    (Data(name=OUTPUT, value={"succeeded": 1, "failed": 0}), []),
    (Data(name="source", value="x"), []),
    (AttemptStarted(attempt=2, mode="continue"), []),
    (MessageEnd(message_id="m", step_id="req_1", agent="a", text="Hi", finish_reason="stop"), []),
    (
        RunCompleted(output="{}", time=1002.59),
        ['{"type":"batch_finished","batch_id":"run_abc","total_processing_time":2.34}'],
    ),
    (
        RunCompleted(output="{}", time=999.0),
        ['{"type":"batch_finished","batch_id":"run_abc","total_processing_time":0.0}'],
    ),
    (RunFailed(error=ERROR), ['{"type":"error","message":"The agent failed.","code":500}']),
    (RunCancelled(reason="requested", by="ann"), ['{"type":"error","message":"The run was cancelled.","code":499}']),
]


@pytest.mark.parametrize(("event", "payloads"), FRAMES, ids=lambda value: type(value).__name__)
def test_these_events_are_these_bytes(event: AnyEvent, payloads: list[str]) -> None:
    view, encoded = Batch(4).view(RUN), encode(event)
    for _ in range(2):  # the same event gives the same bytes, and nothing is changed by showing it
        assert list(view.frames(7, decode(encoded), encoded)) == [payload.encode() for payload in payloads]


def test_an_event_of_a_newer_version_shows_nothing() -> None:
    raw = b'{"kind":"new.kind","time":1}'
    assert list(Batch().view(RUN).frames(2, Unknown(kind="new.kind", time=1, raw=raw), raw)) == []


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50), st.integers(1, 12))
def test_long_text_is_split_and_nothing_is_lost(delta: str, size: int) -> None:
    tokens = [json.loads(payload) for payload in Batch(size).view(RUN).frames(2, text("x", delta), b"")]
    assert "".join(token["content"] for token in tokens) == delta
    assert all(0 < len(token["content"]) <= size and token["request_id"] == "x" for token in tokens)
    assert len(tokens) == -(-len(delta) // size)


def test_an_error_that_is_not_in_the_log_has_the_same_form() -> None:
    shown = Batch().view(RUN).error(AuthRevoked().info())
    assert shown == b'{"type":"error","message":"The credential is no longer valid. Sign in again.","code":401}'


def test_it_does_not_claim_to_show_a_text_that_a_run_begins_anew() -> None:
    """A batch says itself where an item's text is void; of a run that is no batch, and read as one, nothing could."""
    assert list(Batch().view(RUN).frames(2, AttemptStarted(attempt=2, mode="restart"), b"")) == []
    assert not Batch.restarts


# the reply without streaming


def test_the_reply_is_in_the_order_of_the_requests() -> None:
    responses = {
        "req_2": {"id": "req_2", "status": 400, "error": "Invalid parameters"},
        "req_1": {"id": "req_1", "status": 200, "body": {"response": "\u2028"}},
    }
    end = RunCompleted(output="{}", time=1002.59)
    assert answer(RUN, responses, end) == (
        rb'{"responses":[{"id":"req_1","status":200,"body":{"response":"\u2028"}},'
        rb'{"id":"req_2","status":400,"error":"Invalid parameters"}],"total_processing_time":2.34}'
    )


@pytest.mark.parametrize(
    ("ended", "seconds"), [(1000.25, 0.0), (1000.0, 0.0), (1000.2500004, 0.0), (1001.25, 1.0), (1030.5, 30.25)]
)
def test_the_time_it_took_is_never_negative(ended: float, seconds: float) -> None:
    assert total_processing_time(RUN, RunCompleted(output="", time=ended)) == seconds
