"""A batch as a run, with calls that do as a test says: order, isolation, limits of time, and crashes at every point.

Time passes only while nobody has anything to do, and then at once: so a batch of 30 seconds takes none.
"""

import asyncio
import selectors
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple

import msgspec
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.workshop import ANN, BOB, Workshop, begin, end, text

from headrace.batch.agent import BatchAgent
from headrace.batch.item import Item, Response, refusal
from headrace.engines.memory import MemoryEngine
from headrace.errors import (
    BatchReferenceInvalid,
    BudgetExceeded,
    Cancelled,
    Draining,
    HeadraceError,
    InvalidField,
    LogCorrupt,
    NotFound,
    PositionGone,
)
from headrace.events import (
    BATCH_RESPONSE,
    BATCH_RESTARTED,
    OUTPUT,
    AnyEvent,
    AttemptStarted,
    Data,
    Event,
    RunCancelled,
    RunCompleted,
    RunStarted,
    StepFinished,
    StepStarted,
    TextDelta,
    Unknown,
)
from headrace.identity import Principal
from headrace.ports import Block, Created, Head, Idempotency, Run, RunContext, StartCommand, child_id
from headrace.position import Position
from headrace.runs import Birth, Runs, new_run_id

TIMEOUT = 30.0
TOO_LONG = 10_000.0
"""Seconds after which something is taken to hang. They pass in an instant."""


# --- time -------------------------------------------------------------------------------------------------------------


class _NoWaiting(selectors.DefaultSelector):
    """Where it would wait, the time has passed already."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nobody has anything to do, ever"
            self.passed += max(0.0, timeout)
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _NoWaiting()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.passed


def in_no_time(story: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TOO_LONG):
            await story

    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(bounded())


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture(autouse=True)
def logged() -> Iterator[Sequence[Mapping[str, Any]]]:
    """Tracebacks are long to print."""
    with structlog.testing.capture_logs() as lines:
        yield lines


# --- the shop ---------------------------------------------------------------------------------------------------------


class SlowEngine(MemoryEngine):
    """Takes its time to make children, where a test holds the `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.making = asyncio.Event()
        self.made: list[str] = []

    async def create(self, run: Run, first: Event, idempotency: Idempotency | None = None) -> Created:
        if run.parent_run_id is not None:
            self.making.set()
            await self.gate.wait()
        created = await super().create(run, first, idempotency)
        if created.new:
            self.made.append(run.id)
        return created


class Calls:
    """A `Call` that does what the path of the item says. `gates` hold those that wait, by the item's id."""

    def __init__(self, runs: Runs) -> None:
        self.made: list[str] = []
        self.bodies: dict[str, Any] = {}
        self.principals: set[Principal] = set()
        self.gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.at_once = 0
        self.draining = False
        self._runs = runs

    async def __call__(self, principal: Principal, item: Item, birth: Birth) -> Response:
        self.made.append(item.id)
        self.bodies[item.id] = item.body
        self.principals.add(principal)
        self.at_once += 1
        try:
            return await getattr(self, item.path)(principal, item, birth)  # type: ignore[no-any-return]
        finally:
            self.at_once -= 1

    async def ok(self, principal: Principal, item: Item, birth: Birth) -> Response:
        return Response(id=item.id, status=200, body={"response": item.id})

    async def lasts(self, principal: Principal, item: Item, birth: Birth) -> Response:
        assert item.body is not None
        await asyncio.sleep(item.body["seconds"])
        return await self.ok(principal, item, birth)

    async def waits(self, principal: Principal, item: Item, birth: Birth) -> Response:
        await self.gates[item.id].wait()
        return await self.ok(principal, item, birth)

    async def hangs(self, principal: Principal, item: Item, birth: Birth) -> Response:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def is_refused(self, principal: Principal, item: Item, birth: Birth) -> Response:
        raise NotFound

    async def fails(self, principal: Principal, item: Item, birth: Birth) -> Response:
        return Response(id=item.id, status=500, error="No.", code="agent.failed")

    async def raises(self, principal: Principal, item: Item, birth: Birth) -> Response:
        raise RuntimeError("a secret")

    async def times_out(self, principal: Principal, item: Item, birth: Birth) -> Response:
        raise TimeoutError("another one than that of the batch")

    async def runs(self, principal: Principal, item: Item, birth: Birth) -> Response:
        """As the routes do that start a run and wait for its end."""
        if self.draining:
            return refusal(item.id, Draining())
        head = (await self._start(principal, item, birth)).head
        outcome = await self._runs.result(head)
        if isinstance(outcome, RunCompleted):
            return Response(id=item.id, status=200, body={"response": outcome.output}, run_id=head.run.id)
        if isinstance(outcome, RunCancelled):
            return refusal(item.id, Cancelled(), run_id=head.run.id)
        why = outcome.error
        return Response(id=item.id, status=why.status, error=why.message, code=why.code, run_id=head.run.id)

    async def only_starts(self, principal: Principal, item: Item, birth: Birth) -> Response:
        """As `POST /api/runs` does."""
        head = (await self._start(principal, item, birth)).head
        return Response(id=item.id, status=201, body={"id": head.run.id}, run_id=head.run.id)

    async def _start(self, principal: Principal, item: Item, birth: Birth) -> Created:
        return await self._runs.start(principal, StartCommand(agent="child", input=item.body or {}), birth=birth)


class Shop(Workshop):
    """A batch is driven by hand, to stop it where a test wants; a worker has its children."""

    engine: SlowEngine

    def __init__(self) -> None:
        super().__init__(SlowEngine())
        self.calls = Calls(self.runs)
        self.gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        """At which children wait that say `|name`."""
        self.add("child", self._child, resumable=False)

    async def _child(self, context: RunContext) -> AsyncGenerator[Any, None]:
        """Says the texts: `|name` waits at that gate, a number so many seconds, `!` fails, and `~` begins anew."""
        yield begin()
        said = ""
        for word in context.run.input.get("texts", ["Hello"]):
            if isinstance(word, int | float):
                await asyncio.sleep(word)
            elif word.startswith("|"):
                await self.gates[word[1:]].wait()
            elif word == "!":
                raise HeadraceError
            elif word == "~":
                said = ""
                yield AttemptStarted(attempt=context.attempt, mode="restart")
            else:
                said += word
                yield text(word)
        yield end(said)

    def agent(self, timeout: float = TIMEOUT) -> BatchAgent:
        return BatchAgent(self.runs, self.calls, timeout=timeout)

    async def attempt(
        self, run: Run, number: int = 1, history: Sequence[Any] = (), *, until: int | None = None
    ) -> list[Any]:
        """The events that the agent says, or the first `until` of them: then its worker dies."""
        events: list[AnyEvent] = []
        context = RunContext(run=run, attempt=number, history=history)
        async with aclosing(_generator(self.agent().run(context))) as items:
            while until is None or len(events) < until:
                try:
                    some = await anext(items)
                except StopAsyncIteration:
                    break
                events += some if isinstance(some, list | tuple) else (some,)
        return events

    async def children(self, run: Run) -> Mapping[int, Head]:
        """By their number."""
        heads = await self.engine.list(run.owner, limit=1000, parent=run.id)
        return {int(head.run.id.removeprefix(f"{run.id}_")): head for head in heads}

    async def outcome(self, run_id: str) -> Any:
        return await self.runs.result(await self.engine.head(run_id))

    async def says(self, run: Run, enough: Callable[[Sequence[Event | Unknown]], bool]) -> None:
        """Until the log has enough."""
        events: list[Event | Unknown] = []
        async for blocks in self.engine.read(run.id, live=True):
            events += [event for block in blocks for event in block.events]
            if enough(events):
                return
        raise AssertionError(events)

    async def begun(self, run: Run) -> Head:
        """The same batch as a run that a worker has."""
        started = RunStarted(agent="batch", input_digest="")
        return (await self.engine.create(run, started)).head


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def _generator(items: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    assert isinstance(items, AsyncGenerator)
    return items


@asynccontextmanager
async def shop(timeout: float = TIMEOUT) -> AsyncIterator[Shop]:
    made = Shop()
    await made.engine.start()
    made.agents["batch"] = lambda run: made.agent(timeout)
    made.worker(coordinators=("batch",))
    try:
        yield made
    finally:
        for worker in made.workers:
            await worker.stop()
        await made.engine.close()


def item(id: str, path: str = "ok", *depends_on: str, **body: Any) -> dict[str, Any]:
    return {"id": id, "method": "POST", "path": path, "body": body, "dependsOn": list(depends_on)}


def says(id: str, *texts: Any) -> dict[str, Any]:
    """An item whose run says these texts."""
    return item(id, "runs", texts=texts)


def batch(*items: dict[str, Any], created: float | None = None) -> Run:
    return Run(
        id=new_run_id(),
        epoch="epoch",
        owner=ANN.owner,
        agent="batch",
        input={"requests": list(items)},
        created=time.time() if created is None else created,
    )


def responses(events: Sequence[Event | Unknown]) -> dict[str, Response]:
    """By id, in the order in which they came. None has two."""
    found = [
        msgspec.convert(event.value, Response)
        for event in events
        if isinstance(event, Data) and event.name == BATCH_RESPONSE
    ]
    by_id = {response.id: response for response in found}
    assert len(by_id) == len(found)
    return by_id


def statuses(events: Sequence[Event | Unknown]) -> dict[str, int]:
    return {id: response.status for id, response in responses(events).items()}


def read(events: Sequence[Event | Unknown], id: str) -> str:
    """What somebody has read of an item who drops all where its text is begun anew."""
    said = ""
    for event in events:
        if isinstance(event, TextDelta) and event.step_id == id:
            said += event.delta
        elif isinstance(event, Data) and event.name == BATCH_RESTARTED and event.value == id:
            said = ""
    return said


def check_form(events: Sequence[Event | Unknown], items: Sequence[Mapping[str, Any]]) -> None:
    """Each item begins once, says its text, has its response, and ends, in this order; what it depends on has ended
    before it begins; at last comes what all came to."""
    place: dict[str, list[tuple[int, str]]] = {each["id"]: [] for each in items}
    for index, event in enumerate(events):
        if isinstance(event, StepStarted):
            place[event.step_id].append((index, "start"))
        elif isinstance(event, TextDelta):
            place[event.step_id].append((index, "text"))
        elif isinstance(event, StepFinished):
            place[event.step_id].append((index, f"end {event.status}"))
        elif isinstance(event, Data) and event.name == BATCH_RESPONSE:
            place[event.value["id"]].append((index, "response"))
    for id, response in responses(events).items():
        words = [word for _, word in place[id] if word != "text"]
        assert words == ["start", "response", "end failed" if response.failed else "end completed"], id
        assert [word for _, word in place[id]][1:-2] == ["text"] * (len(place[id]) - 3)
    assert place.keys() == responses(events).keys()
    for each in items:
        began, status = place[each["id"]][0][0], statuses(events)[each["id"]]
        ends = [place[other][-1][0] for other in each.get("dependsOn", ())]
        if status == 424:
            assert min(ends) < began
        elif status != 504:
            assert all(ended < began for ended in ends)
    (output,) = [event.value for event in events if isinstance(event, Data) and event.name == OUTPUT]
    failed = sum(response.failed for response in responses(events).values())
    assert output == {"succeeded": len(items) - failed, "failed": failed}
    last = [event for event in events if not isinstance(event, RunStarted | RunCompleted)][-1]
    assert isinstance(last, Data)
    assert last.name == OUTPUT


# --- order ------------------------------------------------------------------------------------------------------------


async def test_items_are_called_side_by_side_and_answered_as_they_end() -> None:
    items = [item(str(number), "waits") for number in range(10)]
    async with shop() as it:
        run = batch(*items)
        working = asyncio.create_task(it.attempt(run))
        await until(lambda: it.calls.at_once == 10)
        order = ["7", "0", "9", "3", "1", "8", "2", "6", "4", "5"]
        for left, id in zip(range(9, -1, -1), order, strict=True):
            it.calls.gates[id].set()
            await until(lambda left=left: it.calls.at_once == left)  # type: ignore[misc]
        events = await working
    check_form(events, items)
    assert list(responses(events)) == order
    assert it.calls.made == [str(number) for number in range(10)]


async def test_what_depends_waits_until_the_other_has_its_response() -> None:
    items = [item("d", "ok", "b", "c"), item("b", "waits", "a"), item("c", "waits", "a"), item("a", "waits")]
    async with shop() as it:
        working = asyncio.create_task(it.attempt(batch(*items)))
        for called, opened in ([["a"], ["a"]], [["a", "b", "c"], ["c"]], [["a", "b", "c"], ["b"]]):
            await until(lambda called=called: len(it.calls.made) >= len(called))  # type: ignore[misc]
            await turns(20)  # in which one could be called too early
            assert sorted(it.calls.made) == called
            for id in opened:
                it.calls.gates[id].set()
        check_form(await working, items)
        assert it.calls.made[-1] == "d"


async def test_an_item_is_called_in_the_name_of_who_sent_the_batch() -> None:
    async with shop() as it:
        run = msgspec.structs.replace(batch(item("a"), item("b")), scopes=("x",), credential_id="key_1")
        await it.attempt(run)
        assert it.calls.principals == {
            Principal(subject="ann", scopes=frozenset({"x"}), credential_id="key_1"),
        }


async def test_a_later_body_has_the_results_of_earlier_items() -> None:
    later = {
        **item("later", "ok", "a", "b"),
        "body": {
            "message": {"$text": ["Sum up: ", {"$ref": "a#/body/response"}, " and ", {"$ref": "b#/body/response"}]},
            "status": {"$ref": "a#/status"},
            "schema": {"$ref": "#/$defs/x"},
            "other": {"$ref": "c#/body"},
        },
    }
    async with shop() as it:
        events = await it.attempt(batch(later, says("a", "On", "e"), item("b"), item("c")))
        assert statuses(events)["later"] == 200
        assert it.calls.bodies["later"] == {
            "message": "Sum up: One and b",
            "status": 200,
            "schema": {"$ref": "#/$defs/x"},
            "other": {"$ref": "c#/body"},
        }


async def test_a_reference_that_leads_nowhere_fails_its_item_only() -> None:
    wrong = {**item("wrong", "ok", "a"), "body": {"message": {"$ref": "a#/body/nothing"}}}
    items = [wrong, item("a"), item("after", "ok", "wrong"), item("other")]
    async with shop() as it:
        events = await it.attempt(batch(*items))
        check_form(events, items)
        assert statuses(events) == {"a": 200, "other": 200, "wrong": 422, "after": 424}
        assert responses(events)["wrong"] == refusal("wrong", BatchReferenceInvalid())
        assert "wrong" not in it.calls.made


# --- isolation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("is_refused", 404, "not_found"),
        ("fails", 500, "agent.failed"),
        ("raises", 500, "internal"),
        ("times_out", 500, "internal"),
        ("missing", 500, "internal"),
    ],
)
async def test_an_item_that_fails_takes_only_those_with_it_that_depend_on_it(
    path: str, status: int, code: str, logged: Sequence[Mapping[str, Any]]
) -> None:
    items = [
        item("after all", "ok", "after", "ok"),
        item("ok"),
        item("after", "ok", "wrong", "ok"),
        item("wrong", path),
        item("after ok", "ok", "ok"),
    ]
    async with shop() as it:
        events = await it.attempt(batch(*items))
        check_form(events, items)
        assert statuses(events) == {"ok": 200, "wrong": status, "after ok": 200, "after": 424, "after all": 424}
        assert responses(events)["wrong"].code == code
        assert responses(events)["after"].code == responses(events)["after all"].code == "batch.dependency_failed"
        assert set(it.calls.made) == {"ok", "wrong", "after ok"}
        assert "secret" not in str(events)
    told = [line["item"] for line in logged if line["log_level"] == "error"]
    assert told == (["wrong"] if code == "internal" else []), "the operator finds why"


async def test_what_depends_on_a_failed_item_does_not_wait_for_others() -> None:
    items = [item("after", "ok", "waits", "wrong"), item("waits", "waits"), item("wrong", "fails")]
    async with shop() as it:
        working = asyncio.create_task(it.attempt(batch(*items), until=6))
        events = await asyncio.wait_for(working, 10)
        assert statuses(events) == {"wrong": 500, "after": 424}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InvalidField(errors=[{"pointer": "/x", "detail": "no"}]), {"errors": [{"pointer": "/x", "detail": "no"}]}),
        (BudgetExceeded(budget="conversation"), {"budget": "conversation"}),
        (NotFound(run_id="run_secret", key="secret"), {}),
    ],
)
async def test_an_error_keeps_what_helps_to_mend_it(error: HeadraceError, told: dict[str, Any]) -> None:
    class Refuses(Calls):
        async def ok(self, principal: Principal, item: Item, birth: Birth) -> Response:
            raise error

    async with shop() as it:
        it.calls = Refuses(it.runs)
        (response,) = responses(await it.attempt(batch(item("a")))).values()
        assert msgspec.to_builtins(response) == {
            "id": "a",
            "status": error.status,
            "error": error.message,
            "code": error.code,
            **told,
        }


async def test_input_that_is_none_of_a_batch_is_refused() -> None:
    async with shop() as it:
        for input_ in ({}, {"requests": 1}, {"requests": [{"id": "a"}]}):
            with pytest.raises(InvalidField):
                await it.attempt(msgspec.structs.replace(batch(), input=input_))


# --- text -------------------------------------------------------------------------------------------------------------


async def test_the_text_of_each_run_is_told_under_its_item_before_its_response() -> None:
    items = [
        says("a", "One", " two"),
        item("none"),
        says("b", "Eins", "~", "Zw", "ei"),
        says("fails", "So", " far", "!"),
    ]
    async with shop() as it:
        run = batch(*items)
        events = await it.attempt(run)
        check_form(events, items)
        assert statuses(events) == {"a": 200, "none": 200, "b": 200, "fails": 500}
        assert [read(events, each["id"]) for each in items] == ["One two", "", "Zwei", "So far"]
        assert {event.agent for event in events if isinstance(event, TextDelta)} == {"child"}
        assert [responses(events)[id].run_id for id in ("a", "b", "fails")] == [child_id(run.id, n) for n in (1, 3, 4)]


async def test_a_run_that_is_only_started_has_its_response_at_once_and_goes_on_without_the_batch() -> None:
    items = [item("starts", "only_starts", texts=["One", "|gate", " two"]), item("after", "ok", "starts")]
    async with shop() as it:
        run = batch(*items)
        events = await asyncio.wait_for(it.attempt(run), 10)
        check_form(events, items)
        assert statuses(events) == {"starts": 201, "after": 200}
        (child,) = (await it.children(run)).values()
        assert child.state == "running"
        it.gates["gate"].set()
        assert (await it.outcome(child.run.id)).output == "One two"


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("error", [LogCorrupt(), PositionGone(), RuntimeError("a secret")])
async def test_a_response_holds_though_its_text_cannot_be_read(at_once: bool, error: Exception) -> None:
    class Unreadable(Runs):
        def follow(self, head: Head, after: Position | None = None, *, live: bool) -> AsyncIterator[Sequence[Block]]:
            if at_once:
                raise error
            return self._broken(super().follow(head, after, live=live))

        async def _broken(self, batches: AsyncIterator[Sequence[Block]]) -> AsyncGenerator[Sequence[Block], None]:
            yield await anext(batches)
            raise error

    items = [says("a", "One"), item("after", "ok", "a"), says("b", "Two", "!")]
    async with shop() as it:
        it.runs = Unreadable(it.engine, it.agents)
        it.calls = Calls(it.runs)
        events = await it.attempt(batch(*items))
        check_form(events, items)
        assert statuses(events) == {"a": 200, "after": 200, "b": 500}
        assert "secret" not in str(events)


async def test_a_run_that_was_deleted_meanwhile_was_answered_nevertheless() -> None:
    class Forgets(Calls):
        async def runs(self, principal: Principal, item: Item, birth: Birth) -> Response:
            response = await super().runs(principal, item, birth)
            await self._runs.delete(principal, str(response.run_id))
            return response

    items = [says("a", "One"), item("after", "ok", "a")]
    async with shop() as it:
        it.calls = Forgets(it.runs)
        events = await it.attempt(batch(*items))
        check_form(events, items)
        assert statuses(events) == {"a": 200, "after": 200}


async def test_many_long_texts_at_once_come_whole() -> None:
    """More than the batch may be ahead of its log."""
    words = [f"{number} " for number in range(300)]
    items = [says(str(number), *words) for number in range(10)]
    after = [item(f"after {number}", "ok", str(number)) for number in range(10)]
    async with shop() as it:
        events = await it.attempt(batch(*items, *after))
        check_form(events, [*items, *after])
        assert {read(events, each["id"]) for each in items} == {"".join(words)}


# --- time -------------------------------------------------------------------------------------------------------------


def test_what_has_no_response_in_time_is_answered_so_and_its_run_cancelled() -> None:
    async def story() -> None:
        items = [
            says("hangs", "So", " far", "|never"),
            item("hangs, no run", "hangs"),
            item("after", "ok", "hangs"),
            item("after after", "ok", "after"),
            item("ok"),
            item("just in time", "lasts", seconds=TIMEOUT - 0.001),
            item("just too late", "lasts", seconds=TIMEOUT + 0.001),
            item("starts", "only_starts", texts=[100, "late"]),
        ]
        async with shop() as it:
            run = batch(*items)
            events = await it.attempt(run)
            assert now() == pytest.approx(TIMEOUT, abs=0.01)
            check_form(events, items)
            answers = responses(events)
            late = {"hangs", "hangs, no run", "after", "after after", "just too late"}
            assert {id for id, response in answers.items() if response.failed} == late
            assert {(answers[id].status, answers[id].code) for id in late} == {(504, "batch.timeout")}
            assert answers["hangs"].run_id == child_id(run.id, 1)
            assert read(events, "hangs") == "So far"
            assert it.calls.made == ["hangs", "hangs, no run", "ok", "just in time", "just too late", "starts"]
            children = await it.children(run)
            outcome = await it.outcome(children[1].run.id)
            assert isinstance(outcome, RunCancelled)
            assert outcome.by == "batch timeout"
            assert (await it.outcome(children[8].run.id)).output == "late", "what has its response goes on"

    in_no_time(story())


def test_a_run_that_is_just_being_made_when_the_time_is_over_does_not_go_on() -> None:
    async def story() -> None:
        async with shop() as it:
            it.engine.gate.clear()
            run = batch(says("a", "|never"))
            working = asyncio.create_task(it.attempt(run))
            await it.engine.making.wait()
            await asyncio.sleep(TIMEOUT + 1)
            assert not working.done()
            it.engine.gate.set()
            events = await working
            assert statuses(events) == {"a": 504}
            (child,) = (await it.children(run)).values()
            assert isinstance(await it.outcome(child.run.id), RunCancelled)

    in_no_time(story())


@pytest.mark.parametrize("order", [1, -1])
def test_after_a_crash_the_time_goes_on_from_when_the_batch_was_sent(order: int) -> None:
    """All runs of it are cancelled that have no response then, whatever they would have waited for."""

    async def story() -> None:
        items = [item("a"), {**says("b", "|never"), "dependsOn": ["a"]}, says("c", "|never"), item("d")][::order]
        async with shop() as it:
            run = batch(*items, created=time.time() - TIMEOUT - 1)
            first = await it.attempt(msgspec.structs.replace(run, created=time.time()), until=8)
            assert statuses(first) == {"a": 200, "d": 200}
            began = now()
            second = await it.attempt(run, 2, first)
            assert now() - began < 5
            assert statuses(second) == {"b": 504, "c": 504}
            check_form([*first, *second], items)
            children = await it.children(run)
            assert len(children) == 2
            for child in children.values():
                assert isinstance(await it.outcome(child.run.id), RunCancelled)

    in_no_time(story())


def test_a_clock_that_was_set_back_gives_no_more_time_than_there_is() -> None:
    async def story() -> None:
        async with shop() as it:
            run = batch(item("a", "hangs"), created=time.time() + 86_400)
            assert statuses(await it.attempt(run, 2)) == {"a": 504}
            assert now() == pytest.approx(TIMEOUT, abs=0.01)

    in_no_time(story())


# --- cancel -----------------------------------------------------------------------------------------------------------


async def test_a_cancel_ends_the_runs_of_the_items_and_calls_no_more() -> None:
    items = [
        says("runs", "So", " far", "|never"),
        item("done"),
        item("after", "runs", "runs"),
        item("after started", "runs", "waits"),
        item("waits", "waits"),
        item("starts", "only_starts", texts=["|never"]),
    ]
    async with shop() as it:
        run = batch(*items)
        await it.begun(run)
        await it.says(run, lambda events: read(events, "runs") == "So far" and len(statuses(events)) == 2)
        assert await it.runs.cancel(ANN, run.id) == "requested"
        await it.says(run, lambda events: "runs" in statuses(events))
        it.calls.gates["waits"].set()
        outcome = await it.outcome(run.id)
        assert isinstance(outcome, RunCancelled)
        assert outcome.by == "ann"
        events = await it.events(run.id)
        assert statuses(events) == {
            "done": 200,
            "starts": 201,
            "runs": 499,
            "after": 424,
            "waits": 200,
            "after started": 499,
        }
        assert it.calls.made == ["runs", "done", "waits", "starts"]
        children = await it.children(run)
        ends = [await it.outcome(child.run.id) for child in children.values()]
        assert [(type(each), each.by) for each in ends] == [(RunCancelled, "batch")] * 2


async def test_a_run_that_is_just_being_made_is_cancelled_with_the_batch() -> None:
    async with shop() as it:
        it.engine.gate.clear()
        run = batch(says("a", "|never"), says("b", "|never"))
        await it.begun(run)
        await it.engine.making.wait()
        await it.runs.cancel(ANN, run.id)
        await turns(20)  # in which the agent hears of it
        it.engine.gate.set()
        assert isinstance(await it.outcome(run.id), RunCancelled)
        for child in (await it.children(run)).values():
            assert isinstance(await it.outcome(child.run.id), RunCancelled)


async def test_an_item_that_comes_to_its_run_after_the_cancel_makes_none() -> None:
    class Late(Calls):
        async def runs(self, principal: Principal, item: Item, birth: Birth) -> Response:
            await self.gates[item.id].wait()
            return await super().runs(principal, item, birth)

    async with shop() as it:
        it.calls = Late(it.runs)
        run = batch(says("a", "|never"))
        await it.begun(run)
        await until(lambda: bool(it.calls.made))
        await it.runs.cancel(ANN, run.id)
        await turns(10)  # in which the agent hears of it
        it.calls.gates["a"].set()
        assert isinstance(await it.outcome(run.id), RunCancelled)
        assert statuses(await it.events(run.id)) == {"a": 499}
        assert await it.children(run) == {}


async def test_a_cancel_after_a_crash_ends_what_an_earlier_attempt_had_started() -> None:
    async with shop() as it:
        run = batch(says("a", "|never"), {**says("b", "|never"), "dependsOn": ["c"]}, item("c"))
        first = await it.attempt(run, until=5)
        assert len(await it.children(run)) == 2
        agent = it.agent()
        events: list[Any] = []

        async def second() -> None:
            async for some in agent.run(RunContext(run=run, attempt=2, history=first)):
                events.extend(some if isinstance(some, list) else [some])

        working = asyncio.create_task(second())
        await asyncio.sleep(0)
        await agent.cancel()
        await working
        assert statuses(events) == {"a": 499, "b": 499}
        for child in (await it.children(run)).values():
            assert isinstance(await it.outcome(child.run.id), RunCancelled)


async def test_a_batch_that_is_cancelled_before_it_begins_calls_nothing() -> None:
    async with shop() as it:
        agent = it.agent()
        await agent.cancel()
        await it.workers[0].stop()
        run = batch(item("a"))
        await it.begun(run)
        await it.runs.cancel(ANN, run.id)
        assert isinstance(await it.outcome(run.id), RunCancelled)
        assert it.calls.made == []


# --- crashes ----------------------------------------------------------------------------------------------------------

STORY = [
    item("plain"),
    says("one", "Ha", "|one", "llo ", "Welt"),
    {**says("two", "Zw", "~", "Tw", "|two", "o"), "dependsOn": ["one", "plain"]},
    says("breaks", "So", "|breaks", " far", "!"),
    item("refused", "is_refused"),
    item("after", "ok", "breaks"),
    {
        **item("sum", "ok", "one", "two"),
        "body": {"m": {"$text": [{"$ref": "one#/body/response"}, {"$ref": "two#/status"}]}},
    },
]
SAID = {"plain": "", "one": "Hallo Welt", "two": "Two", "breaks": "So far", "refused": "", "after": "", "sum": ""}
ANSWERED = {"plain": 200, "one": 200, "two": 200, "breaks": 500, "refused": 404, "after": 424, "sum": 200}


def is_right(events: Sequence[AnyEvent], it: Shop, run: Run) -> None:
    check_form(events, STORY)
    assert statuses(events) == ANSWERED
    assert {id: read(events, id) for id in SAID} == SAID
    assert it.engine.made.count(child_id(run.id, 2)) == 1
    assert sorted(it.engine.made) == sorted(set(it.engine.made)) == sorted(child_id(run.id, n) for n in (2, 3, 4))
    assert it.calls.bodies["sum"] == {"m": "Hallo Welt200"}


def open_gates(it: Shop) -> None:
    for gate in ("one", "two", "breaks"):
        it.gates[gate].set()


async def test_after_a_crash_at_any_event_all_is_answered_once_and_told_once() -> None:
    async with shop() as it:
        open_gates(it)
        run = batch(*STORY)
        whole = await it.attempt(run)
        is_right(whole, it, run)
    for until in range(len(whole) + 1):
        async with shop() as it:
            open_gates(it)
            run = batch(*STORY)
            first = await it.attempt(run, until=until)
            second = await it.attempt(run, 2, [RunStarted(agent="batch", input_digest=""), *first])
            is_right([*first, *second], it, run)


@pytest.mark.parametrize("until", range(12))
async def test_after_a_crash_while_its_runs_go_on(until: int) -> None:
    """They stand still while the batch dies, and end before, or after, the next attempt begins."""
    for gates_open_first in (True, False):
        async with shop() as it:
            run = batch(*STORY)
            first = await it.attempt(run, until=min(until, 9))
            if gates_open_first:
                open_gates(it)
                for child in (await it.children(run)).values():
                    await it.outcome(child.run.id)
            working = asyncio.create_task(it.attempt(run, 2, first))
            await turns(until * 3)
            open_gates(it)
            is_right([*first, *await working], it, run)


async def test_after_crash_upon_crash() -> None:
    for step in (1, 2, 3):
        async with shop() as it:
            open_gates(it)
            run = batch(*STORY)
            log: list[Any] = []
            attempt = 0
            while not any(isinstance(event, Data) and event.name == OUTPUT for event in log):
                attempt += 1
                log += await it.attempt(run, attempt, list(log), until=step)
                log.append(AttemptStarted(attempt=attempt + 1, mode="continue"))
            rest = await it.attempt(run, attempt + 1, log)
            assert rest == []
            is_right([event for event in log if not isinstance(event, AttemptStarted)], it, run)


async def test_an_item_that_has_its_response_is_not_called_again() -> None:
    async with shop() as it:
        run = batch(item("a"), item("b", "waits"), item("c", "ok", "a", "b"))
        first = await it.attempt(run, until=4)
        assert statuses(first) == {"a": 200}
        it.calls.made.clear()
        it.calls.gates["b"].set()
        assert statuses(await it.attempt(run, 2, first)) == {"b": 200, "c": 200}
        assert it.calls.made == ["b", "c"]


async def test_a_server_that_is_about_to_stop_gives_no_answer_and_the_next_one_goes_on() -> None:
    async with shop() as it:
        run = batch(item("a"), says("b", "Hello"))
        it.calls.draining = True
        await it.begun(run)
        await it.says(run, lambda events: bool(statuses(events)) and "b" in it.calls.made)
        await it.workers[0].stop()
        assert (await it.engine.head(run.id)).state == "queued"
        assert statuses(await it.events(run.id)) == {"a": 200}
        it.calls.draining = False
        it.worker(coordinators=("batch",))
        assert isinstance(await it.outcome(run.id), RunCompleted)
        events = await it.events(run.id)
        assert statuses(events) == {"a": 200, "b": 200}
        assert it.calls.made == ["a", "b", "b"]
        check_form([event for event in events if not isinstance(event, AttemptStarted)], run.input["requests"])


async def test_a_batch_that_is_handed_over_makes_no_run_again() -> None:
    async with shop() as it:
        run = batch(says("a", "Hel", "|gate", "lo"), says("b", "Hi"))
        await it.begun(run)
        await it.says(run, lambda events: statuses(events) == {"b": 200})
        lease = await _stolen(it, run)
        it.gates["gate"].set()
        outcome = await it.outcome(run.id)
        assert (type(outcome), lease) == (RunCompleted, 2)
        events = await it.events(run.id)
        assert read(events, "a") == "Hello"
        assert sorted(it.engine.made) == [run.id, child_id(run.id, 1), child_id(run.id, 2)]


async def _stolen(it: Shop, run: Run) -> int:
    """The attempt number after the worker has lost its lease to itself."""
    execution = it.workers[0]._executions[run.id]
    await it.engine.release(execution.lease)
    await it.until(run.id, "attempt.started")
    return (await it.engine.head(run.id)).attempt


async def test_nobody_else_can_be_given_a_child() -> None:
    async with shop() as it:
        run = batch(says("a", "Hello"))
        await it.attempt(run)
        with pytest.raises(NotFound):
            await it.runs.get(BOB, child_id(run.id, 1))
        assert await it.runs.list(BOB, limit=9, parent=run.id) == []


# --- any batch --------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    path: str
    seconds: int
    depends_on: frozenset[int]


class Fate(NamedTuple):
    status: int
    at: float


LIMIT = 20.5
"""Seconds: no sum of whole ones."""
FAILED = {"is_refused": 404, "fails": 500, "raises": 500, "times_out": 500}
PATHS = ["ok", "lasts", "lasts", "runs", "runs", "hangs", "breaks", "slow run", *FAILED]


@st.composite
def plans(draw: st.DrawFn) -> list[Plan]:
    """Items in any order, of which none waits for itself."""
    count = draw(st.integers(1, 9))
    rank = draw(st.permutations(range(count)))
    made = []
    for number in range(count):
        earlier = [other for other in range(count) if rank[other] < rank[number]]
        depends_on = draw(st.frozensets(st.sampled_from(earlier), max_size=3)) if earlier else frozenset()
        made.append(Plan(draw(st.sampled_from(PATHS)), draw(st.integers(1, 12)), depends_on))
    return made


def fates(plan: Sequence[Plan]) -> dict[int, Fate]:
    """What has to become of each item, and when."""
    known: dict[int, Fate] = {}
    while len(known) < len(plan):
        for number, each in enumerate(plan):
            if number not in known and each.depends_on <= known.keys():
                known[number] = _fate(each, [known[other] for other in each.depends_on])
    return known


def _fate(each: Plan, earlier: Sequence[Fate]) -> Fate:
    failed = min((other.at for other in earlier if other.status >= 400), default=None)
    start = max((other.at for other in earlier), default=0.0)
    if failed is not None:
        return Fate(424, failed) if failed < LIMIT else Fate(504, LIMIT)
    ended = start + (each.seconds if each.path in ("lasts", "slow run", "breaks") else 0)
    if each.path == "hangs" or ended > LIMIT:
        return Fate(504, LIMIT)
    return Fate(FAILED.get(each.path, 500 if each.path == "breaks" else 200), ended)


def as_item(number: int, each: Plan) -> dict[str, Any]:
    depends_on = [str(other) for other in sorted(each.depends_on)]
    body: dict[str, Any] = {"seconds": each.seconds}
    path = each.path
    if path in ("runs", "slow run", "breaks"):
        wait: list[Any] = [] if path == "runs" else [each.seconds]
        path, body = "runs", {"texts": [f"{number}a", *wait, *(["!"] if each.path == "breaks" else []), f"{number}b"]}
    return {**item(str(number), path, *depends_on), "body": body}


def text_of(number: int, each: Plan, fate: Fate) -> str:
    if each.path not in ("runs", "slow run", "breaks") or fate.status == 424:
        return ""
    return f"{number}a{number}b" if fate.status == 200 else f"{number}a"


@given(plans())
@settings(max_examples=200)
def test_any_batch_comes_to_what_it_has_to(plan: list[Plan]) -> None:
    async def story() -> None:
        items = [as_item(number, each) for number, each in enumerate(plan)]
        right = fates(plan)
        async with shop(LIMIT) as it:
            run = batch(*items)
            await it.begun(run)
            outcome = await it.outcome(run.id)
            assert isinstance(outcome, RunCompleted)
            assert now() == pytest.approx(max(fate.at for fate in right.values()), abs=0.1)
            events = await it.events(run.id)
            check_form(events, items)
            assert {int(id): status for id, status in statuses(events).items()} == {
                number: fate.status for number, fate in right.items()
            }
            called = {int(id) for id in it.calls.made}
            assert len(it.calls.made) == len(called)
            for number, (each, fate) in enumerate(zip(plan, (right[n] for n in range(len(plan))), strict=True)):
                starts = max((right[other].at for other in each.depends_on), default=0.0)
                assert (number in called) == (fate.status != 424 and starts < LIMIT)
                if number in called or fate.status == 424:
                    assert read(events, str(number)) == text_of(number, each, fate)
            for number, child in (await it.children(run)).items():
                late = right[number - 1].status == 504
                assert isinstance(await it.outcome(child.run.id), RunCancelled) == late

    in_no_time(story())


@given(plans(), st.lists(st.integers(0, 12), max_size=4))
@settings(max_examples=150)
def test_any_batch_comes_to_the_same_after_any_crashes(plan: list[Plan], crashes: list[int]) -> None:
    """But for the time: an attempt that goes on has what is left of it, and the clock on the wall stands still here."""
    calm = [each._replace(path="lasts" if each.path == "hangs" else each.path, seconds=1) for each in plan]

    async def story() -> None:
        items = [as_item(number, each) for number, each in enumerate(calm)]
        right = fates(calm)
        async with shop() as it:
            run = batch(*items)
            log: list[Any] = []
            for attempt, until in enumerate(crashes, 1):
                log += await it.attempt(run, attempt, list(log), until=until)
            log += await it.attempt(run, len(crashes) + 1, list(log))
            check_form(log, items)
            assert {int(id): status for id, status in statuses(log).items()} == {
                number: fate.status for number, fate in right.items()
            }
            for number, each in enumerate(calm):
                assert read(log, str(number)) == text_of(number, each, right[number])
            assert len(it.engine.made) == len(set(it.engine.made))

    in_no_time(story())
