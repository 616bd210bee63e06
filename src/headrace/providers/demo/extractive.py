"""A model without any AI: it answers with sentences of the user's documents."""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, NamedTuple

from msgspec import Meta

from headrace.documents import DocumentIndex
from headrace.errors import ModelUnavailable
from headrace.ports import ModelData, ModelEvent, ModelFinish, ModelRequest, ModelText, ModelUsage
from headrace.providers.demo import words
from headrace.providers.demo.pace import Pace
from headrace.providers.demo.quotes import Quote, best_quotes

LABEL = "Demo model (no AI): it only quotes your documents."
"""The first line of every answer."""

_REAL_MODEL = (
    "For an answer in its own words, give the server a real model: set OPENAI_API_KEY, "
    "or start it with `--model` and the URL of a model server."
)
_SMALL_TALK = (
    (
        re.compile(
            r"(hello|hi|hey|hallo|hola|salut|greetings|good (morning|afternoon|evening|day))( there| headrace)?"
        ),
        "Hello! Ask me something that the documents answer, and I quote the sentences that fit best.",
    ),
    (re.compile(r"(thanks|thank you|thx|cheers)( very much| a lot| so much)?"), "You are welcome. Ask on."),
    (re.compile(r"(bye|goodbye|good bye|see you|good night)( later| soon)?"), "Goodbye!"),
    (
        re.compile(r"how are you( doing)?( today)?|how is it going|whats up|what s up"),
        "As well as a search over documents can be. Ask me something that they answer.",
    ),
    (
        re.compile(r"(who|what) are you|what can you do|what do you do|what is this|help( me)?|test|ping"),
        "I look your question up in a folder of documents and quote the sentences that fit best, with their sources. "
        + _REAL_MODEL,
    ),
)


class _Answer(NamedTuple):
    text: str
    sources: tuple[dict[str, Any], ...] = ()


class ExtractiveModel:
    """Quotes the two to five sentences of the documents that fit the last user message best, cited as `[1]`.

    Every answer begins with a line that says what this is, also where nothing fits. The same question to the same
    documents gets the same text. Words stand for tokens. A `ModelData("source", ...)` per source comes after the text:
    `number`, `source` (path below the folder), `title`, `heading`, `quotes`.
    """

    name = "demo:extractive"
    continues = True

    def __init__(self, index: DocumentIndex, *, pace_ms: Annotated[float, Meta(ge=0, le=60_000)] = 5.0) -> None:
        """`pace_ms` is the time from word to word, so that streaming can be seen."""
        self._index = index
        self._pace = pace_ms / 1000

    async def stream(self, request: ModelRequest) -> AsyncIterator[Sequence[ModelEvent]]:
        answer = await asyncio.to_thread(self._answer, words.question(request))
        start, rest = _rest(answer.text, request.prefix)
        allowed = len(rest) if request.max_tokens is None else max(0, request.max_tokens - start)
        rest, whole = rest[:allowed], allowed >= len(rest)
        pace, said = Pace(self._pace), 0
        while said < len(rest):
            due = min(await pace.reach(said), len(rest))
            yield [ModelText(word) for word in rest[said:due]]
            said = due
        yield (
            *(ModelData("source", source) for source in answer.sources if whole),
            ModelUsage(input_tokens=words.asked(request), output_tokens=len(rest)),
            ModelFinish("stop" if whole else "length"),
        )

    async def start(self) -> None:
        """Nothing to do: the index was built by whoever made this."""

    async def close(self) -> None:
        """Nothing to do: the index belongs to whoever made this."""

    def _answer(self, question: str) -> _Answer:
        reply = _small_talk(question)
        if reply is not None:
            return _Answer(f"{LABEL}\n\n{reply}")
        try:
            quotes = best_quotes(self._index, question)
            return _quoted(quotes) if quotes else _Answer(f"{LABEL}\n\n{_nothing(self._index.titles())}")
        except sqlite3.Error as error:
            raise ModelUnavailable from error


def _rest(text: str, prefix: str) -> tuple[int, list[str]]:
    """The words that are left after `prefix`, and how many are in it. Where the documents changed since the prefix was
    said, the answer of now follows it as a whole: half of each would be neither."""
    if not text.startswith(prefix):
        return words.count(prefix), words.split("\n\n" + text)
    return words.after(words.split(text), len(prefix))


def _small_talk(question: str) -> str | None:
    said = " ".join(re.findall(r"\w+", question[:200].casefold())) if len(question) < 100 else ""
    if not said and len(question) < 100:
        return "Ask me something that the documents answer."
    return next((reply for pattern, reply in _SMALL_TALK if pattern.fullmatch(said)), None)


def _nothing(titles: Sequence[str]) -> str:
    about = f" They are about: {', '.join(titles)}." if titles else " There are none yet in the folder."
    return f"Nothing in the documents fits this question.{about} Ask about what they say. {_REAL_MODEL}"


def _quoted(quotes: Sequence[Quote]) -> _Answer:
    """The quotes of one passage after the other, each with the number of its source, then the list of sources."""
    places = [(quote.passage.source, quote.passage.heading) for quote in quotes]
    numbers = {place: number for number, place in enumerate(dict.fromkeys(places), start=1)}
    paragraphs = dict.fromkeys(numbers, "")
    sources: dict[tuple[str, str], dict[str, Any]] = {}
    for place, quote in zip(places, quotes, strict=True):
        paragraphs[place] += f"{quote.text} [{numbers[place]}] "
        source, title, heading, *_ = quote.passage
        about = {"number": numbers[place], "source": source, "title": title, "heading": heading, "quotes": []}
        sources.setdefault(place, about)["quotes"].append(quote.text)
    listed = "\n".join(_listed(source) for source in sources.values())
    text = "\n\n".join(paragraph.strip() for paragraph in paragraphs.values())
    return _Answer(f"{LABEL}\n\n{text}\n\nSources:\n{listed}", tuple(sources.values()))


def _listed(source: dict[str, Any]) -> str:
    where = f"{source['title']}, {source['heading']}" if source["heading"] else source["title"]
    return f"[{source['number']}] {where} ({source['source']})"
