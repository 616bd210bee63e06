"""One HTTP/1.1 connection: uvicorn's protocol with the deadlines, limits and manners that it lacks.

What llhttp rejects by itself, and what is tested to stay so: Content-Length beside Transfer-Encoding, a second
Content-Length, one that is not digits, folded headers, space before the colon, bare CR or LF, NUL. uvicorn switches on
`lenient_data_after_close`, which only means that bytes after a `Connection: close` request are dropped unparsed.
"""

import asyncio
from enum import Enum, auto
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from headrace.errors import HeadersTooLarge, HeadraceError, InvalidRequest, RequestTimeout, URITooLong
from headrace.server.listener.push import EXTENSION, Push
from headrace.server.listener.refusal import refusal
from headrace.server.listener.room import Room

MAX_TARGET = 8_000
"""Bytes of the path with its query. A WebSocket handshake is parsed once more, with lines of at most 8,192 bytes."""
MAX_HEAD = 65_536
"""Bytes of all headers of a request together, or of all its trailers."""
MAX_HEADERS = 128
MAX_PIPELINED = 16
"""Requests that wait for the response before theirs."""


class Phase(Enum):
    """What the peer is about to send."""

    NOTHING = auto()
    HEAD = auto()
    BODY = auto()
    UPGRADE = auto()
    UNHEARD = auto()
    """Whatever it sends, it is dropped: the connection ends."""


class HttpConnection(HttpToolsProtocol):
    # With more than 30 attributes CPython stops sharing the keys of a class's instances: 1.5 KiB per connection.
    __slots__ = (
        "_active",
        "_body_bytes",
        "_deadlines",
        "_head_size",
        "_overdue",
        "_parsed",
        "_phase",
        "_room",
        "_stalled",
        "_unparsed",
    )

    def __init__(
        self,
        config: Config,
        server_state: Room,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._room = server_state
        self._deadlines = server_state.deadlines
        self._phase = Phase.NOTHING
        self._head_size = 0
        self._parsed = False
        """Whether the parser got to the end of something in this read."""
        self._unparsed = 0
        self._body_bytes = 0
        """Since its deadline was set."""
        self._active: RequestResponseCycle | None = None
        """The request that is being answered; uvicorn's `cycle` is the last one that was received."""
        self._overdue: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def answering(self) -> bool:
        return self._active is not None and not self._active.response_complete

    # --- the transport's calls ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._overdue = self.loop.call_later(self._deadlines.head, self._head_overdue)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_time()
        self._unset_keepalive_if_required()
        if self._stalled is not None:
            self._stalled.cancel()
        self.pipeline.clear()
        if self.answering:
            self._dismiss()
        super().connection_lost(exc)
        self._room.left()

    def data_received(self, data: bytes) -> None:
        if self._phase is Phase.UNHEARD:
            return
        self._unset_keepalive_if_required()
        self._parsed = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            # What a callback of ours raised is the context of the parser's error.
            cause = error.__context__
            self._refuse(cause if isinstance(cause, HeadraceError) else InvalidRequest())
        else:
            # The parser keeps a header or trailer that does not end, and calls only when it is whole.
            self._unparsed = 0 if self._parsed else self._unparsed + len(data)
            if self._unparsed > MAX_TARGET + MAX_HEAD:
                self._refuse(HeadersTooLarge())
            else:
                self._watch()

    def eof_received(self) -> None:
        if self._phase in (Phase.HEAD, Phase.BODY):
            self._refuse(InvalidRequest("The request ended before it was complete."))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    # --- the parser's calls ------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._phase = Phase.HEAD
        self._head_size = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_TARGET:
            raise URITooLong

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value) + 4
        if self._head_size > MAX_HEAD or len(self.headers) >= MAX_HEADERS:
            raise HeadersTooLarge
        if self._phase is Phase.HEAD:  # else it is a trailer, and must not get among the headers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._parsed = True
        self._on_time()
        self._check_head()
        self._head_size = 0
        if self.parser.should_upgrade():
            self._phase = Phase.UPGRADE
            self.scope["method"] = self.parser.get_method().decode("ascii")
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            raise InvalidRequest("Too many requests at once on one connection.")
        super().on_headers_complete()
        if self.scope["method"] != "HEAD":
            self.scope["extensions"] = {EXTENSION: Push(self.cycle)}  # type: ignore[dict-item]  # ASGI wants dicts
        self._phase = Phase.BODY

    def on_body(self, body: bytes) -> None:
        self._parsed = True
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._phase is Phase.UPGRADE:
            return
        self._parsed = True
        self._on_time()
        self._phase = Phase.NOTHING
        super().on_message_complete()

    def _check_head(self) -> None:
        """What llhttp lets pass and RFC 9112 does not, since two servers could read it differently."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1") or self.parser.get_method() == b"CONNECT":
            raise InvalidRequest
        hosts = 0
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and (version == "1.0" or value.strip().lower() != b"chunked"):
                raise InvalidRequest
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise InvalidRequest

    # --- upgrades ----------------------------------------------------------------------------------------------------

    def _upgrade(self, rest: bytes) -> None:
        if not self._should_upgrade():
            self._stay(rest)
        elif self._may_become_websocket(rest):
            self.handle_websocket_upgrade()
        else:
            self._refuse(InvalidRequest("The WebSocket handshake is not well formed."))

    def _may_become_websocket(self, rest: bytes) -> bool:
        """A plain GET that nothing precedes or follows, with lines that the second parser takes."""
        return (
            self.scope["method"] == "GET"
            and not rest
            and not self.answering
            and not self.flow.write_paused
            and all(len(name) + len(value) < MAX_TARGET for name, value in self.headers)
        )

    def _stay(self, rest: bytes) -> None:
        """Read the request again without its Upgrade header, as a server may (curl and Java offer `h2c`).

        The parser takes the body of an upgrade for the new protocol's, and would read it as a next request.
        """
        lines = [b"%s %s HTTP/%s" % (self.scope["method"].encode(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    # --- deadlines ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Start the deadline of what the peer has begun to send; its time does not run while an earlier one waits."""
        if self._overdue is not None:
            return
        if self._phase is Phase.HEAD and not self.answering:
            self._overdue = self.loop.call_later(self._deadlines.head, self._head_overdue)
        elif self._phase is Phase.BODY and self._active is self.cycle:
            self._body_bytes = 0
            self._overdue = self.loop.call_later(self._deadlines.body, self._body_overdue)

    def _on_time(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _head_overdue(self) -> None:
        self._overdue = None
        if self._phase is Phase.NOTHING:
            self.transport.close()
        else:
            self._refuse(RequestTimeout())

    def _body_overdue(self) -> None:
        """A large body that comes in a steady stream has as long again."""
        self._overdue = None
        if self._body_bytes >= self._deadlines.body * self._deadlines.body_rate:
            self._watch()
        else:
            self._refuse(RequestTimeout())

    def _watch_reader(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(self._deadlines.write, self._write_overdue, unsent)

    def _write_overdue(self, unsent: int) -> None:
        """A peer that took some of a large write meanwhile is slow, not gone."""
        if self.transport.get_write_buffer_size() < unsent:
            self._watch_reader()
        else:
            self.transport.abort()

    # --- ends --------------------------------------------------------------------------------------------------------

    def _refuse(self, error: HeadraceError) -> None:
        """Answer what is being received with an error, if no response stands in the way, and end the connection."""
        self.pipeline.clear()
        if self.answering:
            assert self._active is not None
            if self._active is not self.cycle or self._phase is not Phase.BODY:
                self._active.keep_alive = False  # the fault is behind this request: its response may end
                self._be_deaf()
                return
            started = self._active.response_started
            self._dismiss()
            if started:
                self._be_deaf()
                self.transport.close()
                return
        self.transport.write(refusal(error, self.server_state.default_headers))
        self._hang_up()

    def _dismiss(self) -> None:
        """Tell the app that nobody reads its response."""
        assert self._active is not None
        self._active.disconnected = True
        self._active.message_event.set()
        extensions: dict[str, Any] = self._active.scope.get("extensions") or {}
        if EXTENSION in extensions:
            extensions[EXTENSION].disconnected()

    def _be_deaf(self) -> None:
        self._phase = Phase.UNHEARD
        self._on_time()

    def _hang_up(self) -> None:
        """End our side, and drop what still comes until the peer has ended its own.

        A socket closed with unread bytes is reset, and the peer could lose the answer that explains why.
        """
        self._be_deaf()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self.transport.write_eof()
        unsent = self.transport.get_write_buffer_size() > 0
        patience = self._deadlines.write if unsent else self._deadlines.linger
        self._overdue = self.loop.call_later(patience, self.transport.abort)

    def on_response_complete(self) -> None:
        if self._phase is Phase.UNHEARD or (self._phase is Phase.BODY and self._active is self.cycle):
            self._hang_up()  # nobody wants the rest of the body
            return
        super().on_response_complete()
        if self._phase is Phase.HEAD and not self.transport.is_closing():
            self._unset_keepalive_if_required()
        self._watch()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active = cycle
        if self._room.draining:
            cycle.keep_alive = False
        super()._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        """Close if idle; else let the open response end, and nothing after it."""
        if self.answering:
            assert self._active is not None
            self._active.keep_alive = False
            self.pipeline.clear()
        elif self._phase is not Phase.UNHEARD:
            self.transport.close()

    def abort(self) -> None:
        """End now, in the middle of whatever it is."""
        if self.answering:
            self._dismiss()
        self.transport.abort()
