"""A disk that is full, and a disk that fails."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engines.story import ANN, Clock, Story, completed, delta, started

from headrace.engines.sqlite import SqliteEngine
from headrace.errors import StorageFailed, StorageFull

APPENDER = Path(__file__).with_name("append_until_killed.py")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder]).returncode:
        pytest.skip("a file system of 8 MB can be mounted by root only")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Take all the space that is left."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return ballast


async def start(folder: Path) -> Story:
    engine = SqliteEngine(folder / "log.db", clock=Clock())
    await engine.start()
    return Story(engine, Clock())


async def create_refused(story: Story) -> None:
    """Create until the disk is full."""
    async with asyncio.timeout(60):
        while True:
            try:
                await story.engine.create(story.run(), delta("x" * 10_000))
            except StorageFull:
                return


async def create_accepted(story: Story) -> str:
    async with asyncio.timeout(60):
        while True:
            run = story.run()
            try:
                await story.engine.create(run, started())
            except StorageFull:
                await asyncio.sleep(0.05)
            else:
                return run.id


async def test_writers_wait_for_space_and_readers_go_on(small_disk: Path) -> None:
    story = await start(small_disk)
    lease = await story.claimed()
    futures = [story.engine.append(lease.run_id, 1, [delta("before")])]
    await futures[0]
    for _ in range(3):
        await create_accepted(story)
        ballast = fill(small_disk)
        await create_refused(story)
        for number in range(30):
            futures.append(story.engine.append(lease.run_id, 1, [delta(f"{number}" + "x" * 10_000)]))
            await asyncio.sleep(0.001)
        claiming = asyncio.create_task(story.engine.claim("w"))
        with pytest.raises(StorageFull) as full:
            await story.engine.create(story.run(), started())
        assert full.value.retry_after
        committed = (await story.engine.head(lease.run_id)).offset
        assert len(await story.texts(lease.run_id)) == committed
        assert not futures[-1].done()
        ballast.unlink()
        async with asyncio.timeout(60):
            offsets = await asyncio.gather(*futures)
            await claiming
        assert offsets[-1] == len(futures) + 1
    assert await story.engine.append(lease.run_id, 1, [completed()]) == len(futures) + 2
    texts = await story.texts(lease.run_id)
    assert len(texts) == len(futures) + 2
    await create_accepted(story)
    await story.engine.close()
    again = await start(small_disk)
    assert await again.texts(lease.run_id) == texts
    await again.engine.close()


async def test_new_runs_are_taken_again_also_when_nothing_else_waits(small_disk: Path) -> None:
    story = await start(small_disk)
    ballast = fill(small_disk)
    await create_refused(story)
    ballast.unlink()
    run_id = await create_accepted(story)
    assert len(await story.texts(run_id)) == 1
    await story.engine.close()


async def test_close_on_a_full_disk_refuses_what_still_waits(small_disk: Path) -> None:
    story = await start(small_disk)
    lease = await story.claimed()
    ballast = fill(small_disk)
    await create_refused(story)
    waiting = [story.engine.append(lease.run_id, 1, [delta("x" * 10_000)]) for _ in range(3)]
    async with asyncio.timeout(60):
        await story.engine.close()
    for future in waiting:
        with pytest.raises(StorageFailed):
            await future
    ballast.unlink()
    again = await start(small_disk)
    assert len(await again.texts(lease.run_id)) == 1
    await again.engine.close()


def failing_fsync(folder: Path, after: int) -> list[str]:
    """What `append_until_killed` says where its fdatasync calls fail from the given one on."""
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync"]
    inject = ["-e", f"inject=fdatasync:error=EIO:when={after}+"]
    command = [*strace, *inject, sys.executable, str(APPENDER), str(folder)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=100, check=True).stdout.splitlines()


def can_trace() -> bool:
    return shutil.which("strace") is not None and not subprocess.run(["strace", "-o", "/dev/null", "true"]).returncode


@pytest.mark.parametrize("after", [9, 40, 41, 100])
async def test_nothing_is_acknowledged_after_a_failed_fsync(tmp_path: Path, after: int) -> None:
    if not can_trace():
        pytest.skip("strace, which makes fdatasync fail, is not installed or not allowed here")
    told = await asyncio.to_thread(failing_fsync, tmp_path, after)
    at = told.index("failed storage_failed")
    assert told[at + 1 : at + 4] == ["create storage_failed", "append storage_failed", "claim storage_failed"]
    assert [line.split()[0] for line in told[at + 4 :]] == ["read"]

    story = await start(tmp_path)
    acked = [line.split() for line in told[:at] if line.startswith("acked")]
    assert acked or after < 10
    for _, run_id, offset, text in acked:
        assert f'"{text}"'.encode() in (await story.texts(run_id))[int(offset) - 1]
    assert await story.engine.list(ANN, limit=1)
    await story.engine.close()
