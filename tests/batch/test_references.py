"""What of earlier items stands in the body of a later one, and what is left as it is."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batch import references
from headrace.batch.item import Response
from headrace.batch.references import point, resolved
from headrace.errors import BatchReferenceInvalid

RFC: dict[str, Any] = {
    "foo": ["bar", "baz"],
    "": 0,
    "a/b": 1,
    "c%d": 2,
    "e^f": 3,
    "g|h": 4,
    "i\\j": 5,
    'k"l': 6,
    " ": 7,
    "m~n": 8,
}
"""The document of RFC 6901, section 5."""
EARLIER = {
    "a": Response(id="a", status=200, body={"response": "Hi", "n": [1, {"x": None}]}, run_id="run_1"),
    "b": Response(id="b", status=201, body={"deep": {"er": True}}),
}


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("", RFC),
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/", 0),
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ('/k"l', 6),
        ("/ ", 7),
        ("/m~0n", 8),
    ],
)
def test_the_pointers_of_the_rfc_lead_where_it_says(pointer: str, value: Any) -> None:
    assert point(RFC, pointer) == value


def test_an_escaped_tilde_before_a_1_is_no_slash() -> None:
    assert point({"~1": "tilde", "/": "slash"}, "/~01") == "tilde"
    assert point({"~1": "tilde", "/": "slash"}, "/~1") == "slash"


@pytest.mark.parametrize("key", ["0", "01", "-", "1e0"])
def test_a_member_may_be_named_like_an_index(key: str) -> None:
    assert point({key: "member"}, f"/{key}") == "member"


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ({"a": 1}, "a"),
        ({"a": 1}, "#/a"),
        ({"a": 1}, "/b"),
        ({"a": 1}, "/a/"),
        ({"a": 1}, "/a/b"),
        ({"a": "text"}, "/a/0"),
        ({"a": None}, "/a/0"),
        ({"a": True}, "/a/0"),
        ([1, 2], "/2"),
        ([1, 2], "/-"),
        ([1, 2], "/-1"),
        ([1, 2], "/+1"),
        ([1, 2], "/01"),
        ([1, 2], "/00"),
        ([1, 2], "/1.0"),
        ([1, 2], "/1e0"),
        ([1, 2], "/ 1"),
        ([1, 2], "/1_0"),
        ([1, 2], "/"),
        ([1, 2], "/²"),
        ([1, 2], "/١"),
        ([1, 2], "/99999999999999999999"),
        ({"m~n": 1}, "/m~n"),
        ({"m~2": 1}, "/m~2"),
        ({"m~": 1}, "/m~"),
        ({"~": 1}, "/~"),
    ],
)
def test_a_pointer_that_leads_nowhere_is_told(document: Any, pointer: str) -> None:
    with pytest.raises(BatchReferenceInvalid) as told:
        point(document, pointer)
    assert (told.value.status, told.value.code) == (422, "batch.reference_invalid")


@pytest.mark.parametrize(
    ("body", "becomes"),
    [
        ({"message": {"$ref": "a#/body/response"}}, {"message": "Hi"}),
        ({"message": {"$ref": "a#/body/n/0"}}, {"message": 1}),
        ({"message": {"$ref": "a#/body/n/1"}}, {"message": {"x": None}}),
        ({"message": {"$ref": "a#/body/n/1/x"}}, {"message": None}),
        ({"status": {"$ref": "a#/status"}, "id": {"$ref": "b#/id"}}, {"status": 200, "id": "b"}),
        ({"run": {"$ref": "a#/run_id"}}, {"run": "run_1"}),
        ({"all": {"$ref": "b#"}}, {"all": {"id": "b", "status": 201, "body": {"deep": {"er": True}}}}),
        ({"all": {"$ref": "b"}}, {"all": {"id": "b", "status": 201, "body": {"deep": {"er": True}}}}),
        ({"list": [[{"$ref": "a#/id"}], {"$ref": "b#/id"}, 1]}, {"list": [["a"], "b", 1]}),
        ({"$ref": "b#/body"}, {"deep": {"er": True}}),
        ({"message": {"$text": ["Say ", {"$ref": "a#/body/response"}, "!"]}}, {"message": "Say Hi!"}),
        (
            {"message": {"$text": [{"$ref": "a#/body/n"}, " ", {"$ref": "a#/status"}]}},
            {"message": '[1,{"x":null}] 200'},
        ),
        ({"message": {"$text": [{"$ref": "b#/body/deep/er"}]}}, {"message": "true"}),
    ],
)
def test_a_reference_becomes_what_it_leads_to(body: Any, becomes: Any) -> None:
    assert resolved(body, EARLIER) == becomes


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"message": "$ref"},
        {"output_schema": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}},
        {"output_schema": {"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": {}}}},
        {"output_schema": {"items": {"$ref": "#"}}},
        {"output_schema": {"items": {"$ref": "https://json-schema.org/draft/2020-12/schema"}}},
        {"other": {"$ref": "nobody#/body"}},
        {"other": {"$ref": "A#/body"}},
        {"other": {"$ref": " a#/body"}},
        {"other": {"$ref": ["a#/body"]}},
        {"other": {"$ref": None}},
        {"other": {"$ref": "a#/body", "and": 1}},
        {"other": {"$text": "words"}},
        {"other": {"$text": []}},
        {"other": {"$text": ["only", "words"]}},
        {"other": {"$text": ["words"], "and": 1}},
        {"other": {"$text": ["words", {"$ref": "nobody#/id"}]}},
        {"other": {"$text": ["words", {"$ref": "#/id"}, 1]}},
        {"other": {"$text": [None]}},
    ],
)
def test_what_names_no_item_that_it_depends_on_is_left_as_it_is(body: Any) -> None:
    assert resolved(body, EARLIER) == body
    assert resolved(body, {}) == body


@pytest.mark.parametrize(
    "body", [{"m": {"$ref": "a#/body/response"}}, {"m": {"$text": ["x", {"$ref": "a#/id"}]}}, {"$ref": "a"}]
)
def test_without_dependencies_nothing_is_a_reference(body: Any) -> None:
    assert resolved(body, {}) == body


@pytest.mark.parametrize(
    "body",
    [
        {"m": {"$ref": "a#/body/nothing"}},
        {"m": {"$ref": "a#/error"}},
        {"m": {"$ref": "a#body"}},
        {"m": {"$ref": "a##/body"}},
        {"m": [{"$text": ["x", {"$ref": "a#/body/n/7"}]}]},
    ],
)
def test_a_reference_that_leads_nowhere_is_told(body: Any) -> None:
    with pytest.raises(BatchReferenceInvalid):
        resolved(body, EARLIER)


@pytest.mark.parametrize(
    ("reference", "becomes"),
    [("q#1#/status", 200), ("q#1", {"id": "q#1", "status": 200}), ("q#/id", "q"), ("q# #/id", "q# ")],
)
def test_an_id_may_have_the_sign_that_ends_it(reference: str, becomes: Any) -> None:
    responses = {id: Response(id=id, status=200) for id in ("q", "q#1", "q# ")}
    assert resolved({"m": {"$ref": reference}}, responses) == {"m": becomes}


def test_what_a_result_says_is_no_reference_itself() -> None:
    """Else the answer of a model could name other results, or the same one again and again."""
    trap = {"x": {"$ref": "b#/body"}, "t": {"$text": ["y", {"$ref": "b#/id"}]}}
    responses = {**EARLIER, "trap": Response(id="trap", status=200, body=trap)}
    assert resolved({"m": {"$ref": "trap#/body"}}, responses) == {"m": trap}
    text = resolved({"m": {"$text": [{"$ref": "trap#/body/x"}]}}, responses)
    assert text == {"m": '{"$ref":"b#/body"}'}


def test_neither_the_body_nor_a_result_is_changed() -> None:
    body = {"m": {"$ref": "a#/body/n"}, "k": [{"$ref": "a#/id"}]}
    becomes = resolved(body, EARLIER)
    becomes["k"].append("more")
    assert body == {"m": {"$ref": "a#/body/n"}, "k": [{"$ref": "a#/id"}]}
    assert EARLIER["a"].body == {"response": "Hi", "n": [1, {"x": None}]}


def long(characters: int) -> dict[str, Response]:
    return {"long": Response(id="long", status=200, body={"text": "x" * characters, "short": "y"})}


@pytest.mark.parametrize("form", ["list", "text"])
def test_references_cannot_multiply_a_result_without_end(form: str) -> None:
    def body(count: int) -> dict[str, Any]:
        refs = [{"$ref": "long#/body/text"}] * count
        return {"m": refs if form == "list" else {"$text": refs}}

    many = references._MOST_CHARACTERS // 1000
    assert len(str(resolved(body(many // 2), long(1000)))) > 400_000
    with pytest.raises(BatchReferenceInvalid, match="too long"):
        resolved(body(many + 1), long(1000))
    with pytest.raises(BatchReferenceInvalid, match="too long"):
        resolved(body(1), long(references._MOST_CHARACTERS))


def test_a_small_part_of_a_long_result_counts_as_little() -> None:
    body = {"m": [{"$ref": "long#/body/short"}] * 1000}
    assert resolved(body, long(references._MOST_CHARACTERS * 2)) == {"m": ["y"] * 1000}


keys = st.text(st.sampled_from('ab~/01-#é \\"'), max_size=4)
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | keys,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=10,
)


def places(document: Any, pointer: str = "") -> list[tuple[str, Any]]:
    """Every place of a document, with the pointer to it by the letter of RFC 6901."""
    found = [(pointer, document)]
    if isinstance(document, dict):
        for key, value in document.items():
            found += places(value, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(document, list):
        for index, value in enumerate(document):
            found += places(value, f"{pointer}/{index}")
    return found


@given(documents)
@settings(max_examples=200)
def test_every_place_of_a_result_can_be_named(document: Any) -> None:
    responses = {"it": Response(id="it", status=200, body=document)}
    for pointer, value in places(document):
        assert point(document, pointer) == value
        assert resolved({"m": {"$ref": f"it#/body{pointer}"}}, responses) == {"m": value}


@given(documents, st.text(st.sampled_from("ab~/01-2#é"), max_size=6))
@settings(max_examples=300)
def test_any_other_pointer_is_told(document: Any, pointer: str) -> None:
    known = dict(places(document))
    if pointer in known:
        assert point(document, pointer) == known[pointer]
    else:
        with pytest.raises(BatchReferenceInvalid):
            point(document, pointer)
