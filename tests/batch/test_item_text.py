"""The text of an item as its batch tells it, also where a worker of the batch died in the middle of it."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batch.item import Response
from headrace.batch.item_text import ItemPast, ItemText, past_of
from headrace.events import (
    BATCH_RESPONSE,
    BATCH_RESTARTED,
    OUTPUT,
    AnyEvent,
    AttemptStarted,
    Data,
    MessageEnd,
    MessageStart,
    ReasoningDelta,
    RunCompleted,
    RunStarted,
    StepFinished,
    StepStarted,
    TextDelta,
    Unknown,
    Usage,
    encode,
)
from headrace.identity import Owner
from headrace.ports import Block, Head, Run

ITEM = "it"
HEAD = Head(
    run=Run(id="run_b_1", epoch="e", owner=Owner("t", "ann"), agent="bot", input={}, created=1),
    state="running",
    offset=9,
)
ANEW = "\N{ANTICLOCKWISE OPEN CIRCLE ARROW}"
"""That a text was begun anew, in a text of everything that was said."""


def start(message: str) -> MessageStart:
    return MessageStart(message_id=message, step_id="s", agent="bot", role="assistant")


def text(message: str, delta: str) -> TextDelta:
    return TextDelta(message_id=message, step_id="s", agent="bot", delta=delta)


def end(message: str) -> MessageEnd:
    return MessageEnd(message_id=message, step_id="s", agent="bot", text="", finish_reason="stop")


def attempt(mode: Any) -> AttemptStarted:
    return AttemptStarted(attempt=2, mode=mode)


RESTART = attempt("restart")


def block(*events: AnyEvent, first: int = 1) -> Block:
    return Block(first, events, [encode(event) for event in events])


def told(blocks: Sequence[Block], past: ItemPast | None = None) -> list[AnyEvent]:
    item = ItemText(ITEM, past or ItemPast(started=True))
    return [event for each in blocks for event in item.events(HEAD, each)]


def said(events: Sequence[AnyEvent]) -> str:
    """All of the text, the void as well, with a mark where it was begun anew."""
    return "".join(event.delta if isinstance(event, TextDelta) else ANEW for event in events)


def test_the_text_of_a_block_is_one_event_that_names_item_message_and_agent() -> None:
    events = told([block(start("m"), text("m", "Hel"), text("m", "lo")), block(text("m", "!"), end("m"))])
    assert [type(event) for event in events] == [TextDelta, TextDelta]
    assert [(event.step_id, event.message_id, event.agent, event.delta) for event in events] == [  # type: ignore[union-attr]
        (ITEM, "m", "bot", "Hello"),
        (ITEM, "m", "bot", "!"),
    ]


def test_each_message_keeps_its_text_where_a_block_has_several() -> None:
    events = told([block(text("m1", "a"), end("m1"), start("m2"), text("m2", "b"), text("m2", "c"))])
    assert [(event.message_id, event.delta) for event in events if isinstance(event, TextDelta)] == [
        ("m1", "a"),
        ("m2", "bc"),
    ]


@pytest.mark.parametrize(
    "event",
    [
        RunStarted(agent="bot", input_digest=""),
        StepStarted(step_id="s", agent="bot"),
        start("m"),
        ReasoningDelta(message_id="m", step_id="s", agent="bot", delta="hm"),
        Data(name="source", value=1),
        Data(name=BATCH_RESPONSE, value={"id": "forged"}),
        Usage(step_id="s", model="m"),
        attempt("continue"),
        end("m"),
        RunCompleted(output="all"),
        text("m", ""),
    ],
)
def test_what_is_no_text_is_not_told(event: AnyEvent) -> None:
    assert told([block(event)]) == []


def test_an_event_of_a_newer_version_is_not_told() -> None:
    raw = b'{"kind":"new.kind","time":1}'
    assert told([Block(1, [Unknown(kind="new.kind", time=1, raw=raw)], [raw])]) == []


def test_that_a_text_is_begun_anew_is_told_in_its_place() -> None:
    events = told([block(start("m"), text("m", "Hel"), RESTART, text("m", "Good"), text("m", "bye"))])
    assert [event.value for event in events if isinstance(event, Data)] == [ITEM]
    assert [event.name for event in events if isinstance(event, Data)] == [BATCH_RESTARTED]
    assert said(events) == f"Hel{ANEW}Goodbye"


def test_only_the_open_message_is_void_so_the_others_are_told_again() -> None:
    """A reader of the batch knows items, not messages: it drops all that the item had said."""
    blocks = [
        block(start("m1"), text("m1", "Let me see. "), end("m1"), start("m2")),
        block(text("m2", "It is "), RESTART),
        block(text("m2", "They are two.")),
    ]
    events = told(blocks)
    assert said(events) == f"Let me see. It is {ANEW}Let me see. They are two."
    assert [event.message_id for event in events if isinstance(event, TextDelta)] == ["m1", "m2", "m1", "m2"]


def test_a_message_that_ended_is_kept_however_often_the_next_one_begins_anew() -> None:
    blocks = [block(text("m1", "a"), end("m1"), RESTART, text("m2", "b"), RESTART, text("m2", "c"), end("m2"), RESTART)]
    assert said(told(blocks)) == f"a{ANEW}ab{ANEW}ac{ANEW}ac"


# what an earlier attempt had shown

LOG: list[AnyEvent] = [
    RunStarted(agent="bot", input_digest=""),
    start("m1"),
    text("m1", "Let "),
    text("m1", "me see."),
    end("m1"),
    start("m2"),
    text("m2", "It is"),
    RESTART,
    text("m2", "They"),
    attempt("continue"),
    text("m2", " are"),
    RESTART,
    text("m2", "Zwölf 🎏"),
    end("m2"),
    RunCompleted(output="Zwölf 🎏"),
]
WHOLE = f"Let me see.It is{ANEW}Let me see.They are{ANEW}Let me see.Zwölf 🎏"


def in_blocks(events: Sequence[AnyEvent], cuts: Sequence[int]) -> list[Block]:
    bounds = sorted({0, *(cut for cut in cuts if cut < len(events)), len(events)})
    return [block(*events[first:last], first=first + 1) for first, last in pairwise(bounds)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, len(LOG)])
def test_after_a_crash_at_any_event_the_rest_is_told_and_nothing_twice(size: int) -> None:
    blocks = in_blocks(LOG, range(0, len(LOG), size))
    whole = told(blocks)
    assert said(whole) == WHOLE
    for count in range(len(whole) + 1):
        kept = [StepStarted(step_id=ITEM, agent="batch"), *whole[:count]]
        rest = told(blocks, past_of(kept)[ITEM])
        assert said([*whole[:count], *rest]) == WHOLE, count


def test_a_text_that_was_shown_in_part_and_begun_anew_meanwhile_is_not_shown_as_one() -> None:
    """The batch was dead while its item began anew."""
    shown = past_of([StepStarted(step_id=ITEM, agent="batch"), text_of_item("Let me")])
    assert said(told([block(*LOG)], shown[ITEM])) == WHOLE.removeprefix("Let me")


def test_after_two_crashes() -> None:
    log: list[AnyEvent] = [StepStarted(step_id=ITEM, agent="batch")]
    for upto in (3, 8, 10, len(LOG)):
        log += told(in_blocks(LOG[:upto], [2, 5]), past_of(log)[ITEM])
    assert said(log[1:]) == WHOLE


def text_of_item(delta: str, item: str = ITEM) -> TextDelta:
    return TextDelta(message_id="m1", step_id=item, agent="bot", delta=delta)


pieces = st.text("abc🎏é", max_size=3)
stories = st.lists(pieces | st.sampled_from(["<end>", "<restart>", "<continue>"]), max_size=14)


def log_of(story: Sequence[str]) -> list[AnyEvent]:
    events: list[AnyEvent] = []
    number = 1
    for word in story:
        message = f"m{number}"
        if word == "<end>":
            events += [end(message), start(f"m{number + 1}")]
            number += 1
        elif word in ("<restart>", "<continue>"):
            events.append(attempt(word[1:-1]))
        else:
            events.append(text(message, word))
    return events


def reads(events: Sequence[AnyEvent]) -> str:
    """What somebody has read who drops all where the text is begun anew."""
    return said(events).rpartition(ANEW)[2]


def folded(story: Sequence[str]) -> str:
    """What the run itself has said that counts: a restart takes back the message that is open."""
    ended, opened = "", ""
    for word in story:
        if word == "<end>":
            ended, opened = ended + opened, ""
        elif word == "<restart>":
            opened = ""
        elif word != "<continue>":
            opened += word
    return ended + opened


@given(stories, st.lists(st.integers(1, 20), max_size=4), st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20))))
@settings(max_examples=300)
def test_whatever_is_said_and_wherever_it_is_cut(
    story: list[str], cuts: list[int], crashes: list[tuple[int, int]]
) -> None:
    """Each crash comes when the item's run had got so far, and so much of it was in the log of the batch."""
    events = log_of(story)
    whole = told(in_blocks(events, cuts))
    assert reads(whole) == folded(story)
    log: list[AnyEvent] = [StepStarted(step_id=ITEM, agent="batch")]
    for upto, kept in sorted(crashes):
        log += told(in_blocks(events[:upto], cuts), past_of(log)[ITEM])[:kept]
    log += told(in_blocks(events, cuts), past_of(log)[ITEM])
    assert said(log[1:]) == said(whole)


# the past of a whole batch


def response(item: str, **fields: Any) -> Data:
    return Data(name=BATCH_RESPONSE, value=msgspec.to_builtins(Response(id=item, **fields)))


def test_the_past_of_a_batch_is_that_of_each_item() -> None:
    history: list[AnyEvent | Unknown] = [
        RunStarted(agent="batch", input_digest=""),
        StepStarted(step_id="a", agent="batch"),
        StepStarted(step_id="b", agent="batch"),
        text_of_item("ab", "a"),
        text_of_item("xyz", "b"),
        text_of_item("🎏", "a"),
        Data(name=BATCH_RESTARTED, value="a"),
        text_of_item("cd", "a"),
        Data(name="source", value="b"),
        Unknown(kind="new.kind", time=1, raw=b"{}"),
        response("b", status=200, body={"n": None}, run_id="run_2"),
        StepFinished(step_id="b", agent="batch"),
        AttemptStarted(attempt=2, mode="continue"),
        StepStarted(step_id="c", agent="batch"),
        response("c", status=424, error="no", code="x", errors=[{"pointer": "/m"}]),
        StepFinished(step_id="c", agent="batch", status="failed"),
        Data(name=OUTPUT, value={}),
    ]
    past = past_of(history)
    assert past == {
        "a": ItemPast(started=True, shown=[3, 2]),
        "b": ItemPast(started=True, shown=[3], response=Response(id="b", status=200, body={"n": None}, run_id="run_2")),
        "c": ItemPast(
            started=True,
            shown=[0],
            response=Response(id="c", status=424, error="no", code="x", errors=[{"pointer": "/m"}]),
        ),
    }


@pytest.mark.parametrize(
    "kept",
    [
        Response(id="a", status=200, body=None),
        Response(id="a", status=204),
        Response(id="a", status=200, body=[1, {"x": "é"}], run_id="run_1"),
        Response(id="a", status=402, error="no", code="budget.exceeded", budget="principal"),
        Response(id="a", status=504, error="no", code="batch.timeout", errors=[]),
    ],
)
def test_a_response_comes_back_as_it_was(kept: Response) -> None:
    stored = msgspec.json.decode(msgspec.json.encode(Data(name=BATCH_RESPONSE, value=msgspec.to_builtins(kept))))
    assert past_of([Data(name=BATCH_RESPONSE, value=stored["value"])])["a"].response == kept


def test_without_a_past_there_is_nothing() -> None:
    assert past_of([]) == {}
    assert past_of([RunStarted(agent="batch", input_digest="")]) == {}
