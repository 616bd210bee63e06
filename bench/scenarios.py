"""What is measured: seven loads, each over the servers that it says something about."""

import http.client
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

import batching
import servers
from batching import Batch, Job
from binaries import binary
from measure import Load, Outcome, cores, cpu_seconds, resident_kib
from servers import (
    ASGI,
    ECHO,
    HANDWRITTEN,
    MEMORY,
    RAW_FANOUT,
    RELAY,
    RELAY_FSYNC,
    SLOW_ECHO,
    SQLITE,
    DidNotStart,
    Server,
    serving,
)

CHAT = "/api/agent/chat?stream=true"
PACE_US = 20_000
"""50 tokens/s."""
WARM_UP_STREAMS = 20


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much is run. Every figure is the median of `repeats`, with the servers taking turns."""

    repeats: int
    tokens: int
    """Of a paced stream."""
    first_token_rounds: int
    unpaced_tokens: int
    fanout_tokens: int
    job_items: int
    many: int = 1000
    """Streams, followers or idle streams, where the scenario is about many."""


FULL = Size(repeats=3, tokens=300, first_token_rounds=6, unpaced_tokens=200, fanout_tokens=200, job_items=50_000)
QUICK = Size(repeats=1, tokens=60, first_token_rounds=2, unpaced_tokens=50, fanout_tokens=50, job_items=5_000)


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """100 streams at 50 tokens/s."""

    cpu_us: float
    """User and system time of the server per token that reached a client."""
    tokens_per_frame: float
    first_p50_ms: float
    failed: int
    """Streams with an error, cut, or not done in time."""


class FirstToken(msgspec.Struct, frozen=True, kw_only=True):
    """From the client's connect to its first token, while 100 streams run at 50 tokens/s."""

    p50_ms: float
    p99_ms: float
    failed: int


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """1,000 streams at once, as fast as they go."""

    tokens_per_second: float
    slowest_to_median: float
    """Duration of the slowest stream by that of the median one."""
    cpu_us: float
    tokens_per_frame: float
    failed: int


class Fanout(msgspec.Struct, frozen=True, kw_only=True):
    """1,000 followers of one run at 50 tokens/s."""

    cpu_us: float
    """Per token that reached a follower."""
    failed: int


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """1,000 runs that wait for their first token, each with one follower and one upstream connection."""

    kib_per_stream: float
    failed: int


Figure = TypeVar("Figure", Cost, FirstToken, Throughput, Fanout, Memory, Batch, Job)


class Problem(msgspec.Struct, frozen=True):
    server: str
    scenario: str
    what: str


class Results(msgspec.Struct, kw_only=True):
    """Figures by server name; a server that could not be measured is missing, and has a line in `problems`."""

    date: str
    size: Size
    python: str
    load_average: float
    """Of the machine when the run began; above 0.5 something else was running."""
    cost: dict[str, Cost] = {}
    first_token: dict[str, FirstToken] = {}
    throughput: dict[str, Throughput] = {}
    fanout: dict[str, Fanout] = {}
    memory: dict[str, Memory] = {}
    batch: dict[str, Batch] = {}
    job: dict[str, Job] = {}
    problems: list[Problem] = []


# --- loads ------------------------------------------------------------------------------------------------------------


@contextmanager
def load(server: Server, path: str = CHAT, *, ask: str | None = None, **options: int) -> Iterator[Load]:
    """A load client on the other core; `ask` is the message of a chat request, which tells the provider what to say."""
    command: list[str | Path] = [binary("load"), "--port", str(server.port), "--path", path]
    if ask is not None:
        command += ["--body", json.dumps({"message": ask})]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    running = Load(command, cores()[1])
    try:
        yield running
    finally:
        running.stop()


def warm_up(server: Server) -> None:
    with load(server, ask="bench?count=10", streams=WARM_UP_STREAMS, timeout=30) as running:
        outcome = running.outcome()
    if outcome.ok < WARM_UP_STREAMS:
        raise RuntimeError(f"{outcome.ok} of {WARM_UP_STREAMS} streams of the warm-up ended well")


def paced(server: Server, tokens: int, rounds: int) -> tuple[Outcome, float]:
    """100 streams at 50 tokens/s, and the CPU seconds that the server took for them."""
    before = cpu_seconds(server.pid)
    message = f"bench?count={tokens}&pace_us={PACE_US}"
    with load(server, ask=message, streams=100, rounds=rounds, ramp_ms=1000, timeout=180) as running:
        return whole(running.outcome(), 100 * rounds * tokens), cpu_seconds(server.pid) - before


def whole(outcome: Outcome, tokens: int) -> Outcome:
    """The outcome, if no token is missing and none is there twice, or if streams are known to have failed."""
    if not outcome.failed and outcome.tokens != tokens:
        raise RuntimeError(f"{outcome.tokens} of {tokens} tokens arrived")
    return outcome


def cost(server: Server, upstream: int, size: Size) -> Cost:
    outcome, cpu = paced(server, size.tokens, rounds=1)
    return Cost(
        cpu_us=per_token(cpu, outcome),
        tokens_per_frame=outcome.tokens / max(1, outcome.frames),
        first_p50_ms=outcome.first_p50_ms,
        failed=outcome.failed,
    )


def first_token(server: Server, upstream: int, size: Size) -> FirstToken:
    outcome, _ = paced(server, 50, rounds=size.first_token_rounds)
    return FirstToken(p50_ms=outcome.first_p50_ms, p99_ms=outcome.first_p99_ms, failed=outcome.failed)


def throughput(server: Server, upstream: int, size: Size) -> Throughput:
    before = cpu_seconds(server.pid)
    with load(server, ask=f"bench?count={size.unpaced_tokens}", streams=size.many, timeout=180) as running:
        outcome = whole(running.outcome(), size.many * size.unpaced_tokens)
    return Throughput(
        tokens_per_second=outcome.tokens / outcome.seconds,
        slowest_to_median=outcome.finish_slowest_s / max(1e-9, outcome.finish_median_s),
        cpu_us=per_token(cpu_seconds(server.pid) - before, outcome),
        tokens_per_frame=outcome.tokens / max(1, outcome.frames),
        failed=outcome.failed,
    )


def fanout(server: Server, upstream: int, size: Size) -> Fanout:
    """Counts from when every follower is there until every one has the end."""
    speed = f"count={size.fanout_tokens}&pace_us={PACE_US}"
    with one_run(server, upstream, f"bench?gate=1&{speed}") as events:
        with load(server, events, streams=size.many, ramp_ms=500, timeout=60) as running:
            running.wait_ready()
            before = cpu_seconds(server.pid)
            servers.open_gate(server.port if server.name == RAW_FANOUT else upstream, speed)
            outcome = whole(running.outcome(), size.many * size.fanout_tokens)
        return Fanout(cpu_us=per_token(cpu_seconds(server.pid) - before, outcome), failed=outcome.failed)


@contextmanager
def one_run(server: Server, upstream: int, message: str) -> Iterator[str]:
    """The path of the events of a run that waits at the provider's gate."""
    if server.name == RAW_FANOUT:
        yield "/api/events"
        return
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("POST", CHAT, json.dumps({"message": message}), {"Content-Type": "application/json"})
        run_id = connection.getresponse().headers["X-Run-Id"]
        servers.wait_open(upstream, 1)
        yield f"/api/runs/{run_id}/events?view=agent_chat"
    finally:
        connection.close()


def memory(server: Server, upstream: int, size: Size) -> Memory:
    before = resident_kib(server.pid)
    with load(server, ask="bench?count=1&gate=1", streams=size.many, ramp_ms=2000, timeout=90) as running:
        running.wait_ready()
        servers.wait_open(upstream, size.many)
        time.sleep(1)
        used = resident_kib(server.pid) - before
        servers.open_gate(upstream, "")
        return Memory(kib_per_stream=used / size.many, failed=whole(running.outcome(), size.many).failed)


def batch(server: Server, upstream: int, size: Size) -> Batch:
    return batching.batch(server)


def job(server: Server, upstream: int, size: Size) -> Job:
    return batching.job(server, size.job_items)


def per_token(cpu: float, outcome: Outcome) -> float:
    return cpu * 1e6 / max(1, outcome.tokens)


# --- runs -------------------------------------------------------------------------------------------------------------


def median(figures: Sequence[Figure]) -> Figure:
    """Field by field; of failures the worst."""
    values: dict[str, float] = {}
    for name in figures[0].__struct_fields__:
        column = [getattr(each, name) for each in figures]
        values[name] = max(column) if name == "failed" else statistics.median(column)
    return type(figures[0])(**values)  # type: ignore[arg-type]


def measure(
    names: Sequence[str],
    scenario: Callable[[Server, int, Size], Figure],
    results: Results,
    size: Size,
    tell: Callable[[str], None],
) -> dict[str, Figure]:
    """The scenario over the servers, which take turns; each turn has a new process and a new provider."""
    figures: dict[str, list[Figure]] = {name: [] for name in names}
    for turn in range(size.repeats):
        for name in [name for name in names if len(figures[name]) == turn]:
            tell(f"{scenario.__name__} · {name} · {turn + 1} of {size.repeats}")
            try:
                figures[name].append(once(name, scenario, size))
            except DidNotStart as error:
                print(f"{name} did not start: {error}", file=sys.stderr)
                results.problems.append(Problem(name, scenario.__name__, "did not start"))
            except RuntimeError as error:
                results.problems.append(Problem(name, scenario.__name__, str(error)))
    return {name: median(column) for name, column in figures.items() if column}


def once(name: str, scenario: Callable[[Server, int, Size], Figure], size: Size) -> Figure:
    with servers.upstream() as upstream, serving(name, upstream) as server:
        if name != RAW_FANOUT:
            warm_up(server)
        return scenario(server, upstream, size)


def run_all(results: Results, tell: Callable[[str], None]) -> None:
    size = results.size
    results.cost = measure((RELAY, RELAY_FSYNC, ASGI, MEMORY, SQLITE, HANDWRITTEN), cost, results, size, tell)
    results.first_token = measure((RELAY, RELAY_FSYNC, ASGI, MEMORY, SQLITE), first_token, results, size, tell)
    results.throughput = measure((RELAY, RELAY_FSYNC, ASGI, MEMORY, SQLITE), throughput, results, size, tell)
    results.fanout = measure((RAW_FANOUT, MEMORY, SQLITE), fanout, results, size, tell)
    results.memory = measure((RELAY, ASGI, MEMORY, SQLITE, HANDWRITTEN), memory, results, size, tell)
    results.batch = measure((SLOW_ECHO,), batch, results, size, tell)
    results.job = measure((ECHO,), job, results, size, tell)
