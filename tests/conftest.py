"""A workshop over each engine."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.workshop import Workshop

from headrace.engines.memory import MemoryEngine
from headrace.engines.sqlite import SqliteEngine


@pytest.fixture(params=["memory", "sqlite"])
async def workshop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Workshop]:
    engine = MemoryEngine() if request.param == "memory" else SqliteEngine(tmp_path / "log.db")
    await engine.start()
    shop = Workshop(engine)
    yield shop
    for worker in shop.workers:
        await worker.stop()
    await engine.close()
