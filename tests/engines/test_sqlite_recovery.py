"""What a new process finds after the last one ended, in order or not."""

import asyncio
import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tests.engines.story import ANN, Clock, Story, completed, delta, entries

from headrace.engines.sqlite import SqliteEngine
from headrace.errors import ConfigurationError, PositionGone

APPENDER = Path(__file__).with_name("append_until_killed.py")


def copy_log(source: Path, folder: Path) -> None:
    folder.mkdir()
    for file in source.glob("log.db*"):
        shutil.copy(file, folder)


async def start_on_copy(story: Story, folder: Path) -> Story:
    """What a new process would find if the one of `story` were killed now."""
    assert isinstance(story.engine, SqliteEngine)
    copy_log(story.engine._path.parent, folder)
    return await start(folder)


async def start(folder: Path) -> Story:
    clock = Clock()
    engine = SqliteEngine(folder / "log.db", clock=clock)
    await engine.start()
    return Story(engine, clock)


async def write(story: Story, run_id: str, attempt: int, count: int) -> None:
    for number in range(count):
        await story.engine.append(run_id, attempt, [delta(number)] * (number % 3 + 1))


async def test_a_new_process_goes_on_where_the_last_one_ended(sqlite_story: Story, tmp_path: Path) -> None:
    ended = await sqlite_story.ended()
    lease = await sqlite_story.claimed()
    await write(sqlite_story, lease.run_id, 1, 5)
    before = {run_id: await sqlite_story.texts(run_id) for run_id in (ended, lease.run_id)}
    await sqlite_story.engine.close()

    again = await start(tmp_path)
    assert {run_id: await again.texts(run_id) for run_id in before} == before
    head = await again.engine.head(lease.run_id)
    assert (head.state, head.offset) == ("queued", len(before[lease.run_id]))
    assert [one.run.id for one in await again.engine.list(ANN, limit=9, state="queued")] == [lease.run_id]
    taken = await again.engine.claim("next")
    assert (taken.run_id, taken.attempt) == (lease.run_id, 2)
    assert await again.engine.append(lease.run_id, 2, [completed()]) == len(before[lease.run_id]) + 1
    await again.engine.close()


@pytest.mark.parametrize("indexed_after", [None, 0, 3, 6])
async def test_blocks_are_found_that_no_index_names(
    sqlite_story: Story, tmp_path: Path, indexed_after: int | None
) -> None:
    leases = [await sqlite_story.claimed() for _ in range(3)]
    for number in range(7):
        if number == indexed_after:
            assert isinstance(sqlite_story.engine, SqliteEngine)
            sqlite_story.engine._write_index()
        for lease in leases:
            await sqlite_story.engine.append(lease.run_id, 1, [delta(number)] * (number % 3 + 1))
    again = await start_on_copy(sqlite_story, tmp_path / "copy")
    for lease in leases:
        whole = await sqlite_story.texts(lease.run_id)
        for after in range(len(whole) + 1):
            assert await again.texts(lease.run_id, after) == whole[after:]
        taken = await again.engine.claim("next")
        assert (taken.run_id, taken.attempt) == (lease.run_id, 2)
        assert await again.engine.append(lease.run_id, 2, [completed()]) == len(whole) + 1
        assert (await again.texts(lease.run_id))[:-1] == whole
    await again.engine.close()


async def test_the_feed_goes_on_across_a_restart(sqlite_story: Story, tmp_path: Path) -> None:
    for _ in range(3):
        await sqlite_story.ended()
    seen = entries([batch async for batch in sqlite_story.engine.feed(ANN, 0, live=False)])
    epoch = sqlite_story.engine.feed_epoch
    await sqlite_story.engine.close()
    again = await start(tmp_path)
    assert again.engine.feed_epoch == epoch
    for entry in (seen[0], seen[7], seen[-1]):
        rest = entries([batch async for batch in again.engine.feed(ANN, entry.sequence, live=False)])
        assert [one.sequence for one in rest] == [one.sequence for one in seen if one.sequence > entry.sequence]
    for run_id in {entry.run_id for entry in seen}:
        await again.engine.delete(run_id)
    await again.engine.close()

    once_more = await start(tmp_path)
    assert [batch async for batch in once_more.engine.feed(ANN, seen[-1].sequence, live=False)] == []
    await once_more.engine.create(msgspec.structs.replace(once_more.run(), id="new"), delta("first"))
    rest = entries([batch async for batch in once_more.engine.feed(ANN, seen[-1].sequence, live=False)])
    assert [entry.run_id for entry in rest] == ["new"], "ids of deleted blocks are not given out again"
    await once_more.engine.close()


async def test_a_trimmed_run_stays_trimmed(sqlite_story: Story, tmp_path: Path) -> None:
    run_id = await sqlite_story.ended()
    await sqlite_story.engine.trim(older_than=-1)
    await sqlite_story.engine.close()
    again = await start(tmp_path)
    with pytest.raises(PositionGone):
        await again.texts(run_id)
    with pytest.raises(PositionGone):
        await anext(again.engine.feed(ANN, 0, live=False))
    await again.engine.close()


async def test_close_commits_what_was_submitted(sqlite_story: Story, tmp_path: Path) -> None:
    lease = await sqlite_story.claimed()
    ended = await sqlite_story.ended()
    appended = sqlite_story.engine.append(lease.run_id, 1, [delta("last words")])
    deleting = asyncio.create_task(sqlite_story.engine.delete(ended))
    claiming = asyncio.create_task(sqlite_story.engine.claim("w"))
    await asyncio.sleep(0)
    await sqlite_story.engine.close()
    assert await appended == 2
    await deleting
    results = await asyncio.gather(
        claiming,
        sqlite_story.engine.claim("w"),
        sqlite_story.engine.append(lease.run_id, 1, [delta("late")]),
        sqlite_story.engine.create(sqlite_story.run(), delta("late")),
        return_exceptions=True,
    )
    assert [type(result).__name__ for result in results] == ["StorageFailed"] * 4
    again = await start(tmp_path)
    assert b"last words" in (await again.texts(lease.run_id))[-1]
    assert [head.run.id for head in await again.engine.list(ANN, limit=9)] == [lease.run_id]
    await again.engine.close()


def appending(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, APPENDER, folder], stdout=subprocess.PIPE, text=True)


class Told:
    """What the processes said was acknowledged."""

    def __init__(self) -> None:
        self.acked: dict[str, dict[int, str]] = {}
        self.attempts: dict[str, int] = {}
        self.ended: dict[str, int] = {}

    def hear(self, line: str) -> None:
        match line.split():
            case ["created", run_id]:
                self.acked[run_id] = {1: ""}
            case ["claimed", run_id, attempt]:
                assert int(attempt) > self.attempts.get(run_id, 0)
                self.attempts[run_id] = int(attempt)
            case ["acked", run_id, offset, text]:
                self.acked.setdefault(run_id, {})[int(offset)] = f'"{text}"'
            case ["ended", run_id, offset]:
                self.ended[run_id] = int(offset)


async def check(told: Told, folder: Path) -> None:
    """Everything that was acknowledged is there, in its place, and every other run can go on."""
    story = await start(folder)
    waiting = set()
    for run_id, acked in told.acked.items():
        found = await story.texts(run_id)  # has neither hole nor repeat, or this raises
        for offset, text in acked.items():
            assert text.encode() in found[offset - 1]
        head = await story.engine.head(run_id)
        if run_id in told.ended:
            assert (head.state, head.offset) == ("completed", told.ended[run_id])
        if not head.closed:
            waiting.add(run_id)
    async with asyncio.timeout(60):
        while waiting:
            lease = await story.engine.claim("check")
            waiting.discard(lease.run_id)
            assert lease.attempt > told.attempts.get(lease.run_id, 0)
            told.attempts[lease.run_id] = lease.attempt
    await story.engine.close()


async def test_twenty_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    chance, told = random.Random(20), Told()
    for _ in range(20):
        with appending(tmp_path) as child:
            assert child.stdout is not None
            for _ in range(chance.randrange(1, 400)):
                told.hear(child.stdout.readline())
            child.kill()
            for line in child.stdout:
                if line.endswith("\n"):
                    told.hear(line)
        await check(told, tmp_path)
    assert sum(map(len, told.acked.values())) > 1000


async def test_two_processes_do_not_share_a_log(tmp_path: Path) -> None:
    with appending(tmp_path) as child:
        assert child.stdout is not None
        child.stdout.readline()
        second = SqliteEngine(tmp_path / "log.db")
        with pytest.raises(ConfigurationError, match="Another Headrace"):
            await second.start()
        await second.close()
        child.kill()
        child.stdout.read()
    await (await start(tmp_path)).engine.close()
