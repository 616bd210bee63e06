"""Requests that are repeated until they are answered, and streams that are resumed until they end."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

from headrace.client.answers import in_band_error, problem
from headrace.client.patience import Patience
from headrace.client.sse import Parser
from headrace.errors import ConfigurationError, HeadraceError, StreamCut, UnexpectedAnswer, Unreachable
from headrace.position import Position

T = TypeVar("T")

_FAULTS = (aiohttp.ClientError, TimeoutError, OSError)
"""What a network does. Foreign words stay in `__cause__`."""
_MOST_OF_AN_ERROR = 1 << 20
_READ = 1 << 16


class Connection:
    """To one server, for one credential. Every request may be sent twice, so each must be one that bears it."""

    def __init__(self, url: str, *, token: str | None, timeout: float, idle_timeout: float, patience: float) -> None:
        self.url = _checked_url(url)
        self._headers = {"Accept-Encoding": "identity", **_credential(token)}
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._stream_timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=idle_timeout)
        self._patience = patience
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        file: Path | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        patience: float | None = None,
    ) -> T:
        """The JSON of the reply. Raises the error that the server tells, `Unreachable`, or `UnexpectedAnswer`.

        `body` is sent as JSON; a `file` as lines of JSON, for which there is no time limit.
        """
        waiting = Patience(self._patience if patience is None else patience)
        data = None if body is None else msgspec.json.encode(body)
        timeout = self._timeout if file is None else self._stream_timeout
        head = {"Accept": "application/json", **(headers or {})}
        if data is not None:
            head["Content-Type"] = "application/json"
        elif file is not None:
            head["Content-Type"] = "application/jsonl"
        while True:
            try:
                content = data if file is None else _content(file)
                async with self._sent(method, path, query, head, content, timeout) as response:
                    return _decoded(await response.read(), answer)
            except HeadraceError as error:
                await waiting.wait(error)
            except _FAULTS as fault:
                await waiting.wait(_caused(Unreachable(), fault))

    async def follow(
        self, path: str, decode: Callable[[str, bytes], T], *, query: Mapping[str, str], after: str | None
    ) -> AsyncGenerator[T, None]:
        """What a stream says after a position, across cuts. It ends where the server says that nothing is left;
        everything else that ends a connection is a cut. Raises as `request` does, and `StreamCut`."""
        waiting = Patience(self._patience)
        position = None if after is None else str(Position.parse(after))
        while True:
            parser, pause = Parser(), 0.0
            try:
                async with self._stream(path, query, position) as response:
                    if response.status == 204:
                        return
                    async with aclosing(_frames(response, parser, waiting)) as frames:
                        async for reached, data in frames:
                            item = decode(reached, data)
                            position = reached
                            waiting.progressed()
                            yield item
                error: HeadraceError = StreamCut()
                pause = parser.retry or 0.0
            except HeadraceError as told:
                error = told
            except aiohttp.ClientConnectorError as fault:
                error = _caused(Unreachable(), fault)
            except (*_FAULTS, msgspec.MsgspecError, UnicodeDecodeError) as fault:
                error = _caused(StreamCut(), fault)
            await waiting.wait(error, at_least=pause)

    @asynccontextmanager
    async def _stream(
        self, path: str, query: Mapping[str, str], position: str | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": "text/event-stream"}
        if position is not None:
            headers["Last-Event-ID"] = position
        async with self._sent("GET", path, query, headers, None, self._stream_timeout) as response:
            if response.status == 200 and response.content_type != "text/event-stream":
                raise UnexpectedAnswer
            yield response

    @asynccontextmanager
    async def _sent(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str],
        data: bytes | IO[bytes] | None,
        timeout: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response that is no error. No redirect is followed: a credential goes where it was meant to go only."""
        async with self._open_session().request(
            method,
            URL(self.url + path, encoded=True).with_query(query),
            headers=headers,
            data=data,
            timeout=timeout,
            allow_redirects=False,
        ) as response:
            if response.status >= 300:
                raise problem(response.status, response.headers, await response.content.read(_MOST_OF_AN_ERROR))
            yield response

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=_READ,
            )
        return self._session


async def _frames(
    response: aiohttp.ClientResponse, parser: Parser, waiting: Patience
) -> AsyncGenerator[tuple[str, bytes], None]:
    """Positions and payloads. Raises the error that a frame without a position tells."""
    comments = 0
    async for chunk in response.content.iter_any():
        for frame in parser.feed(chunk):
            if frame.id is None:
                raise in_band_error(frame.data)
            yield frame.id, frame.data
        if parser.comments > comments:
            comments = parser.comments
            waiting.progressed()


def _content(file: Path | bytes) -> bytes | IO[bytes]:
    """Opened anew for each attempt; aiohttp closes it."""
    return file.open("rb") if isinstance(file, Path) else file


def _decoded(body: bytes, answer: type[T]) -> T:
    if answer is type(None):
        return None
    try:
        return msgspec.json.decode(body, type=answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnexpectedAnswer from error


def _caused(error: HeadraceError, cause: BaseException) -> HeadraceError:
    error.__cause__ = cause
    return error


def _checked_url(url: str) -> str:
    try:
        parts = URL(url)
        usable = parts.scheme in ("http", "https") and bool(parts.host) and not (parts.query_string or parts.fragment)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError("The URL of the server has to be like http://127.0.0.1:8000: give --url another one.")
    return url.rstrip("/")


def _credential(token: str | None) -> dict[str, str]:
    if not token:
        return {}
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigurationError("The token or API key is not one: it is printable ASCII without spaces.")
    return {"Authorization": f"Bearer {token}"}
