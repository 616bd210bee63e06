"""A Python function as a tool: its signature is the schema, its docstring the description."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, PydanticUserError, ValidationError, create_model

from headrace.errors import ConfigurationError, ToolArgumentsInvalid
from headrace.json_schema import to_pointer
from headrace.ports import Tool, ToolContext
from headrace.tools.threads import Threads

_MOST_THREADS = 16
"""Of a tool that sets no limit."""

ToolFunction = Callable[..., Any]
"""A function or a coroutine function. A parameter of type `ToolContext` gets the context of the call."""


@dataclass(frozen=True, kw_only=True)
class FunctionTool:
    """A coroutine function of keyword arguments as a tool, with a schema that is given. `tool` reads it from types."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., Awaitable[Any]]
    idempotent: bool = False
    timeout: float = 30.0
    concurrency: int | None = None
    scope: str | None = None
    approval: bool = False

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Any:
        return await self.function(**arguments)


class TypedFunctionTool(Tool):
    """Made by `tool`."""

    name = ""
    description = ""
    parameters: Mapping[str, Any] = {}
    idempotent = False
    timeout = 30.0
    concurrency: int | None = None
    scope: str | None = None
    approval = False

    def __init__(self, function: ToolFunction, options: Mapping[str, Any]) -> None:
        self.name = getattr(function, "__name__", "")
        self.description = inspect.getdoc(function) or ""
        for option, value in options.items():
            if value is not None:
                setattr(self, option, value)
        if not self.description:
            raise ConfigurationError(f"The tool {self.name!r} needs a docstring: it is what a model reads of it.")
        self._function = function
        self._threads = Threads(f"tool {self.name}", self.concurrency or _MOST_THREADS)
        self._arguments, self._context_name = _read_signature(self.name, function)
        self.parameters = _schema(self.name, self._arguments)

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Any:
        try:
            model = self._arguments.model_validate(arguments)
        except ValidationError as error:
            faults = [{"pointer": to_pointer(each["loc"]), "detail": each["msg"]} for each in error.errors()]
            raise ToolArgumentsInvalid(errors=faults) from error
        values = {name: getattr(model, name) for name in type(model).model_fields}
        if self._context_name is not None:
            values[self._context_name] = context
        if inspect.iscoroutinefunction(self._function):
            result = await self._function(**values)
        else:
            result = await self._threads.run(lambda: self._function(**values))
        return result.model_dump(mode="json") if isinstance(result, BaseModel) else result


@overload
def tool(function: ToolFunction, /) -> TypedFunctionTool: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    idempotent: bool = False,
    timeout: float = 30.0,
    concurrency: int | None = None,
    scope: str | None = None,
    approval: bool = False,
) -> Callable[[ToolFunction], TypedFunctionTool]: ...


def tool(
    function: ToolFunction | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    idempotent: bool = False,
    timeout: float = 30.0,
    concurrency: int | None = None,
    scope: str | None = None,
    approval: bool = False,
) -> Any:
    """A tool from a typed function, as a decorator with or without options; see `Tool` for what they mean.

    Types are those that pydantic knows, and `Annotated[int, Field(ge=0, description="...")]` says more of one. A plain
    function is run in a thread, where nothing can end it: its time limit ends the waiting for it only.
    """
    options = {
        "name": name,
        "description": description,
        "idempotent": idempotent,
        "timeout": timeout,
        "concurrency": concurrency,
        "scope": scope,
        "approval": approval,
    }
    if function is not None:
        return TypedFunctionTool(function, options)
    return lambda function: TypedFunctionTool(function, options)


def _read_signature(name: str, function: ToolFunction) -> tuple[type[BaseModel], str | None]:
    """The arguments as a model, and which parameter takes the context. Raises `ConfigurationError`."""
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    context_name = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigurationError(f"The tool {name!r} takes {parameter}: every argument needs a name of its own.")
        if parameter.name not in hints:
            raise ConfigurationError(f"The argument {parameter.name!r} of the tool {name!r} needs a type.")
        if hints[parameter.name] is ToolContext:
            context_name = parameter.name
        else:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
    try:
        return create_model(name, __config__=ConfigDict(extra="forbid"), **fields), context_name
    except (PydanticUserError, NameError) as error:
        raise ConfigurationError(f"The arguments of the tool {name!r} have a type that JSON cannot bring.") from error


def _schema(name: str, arguments: type[BaseModel]) -> Mapping[str, Any]:
    try:
        schema = arguments.model_json_schema()
    except PydanticUserError as error:
        raise ConfigurationError(f"The arguments of the tool {name!r} have a type that JSON cannot bring.") from error
    schema.pop("title", None)
    for field in schema.get("properties", {}).values():
        field.pop("title", None)
    return schema
