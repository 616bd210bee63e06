"""Servers for the tests of the door."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.server.serving import Serving, Start, settings


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts servers that end with the test. Keyword arguments are settings, and `agents`, `deadlines`, `grace`."""
    async with AsyncExitStack() as stack:

        async def start_one(**options: Any) -> Serving:
            parts = {name: options.pop(name) for name in ("agents", "deadlines", "grace") if name in options}
            data = options.pop("data", tmp_path)
            return await stack.enter_async_context(Serving(settings(data, **options), **parts).open())

        yield start_one


@pytest.fixture
async def server(start: Start) -> Serving:
    """Everybody is the local caller; nothing is limited."""
    started: Serving = await start()
    return started
