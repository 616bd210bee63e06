"""What is promised about speed, and what a run measured of it."""

from collections.abc import Callable
from typing import NamedTuple

from scenarios import Results
from servers import ECHO, HANDWRITTEN, MEMORY, RAW_FANOUT, RELAY, SLOW_ECHO, SQLITE

NOT_MEASURED = "-"


class Claim(NamedTuple):
    """A number with a bound; `measured` is None where a server that it needs is missing."""

    what: str
    unit: str
    at_least: bool
    limit: float
    measured: float | None

    @property
    def bound(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:,g}{self.unit}"

    @property
    def value(self) -> str:
        return NOT_MEASURED if self.measured is None else f"{number(self.measured)}{self.unit}"

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        holds = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        return "holds" if holds else "missed"


def claims(results: Results) -> list[Claim]:
    """Every promise of the project that this bench can judge."""
    cost, first, through = results.cost, results.first_token, results.throughput
    fanout, memory, batch, job = results.fanout, results.memory, results.batch, results.job
    return [
        at_most("CPU per token, sqlite by C relay", "×", 2.5, lambda: cost[SQLITE].cpu_us / cost[RELAY].cpu_us),
        at_least("CPU per token, by hand by sqlite", "×", 15, lambda: cost[HANDWRITTEN].cpu_us / cost[SQLITE].cpu_us),
        at_most("CPU per token, sqlite by memory", "×", 1.5, lambda: cost[SQLITE].cpu_us / cost[MEMORY].cpu_us),
        at_most("first token p50, sqlite over memory", " ms", 2, lambda: first[SQLITE].p50_ms - first[MEMORY].p50_ms),
        at_most("first token p99, sqlite over memory", " ms", 10, lambda: first[SQLITE].p99_ms - first[MEMORY].p99_ms),
        at_least("1,000 unpaced streams, sqlite", " tokens/s", 25_000, lambda: through[SQLITE].tokens_per_second),
        at_most("slowest of them by the median", "×", 2, lambda: through[SQLITE].slowest_to_median),
        at_most("failed of them", "", 0, lambda: through[SQLITE].failed),
        at_most(
            "CPU per token and follower, sqlite by raw protocol",
            "×",
            2,
            lambda: fanout[SQLITE].cpu_us / fanout[RAW_FANOUT].cpu_us,
        ),
        at_most("memory per idle stream, sqlite", " KiB", 40, lambda: memory[SQLITE].kib_per_stream),
        at_most("batch of 10 items of 1 s by one call, sqlite", "×", 1.1, lambda: batch[SLOW_ECHO].by_single),
        at_most("CPU per item of it", " ms", 3, lambda: batch[SLOW_ECHO].cpu_ms),
        at_least("batch job of echo runs, sqlite", " items/s", 1_000, lambda: job[ECHO].items_per_second),
        at_most("a result of it at a live reader", " ms", 100, lambda: job[ECHO].result_ms),
        at_most("failed of them", "", 0, lambda: job[ECHO].failed),
    ]


def at_most(what: str, unit: str, limit: float, figure: Callable[[], float]) -> Claim:
    return Claim(what, unit, False, limit, known(figure))


def at_least(what: str, unit: str, limit: float, figure: Callable[[], float]) -> Claim:
    return Claim(what, unit, True, limit, known(figure))


def known(figure: Callable[[], float]) -> float | None:
    """The figure, or None where a server that it needs was not measured."""
    try:
        return figure()
    except KeyError:
        return None


def number(value: float) -> str:
    """Three digits: the others are noise."""
    if abs(value) >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"
