"""What the endpoints work with; put together by `bootstrap`."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from headrace.batch.jobs.service import Jobs
from headrace.limits import Limiter
from headrace.ports import WireProtocol
from headrace.runs import Runs
from headrace.server.auth import Authenticator, Tickets
from headrace.server.auth.peer import Network
from headrace.server.open_streams import OpenStreams
from headrace.telemetry import Telemetry
from headrace.toolbox import Toolbox


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """`max_size`: items of one `POST /api/batch`; the others are those of a job's file."""

    enabled: bool = True
    max_size: int = 10
    max_lines: int = 50_000
    max_bytes: int = 200 << 20


@dataclass(frozen=True, kw_only=True)
class Services:
    runs: Runs
    protocols: Mapping[str, WireProtocol]
    authenticator: Authenticator
    tickets: Tickets
    limits: Limiter
    open_streams: OpenStreams
    telemetry: Telemetry
    tools: Toolbox
    jobs: Jobs
    ready: Callable[[], Awaitable[bool]]
    """Whether runs can be taken and kept now."""
    models: Callable[[], Collection[str]]
    """Names of the models that a caller may ask for."""
    stream_enabled: bool = True
    batch: BatchOptions = BatchOptions()
    max_body_bytes: int = 1 << 20
    allowed_origins: frozenset[str] = frozenset()
    """Web origins, besides the server's own, whose pages may open sockets here."""
    trusted_proxies: Sequence[Network] = ()
    """Whose X-Forwarded-For is believed."""
    metrics_public: bool = True
    """Whether `/metrics` answers callers without the `metrics` scope: on loopback only."""
