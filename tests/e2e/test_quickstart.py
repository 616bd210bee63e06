"""What the first page promises, with nothing but curl: ask, lose the connection, come back, miss nothing."""

import asyncio
import json
from pathlib import Path

from tests.e2e.served import PATIENCE, Served, parse, serve

CHAT = '{"message": "What is a headrace?"}'


async def curl(server: Served, path: str, *arguments: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *["curl", "--silent", "--show-error", "--fail-with-body", "--no-buffer", *arguments, server.url + path],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0, (out, errors)
    return out


async def curl_until(server: Served, words: bytes, path: str, *arguments: str) -> bytes:
    """What came before the connection was lost: curl is killed as soon as it has printed these words."""
    process = await asyncio.create_subprocess_exec(
        *["curl", "--silent", "--no-buffer", *arguments, server.url + path], stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    got = b""
    async with asyncio.timeout(PATIENCE):
        while words not in got:
            part = await process.stdout.read(65_536)
            assert part, got
            got += part
    process.kill()
    await process.communicate()
    return got[: got.rindex(b"\n\n") + 2]


def header(name: str, head: bytes) -> str:
    for line in head.decode().splitlines():
        key, _, value = line.partition(": ")
        if key.lower() == name:
            return value
    raise AssertionError(head)


async def test_ask_lose_the_connection_and_come_back(tmp_path: Path) -> None:
    json_body = ["--header", "Content-Type: application/json", "--data", CHAT]
    async with serve(tmp_path, "demo:echo?count=100&pace_ms=10") as server:
        got = await curl_until(server, b"0020", "/api/agent/chat?stream=true", *json_body, "--include")
        head, body = got.split(b"\r\n\r\n", 1)
        seen = parse(body)
        position = seen[-1][0].decode()
        location = header("location", head)
        rest = parse(await curl(server, location, "--header", f"Last-Event-ID: {position}"))
        whole = parse(await curl(server, location))
        assert seen + rest == whole
        events = [json.loads(data) for _, data in whole]
        assert [event["type"] for event in events] == ["start", *["token"] * 100, "end"]
        assert "".join(event.get("content", "") for event in events).split() == [f"{n:04}" for n in range(100)]
        nothing = await curl(
            server, location, "--header", f"Last-Event-ID: {whole[-1][0].decode()}", "--write-out", "%{http_code}"
        )
        assert nothing == b"204"


async def test_ask_without_streaming(tmp_path: Path) -> None:
    async with serve(tmp_path, "demo:echo") as server:
        answer = await curl(server, "/api/agent/chat", "--header", "Content-Type: application/json", "--data", CHAT)
        assert json.loads(answer)["response"] == "What is a headrace?"


async def test_the_answer_is_still_there_after_a_restart(tmp_path: Path) -> None:
    async with serve(tmp_path, "demo:echo") as server:
        answer = json.loads(
            await curl(server, "/api/agent/chat", "--header", "Content-Type: application/json", "--data", CHAT)
        )
        path = f"/api/runs/{answer['run_id']}/events"
        before = parse(await curl(server, path))
        server.terminate()
        assert await server.exit_code(10) == 0
    async with serve(tmp_path, "demo:echo") as server:
        assert parse(await curl(server, path)) == before
