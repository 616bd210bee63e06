from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ConfigurationError
from headrace.providers.demo import EchoModel
from headrace.providers.reference import ModelReference, accepted


def demo(model: str, **options: Any) -> ModelReference:
    return ModelReference(provider="demo", model=model, options=options)


def openai(model: str | None, base_url: str | None = None) -> ModelReference:
    return ModelReference(provider="openai", model=model, base_url=base_url)


UNDERSTOOD = {
    "demo": demo("extractive"),
    " demo ": demo("extractive"),
    "demo?pace_ms=0": demo("extractive", pace_ms=0.0),
    "demo:extractive": demo("extractive"),
    "demo:echo": demo("echo"),
    "demo:echo?": demo("echo"),
    "demo:echo?count=300&size=5&pace_ms=10": demo("echo", count=300, size=5, pace_ms=10.0),
    "demo:echo?error=model.cut&error_after=0": demo("echo", error="model.cut", error_after=0),
    "demo:echo?stall_after=3&first_ms=1.5&batch=8": demo("echo", stall_after=3, first_ms=1.5, batch=8),
    "demo:script?path=a%20b/x.jsonl&speed=2": demo("script", path=Path("a b/x.jsonl"), speed=2.0),
    "demo:script?path=C:\\x.jsonl": demo("script", path=Path("C:\\x.jsonl")),
    "openai:gpt-5": openai("gpt-5"),
    "openai:ft:gpt-5:org/x": openai("ft:gpt-5:org/x"),
    "http://127.0.0.1:8080": openai(None, "http://127.0.0.1:8080/v1"),
    "http://127.0.0.1:8080/": openai(None, "http://127.0.0.1:8080/v1"),
    "http://localhost:11434/v1#llama3.2:3b": openai("llama3.2:3b", "http://localhost:11434/v1"),
    "http://localhost:11434#hf.co/a/b:Q4": openai("hf.co/a/b:Q4", "http://localhost:11434/v1"),
    "https://models.example.org/api/v2/": openai(None, "https://models.example.org/api/v2"),
    "HTTPS://[::1]:8443/v1#a%20b".replace("%20", "%2f"): openai("a/b", "https://[::1]:8443/v1"),
}


@pytest.mark.parametrize("text", UNDERSTOOD, ids=range(len(UNDERSTOOD)))
def test_what_is_understood(text: str) -> None:
    reference = ModelReference.parse(text)
    assert reference == UNDERSTOOD[text]
    assert ModelReference.parse(str(reference)) == reference


REFUSED = {
    "": "Write `demo`",
    "gpt-5": "Write `demo`",
    "anthropic:claude": "`anthropic` is not known",
    "\x1b[31m:x": "Write `demo`",
    "demo:parrot": "`demo:echo`",
    "demo:": "`demo:echo`",
    "demo:echo?counts=3": "not `counts`",
    "demo:echo?%00=3": "not something else",
    "demo:echo?count=3&count=4": "not `count`",
    "demo:echo?count=many": "`count` of `demo:echo`.*`int`",
    "demo:echo?count=1.5": "`count` of `demo:echo`.*`int`",
    "demo:echo?count=": "`count` of `demo:echo`.*`int`",
    "demo:echo?count=null": "`count` of `demo:echo`.*`int`",
    "demo:echo?count=0": "`int` >= 1",
    "demo:echo?count=1e18": "`count` of `demo:echo`",
    "demo:echo?pace_ms=-1": ">= 0",
    "demo:echo?pace_ms=nan": "`pace_ms`",
    "demo:echo?pace_ms=inf": "`pace_ms`",
    "demo:echo?error=not_found": "model.overloaded",
    "demo:extractive?index=x": "not `index`",
    "demo:script": r"needs `path`.*path=\.\.\.",
    "demo:script?path=x&speed=0": "`speed`",
    "openai": "`openai:NAME`",
    "openai:": "`openai:NAME`",
    "openai:a b": "`openai:NAME`",
    "openai:gpt-5?count=3": "no options",
    "http://": "URL",
    "http:8080": "URL",
    "http://host:port": "URL",
    "http://host:99999": "URL",
    "http://host:0": "URL",
    "http://ho st/v1": "URL",
    "http://host\\@other/v1": "URL",
    "http://host/v1?key=x": "query",
    "http://[::1/v1": "URL",
    "https://user:hunter2@host/v1": "user and password",
    "https://host/v1#a b": "URL",
    "https://host/v1#a%20b": "name of a model",
    "ftp://host/v1": "`ftp` is not known",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_says_what_to_write(text: str) -> None:
    with pytest.raises(ConfigurationError, match=REFUSED[text]) as raised:
        ModelReference.parse(text)
    assert "hunter2" not in raised.value.message


@given(st.one_of(st.text(), st.builds("demo:echo?{}".format, st.text()), st.builds("http://{}".format, st.text())))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        reference = ModelReference.parse(text)
    except ConfigurationError:
        return
    assert ModelReference.parse(str(reference)) == reference


def test_options_are_what_the_model_takes() -> None:
    EchoModel(**ModelReference.parse("demo:echo?count=3&size=2&batch=1").options)
    assert {*accepted("extractive")} == {"pace_ms"}
    assert {*accepted("script")} == {"path", "speed"}
    assert all(msgspec.inspect.type_info(kind) for kind in accepted("echo").values())
