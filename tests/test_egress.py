"""Where the server may be sent, and that it goes nowhere else."""

import asyncio
import gzip
import ipaddress
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import RawTestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from headrace.egress import Egress, Fetched, is_public
from headrace.errors import HeadraceError, ToolRefused, ToolTimeout, ToolUnavailable, URLDenied

pytestmark = pytest.mark.usefixtures("settled_loop")

LOOPBACK = (ip_network("127.0.0.0/8"),)
OTHER = "127.0.0.2"
"""Stands for a public address, where only it is allowed, while something private listens on 127.0.0.1."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[int]:
    """A port where each connection is talked to, then closed. All are over when it is left: a transport must not
    outlive the loop of its test."""
    visits: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits[asyncio.current_task()] = writer
        try:
            await talk(reader, writer)
            writer.close()
            await writer.wait_closed()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    server = await asyncio.start_server(visit, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in visits.values():
        writer.transport.abort()
    if tasks := [task for task in visits if task is not None]:
        await asyncio.wait(tasks)
    await server.wait_closed()


class Canary:
    """Something private that counts who comes by."""

    def __init__(self) -> None:
        self._visits = 0
        self._news = asyncio.Condition()
        self.port = 0

    async def visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._news:
            self._visits += 1
            self._news.notify_all()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecret")
        await writer.drain()

    async def visits(self) -> int:
        """How many have come so far. Connections are taken in their order, so a last one, of our own, ends the wait."""
        before_own = self._visits
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        await reader.read()
        writer.close()
        await writer.wait_closed()
        assert self._visits > before_own, "the canary itself does not count"
        return self._visits - 1


@pytest.fixture
async def canary() -> AsyncIterator[Canary]:
    bird = Canary()
    async with listening(bird.visit) as bird.port:
        yield bird


class Names(AbstractResolver):
    """Answers that are given in order; the last one again and again."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        answer = self.answers[min(len(self.asked), len(self.answers) - 1)]
        self.asked.append(host)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0) for address in answer
        ]

    async def close(self) -> None:
        """Nothing to do."""


class NoNames(AbstractResolver):
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def close(self) -> None:
        """Nothing to do."""


class SilentNames(NoNames):
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        await asyncio.Event().wait()
        raise AssertionError


async def greet(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="hello")


@asynccontextmanager
async def raw(answer: bytes) -> AsyncIterator[str]:
    """A server that says these bytes to whoever comes, and hangs up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with listening(talk) as port:
        yield f"http://127.0.0.1:{port}/"


async def get(
    egress: Egress, url: object, *, max_bytes: int = 1000, timeout: float = 30.0, redirects: int = 0
) -> Fetched:
    return await egress.request("GET", str(url), max_bytes=max_bytes, timeout=timeout, redirects=redirects)


# --- what the text of a URL tells -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/path",
        "example.com",
        "//example.com/",
        "http:example.com",
        "http:/example.com",
        "http://",
        "http:///path",
        "http://:80/",
        "file:///etc/passwd",
        "gopher://example.com:70/_x",
        "ftp://example.com/",
        "data:text/plain,x",
        "dict://example.com/",
        "ws://example.com/",
        "unix:///var/run/docker.sock",
        "javascript:alert(1)",
        "http+unix://%2Fvar%2Frun/x",
        "http://user@example.com/",
        "http://user:password@example.com/",
        "http://:password@example.com/",
        "http://example.com:80@127.0.0.1/",
        "http://ok\\@127.0.0.1",
        "http://ok\\@127.0.0.1/",
        "http:\\\\127.0.0.1/",
        "http://example.com\\.evil.example/",
        "http://example.com/\\",
        "http://example.com/\r\nX-Injected: 1",
        "http://exa\nmple.com/",
        "http://exa\tmple.com/",
        "\nhttp://example.com/",
        " http://example.com/",
        "http://example.com/ ",
        "http://example.com /",
        "http://example.com:8 0/",
        "http://example.com/\x00",
        "http://example.com/\x7f",
        "http://example.com/\u2028",
        "http://example.com/\u00a0",
        "http://exam\u200bple.com/",
        "http://example.com/\ud800",
        "http://example.com:99999/",
        "http://example.com:-1/",
        "http://example.com:http/",
        "http://[::1",
        "http://[]@",
        "http://[]@/",
        "http://[]",
        "http://[::1].example.com/",
        "http://exam%70le.com/",
        "http://127%2e0.0.1/",
        "http://example..com/",
        "http://.example.com/",
        "http://exa,mple.com/",
        "http://exa;mple.com/",
        "http://exa'mple.com/",
        "http://" + "a" * 64 + ".com/",
        "http://" + "a." * 127 + "com/",
        "http://example.com/" + "x" * 8000,
        "http://ⅹample.com\uff0f.evil.example/",
        # addresses, however they are spelled
        "http://127.0.0.1/",
        "https://127.0.0.1/",
        "HTTP://127.0.0.1/",
        "http://127.0.0.1./",
        "http://127.1/",
        "http://0x7f.1/",
        "http://0X7F.0x1/",
        "http://0x7f000001/",
        "http://0x/",
        "http://2130706433/",
        "http://017700000001/",
        "http://0177.0.0.1/",
        "http://127.0.0.01/",
        "http://0/",
        "http://0.0.0.0/",
        "http://256.256.256.256/",
        "http://1.2.3.4.5/",
        "http://8.8.8.010/",
        "http://134744072/",
        "http://127。0。0。1/",
        "http://１２７.0.0.1/",
        "http://①②⑦.0.0.1/",
        "http://[::1]/",
        "http://[::]/",
        "http://[0:0:0:0:0:0:0:1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[0:0:0:0:0:ffff:a9fe:a9fe]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::169.254.169.254]/",
        "http://[2002:7f00:1::]/",
        "http://[fe80::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://[2606:4700::1111%25eth0]/",
        "http://[fd00:ec2::254]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://172.16.0.1/",
        "http://192.168.0.1/",
    ],
)
def test_a_url_that_is_denied_by_its_text(url: str) -> None:
    with pytest.raises(URLDenied) as denied:
        Egress().check(url)
    assert denied.value.message == URLDenied.detail
    assert denied.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("http://example.com", "http://example.com"),
        ("HTTPS://Example.COM:8443/a?b=c#d", "https://example.com:8443/a?b=c"),
        ("http://example.com./", "http://example.com./"),
        ("http://bücher.example/ü?q=ä", "http://xn--bcher-kva.example/%C3%BC?q=%C3%A4"),
        ("http://a_b.example/%20", "http://a_b.example/%20"),
        ("http://1.example/", "http://1.example/"),
        ("http://0x7f.example/", "http://0x7f.example/"),
        ("http://example.com/@127.0.0.1", "http://example.com/@127.0.0.1"),
        ("http://8.8.8.8/", "http://8.8.8.8/"),
        ("http://８.8.8.8/", "http://8.8.8.8/"),
        ("http://[2606:4700:4700::1111]:80/", "http://[2606:4700:4700::1111]/"),
    ],
)
def test_a_url_whose_text_is_sound(url: str, parsed: str) -> None:
    assert str(Egress().check(url)) == parsed


@given(st.text("0123456789abcfx.:[]@\\/%#?１。\u200b \t-_", max_size=24))
def test_no_text_passes_as_a_name_that_the_system_reads_as_an_address(authority: str) -> None:
    try:
        host = Egress().check(f"http://{authority}").raw_host
    except URLDenied:
        return
    assert host is not None
    try:
        address = socket.inet_aton(host)
    except OSError:
        return
    assert is_public(ipaddress.IPv4Address(address))


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255",
        "127.0.0.1", "127.255.255.255", "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1",
        "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1",
        "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::7f00:1", "::ffff:0:0", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1",
        "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::8.8.8.8", "100::1", "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::",
        "2002:808:808::1", "3fff::1", "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1",
        "fe80::1%eth0", "fec0::1", "ff02::1",
        "", "name", "127.1", "1.2.3.4/32", "0x7f000001",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public(address: str) -> None:
    assert not Egress().allows(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255",
     "223.255.255.255", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2001:4860:4860::8888", "2606:4700:4700::1111"],
)  # fmt: skip
def test_an_address_that_is_public(address: str) -> None:
    assert Egress().allows(address)


def test_an_operator_can_allow_networks_and_no_more_than_those() -> None:
    egress = Egress(allow=[ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00:1::5", "8.8.8.8"):
        assert egress.allows(address), address
    for address in ("10.2.0.1", "::ffff:10.2.0.1", "127.0.0.1", "fd00:2::5", "::1"):
        assert not egress.allows(address), address
    assert egress.check("http://10.1.2.3/")
    with pytest.raises(URLDenied):
        egress.check("http://10.2.0.1/")


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_is_judged_the_same_in_all_that_stand_for_it(number: int) -> None:
    address = ipaddress.IPv4Address(number)
    egress = Egress()
    for stands_for_it in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert egress.allows(stands_for_it) == egress.allows(str(address))
    assert address.is_global or not egress.allows(str(address))


# --- nothing private is touched ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "LOCALHOST", "127.1", "0x7f.1", "0x7f000001", "2130706433",
        "017700000001", "0", "0.0.0.0", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "127。0。0。1", "１２７.0.0.1",
        "127.0.0.1.", "ok\\@127.0.0.1", "ok@127.0.0.1", "127.0.0.1%00", "[64:ff9b::127.0.0.1]",
    ],
)  # fmt: skip
async def test_no_spelling_of_this_machine_reaches_it(host: str, canary: Canary) -> None:
    async with Egress() as egress:
        with pytest.raises(URLDenied):
            await get(egress, f"http://{host}:{canary.port}/")
    assert await canary.visits() == 0


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"],
        ["127.0.0.2", "127.0.0.1"],  # of which the first one is allowed here
        ["127.0.0.1", "127.0.0.2"],
        ["127.0.0.2", "10.0.0.1"],
        ["127.0.0.2", "::1"],
        ["::ffff:127.0.0.1"],
        ["169.254.169.254"],
        ["fe80::1%lo"],
        ["localhost"],
    ],
)
async def test_a_name_with_a_single_private_address_is_denied(answers: list[str], canary: Canary) -> None:
    async with (
        RawTestServer(greet, host=OTHER, port=canary.port) as server,
        Egress(allow=[ip_network(OTHER)], resolver=Names(answers)) as egress,
    ):
        with pytest.raises(URLDenied) as denied:
            await get(egress, f"http://public.example:{server.port}/")
    assert denied.value.message == URLDenied.detail
    assert await canary.visits() == 0


async def test_a_name_that_changes_its_meaning_is_denied_from_then_on(canary: Canary) -> None:
    names = Names([OTHER], ["127.0.0.1"])
    async with (
        RawTestServer(greet, host=OTHER, port=canary.port),
        Egress(allow=[ip_network(OTHER)], resolver=names) as egress,
    ):
        assert (await get(egress, f"http://rebinding.example:{canary.port}/")).body == b"hello"
        assert len(names.asked) == 1, "a second lookup could be answered in another way than the checked one"
        with pytest.raises(URLDenied):
            await get(egress, f"http://rebinding.example:{canary.port}/")
    assert await canary.visits() == 0


async def test_a_name_that_changes_its_meaning_between_redirects_is_denied(canary: Canary) -> None:
    async def go_on(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/again"})

    async with (
        RawTestServer(go_on, host=OTHER, port=canary.port),
        Egress(allow=[ip_network(OTHER)], resolver=Names([OTHER], [OTHER], ["127.0.0.1"])) as egress,
    ):
        with pytest.raises(URLDenied):
            await get(egress, f"http://rebinding.example:{canary.port}/", redirects=5)
    assert await canary.visits() == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1:{port}/", "//127.0.0.1:{port}/", "http://0x7f.1:{port}/", "http://[::ffff:127.0.0.1]:{port}/",
     "http://localhost:{port}/", "file:///etc/passwd", "gopher://127.0.0.1:{port}/", "http://x\\@127.0.0.1:{port}/",
     "http://a:b@127.0.0.2:{port}/", "http://127.0.0.1:{port}\\@127.0.0.2/"],
)  # fmt: skip
async def test_a_redirect_is_checked_like_a_url(location: str, status: int, canary: Canary) -> None:
    async def lead_away(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": location.format(port=canary.port)})

    async with (
        RawTestServer(lead_away, host=OTHER, port=canary.port) as server,
        Egress(allow=[ip_network(OTHER)]) as egress,
    ):
        with pytest.raises(URLDenied):
            await get(egress, server.make_url("/"), redirects=5)
    assert await canary.visits() == 0


async def test_no_socket_is_made_for_a_private_address_even_if_the_check_were_wrong(
    canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Egress() as egress:
        monkeypatch.setattr(egress, "check", URL)
        with pytest.raises(ToolUnavailable):
            await get(egress, f"http://127.0.0.1:{canary.port}/")
    assert await canary.visits() == 0


async def test_proxies_and_passwords_of_the_environment_are_not_used(
    canary: Canary, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ann password canary\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    seen = []

    async def note(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.Response()

    async with RawTestServer(note) as server, Egress(allow=LOOPBACK) as egress:
        await get(egress, server.make_url("/"))
    assert seen == [None]
    assert await canary.visits() == 0


async def test_the_canary_counts(canary: Canary) -> None:
    async with Egress(allow=LOOPBACK) as egress:
        for _ in range(2):
            assert (await get(egress, f"http://127.0.0.1:{canary.port}/")).body == b"secret"
    assert await canary.visits() == 2


# --- redirects --------------------------------------------------------------------------------------------------------


async def count_down(request: web.BaseRequest) -> web.StreamResponse:
    """`/3` redirects to `/2`, and so on."""
    left = int(request.path.strip("/"))
    return web.Response(status=302, headers={"Location": f"/{left - 1}"}) if left else web.Response(text="there")


async def test_redirects_are_followed_as_often_as_was_asked() -> None:
    async with RawTestServer(count_down) as server, Egress(allow=LOOPBACK) as egress:
        arrived = await get(egress, server.make_url("/5"), redirects=5)
        assert (arrived.status, arrived.body, arrived.url) == (200, b"there", server.make_url("/0"))
        with pytest.raises(ToolRefused) as refused:
            await get(egress, server.make_url("/6"), redirects=5)
        assert refused.value.message == "The address redirects more than 5 times."
        stayed = await get(egress, server.make_url("/1"))
        assert (stayed.status, stayed.headers["location"]) == (302, "/0")


async def test_a_redirect_that_leads_nowhere_is_an_answer() -> None:
    async def lead_nowhere(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=302, text="nowhere")

    async with RawTestServer(lead_nowhere) as server, Egress(allow=LOOPBACK) as egress:
        answer = await get(egress, server.make_url("/"), redirects=5)
    assert (answer.status, answer.body) == (302, b"nowhere")


async def test_a_post_is_not_redirected() -> None:
    async with RawTestServer(count_down) as server, Egress(allow=LOOPBACK) as egress:
        url = str(server.make_url("/1"))
        answer = await egress.request("POST", url, body=b"x", max_bytes=9, timeout=30, redirects=5)
    assert answer.status == 302


async def test_only_the_same_origin_sees_headers_that_could_authorise() -> None:
    seen: list[dict[str, str]] = []
    sent = {"Authorization": "Bearer canary", "X-Api-Key": "canary", "Cookie": "a=canary", "Accept": "text/plain"}

    async def lead(request: web.BaseRequest) -> web.StreamResponse:
        seen.append({name: request.headers[name] for name in sent if name in request.headers})
        location = {"/": "/same", "/same": str(other.make_url("/there"))}.get(request.path)
        return web.Response(status=302, headers={"Location": location}) if location else web.Response()

    async with RawTestServer(lead) as server, RawTestServer(lead) as other, Egress(allow=LOOPBACK) as egress:
        url = str(server.make_url("/"))
        await egress.request("GET", url, headers=sent, max_bytes=9, timeout=30, redirects=5)
    assert seen == [sent, sent, {"Accept": "text/plain"}]


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_an_answer_of_any_status_is_given_with_its_headers() -> None:
    async def teapot(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        return web.Response(
            status=418, headers={"X-Is": request.headers["X-Asks"]}, body=request.method.encode() + body
        )

    async with RawTestServer(teapot) as server, Egress(allow=LOOPBACK) as egress:
        url = str(server.make_url("/tea"))
        answer = await egress.request("PUT", url, headers={"X-Asks": "a"}, body=b" tea", max_bytes=9, timeout=30)
    assert (answer.status, answer.headers["x-is"], answer.body, answer.truncated) == (418, "a", b"PUT tea", False)
    assert answer.url == URL(url)


async def test_a_name_is_asked_by_its_name() -> None:
    async def name(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=request.host)

    names = Names(["127.0.0.1"])
    async with RawTestServer(name) as server, Egress(allow=LOOPBACK, resolver=names) as egress:
        url = URL(f"http://here.example:{server.port}/")
        assert (await get(egress, url)).body == url.authority.encode()
    assert names.asked == ["here.example"]


async def test_the_names_of_the_system_are_known() -> None:
    async with RawTestServer(greet) as server, Egress(allow=[*LOOPBACK, ip_network("::1")]) as egress:
        assert (await get(egress, f"http://localhost:{server.port}/")).body == b"hello"


async def test_nothing_of_one_request_goes_into_the_next() -> None:
    seen = []

    async def give_cookie(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        seen.append((request.headers.get("Cookie"), request.transport.get_extra_info("peername")))
        return web.Response(headers={"Set-Cookie": "a=b"})

    async with RawTestServer(give_cookie) as server, Egress(allow=LOOPBACK) as egress:
        for _ in range(2):
            await get(egress, server.make_url("/"))
    (first, one), (second, other) = seen
    assert first is second is None
    assert one != other, "a connection was used twice"


@pytest.mark.parametrize(
    ("size", "truncated"), [(0, False), (999, False), (1000, False), (1001, True), (300_000, True)]
)
@pytest.mark.parametrize("encoded", [False, True])
async def test_a_body_is_read_up_to_its_limit(size: int, truncated: bool, encoded: bool) -> None:
    content = bytes(size)

    async def send(request: web.BaseRequest) -> web.StreamResponse:
        headers = {"Content-Encoding": "gzip"} if encoded else {}
        return web.Response(body=gzip.compress(content) if encoded else content, headers=headers)

    async with RawTestServer(send) as server, Egress(allow=LOOPBACK) as egress:
        answer = await get(egress, server.make_url("/"), max_bytes=1000)
    assert (answer.body, answer.truncated) == (content[:1000], truncated)


async def test_a_body_without_end_is_left_at_its_limit() -> None:
    left = asyncio.Event()

    async def send_on(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(65536))
        finally:
            left.set()

    async with RawTestServer(send_on) as server, Egress(allow=LOOPBACK) as egress:
        answer = await get(egress, server.make_url("/"), max_bytes=1_000_000)
        assert (len(answer.body), answer.truncated) == (1_000_000, True)
        async with asyncio.timeout(30):
            await left.wait()


def bomb() -> bytes:
    """100 KB that become 100 MB."""
    press = zlib.compressobj(9, wbits=31)
    return b"".join([*(press.compress(bytes(1_000_000)) for _ in range(100)), press.flush()])


async def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    body = bomb()
    assert len(body) < 200_000

    async def send(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    unpacked = 0
    real = zlib.decompressobj

    class Counting:
        """What has been unpacked at all, not only what was kept."""

        def __init__(self, wbits: int) -> None:
            self._inner = real(wbits=wbits)

        def decompress(self, chunk: bytes, max_length: int) -> bytes:
            nonlocal unpacked
            content = self._inner.decompress(chunk, max_length)
            unpacked += len(content)
            return content

        @property
        def eof(self) -> bool:
            return self._inner.eof

    async with RawTestServer(send) as server, Egress(allow=LOOPBACK) as egress:
        monkeypatch.setattr(zlib, "decompressobj", Counting)
        answer = await get(egress, server.make_url("/"), max_bytes=5000)
    assert (answer.body, answer.truncated, unpacked) == (bytes(5000), True, 5001)


async def test_a_body_that_only_its_encoding_makes_long_is_left_as_well() -> None:
    empty_blocks = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + b"\x00\x00\x00\xff\xff" * 100_000

    async def send(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=empty_blocks, headers={"Content-Encoding": "gzip"})

    async with RawTestServer(send) as server, Egress(allow=LOOPBACK) as egress:
        answer = await get(egress, server.make_url("/"), max_bytes=1000)
    assert (answer.body, answer.truncated) == (b"", True)


# --- faults -----------------------------------------------------------------------------------------------------------

UNREACHABLE = "The address cannot be reached, or does not speak HTTP."
CUT = "The answer of the address broke off."
ODD = "The address answers in an encoding that it was not asked for."


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", UNREACHABLE),
        (b"SSH-2.0-OpenSSH\r\n", UNREACHABLE),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, UNREACHABLE),
        (b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 1000 + b"\r\n", UNREACHABLE),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", CUT),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", CUT),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nno gzip", CUT),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"x" * 99, mtime=0)[:-9], CUT),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\nx", ODD),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\n\r\nx", ODD),
    ],
)
async def test_an_answer_that_is_none_is_a_fault_of_the_network(answer: bytes, message: str) -> None:
    async with raw(answer) as url, Egress(allow=LOOPBACK) as egress:
        with pytest.raises(ToolUnavailable) as fault:
            await get(egress, url)
    assert (fault.value.message, fault.value.retryable) == (message, True)


async def test_what_follows_a_whole_body_is_left() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: x-gzip\r\n\r\n" + gzip.compress(b"one") + gzip.compress(b"two")
    async with raw(answer) as url, Egress(allow=LOOPBACK) as egress:
        assert (await get(egress, url)).body == b"one"


@pytest.mark.parametrize("resolver", [NoNames(), Names([])])
async def test_a_name_that_there_is_not_cannot_be_reached(resolver: AbstractResolver) -> None:
    async with Egress(resolver=resolver) as egress:
        with pytest.raises(ToolUnavailable) as fault:
            await get(egress, "http://nowhere.example/")
    assert fault.value.message == UNREACHABLE


async def test_a_port_where_nobody_listens_cannot_be_reached() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with Egress(allow=LOOPBACK) as egress:
            with pytest.raises(ToolUnavailable):
                await get(egress, f"http://127.0.0.1:{taken.getsockname()[1]}/")


async def say_nothing(request: web.BaseRequest) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def stop_in_the_middle(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"a word")
    return await say_nothing(request)


@pytest.mark.parametrize("handler", [say_nothing, stop_in_the_middle])
async def test_who_does_not_answer_in_time_is_left(handler: Handler) -> None:
    async with RawTestServer(handler) as server, Egress(allow=LOOPBACK) as egress:
        with pytest.raises(ToolTimeout) as late:
            await get(egress, server.make_url("/"), timeout=0.2)
    assert late.value.message == "The address did not answer within 0.2 seconds."


async def test_a_name_server_that_does_not_answer_is_left() -> None:
    async with Egress(resolver=SilentNames()) as egress:
        with pytest.raises(ToolTimeout):
            await get(egress, "http://slow.example/", timeout=0.05)


async def test_the_time_of_redirects_is_counted_together() -> None:
    async def go_on(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/"})

    async with RawTestServer(go_on) as server, Egress(allow=LOOPBACK) as egress:
        with pytest.raises(ToolTimeout):
            await get(egress, server.make_url("/"), timeout=0.2, redirects=10**9)


async def test_what_a_caller_raises_inside_stays_what_it_is() -> None:
    async with RawTestServer(greet) as server, Egress(allow=LOOPBACK) as egress:
        with pytest.raises(TimeoutError, match="my own"):
            async with egress.open("GET", str(server.make_url("/")), timeout=30):
                raise TimeoutError("my own")


@pytest.mark.parametrize("resolver", [Names(["10.9.8.7"]), Names(["127.0.0.2"]), NoNames()])
async def test_no_error_says_where_a_name_led(resolver: AbstractResolver) -> None:
    with socket.socket() as taken:
        taken.bind((OTHER, 0))
        port = taken.getsockname()[1]
        async with Egress(allow=[ip_network(OTHER)], resolver=resolver) as egress:
            with pytest.raises(HeadraceError) as error:
                await get(egress, f"http://inner.example:{port}/")
    told = f"{error.value} {error.value.message} {error.value.extra}"
    assert not any(word in told for word in ("10.9", "127.0", "inner", str(port)))


def self_signed(folder: Path) -> ssl.SSLContext:
    """For a server whose certificate nobody else has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "secure.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("secure.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "both.pem").write_bytes(private + certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return context


async def test_a_certificate_that_nobody_trusts_is_not_taken(tmp_path: Path) -> None:
    asked = []

    async def note(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response()

    server = RawTestServer(note)
    await server.start_server(ssl=self_signed(tmp_path))
    async with server, Egress(allow=LOOPBACK, resolver=Names(["127.0.0.1"])) as egress:
        with pytest.raises(ToolUnavailable):
            await get(egress, f"https://secure.example:{server.port}/")
    assert asked == []
