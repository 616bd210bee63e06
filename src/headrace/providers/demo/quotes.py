"""Which sentences of the documents answer a question, and how they are quoted."""

from collections.abc import Iterator
from typing import NamedTuple

from headrace.documents import DocumentIndex, Passage, sentences, terms

MAX_QUOTES = 5
_PASSAGES = 12
_FITS = 0.4
"""Of the question's weight, that the quotes must hold at least to be shown at all."""
_GOOD = 0.55
"""Of the best sentence's worth, that any further one must have."""
_CONTEXT = 0.5
"""What a term counts that stands in the headings above a sentence and not in it."""
_LEAD = 1.3
"""For a sentence that begins with a term of the question: it is likely to say what that is."""
_WORDS = range(4, 70)
"""Distinct words of a sentence that is worth quoting."""


class Quote(NamedTuple):
    passage: Passage
    rank: int
    """Of the passage."""
    place: int
    """Of the sentence in its passage."""
    text: str
    own: frozenset[str]
    """Terms of the question in the sentence."""
    worth: float


def best_quotes(index: DocumentIndex, question: str) -> list[Quote]:
    """Two to five sentences (one where there is no other) in reading order; none where nothing fits. Blocking."""
    weights = index.weights(question)
    candidates = list(_candidates(index.search(question, _PASSAGES), weights))
    if not candidates or not _fits(candidates, weights):
        return []
    chosen = _choose(candidates, weights)
    if len(chosen) == 1:
        chosen += _next_to(chosen[0], candidates)
    return sorted(chosen, key=lambda quote: (quote.rank, quote.place))


def _candidates(passages: list[Passage], weights: dict[str, float]) -> Iterator[Quote]:
    seen: set[str] = set()
    for rank, passage in enumerate(passages):
        around = frozenset(terms(f"{passage.title} {passage.heading}")) & weights.keys()
        closeness = passage.score / passages[0].score if passages[0].score else 0.0
        for place, text in enumerate(sentences(passage.text)):
            said = terms(text)
            if text in seen or len({*said}) not in _WORDS:
                continue
            seen.add(text)
            own = frozenset(said) & weights.keys()
            worth = _weight(own, weights) + _CONTEXT * _weight(around - own, weights)
            lead = _LEAD if said and said[0] in own else 1.0
            yield Quote(passage, rank, place, text, own, worth * (0.7 + 0.3 * closeness) * lead)


def _fits(candidates: list[Quote], weights: dict[str, float]) -> bool:
    """Whether one passage says enough of what was asked for. A sum over passages would find something for anything."""
    said: dict[int, frozenset[str]] = {}
    for quote in candidates:
        said[quote.rank] = said.get(quote.rank, frozenset()) | quote.own
    return max(_weight(own, weights) for own in said.values()) >= _FITS * sum(weights.values())


def _choose(candidates: list[Quote], weights: dict[str, float]) -> list[Quote]:
    """The best one, then those that add most: a term that was said already counts half."""
    left, chosen, said = list(candidates), list[Quote](), frozenset[str]()
    while left and len(chosen) < MAX_QUOTES:
        gains = [quote.worth - 0.5 * _weight(quote.own & said, weights) for quote in left]
        best = max(range(len(left)), key=gains.__getitem__)
        if chosen and gains[best] < _GOOD * chosen[0].worth:
            break
        chosen.append(left.pop(best))
        said |= chosen[-1].own
    return chosen


def _next_to(quote: Quote, candidates: list[Quote]) -> list[Quote]:
    """The sentence after it in its passage, else the one before it."""
    same = [other for other in candidates if other.rank == quote.rank and other is not quote]
    return sorted(same, key=lambda other: (other.place < quote.place, abs(other.place - quote.place)))[:1]


def _weight(found: frozenset[str], weights: dict[str, float]) -> float:
    return sum(weights[term] for term in sorted(found))
