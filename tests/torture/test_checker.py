"""The checker finds every way in which the promise can be broken, and nothing where it was kept."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.torture.checker import Kind, Log, check
from tests.torture.frames import Frame, parse
from tests.torture.journal import Accepted, Acked, Delivered, Ended, Journal, Reader, Record, Resumed

RUN = "run_a"
ANN = Reader("ann", RUN, "native")
BOB = Reader("bob", RUN, "agent_chat")
KINDS: Sequence[tuple[str, dict[str, Any]]] = [
    ("run.started", {}),
    ("message.start", {"message_id": "m"}),
    ("text.delta", {"message_id": "m", "delta": "Hel"}),
    ("attempt.started", {"attempt": 2}),
    ("text.delta", {"message_id": "m", "delta": "lo"}),
    ("message.end", {"message_id": "m", "text": "Hello"}),
    ("run.completed", {"output": "Hello"}),
]
CHAT = [{"type": "start"}, {"type": "token", "content": "Hel"}, {"type": "token", "content": "lo"}, {"type": "end"}]


def frame(offset: int, payload: object) -> Frame:
    return Frame(f"e-{offset}", json.dumps(payload).encode(), b"")


def native(kinds: Sequence[tuple[str, dict[str, Any]]] = KINDS) -> list[Frame]:
    return [frame(number, {"offset": number, "kind": kind, **fields}) for number, (kind, fields) in enumerate(kinds, 1)]


def chat() -> list[Frame]:
    return [frame(offset, payload) for offset, payload in zip((1, 3, 5, 7), CHAT, strict=True)]


def got(reader: Reader, frames: Sequence[Frame]) -> list[Record]:
    return [Delivered(reader, frame.position, frame.payload.decode()) for frame in frames]


def story() -> list[Record]:
    """Two readers of a run that took two attempts; the first one was cut twice."""
    frames = native()
    return [
        Accepted("ann", "key", RUN),
        Accepted("ann", "key", RUN),
        Acked("ann", RUN, {"offset": 1}),
        Resumed(ANN, None),
        Resumed(BOB, None),
        *got(ANN, frames[:2]),
        *got(BOB, chat()[:3]),
        Resumed(ANN, "e-2"),
        *got(ANN, frames[2:6]),
        Resumed(ANN, "e-6"),
        *got(ANN, frames[6:]),
        *got(BOB, chat()[3:]),
        Ended(ANN),
        Ended(BOB),
        Acked("ann", RUN, {"kind": "run.completed", "output": "Hello"}),
    ]


def logs(kinds: Sequence[tuple[str, dict[str, Any]]] = KINDS) -> dict[str, Log]:
    return {RUN: {"native": native(kinds), "agent_chat": chat()}}


def kinds_of(records: list[Record], found: dict[str, Log]) -> list[Kind]:
    return [violation.kind for violation in check(records, found)]


def test_a_promise_that_was_kept_has_no_violation() -> None:
    assert check(story(), logs()) == []


def place(records: list[Record], position: str) -> int:
    """Of the delivery to Ann."""
    return next(
        number
        for number, record in enumerate(records)
        if isinstance(record, Delivered) and record.reader == ANN and record.position == position
    )


def drop(records: list[Record]) -> None:
    del records[place(records, "e-4")]


def double(records: list[Record]) -> None:
    at = place(records, "e-4")
    records.insert(at, records[at])


def swap(records: list[Record]) -> None:
    at = place(records, "e-4")
    records[at], records[at + 1] = records[at + 1], records[at]


def falsify(records: list[Record]) -> None:
    at = place(records, "e-4")
    records[at] = Delivered(ANN, "e-4", "{}")


def make_up(records: list[Record]) -> None:
    records.insert(place(records, "e-4"), Delivered(ANN, "e-4.1", "{}"))


def without_position(records: list[Record]) -> None:
    records.insert(place(records, "e-4"), Delivered(ANN, None, "{}"))


def other_run(records: list[Record]) -> None:
    records.append(Delivered(Reader("eve", "run_b", "native"), "f-1", "{}"))


def repeat_after_cut(records: list[Record]) -> None:
    records.insert(place(records, "e-3"), records[place(records, "e-2")])


def resume_elsewhere(records: list[Record]) -> None:
    records[records.index(Resumed(ANN, "e-2"))] = Resumed(ANN, "e-1")


def start_again(records: list[Record]) -> None:
    records[records.index(Resumed(ANN, "e-2"))] = Resumed(ANN, None)


def never_end(records: list[Record]) -> None:
    records.remove(Ended(BOB))


def end_early(records: list[Record]) -> None:
    records.remove(Delivered(BOB, "e-7", json.dumps(CHAT[-1])))


def go_on_after_the_end(records: list[Record]) -> None:
    records.append(Delivered(ANN, "e-7", native()[6].payload.decode()))


def second_run(records: list[Record]) -> None:
    records.insert(1, Accepted("ann", "key", "run_b"))


def lose_accepted(records: list[Record]) -> None:
    records.append(Accepted("ann", "other", "run_b"))


def lose_acked(records: list[Record]) -> None:
    records.append(Acked("ann", RUN, {"kind": "run.cancelled"}))


def lose_acked_offset(records: list[Record]) -> None:
    records.append(Acked("ann", RUN, {"offset": 8}))


def never_accepted(records: list[Record]) -> None:
    records[:] = [record for record in records if not isinstance(record, Accepted)]


@pytest.mark.parametrize(
    ("break_it", "kinds"),
    [
        (drop, ["hole"]),
        (double, ["repeat"]),
        (swap, ["hole", "repeat", "hole"]),
        (falsify, ["differs"]),
        (make_up, ["not in the log"]),
        (without_position, ["not in the log"]),
        (other_run, ["lost"]),
        (repeat_after_cut, ["repeat"]),
        (resume_elsewhere, ["resumed elsewhere"]),
        (start_again, ["resumed elsewhere"]),
        (never_end, ["no end"]),
        (end_early, ["early end"]),
        (go_on_after_the_end, ["after the end", "repeat"]),
        (second_run, ["second run", "lost"]),
        (lose_accepted, ["lost"]),
        (lose_acked, ["lost"]),
        (lose_acked_offset, ["lost"]),
        (never_accepted, ["unasked run"]),
    ],
)
def test_what_clients_saw_wrong(break_it: Callable[[list[Record]], None], kinds: list[Kind]) -> None:
    records = story()
    break_it(records)
    assert kinds_of(records, logs()) == kinds


def renumbered() -> list[Frame]:
    """With a hole after the third event."""
    numbers = (1, 2, 3, 5, 6, 7, 8)
    return [
        frame(number, {"offset": number, "kind": kind, **fields})
        for number, (kind, fields) in zip(numbers, KINDS, strict=True)
    ]


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        (renumbered(), "numbering"),
        ([*native()[:2], *native()[1:]], "numbering"),
        (native(KINDS[1:]), "numbering"),
        (native(KINDS[:-1]), "terminal"),
        (native([*KINDS, ("run.failed", {})]), "terminal"),
        (native([*KINDS, ("usage", {})]), "terminal"),
        (native([*KINDS[:5], ("text.delta", {"message_id": "m", "delta": "lo"}), *KINDS[5:]]), "text"),
        (native([*KINDS[:4], *KINDS[5:]]), "text"),
    ],
)
def test_what_is_wrong_with_a_log(log: list[Frame], kind: Kind) -> None:
    assert kind in kinds_of([Accepted("ann", "key", RUN)], {RUN: {"native": log}})


def test_two_views_of_a_run_say_the_same() -> None:
    other: Log = {"native": native(), "agent_chat": [*chat()[:2], *chat()[3:]]}
    assert kinds_of([Accepted("ann", "key", RUN)], {RUN: other}) == ["text"]


def test_a_journal_gives_back_what_was_written(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        for record in story():
            journal.write(record)
        assert list(journal.records()) == story()
        assert journal.count == len(story())


async def test_a_journal_wakes_who_waits_for_its_length(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        waiting = asyncio.create_task(journal.reached(2))
        await asyncio.sleep(0)
        journal.write(story()[0])
        await asyncio.sleep(0)
        assert not waiting.done()
        journal.write(story()[1])
        await asyncio.wait_for(waiting, 20)
        await journal.reached(1)


def test_frames_are_what_stands_on_the_wire() -> None:
    first = b'id: e-1\ndata: {"kind":"run.started"}\n\n'
    body = b"retry: 1200\n" + first + b": ping\n\nid: e-2.1\ndata: {}\n\ndata: {}\n\nid: e-3\nda"
    started, second, third = parse(body, "sse")
    assert started == Frame("e-1", b'{"kind":"run.started"}', first)
    assert (second.position, third.position) == ("e-2.1", None)
    (line,) = parse(b'{"id":"e-1","data":{"type":"end"}}\n\n{"id":"e-2","da', "ndjson")
    assert line == Frame("e-1", b'{"type":"end"}', b'{"id":"e-1","data":{"type":"end"}}\n')
    assert line.terminal
    assert not started.terminal


@pytest.mark.parametrize(
    "body", [b"id: e-1\n\n", b"retry: 5\n\n", b"id: e-1\r\ndata: {}\n\n", b"data: {}\nid: e-1\n\n", b"data:{}\n\n"]
)
def test_frames_that_would_break_a_client_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="not a frame"):
        parse(body, "sse")
