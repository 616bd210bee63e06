"""Results of earlier items in the bodies of later ones.

`{"$ref": "ID#POINTER"}` stands for a part of the response of the item ID, by a JSON Pointer (RFC 6901) such as
`/body/response`. `{"$text": ["some words ", {"$ref": ...}]}` is one text of several. What names no item that the body's
own item depends on is left as it is: a JSON Schema has `$ref`s of its own.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.batch.item import Response
from headrace.errors import BatchReferenceInvalid

_MOST_CHARACTERS = 1 << 20
"""Of all results that go into one body: references can multiply what they refer to."""
_NO_ESCAPE = re.compile(r"~(?![01])")


def resolved(body: Any, responses: Mapping[str, Response]) -> Any:
    """The body with what it refers to. Raises `BatchReferenceInvalid`."""
    if not responses:
        return body
    return _Resolver(responses).resolve(body)


class _Resolver:
    def __init__(self, responses: Mapping[str, Response]) -> None:
        self._documents = {id: msgspec.to_builtins(response) for id, response in responses.items()}
        self._left = _MOST_CHARACTERS

    def resolve(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.resolve(each) for each in node]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            if (reference := self._reference(node)) is not None:
                return self._look_up(*reference)
            if isinstance(parts := node.get("$text"), list) and self._is_text(parts):
                return "".join(map(self._text, parts))
        return {name: self.resolve(each) for name, each in node.items()}

    def _reference(self, node: Mapping[str, Any]) -> tuple[str, str] | None:
        """The id and the pointer, where the node refers to a response."""
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return None
        for mark in ("#/", "#"):  # an id may have a `#` in it
            id, found, rest = reference.partition(mark)
            if id in self._documents:
                return id, found[1:] + rest
        return None

    def _is_text(self, parts: Sequence[Any]) -> bool:
        """Whether they are words and references, of these at least one."""
        others = [part for part in parts if not isinstance(part, str)]
        return bool(others) and all(
            isinstance(part, dict) and len(part) == 1 and self._reference(part) is not None for part in others
        )

    def _text(self, part: Any) -> str:
        value = self.resolve(part)
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()

    def _look_up(self, id: str, pointer: str) -> Any:
        value = point(self._documents[id], pointer)
        self._left -= len(msgspec.json.encode(value))
        if self._left < 0:
            raise BatchReferenceInvalid("The results that this item refers to are too long for one body.")
        return value


def point(document: Any, pointer: str) -> Any:
    """What a JSON Pointer leads to. Raises `BatchReferenceInvalid`."""
    if (pointer and not pointer.startswith("/")) or _NO_ESCAPE.search(pointer):
        raise BatchReferenceInvalid
    for part in pointer.split("/")[1:]:
        document = _step(document, part.replace("~1", "/").replace("~0", "~"))
    return document


def _step(document: Any, key: str) -> Any:
    if isinstance(document, dict) and key in document:
        return document[key]
    if isinstance(document, Sequence) and not isinstance(document, str) and _is_index(key):
        number = int(key)
        if number < len(document):
            return document[number]
    raise BatchReferenceInvalid


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) <= 9 and (key == "0" or key[0] != "0")
