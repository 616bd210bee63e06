"""Every setting, from environment variables. Read by `bootstrap` and `cli` only.

`docs/reference/settings.md` lists them; a test holds the two together.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_core import from_json
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from headrace.errors import ConfigurationError


def _json_list(value: Any) -> Any:
    try:
        return from_json(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError('not a JSON list, such as ["a", "b"]') from None


_JSONList = (NoDecode, BeforeValidator(_json_list))
"""pydantic-settings would decode by itself, and fail without saying which variable is wrong."""


class Settings(BaseSettings):
    """Each is the environment variable HEADRACE_<NAME>; where another name is given, that one serves as well. A
    variable that is empty counts as not set."""

    model_config = SettingsConfigDict(
        env_prefix="HEADRACE_", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on. Beyond loopback it needs authentication.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data: Path = Field(Path(".headrace"), description="Directory of the log, the keys and the document index.")
    engine: Literal["sqlite", "memory"] = Field("sqlite", description="What keeps the logs.")
    max_runs: int = Field(1000, ge=1, le=100_000, description="Runs that are worked on at the same time.")

    model: str | None = Field(
        None,
        description="Which model answers, such as `demo`, `openai:NAME`, `anthropic:NAME` or a URL; or a JSON list of "
        "them, of which each stands in for the one before. Without it one is looked for.",
    )
    hedge: Annotated[float, Field(gt=0)] | Literal["p95"] | None = Field(
        None,
        description="Seconds without a first token, or `p95` of the last ones, before the next model is asked too.",
    )
    discover: bool = Field(True, description="Look for a model server on loopback where no model is configured.")
    documents: Path | None = Field(None, description="Folder that the demo model quotes; its default is our own docs.")
    system_prompt: str = Field("", description="What the chat agent is told first.")
    openai_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("HEADRACE_OPENAI_API_KEY", "OPENAI_API_KEY"),
        description="Key for `openai:NAME` and for URLs.",
    )
    openai_base_url: str = Field(
        "https://api.openai.com/v1",
        validation_alias=AliasChoices("HEADRACE_OPENAI_BASE_URL", "OPENAI_BASE_URL"),
        description="Where `openai:NAME` is served.",
    )
    openai_model: str = Field("gpt-5-mini", description="Model that is used where only a key is configured.")

    anthropic_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("HEADRACE_ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY"),
        description="Key for `anthropic:NAME`.",
    )
    anthropic_base_url: str = Field(
        "https://api.anthropic.com",
        validation_alias=AliasChoices("HEADRACE_ANTHROPIC_BASE_URL", "ANTHROPIC_BASE_URL"),
        description="Where `anthropic:NAME` is served.",
    )
    anthropic_model: str = Field(
        "claude-haiku-4-5", description="Model that is used where only this key is configured."
    )

    cache: Literal["off", "principal", "shared"] = Field(
        "off", description="Whether equal questions share an answer: of one caller, or (`shared`) of all."
    )
    cache_seconds: float = Field(3600.0, gt=0, description="Age at which a cached answer is forgotten.")
    cache_bytes: int = Field(64 << 20, ge=1 << 16, description="Most memory that cached answers take.")
    budgets: str | None = Field(None, description="What runs, callers and conversations may use, as JSON.")
    prices: Path | None = Field(None, description="TOML file of prices, on top of our own.")

    stream_enabled: bool = Field(
        True,
        validation_alias=AliasChoices("HEADRACE_STREAM_ENABLED", "STREAM_ENABLED"),
        description="Whether `POST /api/agent/chat` streams.",
    )
    stream_chunk_size: int = Field(
        100,
        ge=1,
        le=100_000,
        validation_alias=AliasChoices("HEADRACE_STREAM_CHUNK_SIZE", "STREAM_CHUNK_SIZE"),
        description="Most characters in one `token` of `POST /api/agent/chat`.",
    )
    stream_timeout: float = Field(
        300.0,
        gt=0,
        validation_alias=AliasChoices("HEADRACE_STREAM_TIMEOUT", "STREAM_TIMEOUT"),
        description="Seconds a run may take.",
    )
    idle_timeout: float = Field(120.0, gt=0, description="Seconds an agent may say nothing.")
    first_event_timeout: float = Field(60.0, gt=0, description="Seconds a model may take to say anything.")
    model_idle_timeout: float = Field(30.0, gt=0, description="Seconds between two events of a model.")

    batch_enabled: bool = Field(
        True,
        validation_alias=AliasChoices("HEADRACE_BATCH_ENABLED", "BATCH_ENABLED"),
        description="Whether `POST /api/batch` and batch jobs are taken.",
    )
    batch_max_size: int = Field(
        10,
        ge=1,
        le=1000,
        validation_alias=AliasChoices("HEADRACE_BATCH_MAX_SIZE", "BATCH_MAX_SIZE"),
        description="Most items of one `POST /api/batch`.",
    )
    batch_timeout: float = Field(
        30.0,
        gt=0,
        validation_alias=AliasChoices("HEADRACE_BATCH_TIMEOUT", "BATCH_TIMEOUT"),
        description="Seconds for all of one `POST /api/batch`.",
    )
    job_max_items: int = Field(50_000, ge=1, le=1_000_000, description="Most lines of a batch job.")
    job_max_bytes: int = Field(200 << 20, ge=1024, description="Largest file of a batch job.")
    job_slots: int = Field(
        100, ge=1, le=10_000, description="Operations of all batch jobs at the same time; half of MAX_RUNS at most."
    )
    job_concurrency: int = Field(
        32, ge=1, le=1000, description="Items of one batch job that run at the same time, unless it asks for fewer."
    )

    tools: Annotated[tuple[str, ...], *_JSONList] = Field(
        ("search", "calculate"),
        description="Tools that callers may use (a JSON list): `search`, `calculate`, `http_fetch`, or the name of an "
        "entry point. `sql` and those of MCP servers come with their own settings.",
    )
    chat_tools: Annotated[tuple[str, ...], *_JSONList] | None = Field(
        None,
        description="Tools that the chat agent offers its model (a JSON list); by default those that your program "
        "hands in.",
    )
    sql_url: SecretStr | None = Field(
        None,
        description="Database that the tool `sql` reads: `sqlite:///PATH`, `duckdb:///PATH` or `postgresql://...`.",
    )
    mcp_servers: SecretStr | None = Field(None, description="MCP servers whose tools are offered, as JSON by name.")
    egress_allow: Annotated[tuple[str, ...], *_JSONList] = Field(
        (),
        description="Private networks that `http_fetch` and webhooks may reach (a JSON list), such as `10.1.0.0/16`.",
    )

    jwt_secret: SecretStr | None = Field(None, description="Secret of HS256 tokens, at least 32 bytes.")
    jwt_jwks_file: Path | None = Field(None, description="Key set (JWKS) of RS256, ES256 or EdDSA tokens.")
    jwt_audience: str | None = Field(None, description="What the `aud` claim of a token must be.")
    jwt_issuer: str | None = Field(None, description="What the `iss` claim of a token must be.")
    jwt_tenant_claim: str = Field("tenant", description="The claim that names the tenant.")
    requests_per_minute: int | None = Field(None, ge=1, description="For each caller; none by default.")
    max_streams: int | None = Field(None, ge=1, description="Open streams and sockets of each caller; none by default.")
    allowed_origins: Annotated[frozenset[str], *_JSONList] = Field(
        frozenset(), description="Web origins, besides the server's own, whose pages may open sockets (a JSON list)."
    )
    trusted_proxies: Annotated[tuple[str, ...], *_JSONList] = Field(
        (), description="Networks whose X-Forwarded-For is believed (a JSON list), such as `10.0.0.0/8`."
    )
    max_body_bytes: int = Field(1 << 20, ge=1024, description="Largest request body.")

    retention_days: float | None = Field(
        None, gt=0, description="Days after which the events of ended runs are trimmed."
    )
    retention_bytes: int | None = Field(
        None, ge=1, description="Most bytes of events; the oldest ended runs are trimmed."
    )

    log_level: str = Field(
        "INFO", validation_alias=AliasChoices("HEADRACE_LOG_LEVEL", "LOG_LEVEL"), description="Least severe log line."
    )
    log_format: Literal["auto", "console", "json"] = Field("auto", description="`auto`: console on a terminal.")


def load_settings(**overrides: object) -> Settings:
    """The settings with what a command line says on top. Raises `ConfigurationError` that names the setting."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        variable = _variable(str(first["loc"][0])) if first["loc"] else "settings"
        raise ConfigurationError(f"{variable}: {first['msg']}. See docs/reference/settings.md.") from error


def _variable(location: str) -> str:
    """The variable that holds a field's value: of the names that serve for it, the first that is set."""
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        names = (
            [str(each) for each in alias.choices] if isinstance(alias, AliasChoices) else [f"HEADRACE_{name.upper()}"]
        )
        if location in (name, *names):
            return next((str(each) for each in names if os.environ.get(str(each))), str(names[0]))
    return location
