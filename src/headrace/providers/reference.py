"""How people name a model: `demo`, `demo:echo?count=300&pace_ms=10`, `openai:NAME`, `http://host:port/v1#NAME`."""

import inspect
import re
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec

from headrace.errors import ConfigurationError
from headrace.providers.demo import EchoModel, ExtractiveModel, ScriptModel
from headrace.providers.demo.echo import model_error

DEMOS: dict[str, type] = {"extractive": ExtractiveModel, "echo": EchoModel, "script": ScriptModel}
"""What may follow `demo:`; the first is what `demo` alone means."""
_FORMS = "Write `demo`, `demo:echo?count=300`, `openai:NAME`, or a URL such as `http://127.0.0.1:11434/v1#NAME`."
_NAME = re.compile(r"[^\s?#\x00-\x20\x7f]{1,256}")
_WORD = re.compile(r"[a-zA-Z0-9_-]{1,32}")


class ModelReference(msgspec.Struct, frozen=True, kw_only=True):
    """A model as it was named. Nothing was looked up yet."""

    provider: Literal["demo", "openai"]
    model: str | None
    """Of `DEMOS`, or the provider's name for it; `None` where a URL came without one: the server's own choice."""
    base_url: str | None = None
    """Of an OpenAI-compatible server; `None` for the provider's own address."""
    options: dict[str, Any] = {}
    """Keyword arguments for the class in `DEMOS`, in its types."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reference in `text`. Raises `ConfigurationError` with what to write instead.

        What it raises repeats names of options at most, never a value: a URL may hold a secret.
        """
        text = text.strip()
        provider = re.split("[:?]", text, maxsplit=1)[0]
        rest = text[len(provider) :]
        if provider.lower() in ("http", "https"):
            return cls._from_url(text)
        if provider == "openai" and rest:
            return cls(provider="openai", model=_model_name(rest[1:]))
        if provider == "demo":
            return cls._from_demo(rest[1:] if rest.startswith(":") else next(iter(DEMOS)) + rest)
        unknown = f"The provider `{provider}` is not known. " if _WORD.fullmatch(provider) and rest else ""
        raise ConfigurationError(f"{unknown}{_FORMS}")

    def __str__(self) -> str:
        """The shortest text that `parse` reads as this."""
        if self.base_url is not None:
            return f"{self.base_url}#{quote(self.model, safe='/:')}" if self.model else self.base_url
        options = f"?{urlencode(self.options)}" if self.options else ""
        return f"{self.provider}:{self.model}{options}"

    @classmethod
    def _from_demo(cls, text: str) -> Self:
        kind, _, query = text.partition("?")
        if kind not in DEMOS:
            raise ConfigurationError(f"A demo model is one of {', '.join(f'`demo:{name}`' for name in DEMOS)}.")
        return cls(provider="demo", model=kind, options=_options(kind, query))

    @classmethod
    def _from_url(cls, text: str) -> Self:
        parts = _split_url(text)
        path = parts.path.rstrip("/") or "/v1"
        model = _model_name(unquote(parts.fragment)) if parts.fragment else None
        return cls(provider="openai", base_url=f"{parts.scheme}://{parts.netloc}{path}", model=model)


def accepted(kind: str) -> Mapping[str, Any]:
    """The options of a demo model and their types: what its class takes and the server does not hand in."""
    return {name: _given(parameter.annotation) for name, parameter in _parameters(kind).items()}


def _parameters(kind: str) -> dict[str, inspect.Parameter]:
    return {name: found for name, found in inspect.signature(DEMOS[kind]).parameters.items() if name != "index"}


def _given(annotation: Any) -> Any:
    """The type of an option that is given: without `None`."""
    return next((kind for kind in get_args(annotation) if type(None) in get_args(annotation)), annotation)


def _options(kind: str, query: str) -> dict[str, Any]:
    types, given = accepted(kind), parse_qsl(query, keep_blank_values=True)
    found: dict[str, Any] = {}
    for name, value in given:
        if name not in types or name in found:
            known = ", ".join(f"`{option}`" for option in types)
            wrong = f"`{name}`" if _WORD.fullmatch(name) else "something else"
            raise ConfigurationError(f"`demo:{kind}` takes {known}, each once, not {wrong}.")
        found[name] = _converted(kind, name, value, types[name])
    for name, parameter in _parameters(kind).items():
        if parameter.default is parameter.empty and name not in found:
            raise ConfigurationError(f"`demo:{kind}` needs `{name}`: write `demo:{kind}?{name}=...`.")
    if "error" in found:
        model_error(found["error"])
    return found


def _converted(kind: str, name: str, value: str, wanted: Any) -> Any:
    try:
        return msgspec.convert(value, wanted, strict=False, dec_hook=lambda wanted, text: wanted(text))
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"`{name}` of `demo:{kind}` is not right: {error}.") from error


def _model_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ConfigurationError(f"`openai:` takes the name of a model and no options. {_FORMS}")
    return text


def _split_url(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        usable = bool(parts.hostname) and parts.port != 0 and not re.search(r"[\s\x00-\x20\x7f\\]", text)
    except ValueError as error:
        raise ConfigurationError(f"The URL of the model is not one. {_FORMS}") from error
    if not usable or parts.query:
        raise ConfigurationError(f"The URL of the model is not one, or has a query. {_FORMS}")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("Leave user and password out of the URL of the model: a key has its own setting.")
    return parts
