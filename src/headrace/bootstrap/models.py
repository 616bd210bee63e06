"""Which model answers, from the settings."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
from pydantic import SecretStr

from headrace.bootstrap.documents import open_index
from headrace.errors import ConfigurationError
from headrace.models.failover import FailoverModel
from headrace.models.hedge import Hedge
from headrace.ports import Model
from headrace.providers.anthropic import AnthropicModel
from headrace.providers.demo import ExtractiveModel
from headrace.providers.discovery import LocalServer, discover
from headrace.providers.openai import OpenAIModel, ResponsesModel
from headrace.providers.reference import DEMOS, ModelReference, parse_chain
from headrace.providers.upstream import Retries, Timeouts
from headrace.settings import Settings
from headrace.telemetry import Telemetry

logger = structlog.get_logger("headrace")

_SERVERS_CHOICE = "default"
"""Sent where a URL names no model; servers of one model take any name."""
_BEFORE_OTHERS = Retries(attempts=2, patience=3.0)
"""Of a model that another one stands in for."""
_FIRST_EVENT_BEFORE_OTHERS = 20.0
"""Seconds, at most, that such a model may take to say anything. Three silent models are all given up before their run
is, which ends after two minutes without an event."""
_PRODUCTS = {"Ollama": "ollama", "LM Studio": "lmstudio", "llama.cpp": "llamacpp", "vLLM": "vllm"}
"""What is looked for on this machine, by its name in the table of providers."""


async def choose_model(settings: Settings, telemetry: Telemetry | None = None) -> Model:
    """The configured models, as one; else what a configured key opens; else one on loopback; else the demo.

    Models behind HTTP are always a chain, if only of one: an answer that broke off is gone on with.
    """
    references = await _choose(settings)
    *others, last = references
    soon = min(settings.first_event_timeout, _FIRST_EVENT_BEFORE_OTHERS)
    models = [await _model(each, settings, _BEFORE_OTHERS, soon) for each in others]
    models.append(await _model(last, settings, Retries(), settings.first_event_timeout))
    if len(models) == 1 and references[0].adapter == "demo":
        return models[0]
    hedge = Hedge(settings.hedge) if settings.hedge is not None else None
    return FailoverModel(models, hedge=hedge, telemetry=telemetry)


def names_of(model: Model) -> Sequence[str]:
    """Of all that may answer in its place."""
    return model.names if isinstance(model, FailoverModel) else (model.name,)


async def _choose(settings: Settings) -> Sequence[ModelReference]:
    if settings.model is not None:
        return parse_chain(settings.model)
    if settings.openai_api_key is not None:
        return parse_chain([f"openai:{settings.openai_model}"])
    if settings.anthropic_api_key is not None:
        return parse_chain([f"anthropic:{settings.anthropic_model}"])
    if settings.discover and (found := await discover(exclude_port=settings.port)) is not None:
        logger.info("model server found", product=found.product, model=found.model)
        return (_found(found),)
    return parse_chain("demo")


def _found(server: LocalServer) -> ModelReference:
    entry = ModelReference.parse(f"{_PRODUCTS[server.product]}:any")
    return msgspec.structs.replace(entry, model=server.model, base_url=server.base_url)


async def _model(reference: ModelReference, settings: Settings, retries: Retries, first_event: float) -> Model:
    if reference.adapter == "demo":
        return await _demo(reference, settings)
    timeouts = Timeouts(first_event=first_event, idle=settings.model_idle_timeout)
    name = reference.name
    reference = _at_configured_url(reference, settings)
    options: dict[str, Any] = {
        "model": reference.model or _SERVERS_CHOICE,
        "base_url": reference.base_url or settings.openai_base_url,
        "api_key": _key(reference, settings),
        "name": name,
        "timeouts": timeouts,
        "retries": retries,
    }
    if reference.adapter == "anthropic":
        return AnthropicModel(**options)
    if reference.adapter == "openai-responses":
        return ResponsesModel(**options)
    return OpenAIModel(**options, quirks=reference.quirks)


def _at_configured_url(reference: ModelReference, settings: Settings) -> ModelReference:
    """OpenAI and Anthropic may be reached at another address, where a server need not have the quirks of theirs."""
    name = "anthropic_base_url" if reference.adapter == "anthropic" else "openai_base_url"
    base_url = getattr(settings, name)
    if reference.base_url is not None or (
        reference.adapter == "openai" and base_url == Settings.model_fields[name].default
    ):
        return reference
    return msgspec.structs.replace(reference, base_url=base_url)


async def _demo(reference: ModelReference, settings: Settings) -> Model:
    if reference.model == "extractive":
        index = await asyncio.to_thread(open_index, settings)
        return ExtractiveModel(index, **reference.options)
    demo: Model = DEMOS[str(reference.model)](**reference.options)
    return demo


def _key(reference: ModelReference, settings: Settings) -> str | None:
    """From the setting of the provider, or from the environment variable that its users know. OpenAI and Anthropic may
    be something else behind a URL of one's own, which needs none."""
    own: dict[str, SecretStr | None] = {
        "OPENAI_API_KEY": settings.openai_api_key,
        "ANTHROPIC_API_KEY": settings.anthropic_api_key,
    }
    variable = reference.key_variable
    if variable in own:
        key = own[variable]
        return key.get_secret_value() if key is not None else None
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise ConfigurationError(f"`{reference.provider}:...` needs a key: set {variable}.")
    return os.environ[variable]
