"""A scripted OpenAI-compatible server: for tests, for load, and to see how a client stands what real servers do.

The model name of a request chooses the script, with options like a query: `text?count=300&pace_ms=10`. A script is a
list of steps. `SCRIPTS` has one for every fault that we have met; a test may bring its own:

    async with FakeProvider({"torn": [Send(text("Hel")), Cut(reset=True)]}) as provider:
        ...  # POST to f"{provider.url}/chat/completions" with the model "torn"

It says nothing that a model said, and never leaves this process.
"""

import asyncio
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, TypeAlias, assert_never
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

# --- scripts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Head:
    """Status and headers. Left out, they are those of an event stream, sent with the first bytes."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "text/event-stream"})
    framed: bool = True
    """With chunked encoding; otherwise only the end of the connection ends the body."""


@dataclass(frozen=True)
class Send:
    data: bytes
    piece: int | None = None
    """Bytes per write; all in one write if None."""


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Stall:
    """Say nothing more, but stay. With `ping`, send those bytes every `every` seconds."""

    ping: bytes = b""
    every: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Drop the connection, without the end of the body: with FIN, or with RST."""

    reset: bool = False


Step: TypeAlias = Head | Send | Pause | Stall | Cut
Script: TypeAlias = Iterable[Step]


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a script may go by."""

    body: dict[str, Any]
    options: Mapping[str, str]
    number: int
    """1 for the first request with this very model name, and so on."""

    @property
    def last_message(self) -> str:
        said = [message.get("content") for message in self.body.get("messages", ())]
        return next((text for text in reversed(said) if isinstance(text, str)), "")

    def count(self, name: str, default: int) -> int:
        return int(self.options.get(name, default))

    def seconds(self, name: str, default_ms: int = 0) -> float:
        return int(self.options.get(name, default_ms)) / 1000


ScriptMaker: TypeAlias = Callable[[Call], Script]

# --- what servers send ------------------------------------------------------------------------------------------------

DONE = b"data: [DONE]\n\n"
JSON = Head(headers={"Content-Type": "application/json"})


def event(payload: object) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def chunk(delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
    """One `chat.completion.chunk`."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return event({"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 0, "choices": [choice]})


def text(content: str) -> bytes:
    return chunk({"content": content})


def finish(reason: str = "stop") -> bytes:
    return chunk({}, reason)


def usage(input_tokens: int, output_tokens: int, *, cached: int = 0, reasoning: int = 0) -> bytes:
    return event({"choices": [], "usage": _usage(input_tokens, output_tokens, cached, reasoning)})


def whole(content: str, *, finish_reason: str | None = "stop") -> bytes:
    """A completion that was not streamed."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return msgspec.json.encode(
        {"id": "chatcmpl-fake", "object": "chat.completion", "choices": [choice], "usage": _usage(3, 5, 0, 0)}
    )


def failure(message: str, *, code: object = None, kind: str = "server_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _usage(input_tokens: int, output_tokens: int, cached: int, reasoning: int) -> dict[str, Any]:
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


# --- the scripts ------------------------------------------------------------------------------------------------------

HELLO = (Send(text("Hello")), Send(text(", wörld")))
END = (Send(finish()), Send(usage(3, 5)), Send(DONE))


def _talk(call: Call, pieces: Iterable[str]) -> Iterator[Step]:
    """A good answer, streamed with `pace_ms` between its pieces, or whole if the request did not ask for a stream."""
    if not call.body.get("stream"):
        yield JSON
        yield Send(whole("".join(pieces)))
        return
    yield Send(chunk({"role": "assistant", "content": ""}))
    count, pace = 0, call.seconds("pace_ms")
    for count, piece in enumerate(pieces, 1):  # noqa: B007 (counts)
        yield Send(text(piece))
        if pace:
            yield Pause(pace)
    yield from (Send(finish()), Send(usage(3, count)), Send(DONE))


def _text(call: Call) -> Script:
    size = call.count("size", 0)
    words = (f"word{number} " for number in range(1, call.count("count", 5) + 1))
    return _talk(call, (word.ljust(size, ".")[:size] if size else word for word in words))


def _echo(call: Call) -> Script:
    return _talk(call, call.last_message)


def _stages(call: Call, trouble: Step) -> Script:
    """`trouble` `at` headers, first, middle, torn, finish (all text was said) or end (only [DONE] is missing)."""
    framed = Head(framed=call.options.get("framed", "1") == "1")
    before: dict[str, tuple[Step, ...]] = {
        "headers": (),
        "first": (framed, Send(chunk({"role": "assistant"}))),
        "middle": (framed, HELLO[0]),
        "torn": (framed, HELLO[0], Send(text("half of an event")[:40])),
        "finish": (framed, *HELLO),
        "end": (framed, *HELLO, Send(finish())),
    }
    return (*before[call.options.get("at", "middle")], trouble)


def _stall(call: Call) -> Script:
    return _stages(call, Stall())


def _ping(call: Call) -> Script:
    """Stalls, but never stops to send what is no event: comments, empty data, empty chunks (`kind`)."""
    pings = {"comment": b": ping\n\n", "data": b"data:\n\n", "chunk": chunk({"content": ""})}
    return _stages(call, Stall(ping=pings[call.options.get("kind", "comment")], every=call.seconds("every_ms", 20)))


def _cut(call: Call) -> Script:
    return _stages(call, Cut(reset=call.options.get("how") == "rst"))


def _status(call: Call) -> Script:
    """Answers `code` to the first `times` requests (for ever, if left out), then a good answer."""
    if call.number > call.count("times", call.number):
        return _text(call)
    headers = {"Content-Type": "application/json"}
    if "retry_after" in call.options:
        headers["Retry-After"] = call.options["retry_after"]
    words = call.options.get("error")
    return Head(status=call.count("code", 500), headers=headers), Send(msgspec.json.encode(failure("no", code=words)))


def _error(call: Call) -> Script:
    """An error object in a 200: as an event after `after` pieces of text, or as the body (`as=body`)."""
    code = call.options.get("code", "")
    error = failure("no", code=int(code) if code.isdecimal() else code or None)
    if call.options.get("as") == "body":
        return JSON, Send(msgspec.json.encode(error))
    return *HELLO[: call.count("after", 0)], Send(event(error)), *END


def _storm(call: Call) -> Script:
    retry = call.options.get("retry_after", "0")
    return _status(
        Call(body=call.body, number=call.number, options={"times": "2", "code": "429", "retry_after": retry})
    )


def _slow(call: Call) -> Script:
    return Pause(call.seconds("delay_ms", 100)), *HELLO, *END


def _huge(call: Call) -> Script:
    return *HELLO, Send(b"data: " + b" " * (call.count("mib", 9) << 20)), *END


_THOUGHTS = tuple(Send(chunk({"reasoning_content": thought})) for thought in ("Let me ", "think."))
_FIRST_CALL = {"index": 0, "id": "call_a", "type": "function", "function": {"name": "search", "arguments": ""}}
_SECOND_CALL = {"index": 1, "id": "call_b", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
_TOOL_CALLS = tuple(
    Send(chunk({"tool_calls": [call]}))
    for call in (
        _FIRST_CALL,
        {"index": 0, "function": {"arguments": '{"q":'}},
        {"index": 0, "function": {"arguments": '"x"}'}},
        _SECOND_CALL,
    )
)
_ANSWER = b"".join((text("Grüße, 世界 🎏"), finish(), usage(3, 5), DONE))

SCRIPTS: dict[str, Script | ScriptMaker] = {
    "text": _text,
    "echo": _echo,
    "reasoning": (*_THOUGHTS, *HELLO, Send(finish()), Send(usage(3, 9, cached=2, reasoning=4)), Send(DONE)),
    "tool_calls": (*_TOOL_CALLS, Send(finish("tool_calls")), Send(usage(3, 5)), Send(DONE)),
    "whole": (JSON, Send(whole("Hello, wörld"))),
    "whole_cut": (JSON, Send(whole("Hello, wörld")[:-20]), Cut()),
    "whole_unfinished": (JSON, Send(whole("Hello, wörld", finish_reason=None))),
    "slow": _slow,
    "stall": _stall,
    "ping": _ping,
    "cut": _cut,
    "no_finish": (*HELLO, Send(DONE)),
    "no_end": HELLO,
    "no_done": (*HELLO, Send(finish()), Send(usage(3, 5))),
    "no_blank_line": (*HELLO, Send(finish().rstrip())),
    "two_finishes": (*HELLO, Send(finish("length")), Send(finish("stop")), Send(DONE)),
    "empty_finish_reason": (Send(chunk({"content": "Hello"}, "")), Send(chunk({"content": ", wörld"}, "")), *END),
    "only_empty_finish_reason": (*HELLO, Send(finish("")), Send(DONE)),
    "finish_error": (*HELLO, Send(finish("error")), Send(DONE)),
    "no_text": END,
    "filtered": (Send(finish("content_filter")), Send(DONE)),
    "zero_chunks": (Send(DONE),),
    "zero_bytes": (Head(),),
    "status": _status,
    "storm": _storm,
    "error": _error,
    "html": (Head(headers={"Content-Type": "text/html"}), Send(b"<!doctype html><title>Sign in</title>")),
    "bad_json": (*HELLO, Send(b'data: {"choices": [{"delta": {"content": \n\n'), *END),
    "bad_json_body": (JSON, Send(b'{"choices": nothing}')),
    "bad_utf8": (*HELLO, Send(b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n'), *END),
    "split_utf8": (
        Send(_ANSWER[: _ANSWER.index(b"\xf0\x9f") + 2]),
        Pause(0.05),
        Send(_ANSWER[_ANSWER.index(b"\xf0\x9f") + 2 :]),
    ),
    "bytewise": (Send(_ANSWER, piece=1),),
    "crlf": (Send(_ANSWER.replace(b"\n", b"\r\n").replace(b"data: ", b"data:"), piece=7),),
    "multi_line": (Send(b": hi\n\nevent: x\nid: 7\n" + _ANSWER.replace(b',"created"', b'\ndata: ,"created"')),),
    "huge_line": _huge,
}
"""The script of each model name, before the `?`."""

# --- the server -------------------------------------------------------------------------------------------------------


class _Unframed(web.StreamResponse):
    """A body that only the end of the connection ends; aiohttp's own switch for that, which WebSockets use."""

    _length_check: ClassVar[bool] = False  # type: ignore[misc]


class FakeProvider:
    """The server. `scripts` come before those of `SCRIPTS`; with an `api_key`, requests without it get a 401."""

    def __init__(
        self, scripts: Mapping[str, Script | ScriptMaker] | None = None, *, api_key: str | None = None
    ) -> None:
        self.url = ""
        """The base URL of the API, once started: `http://host:port/v1`."""
        self.requests: deque[dict[str, Any]] = deque(maxlen=1000)
        """The last bodies that came in."""
        self.cancelled = 0
        """Answers that a client left before their end."""
        self._scripts = {**SCRIPTS, **(scripts or {})}
        self._api_key = api_key
        self._numbers: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None
        self._stopping = False

    @property
    def open_connections(self) -> int:
        """TCP connections that are open now, the idle ones of a client's pool among them."""
        server = self._runner.server if self._runner else None
        return len(server.connections) if server else 0

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen, and give the base URL; port 0 takes a free one."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        address = self._runner.addresses[0]
        self.url = f"http://{host}:{address[1]}/v1"
        return self.url

    async def stop(self) -> None:
        self._stopping = True
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> "FakeProvider":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _models(self, request: web.Request) -> web.StreamResponse:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "headrace"} for name in self._scripts]
        return web.json_response({"object": "list", "data": models})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        if self._api_key and request.headers.get("Authorization") != f"Bearer {self._api_key}":
            return web.json_response(failure("Who are you?", code="invalid_api_key"), status=401)
        body = await request.json()
        self.requests.append(body)
        script = self._script(body)
        if script is None:
            return web.json_response(failure("No such model", code="model_not_found"), status=404)
        whole = False
        try:
            response = await _play(request, script)
            whole = True
        finally:
            if not whole and not self._stopping:
                self.cancelled += 1
        return response

    def _script(self, body: dict[str, Any]) -> Script | None:
        model = str(body.get("model"))
        name, _, options = model.partition("?")
        script = self._scripts.get(name)
        if not callable(script):
            return script
        self._numbers[model] += 1
        return script(Call(body=body, options=dict(parse_qsl(options)), number=self._numbers[model]))


async def _play(request: web.Request, script: Script) -> web.StreamResponse:
    head, response = Head(), None
    for step in script:
        match step:
            case Head():
                head = step
                response = await _open(request, head)
            case Send():
                response = response or await _open(request, head)
                await _send(response, step)
            case Pause():
                await asyncio.sleep(step.seconds)
            case Stall():
                await _stall_for_ever(response, step)
            case Cut():
                return _drop(request, response, step)
            case _:
                assert_never(step)
    response = response or await _open(request, head)
    if not head.framed:
        response.force_close()
    await response.write_eof()
    return response


async def _open(request: web.Request, head: Head) -> web.StreamResponse:
    response = (web.StreamResponse if head.framed else _Unframed)(status=head.status, headers=head.headers)
    if not head.framed:
        response.force_close()
    await response.prepare(request)
    return response


async def _send(response: web.StreamResponse, step: Send) -> None:
    size = step.piece or len(step.data) or 1
    for start in range(0, len(step.data), size):
        await response.write(step.data[start : start + size])
        if step.piece:
            await asyncio.sleep(0)


async def _stall_for_ever(response: web.StreamResponse | None, stall: Stall) -> None:
    while True:
        await asyncio.sleep(stall.every if stall.ping else 3600)
        if response is not None and stall.ping:
            await response.write(stall.ping)


def _drop(request: web.Request, response: web.StreamResponse | None, cut: Cut) -> web.StreamResponse:
    transport = request.transport
    if transport is not None and cut.reset:
        # A linger time of 0 makes the close an RST.
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    elif transport is not None:
        transport.close()
    return response or web.Response()
