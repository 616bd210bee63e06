"""One document, signed, brought to a URL until it is taken."""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from ipaddress import ip_network
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from structlog.testing import capture_logs

from headrace.egress import Egress
from headrace.webhook import Delivery, Webhooks, new_secret, secret_of, secret_text, signature

pytestmark = pytest.mark.usefixtures("settled_loop")

SECRET = secret_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
DOCUMENT = {"type": "run.completed", "data": {"id": "run_1", "text": "mühle"}}
ALLOW = [ip_network("127.0.0.0/8")]
NOW = 1_700_000_000


class Received(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Answers in a given way each time; the last one again and again."""

    def __init__(self, *answers: int | tuple[int, dict[str, str]]) -> None:
        self._answers = answers
        self.received: list[Received] = []

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.path, headers, await request.read()))
        answer = self._answers[min(len(self.received), len(self._answers)) - 1]
        status, extra = answer if isinstance(answer, tuple) else (answer, {})
        return web.Response(status=status, headers=extra, text="canary words of the receiver")


class Waits:
    """Takes the place of waiting: notes how long, and the clock moves on."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.now = float(NOW)

    async def sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


async def deliver(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], waits: Waits | None = None, **options: Any
) -> Delivery:
    waits = waits or Waits()
    async with RawTestServer(handler) as server, Egress(allow=ALLOW) as egress:
        webhooks = Webhooks(egress, clock=waits.clock, sleep=waits.sleep, **options)
        return await webhooks.deliver(str(server.make_url("/hook?key=canary")), "msg_1", DOCUMENT, secret=SECRET)


def expected_signature(received: Received, secret: bytes = SECRET) -> str:
    """By the specification, written down once more."""
    signed = b".".join(
        [received.headers["webhook-id"].encode(), received.headers["webhook-timestamp"].encode(), received.body]
    )
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_the_signature_is_that_of_the_other_libraries() -> None:
    """The vector stands in the tests of the Standard Webhooks libraries."""
    signed = signature(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_the_document_comes_signed() -> None:
    receiver = Receiver(204)
    assert await deliver(receiver) == Delivery(delivered=True, attempts=1, status=204, code=None)
    (received,) = receiver.received
    assert json.loads(received.body) == DOCUMENT
    assert received.headers["content-type"] == "application/json"
    assert received.headers["webhook-id"] == "msg_1"
    assert received.headers["webhook-timestamp"] == str(NOW)
    assert received.headers["webhook-signature"] == expected_signature(received)
    assert received.headers["webhook-signature"] != expected_signature(received, new_secret())


async def test_each_attempt_has_the_same_id_and_body_and_a_signature_of_its_own_time() -> None:
    receiver, waits = Receiver(500, 500, 200), Waits()
    assert await deliver(receiver, waits, first_delay=10.0) == Delivery(True, 3, 200)
    assert {received.headers["webhook-id"] for received in receiver.received} == {"msg_1"}
    assert len({received.body for received in receiver.received}) == 1
    times = [int(received.headers["webhook-timestamp"]) for received in receiver.received]
    assert times == [NOW, int(NOW + waits.delays[0]), int(NOW + waits.delays[0] + waits.delays[1])]
    for received in receiver.received:
        assert received.headers["webhook-signature"] == expected_signature(received)


# --- when it is tried again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 599])
async def test_an_answer_that_may_be_another_one_soon_is_asked_for_again(status: int) -> None:
    receiver = Receiver(status, 200)
    assert await deliver(receiver) == Delivery(True, 2, 200)


@pytest.mark.parametrize("status", [300, 301, 302, 304, 307, 308, 400, 401, 403, 404, 405, 410, 413, 422, 451])
async def test_an_answer_that_will_stay_is_taken_at_its_word(status: int) -> None:
    receiver = Receiver((status, {"Location": "/elsewhere"}), 200)
    assert await deliver(receiver) == Delivery(False, 1, status)
    assert [received.path for received in receiver.received] == ["/hook"]


async def test_it_gives_up_after_its_attempts() -> None:
    receiver, waits = Receiver(503), Waits()
    assert await deliver(receiver, waits, attempts=4) == Delivery(False, 4, 503)
    assert len(receiver.received) == 4
    assert len(waits.delays) == 3


async def test_the_delay_doubles_with_jitter_up_to_the_longest() -> None:
    waits = Waits()
    await deliver(Receiver(500), waits, attempts=8, first_delay=1.0, longest_delay=20.0)
    longest = [1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]
    assert all(most / 2 <= delay <= most for delay, most in zip(waits.delays, longest, strict=True)), waits.delays
    other = Waits()
    await deliver(Receiver(500), other, attempts=8, first_delay=1.0, longest_delay=20.0)
    assert waits.delays != other.delays


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("30", 30, 30),
        (" 30 ", 30, 30),
        ("1000000", 60, 60),
        ("9" * 400, 60, 60),
        ("0", 0.5, 1),
        (format_datetime(datetime.fromtimestamp(NOW + 40, UTC), usegmt=True), 40, 40),
        (format_datetime(datetime.fromtimestamp(NOW - 40, UTC), usegmt=True), 0.5, 1),
        ("-5", 0.5, 1),
        ("soon", 0.5, 1),
        ("nan", 0.5, 1),
        ("٣", 0.5, 1),
        ("Fri, 31 Dec 99999 23:59:59 GMT", 0.5, 1),
        ("", 0.5, 1),
    ],
)
async def test_a_receiver_may_ask_for_more_time_but_not_for_ever(header: str, least: float, most: float) -> None:
    waits = Waits()
    delivery = await deliver(Receiver((429, {"Retry-After": header}), 200), waits, longest_delay=60.0)
    assert delivery.delivered
    (delay,) = waits.delays
    assert least <= delay <= most


async def test_nobody_there_is_tried_again() -> None:
    waits = Waits()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with Egress(allow=ALLOW) as egress:
            webhooks = Webhooks(egress, attempts=3, clock=waits.clock, sleep=waits.sleep)
            url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
            delivery = await webhooks.deliver(url, "msg_1", DOCUMENT, secret=SECRET)
    assert delivery == Delivery(delivered=False, attempts=3, status=None, code="tool.unavailable")
    assert len(waits.delays) == 2


async def test_silence_is_tried_again() -> None:
    asked = 0

    async def say_nothing_first(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.Event().wait()
        return web.Response()

    assert await deliver(say_nothing_first, timeout=0.5) == Delivery(True, 2, 200)


async def test_the_last_failure_is_told() -> None:
    async def fail_then_say_nothing(request: web.BaseRequest) -> web.StreamResponse:
        if await failures.get():
            await asyncio.Event().wait()
        return web.Response(status=500)

    failures: asyncio.Queue[bool] = asyncio.Queue()
    failures.put_nowait(False)
    failures.put_nowait(True)
    assert await deliver(fail_then_say_nothing, attempts=2, timeout=0.5) == Delivery(False, 2, None, "tool.timeout")


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/", "http://localhost:{port}/", "file:///etc/passwd", "x"])
async def test_an_address_that_may_not_be_asked_is_not_and_not_again(url: str) -> None:
    receiver, waits = Receiver(200), Waits()
    async with RawTestServer(receiver) as server, Egress() as egress:
        webhooks = Webhooks(egress, clock=waits.clock, sleep=waits.sleep)
        delivery = await webhooks.deliver(url.format(port=server.port), "msg_1", DOCUMENT, secret=SECRET)
    assert delivery == Delivery(delivered=False, attempts=1, status=None, code="tool.url_denied")
    assert (receiver.received, waits.delays) == ([], [])


async def test_a_cancelled_delivery_ends() -> None:
    waiting = asyncio.Event()

    async def wait_for_ever(seconds: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    async with RawTestServer(Receiver(500)) as server, Egress(allow=ALLOW) as egress:
        webhooks = Webhooks(egress, sleep=wait_for_ever)
        delivering = asyncio.create_task(webhooks.deliver(str(server.make_url("/")), "msg_1", DOCUMENT, secret=SECRET))
        await waiting.wait()
        delivering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivering


# --- what a receiver says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "delivery"), [(200, Delivery(True, 1, 200)), (400, Delivery(False, 1, 400))])
async def test_the_status_counts_even_if_the_body_never_ends(status: int, delivery: Delivery) -> None:
    async def go_on(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        await response.write(b"more")
        await asyncio.Event().wait()
        return response

    assert await deliver(go_on, timeout=0.5) == delivery


@pytest.mark.parametrize("headers", [{"Content-Encoding": "br"}, {"Content-Encoding": "gzip"}])
async def test_the_status_counts_even_if_the_body_is_garbage(headers: dict[str, str]) -> None:
    assert await deliver(Receiver((200, headers))) == Delivery(True, 1, 200)


async def test_no_more_than_the_beginning_of_an_answer_is_read() -> None:
    left = asyncio.Event()

    async def send_on(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(65536))
        finally:
            left.set()

    async with RawTestServer(send_on) as server, Egress(allow=ALLOW) as egress:
        webhooks = Webhooks(egress, timeout=3600.0)
        async with asyncio.timeout(30):
            delivery = await webhooks.deliver(str(server.make_url("/")), "msg_1", DOCUMENT, secret=SECRET)
            await left.wait()
    assert delivery == Delivery(True, 1, 200)


async def test_the_log_has_neither_the_url_nor_what_was_said() -> None:
    with capture_logs() as lines:
        await deliver(Receiver((500, {"X-Said": "canary"}), 400))
    assert lines == [
        {
            "event": "webhook ended",
            "log_level": "info",
            "delivery_id": "msg_1",
            "delivered": False,
            "attempts": 2,
            "status": 400,
            "code": None,
        }
    ]


# --- ids and secrets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivery_id", ["", "a.b", "a b", "a\r\nX: y", "ü", "x" * 256])
async def test_an_id_that_could_be_taken_for_more_is_refused(delivery_id: str) -> None:
    async with Egress() as egress:
        with pytest.raises(ValueError, match=r"^The id of a delivery"):
            await Webhooks(egress).deliver("http://example.com/", delivery_id, DOCUMENT, secret=SECRET)


@pytest.mark.parametrize("length", [0, 23, 65])
def test_a_secret_that_is_too_short_or_too_long_does_not_sign(length: int) -> None:
    with pytest.raises(ValueError, match="24 to 64 bytes"):
        signature(bytes(length), "msg_1", NOW, b"{}")


def test_a_secret_is_written_and_read() -> None:
    secret = new_secret()
    assert secret != new_secret()
    assert len(secret) == 32
    assert secret_text(secret).startswith("whsec_")
    assert secret_of(secret_text(secret)) == secret


@pytest.mark.parametrize(
    "text",
    [
        "",
        "canary",
        "whsec_",
        "whsec_canary",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n",
        "whsec_mühle",
        "whsec_" + "A" * 100,
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ],
)
def test_what_is_no_secret_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"^A webhook secret is `whsec_` and 24 to 64 bytes in base64\.$"):
        secret_of(text)
