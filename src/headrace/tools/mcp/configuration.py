"""Which MCP servers there are, as one JSON setting says."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from headrace.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z0-9-]{1,32}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_FORM = (
    'Write JSON such as {"files": {"command": "npx", "args": ["-y", "a-package"]}, '
    '"search": {"url": "https://example.org/mcp"}}.'
)


class McpServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server that is a program of this machine (`command`), or that is asked over HTTP (`url`).

    Making one raises `ConfigurationError` for what cannot be used. Its `repr` holds nothing but the name: each of the
    other fields may have a secret in it.
    """

    name: str
    """1 to 32 letters, digits and `-`. No `_`, so that no two servers can have tools of one name."""
    command: Sequence[str] = ()
    """The program and its arguments. It gets no more of our environment than what `env` says and, of a few variables
    such as PATH and HOME, our own."""
    env: Mapping[str, str] = {}
    url: str | None = None
    headers: Mapping[str, str] = {}
    timeout: float = 30.0
    """Seconds that a connection may take to be made, and that a call may take."""
    tools: Sequence[str] | None = None
    """The only ones that are offered, by the names that the server gives them, as in `approval` and `idempotent`."""
    approval: bool | Sequence[str] = False
    """Which calls the owner of a run has to agree to: all, none, or those of some tools."""
    scope: str | None = None
    """What a caller's credential has to allow; `None`: nothing."""
    idempotent: Sequence[str] | None = None
    """Tools whose calls may run twice; `None`: those of which the server itself says so."""

    def __post_init__(self) -> None:
        if fault := next(_faults(self), None):
            raise ConfigurationError(f"The MCP server {self.name!r:.100}: {fault}")

    def __repr__(self) -> str:
        return f"McpServer(name={self.name!r})"


def parse_servers(text: str) -> Sequence[McpServer]:
    """The servers of a JSON object in the form that MCP clients share: their names, and how each is reached.

    Raises `ConfigurationError` that says which one is wrong, and where.
    """
    try:
        entries = msgspec.convert(json.loads(text, object_pairs_hook=_unique), dict[str, Any])
        return [_server(name, entry) for name, entry in entries.items()]
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"The MCP servers are not right: {error}. {_FORM}") from error


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server as it is written."""

    type: Literal["stdio", "http", "streamable-http"] | None = None
    """Other clients ask for it. `command` and `url` say as much."""
    command: str | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    url: str | None = None
    headers: dict[str, str] = {}
    timeout: float = 30.0
    tools: tuple[str, ...] | None = None
    approval: bool | tuple[str, ...] = False
    scope: str | None = None
    idempotent: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.args and self.command is None:
            raise ValueError("`args` are those of a `command`")
        if self.type is not None and (self.type == "stdio") != (self.command is not None):
            raise ValueError("`type` is `stdio` with a `command`, and `http` with a `url`")


def _server(name: str, entry: Any) -> McpServer:
    try:
        parsed = msgspec.convert(entry, _Entry)
    except ValueError as error:
        raise ValueError(f"{name!r:.100}: {error}") from error
    return McpServer(
        name=name,
        command=() if parsed.command is None else (parsed.command, *parsed.args),
        env=parsed.env,
        url=parsed.url,
        headers=parsed.headers,
        timeout=parsed.timeout,
        tools=parsed.tools,
        approval=parsed.approval,
        scope=parsed.scope,
        idempotent=parsed.idempotent,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("an object has the same key twice")
    return unique


def _faults(server: McpServer) -> Iterator[str]:
    """What is wrong with it, in words that end with the next step."""
    if not _NAME.fullmatch(server.name):
        yield "name it with 1 to 32 letters, digits and `-`."
    if not 0 < server.timeout <= 3600:
        yield "`timeout` is a number of seconds, above 0 and at most 3600."
    if server.scope == "":
        yield "`scope` names what a credential has to allow: leave it out for nothing."
    yield from _faults_of_the_way(server)
    yield from _faults_of_the_names(server)


def _faults_of_the_way(server: McpServer) -> Iterator[str]:
    if bool(server.command) == (server.url is not None):
        yield "give it a `command` or a `url`: one of the two."
    if isinstance(server.command, str) or not all(server.command[:1]):
        yield "`command` is a program and its arguments."
    if server.env and server.url is not None:
        yield "`env` is for a `command`: a `url` has `headers`."
    if server.headers and server.url is None:
        yield "`headers` are for a `url`: a `command` has `env`."
    if any("\0" in text for pair in server.env.items() for text in pair) or any("=" in key for key in server.env):
        yield "`env` has a name or a value that no environment can hold."
    if server.url is not None and not _is_http(server.url):
        yield "`url` is an address such as https://example.org/mcp."
    if not all(_HEADER.fullmatch(key) and _fits_in_a_header(value) for key, value in server.headers.items()):
        yield "`headers` are names and values of printable ASCII."


def _faults_of_the_names(server: McpServer) -> Iterator[str]:
    for field in ("approval", "idempotent"):
        names = getattr(server, field)
        if isinstance(names, bool) or names is None or server.tools is None:
            continue
        if unknown := [name for name in names if name not in server.tools]:
            yield f"`{field}` names {unknown[0]!r:.100}, which `tools` leaves out."


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:
        return False


def _fits_in_a_header(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip()
