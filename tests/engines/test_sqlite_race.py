"""Nothing falls between what is read from the file and what follows from memory, however the two interleave."""

import asyncio
from collections.abc import Sequence

import pytest
from tests.engines.story import Story, completed, delta, lines

from headrace.engines.sqlite import SqliteEngine
from headrace.engines.sqlite.stored import StoredLines

INTERLEAVINGS = 1000


async def test_commits_and_trims_of_the_tail_during_a_stored_read(
    sqlite_story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stored read is held back between its decision and its result while commits push the tail past it."""
    engine = sqlite_story.engine
    assert isinstance(engine, SqliteEngine)
    monkeypatch.setattr(engine, "_commit_interval", 0)
    lease = await sqlite_story.claimed()
    tail = engine._live[lease.run_id].tail
    tail._max_bytes = 100  # the newest block alone stays
    stored_read = engine._reader.lines
    forced = 0

    async def commit(count: int) -> None:
        for _ in range(count if forced <= INTERLEAVINGS else 0):
            await engine.append(lease.run_id, 1, [delta(forced), delta("x" * 100)])

    async def held_back(no: int, ids: Sequence[int], after: int) -> list[StoredLines]:
        nonlocal forced
        forced += 1
        first = tail.first
        await commit(1 + forced % 2)
        found = await stored_read(no, ids, after)
        await commit(2 - forced % 2)
        assert tail.first > first or forced > INTERLEAVINGS
        if forced == INTERLEAVINGS:
            await engine.append(lease.run_id, 1, [completed()])
        return found

    monkeypatch.setattr(engine._reader, "lines", held_back)
    await commit(2)
    async with asyncio.timeout(100):
        got = lines([blocks async for blocks in engine.read(lease.run_id, live=True)])
    assert forced >= INTERLEAVINGS
    monkeypatch.undo()
    assert got == await sqlite_story.texts(lease.run_id)
