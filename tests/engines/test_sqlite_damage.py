"""Damage in the file: never a wrong byte is served, and what is whole goes on being served."""

import os
import random
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.engines.story import ANN, Clock, Story, completed, delta, lines

from headrace.engines.sqlite import SqliteEngine
from headrace.engines.sqlite.schema import VERSION
from headrace.errors import ConfigurationError, HeadraceError, LogCorrupt, NotFound
from headrace.ports import Block


async def start(folder: Path) -> Story:
    engine = SqliteEngine(folder / "log.db", clock=Clock())
    await engine.start()
    return Story(engine, Clock())


def change(folder: Path, sql: str, *parameters: object) -> None:
    db = sqlite3.connect(folder / "log.db", isolation_level=None)
    assert db.execute(sql, parameters).rowcount > 0
    db.close()


async def read_into(got: list[Sequence[Block]], story: Story, run_id: str) -> None:
    """What came before an error counts too."""
    async for blocks in story.engine.read(run_id, live=False):
        got.append(blocks)  # noqa: PERF401


def copy_of(folder: Path) -> Path:
    copy = folder / "copy"
    copy.mkdir()
    for file in folder.glob("log.db*"):
        shutil.copy(file, copy)
    return copy


async def three_runs(story: Story) -> dict[str, list[bytes]]:
    runs = [await story.ended(deltas=5) for _ in range(3)]
    return {run_id: await story.texts(run_id) for run_id in runs}


@pytest.mark.parametrize("seed", range(20))
async def test_a_damaged_block_is_not_served(sqlite_story: Story, tmp_path: Path, seed: int) -> None:
    whole = await three_runs(sqlite_story)
    chance = random.Random(seed)
    block = chance.randrange(1, 22)
    db = sqlite3.connect(tmp_path / "log.db")
    [[run_id, body]] = db.execute("SELECT r.id, body FROM blocks b JOIN runs r ON r.no = b.run WHERE b.id = ?", [block])
    db.close()
    if seed % 4 == 0:
        change(tmp_path, "UPDATE blocks SET checksum = checksum + 1 WHERE id = ?", block)
    else:
        at = chance.randrange(len(body))
        damaged = body[:at] + bytes([body[at] ^ (1 << chance.randrange(8))]) + body[at + 1 :]
        change(tmp_path, "UPDATE blocks SET body = ? WHERE id = ?", damaged, block)
    with pytest.raises(LogCorrupt):
        await sqlite_story.texts(run_id)
    for other in whole.keys() - {run_id}:
        assert await sqlite_story.texts(other) == whole[other]


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE blocks SET first = first + 1, last = last + 1 WHERE run = 2",
        "UPDATE blocks SET last = last + 1 WHERE run = 2",
        "UPDATE blocks SET run = 1 WHERE run = 2",
        "DELETE FROM blocks WHERE run = 2 AND first = 3",
        "UPDATE runs SET blocks = (SELECT blocks FROM runs WHERE no = 1) WHERE no = 2",
        "UPDATE runs SET blocks = NULL WHERE no = 2",
        "UPDATE runs SET blocks = x'010203' WHERE no = 2",
        "UPDATE runs SET blocks = substr(blocks, 1, 24) WHERE no = 2",
        "UPDATE runs SET head = head + 1 WHERE no = 2",
        "UPDATE runs SET head = head - 1 WHERE no = 2",
        "UPDATE runs SET record = x'00ff' WHERE no = 2",
    ],
)
async def test_a_block_in_anothers_place_is_not_served(sqlite_story: Story, tmp_path: Path, sql: str) -> None:
    whole = await three_runs(sqlite_story)
    first, damaged, third = whole
    change(tmp_path, sql)
    got: list[Sequence[Block]] = []
    with pytest.raises(LogCorrupt):
        await read_into(got, sqlite_story, damaged)
    assert lines(got) == whole[damaged][: len(lines(got))]
    for run_id in (first, third):
        assert await sqlite_story.texts(run_id) == whole[run_id]
        assert run_id in [head.run.id for head in await sqlite_story.engine.list(ANN, limit=2)] or run_id == first
    await sqlite_story.engine.delete(damaged)
    with pytest.raises(NotFound):
        await sqlite_story.engine.head(damaged)
    for run_id in (first, third):
        assert await sqlite_story.texts(run_id) == whole[run_id], "a damaged list deletes no block of another run"
    assert await sqlite_story.engine.trim(older_than=-1) == 2


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE runs SET record = x'00ff' WHERE no = 2",
        "UPDATE runs SET blocks = x'00ff' WHERE no = 2",
        "DELETE FROM blocks WHERE run = 2 AND first = 2",
        "DELETE FROM blocks WHERE run = 2",
        "UPDATE blocks SET first = 7 WHERE run = 2 AND first = 2",
    ],
)
async def test_damage_in_an_open_run_does_not_keep_the_server_from_starting(
    sqlite_story: Story, tmp_path: Path, sql: str
) -> None:
    leases = [await sqlite_story.claimed() for _ in range(3)]
    for lease in leases:
        for number in range(3):
            await sqlite_story.engine.append(lease.run_id, 1, [delta(number)])
    copy = copy_of(tmp_path)
    change(copy, sql)
    story = await start(copy)
    damaged = leases[1].run_id
    with pytest.raises(LogCorrupt):
        await story.texts(damaged)
    for _ in range(2):
        taken = await story.engine.claim("next")
        assert taken.run_id != damaged
        assert await story.engine.append(taken.run_id, 2, [completed()]) == 5
        assert len(await story.texts(taken.run_id)) == 5
    await story.engine.delete(damaged)
    await story.engine.close()


async def test_any_flipped_byte_of_the_file_serves_nothing_wrong(sqlite_story: Story, tmp_path: Path) -> None:
    whole = {run_id: texts for _ in range(4) for run_id, texts in (await three_runs(sqlite_story)).items()}
    await sqlite_story.engine.close()
    healthy = (tmp_path / "log.db").read_bytes()
    assert not (tmp_path / "log.db-wal").exists(), "close leaves one file"
    chance = random.Random(0)
    flipped = tmp_path / "flipped"
    flipped.mkdir()
    served = refused = 0
    for _ in range(150):
        for file in flipped.iterdir():
            file.unlink()
        at = chance.randrange(len(healthy))
        damaged = bytearray(healthy)
        damaged[at] ^= 1 << chance.randrange(8)
        (flipped / "log.db").write_bytes(damaged)
        engine = SqliteEngine(flipped / "log.db")
        try:
            await engine.start()
        except ConfigurationError:
            refused += 1
            continue
        for run_id, texts in whole.items():
            got: list[Sequence[Block]] = []
            try:
                await read_into(got, Story(engine, Clock()), run_id)
            except HeadraceError:
                refused += 1
            else:
                served += 1
                assert len(lines(got)) == len(texts)
            assert lines(got) == texts[: len(lines(got))]
        await engine.close()
    assert served > 1000
    assert refused > 0


async def test_a_file_of_another_kind_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    for content in (b"no database at all\n" * 100, os.urandom(8192)):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"log\.db"):
            await SqliteEngine(path).start()
        assert path.read_bytes() == content
    path.unlink()
    change_of = sqlite3.connect(path, isolation_level=None)
    change_of.execute("CREATE TABLE customers (name TEXT)")
    change_of.close()
    content = path.read_bytes()
    with pytest.raises(ConfigurationError, match="not a log"):
        await SqliteEngine(path).start()
    assert path.read_bytes() == content


async def test_a_log_of_a_newer_version_is_refused_and_left_as_it_is(sqlite_story: Story, tmp_path: Path) -> None:
    run_id = await sqlite_story.ended()
    await sqlite_story.engine.close()
    db = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    db.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigurationError, match="newer"):
        await (refused := SqliteEngine(tmp_path / "log.db")).start()
    await refused.close()
    db.execute(f"PRAGMA user_version = {VERSION}")
    db.close()
    story = await start(tmp_path)
    assert len(await story.texts(run_id)) == 5
    await story.engine.close()
