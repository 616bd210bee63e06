"""The file of a job is there whole or not at all, is read as it was written, and nothing else is cleaned up."""

import asyncio
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import msgspec
import pytest

from headrace.batch.jobs.file import JobFiles, Operation
from headrace.errors import LogCorrupt, StorageFull
from headrace.runs import new_run_id


def operation(number: int, **changes: Any) -> Operation:
    fields = {"id": f"line {number}", "kind": "chat", "agent": "default", "input": {"message": f"No. {number} é\n"}}
    return msgspec.convert({**fields, **changes}, Operation)


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path / "data" / "batches")


async def kept(files: JobFiles, *operations: Operation) -> str:
    """The id of the run whose file has these."""
    run_id = new_run_id()
    file = files.create(run_id)
    for each in operations:
        file.write(each)
    await file.keep()
    file.discard()
    return run_id


async def content(files: JobFiles, run_id: str) -> list[tuple[int, Operation]]:
    return [each async for some in files.read(run_id) for each in some]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "data" / "batches").iterdir())


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 512, 513, 3000])
async def test_operations_come_back_in_order_with_their_lines(files: JobFiles, count: int) -> None:
    operations = [operation(number) for number in range(1, count + 1)]
    run_id = await kept(files, *operations)
    assert await content(files, run_id) == list(enumerate(operations, 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"input": {}},
        {"input": {"text": "line\nbreak\r\n\u2028\0 \U0001f30a", "deep": [[[{"a": None}]]], "large": 10**15}},
        {"kind": "tool", "agent": "tool", "input": {"tool": "t", "parameters": {"n": 1.5, "b": [True, None]}}},
        {"kind": "run", "conversation_id": "c 1"},
        {"id": '"\\'},
    ],
)
async def test_whatever_an_operation_holds_comes_back(files: JobFiles, changes: dict[str, Any]) -> None:
    written = [operation(1), operation(2, **changes), operation(3)]
    run_id = await kept(files, *written)
    assert await content(files, run_id) == list(enumerate(written, 1))


async def test_a_command_asks_for_what_the_line_asked_for() -> None:
    command = operation(1, agent="mill", conversation_id="c").command()
    assert (command.agent, command.input, command.conversation_id) == ("mill", {"message": "No. 1 é\n"}, "c")


async def test_jobs_do_not_see_each_other(files: JobFiles) -> None:
    first, second = await kept(files, operation(1)), await kept(files, operation(2), operation(3))
    assert [line for line, _ in await content(files, first)] == [1]
    await files.delete(first)
    assert [line for line, _ in await content(files, second)] == [1, 2]


async def test_a_file_can_be_read_by_several_and_left_in_the_middle(files: JobFiles) -> None:
    run_id = await kept(files, *map(operation, range(1000)))
    one, other = files.read(run_id), files.read(run_id)
    first = await anext(one)
    assert await anext(other) == first
    await one.aclose()
    assert len([each async for some in other for each in some]) == 1000 - len(first)


async def test_large_lines_are_not_read_many_at_a_time(files: JobFiles) -> None:
    run_id = await kept(files, *(operation(number, input={"text": "x" * 500_000}) for number in range(100)))
    tracemalloc.start()
    try:
        lines = 0
        async for some in files.read(run_id):
            lines += len(some)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lines == 100
    assert peak < 10_000_000


# --- whole or not at all ----------------------------------------------------------------------------------------------


async def test_what_was_not_kept_is_no_job(files: JobFiles, tmp_path: Path) -> None:
    run_id = new_run_id()
    file = files.create(run_id)
    file.write(operation(1))
    with pytest.raises(FileNotFoundError):
        await content(files, run_id)
    for _ in range(3):
        file.discard()
    with pytest.raises(FileNotFoundError):
        await content(files, run_id)
    assert names(tmp_path) == []


async def test_what_was_kept_outlives_its_writer(files: JobFiles, tmp_path: Path) -> None:
    run_id = await kept(files, operation(1))
    assert await content(JobFiles(tmp_path / "data" / "batches"), run_id) == [(1, operation(1))]
    assert names(tmp_path) == [f"{run_id}.jsonl"]


async def test_it_has_its_name_only_when_it_is_on_the_disk(files: JobFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the folder is on the disk as well before a job may be made of it."""
    calls: list[str] = []

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def note(*given: Any) -> Any:
            is_folder = name == "fsync" and os.path.isdir(f"/proc/self/fd/{given[0]}")
            calls.append(f"{name} of the folder" if is_folder else name)
            return call(*given)

        return note

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    await kept(files, operation(1))
    assert calls == ["fsync", "replace", "fsync of the folder"]


KILLED = """
    import asyncio, os, signal, sys
    from pathlib import Path
    from headrace.batch.jobs.file import JobFiles, Operation

    async def main():
        file = JobFiles(Path(sys.argv[1])).create(sys.argv[2])
        for number in range(100_000):
            file.write(Operation(id=str(number), kind="chat", agent="default", input={"message": "x" * 50}))
        if sys.argv[3] == "kept":
            await file.keep()
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["before", "kept"])
async def test_a_kill_before_it_is_kept_leaves_no_job(files: JobFiles, tmp_path: Path, when: str) -> None:
    run_id = new_run_id()
    arguments = ["-c", dedent(KILLED), str(tmp_path / "data" / "batches"), run_id, when]
    killed = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    assert await asyncio.wait_for(killed.wait(), 60) == -signal.SIGKILL
    if when == "before":
        assert names(tmp_path) != []
        with pytest.raises(FileNotFoundError):
            await content(files, run_id)
        await files.delete_orphans(known())
        assert names(tmp_path) == []
    else:
        assert len(await content(files, run_id)) == 100_000


async def test_deleting_twice_is_once(files: JobFiles, tmp_path: Path) -> None:
    run_id = await kept(files, operation(1))
    await files.delete(run_id)
    await files.delete(run_id)
    assert names(tmp_path) == []


async def test_nobody_else_on_the_machine_reads_them(files: JobFiles, tmp_path: Path) -> None:
    await kept(files, operation(1))
    assert (tmp_path / "data" / "batches").stat().st_mode & 0o077 == 0


# --- orphans ----------------------------------------------------------------------------------------------------------


def known(*run_ids: str, damaged: str | None = None) -> Callable[[str], Awaitable[bool]]:
    async def is_known(run_id: str) -> bool:
        if run_id == damaged:
            raise LogCorrupt
        return run_id in run_ids

    return is_known


async def test_only_files_of_runs_that_are_not_there_are_cleaned_up(files: JobFiles, tmp_path: Path) -> None:
    here, gone = await kept(files, operation(1)), await kept(files, operation(2))
    half = files.create(new_run_id())
    half.write(operation(3))
    await files.delete_orphans(known(here))
    half.discard()
    assert names(tmp_path) == [f"{here}.jsonl"]
    assert gone != here


async def test_the_file_of_a_run_that_cannot_be_read_stays(files: JobFiles, tmp_path: Path) -> None:
    """Nobody knows whether it is needed, and the start must not fail."""
    damaged, gone = await kept(files, operation(1)), await kept(files, operation(2))
    await files.delete_orphans(known(damaged=damaged))
    assert names(tmp_path) == [f"{damaged}.jsonl"]
    assert gone != damaged


async def test_what_is_not_ours_is_left_alone(files: JobFiles, tmp_path: Path) -> None:
    """A data directory may be a folder that people keep their own files in."""
    gone = await kept(files, operation(1))
    folder = tmp_path / "data" / "batches"
    theirs = ["march.jsonl", "notes.txt", "run_2.jsonl", ".hidden", f"{gone}.jsonl.bak", f"copy of {gone}.jsonl"]
    for name in theirs:
        (folder / name).write_text("{}\n")
    (folder / "results").mkdir()
    (folder / f"{new_run_id()}.jsonl").mkdir()
    await files.delete_orphans(known())
    assert {*theirs, "results"} < set(names(tmp_path))
    assert f"{gone}.jsonl" not in names(tmp_path)


async def test_without_a_folder_there_is_nothing_to_clean(tmp_path: Path) -> None:
    await JobFiles(tmp_path / "nowhere").delete_orphans(known())
    assert not (tmp_path / "nowhere").exists()


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]).returncode:
        pytest.skip("a file system of 1 MB can be mounted by root only")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(ballast: Path) -> None:
    """To the last byte."""
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 1000)


async def _write_much(files: JobFiles) -> None:
    file = files.create(new_run_id())
    try:
        for number in range(2000):
            file.write(operation(number, input={"text": "x" * 1000}))
        await file.keep()
    finally:
        file.discard()


async def _write_little_at_the_end_of_the_disk(files: JobFiles) -> None:
    file = files.create(new_run_id())
    try:
        file.write(operation(1, input={"text": "x" * 5000}))  # stays in the buffer
        await file.keep()
    finally:
        file.discard()


@pytest.mark.parametrize("story", [_write_much, _write_little_at_the_end_of_the_disk])
async def test_a_full_disk_is_told_as_such_and_keeps_nothing(
    small_disk: Path, story: Callable[[JobFiles], Awaitable[None]]
) -> None:
    files = JobFiles(small_disk / "batches")
    await kept(files, operation(1))
    ballast = small_disk / "ballast"
    if story is _write_little_at_the_end_of_the_disk:
        fill(ballast)
    with pytest.raises(StorageFull) as full:
        await story(files)
    assert full.value.retry_after
    ballast.unlink(missing_ok=True)
    assert len(list((small_disk / "batches").iterdir())) == 1
    again = await kept(files, operation(1), operation(2))
    assert len(await content(files, again)) == 2
