"""Holds what a model says to the JSON Schema that its caller gave, and the arguments of a tool to the tool's.

A schema comes from outside, so it gets no chance to do harm: references lead nowhere but into the schema itself,
patterns are matched in linear time (so they know no look-around and no back-reference), and a schema that may take
more time than its size says is checked in a process that is ended after `LONGEST_CHECK`: nothing else interrupts it.
"""

import subprocess
import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any
from urllib.parse import unquote

import jsonschema_rs
import msgspec

from headrace.errors import InvalidField, ModelOutputInvalid
from headrace.partial_json import decode

MAX_SIZE = 64 * 1024
"""Bytes of a schema as JSON."""
MAX_PATTERNS = 100
LONGEST_CHECK = 5.0
"""Seconds."""

_MOST_FAULTS = 20
_LONGEST_FAULT = 200
"""Characters: a message has the value in it."""
_MAX_PATTERN_SIZE = 1024 * 1024
_MAX_WRITTEN_OUT = 50_000
_ELSEWHERE = ("$id", "id", "$anchor", "$dynamicRef", "$recursiveRef")
"""Keywords by which references lead to what is not found by a pointer."""


def check(schema: Mapping[str, Any], pointer: str = "/output_schema") -> None:
    """Raises `InvalidField` where `parse` cannot use the schema. `pointer` says where it stands in the input."""
    if len(msgspec.json.encode(schema)) > MAX_SIZE:
        raise _invalid(pointer, f"a JSON Schema of at most {MAX_SIZE // 1024} KiB")
    if _patterns(schema) > MAX_PATTERNS:
        raise _invalid(pointer, f"a JSON Schema with at most {MAX_PATTERNS} patterns")
    try:
        _validator(schema)
    except jsonschema_rs.ValidationError as error:
        raise _invalid(pointer + to_pointer(error.instance_path), _EXPECTED) from error
    except ValueError as error:  # nested too deep, or not JSON
        raise _invalid(pointer, _EXPECTED) from error


def validator(schema: Mapping[str, Any]) -> jsonschema_rs.Validator:
    """For many values of one schema, which is the operator's own. Raises `ValueError` where it is none."""
    return _validator(schema)


def faults(value: Any, schema: jsonschema_rs.Validator) -> list[dict[str, str]]:
    """What does not fit, as JSON Pointers into the value and what is expected there."""
    found = islice(schema.iter_errors(value), _MOST_FAULTS)
    return [{"pointer": to_pointer(error.instance_path), "detail": error.message[:_LONGEST_FAULT]} for error in found]


def parse(text: str, schema: Mapping[str, Any]) -> Any:
    """The value of a whole answer, by the rules of `partial_json`. `schema` was checked before.

    Raises `ModelOutputInvalid`. A schema that leads back to itself takes a process, and at most `LONGEST_CHECK`: call
    this in a thread.
    """
    try:
        value = decode(text)
        fits = _validator(schema).is_valid(value) if _is_plain(schema) else _fits_in_time(value, schema)
    except ValueError as error:
        raise ModelOutputInvalid from error
    if not fits:
        raise ModelOutputInvalid
    return value


_EXPECTED = "a JSON Schema whose references lead into itself, and whose patterns need no look-around"


def _invalid(pointer: str, expected: str) -> InvalidField:
    return InvalidField(errors=[{"pointer": pointer, "detail": f"Expected {expected}."}])


def _validator(schema: Mapping[str, Any]) -> jsonschema_rs.Validator:
    patterns = jsonschema_rs.RegexOptions(size_limit=_MAX_PATTERN_SIZE, dfa_size_limit=_MAX_PATTERN_SIZE)
    return jsonschema_rs.validator_for(dict(schema), pattern_options=patterns, offline=True)


def _patterns(schema: Any) -> int:
    """How many there are, or may be: a property may have the name of a keyword."""
    todo, count = [schema], 0
    while todo:
        node = todo.pop()
        if isinstance(node, Mapping):
            count += "pattern" in node
            if isinstance(by_pattern := node.get("patternProperties"), Mapping):
                count += len(by_pattern)
        todo += _children(node)
    return count


def _is_plain(schema: Mapping[str, Any]) -> bool:
    """Whether it stays small with all references written out. None that leads back to itself does."""
    todo, size = [schema], 0
    while todo:
        node = todo.pop()
        children = _children(node)
        size += 1 + len(children)
        if size > _MAX_WRITTEN_OUT:
            return False
        todo += children
        if isinstance(node, Mapping):
            if any(isinstance(node.get(keyword), str) for keyword in _ELSEWHERE):
                return False
            if isinstance(reference := node.get("$ref"), str):
                todo.append(_target(schema, reference))
    return True


def _children(node: Any) -> list[Any]:
    if isinstance(node, Mapping):
        return list(node.values())
    return node if isinstance(node, list) else []


def _target(schema: Any, reference: str) -> Any:
    """What a reference into the schema leads to. Another one was refused before, so it is data and leads nowhere."""
    for part in unquote(reference.removeprefix("#")).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        try:
            schema = schema[int(key) if isinstance(schema, list) else key]
        except (LookupError, TypeError, ValueError):
            return None
    return schema


def _fits_in_time(value: Any, schema: Mapping[str, Any]) -> bool:
    """Raises `ValueError` where that is not known in time."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", "from headrace.json_schema import _main; _main()"],
            input=msgspec.json.encode((value, schema)),
            capture_output=True,
            timeout=LONGEST_CHECK,
            check=True,
        )
    except subprocess.SubprocessError as error:
        raise ValueError("the schema took too long, or the check failed") from error
    return done.stdout == b"fits"


def _main() -> None:
    """In the process of `_fits_in_time`."""
    value, schema = msgspec.json.decode(sys.stdin.buffer.read())
    if _validator(schema).is_valid(value):
        sys.stdout.write("fits")


def to_pointer(path: Iterable[str | int]) -> str:
    """A JSON Pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
