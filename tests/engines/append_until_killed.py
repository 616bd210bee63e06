"""A process of its own: writes runs as fast as it can and tells, by one line each, what was acknowledged.

    python append_until_killed.py FOLDER

`created RUN`, `claimed RUN ATTEMPT`, `acked RUN OFFSET TEXT`, `ended RUN OFFSET`; after a failure of the disk
`failed CODE` and then, for a create, an append, a claim and a read, what they gave.
"""

import asyncio
import os
import secrets
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from headrace.engines.sqlite import SqliteEngine
from headrace.errors import HeadraceError
from headrace.events import RunCompleted, RunStarted, TextDelta
from headrace.identity import Owner
from headrace.ports import Lease, Run
from headrace.position import new_epoch


def tell(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def delta(text: str) -> TextDelta:
    return TextDelta(message_id="m", step_id="s", agent="a", delta=text)


async def create(engine: SqliteEngine) -> None:
    run = Run(id=secrets.token_hex(6), epoch=new_epoch(), owner=Owner("t", "ann"), agent="a", input={}, created=0)
    await engine.create(run, RunStarted(agent="a", input_digest="0"))
    tell("created", run.id)


async def work(engine: SqliteEngine, name: str) -> None:
    while True:
        await create(engine)
        lease = await engine.claim(name)
        tell("claimed", lease.run_id, lease.attempt)
        for number in range(30):
            texts = [f"{lease.attempt}.{number}.{inner}" for inner in range(number % 4 + 1)]
            offset = await engine.append(lease.run_id, lease.attempt, [delta(text) for text in texts])
            tell("acked", lease.run_id, offset, texts[-1])
        tell("ended", lease.run_id, await engine.append(lease.run_id, lease.attempt, [RunCompleted(output="")]))


async def after_failure(engine: SqliteEngine, kept: Lease) -> None:
    attempts: dict[str, Callable[[], Awaitable[object]]] = {
        "create": lambda: create(engine),
        "append": lambda: engine.append(kept.run_id, kept.attempt, [delta("late")]),
        "claim": lambda: engine.claim("w"),
    }
    for name, attempt in attempts.items():
        try:
            await attempt()
            tell(name, "accepted")
        except HeadraceError as error:
            tell(name, error.code)
    tell("read", sum([len(block.events) async for blocks in engine.read(kept.run_id, live=False) for block in blocks]))


async def main(folder: Path) -> None:
    engine = SqliteEngine(folder / "log.db")
    await engine.start()
    await create(engine)
    kept = await engine.claim("keeper")
    tell("claimed", kept.run_id, kept.attempt)
    try:
        await asyncio.gather(*(work(engine, f"w{number}") for number in range(4)))
    except HeadraceError as error:
        tell("failed", error.code)
        await after_failure(engine, kept)
    await engine.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
