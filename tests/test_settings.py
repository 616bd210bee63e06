"""Every setting by its environment variable, and one clear line for a value that is not one."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from headrace.errors import ConfigurationError
from headrace.settings import Settings, load_settings

BY_ENVIRONMENT: dict[str, tuple[str, Any]] = {
    "HEADRACE_HOST": ("0.0.0.0", "0.0.0.0"),
    "HEADRACE_PORT": ("0", 0),
    "HEADRACE_DATA": ("/var/lib/x", Path("/var/lib/x")),
    "HEADRACE_ENGINE": ("memory", "memory"),
    "HEADRACE_MAX_RUNS": ("7", 7),
    "HEADRACE_MODEL": ("demo:echo", "demo:echo"),
    "HEADRACE_HEDGE": ("0.5", 0.5),
    "HEADRACE_DISCOVER": ("false", False),
    "HEADRACE_DOCUMENTS": ("docs", Path("docs")),
    "HEADRACE_SYSTEM_PROMPT": ("Be brief.", "Be brief."),
    "HEADRACE_OPENAI_API_KEY": ("sk-a", SecretStr("sk-a")),
    "HEADRACE_OPENAI_BASE_URL": ("http://a/v1", "http://a/v1"),
    "HEADRACE_OPENAI_MODEL": ("m", "m"),
    "HEADRACE_ANTHROPIC_API_KEY": ("sk-b", SecretStr("sk-b")),
    "HEADRACE_ANTHROPIC_BASE_URL": ("http://b", "http://b"),
    "HEADRACE_ANTHROPIC_MODEL": ("n", "n"),
    "HEADRACE_CACHE": ("shared", "shared"),
    "HEADRACE_CACHE_SECONDS": ("60", 60.0),
    "HEADRACE_CACHE_BYTES": ("100000", 100_000),
    "HEADRACE_BUDGETS": ('{"run": {"tokens": 5}}', '{"run": {"tokens": 5}}'),
    "HEADRACE_PRICES": ("prices.toml", Path("prices.toml")),
    "HEADRACE_STREAM_ENABLED": ("false", False),
    "HEADRACE_STREAM_CHUNK_SIZE": ("5", 5),
    "HEADRACE_STREAM_TIMEOUT": ("1.5", 1.5),
    "HEADRACE_IDLE_TIMEOUT": ("2", 2.0),
    "HEADRACE_FIRST_EVENT_TIMEOUT": ("3", 3.0),
    "HEADRACE_MODEL_IDLE_TIMEOUT": ("4", 4.0),
    "HEADRACE_BATCH_ENABLED": ("false", False),
    "HEADRACE_BATCH_MAX_SIZE": ("3", 3),
    "HEADRACE_BATCH_TIMEOUT": ("5", 5.0),
    "HEADRACE_JOB_MAX_ITEMS": ("100", 100),
    "HEADRACE_JOB_MAX_BYTES": ("2048", 2048),
    "HEADRACE_JOB_SLOTS": ("7", 7),
    "HEADRACE_JOB_CONCURRENCY": ("4", 4),
    "HEADRACE_TOOLS": ('["calculate"]', ("calculate",)),
    "HEADRACE_CHAT_TOOLS": ('["search"]', ("search",)),
    "HEADRACE_SQL_URL": ("sqlite:///a.db", SecretStr("sqlite:///a.db")),
    "HEADRACE_MCP_SERVERS": ('{"a": {"command": "b"}}', SecretStr('{"a": {"command": "b"}}')),
    "HEADRACE_EGRESS_ALLOW": ('["10.1.0.0/16"]', ("10.1.0.0/16",)),
    "HEADRACE_JWT_SECRET": ("s", SecretStr("s")),
    "HEADRACE_JWT_JWKS_FILE": ("keys.json", Path("keys.json")),
    "HEADRACE_JWT_AUDIENCE": ("aud", "aud"),
    "HEADRACE_JWT_ISSUER": ("iss", "iss"),
    "HEADRACE_JWT_TENANT_CLAIM": ("org", "org"),
    "HEADRACE_REQUESTS_PER_MINUTE": ("60", 60),
    "HEADRACE_MAX_STREAMS": ("3", 3),
    "HEADRACE_ALLOWED_ORIGINS": ('["https://a"]', frozenset({"https://a"})),
    "HEADRACE_TRUSTED_PROXIES": ('["10.0.0.0/8"]', ("10.0.0.0/8",)),
    "HEADRACE_MAX_BODY_BYTES": ("2048", 2048),
    "HEADRACE_RETENTION_DAYS": ("0.5", 0.5),
    "HEADRACE_RETENTION_BYTES": ("100", 100),
    "HEADRACE_LOG_LEVEL": ("DEBUG", "DEBUG"),
    "HEADRACE_LOG_FORMAT": ("json", "json"),
}
SHORT_NAMES = {
    "STREAM_ENABLED",
    "STREAM_CHUNK_SIZE",
    "STREAM_TIMEOUT",
    "BATCH_ENABLED",
    "BATCH_MAX_SIZE",
    "BATCH_TIMEOUT",
    "LOG_LEVEL",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
}
WRONG = {
    "HEADRACE_PORT": ["x", "-1", "65536", "1.5"],
    "HEADRACE_ENGINE": ["postgres"],
    "HEADRACE_HEDGE": ["0", "-1", "p50", "soon"],
    "HEADRACE_CACHE": ["on", "everybody"],
    "HEADRACE_CACHE_SECONDS": ["0", "x"],
    "HEADRACE_CACHE_BYTES": ["5", "x"],
    "HEADRACE_MAX_RUNS": ["0", "many"],
    "HEADRACE_DISCOVER": ["perhaps"],
    "HEADRACE_STREAM_ENABLED": ["perhaps"],
    "STREAM_ENABLED": ["perhaps"],
    "HEADRACE_STREAM_CHUNK_SIZE": ["0", "x"],
    "STREAM_CHUNK_SIZE": ["0", "x"],
    "HEADRACE_STREAM_TIMEOUT": ["0", "x"],
    "STREAM_TIMEOUT": ["0", "-1", "soon"],
    "HEADRACE_BATCH_ENABLED": ["perhaps"],
    "BATCH_ENABLED": ["perhaps"],
    "HEADRACE_BATCH_MAX_SIZE": ["0", "x"],
    "BATCH_MAX_SIZE": ["0", "10001"],
    "HEADRACE_BATCH_TIMEOUT": ["0", "x"],
    "BATCH_TIMEOUT": ["0", "-1", "soon"],
    "HEADRACE_JOB_MAX_ITEMS": ["0", "x"],
    "HEADRACE_JOB_MAX_BYTES": ["1", "x"],
    "HEADRACE_JOB_SLOTS": ["0", "x"],
    "HEADRACE_JOB_CONCURRENCY": ["0", "1001"],
    "HEADRACE_TOOLS": ["search", "{", "5"],
    "HEADRACE_CHAT_TOOLS": ["search", "[1"],
    "HEADRACE_EGRESS_ALLOW": ["10.0.0.0/8", "[1"],
    "HEADRACE_ALLOWED_ORIGINS": ["https://a", "{", "5"],
    "HEADRACE_TRUSTED_PROXIES": ["10.0.0.0/8", "[1"],
    "HEADRACE_MAX_BODY_BYTES": ["1"],
    "HEADRACE_LOG_FORMAT": ["xml"],
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("HEADRACE_") or name in SHORT_NAMES:
            monkeypatch.delenv(name)


def test_every_setting_is_in_the_table() -> None:
    assert {f"HEADRACE_{name.upper()}" for name in Settings.model_fields} == BY_ENVIRONMENT.keys()


@pytest.mark.parametrize("variable", BY_ENVIRONMENT)
def test_a_setting_is_read_from_its_variable(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, value = BY_ENVIRONMENT[variable]
    name = variable.removeprefix("HEADRACE_").lower()
    assert getattr(load_settings(), name) != value
    monkeypatch.setenv(variable, text)
    assert getattr(load_settings(), name) == value


@pytest.mark.parametrize("variable", sorted(SHORT_NAMES))
def test_a_setting_is_read_from_its_short_name_and_the_long_one_wins(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, value = BY_ENVIRONMENT[f"HEADRACE_{variable}"]
    default = getattr(load_settings(), variable.lower())
    monkeypatch.setenv(variable, text)
    assert getattr(load_settings(), variable.lower()) == value
    plain = default.get_secret_value() if isinstance(default, SecretStr) else default
    monkeypatch.setenv(f"HEADRACE_{variable}", str(plain if plain is not None else "other"))
    assert getattr(load_settings(), variable.lower()) != value


@pytest.mark.parametrize("variable", [*BY_ENVIRONMENT, *sorted(SHORT_NAMES)])
def test_an_empty_variable_is_none(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Container files hand on what is not set as empty text: an empty key must not choose a model that needs one."""
    default = load_settings()
    monkeypatch.setenv(variable, "")
    assert load_settings() == default


@pytest.mark.parametrize(
    ("variable", "text"), [(variable, text) for variable, texts in WRONG.items() for text in texts]
)
def test_a_wrong_value_is_told_with_the_variable_that_holds_it(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError) as raised:
        load_settings()
    message = raised.value.message
    assert message.startswith(f"{variable}: ")
    assert message.endswith("See docs/reference/settings.md.")
    assert "\n" not in message


def test_what_the_command_line_says_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_PORT", "1")
    monkeypatch.setenv("STREAM_TIMEOUT", "1")
    settings = load_settings(port=2, stream_timeout=2.0, host=None)
    assert (settings.port, settings.stream_timeout, settings.host) == (2, 2.0, "127.0.0.1")


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    monkeypatch.setenv("HEADRACE_JWT_SECRET", "jwt-canary")
    assert "canary" not in repr(load_settings())
    assert "canary" not in str(load_settings().model_dump())


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_settings()
    monkeypatch.setenv("HEADRACE_NOT_YET_A_SETTING", "x")
    monkeypatch.setenv("PORT", "1")
    assert load_settings() == before
