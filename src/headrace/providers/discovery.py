"""Model servers on this machine that answer without a key."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, TypeVar

import aiohttp
import msgspec

HOST = "127.0.0.1"
PORTS: Mapping[str, int] = {"Ollama": 11434, "LM Studio": 1234, "llama.cpp": 8080, "vLLM": 8000}
"""Where each product listens unless told otherwise, in the order of preference. llamafile answers as llama.cpp."""
MAX_REPLY_BYTES = 1024 * 1024
_MAX_NAME = 256
_NOT_FOR_CHAT = ("embed", "rerank", "bge-", "whisper")


class LocalServer(NamedTuple):
    """A model server that was found and verified."""

    product: str
    base_url: str
    """Of its OpenAI-compatible API, ending in `/v1`."""
    model: str


async def discover(
    timeout: float = 0.3, *, exclude_port: int | None = None, ports: Mapping[str, int] = PORTS
) -> LocalServer | None:
    """The first product, in the order of `PORTS`, that listens on loopback and has a model to chat with.

    All are asked at once, each for at most `timeout` seconds, so nothing takes much longer than that. A server counts
    only if its JSON is that of the product: something else on the same port is left alone, and `exclude_port` (our own)
    is not asked. Never raises; follows no redirect, uses no proxy and sends no credential.
    """
    plain = {"Accept-Encoding": "identity"}
    async with aiohttp.ClientSession(
        trust_env=False, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, headers=plain
    ) as session:
        asked = [
            asyncio.create_task(_ask(product, _Loopback(session, port), timeout))
            for product in PORTS
            if (port := ports.get(product)) and port != exclude_port
        ]
        try:
            for task in asked:
                if found := await task:
                    return found
            return None
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)


# --- what each product says -------------------------------------------------------------------------------------------


class _Version(msgspec.Struct):
    version: str


class _Health(msgspec.Struct):
    status: str


class _Greeting(msgspec.Struct):
    lmstudio: bool


class _Tag(msgspec.Struct):
    name: str
    digest: str
    remote_host: str = ""
    """Set where the model runs elsewhere: what is said to it would leave this machine."""


class _Tags(msgspec.Struct):
    models: list[_Tag]


class _Model(msgspec.Struct):
    id: str
    owned_by: str = ""


class _Models(msgspec.Struct):
    data: list[_Model]

    def of(self, owner: str) -> list[str]:
        return [model.id for model in self.data if model.owned_by == owner]


_Reply = TypeVar("_Reply")


class _Loopback:
    """One port of this machine."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self.url = f"http://{HOST}:{port}"
        self._session = session

    async def get(self, path: str, shape: type[_Reply]) -> _Reply:
        """The JSON of a plain 200 in the `shape` of the product; anything else raises."""
        async with self._session.get(self.url + path, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError("not a 200")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_REPLY_BYTES:
                    raise ValueError("too large")
            return msgspec.json.decode(body, type=shape)


async def _ollama(port: _Loopback) -> list[str]:
    await port.get("/api/version", _Version)
    tags = await port.get("/api/tags", _Tags)
    return [tag.name for tag in tags.models if not tag.remote_host]


async def _lm_studio(port: _Loopback) -> list[str]:
    greeting = await port.get("/lmstudio-greeting", _Greeting)
    return [model.id for model in (await port.get("/v1/models", _Models)).data] if greeting.lmstudio else []


async def _llama_cpp(port: _Loopback) -> list[str]:
    health = await port.get("/health", _Health)
    return (await port.get("/v1/models", _Models)).of("llamacpp") if health.status == "ok" else []


async def _vllm(port: _Loopback) -> list[str]:
    await port.get("/version", _Version)
    return (await port.get("/v1/models", _Models)).of("vllm")


_MODELS: Mapping[str, Callable[[_Loopback], Awaitable[list[str]]]] = {
    "Ollama": _ollama,
    "LM Studio": _lm_studio,
    "llama.cpp": _llama_cpp,
    "vLLM": _vllm,
}


async def _ask(product: str, port: _Loopback, timeout: float) -> LocalServer | None:
    try:
        async with asyncio.timeout(timeout):
            models = await _MODELS[product](port)
    except Exception:  # whatever listens there may say anything, and none of it may keep the server from starting
        return None
    model = next((name for name in models if _can_chat(name)), None)
    return LocalServer(product, f"{port.url}/v1", model) if model is not None else None


def _can_chat(name: str) -> bool:
    """Judged by the name, as most products list all models alike. A name is shown, so it has to be printable."""
    usable = 0 < len(name) <= _MAX_NAME and name.isprintable() and " " not in name
    return usable and not any(word in name.lower() for word in _NOT_FOR_CHAT)
