"""`headrace fake-provider`."""

import asyncio
from pathlib import Path

from tests.cli.conftest import Command, Interrupt
from tests.server.serving import PATIENCE, Serving, settings

from headrace.client import AsyncClient


async def test_it_serves_until_it_is_interrupted(headrace: Command, interrupt: Interrupt, tmp_path: Path) -> None:
    process = await headrace.begin("fake-provider", "--port", "0")
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        url = (await process.stdout.readline()).decode().strip()
        serving = Serving(settings(tmp_path, model=f"{url}#echo"), agents={})
        async with serving.open() as server, AsyncClient(server.url) as client:
            assert await client.ask("one two") == "one two"
    assert (await interrupt(process)).code == 0


async def test_a_port_that_is_in_use(headrace: Command, server: Serving) -> None:
    code, out, err = await headrace("fake-provider", "--port", str(server.port))
    assert (code, out, err.count("\n")) == (78, "", 1)
