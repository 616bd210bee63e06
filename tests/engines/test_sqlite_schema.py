"""A file of an earlier version is brought to the newest one, with all that is in it."""

import sqlite3
from pathlib import Path

from tests.engines.story import ANN, Clock, Story, new_engine

from headrace.engines.sqlite.schema import VERSION


def as_version_1(path: Path) -> None:
    """Undo what later versions have added to a file."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(
        "DROP INDEX runs_of_owner; DROP INDEX runs_of_agent; DROP TABLE inputs;"
        "ALTER TABLE runs DROP COLUMN parent; ALTER TABLE runs DROP COLUMN agent;"
        "CREATE INDEX runs_of_owner ON runs (tenant, subject, no); PRAGMA user_version = 1;"
    )
    db.close()


async def test_a_file_of_version_1_is_gone_on_with(tmp_path: Path) -> None:
    clock = Clock()
    story = Story(new_engine("sqlite", tmp_path, clock), clock)
    await story.engine.start()
    ended = await story.ended()
    lines = await story.texts(ended)
    open_run = await story.queued()
    await story.engine.close()
    as_version_1(tmp_path / "log.db")
    again = Story(new_engine("sqlite", tmp_path, clock), clock)
    await again.engine.start()
    try:
        assert [head.run.id for head in await again.engine.list(ANN, limit=10)] == [open_run.id, ended]
        assert [head.run.id for head in await again.engine.list(ANN, limit=10, agent="chat")] == [open_run.id, ended]
        assert await again.texts(ended) == lines
        assert (await again.engine.claim("w")).run_id == open_run.id
    finally:
        await again.engine.close()
    with sqlite3.connect(tmp_path / "log.db") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
    db.close()
