"""`headrace check`: what is configured, and what is reachable."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import AliasChoices, SecretStr

from headrace.bootstrap import Headrace, auth_config, choose_model, names_of, tool_sources
from headrace.cli.output import line
from headrace.client import AsyncClient
from headrace.egress import Egress
from headrace.errors import HeadraceError, Unreachable
from headrace.server.auth import AuthConfig, KeyFile
from headrace.settings import Settings, load_settings

_QUESTION = "What is a headrace?"
_TOKENS = 16


async def check(
    *,
    url: Annotated[str | None, Parameter(env_var="HEADRACE_URL")] = None,
    token: Annotated[str | None, Parameter(env_var="HEADRACE_TOKEN")] = None,
) -> None:
    """Say what is configured here, and whether a server answers.

    Parameters
    ----------
    url
        The server to look at; the one that the settings describe, if none is given.
    token
        Token or API key for it.
    """
    settings = load_settings()
    for name, value in _settings(settings):
        _say(name, value)
    await _configuration(settings)
    try:
        await _server(url or f"http://{settings.host}:{settings.port}", token)
    except Unreachable as error:
        if url is not None:
            raise
        _say("server", f"{error.message} Start one with `headrace serve`.")


def _settings(settings: Settings) -> Iterator[tuple[str, str]]:
    """Those that the environment sets, by the variable that does; secrets are not shown."""
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [f"HEADRACE_{name.upper()}"]
        variable = next((str(choice) for choice in choices if _is_set(str(choice))), None)
        if variable is not None:
            value = getattr(settings, name)
            yield variable, "(secret)" if isinstance(value, SecretStr) else str(value)


def _is_set(variable: str) -> bool:
    return variable.lower() in {name.lower() for name in os.environ}


async def _configuration(settings: Settings) -> None:
    headrace = Headrace(settings)
    _say("model", await _models(settings))
    _say("tools", await _tools(settings))
    _say("engine", headrace.engine.durability)
    _say("access", _access(auth_config(settings)))
    _say("data", _data(settings.data))


async def _models(settings: Settings) -> str:
    """The models that a server would choose now; an index of documents is made elsewhere, and thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        model = await choose_model(settings.model_copy(update={"data": Path(folder)}))
        await model.close()
        return ", then ".join(names_of(model))


async def _tools(settings: Settings) -> str:
    """Those that a server would have now; what they need is opened, and closed again."""
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            egress = await stack.enter_async_context(Egress())
            sources = tool_sources(settings.model_copy(update={"data": Path(folder)}), egress)
            tools = [tool.name for source in sources for tool in await stack.enter_async_context(source())]
        return ", ".join(tools) or "none"


def _access(config: AuthConfig) -> str:
    if not config.configured():
        return "open to everybody on this machine, and to nobody else"
    good = sum(not key.disabled for key in KeyFile(config.keys).list())
    issuers = ", ".join(issuer.issuer for issuer in config.issuers) or "nobody"
    return f"{good} API keys; tokens of {issuers}"


def _data(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder.resolve()} (will be made)"
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    writable = "" if os.access(folder, os.W_OK) else ", NOT writable"
    return f"{folder.resolve()} ({size / 1e6:,.1f} MB{writable})"


async def _server(url: str, token: str | None) -> None:
    async with AsyncClient(url, token=token, patience=0) as client:
        ready = await client.ready()
        _say("server", f"{url} is live and {'ready' if ready else 'not ready'}")
        if ready:
            _say("answer", await _answer(client))


async def _answer(client: AsyncClient) -> str:
    began = time.monotonic()
    first, pieces = 0.0, 0
    try:
        run = await client.start(_QUESTION, input={"max_tokens": _TOKENS})
        async with aclosing(run.text()) as texts:
            async for _ in texts:
                first = first or time.monotonic() - began
                pieces += 1
    except HeadraceError as error:
        raise type(error)(f"The server is there, but does not answer: {error.message}") from error
    return f"streamed in {pieces} pieces, the first after {first * 1000:,.0f} ms"


def _say(name: str, value: str) -> None:
    line(f"{name:<12} {value}")
