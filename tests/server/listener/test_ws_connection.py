"""What a WebSocket peer may send, and with which code it is closed when it sends more."""

import socket
import struct
from contextlib import suppress
from typing import Any

import pytest

from headrace.server.listener import Deadlines
from headrace.server.listener.ws_connection import MAX_FRAGMENTS

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def handshake(path: str, *more: str, method: str = "GET") -> bytes:
    lines = [f"{method} /{path} HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def frame(kind: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame, masked with zeros."""
    size = len(payload)
    if size < 126:
        length = struct.pack("!B", 0x80 | size)
    elif size < 65_536:
        length = struct.pack("!BH", 0x80 | 126, size)
    else:
        length = struct.pack("!BQ", 0x80 | 127, size)
    return struct.pack("!B", (0x80 if fin else 0) | kind) + length + bytes(4) + payload


class Socket:
    """Just enough of a client to misbehave with."""

    def __init__(self, client: socket.socket, path: str, *more: str) -> None:
        self.client = client
        client.sendall(handshake(path, *more))
        self.received = b""
        self.head = self._take_head()

    def _take_head(self) -> bytes:
        while b"\r\n\r\n" not in self.received:
            self._more()
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        return head

    def _more(self) -> None:
        block = self.client.recv(65_536)
        if not block:
            raise EOFError
        self.received += block

    def _take(self, size: int) -> bytes:
        while len(self.received) < size:
            self._more()
        taken, self.received = self.received[:size], self.received[size:]
        return taken

    def read(self) -> tuple[int, bytes]:
        kind, size = self._take(2)
        if size == 126:
            (size,) = struct.unpack("!H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._take(8))
        return kind & 0x0F, self._take(size)

    def close_code(self) -> int:
        while True:
            kind, payload = self.read()
            if kind == CLOSE:
                code: int = struct.unpack("!H", payload[:2])[0]
                return code

    def send(self, data: bytes) -> None:
        """All of it, unless the other side has heard enough."""
        with suppress(ConnectionError):
            self.client.sendall(data)


def test_messages_pass(serve: Any) -> None:
    with serve().connect() as client:
        peer = Socket(client, "echo")
        peer.send(frame(TEXT, "gr\u00fcezi".encode()) + frame(PING, b"p"))
        assert {peer.read(), peer.read()} == {(TEXT, "gr\u00fcezi".encode()), (PONG, b"p")}
        peer.send(frame(TEXT, b"a" * 65_536))
        assert peer.read() == (TEXT, b"a" * 65_536)


def test_deflate_is_never_agreed_on(serve: Any) -> None:
    """Row 76: there is no deflate bomb where there is no deflate."""
    with serve().connect() as client:
        peer = Socket(client, "echo", "Sec-WebSocket-Extensions: permessage-deflate")
        assert b"101" in peer.head
        assert b"extensions" not in peer.head.lower()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(frame(TEXT, b"a" * 65_537), 1009, id="row 76: message over 64 KiB"),
        pytest.param(
            frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"a" * 4096, fin=False) * 20,
            1009,
            id="row 76: endless fragments",
        ),
        pytest.param(
            frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"", fin=False) * 900,
            None,
            id="fewer fragments than the limit",
        ),
        pytest.param(frame(TEXT, b"\xff\xfe"), 1007, id="row 77: invalid UTF-8"),
        pytest.param(frame(TEXT, b"\xf0\x9f", fin=False) + frame(CONTINUATION, b"x"), 1007, id="row 77: cut UTF-8"),
        pytest.param(frame(TEXT, b"x") * 1_001, 1008, id="row 78: 1,000 messages a second"),
        pytest.param(frame(PING) * 100_000, 1008, id="row 78: ping flood"),
        pytest.param(frame(PONG) * 100_000, 1008, id="row 78: pong flood"),
        pytest.param(b"\x83\x80\x00\x00\x00\x00", 1002, id="reserved opcode"),
        pytest.param(b"\x81\x01a", 1002, id="frame without a mask"),
    ],
)
def test_too_much_is_closed_with_its_code(serve: Any, sent: bytes, code: int | None) -> None:
    served = serve()
    with served.connect() as client:
        peer = Socket(client, "echo")
        peer.send(sent)
        if code is None:
            peer.send(frame(CONTINUATION, b"z"))
            assert peer.read() == (TEXT, b"az")
        else:
            assert peer.close_code() == code
            assert served.app.closed_with.result(5) == code


def test_slow_endless_fragments_get_1009(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 76: fragments may also be empty, and slower than the rate limit."""
    monkeypatch.setattr("headrace.server.listener.ws_connection.MAX_FRAMES_PER_SECOND", 10 * MAX_FRAGMENTS)
    with serve().connect() as client:
        peer = Socket(client, "echo")
        peer.send(frame(TEXT, b"", fin=False) + frame(CONTINUATION, b"", fin=False) * (MAX_FRAGMENTS + 1))
        assert peer.close_code() == 1009


def test_flood_that_goes_on_still_learns_why(serve: Any) -> None:
    served = serve(deadlines=Deadlines(linger=1))
    with served.connect() as client:
        peer = Socket(client, "echo")
        for _ in range(50):
            peer.send(frame(PING, b"x" * 100) * 1000)
        assert peer.close_code() == 1008


def test_half_open_peer_is_closed(serve: Any) -> None:
    """Row 79: a peer that answers no ping is closed after the two waits."""
    served = serve(deadlines=Deadlines(ping=0.1, pong=0.2))
    with served.connect() as client:
        peer = Socket(client, "echo")
        assert peer.close_code() == 1011
        served.app.closed_with.result(5)


def test_peer_that_answers_pings_stays(serve: Any) -> None:
    with serve(deadlines=Deadlines(ping=0.05, pong=0.5)).connect() as client:
        peer = Socket(client, "echo")
        for _ in range(15):
            kind, payload = peer.read()
            assert kind == PING
            peer.send(frame(PONG, payload))


def test_reader_that_stops_and_comes_back_gets_1013(serve: Any) -> None:
    """Row 79."""
    served = serve(deadlines=Deadlines(write=0.5, linger=15))
    with served.connect(receive_buffer=4096) as client:
        peer = Socket(client, "flood")
        assert served.app.disconnected.wait(10)
        assert peer.close_code() == 1013


def test_reader_that_stays_away_is_cut(serve: Any) -> None:
    """Row 79."""
    served = serve(deadlines=Deadlines(write=0.3, linger=0.1))
    with served.connect(receive_buffer=4096) as client:
        Socket(client, "flood")
        assert served.app.disconnected.wait(10)
        while served.connections():
            pass


@pytest.mark.parametrize("status", [401, 403, 429])
def test_handshake_can_be_rejected_with_a_status(serve: Any, status: int) -> None:
    with serve().connect() as client:
        peer = Socket(client, f"reject?{status}")
        assert peer.head.startswith(b"HTTP/1.1 %d " % status)
        assert b"retry-after: 7" in peer.head.lower()
        assert b"application/problem+json" in peer.head.lower()


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(handshake("echo", method="POST"), id="POST"),
        pytest.param(handshake("echo") + frame(TEXT, b"early"), id="frame before the answer"),
        pytest.param(handshake("echo", "A: " + "a" * 9_000), id="line longer than the second parser takes"),
        pytest.param(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n" + handshake("echo"), id="behind a stream"),
        pytest.param(handshake("echo").replace(b"Version: 13", b"Version: 7"), id="unknown version"),
        pytest.param(handshake("echo").replace(b"dGhl", b"####"), id="bad key"),
    ],
)
def test_unfit_handshake_never_becomes_a_socket(serve: Any, request_bytes: bytes) -> None:
    served = serve()
    with served.connect() as client:
        client.sendall(request_bytes)
        answer = client.recv(65_536)
        assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200"))
    assert "/echo" not in served.app.seen


def test_open_sockets_are_told_of_a_restart(serve: Any) -> None:
    served = serve()
    with served.connect() as client:
        peer = Socket(client, "echo")
        served.stop()
        assert peer.close_code() == 1012
