"""The figures of a run as rows of text."""

from collections.abc import Iterator

from claims import NOT_MEASURED, number
from scenarios import Results
from servers import COMMANDS, RELAY

HEADINGS = (
    "server",
    "µs per token",
    "by C",
    "first p50 ms",
    "p99 ms",
    "tokens per s",
    "slowest",
    "µs per follower",
    "KiB idle",
    "failed",
)


def rows(results: Results) -> Iterator[tuple[str, ...]]:
    measured = (results.cost, results.first_token, results.throughput, results.fanout, results.memory)
    for name in COMMANDS:
        if any(name in figures for figures in measured):
            yield row(name, results)


def row(name: str, results: Results) -> tuple[str, ...]:
    cost, first = results.cost.get(name), results.first_token.get(name)
    through, fanout, memory = results.throughput.get(name), results.fanout.get(name), results.memory.get(name)
    reference = results.cost.get(RELAY)
    failed = sum(each.failed for each in (cost, first, through, fanout, memory) if each is not None)
    return (
        name,
        number(cost.cpu_us) if cost else NOT_MEASURED,
        f"{number(cost.cpu_us / reference.cpu_us)}×" if cost and reference else NOT_MEASURED,
        number(first.p50_ms) if first else NOT_MEASURED,
        number(first.p99_ms) if first else NOT_MEASURED,
        number(through.tokens_per_second) if through else NOT_MEASURED,
        f"{number(through.slowest_to_median)}×" if through else NOT_MEASURED,
        number(fanout.cpu_us) if fanout else NOT_MEASURED,
        number(memory.kib_per_stream) if memory else NOT_MEASURED,
        str(failed),
    )


def joined(results: Results) -> Iterator[str]:
    """Servers that put several tokens into one frame: a token then costs less than a frame."""
    paced = [(name, "at 50 tokens/s", figure.tokens_per_frame) for name, figure in results.cost.items()]
    unpaced = [(name, "unpaced", figure.tokens_per_frame) for name, figure in results.throughput.items()]
    for name, load, tokens in paced + unpaced:
        if tokens > 1.005:
            yield f"{name}, {load}: {number(tokens)} tokens per frame"


def batches(results: Results) -> Iterator[str]:
    for name, each in results.batch.items():
        yield f"{name}, 10 items of 1 s: {number(each.by_single)}× one call, {number(each.cpu_ms)} ms CPU an item"
    for name, job in results.job.items():
        yield (
            f"{name}, job of {results.size.job_items:,}: {number(job.items_per_second)} items/s, "
            f"{number(job.cpu_us)} µs CPU an item, memory grown by "
            f"{number(job.grown_kib / 1024)} MiB, a result is there after {number(job.result_ms)} ms"
        )
