"""What one HTTP connection takes, and what it answers when a peer is slow, malformed or gone."""

import json
import socket
from typing import Any

import pytest

from headrace.server.listener import Deadlines
from headrace.server.listener.http_connection import MAX_HEADERS, MAX_PIPELINED

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /%s HTTP/1.1\r\nHost: x\r\n"


def read_all(client: socket.socket) -> bytes:
    received = b""
    try:
        while block := client.recv(65_536):
            received += block
    except ConnectionResetError:
        pass
    return received


def read_until(client: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received:
        block = client.recv(65_536)
        assert block, received
        received += block
    return received


def problem(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    assert b"content-length: %d" % len(body) in head
    found: dict[str, Any] = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % found["status"])
    assert set(found) == {"type", "title", "status", "detail", "instance", "code"}
    return found


def refused(client: socket.socket, status: int, code: str) -> None:
    found = problem(read_all(client))
    assert (found["status"], found["code"]) == (status, code)


# --- deadlines (row 27) -----------------------------------------------------------------------------------------------


def test_silent_socket_is_closed_without_a_word(serve: Any) -> None:
    with serve(deadlines=Deadlines(head=0.2)).connect() as client:
        assert read_all(client) == b""


@pytest.mark.parametrize("part", [b"G", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nA: b"])
def test_headers_that_stop_get_408(serve: Any, part: bytes) -> None:
    with serve(deadlines=Deadlines(head=0.2)).connect() as client:
        client.sendall(part)
        refused(client, 408, "request.timeout")


def test_headers_trickled_get_408(serve: Any) -> None:
    with serve(deadlines=Deadlines(head=0.4)).connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        client.settimeout(0.05)
        for _ in range(200):  # each byte comes well within the deadline; all of them do not
            client.sendall(b"a")
            try:
                answer = client.recv(65_536)
            except TimeoutError:
                continue
            break
        assert problem(answer)["status"] == 408


def test_headers_of_a_later_request_have_the_same_deadline(serve: Any) -> None:
    with serve(deadlines=Deadlines(head=0.2)).connect() as client:
        client.sendall(GET % b"hello")
        read_until(client, b"hello")
        client.sendall(b"GET /hel")
        refused(client, 408, "request.timeout")


def test_kept_connection_outlives_the_header_deadline(serve: Any) -> None:
    served = serve(deadlines=Deadlines(head=0.1, keep_alive=1))
    with served.connect() as client:
        client.sendall(GET % b"hello")
        read_until(client, b"hello")
        client.settimeout(0.4)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(20)
        client.sendall(GET % b"hello")
        read_until(client, b"hello")
        assert read_all(client) == b""  # and is closed when nothing more comes


def test_body_that_stops_gets_408(serve: Any) -> None:
    served = serve(deadlines=Deadlines(body=0.2))
    with served.connect() as client:
        client.sendall(POST % b"echo" + b"Content-Length: 10\r\n\r\nhello")
        refused(client, 408, "request.timeout")
    assert served.app.disconnected.wait(5)


def test_body_trickled_after_the_response_began_is_closed(serve: Any) -> None:
    served = serve(deadlines=Deadlines(body=0.3))
    with served.connect() as client:
        client.sendall(POST % b"late" + b"Content-Length: 10\r\n\r\nhello")
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"begun\r\n")  # no 408 inside the response, and no proper end
    assert served.app.disconnected.wait(5)


def test_stream_outlives_the_deadlines_of_its_request(serve: Any) -> None:
    served = serve(deadlines=Deadlines(head=0.1, body=0.1))
    with served.connect() as client:
        client.sendall(GET % b"stream" + b"GET /hel")  # the start of a next request changes nothing
        for _ in range(20):
            read_until(client, b"data: x")
        assert not served.app.disconnected.is_set()


def test_no_timer_is_left_behind(serve: Any) -> None:
    served = serve()
    with served.connect() as client:
        client.sendall(POST % b"echo" + b"Content-Length: 5\r\n\r\nhel")
        connection = served.connection()
        client.sendall(b"lo")
        read_until(client, b"hello")
        assert connection._overdue is None
        client.sendall(b"GET /hel")
        client.shutdown(socket.SHUT_WR)
        read_all(client)
    while served.connections():
        pass
    assert connection._overdue is None
    assert connection.timeout_keep_alive_task is None


# --- slow readers (row 11) --------------------------------------------------------------------------------------------


def test_reader_that_stops_is_closed_and_costs_little(serve: Any) -> None:
    served = serve(deadlines=Deadlines(write=0.5))
    with served.connect(receive_buffer=4096) as client:
        client.sendall(GET % b"flood")
        read_until(client, b"xxxx")
        connection = served.connection()
        assert served.app.disconnected.wait(10)
        assert served.call(connection.transport.get_write_buffer_size) <= 262_144
        assert served.app.sent <= 1_048_576  # what the kernel holds is bounded as well


def test_reader_that_stops_below_the_high_water_mark_is_closed(serve: Any) -> None:
    served = serve(deadlines=Deadlines(write=0.5))
    with served.connect(receive_buffer=4096) as client:
        client.sendall(GET % b"little")
        read_until(client, b"xxxx")
        assert served.app.disconnected.wait(10)


def test_sockets_send_small_frames_at_once(serve: Any) -> None:
    served = serve()
    with served.connect() as client:
        client.sendall(GET % b"hello")
        read_until(client, b"hello")
        connection = served.connection()
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        b"A: " + b"a" * 70_000 + b"\r\n\r\n",
        b"A: " + b"a" * 140_000,  # it need not end
        b"".join(b"A%d: %s\r\n" % (number, b"a" * 1000) for number in range(70)) + b"\r\n",
        b"A: b\r\n" * (MAX_HEADERS + 1) + b"\r\n",
    ],
)
def test_too_large_headers_get_431(serve: Any, headers: bytes) -> None:
    with serve().connect() as client:
        client.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\n" + headers)
        refused(client, 431, "request.headers_too_large")


def test_headers_below_the_limit_are_taken(serve: Any) -> None:
    with serve().connect() as client:
        client.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 64_000 + b"\r\n\r\n")
        assert read_until(client, b"hello").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("end", [b"", b" HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_too_long_target_gets_414(serve: Any, end: bytes) -> None:
    with serve().connect() as client:
        client.sendall(b"GET /hello?" + b"a" * 9_000 + end)
        refused(client, 414, "request.uri_too_long")


def test_endless_trailer_is_cut(serve: Any) -> None:
    with serve().connect() as client:
        client.sendall(POST % b"echo" + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: " + b"a" * 500_000)
        refused(client, 431, "request.headers_too_large")


def test_endless_chunked_body_can_be_refused_by_the_app(serve: Any) -> None:
    """Row 25: the answer arrives although the client goes on sending."""
    with serve().connect() as client:
        client.sendall(POST % b"early" + b"Transfer-Encoding: chunked\r\n\r\n")
        client.settimeout(0)
        chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        for _ in range(10_000):
            try:
                client.send(chunk)
            except BlockingIOError:
                pass
            except OSError:
                break
        client.settimeout(20)
        assert read_all(client).startswith(b"HTTP/1.1 413")


def test_pipelined_requests_are_answered_in_order(serve: Any) -> None:
    with serve().connect() as client:
        client.sendall(b"".join(POST % b"echo" + b"Content-Length: 2\r\n\r\n%02d" % number for number in range(10)))
        answer = read_until(client, b"\r\n\r\n09")
        assert [answer.index(b"\r\n\r\n%02d" % number) for number in range(10)] == sorted(
            answer.index(b"\r\n\r\n%02d" % number) for number in range(10)
        )


def test_too_many_pipelined_requests_end_the_connection(serve: Any) -> None:
    served = serve()
    with served.connect() as client:
        client.sendall(GET % b"stream" + GET % b"hello" * (MAX_PIPELINED + 1))
        read_until(client, b"data: x")
        connection = served.connection()
        assert served.call(lambda: len(connection.pipeline)) == 0
    assert served.app.disconnected.wait(5)


def test_client_that_leaves_a_pipeline_is_noticed(serve: Any) -> None:
    """uvicorn tells only the last request it received, and the open stream goes on for nobody."""
    served = serve()
    with served.connect() as client:
        client.sendall(GET % b"stream" + GET % b"hello")
        read_until(client, b"data: x")
    assert served.app.disconnected.wait(5)
    assert served.app.seen == ["/stream"]


# --- malformed requests (row 25) --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(POST % b"echo" + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="CL+TE"),
        pytest.param(POST % b"echo" + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", id="TE+CL"),
        pytest.param(POST % b"echo" + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", id="two CL"),
        pytest.param(POST % b"echo" + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", id="two CL that differ"),
        pytest.param(POST % b"echo" + b"Content-Length: 5, 5\r\n\r\nhello", id="CL list"),
        pytest.param(POST % b"echo" + b"Content-Length: -5\r\n\r\nhello", id="CL negative"),
        pytest.param(POST % b"echo" + b"Content-Length: +5\r\n\r\nhello", id="CL with a plus"),
        pytest.param(POST % b"echo" + b"Content-Length: 0x5\r\n\r\nhello", id="CL in hex"),
        pytest.param(POST % b"echo" + b"Content-Length: 99999999999999999999\r\n\r\nhello", id="CL overflow"),
        pytest.param(POST % b"echo" + b"Content-Length:\r\n\r\nhello", id="CL empty"),
        pytest.param(POST % b"echo" + b"Content-Length : 5\r\n\r\nhello", id="space before colon"),
        pytest.param(POST % b"echo" + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="TE gzip, chunked"),
        pytest.param(POST % b"echo" + b"Transfer-Encoding: chunked, identity\r\n\r\n", id="TE chunked, identity"),
        pytest.param(POST % b"echo" + b"Transfer-Encoding: xchunked\r\n\r\n", id="TE unknown"),
        pytest.param(b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="TE in HTTP/1.0"),
        pytest.param(POST % b"echo" + b"Transfer-Encoding: chunked\r\n\r\nZ\r\n", id="chunk size"),
        pytest.param(POST % b"echo" + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n", id="bare LF in chunks"),
        pytest.param(b"GET /hello HTTP/1.1\nHost: x\n\n", id="bare LF"),
        pytest.param(b"GET /hello HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", id="folded header"),
        pytest.param(b"GET /hello HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", id="NUL"),
        pytest.param(b"GET /hello HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", id="bare CR"),
        pytest.param(b"GET /hello HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(b"GET /hello HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", id="two Hosts"),
        pytest.param(b"GET /hello HTTP/2.0\r\nHost: x\r\n\r\n", id="HTTP/2.0"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2 preface"),
        pytest.param(b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n", id="CONNECT"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01", id="TLS"),
        pytest.param(b"hello\r\n\r\n", id="not HTTP"),
    ],
)
def test_malformed_request_gets_400(serve: Any, request_bytes: bytes) -> None:
    served = serve()
    with served.connect() as client:
        client.sendall(request_bytes)
        refused(client, 400, "request.invalid")


def test_body_shorter_than_its_content_length_gets_400(serve: Any) -> None:
    with serve().connect() as client:
        client.sendall(POST % b"echo" + b"Content-Length: 10\r\n\r\nhello")
        client.shutdown(socket.SHUT_WR)
        refused(client, 400, "request.invalid")


def test_body_longer_than_its_content_length_gets_400_after_its_answer(serve: Any) -> None:
    served = serve()
    with served.connect() as client:
        client.sendall(POST % b"echo" + b"Content-Length: 5\r\n\r\nhello world, this is more")
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1  # the rest is no request, and nothing is written into another's response


def test_malformed_request_behind_a_stream_does_not_touch_it(serve: Any) -> None:
    served = serve()
    with served.connect() as client:
        client.sendall(GET % b"stream" + b"garbage\r\n\r\n")
        assert b"400" not in b"".join(read_until(client, b"data: x") for _ in range(5))


def test_request_after_connection_close_is_not_read(serve: Any) -> None:
    """uvicorn switches a leniency of the parser on for this; it must not become a second request."""
    served = serve()
    with served.connect() as client:
        client.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + GET % b"echo")
        assert read_all(client).count(b"HTTP/1.1") == 1
    assert served.app.seen == ["/hello"]


def test_trailers_do_not_get_among_the_headers(serve: Any) -> None:
    with serve().connect() as client:
        client.sendall(POST % b"headers" + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-User: a\r\n\r\n")
        answer = read_until(client, b"transfer-encoding")
        assert b"x-user" not in answer


def test_body_of_an_upgrade_is_not_read_as_a_request(serve: Any) -> None:
    """curl and Java offer `h2c` with every first request, also with a POST."""
    served = serve()
    inner = GET % b"hello"
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    with served.connect() as client:
        client.sendall(POST % b"echo" + upgrade + b"Content-Length: %d\r\n\r\n" % len(inner))
        client.sendall(inner)
        assert read_until(client, inner).startswith(b"HTTP/1.1 200")
        client.sendall(GET % b"hello")
        read_until(client, b"hello")
    assert served.app.seen == ["/echo", "/hello"]
