"""`headrace ask`, in processes and on a terminal."""

import asyncio
import os
import pty
from pathlib import Path

from tests.cli.conftest import Command, Interrupt
from tests.server.serving import PATIENCE, Serving, settings

from headrace.client import AsyncClient

HOSTILE = "safe \x1b[2J\x07text"


async def test_the_answer_alone_is_on_standard_output(headrace: Command, server: Serving) -> None:
    result = await headrace("ask", "Grüße, 世界")
    assert result == (0, "Grüße, 世界\n", "")


async def test_a_pipe_gets_the_text_as_it_is(headrace: Command, server: Serving) -> None:
    assert await headrace("ask", HOSTILE + "\n") == (0, HOSTILE + "\n", "")


async def test_most_tokens(headrace: Command, tmp_path: Path) -> None:
    async with Serving(settings(tmp_path), agents={}).open() as server:
        assert await headrace("ask", "a b c d", "--url", server.url, "--max-tokens", "2") == (0, "a b \n", "")


async def test_ctrl_c_ends_the_run_too(headrace: Command, server: Serving, interrupt: Interrupt) -> None:
    process = await headrace.begin("ask", "wait", "--agent", "stall")
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        assert await process.stdout.readexactly(6) == b"before"
    assert await interrupt(process) == (130, "\n", "")
    async with AsyncClient(server.url) as client, asyncio.timeout(PATIENCE):
        run_id = [info.id async for info in client.runs()].pop()
        kinds = [type(event).__name__ async for _, event in client.run(run_id).events()]
    assert kinds[-1] == "RunCancelled"


async def test_a_run_that_fails_is_an_error(headrace: Command, server: Serving) -> None:
    result = await headrace("ask", "x", "--agent", "fail")
    assert result == (1, "", "headrace: The agent failed.\n")


async def test_a_server_that_is_not_there_is_told_with_the_next_step(headrace: Command) -> None:
    code, out, err = await headrace("ask", "x", "--url", "http://127.0.0.1:1")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "headrace serve" in err


async def test_an_unknown_agent(headrace: Command, server: Serving) -> None:
    code, _, err = await headrace("ask", "x", "--agent", "nobody")
    assert (code, err) == (1, "headrace: There is nothing here that you can see.\n")


async def test_a_terminal_gets_figures_and_no_control_characters(headrace: Command, server: Serving) -> None:
    ours, theirs = pty.openpty()
    process = await headrace.begin("ask", HOSTILE, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = await asyncio.to_thread(read_all, ours)
    assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
    assert "safe \ufffd[2J\ufffdtext" in shown
    assert "the first after " in shown


def read_all(terminal: int) -> str:
    """Until nobody writes any more, which Linux tells by an error."""
    parts = []
    try:
        while part := os.read(terminal, 4096):
            parts.append(part)
    except OSError:
        pass
    os.close(terminal)
    return b"".join(parts).decode()
