"""A model that replays a recorded stream with its timing."""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import msgspec

from headrace.errors import ConfigurationError, ModelCut
from headrace.ports import (
    ModelEvent,
    ModelFinish,
    ModelReasoning,
    ModelRequest,
    ModelText,
    ModelToolCall,
    ModelUsage,
)

SAMPLE = Path(__file__).parent / "sample.jsonl"
"""A short script that comes with the package."""


class ScriptLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a script: what came, so many milliseconds after the line before."""

    after_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    text: str | None = None
    reasoning: str | None = None
    tool_call: ModelToolCall | None = None
    usage: ModelUsage | None = None
    finish: str | None = None

    def __post_init__(self) -> None:
        if [self.text, self.reasoning, self.tool_call, self.usage, self.finish].count(None) != 4:
            raise ValueError("not exactly one")

    def event(self) -> ModelEvent:
        if self.text is not None:
            return ModelText(self.text)
        if self.reasoning is not None:
            return ModelReasoning(self.reasoning)
        return self.tool_call or self.usage or ModelFinish(self.finish or "stop")


class ScriptModel:
    """Gives the same stream to every request. A script that has no `finish` is replayed as an answer that broke off.

    Raises `ConfigurationError` when the script cannot be read.
    """

    name = "demo:script"
    continues = True

    def __init__(self, path: Path, *, speed: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 1.0) -> None:
        """`speed` 2 is twice as fast as recorded."""
        lines = _read(Path(path))
        self._events = [line.event() for line in lines]
        self._due = [milliseconds / 1000 / speed for milliseconds in accumulate(line.after_ms for line in lines)]

    async def stream(self, request: ModelRequest) -> AsyncIterator[Sequence[ModelEvent]]:
        done, rest = self._after(len(request.prefix))
        loop = asyncio.get_running_loop()
        start = loop.time() - (self._due[done - 1] if done else 0.0)
        if rest:
            yield [ModelText(rest)]
        while done < len(self._events):
            await asyncio.sleep(max(0.0, start + self._due[done] - loop.time()))
            due = max(done + 1, bisect_right(self._due, loop.time() - start))
            yield self._events[done:due]
            done = due
        if not isinstance(self._events[-1], ModelFinish):
            raise ModelCut

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    def _after(self, characters: int) -> tuple[int, str]:
        """The number of lines that so many characters of text fill, and what they leave of the last one."""
        done = 0
        for number, event in enumerate(self._events, start=1):
            if characters <= 0:
                break
            if isinstance(event, ModelText):
                done, characters = number, characters - len(event.text)
        event = self._events[done - 1]
        return done, event.text[characters:] if done and characters < 0 and isinstance(event, ModelText) else ""


_decode = msgspec.json.Decoder(ScriptLine).decode


def _read(path: Path) -> list[ScriptLine]:
    number = 0
    try:
        lines = []
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):  # noqa: B007
            if line.strip():
                lines.append(_decode(line))
    except msgspec.MsgspecError as error:
        raise ConfigurationError(
            f"Line {number} of the script of `demo:script` is not one: it is a JSON object with `after_ms` "
            "and exactly one of `text`, `reasoning`, `tool_call`, `usage`, `finish`."
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigurationError("The script of `demo:script` cannot be read. Check its path.") from error
    if not lines or any(line.finish is not None for line in lines[:-1]):
        raise ConfigurationError("The script of `demo:script` is empty, or goes on after its `finish`.")
    return lines
