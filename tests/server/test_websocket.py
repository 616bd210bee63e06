"""`WS /api/ws` over real sockets: what it says, what it refuses, and that no position loses or doubles a frame."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from headrace.agents.generator import generator_agent
from headrace.batch.jobs.file import JobFiles
from headrace.batch.jobs.service import Jobs
from headrace.egress import Egress
from headrace.engines.memory import MemoryEngine
from headrace.identity import LOCAL, Limits, Principal
from headrace.limits import Limiter
from headrace.ports import Head, RunContext, StartCommand
from headrace.protocols.agent_chat import AgentChat
from headrace.protocols.native import Native
from headrace.runs import Runs
from headrace.server import open_streams
from headrace.server.app import create_app
from headrace.server.auth import AuthConfig, Authenticator, KeyFile
from headrace.server.listener import Deadlines, Listener
from headrace.server.open_streams import OpenStreams
from headrace.server.services import Services
from headrace.server.websocket import admission
from headrace.telemetry import Telemetry
from headrace.toolbox import Toolbox
from headrace.worker import Worker

PATIENCE = 20.0
"""Seconds after which something is taken to hang."""
Frame = dict[str, Any]


class Door:
    """A server on a real port in the test's own loop, whose agents write what the input says, and wait at `gate`."""

    def __init__(self, keys: Path, *, limits: Limits | None = None, deadlines: Deadlines | None = None) -> None:
        self.keys = KeyFile(keys)
        self.gate = asyncio.Event()
        self.telemetry = Telemetry()
        self.engine = MemoryEngine()
        agents = {"default": generator_agent(self._count), "patient": generator_agent(self._wait)}
        self.runs = Runs(self.engine, agents)
        self.worker = Worker(self.engine, self.engine, agents, telemetry=self.telemetry)
        authenticator = Authenticator(AuthConfig(keys=keys, local=True, limits=limits or Limits()))
        self.open_streams = OpenStreams(authenticator.still_valid)
        files = JobFiles(keys.parent / "batches")
        jobs = Jobs(self.runs, files, Egress(), concurrency=1, secret_of=lambda owner: "")
        self.services = Services(
            runs=self.runs,
            protocols={"native": Native(), "agent_chat": AgentChat(chunk_size=4)},
            authenticator=authenticator,
            tickets=authenticator.tickets,
            limits=Limiter(),
            open_streams=self.open_streams,
            telemetry=self.telemetry,
            tools=Toolbox(),
            jobs=jobs,
            models=lambda: (),
            ready=self._ready,
            allowed_origins=frozenset({"https://friend.example"}),
        )
        app: Any = create_app(self.services, version="test")
        self.listener = Listener(app, port=0, deadlines=deadlines, drain=self._drain, grace=2.0)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Door"]:
        await self.engine.start()
        self.worker.start()
        watching = asyncio.create_task(self.open_streams.watch_credentials())
        serving = asyncio.create_task(self.listener.serve())
        await asyncio.wait_for(self.listener.started.wait(), PATIENCE)
        try:
            yield self
        finally:
            self.listener.stop()
            await asyncio.wait_for(serving, PATIENCE)
            watching.cancel()
            await self.worker.stop()
            await self.engine.close()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.listener.ports[0]}"

    def connect(
        self,
        *,
        key: str | None = None,
        query: str = "",
        origin: str | None = None,
        subprotocol: str | None = None,
        cookie: str | None = None,
    ) -> connect:
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        if cookie is not None:
            headers["Cookie"] = cookie
        return connect(
            f"ws://{self.host}/api/ws{query}",
            additional_headers=headers,
            origin=None if origin is None else Origin(origin),
            subprotocols=None if subprotocol is None else [Subprotocol(subprotocol)],
            compression=None,
            proxy=None,
            max_size=None,
            open_timeout=PATIENCE,
            close_timeout=1,
        )

    async def refusal(self, **how: Any) -> tuple[int, str]:
        """The status and the code with which a handshake is refused."""
        with pytest.raises(InvalidStatus) as refused:
            await self.connect(**how)
        response = refused.value.response
        assert response.headers["Content-Type"] == "application/problem+json"
        return response.status_code, json.loads(response.body)["code"]

    async def finished(self, principal: Principal, **what: Any) -> Head:
        """A run that has ended."""
        created = await self.runs.start(principal, StartCommand(agent="default", input=what))
        await asyncio.wait_for(self.runs.result(created.head), PATIENCE)
        return await self.runs.get(principal, created.head.run.id)

    async def _count(self, context: RunContext) -> AsyncGenerator[str, None]:
        text = context.run.input.get("text", "väter\u2028 \n")
        for number in range(context.run.input.get("count", 5)):
            yield f"{number} {text}"
            await asyncio.sleep(0)

    async def _wait(self, context: RunContext) -> AsyncGenerator[str, None]:
        yield "before"
        await self.gate.wait()
        yield "after"

    async def _ready(self) -> bool:
        return True

    async def _drain(self) -> None:
        self.open_streams.drain()


OpenDoor = Callable[..., Any]


@pytest.fixture
async def open_door(tmp_path: Path) -> AsyncIterator[OpenDoor]:
    async with AsyncExitStack() as stack:

        async def open_one(**options: Any) -> Door:
            return await stack.enter_async_context(Door(tmp_path / "auth.json", **options).open())

        yield open_one


@pytest.fixture
async def door(open_door: OpenDoor) -> Door:
    """Everybody is the local caller."""
    opened: Door = await open_door()
    return opened


@pytest.fixture
def key(tmp_path: Path) -> str:
    """Makes the doors of the test ask for a credential."""
    return KeyFile(tmp_path / "auth.json").create("alice").secret


async def say(client: ClientConnection, type_: str, **fields: Any) -> None:
    await client.send(json.dumps({"type": type_, **fields}))


async def hear(client: ClientConnection) -> Frame:
    frame: Frame = json.loads(await asyncio.wait_for(client.recv(), PATIENCE))
    return frame


async def hear_until(client: ClientConnection, type_: str) -> list[Frame]:
    """Every frame up to the first of a type."""
    frames = [await hear(client)]
    while frames[-1]["type"] != type_:
        frames.append(await hear(client))
    return frames


async def ask(client: ClientConnection, type_: str, **fields: Any) -> Frame:
    """The next frame after a message."""
    await say(client, type_, **fields)
    return await hear(client)


async def ready(client: ClientConnection) -> ClientConnection:
    assert await hear(client) == {"type": "ready"}
    return client


async def close_of(client: ClientConnection) -> tuple[int, list[str]]:
    """The close code, and the codes of the errors before it."""
    errors: list[str] = []
    with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012
        while True:
            frame = await hear(client)
            if frame["type"] == "error":
                errors.append(frame["error"]["code"])
    close = closed.value.rcvd
    assert close is not None
    assert not errors or close.reason == errors[-1]
    return close.code, errors


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def events(frames: list[Frame]) -> list[Frame]:
    return [frame for frame in frames if frame["type"] == "event"]


def kinds(frames: list[Frame]) -> list[str]:
    return [frame["data"]["kind"] for frame in events(frames)]


# --- what it is for ---------------------------------------------------------------------------------------------------


async def test_start_and_follow_to_the_end(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        started = await ask(client, "start", ref="mine", input={"count": 2})
        frames = await hear_until(client, "end")
    run_id = started["run_id"]
    assert started == {"type": "started", "ref": "mine", "run_id": run_id, "new": True}
    expected = ["run.started", "attempt.started", "message.start", "text.delta", "text.delta", "message.end"]
    assert [kind for kind in kinds(frames) if kind != "attempt.started"] == [
        kind for kind in expected if kind != "attempt.started"
    ] + ["run.completed"]
    head = await door.runs.get(LOCAL, run_id)
    last = f"{head.run.epoch}-{head.offset}"
    assert frames[-1] == {"type": "end", "run_id": run_id, "id": last}
    assert events(frames)[-1]["id"] == last
    assert {frame["run_id"] for frame in frames} == {run_id}


async def test_five_runs_at_the_same_time_over_one_socket(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        for number in range(5):
            await say(client, "start", ref=f"r{number}", agent="patient", input={})
        refs: dict[str, str] = {}
        waiting: dict[str, list[Frame]] = {}
        while len(refs) < 5 or any("text.delta" not in kinds(waiting.get(run_id, [])) for run_id in refs):
            frame = await hear(client)
            waiting.setdefault(frame["run_id"], []).append(frame)
            if frame["type"] == "started":
                refs[frame["run_id"]] = frame["ref"]
        door.gate.set()  # all five are under way
        ended: set[str] = set()
        while len(ended) < 5:
            frame = await hear(client)
            waiting[frame["run_id"]].append(frame)
            if frame["type"] == "end":
                ended.add(frame["run_id"])
    assert sorted(refs.values()) == ["r0", "r1", "r2", "r3", "r4"]
    for run_id in ended:
        offsets = [frame["data"]["offset"] for frame in events(waiting[run_id])]
        assert offsets == list(range(1, len(offsets) + 1))
        assert kinds(waiting[run_id])[-1] == "run.completed"


@pytest.mark.parametrize("view", ["native", "agent_chat"])
async def test_resume_from_any_position_gives_the_rest_to_the_byte(door: Door, view: str) -> None:
    head = await door.finished(LOCAL, count=4, text="zwölf\u2028")

    async def read(after: str | None) -> list[str]:
        texts: list[str] = []
        fields = {} if after is None else {"after": after}
        await say(client, "follow", run_id=head.run.id, view=view, **fields)
        while not texts or json.loads(texts[-1])["type"] != "end":
            texts.append(str(await asyncio.wait_for(client.recv(), PATIENCE)))
        return texts

    async with door.connect() as client:
        await ready(client)
        whole = await read(None)
        assert len(whole) > 6
        assert await read("-1") == whole
        for number, text in enumerate(whole, 1):
            assert await read(json.loads(text)["id"]) == (whole[number:] or whole[-1:])


async def test_live_resume_after_a_cut_loses_and_doubles_nothing(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        run_id = (await ask(client, "start", ref="a", agent="patient", input={}))["run_id"]
        first: list[Frame] = []
        while "text.delta" not in kinds(first):
            first.append(await hear(client))
        client.transport.abort()
    async with door.connect() as client:
        await ready(client)
        await say(client, "follow", run_id=run_id, after=first[-1]["id"])
        assert await ask(client, "ping") == {"type": "pong"}  # so it follows before anything more happens
        door.gate.set()
        rest = await hear_until(client, "end")
        await say(client, "follow", run_id=run_id)
        assert await hear_until(client, "end") == first + rest
    assert door.telemetry.cuts == 1
    assert door.telemetry.resumes == 1
    assert door.telemetry.replays == 1


async def test_two_sockets_see_equal_frames_encoded_once(door: Door) -> None:
    async with door.connect() as one, door.connect() as two:
        await ready(one)
        await ready(two)
        run_id = (await ask(one, "start", ref="a", agent="patient", input={}))["run_id"]
        await say(two, "follow", run_id=run_id)
        door.gate.set()
        assert await hear_until(one, "end") == await hear_until(two, "end")
    async for blocks in door.engine.read(run_id, live=False):
        assert all(len(block.views) == 1 for block in blocks)


async def test_sockets_and_http_streams_say_the_same(door: Door) -> None:
    head = await door.finished(LOCAL, count=3)
    async with door.connect() as client:
        await ready(client)
        await say(client, "follow", run_id=head.run.id, view="agent_chat")
        frames = await hear_until(client, "end")
    url = f"http://{door.host}/api/runs/{head.run.id}/events?view=agent_chat"
    headers = {"Accept": "application/x-ndjson"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        lines = [json.loads(line) for line in (await response.read()).splitlines()]
    assert [{"id": frame["id"], "data": frame["data"]} for frame in events(frames)] == lines


async def test_only_the_kinds_that_are_asked_for(door: Door) -> None:
    head = await door.finished(LOCAL, count=2)
    async with door.connect() as client:
        await ready(client)
        await say(client, "follow", run_id=head.run.id, kinds=["run.completed", "message.end"])
        frames = await hear_until(client, "end")
    assert kinds(frames) == ["message.end", "run.completed"]
    assert frames[-1]["id"] == f"{head.run.epoch}-{head.offset}"


async def test_start_without_following_and_ping(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        assert (await ask(client, "start", ref="a", input={}, follow=False))["type"] == "started"
        assert await ask(client, "ping") == {"type": "pong"}


async def test_unfollow_ends_the_frames_and_not_the_run(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        run_id = (await ask(client, "start", ref="a", agent="patient", input={}))["run_id"]
        await say(client, "unfollow", run_id=run_id)
        assert (await hear_until(client, "unfollowed"))[-1] == {"type": "unfollowed", "run_id": run_id}
        door.gate.set()
        await asyncio.wait_for(door.runs.result(await door.runs.get(LOCAL, run_id)), PATIENCE)
        assert await ask(client, "ping") == {"type": "pong"}
        await say(client, "follow", run_id=run_id)
        assert kinds(await hear_until(client, "end"))[-1] == "run.completed"


async def test_messages_sent_at_once_are_answered_in_order(door: Door) -> None:
    """A run that is unfollowed before its task began can be followed again."""
    head = await door.finished(LOCAL)
    async with door.connect() as client:
        await ready(client)
        for type_ in ("follow", "unfollow", "follow", "unfollow", "follow"):
            await say(client, type_, run_id=head.run.id)
        frames = await hear_until(client, "end")
        while [frame["type"] for frame in frames].count("unfollowed") < 2:
            frames += await hear_until(client, "end")
    assert not [frame for frame in frames if frame["type"] == "error"]


async def test_cancel(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        run_id = (await ask(client, "start", ref="a", agent="patient", input={}))["run_id"]
        await say(client, "cancel", run_id=run_id)
        frames = await hear_until(client, "end")
        answer = {"type": "cancel", "run_id": run_id, "result": "requested"}
        assert answer in frames
        assert kinds(frames)[-1] == "run.cancelled"
        assert await ask(client, "cancel", run_id=run_id) == {**answer, "result": "closed"}


async def test_idempotency_key(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        asked = {"input": {"count": 1, "text": "x"}, "idempotency_key": "k", "follow": False}
        first = await ask(client, "start", ref="a", **asked)
        again = await ask(client, "start", ref="b", **asked)
        other = await ask(client, "start", ref="c", **{**asked, "input": {}})
        bad = await ask(client, "start", ref="d", **{**asked, "idempotency_key": "x" * 10_000})
    assert (first["new"], again["new"]) == (True, False)
    assert first["run_id"] == again["run_id"]
    assert (other["ref"], other["error"]["code"]) == ("c", "idempotency.mismatch")
    assert (bad["ref"], bad["error"]["code"]) == ("d", "idempotency.invalid_key")


@pytest.mark.parametrize(("on_disconnect", "state"), [("detach", "completed"), ("cancel", "cancelled")])
async def test_runs_of_a_client_that_leaves(door: Door, on_disconnect: str, state: str) -> None:
    async with door.connect() as client:
        await ready(client)
        started = await ask(client, "start", ref="a", agent="patient", input={}, on_disconnect=on_disconnect)
        client.transport.abort()
    await eventually(lambda: not door.telemetry.open_streams["websocket"])
    head = await door.runs.get(LOCAL, started["run_id"])
    if on_disconnect == "detach":
        assert head.cancel_by is None
        door.gate.set()
    await asyncio.wait_for(door.runs.result(head), PATIENCE)
    assert (await door.runs.get(LOCAL, started["run_id"])).state == state


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "fields", "code"),
    [
        ("follow", {"run_id": "run_none"}, "not_found"),
        ("cancel", {"run_id": "run_none"}, "not_found"),
        ("start", {"ref": "a", "agent": "none", "input": {}}, "not_found"),
        ("start", {"ref": "a", "input": {}, "view": "none"}, "field.invalid"),
        ("start", {"ref": "a", "input": []}, "field.invalid"),
        ("start", {"ref": "a", "input": {}, "follow": "yes"}, "field.invalid"),
        ("start", {"ref": "a", "input": {}, "api_base": "http://evil"}, "field.forbidden"),
        ("start", {"ref": "a", "input": {}, "follow": False, "on_disconnect": "cancel"}, "field.invalid"),
        ("start", {"ref": "a", "input": {}, "conversation_id": "a\nb"}, "field.invalid"),
        ("start", {"input": {}}, "field.invalid"),
        ("follow", {"run_id": "run_none", "kinds": ["none"]}, "field.invalid"),
        ("follow", {"run_id": "run_none", "after": "abc"}, "cursor.invalid"),
        ("shout", {}, "field.invalid"),
        ("auth", {"token": "x"}, "request.invalid"),
    ],
)
async def test_a_wrong_message_is_answered_by_an_error_and_nothing_else(
    door: Door, type_: str, fields: dict[str, Any], code: str
) -> None:
    async with door.connect() as client:
        await ready(client)
        answer = await ask(client, type_, **fields)
        assert (answer["type"], answer["error"]["code"]) == ("error", code)
        assert {name: answer.get(name) for name in ("ref", "run_id") if name in fields} == {
            name: fields[name] for name in ("ref", "run_id") if name in fields
        }
        assert await ask(client, "ping") == {"type": "pong"}
    assert not await door.runs.list(LOCAL, limit=1)


async def test_wrong_fields_are_named_by_pointers(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        answer = await ask(client, "follow", run_id="r", kinds=["text.delta", "none"], view=1)
    assert [error["pointer"] for error in answer["error"]["errors"]] == ["/view", "/kinds/1"]


async def test_positions_that_cannot_be_served(door: Door) -> None:
    """As over HTTP: rows 66 to 68."""
    head = await door.finished(LOCAL)
    other = await door.finished(LOCAL)
    epoch, offset = head.run.epoch, head.offset
    async with door.connect() as client:
        await ready(client)

        async def code(after: str) -> str:
            answer = await ask(client, "follow", run_id=head.run.id, after=after)
            assert answer["run_id"] == head.run.id
            found: str = answer["error"]["code"]
            return found

        for after in ("abc", "-5", f"{epoch}-{2**63}", f"{epoch}-1,2", f"{epoch}-\u0661", "\0", "9" * 10_000):
            assert await code(after) == "cursor.invalid"
        assert await code(f"{epoch}-2.1") == "cursor.invalid"  # no view gives half an event here
        assert await code(f"{epoch}-{offset + 1}") == "cursor.ahead"
        assert await code(f"{other.run.epoch}-1") == "cursor.foreign"
        await door.engine.trim(max_bytes=0)
        answer = await ask(client, "follow", run_id=head.run.id, after=f"{epoch}-1")
        assert (answer["error"]["code"], answer["error"]["status"]) == ("cursor.gone", 410)
        assert answer["error"]["first_available"] == f"{epoch}-{offset}"


async def test_following_twice_is_an_error_and_disturbs_nothing(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        run_id = (await ask(client, "start", ref="a", agent="patient", input={}))["run_id"]
        await say(client, "follow", run_id=run_id)
        twice = (await hear_until(client, "error"))[-1]
        assert (twice["run_id"], twice["error"]["code"]) == (run_id, "request.invalid")
        door.gate.set()
        await hear_until(client, "end")


async def test_a_foreign_run_does_not_exist(open_door: OpenDoor, key: str) -> None:
    door: Door = await open_door()
    bob = Principal(subject="bob")
    head = await door.finished(bob)
    async with door.connect(key=key) as client:
        await ready(client)
        for type_ in ("follow", "cancel"):
            foreign = await ask(client, type_, run_id=head.run.id)
            unknown = await ask(client, type_, run_id="run_none")
            assert foreign["error"] == unknown["error"]
            assert foreign["error"]["code"] == "not_found"


# --- who may open it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"origin": "https://evil.example"}, id="foreign"),
        pytest.param({"origin": "null"}, id="null"),
        pytest.param({"origin": "http://127.0.0.1:1"}, id="another port"),
        pytest.param({"cookie": "session=1"}, id="missing with a cookie"),
    ],
)
async def test_row_73_origin_is_denied_at_the_handshake(door: Door, how: dict[str, str]) -> None:
    assert await door.refusal(**how) == (403, "origin.denied")


async def test_row_73_own_and_allowed_origins_may(door: Door) -> None:
    for origin in (f"http://{door.host}", "https://friend.example"):
        async with door.connect(origin=origin, cookie="session=1") as client:
            await ready(client)


async def test_row_73_a_name_pointed_at_an_unguarded_server_is_denied(door: Door) -> None:
    """DNS rebinding: Host and Origin agree, since both are the attacker's."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.listener.ports[0])
    writer.write(handshake("evil.example", "Origin: http://evil.example"))
    assert await asyncio.wait_for(reader.readline(), PATIENCE) == b"HTTP/1.1 403 Forbidden\r\n"
    writer.close()


async def test_row_74_a_wrong_credential_is_refused_at_the_handshake(open_door: OpenDoor, key: str) -> None:
    door: Door = await open_door()
    assert await door.refusal(key="hr_wrong") == (401, "auth.invalid")
    assert await door.refusal(query="?ticket=wrong") == (401, "auth.invalid")
    assert await door.refusal(key=key, query="?ticket=wrong") == (400, "auth.ambiguous")


async def test_row_74_a_legacy_subprotocol_is_refused(open_door: OpenDoor, key: str) -> None:
    door: Door = await open_door()
    assert await door.refusal(key=key, subprotocol="graphql-ws") == (401, "auth.invalid")
    assert await door.refusal(subprotocol=key) == (401, "auth.invalid")


async def test_row_74_no_auth_message_in_time(open_door: OpenDoor, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert admission.AUTH_SECONDS == 5.0
    monkeypatch.setattr(admission, "AUTH_SECONDS", 0.1)
    door: Door = await open_door()
    async with door.connect() as client:
        assert await close_of(client) == (4401, ["auth.missing"])


@pytest.mark.parametrize(
    "first", ['{"type":"ping"}', '{"type":"start","ref":"a","input":{}}', "{", '{"type":"auth"}', b"binary"]
)
async def test_row_74_a_message_before_auth(open_door: OpenDoor, key: str, first: str | bytes) -> None:
    door: Door = await open_door()
    async with door.connect() as client:
        await client.send(first)
        assert await close_of(client) == (4401, ["auth.missing"])


async def test_row_74_a_wrong_auth_message(open_door: OpenDoor, key: str) -> None:
    door: Door = await open_door()
    for token in ("wrong", "", key + "=", "wörter", "x" * 50_000):
        async with door.connect() as client:
            await say(client, "auth", token=token)
            assert await close_of(client) == (4401, ["auth.invalid"])


async def test_the_three_ways_to_say_who_one_is(open_door: OpenDoor, key: str) -> None:
    door: Door = await open_door()
    async with door.connect(key=key) as client:
        await ready(client)
    ticket = door.services.tickets.issue(
        door.services.authenticator.authenticate([(b"x-api-key", key.encode())], client=None)
    )
    async with door.connect(query=f"?ticket={ticket}") as client:
        await ready(client)
    assert await door.refusal(query=f"?ticket={ticket}") == (401, "auth.invalid")
    async with door.connect(query=f"?token={key}") as client:  # no way
        assert await ask(client, "auth", token=key) == {"type": "ready"}
        started = await ask(client, "start", ref="a", input={})
        assert kinds(await hear_until(client, "end"))[-1] == "run.completed"
    assert (await door.engine.head(started["run_id"])).run.owner.subject == "alice"


async def test_a_revoked_credential_ends_the_socket(
    open_door: OpenDoor, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 12."""
    monkeypatch.setattr(open_streams, "_LOOK_AGAIN_SECONDS", 0.05)
    door: Door = await open_door()
    async with door.connect(key=key) as client:
        await ready(client)
        run_id = (await ask(client, "start", ref="a", agent="patient", input={}, on_disconnect="cancel"))["run_id"]
        door.keys.disable(door.keys.list()[0].id)
        assert await close_of(client) == (4401, ["auth.revoked"])
    assert (await door.engine.head(run_id)).cancel_by is None  # the client had not left
    assert not door.open_streams._streams


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_row_75_more_than_100_subscriptions(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        for number in range(100):
            await say(client, "start", ref=str(number), agent="patient", input={})
        started = 0
        while started < 100:
            started += (await hear(client))["type"] == "started"
        await say(client, "start", ref="more", agent="patient", input={})
        assert await close_of(client) == (1008, ["limit.streams"])
    assert len(await door.runs.list(LOCAL, limit=200)) == 100  # the one too many was not begun


async def test_row_76_a_message_larger_than_64_kib(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        await client.send("x" * 65_537)
        assert (await close_of(client))[0] == 1009


async def test_row_76_a_message_of_64_kib_is_taken(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        empty = json.dumps({"type": "start", "ref": "a", "input": {"text": ""}, "follow": False})
        text = "x" * (65_536 - len(empty))
        assert (await ask(client, "start", ref="a", input={"text": text}, follow=False))["type"] == "started"


async def test_row_77_invalid_utf_8(door: Door) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.listener.ports[0])
    writer.write(handshake(door.host))
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    writer.write(b"\x81\x84\0\0\0\0" + b'"\xff\xfe"')
    assert close_code(await asyncio.wait_for(reader.read(), PATIENCE)) == 1007
    writer.close()


async def test_row_77_binary(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        await client.send(b'{"type":"ping"}')
        assert await close_of(client) == (1003, ["request.invalid"])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "body.invalid_json"),
        ("{", "body.invalid_json"),
        ("[]", "body.invalid_json"),
        ('{"type":"ping"} x', "body.invalid_json"),
        ('{"type":"start","ref":"a","input":{"x":NaN}}', "body.invalid_json"),
        ('{"type":"start","ref":"a","input":{"x":1e999}}', "body.invalid_json"),
        ('{"type":"start","ref":"a","input":{"x":"\\ud800"}}', "body.invalid_json"),
        ('{"type":"ping","type":"ping"}', "body.duplicate_key"),
        ("[" * 20_000, "body.too_deep"),
    ],
)
async def test_row_77_bad_json_gets_an_error_frame(door: Door, text: str, code: str) -> None:
    async with door.connect() as client:
        await ready(client)
        await client.send(text)
        assert (await hear(client))["error"]["code"] == code
        assert await ask(client, "ping") == {"type": "pong"}


async def test_row_77_the_tenth_bad_message_ends_the_socket(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        for _ in range(10):
            await client.send("{")
        assert await close_of(client) == (1008, ["body.invalid_json"] * 10)


async def test_row_78_a_flood_of_messages(door: Door) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.listener.ports[0])
    writer.write(handshake(door.host))
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    ping = b'{"type":"ping"}'
    writer.write((bytes([0x81, 0x80 | len(ping)]) + bytes(4) + ping) * 20_000)
    assert close_code(await asyncio.wait_for(reader.read(), PATIENCE)) == 1008
    writer.close()


async def test_row_79_a_reader_that_stopped_learns_why_and_goes_on_from_its_last_positions(open_door: OpenDoor) -> None:
    """What stands in front of the close frame are whole event frames, each with its position."""
    door: Door = await open_door(deadlines=Deadlines(write=0.5, linger=15))
    heads = {head.run.id: head for head in [await door.finished(LOCAL, count=150, text="x" * 40_000) for _ in range(3)]}
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", door.listener.ports[0]))
    reader, writer = await asyncio.open_connection(sock=client, limit=1024)
    writer.write(handshake(door.host))
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    # The pings let the task that reads messages wait to send as well when the end comes.
    for message in [*({"type": "follow", "run_id": run_id} for run_id in heads), *[{"type": "ping"}] * 2]:
        text = json.dumps(message).encode()
        writer.write(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)
    await eventually(lambda: door.telemetry.cuts == len(heads))
    texts, code = parse(await asyncio.wait_for(reader.read(), PATIENCE))
    writer.close()
    assert code == 1013
    assert texts
    seen: dict[str, list[Frame]] = {run_id: [] for run_id in heads}
    for frame in events([json.loads(text) for text in texts]):
        seen[frame["run_id"]].append(frame)
    async with door.connect() as second:
        await ready(second)
        for run_id, before in seen.items():
            assert len(before) < heads[run_id].offset
            await say(second, "follow", run_id=run_id, after=before[-1]["id"] if before else "-1")
            whole = before + events(await hear_until(second, "end"))
            assert [frame["data"]["offset"] for frame in whole] == list(range(1, heads[run_id].offset + 1))


async def test_row_79_a_half_open_peer_is_closed(open_door: OpenDoor) -> None:
    door: Door = await open_door(deadlines=Deadlines(ping=0.1, pong=0.2))
    assert Deadlines().ping + Deadlines().pong <= 40
    reader, writer = await asyncio.open_connection("127.0.0.1", door.listener.ports[0])
    writer.write(handshake(door.host))  # and never a pong
    await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    await eventually(lambda: not door.telemetry.open_streams["websocket"])


async def test_a_socket_is_one_of_the_callers_streams(open_door: OpenDoor, key: str) -> None:
    door: Door = await open_door(limits=Limits(streams=1))
    async with door.connect(key=key) as client:
        await ready(client)
        with pytest.raises(InvalidStatus) as refused:
            await door.connect(key=key)
        response = refused.value.response
        assert (response.status_code, json.loads(response.body)["code"]) == (429, "limit.streams")
        assert response.headers["Retry-After"] == "5"
        assert response.headers["RateLimit"] == '"streams";r=0'
        async with door.connect() as late:
            await say(late, "auth", token=key)
            assert await close_of(late) == (1013, ["limit.streams"])
        for number in range(3):  # many runs are still one stream
            await say(client, "start", ref=str(number), input={})
        for _ in range(3):
            await hear_until(client, "end")
    await eventually(lambda: not door.telemetry.open_streams["websocket"])
    async with door.connect(key=key) as client:
        await ready(client)


async def test_start_follow_and_cancel_count_as_requests(open_door: OpenDoor, key: str) -> None:
    door: Door = await open_door(limits=Limits(requests_per_minute=3))
    async with door.connect(key=key) as client:
        await ready(client)
        run_id = (await ask(client, "start", ref="a", input={}, follow=False))["run_id"]
        assert (await ask(client, "cancel", run_id=run_id))["type"] == "cancel"
        await say(client, "follow", run_id=run_id)
        await hear_until(client, "end")
        assert await ask(client, "ping") == {"type": "pong"}
        for type_, fields in (("start", {"ref": "b", "input": {}}), ("follow", {}), ("cancel", {})):
            answer = await ask(client, type_, **(fields or {"run_id": run_id}))
            assert answer["error"]["code"] == "limit.requests"
            assert 0 < answer["error"]["retry_after"] <= 60


# --- the server's end -------------------------------------------------------------------------------------------------


async def test_a_server_that_stops_ends_sockets_with_1012_and_not_their_runs(door: Door) -> None:
    async with door.connect() as client:
        await ready(client)
        run_id = (await ask(client, "start", ref="a", agent="patient", input={}, on_disconnect="cancel"))["run_id"]
        door.listener.stop()
        assert await close_of(client) == (1012, ["server.draining"])
    assert door.telemetry.cuts == 0
    assert (await door.engine.head(run_id)).cancel_by is None


async def test_a_server_that_stops_takes_no_more_sockets(door: Door) -> None:
    door.open_streams.drain()
    assert await door.refusal() == (503, "server.draining")


async def test_nothing_is_left_of_sockets_that_were_cut(door: Door) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(50):
        async with door.connect() as client:
            await say(client, "start", ref="a", agent="patient", input={}, on_disconnect="cancel")
            await say(client, "start", ref="b", input={})
            client.transport.abort()
    await eventually(lambda: not door.telemetry.open_streams["websocket"] and not door.worker.running)
    await eventually(lambda: len(asyncio.all_tasks()) <= before)
    assert not door.open_streams._streams
    assert not door.services.limits._streams


# --- a client without manners -----------------------------------------------------------------------------------------


def handshake(host: str, *more: str) -> bytes:
    lines = ["GET /api/ws HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def parse(received: bytes) -> tuple[list[bytes], int]:
    """The text messages that a server has sent, and the code of its close frame."""
    texts: list[bytes] = []
    while received:
        kind, size, start = received[0] & 15, received[1], 2
        if size == 126:
            size, start = struct.unpack_from("!H", received, 2)[0], 4
        elif size == 127:
            size, start = struct.unpack_from("!Q", received, 2)[0], 10
        payload, received = received[start : start + size], received[start + size :]
        if kind == 8:
            return texts, int.from_bytes(payload[:2], "big")
        if kind == 1:
            texts.append(payload)
    raise AssertionError("cut without a close frame")


def close_code(received: bytes) -> int:
    return parse(received)[1]
