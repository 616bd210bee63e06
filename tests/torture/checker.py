"""Whether what clients saw is what was promised, however often they and the server were cut.

It compares a journal with the logs as a reader finds them after recovery that was never cut:

- a log is numbered 1..n, begins with `run.started` and has exactly one terminal event, its last;
- every reader got every frame of its view once, in order, with the same bytes as every other reader, up to the end;
- a reader went on exactly where it had been cut;
- nothing was delivered or acknowledged that is not in the log;
- one key is one run, and there is no run that no key has started;
- what a message says in the end is what its deltas said, also where several attempts wrote it, and in every view.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from tests.torture.frames import Frame
from tests.torture.journal import Accepted, Acked, Delivered, Ended, Reader, Record, Resumed

Kind: TypeAlias = Literal[
    "numbering",
    "terminal",
    "text",
    "hole",
    "repeat",
    "differs",
    "not in the log",
    "resumed elsewhere",
    "after the end",
    "early end",
    "no end",
    "lost",
    "second run",
    "unasked run",
]
TERMINAL = {"run.completed", "run.failed", "run.cancelled"}


class Violation(NamedTuple):
    kind: Kind
    who: object
    detail: object


Log: TypeAlias = Mapping[str, Sequence[Frame]]
"""One run by view. `native` is always there, and every view that somebody read."""


def check(records: Iterable[Record], logs: Mapping[str, Log]) -> list[Violation]:
    """Everything that is wrong. Empty where all promises were kept."""
    checker = _Checker(logs)
    for record in records:
        checker.take(record)
    return checker.finish()


class _Progress:
    """How far a reader has got in its view."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames
        self.places = {frame.position: place for place, frame in enumerate(frames)}
        self.next = 0
        self.last: str | None = None
        self.ended = False


class _Checker:
    def __init__(self, logs: Mapping[str, Log]) -> None:
        self._logs = logs
        self._found: list[Violation] = []
        self._runs_of: dict[str, str] = {}
        self._readers: dict[Reader, _Progress] = {}
        self._events = {run: [json.loads(frame.payload) for frame in log["native"]] for run, log in logs.items()}

    def take(self, record: Record) -> None:
        if isinstance(record, Accepted):
            self._accepted(record)
        elif isinstance(record, Acked):
            self._acked(record)
        elif (reader := self._reader(record.reader)) is None:
            self._wrong("lost", record.reader, "the run")
        elif isinstance(record, Resumed):
            if record.after != reader.last:
                self._wrong("resumed elsewhere", record.reader, (reader.last, record.after))
        elif isinstance(record, Delivered):
            self._delivered(reader, record)
        elif isinstance(record, Ended):
            reader.ended = True
            if reader.next != len(reader.frames):
                self._wrong("early end", record.reader, reader.last)

    def finish(self) -> list[Violation]:
        for run, log in self._logs.items():
            self._check_log(run, log)
        for who, reader in self._readers.items():
            if not reader.ended:
                self._wrong("no end", who, reader.last)
        for run in self._logs.keys() - self._runs_of.values():
            self._wrong("unasked run", run, None)
        return self._found

    def _wrong(self, kind: Kind, who: object, detail: object) -> None:
        self._found.append(Violation(kind, who, detail))

    # what clients saw

    def _accepted(self, record: Accepted) -> None:
        known = self._runs_of.setdefault(record.key, record.run)
        if known != record.run:
            self._wrong("second run", record.key, (known, record.run))
        if record.run not in self._logs:
            self._wrong("lost", record.client, record.run)

    def _acked(self, record: Acked) -> None:
        if not any(record.fields.items() <= event.items() for event in map(_flat, self._events.get(record.run, ()))):
            self._wrong("lost", record.client, (record.run, record.fields))

    def _reader(self, reader: Reader) -> _Progress | None:
        if reader not in self._readers and reader.view in (log := self._logs.get(reader.run, {})):
            self._readers[reader] = _Progress(log[reader.view])
        return self._readers.get(reader)

    def _delivered(self, reader: _Progress, record: Delivered) -> None:
        if reader.ended:
            self._wrong("after the end", record.reader, record.position)
        place = reader.places.get(record.position)
        if place is None:
            self._wrong("not in the log", record.reader, (record.position, record.payload))
            return
        if reader.frames[place].payload != record.payload.encode():
            self._wrong("differs", record.reader, (record.position, record.payload))
        if place != reader.next:
            self._wrong("hole" if place > reader.next else "repeat", record.reader, (reader.last, record.position))
        reader.next, reader.last = place + 1, record.position

    # the logs themselves

    def _check_log(self, run: str, log: Log) -> None:
        events = self._events[run]
        offsets = [event["offset"] for event in events]
        if offsets != list(range(1, len(events) + 1)) or (events[:1] and events[0]["kind"] != "run.started"):
            self._wrong("numbering", run, offsets)
        kinds = Counter(event["kind"] for event in events)
        if sum(kinds[kind] for kind in TERMINAL) != 1 or events[-1]["kind"] not in TERMINAL:
            self._wrong("terminal", run, dict(kinds))
        self._check_text(run, log)

    def _check_text(self, run: str, log: Log) -> None:
        said: dict[str, str] = {}
        for event in self._events[run]:
            if event["kind"] == "text.delta":
                said[event["message_id"]] = said.get(event["message_id"], "") + event["delta"]
            elif event["kind"] == "message.end" and event["text"] != said.get(event["message_id"], ""):
                self._wrong("text", run, event["message_id"])
        if "agent_chat" in log and _tokens(log["agent_chat"]) != "".join(said.values()):
            self._wrong("text", run, "agent_chat")


def _tokens(frames: Sequence[Frame]) -> str:
    return "".join([json.loads(frame.payload).get("content", "") for frame in frames])


def _flat(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event's fields of plain values, which can be compared as items."""
    return {name: value for name, value in event.items() if not isinstance(value, dict | list)}
