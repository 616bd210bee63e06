"""Answers that are given again, and calls that are shared, where exactly the same is asked."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import msgspec

from headrace import json_schema
from headrace.errors import ModelOutputInvalid
from headrace.identity import Owner
from headrace.models.flight import FREE, Flight
from headrace.models.recording import Recording
from headrace.ports import Model, ModelData, ModelEvent, ModelRequest

Scope: TypeAlias = Literal["principal", "shared"]
Key: TypeAlias = tuple[Owner | None, bytes]
"""The owner is a part of its own, so that not even a collision of digests gives one owner the answer of another."""

_ENTRY_BYTES = 600
"""What an entry takes besides its recording."""


class _Entry(NamedTuple):
    recording: Recording
    since: float


class Asked(NamedTuple):
    """By a caller, before anything lowered it."""

    request: ModelRequest
    owner: Owner | None
    key: Key | None


class ResponseCache:
    """Around a model. `for_owner` gives the model that answers from here, for one run; they are cheap.

    - Only the very same request has the same answer: messages, tools, schemas, limits, and the model's name. With the
      scope `principal` each owner has answers of their own; with `shared` all have the same.
    - Kept are whole answers only, in memory: for `seconds` and up to `max_bytes`, the ones unused for longest go first.
    - The same request at the same time is one call (`Flight`).
    - A request that goes on after a `prefix` is passed on as it is.

    Not thread-safe: for one event loop.
    """

    def __init__(
        self,
        model: Model,
        *,
        scope: Scope,
        max_bytes: int = 64 << 20,
        seconds: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives monotonic seconds."""
        self.model = model
        self.bytes = 0
        """In memory now, about."""
        self._scope = scope
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._clock = clock
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._flights: dict[Key, Flight] = {}
        self._reading: set[asyncio.Task[None]] = set()
        """Of all flights, those included that are being closed."""

    def __len__(self) -> int:
        """Answers that are kept."""
        return len(self._entries)

    def for_owner(self, owner: Owner, around: Callable[[Model], Model] = lambda model: model) -> Model:
        """Nothing has to be started or closed for it. `around` is what stands between the caller and the answers, such
        as a budget: it may ask for less than the caller does, which makes no other request."""
        return _CachedModel(self, owner if self._scope == "principal" else None, around)

    async def start(self) -> None:
        await self.model.start()

    async def close(self) -> None:
        """Whoever still follows a call gets a `ModelCut`."""
        for task in self._reading:
            task.cancel()
        if self._reading:
            await asyncio.wait(self._reading)
        await self.model.close()

    async def answer(self, request: ModelRequest, asked: Asked) -> AsyncGenerator[Sequence[ModelEvent], None]:
        """`request` is what came of the one that was `asked`."""
        if asked.key is not None and (entry := self._look_up(asked.key)) is not None:
            yield [ModelData("cache", {"hit": True, "age": int(self._clock() - entry.since)}), FREE]
            for batch in entry.recording.batches:
                yield batch
            return
        key = asked.key if request is asked.request else self.key(request, asked.owner)
        source = self.model.stream(request) if key is None else self._flight(key, request, asked).follow()
        async with aclosing(cast("AsyncGenerator[Sequence[ModelEvent], None]", source)) as batches:
            async for batch in batches:
                yield batch

    def key(self, request: ModelRequest, owner: Owner | None) -> Key | None:
        """`None` where the request is not one that can have the same answer again."""
        if request.prefix:
            return None
        tools = [(tool.name, tool.description, tool.parameters) for tool in request.tools]
        exact = (self.model.name, msgspec.structs.replace(request, tools=()), tools)
        try:
            return owner, hashlib.sha256(_encoder.encode(exact)).digest()
        except (TypeError, ValueError):  # something in it is not plain data
            return None

    def _look_up(self, key: Key) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._clock() - entry.since >= self._seconds:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def _flight(self, key: Key, request: ModelRequest, asked: Asked) -> Flight:
        """The call that is being made for this request; a new one where there is none. What it gives is kept for what
        was asked: an answer that is whole with less is the answer."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = Flight(
                self.model.stream(request), lambda ended: self._landed(key, asked, ended)
            )
            self._reading.add(flight.task)
            flight.task.add_done_callback(self._reading.discard)
        return flight

    def _landed(self, key: Key, asked: Asked, flight: Flight) -> None:
        del self._flights[key]
        if not flight.over or flight.error is not None or asked.key is None:
            return
        try:
            recording = Recording.of(flight.batches)
        except (TypeError, ValueError):  # it holds what is not plain data
            return
        if recording is None:
            return
        entry = _Entry(recording, self._clock())
        schema = asked.request.output_schema
        if schema is None or recording.calls_tools:
            self._keep(asked.key, entry)
            return
        checking = asyncio.ensure_future(self._keep_what_fits(asked.key, entry, schema))
        self._reading.add(checking)
        checking.add_done_callback(self._reading.discard)

    async def _keep_what_fits(self, key: Key, entry: _Entry, schema: Mapping[str, Any]) -> None:
        """An answer that does not fit its schema is a failed one."""
        with suppress(ModelOutputInvalid):
            await asyncio.to_thread(json_schema.parse, entry.recording.text, schema)
            self._keep(key, entry)

    def _keep(self, key: Key, entry: _Entry) -> None:
        size = _size(entry)
        if size > self._max_bytes:
            return
        if key in self._entries:
            self._drop(key)
        self._entries[key] = entry
        self.bytes += size
        while self.bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Key) -> None:
        self.bytes -= _size(self._entries.pop(key))


class _CachedModel:
    def __init__(self, cache: ResponseCache, owner: Owner | None, around: Callable[[Model], Model]) -> None:
        self.name = cache.model.name
        self.continues = cache.model.continues
        self._cache = cache
        self._owner = owner
        self._around = around

    def stream(self, request: ModelRequest) -> AsyncIterator[Sequence[ModelEvent]]:
        asked = Asked(request, self._owner, self._cache.key(request, self._owner))
        return self._around(_Answers(self._cache, asked)).stream(request)

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class _Answers:
    """To what was asked, for what stands around them."""

    def __init__(self, cache: ResponseCache, asked: Asked) -> None:
        self.name = cache.model.name
        self.continues = cache.model.continues
        self._cache = cache
        self._asked = asked

    def stream(self, request: ModelRequest) -> AsyncIterator[Sequence[ModelEvent]]:
        return self._cache.answer(request, self._asked)

    async def start(self) -> None: ...

    async def close(self) -> None: ...


def _size(entry: _Entry) -> int:
    return entry.recording.size + _ENTRY_BYTES


def _as_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError


_encoder = msgspec.msgpack.Encoder(enc_hook=_as_plain, order="deterministic")
"""Not JSON, for which a number that is none is the same as nothing."""
