"""The client and its runs, against a real server."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from tests.server.serving import PATIENCE, Serving, eventually, settings

from headrace.client import AsyncClient
from headrace.errors import (
    AgentFailed,
    AuthInvalid,
    AuthMissing,
    Cancelled,
    ForeignPosition,
    IdempotencyMismatch,
    InvalidField,
    InvalidPosition,
    NotFound,
    PositionAhead,
    PositionGone,
    RunActive,
)
from headrace.events import RunCancelled, RunStarted, TextDelta, kind_of
from headrace.position import Position
from headrace.server.auth import KeyFile

TEXTS = ["Grüße", " ", "世界 🎏\u2028", "\x1b[2J"]


async def test_ask_and_stream(server: Serving) -> None:
    async with AsyncClient(server.url) as client:
        assert await client.ready()
        assert await client.ask("hello") == "hello"
        assert [text async for text in client.stream("hello")] == ["hello"]
        run = await client.start(input={"texts": TEXTS}, conversation_id="talk")
        assert [text async for text in run.text()] == TEXTS
        assert (await run.result()).output == "".join(TEXTS)
        head = await run.head()
        assert (head.id, head.state, head.conversation_id) == (run.id, "completed", "talk")


async def test_events_go_on_after_any_position(server: Serving) -> None:
    async with AsyncClient(server.url) as client:
        run = await client.start(input={"texts": TEXTS})
        events = [logged async for logged in run.events()]
        assert isinstance(events[0].event, RunStarted)
        assert kind_of(events[-1].event) == "run.completed"
        assert [logged async for logged in run.events(live=False)] == events
        for number, (position, _) in enumerate(events, 1):
            assert [logged async for logged in run.events(position)] == events[number:]
            assert [logged async for logged in run.events(position, live=False)] == events[number:]


@pytest.mark.parametrize("live", [True, False])
async def test_kinds_are_the_only_ones_given(server: Serving, live: bool) -> None:
    async with AsyncClient(server.url) as client:
        run = client.run(await server.finished(texts=TEXTS))
        deltas = [event async for _, event in run.events(kinds=["text.delta"], live=live)]
        assert [event.delta for event in deltas if isinstance(event, TextDelta)] == TEXTS
        assert len(deltas) == len(TEXTS)
        with pytest.raises(InvalidField):
            await anext(run.events(kinds=["text.dalta"], live=live))


async def test_pages_of_a_log_longer_than_one(server: Serving) -> None:
    async with AsyncClient(server.url) as client:
        run = client.run(await server.finished(texts=["x"] * 2100))
        offsets = [Position.parse(position).offset async for position, _ in run.events(live=False)]
        assert offsets == list(range(1, len(offsets) + 1))
        assert len(offsets) > 2100


async def test_what_there_is_now_does_not_wait(server: Serving) -> None:
    async with AsyncClient(server.url) as client:
        run = await client.start(agent="stall")
        async with asyncio.timeout(PATIENCE), aclosing(run.text()) as texts:
            assert await anext(texts) == "before"
            kinds = [kind_of(event) async for _, event in run.events(live=False)]
        assert kinds[-1] == "text.delta"


async def test_cancel_ends_the_stream_and_is_an_error_of_the_answer(server: Serving) -> None:
    async with AsyncClient(server.url) as client:
        run = await client.start(agent="stall")
        async with aclosing(run.text()) as texts:
            assert await anext(texts) == "before"
            with pytest.raises(RunActive):
                await run.delete()
            assert (await run.cancel()).cancel_requested
            with pytest.raises(Cancelled):
                await anext(texts)
        with pytest.raises(Cancelled):
            await run.result()
        assert [type(event) async for _, event in run.events()][-1] is RunCancelled
        assert (await run.cancel()).state == "cancelled"
        await run.delete()
        with pytest.raises(NotFound):
            await run.head()


async def test_leaving_a_stream_leaves_the_run_alone(server: Serving) -> None:
    async with AsyncClient(server.url) as client:
        run = await client.start(agent="stall")
        async with aclosing(run.text()) as texts:
            assert await anext(texts) == "before"
        server.agents.gate.set()
        assert (await run.result()).output == "beforeafter"


async def test_a_run_that_fails_raises_its_error(server: Serving) -> None:
    async with AsyncClient(server.url) as client:
        run = await client.start(agent="fail", input={"texts": ["some"]})
        with pytest.raises(AgentFailed):
            await run.result()
        texts = run.text()
        assert await anext(texts) == "some"
        with pytest.raises(AgentFailed):
            await anext(texts)


async def test_an_idempotency_key_names_one_run(server: Serving) -> None:
    async with AsyncClient(server.url) as client:
        first = await client.start("a", idempotency_key="k")
        assert (await client.start("a", idempotency_key="k")).id == first.id
        assert (await client.start("a")).id != first.id
        with pytest.raises(IdempotencyMismatch):
            await client.start("b", idempotency_key="k")


async def test_runs_are_listed_over_pages(server: Serving) -> None:
    async with AsyncClient(server.url) as client:
        started = [(await client.start(str(number))).id for number in range(60)]
        await asyncio.gather(*(client.run(run_id).result() for run_id in started))
        assert [info.id async for info in client.runs()] == started[::-1]
        assert [info.id async for info in client.runs("failed")] == []


async def test_the_feed_has_all_runs_and_goes_on(server: Serving) -> None:
    async with AsyncClient(server.url) as client, aclosing(client.feed(kinds=["run.completed"])) as feed:
        waiting = asyncio.ensure_future(anext(feed))
        await eventually(lambda: len(server.headrace.open_streams._streams) == 1)
        first = await client.start("a")
        position, run_id, event = await waiting
        assert (run_id, kind_of(event)) == (first.id, "run.completed")
        second = await client.start("b")
        assert (await anext(feed)).run_id == second.id
        async with aclosing(client.feed(position)) as later:
            assert (await anext(later)).run_id == second.id


async def test_positions_that_cannot_be_served(server: Serving) -> None:
    async with AsyncClient(server.url) as client:
        run, other = client.run(await server.finished()), client.run(await server.finished())
        position = Position.parse((await run.head()).position)
        for after, error in (
            ("nonsense\r\nX: y", InvalidPosition),
            ((await other.head()).position, ForeignPosition),
            (str(position._replace(offset=10_000)), PositionAhead),
        ):
            for live in (True, False):
                with pytest.raises(error):
                    await anext(run.events(after, live=live))
        assert [logged async for logged in run.events(str(position))] == []
        await server.headrace.engine.trim(max_bytes=0)
        with pytest.raises(PositionGone) as caught:
            await run.result()
        assert caught.value.extra["first_available"] == (await run.head()).first_available


@pytest.mark.parametrize("run_id", ["run_unknown", "..", "../../health/ready", "a/b?c#d", "ä"])
async def test_a_run_that_is_not_there(server: Serving, run_id: str) -> None:
    async with AsyncClient(server.url) as client:
        for call in (client.run(run_id).head(), client.run(run_id).result(), client.run(run_id).cancel()):
            with pytest.raises(NotFound):
                await call


async def test_credentials(tmp_path: Path) -> None:
    secret = KeyFile(tmp_path / "auth.json").create("ann").secret
    async with Serving(settings(tmp_path)).open() as server:
        for token, error in ((None, AuthMissing), ("hr_wrong", AuthInvalid)):
            async with AsyncClient(server.url, token=token) as client:
                with pytest.raises(error):
                    await client.ask("hello")
        async with AsyncClient(server.url, token=secret) as client:
            assert await client.ask("hello") == "hello"
