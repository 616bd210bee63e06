"""The load client of the bench sees what goes wrong: its figures are worth what this is worth."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parent.parent / "bench" / "c" / "load.c"

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
START = b'data: {"type":"start","message_id":"m"}\n\n'
TOKEN = b'id: e-2\ndata: {"type": "token", "content": " token"}\n\n'
TWO_TOKENS = b'data: {"type":"token","content":" token token"}\n\n'
END = b'data: {"type":"end","message_id":"m"}\n\n'
FAILED = b'data: {"type":"error","message":"no","code":502}\n\n'
FINISH = b"0\r\n\r\n"


def chunks(data: bytes, size: int) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("bench") / "load"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True)
    return program


async def outcome(load: Path, answer: bytes, *options: str, pieces: int = 1 << 20) -> dict[str, Any]:
    """What the client prints at its end when every request gets `answer`, written in pieces of this size."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for at in range(0, len(answer), pieces):
            writer.write(answer[at : at + pieces])
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = str(server.sockets[0].getsockname()[1])
    async with server:
        command = [str(load), "--port", port, "--path", "/", *options]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def counts(result: dict[str, Any]) -> tuple[int, ...]:
    return tuple(result[name] for name in ("ok", "errors", "cut", "tokens", "frames"))


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_tokens_are_counted_however_the_stream_is_cut_into_chunks(load: Path, size: int) -> None:
    stream = HEAD + chunks(START + TOKEN * 3 + TWO_TOKENS + END, size) + FINISH
    assert counts(await outcome(load, stream, pieces=5)) == (1, 0, 0, 5, 4)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (HEAD + chunks(START + TOKEN, 4096) + FINISH, (0, 0, 1, 1, 1)),
        (HEAD + chunks(START + TOKEN + END, 4096), (0, 0, 1, 1, 1)),
        (HEAD + chunks(START + TOKEN, 4096), (0, 0, 1, 1, 1)),
        (HEAD + chunks(START + TOKEN + FAILED, 4096) + FINISH, (0, 1, 0, 1, 1)),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", (0, 1, 0, 0, 0)),
        (b"", (0, 1, 0, 0, 0)),
    ],
    ids=["no end frame", "no last chunk", "cut", "error frame", "refused", "nothing"],
)
async def test_a_stream_that_went_wrong_is_not_ok(load: Path, answer: bytes, expected: tuple[int, ...]) -> None:
    assert counts(await outcome(load, answer)) == expected


async def test_every_stream_of_every_round_is_counted(load: Path) -> None:
    stream = HEAD + chunks(START + TOKEN + END, 4096) + FINISH
    options = ("--streams", "20", "--rounds", "3", "--ramp-ms", "20", "--body", "{}")
    assert counts(await outcome(load, stream, *options)) == (60, 0, 0, 60, 60)
