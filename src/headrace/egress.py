"""Which addresses this server may be sent to by its users, and a session that goes nowhere else.

A URL is parsed once, by the parser of the client that asks it. A name is looked up once per connection, and the answers
that were checked are what is connected to, so that there is no moment in which a name could change its meaning. Below
both, no socket is made for an address that is not allowed, whatever the client took the host for.
"""

import asyncio
import errno
import re
import socket
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from headrace.errors import ToolRefused, ToolTimeout, ToolUnavailable, URLDenied

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network

MAX_REDIRECTS = 5

_LONGEST_URL = 8000
"""Characters."""
_LOOKUPS = 8
"""Names that are looked up at the same time."""

_NAME = re.compile(r"(?=.{1,254}\Z)(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?")
_NUMERIC = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\.?\Z")
"""What some readers take for an IPv4 address: by its last label, as browsers do. No domain ends so."""

_GLOBAL_UNICAST = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")
_NOT_PUBLIC = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # the platform of Azure: it looks public, but answers its own machines only
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/23",  # Teredo and others that lead elsewhere
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)

_CUT = "The answer of the address broke off."

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_CARRIED = frozenset(("accept", "accept-language", "user-agent"))
"""Headers that another origin is shown as well."""


def is_public(address: IPAddress) -> bool:
    """Whether it is an address of the open internet.

    Python's `is_global` knows fewer ranges in older versions, so that it counts only beside a table.
    """
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


class Fetched(NamedTuple):
    url: URL
    """Where the answer came from, after redirects."""
    status: int
    headers: Mapping[str, str]
    """Their names in any case."""
    body: bytes
    truncated: bool
    """Whether the body was longer than what was asked for."""


class Reply:
    """An answer whose body is still to come. Good inside of its `open` only."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.url = response.url
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        """Their names in any case."""

    async def read(self, max_bytes: int) -> tuple[bytes, bool]:
        """At most `max_bytes` of the body, decoded, and whether there was more. Raises `ToolUnavailable`."""
        body = _Body(self.headers.get("Content-Encoding", ""), max_bytes)
        try:
            while not body.full and (chunk := await self._response.content.readany()):
                body.feed(chunk)
        except (aiohttp.ClientError, OSError, zlib.error) as cause:
            raise ToolUnavailable(_CUT) from cause
        return body.ended()


class Egress:
    """Any number of requests at the same time to public addresses, and to those in `allow`.

    Names are looked up by `resolver`, by default that of the system. There are no cookies, no proxies, no credentials
    from the environment, and no connection serves two requests.
    """

    def __init__(self, *, allow: Sequence[IPNetwork] = (), resolver: AbstractResolver | None = None) -> None:
        """`allow`: networks that an operator opens to everybody who may send the server somewhere."""
        self._allow = tuple(allow)
        self._given_resolver = resolver
        self._resolver: AbstractResolver | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        self._resolver = self._given_resolver or _SystemResolver()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_CheckedResolver(self._resolver, self.allows),
                use_dns_cache=False,
                socket_factory=self._socket,
                force_close=True,
                limit=0,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "headrace", "Accept-Encoding": "gzip"},
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def close(self) -> None:
        """Requests that are still open end by their time limits. A resolver that was given is left open."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._resolver is not None and self._resolver is not self._given_resolver:
            await self._resolver.close()
        self._resolver = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def check(self, url: str) -> URL:
        """The URL, parsed and without its fragment. Raises `URLDenied`.

        What can be told from the text alone: where a name leads is found out by each request anew.
        """
        return self._checked(url, None)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int,
        timeout: float,
        redirects: int = 0,
    ) -> Fetched:
        """The whole answer, of any status, in `timeout` seconds; for the rest see `open`."""
        async with self.open(method, url, headers=headers, body=body, timeout=timeout, redirects=redirects) as reply:
            content, truncated = await reply.read(max_bytes)
            return Fetched(reply.url, reply.status, reply.headers, content, truncated)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: float,
        redirects: int = 0,
    ) -> AsyncIterator[Reply]:
        """An answer, of any status, as soon as its headers are there. Leaving it closes the connection.

        Everything inside has to end in `timeout` seconds. Up to `redirects` redirects of a GET or HEAD are followed,
        each after the same checks; another origin is shown no headers that could authorise.

        Raises `URLDenied`, `ToolUnavailable`, `ToolTimeout`, and `ToolRefused` where there are more redirects. None
        of them says where a name led.
        """
        try:
            async with asyncio.timeout(timeout) as limit:
                response = await self._follow(method, self.check(url), dict(headers or {}), body, redirects)
                try:
                    yield Reply(response)
                finally:
                    response.close()
        except TimeoutError as cause:
            if not limit.expired():
                raise
            raise ToolTimeout(f"The address did not answer within {timeout:g} seconds.") from cause

    def allows(self, address: str) -> bool:
        """Whether this server may be sent to an IP address, by its text. Never to one with a zone."""
        try:
            target = _target(ip_address(address))
        except ValueError:
            return False
        allowed = is_public(target) or any(target in network for network in self._allow)
        return allowed and "%" not in address

    async def _follow(
        self, method: str, url: URL, headers: dict[str, str], body: bytes | None, redirects: int
    ) -> aiohttp.ClientResponse:
        follows = redirects > 0 and method in ("GET", "HEAD")
        for _ in range(redirects + 1):
            response = await self._ask(method, url, headers, body)
            location = response.headers.get("Location") if follows and response.status in _REDIRECTS else None
            if location is None:
                return response
            response.close()
            previous, url = url, self._checked(location, url)
            if url.origin() != previous.origin():
                headers = {name: value for name, value in headers.items() if name.lower() in _CARRIED}
        raise ToolRefused(f"The address redirects more than {redirects} times.")

    async def _ask(
        self, method: str, url: URL, headers: Mapping[str, str], body: bytes | None
    ) -> aiohttp.ClientResponse:
        assert self._session is not None, "start() comes before a request"
        try:
            return await self._session.request(method, url, headers=headers, data=body, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as cause:
            raise ToolUnavailable("The address cannot be reached, or does not speak HTTP.") from cause

    def _checked(self, text: str, base: URL | None) -> URL:
        # Readers of URLs disagree on what these characters mean, and some drop them without a word.
        if len(text) > _LONGEST_URL or not text.isprintable() or " " in text or "\\" in text:
            raise URLDenied
        try:
            parsed = URL(text) if base is None else base.join(URL(text))
            url = parsed.with_fragment(None)
            has_user = url.raw_user is not None or url.raw_password is not None
        except Exception:  # not only ValueError: yarl stumbles over some texts, such as `http://[]@`
            raise URLDenied from None  # the cause would hold parts of the URL
        if url.scheme not in ("http", "https") or has_user or not self._is_host(url.raw_host):
            raise URLDenied
        return url

    def _is_host(self, host: str | None) -> bool:
        """Whether it is a name, or an address in its usual spelling that is allowed."""
        if host is None:
            return False
        if ":" in host or _NUMERIC.search(host):
            return self.allows(host)
        return _NAME.fullmatch(host) is not None

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, target = address
        if not self.allows(str(target[0])):
            raise PermissionError(errno.EACCES, "This address is not allowed.")
        return socket.socket(family, kind, protocol)


class _CheckedResolver(AbstractResolver):
    """Gives what another one answers, or raises `URLDenied` if a single one of the addresses is not allowed."""

    def __init__(self, resolver: AbstractResolver, allows: Callable[[str], bool]) -> None:
        self._resolver = resolver
        self._allows = allows

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        answers = await self._resolver.resolve(host, port, family)
        if not answers:
            raise OSError("The name has no address.")
        if not all(self._allows(answer["host"]) for answer in answers):
            raise URLDenied
        return answers

    async def close(self) -> None:
        """Nothing to do: whoever made the other one closes it."""


class _SystemResolver(AbstractResolver):
    """The system's, in threads of its own: users choose the names here, and a name server that does not answer holds
    its thread for half a minute. Nothing else may have to wait for that."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="egress-lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        lookup = partial(
            socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        found = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Body:
    """The beginning of a body, as it was before its encoding. Never holds much more than `limit` bytes."""

    def __init__(self, encoding: str, limit: int) -> None:
        if encoding.lower() not in ("", "identity", "gzip", "x-gzip"):
            raise ToolUnavailable("The address answers in an encoding that it was not asked for.")
        self._gzip = zlib.decompressobj(wbits=31) if "gzip" in encoding.lower() else None
        self._limit = limit
        self._taken = 0
        self._content = bytearray()

    @property
    def full(self) -> bool:
        """Whether what comes now is no longer wanted."""
        return len(self._content) > self._limit or self._taken > self._limit or self._is_whole

    def feed(self, chunk: bytes) -> None:
        """Raises `zlib.error`."""
        self._taken += len(chunk)
        # One byte more than the limit tells a body that was cut from one that fits.
        room = self._limit + 1 - len(self._content)
        self._content += chunk[:room] if self._gzip is None else self._gzip.decompress(chunk, room)

    def ended(self) -> tuple[bytes, bool]:
        """The content and whether it was cut, once there is no more to feed. Raises `ToolUnavailable`."""
        if len(self._content) > self._limit:
            return bytes(self._content[: self._limit]), True
        if self._gzip is None or self._is_whole or not self._taken:
            return bytes(self._content), False
        if self._taken > self._limit:
            return bytes(self._content), True
        raise ToolUnavailable(_CUT)

    @property
    def _is_whole(self) -> bool:
        """Whether the encoding says that nothing follows."""
        return self._gzip is not None and self._gzip.eof


def _target(address: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv6 one only stands for; else itself."""
    if not isinstance(address, IPv6Address):
        return address
    if address in _NAT64:
        return IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address
