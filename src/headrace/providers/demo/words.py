"""Text as the words it is streamed in; a word carries the white space after it."""

import re

from headrace.ports import ModelRequest

_WORD = re.compile(r"\S+\s*|\s+")


def split(text: str) -> list[str]:
    """The words of `text`; joined, they are `text` again."""
    return _WORD.findall(text)


def count(text: str) -> int:
    """Words, for the usage of models that have no tokens."""
    return len(text.split())


def after(words: list[str], characters: int) -> tuple[int, list[str]]:
    """What is left of `words` after so many characters, and which word of all it begins in."""
    for index, word in enumerate(words):
        if characters < len(word):
            return index, [word[characters:], *words[index + 1 :]]
        characters -= len(word)
    return len(words), []


def question(request: ModelRequest) -> str:
    """The last user turn, or nothing."""
    return next((message.content for message in reversed(request.messages) if message.role == "user"), "")


def asked(request: ModelRequest) -> int:
    """Words of all turns."""
    return sum(count(message.content) for message in request.messages)
