"""The tools of a server: which there are, for whom, and one safe way to run one."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import jsonschema_rs
import msgspec
import structlog

from headrace import json_schema
from headrace.errors import ConfigurationError, ToolArgumentsInvalid, ToolError, ToolFailed, ToolTimeout
from headrace.events import ToolCallResult
from headrace.identity import is_printable_name
from headrace.ports import Run, Tool, ToolCall, ToolContext

logger = structlog.get_logger("headrace.tools")

_OUTPUT_LIMIT = 65_536
"""Characters."""
_CUT = "\n[cut: the result was longer than the limit]"
_NOTHING = object()


class ToolOutcome(NamedTuple):
    """What a call came to, or, where it is `preliminary`, how far it has got."""

    output: str
    is_error: bool = False
    is_json: bool = False
    preliminary: bool = False
    error: ToolError | None = None
    """Why, where `is_error`; `output` is the same in words for a model."""

    def event(self, tool_call_id: str) -> ToolCallResult:
        return ToolCallResult(
            tool_call_id=tool_call_id,
            output=self.output,
            is_error=self.is_error,
            is_json=self.is_json,
            preliminary=self.preliminary,
            code=self.error.code if self.error is not None else None,
        )


class _Entry(NamedTuple):
    tool: Tool
    arguments: jsonschema_rs.Validator
    slots: asyncio.Semaphore | None


class Toolbox:
    """Tools by name. A caller sees those whose `scope` is among theirs; the others do not exist for them."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._entries: dict[str, _Entry] = {}
        for tool in tools:
            self.add(tool)

    def add(self, tool: Tool) -> None:
        """Raises `ConfigurationError` for a name that is taken or none, and for a schema that is none."""
        if not is_printable_name(tool.name) or "/" in tool.name:
            raise ConfigurationError(f"The name of a tool is printable ASCII without a slash, not {tool.name!r:.200}.")
        if not (isinstance(tool.idempotent, bool) and isinstance(tool.approval, bool)):
            raise ConfigurationError(f"`idempotent` and `approval` of the tool {tool.name!r} are true or false.")
        if (tool.concurrency is not None and tool.concurrency < 1) or tool.timeout <= 0:
            raise ConfigurationError(f"`concurrency` and `timeout` of the tool {tool.name!r} are more than nothing.")
        if tool.name in self._entries:
            raise ConfigurationError(f"Two tools are named {tool.name!r}: rename one.")
        try:
            arguments = json_schema.validator(tool.parameters)
        except ValueError as error:
            raise ConfigurationError(f"`parameters` of the tool {tool.name!r} is no JSON Schema.") from error
        slots = asyncio.Semaphore(tool.concurrency) if tool.concurrency is not None else None
        self._entries[tool.name] = _Entry(tool, arguments, slots)

    def remove(self, name: str) -> None:
        del self._entries[name]

    def only(self, names: Collection[str]) -> "Toolbox":
        """A part of it, which shares its limits with the whole. Raises `ConfigurationError` for a name it has not."""
        part = Toolbox()
        for name in names:
            if name not in self._entries:
                raise ConfigurationError(f"There is no tool {name!r}. There are: {', '.join(self._entries) or 'none'}.")
            part._entries[name] = self._entries[name]
        return part

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def open_to(self, scopes: Collection[str]) -> tuple[Tool, ...]:
        """What a caller with these scopes may use."""
        return tuple(entry.tool for entry in self._entries.values() if _is_open(entry.tool, scopes))

    def find(self, name: str, scopes: Collection[str]) -> Tool | None:
        entry = self._entry(name, scopes)
        return entry.tool if entry is not None else None

    def faults(self, name: str, arguments: dict[str, Any]) -> list[dict[str, str]]:
        """What in the arguments does not fit the tool's schema, as JSON Pointers into them."""
        return json_schema.faults(arguments, self._entries[name].arguments)

    def may_repeat(self, name: str, scopes: Collection[str]) -> bool:
        """Whether a call that may have run already can be run again. A tool that is gone may have been there then."""
        tool = self.find(name, scopes)
        return tool is not None and tool.idempotent

    async def execute(self, call: ToolCall, run: Run) -> AsyncGenerator[ToolOutcome, None]:
        """Run a call as it was written: how far it gets, then its outcome, which is last.

        Never raises for what was asked or what the tool did wrong: that is an outcome in general words, since a model
        that reads it may repeat it to anybody. Closing it cancels the tool.
        """
        entry = self._entry(call.name, run.scopes)
        if entry is None:
            yield _refused(ToolFailed(f"There is no tool named {call.name[:128]!r}."))
            return
        try:
            arguments = msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
            faults = json_schema.faults(arguments, entry.arguments)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            yield _refused(ToolArgumentsInvalid("The arguments are not a JSON object."))
            return
        if faults:
            yield _refused(ToolArgumentsInvalid(errors=faults))
            return
        async with entry.slots or nullcontext():
            reports = _Reports()
            context = ToolContext(run=run, tool_call_id=call.id, report=reports.put)
            working = asyncio.ensure_future(_outcome(entry.tool, arguments, context))
            working.add_done_callback(lambda _: reports.wake())
            try:
                while not working.done():
                    await reports.wait()
                    if (report := reports.take()) is not _NOTHING:
                        yield _as_output(report)._replace(preliminary=True)
                # A tool may have cancelled itself, which is a failure like any other.
                yield _refused(ToolFailed()) if working.cancelled() else working.result()
            finally:
                if not working.done():
                    working.cancel()
                    await asyncio.wait([working])

    def _entry(self, name: str, scopes: Collection[str]) -> _Entry | None:
        entry = self._entries.get(name)
        return entry if entry is not None and _is_open(entry.tool, scopes) else None


class _Reports:
    """The newest report of a call: who shows it may be slower than who makes them, and a newer one replaces it."""

    def __init__(self) -> None:
        self._report: Any = _NOTHING
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def put(self, report: Any) -> None:
        """From any thread. Raises for what a log could not hold."""
        _as_output(report)
        self._report = report
        self._loop.call_soon_threadsafe(self._news.set)

    def wake(self) -> None:
        self._news.set()

    async def wait(self) -> None:
        await self._news.wait()
        self._news.clear()

    def take(self) -> Any:
        report, self._report = self._report, _NOTHING
        return report


async def _outcome(tool: Tool, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
    try:
        async with asyncio.timeout(tool.timeout) as limit:
            return _as_output(await tool.call(arguments, context))
    except ToolError as error:
        logger.info("tool refused", tool=tool.name, run_id=context.run.id, code=error.code)
        return _refused(error)
    except (Exception, SystemExit):  # a tool must not end the server
        if limit.expired():
            return _refused(ToolTimeout(f"The tool took longer than {tool.timeout:g} seconds."))
        logger.exception("tool failed", tool=tool.name, run_id=context.run.id)
        return _refused(ToolFailed())


def _is_open(tool: Tool, scopes: Collection[str]) -> bool:
    return tool.scope is None or tool.scope in scopes


def _refused(error: ToolError) -> ToolOutcome:
    """In words for a model: no more of them than of a result, and only what a log can hold."""
    error.message = _cut(error.message.encode(errors="replace").decode())
    words = error.message + "".join(
        f"\n{fault.get('pointer') or '/'}: {fault['detail']}" for fault in error.extra.get("errors", ())
    )
    return ToolOutcome(_cut(words.encode(errors="replace").decode()), is_error=True, error=error)


def _as_output(result: Any) -> ToolOutcome:
    """Raises for what a log could not hold: no JSON, or half of a surrogate pair."""
    is_json = not isinstance(result, str)
    text = msgspec.json.encode(result).decode() if is_json else result
    text.encode()
    cut = _cut(text)
    return ToolOutcome(cut, is_json=is_json and cut is text)


def _cut(text: str) -> str:
    return text if len(text) <= _OUTPUT_LIMIT else text[:_OUTPUT_LIMIT] + _CUT
