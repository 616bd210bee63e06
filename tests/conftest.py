"""A workshop over each engine, and what holds for every Hypothesis test."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tests.workshop import PATIENCE, Workshop

from headrace.engines.memory import MemoryEngine
from headrace.engines.sqlite import SqliteEngine

# How fast a machine under load makes examples says nothing about the code.
settings.register_profile("headrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headrace")


@pytest.fixture(params=["memory", "sqlite"])
async def workshop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Workshop]:
    engine = MemoryEngine() if request.param == "memory" else SqliteEngine(tmp_path / "log.db")
    await engine.start()
    shop = Workshop(engine)
    yield shop
    for worker in shop.workers:
        await worker.stop()
    await engine.close()


@pytest.fixture
async def settled_loop() -> AsyncIterator[None]:
    """What a server of a test has still to send to a client that is gone takes its loop some turns to give up. The
    transport would outlive the loop, and be told in whatever test comes next."""
    yield
    selector = getattr(asyncio.get_running_loop(), "_selector", None)
    async with asyncio.timeout(PATIENCE):
        while selector is not None and len(selector.get_map()) > 1:  # noqa: ASYNC110  one is the loop's own
            await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
