"""Both engines through one fixture."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # pytest's importlib mode finds no neighbours of a test by itself

from tests.engines.story import Clock, Story, new_engine


@pytest.fixture(params=["memory", "sqlite"])
async def story(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Story]:
    clock = Clock()
    engine = new_engine(request.param, tmp_path, clock)
    await engine.start()
    yield Story(engine, clock)
    await engine.close()


@pytest.fixture
async def sqlite_story(tmp_path: Path) -> AsyncIterator[Story]:
    clock = Clock()
    engine = new_engine("sqlite", tmp_path, clock)
    await engine.start()
    yield Story(engine, clock)
    await engine.close()
