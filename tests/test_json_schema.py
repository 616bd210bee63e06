"""A schema from outside is refused or used, and harms nobody."""

import socket
from typing import Any

import pytest

from headrace import json_schema
from headrace.errors import InvalidField, ModelOutputInvalid
from headrace.json_schema import MAX_PATTERNS, MAX_SIZE, check, parse

MILL = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "wheels": {"type": "integer", "minimum": 1}},
    "required": ["name", "wheels"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
    "$ref": "#/$defs/tree",
}


def refused_at(schema: dict[str, Any]) -> list[str]:
    with pytest.raises(InvalidField) as caught:
        check(schema)
    return [error["pointer"] for error in caught.value.extra["errors"]]


def doubling(levels: int) -> dict[str, Any]:
    """Small, and 2 to the power of `levels` when its references are written out."""
    steps = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**steps, f"d{levels}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


def tangled(kinds: int) -> dict[str, Any]:
    """Each level of a list is tried as each kind, and in it again."""
    lists = [{"type": "array", "items": {"$ref": f"#/$defs/d{n}"}} for n in range(kinds)]
    return {"$defs": {f"d{n}": {"anyOf": lists} for n in range(kinds)}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        MILL,
        TREE,
        doubling(40),
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {}}, "$ref": "#/definitions/a"},
        {"$id": "https://example.org/mill", "$defs": {"a": {"$anchor": "here"}}, "$ref": "#here"},
        {"properties": {"$ref": {"type": "string"}, "pattern": {}, "id": {}}},
    ],
)
def test_a_schema_is_taken(schema: dict[str, Any]) -> None:
    check(schema)


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"type": "objekt"}, "/output_schema/type"),
        ({"properties": {"a/b": {"type": 3}}}, "/output_schema/properties/a~1b/type"),
        ({"pattern": "("}, "/output_schema/pattern"),
        ({"pattern": "(?=a)b"}, "/output_schema/pattern"),
        ({"pattern": r"(a)\1"}, "/output_schema/pattern"),
        ({"pattern": "((a{1000}){1000}){1000}"}, "/output_schema/pattern"),
        ({"$ref": "#/$defs/gone"}, "/output_schema"),
        ({"$ref": "file:///etc/hostname"}, "/output_schema"),
        ({"$schema": "https://example.org/schema"}, "/output_schema"),
        ({"description": "x" * MAX_SIZE}, "/output_schema"),
        ({"allOf": [{"pattern": "a"}] * (MAX_PATTERNS + 1)}, "/output_schema"),
        ({"patternProperties": {f"a{n}": True for n in range(MAX_PATTERNS + 1)}}, "/output_schema"),
    ],
)
def test_a_schema_is_refused(schema: dict[str, Any], pointer: str) -> None:
    assert refused_at(schema) == [pointer]


def test_a_schema_nested_very_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(400):
        schema = {"items": schema}
    assert refused_at(schema) == ["/output_schema"]


def test_the_pointer_is_the_callers() -> None:
    with pytest.raises(InvalidField) as caught:
        check({"type": 1}, "/input/output_schema")
    assert caught.value.extra["errors"][0]["pointer"] == "/input/output_schema/type"


def test_a_reference_is_never_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        assert refused_at({"$ref": f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"}) == ["/output_schema"]
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    "text",
    ['{"name": "Mill", "wheels": 2}', ' ```json\n{"name": "Mill", "wheels": 2}\n```\n', '{"wheels":2,"name":"M"}'],
)
def test_an_answer_that_fits(text: str) -> None:
    assert parse(text, MILL)["wheels"] == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A mill has wheels.",
        '{"name": "Mill", "wheels": 2',
        '{"name": "Mill", "wheels": 2} {}',
        '{"name": "Mill"}',
        '{"name": "mill", "wheels": 2}',
        '{"name": "Mill", "wheels": 0}',
        '{"name": "Mill", "wheels": 2, "river": "Aare"}',
        '{"name": "Mill", "wheels": NaN}',
        "[" * 5000 + "]" * 5000,
        "[" * 100_000,
    ],
)
def test_an_answer_that_does_not_fit(text: str) -> None:
    with pytest.raises(ModelOutputInvalid):
        parse(text, MILL)


def test_nothing_of_the_answer_is_in_the_error() -> None:
    with pytest.raises(ModelOutputInvalid) as caught:
        parse('{"secret": 1}', MILL)
    assert "secret" not in str(caught.value) + str(caught.value.extra)


def test_a_pattern_is_matched_in_linear_time() -> None:
    with pytest.raises(ModelOutputInvalid):
        parse(f'"{"a" * 50_000}!"', {"pattern": "^(a+)+$"})


def test_a_schema_that_refers_to_itself_is_used() -> None:
    assert parse("[[],[[]]]", TREE) == [[], [[]]]
    with pytest.raises(ModelOutputInvalid):
        parse("[[],[1]]", TREE)


def test_a_number_keeps_its_digits_on_the_way_to_the_process() -> None:
    schema = {"anyOf": [{"const": 10**30 + 1}, {"items": {"$ref": "#"}, "type": "array"}]}
    assert parse(str(10**30 + 1), schema) == 10**30 + 1
    with pytest.raises(ModelOutputInvalid):
        parse(str(10**30), schema)


@pytest.mark.parametrize(("schema", "text"), [(doubling(60), "1"), (tangled(20), "[" * 60 + "1" + "]" * 60)])
def test_a_schema_that_never_ends_is_ended(schema: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_schema, "LONGEST_CHECK", 1.0)
    check(schema)
    with pytest.raises(ModelOutputInvalid) as caught:
        parse(text, schema)
    assert "too long" in str(caught.value.__cause__)
