"""Coming back: PROMISE rows 64 to 72. Whatever was seen before, what follows is the exact rest."""

import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from tests.server.serving import (
    JSON,
    NDJSON,
    SSE,
    Frame,
    Serving,
    Start,
    eventually,
    offsets,
    parse_sse,
    read_until,
    settings,
)

from headrace.errors import NotFound
from headrace.identity import LOCAL
from headrace.runs import new_run_id
from headrace.server.auth import KeyFile

VIEWS = pytest.mark.parametrize("view", ["native", "agent_chat"])
TEXTS = ["Hel", "lo, ", "x" * 250, "wörld\u2028", "y" * 101]
"""Some are longer than a token of `agent_chat` may be."""


async def look(server: Serving, run_id: str) -> Any:
    return (await server.ask("GET", f"/api/runs/{run_id}")).json()


async def pages(server: Serving, run_id: str, limit: int, query: str = "", after: str | None = None) -> list[Frame]:
    """All events, read as JSON page by page."""
    frames: list[Frame] = []
    while True:
        position = "" if after is None else f"&after={after}"
        answer = await server.events(run_id, f"?limit={limit}{query}{position}", **JSON)
        page = answer.json()
        assert len(page["events"]) <= limit
        frames += [Frame(each["id"], each["data"]) for each in page["events"]]
        after = page["next"]
        if page["end"]:
            return frames


# --- exactly the rest -------------------------------------------------------------------------------------------------


@VIEWS
@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_from_every_position_the_exact_rest(start: Start, engine: str, view: str) -> None:
    server = await start(engine=engine)
    run_id = await server.finished(texts=TEXTS)
    whole = await server.frames(run_id, f"?view={view}")
    assert len({frame.id for frame in whole}) == len(whole) > 8
    if view == "agent_chat":
        assert any("." in str(frame.id) for frame in whole), "some positions lie inside an event"
    for number, frame in enumerate(whole[:-1], 1):
        for read in (
            server.frames(run_id, f"?view={view}&after={frame.id}"),
            server.frames(run_id, f"?view={view}", **SSE, **{"Last-Event-ID": str(frame.id)}),
            server.frames(run_id, f"?view={view}&after={frame.id}", **NDJSON),
            pages(server, run_id, 1000, f"&view={view}", frame.id),
        ):
            assert await read == whole[number:]


@VIEWS
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
async def test_pages_of_any_size_give_the_same_events(server: Serving, view: str, limit: int) -> None:
    run_id = await server.finished(texts=TEXTS)
    whole = await server.frames(run_id, f"?view={view}")
    assert await pages(server, run_id, limit, f"&view={view}") == whole


async def test_a_page_of_a_run_that_goes_on(server: Serving) -> None:
    response = await server.stalled()
    run_id = response.headers["X-Run-Id"]
    page = (await server.events(run_id, **JSON)).json()
    assert not page["end"]
    assert page["events"][-1]["data"]["delta"] == "before"
    again = (await server.events(run_id, f"?after={page['next']}", **JSON)).json()
    assert again == {"events": [], "next": page["next"], "end": False}
    server.agents.gate.set()
    await response.read()
    rest = (await server.events(run_id, f"?after={page['next']}", **JSON)).json()
    assert rest["end"]
    assert [event["data"]["kind"] for event in rest["events"]] == ["text.delta", "message.end", "run.completed"]


@VIEWS
async def test_live_from_every_position_that_was_seen(server: Serving, view: str) -> None:
    """Readers that were cut while the run goes on, each at another frame."""
    response = await server.stalled()
    run_id = response.headers["X-Run-Id"]
    page = (await server.events(run_id, f"?view={view}", **JSON)).json()
    seen = [Frame(event["id"], event["data"]) for event in page["events"]]
    readers = [asyncio.create_task(server.frames(run_id, f"?view={view}&after={frame.id}")) for frame in seen]
    await eventually(lambda: server.headrace.telemetry.open_streams["sse"] == len(seen) + 1)
    server.agents.gate.set()
    rests = [await reader for reader in readers]
    await response.read()
    whole = await server.frames(run_id, f"?view={view}")
    assert rests == [whole[number:] for number in range(1, len(seen) + 1)]


async def test_a_run_survives_its_reader(server: Serving) -> None:
    response = await server.stalled()
    run_id = response.headers["X-Run-Id"]
    response.close()
    await eventually(lambda: server.headrace.telemetry.cuts == 1)
    assert (await look(server, run_id))["state"] == "running"
    server.agents.gate.set()
    assert (await server.frames(run_id))[-1].data["output"] == "beforeafter"


KINDS = ["text.delta", "message.end", "run.completed,message.start", "run.failed"]


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("accept", [SSE, NDJSON, JSON])
async def test_a_filter_holds_from_every_position(server: Serving, kinds: str, accept: dict[str, str]) -> None:
    """What is asked for, and always the end: a stream without it could not be told from one that was cut."""
    run_id = await server.finished(texts=TEXTS)
    everything = await server.frames(run_id)
    wanted = {*kinds.split(","), "run.completed"}
    for start in range(len(everything)):
        after = f"&after={everything[start - 1].id}" if start else ""
        expected = [frame for frame in everything[start:] if frame.data["kind"] in wanted]
        if accept is JSON:
            assert await pages(server, run_id, 2, f"&kinds={kinds}", everything[start - 1].id if start else None) == (
                expected
            )
        else:
            assert await server.frames(run_id, f"?kinds={kinds}{after}", **accept) == expected


async def test_a_filter_of_a_live_stream(server: Serving) -> None:
    response = await server.stalled()
    run_id = response.headers["X-Run-Id"]
    reading = asyncio.create_task(server.frames(run_id, "?kinds=message.end"))
    await eventually(lambda: server.headrace.telemetry.open_streams["sse"] == 2)
    server.agents.gate.set()
    assert [frame.data["kind"] for frame in await reading] == ["message.end", "run.completed"]
    await response.read()


# --- the feed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_the_feed_goes_on_after_a_cut(start: Start, engine: str) -> None:
    server = await start(engine=engine)
    feed = await server.begin("/api/feed")
    first = await server.finished(texts=["a", "b"])
    got = await read_until(feed, b"run.completed")
    feed.close()
    second = await server.finished(texts=["c"])

    seen = parse_sse(got)
    assert {frame.data["run_id"] for frame in seen} == {first}
    assert offsets(seen) == list(range(1, len(seen) + 1))
    for number in (1, len(seen) // 2, len(seen)):
        again = await server.begin("/api/feed", headers={**SSE, "Last-Event-ID": str(seen[number - 1].id)})
        rest = parse_sse(await read_until(again, b'"output":"c"'))
        again.close()
        assert rest[: len(seen) - number] == seen[number:]
        assert {frame.data["run_id"] for frame in rest[len(seen) - number :]} == {second}


@pytest.mark.parametrize("after", ["zzzzzz-1", "abc"])
async def test_the_feed_refuses_positions_of_others(server: Serving, after: str) -> None:
    answer = await server.ask("GET", f"/api/feed?after={after}")
    assert answer.problem == ((409, "cursor.foreign") if "-" in after else (400, "cursor.invalid"))


# --- rows 64 and 65: not yours, or not there --------------------------------------------------------------------------


@pytest.fixture
async def two(start: Start, tmp_path: Path) -> tuple[Serving, dict[str, str], dict[str, str]]:
    """A server with two callers."""
    keys = KeyFile(tmp_path / "auth.json")
    ann, bob = ({"Authorization": f"Bearer {keys.create(name).secret}"} for name in ("ann", "bob"))
    return await start(), ann, bob


async def test_row_64_the_run_of_somebody_else(two: Any) -> None:
    server, ann, bob = two
    run_id = (await server.post("/api/runs", {"input": {}}, headers=ann)).json()["id"]
    unknown = new_run_id()
    position = "abcdef-1"
    for method, path in (
        ("GET", "/api/runs/{}"),
        ("GET", "/api/runs/{}/events"),
        ("GET", f"/api/runs/{{}}/events?after={position}"),
        ("GET", "/api/runs/{}/events?view=agent_chat"),
        ("POST", "/api/runs/{}/cancel"),
        ("DELETE", "/api/runs/{}"),
        ("GET", "/api/runs?before={}"),
    ):
        answers = [await server.ask(method, path.format(id_), headers=bob) for id_ in (run_id, unknown)]
        assert {answer.problem for answer in answers} == {(404, "not_found")}
        bodies = {json.dumps({**answer.json(), "instance": ""}) for answer in answers}
        assert len(bodies) == 1
        assert {tuple(sorted(answer.headers.keys())) for answer in answers} == {tuple(sorted(answers[0].headers))}
    assert (await server.ask("GET", "/api/runs", headers=bob)).json()["runs"] == []
    assert (await server.events(run_id, **ann)).status == 200, "and nothing has happened to it"


async def test_row_64_ten_thousand_guesses(server: Serving) -> None:
    real = {await server.finished() for _ in range(20)}
    runs = server.headrace.runs
    letters = "0123456789abcdefghjkmnpqrstvwxyz"
    guesses = ["run_" + "".join(secrets.choice(letters) for _ in range(26)) for _ in range(10_000)]
    assert not real & set(guesses)
    assert {len(run_id) for run_id in real} == {len(guess) for guess in guesses}

    hits = 0
    for guess in guesses:
        try:
            await runs.get(LOCAL, guess)
            hits += 1
        except NotFound:
            pass
    assert hits == 0
    for guess in guesses[:100]:
        assert (await server.events(guess)).problem == (404, "not_found")


# --- rows 66 to 70: positions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cursor",
    [
        "abc",
        "-5",
        "5",
        str(2**63),
        "1,2",
        "{epoch}-٣",
        "{epoch}-３",
        "{epoch}-\0",
        "{epoch}-1\0",
        "{epoch}-",
        "{epoch}--1",
        "{epoch}-01",
        "{epoch}-1.0",
        "{epoch}-1.01",
        "{epoch}-1.1.1",
        "{epoch}-1.9999999",
        "{epoch}-0.1",
        "{epoch}-9223372036854775808",
        " {epoch}-1",
        "{epoch}-1\n",
        "{epoch}-1 ",
        "{EPOCH}-1",
        "x" * 7000,
        "-1x",
        "--1",
    ],
)
async def test_row_66_positions_that_are_none(server: Serving, cursor: str) -> None:
    run_id = await server.finished()
    epoch = (await look(server, run_id))["position"].split("-")[0]
    text = cursor.replace("{epoch}", epoch).replace("{EPOCH}", epoch.upper() + "A")
    for accept in (SSE, NDJSON, JSON):
        answer = await server.ask("GET", f"/api/runs/{run_id}/events", params={"after": text}, headers=accept)
        assert answer.problem == (400, "cursor.invalid")
    if text.isascii() and text.strip() == text and "\0" not in text:
        answer = await server.events(run_id, **SSE, **{"Last-Event-ID": text})
        assert answer.problem == (400, "cursor.invalid")


async def test_row_67_ahead_or_of_another_run(server: Serving) -> None:
    run_id, other = await server.finished(), await server.finished()
    epoch, last = (await look(server, run_id))["position"].split("-")
    for after, problem in (
        (f"{epoch}-{int(last) + 1}", (409, "cursor.ahead")),
        (f"{epoch}-{2**63 - 1}", (409, "cursor.ahead")),
        (f"{epoch}-{int(last) + 1}.1", (409, "cursor.ahead")),
        ((await look(server, other))["position"], (409, "cursor.foreign")),
        ("zzzzzz-1.1", (409, "cursor.foreign")),
    ):
        for view in ("native", "agent_chat"):
            assert (await server.events(run_id, f"?view={view}&after={after}")).problem == problem


async def test_a_frame_that_the_event_does_not_have(server: Serving) -> None:
    run_id = await server.finished(texts=["x" * 250])
    frames = await server.frames(run_id, "?view=agent_chat")
    inside = [str(frame.id) for frame in frames if "." in str(frame.id)]
    event = inside[0].split(".")[0]
    assert inside == [f"{event}.1", f"{event}.2"]
    for frame in (f"{event}.3", f"{event}.4", f"{event}.999999", f"{event.split('-')[0]}-1.1"):
        assert (await server.events(run_id, f"?view=agent_chat&after={frame}")).problem == (400, "cursor.invalid")
    assert (await server.events(run_id, f"?after={inside[0]}")).problem == (400, "cursor.invalid"), "in another view"


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_row_68_trimmed(start: Start, engine: str) -> None:
    server = await start(engine=engine)
    run_id = await server.finished()
    frames = await server.frames(run_id)
    assert await server.headrace.engine.trim(older_than=0) == 1
    first_available = (await look(server, run_id))["first_available"]
    assert first_available == frames[-1].id
    for query in ("", f"?after={frames[0].id}", f"?view=agent_chat&after={frames[1].id}"):
        for accept in (SSE, NDJSON, JSON):
            gone = await server.events(run_id, query, **accept)
            assert gone.problem == (410, "cursor.gone")
            assert gone.json()["first_available"] == first_available
    assert (await server.events(run_id, f"?after={first_available}")).status == 204


async def test_row_68_a_deleted_run(server: Serving) -> None:
    run_id = await server.finished()
    assert (await server.ask("DELETE", f"/api/runs/{run_id}")).status == 204
    assert (await server.events(run_id)).problem == (404, "not_found")
    assert (await server.ask("DELETE", f"/api/runs/{run_id}")).problem == (404, "not_found")


async def test_a_run_that_goes_on_is_not_deleted(server: Serving) -> None:
    response = await server.stalled()
    run_id = response.headers["X-Run-Id"]
    assert (await server.ask("DELETE", f"/api/runs/{run_id}")).problem == (409, "run.active")
    server.agents.gate.set()
    await response.read()
    assert (await server.ask("DELETE", f"/api/runs/{run_id}")).status == 204


@VIEWS
async def test_row_69_after_a_restart(start: Start, tmp_path: Path, view: str) -> None:

    async with Serving(settings(tmp_path, engine="sqlite")).open() as before:
        run_id = await before.finished(texts=TEXTS)
        failed = await before.start("fail")
        await before.events(failed)
        whole = await before.frames(run_id, f"?view={view}")
    after = await start(engine="sqlite")
    assert await after.frames(run_id, f"?view={view}") == whole
    for number in range(1, len(whole)):
        assert await after.frames(run_id, f"?view={view}&after={whole[number - 1].id}") == whole[number:]
    assert (await after.events(run_id, f"?view={view}&after={whole[-1].id}")).status == 204
    assert (await after.frames(failed))[-1].data["kind"] == "run.failed"


@VIEWS
async def test_an_event_source_is_told_to_stop_coming_back(server: Serving, view: str) -> None:
    run_id = await server.finished()
    last = (await server.frames(run_id, f"?view={view}"))[-1].id
    answer = await server.events(run_id, f"?view={view}", **SSE, **{"Last-Event-ID": str(last)})
    assert (answer.status, answer.body) == (204, b"")
    lines = await server.events(run_id, f"?view={view}&after={last}", **NDJSON)
    assert (lines.status, lines.body) == (200, b"")


async def test_an_event_source_with_a_filter_ends_as_well(server: Serving) -> None:
    """What it saw last is where it goes on; it must get to a 204, not come back for ever."""
    run_id = await server.finished(texts=["a", "b"])
    seen, headers, answers = [], dict(SSE), 0

    while (answer := await server.events(run_id, "?kinds=text.delta", **headers)).status == 200:
        frames = parse_sse(answer.body)[:1]  # it is cut after one each time
        seen += [frame.data["kind"] for frame in frames]
        headers["Last-Event-ID"] = str(frames[-1].id)
        answers += 1
        assert answers < 10
    assert answer.status == 204
    assert seen == ["text.delta", "text.delta", "run.completed"]


async def test_row_70_two_positions(server: Serving) -> None:
    run_id = await server.finished()
    whole = await server.frames(run_id)
    one, two = str(whole[0].id), str(whole[1].id)
    differ = await server.events(run_id, f"?after={one}", **SSE, **{"Last-Event-ID": two})
    assert differ.problem == (400, "cursor.ambiguous")
    agree = await server.frames(run_id, f"?after={one}", **SSE, **{"Last-Event-ID": one})
    assert agree == whole[1:]
    for query, last_event_id in (("", "-1"), ("?after=-1", "-1"), ("?after=-1", ""), ("?after=", "")):
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        assert await server.frames(run_id, query, **SSE, **headers) == whole


# --- row 71: cancel ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_row_71_cancel(start: Start, engine: str) -> None:
    server = await start(engine=engine)
    response = await server.stalled()
    run_id = response.headers["X-Run-Id"]
    answers = await asyncio.gather(*[server.ask("POST", f"/api/runs/{run_id}/cancel") for _ in range(10)])
    assert sorted(answer.status for answer in answers) == [200] * 9 + [202]
    await response.read()
    ended = await look(server, run_id)
    assert (ended["state"], ended["cancel_requested"]) == ("cancelled", True)
    frames = await server.frames(run_id)
    assert [frame.data["kind"] for frame in frames].count("run.cancelled") == 1
    assert frames[-1].data["by"] == "local"
    again = await server.ask("POST", f"/api/runs/{run_id}/cancel")
    assert (again.status, again.json()) == (200, ended)
    assert await server.frames(run_id) == frames
    assert server.agents.left == 1


@pytest.mark.parametrize("agent", ["default", "fail"])
async def test_row_71_cancel_after_the_end(server: Serving, agent: str) -> None:
    run_id = await server.finished(agent)
    before = await look(server, run_id)
    answer = await server.ask("POST", f"/api/runs/{run_id}/cancel")
    assert (answer.status, answer.json()) == (200, before)
    assert before["state"] == ("completed" if agent == "default" else "failed")


async def test_row_71_cancel_what_is_not_yours(two: Any) -> None:
    server, ann, bob = two
    run_id = (await server.post("/api/runs", {"agent": "stall", "input": {}}, headers=ann)).json()["id"]
    assert (await server.ask("POST", f"/api/runs/{run_id}/cancel", headers=bob)).problem == (404, "not_found")
    assert (await server.ask("GET", f"/api/runs/{run_id}", headers=ann)).json()["cancel_requested"] is False
    assert (await server.ask("POST", f"/api/runs/{run_id}/cancel", headers=ann)).status == 202


async def test_cancel_as_a_chat_client_sees_it(server: Serving) -> None:
    streamed = await server.begin("/api/agent/chat?stream=true", {"message": "Hi", "agent_id": "stall"})
    await read_until(streamed, b"before")
    assert (await server.ask("POST", f"/api/runs/{streamed.headers['X-Run-Id']}/cancel")).status == 202
    last = (await streamed.read()).strip().split(b"\n")[-1]
    assert json.loads(last.removeprefix(b"data: ")) == {
        "type": "error",
        "message": "The run was cancelled.",
        "code": 499,
    }
    whole = asyncio.create_task(server.post("/api/agent/chat", {"message": "Hi", "agent_id": "stall"}))
    running: list[str] = []
    while not running:
        runs = (await server.ask("GET", "/api/runs?state=running")).json()["runs"]
        running = [run["id"] for run in runs]
    await server.ask("POST", f"/api/runs/{running[0]}/cancel")
    assert (await whole).problem == (499, "run.cancelled")


# --- row 72: too often ------------------------------------------------------------------------------------------------


async def test_row_72_a_thousand_resumes_in_a_minute(start: Start) -> None:
    server = await start(requests_per_minute=100)
    run_id = await server.finished()
    statuses = [200, 200]
    for _ in range(10):
        answers = await asyncio.gather(*[server.events(run_id) for _ in range(100)])
        statuses += [answer.status for answer in answers]
    assert statuses.count(200) == 100
    assert statuses.count(429) == len(statuses) - 100
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)


async def test_row_72_clients_are_told_to_come_back_at_different_times(server: Serving) -> None:
    run_id = await server.finished()
    answers = await asyncio.gather(*[server.events(run_id) for _ in range(50)])
    hints = {answer.body.split(b"\n")[0] for answer in answers}
    assert len(hints) > 10
    assert all(hint.startswith(b"retry: ") for hint in hints)
