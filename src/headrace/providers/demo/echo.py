"""A model for load tests: says what it is told to, as fast, as long and as badly as it is told to."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import cycle, islice
from typing import Annotated, NamedTuple

from msgspec import Meta

from headrace.errors import BY_CODE, ConfigurationError, ModelCut, ModelEmpty, ModelError
from headrace.ports import ModelEvent, ModelFinish, ModelRequest, ModelText, ModelUsage
from headrace.providers.demo import words
from headrace.providers.demo.pace import Pace

_ERRORS = {code: cls for code, cls in BY_CODE.items() if issubclass(cls, ModelError)}
_NUMBERS = 1000

Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Milliseconds = Annotated[float, Meta(ge=0, le=3_600_000)]


class _Answer(NamedTuple):
    start: int
    """The first token that is left to say, after the prefix."""
    total: int
    tokens: Callable[[int, int], Sequence[ModelText]]
    """Tokens from one number up to another."""


def model_error(code: str) -> type[ModelError]:
    """The failure that `error` names. Raises `ConfigurationError`."""
    if code not in _ERRORS:
        raise ConfigurationError(f"`error` of `demo:echo` is one of {', '.join(sorted(_ERRORS))}.")
    return _ERRORS[code]


class EchoModel:
    """Says the last user message word by word, or, with `count`, so many tokens of `size` characters: `0000 0001 ...`.

    The same request gets the same text, wherever an earlier stream of it was cut. Tokens are counted from the beginning
    of the answer, so `error_after` and `stall_after` strike at the same place of a continued answer.
    """

    name = "demo:echo"
    continues = True

    def __init__(
        self,
        *,
        count: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None,
        size: Annotated[int, Meta(ge=1, le=10_000)] = 5,
        pace_ms: Milliseconds = 0.0,
        first_ms: Milliseconds = 0.0,
        batch: Annotated[int, Meta(ge=1, le=10_000)] = 32,
        error: str | None = None,
        error_after: Count | None = None,
        stall_after: Count | None = None,
    ) -> None:
        """`first_ms` is the time to the first token, `pace_ms` from token to token (0: as fast as it is read); at most
        `batch` tokens come at a time. After `error_after` tokens (none unless told) the model fails with the code
        `error` (`model.cut` unless told); after `stall_after` it says nothing more and does not end.
        """
        self._count = count
        self._size = size
        self._pace = pace_ms / 1000
        self._first = first_ms / 1000
        self._batch = batch
        self._error = model_error(error or ModelCut.code)
        self._error_after = 0 if error is not None and error_after is None else error_after
        self._stall_after = stall_after
        self._numbers = _numbers(size, batch) if count is not None else ()

    async def stream(self, request: ModelRequest) -> AsyncIterator[Sequence[ModelEvent]]:
        answer = self._answer(request)
        end = answer.total if request.max_tokens is None else min(answer.total, request.max_tokens)
        stops = [stop for stop in (end, self._error_after, self._stall_after) if stop is not None]
        said, until = answer.start, min(stops)
        pace = Pace(self._pace, first=self._first)
        while said < until:
            due = answer.start + await pace.reach(said - answer.start)
            upto = min(due, said + self._batch, until)
            yield answer.tokens(said, upto)
            said = upto
        await self._misbehave(said)
        yield (
            ModelUsage(input_tokens=words.asked(request), output_tokens=max(0, said - answer.start)),
            ModelFinish("stop" if end == answer.total else "length"),
        )

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def _misbehave(self, said: int) -> None:
        error, stall = self._error_after, self._stall_after
        if stall is not None and stall <= said and (error is None or stall <= error):
            await asyncio.get_running_loop().create_future()
        if error is not None and error <= said:
            raise self._error

    def _answer(self, request: ModelRequest) -> _Answer:
        if self._count is not None:
            return self._counted(self._count, len(request.prefix))
        question = words.question(request)
        if not question:
            raise ModelEmpty
        start, rest = words.after(words.split(question), len(request.prefix))
        return _Answer(
            start, start + len(rest), lambda begin, end: [ModelText(word) for word in rest[begin - start : end - start]]
        )

    def _counted(self, count: int, shown: int) -> _Answer:
        start, cut = divmod(shown, self._size)

        def tokens(begin: int, end: int) -> Sequence[ModelText]:
            wheel = begin % _NUMBERS
            texts = self._numbers[wheel : wheel + end - begin]
            if cut and begin == start:
                return (ModelText(texts[0].text[cut:]), *texts[1:])
            return texts

        return _Answer(start, count, tokens)


def _numbers(size: int, batch: int) -> tuple[ModelText, ...]:
    """A thousand tokens, each its number in `size` characters, and the first ones again for a batch across the end."""
    digits = max(1, size - 1)
    texts = (f"{number:0{digits}}"[-digits:] + " " * (size > 1) for number in range(_NUMBERS))
    return tuple(islice(cycle([ModelText(text) for text in texts]), _NUMBERS + batch))
