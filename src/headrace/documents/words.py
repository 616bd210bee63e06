"""The one tokenizer: what it makes of the documents is what the index holds, of a question what is looked for."""

import re
import unicodedata

MAX_QUERY_CHARACTERS = 10_000
MAX_QUERY_TERMS = 64

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+")
_PAIRED = re.compile(rf"[{_CJK}]")
_STOP = frozenset(
    re.findall(
        r"\w+",
        """a about all also am an and any are as at be because been but by called can could describe did do
        does explain find for from get give had happen happened happens has have he her here his how i if in
        into is it its itself just know let like made make makes many making me mean means might more most much
        must my need no not now of on one only or other our out please she should show so some such tell than
        that the their them then there these they thing this those to us use used uses using want was way we
        were what when where which while who whom whose why will with work works would you your""",
    )
)


def terms(text: str) -> list[str]:
    """The words of `text` in order: folded in case and accents, English endings off, Chinese and Japanese in pairs."""
    found: list[str] = []
    for word in _WORD.findall(_folded(text)):
        if _PAIRED.match(word):
            found += [word[i : i + 2] for i in range(max(1, len(word) - 1))]
        else:
            found.append(_stem(word))
    return found


def query_terms(query: str) -> list[str]:
    """What is looked for: the distinct terms of the beginning of `query` that are not filler words."""
    words = _WORD.findall(_folded(query[:MAX_QUERY_CHARACTERS]))
    telling = terms(" ".join(word for word in words if word not in _STOP))
    return list(dict.fromkeys(telling))[:MAX_QUERY_TERMS]


def _folded(text: str) -> str:
    text = text.casefold()
    if text.isascii():
        return text
    marks_apart = unicodedata.normalize("NFKD", text)
    return unicodedata.normalize("NFKC", "".join(c for c in marks_apart if not "\u0300" <= c <= "\u036f"))


def _stem(word: str) -> str:
    """One form for `stream`, `streams`, `streamed`, `streaming`. Too much is better than too little: it only ranks."""
    if not word.isascii() or len(word) < 4:
        return word
    if len(word) > 4 and word.endswith(("ies", "ied")):
        return word[:-3] + "y"
    if word.endswith("ied") or (word.endswith("s") and not word.endswith(("ss", "us", "is"))):
        word = word[:-1]
    for ending in ("ing", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word
