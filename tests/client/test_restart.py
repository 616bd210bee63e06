"""A server that is stopped in the middle of an answer and started again: its readers go on, and so does the answer."""

import asyncio
import signal
import socket
import sys
from contextlib import aclosing
from pathlib import Path

from headrace.client import AsyncClient

TOKENS = 1000
"""More than a server that stops lets a run go on for."""
COUNTED = "".join(f"{number:04d} " for number in range(TOKENS))
SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def serve(port: int, data: Path) -> asyncio.subprocess.Process:
    options = ["--port", str(port), "--data", str(data), "--model", f"demo:echo?count={TOKENS}&pace_ms=10"]
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "headrace", "serve", *options)


async def test_a_stream_goes_on_over_a_restart_of_its_server(tmp_path: Path) -> None:
    port = free_port()
    server = await serve(port, tmp_path)
    try:
        async with asyncio.timeout(SECONDS), AsyncClient(f"http://127.0.0.1:{port}") as client:
            run = await client.start("count")
            texts = []
            async with aclosing(run.text()) as stream:
                async for text in stream:
                    texts.append(text)
                    if len(texts) == TOKENS // 20:
                        server.send_signal(signal.SIGTERM)
                        await server.wait()
                        server = await serve(port, tmp_path)
            assert "".join(texts) == COUNTED
            assert (await run.result()).output == COUNTED
            assert (await run.head()).attempt == 2
    finally:
        server.terminate()
        await server.wait()
