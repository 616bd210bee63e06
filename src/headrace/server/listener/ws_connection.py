"""One WebSocket: uvicorn's protocol with limits on what a peer may send, and an end that tells why."""

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from headrace.server.listener.room import Room

MAX_MESSAGE = 65_536
"""Bytes of one message; a larger one is closed with 1009."""
MAX_FRAGMENTS = 1_024
"""Of one message: empty ones would never reach its size."""
MAX_FRAMES_PER_SECOND = 1_000
"""Of any kind; more is closed with 1008."""
SLICE = 4_096
"""Bytes that are parsed before the limits are looked at again, so that a flood is never parsed as a whole."""


class WebSocketConnection(WebSocketsSansIOProtocol):
    __slots__ = ("_deadlines", "_ended", "_frames_left", "_room", "_second_ends", "_stalled")

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
        self._ended = False
        self._second_ends = 0.0
        self._frames_left = 0
        self._stalled: asyncio.TimerHandle | None = None

    # --- the transport's calls ---------------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_stall()
        super().connection_lost(exc)
        self._room.left()

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated and not self.handshake_complete:
            self.transport.abort()  # a client that does not wait for the answer would be answered in mid-handshake
            return
        for start in range(0, len(data), SLICE):
            if self._ended:
                return
            super().data_received(data[start : start + SLICE])
            if not self.handshake_initiated:  # the handshake is fed as a whole, and was not understood
                self.transport.abort()
                return

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self._deadlines.write, self._reader_stalled)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_stall()

    def _forget_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _reader_stalled(self) -> None:
        self._stalled = None
        if self.transport.is_closing():
            self.transport.abort()
        else:
            self._fail(CloseCode.TRY_AGAIN_LATER, "reader too slow")

    # --- frames ------------------------------------------------------------------------------------------------------

    def _admit(self) -> bool:
        """Whether the peer may send one more frame in this second; if not, this is its end."""
        if self._ended:
            return False
        now = self.loop.time()
        if now >= self._second_ends:
            self._second_ends = now + 1
            self._frames_left = MAX_FRAMES_PER_SECOND
        self._frames_left -= 1
        if self._frames_left < 0:
            self._fail(CloseCode.POLICY_VIOLATION, "too many frames")
        return not self._ended

    def handle_text(self, event: Frame) -> None:
        if self._admit():
            super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        if self._admit():
            super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        if not self._admit():
            return
        if len(self.frames) >= MAX_FRAGMENTS:
            self._fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
        else:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        if self._admit() and self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # no pongs are heaped up for a peer that does not read

    def handle_pong(self, event: Frame) -> None:
        if self._admit():
            super().handle_pong(event)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._fail(CloseCode.INVALID_DATA, "text is not UTF-8")
                return
        super().send_receive_event_to_app()

    # --- ends --------------------------------------------------------------------------------------------------------

    def _fail(self, code: int, reason: str) -> None:
        self.conn.fail(code, reason)
        self._end(code, reason)

    def handle_parser_exception(self) -> None:
        close = self.conn.close_sent
        if close is None:
            self._end(CloseCode.ABNORMAL_CLOSURE, "")
        else:
            self._end(close.code, close.reason)

    def _end(self, code: int, reason: str) -> None:
        """Send the close frame, end our side, and drop what still comes until the peer has ended its own.

        A socket closed with unread bytes is reset, and the peer could lose the close frame.
        """
        self._ended = self.close_sent = self.disconnected = True
        self.frames = []
        self.queue.put_nowait({"type": "websocket.disconnect", "code": int(code), "reason": reason})
        self.writable.set()  # whoever waits to send is to learn that it is over
        self.stop_keepalive()
        self._forget_stall()
        if self.transport.is_closing():
            return
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.write_eof()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(self._deadlines.linger, self.transport.abort)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # a peer that is gone will never take the rest

    def shutdown(self) -> None:
        """Close with 1012, service restart; a handshake that is not answered yet is refused."""
        if self._ended:
            return
        if self.handshake_complete and not self.close_sent:
            self._fail(CloseCode.SERVICE_RESTART, "restart")
        else:
            super().shutdown()

    def abort(self) -> None:
        """End now, in the middle of whatever it is."""
        self.transport.abort()
