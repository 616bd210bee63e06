"""The results as people see them: tables in the terminal, a plot, and files that are kept."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from claims import claims, number
from figures import HEADINGS, batches, joined, rows
from page import page
from scenarios import Results

ROOT = Path(__file__).parent.parent
LATEST = Path(__file__).parent / "results" / "latest.json"
PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "assets" / "performance.svg"


def show(results: Results, console: Console) -> None:
    console.print(table(HEADINGS, rows(results)))
    lines = [(each.what, each.bound, each.value, each.verdict) for each in claims(results)]
    console.print(table(("claim", "bound", "measured", ""), lines))
    for line in batches(results):
        console.print(line)
    for line in joined(results):
        console.print(f"joined: {line}")
    for problem in results.problems:
        console.print(f"not measured: {problem.scenario}, {problem.server}: {problem.what}", style="red", markup=False)


def table(headings: Iterable[str], lines: Iterable[tuple[str, ...]]) -> Table:
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for position, heading in enumerate(headings):
        made.add_column(heading, justify="right" if position else "left")
    for line in lines:
        made.add_row(*line)
    return made


def save(results: Results) -> None:
    LATEST.parent.mkdir(exist_ok=True)
    LATEST.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    PLOT.parent.mkdir(exist_ok=True)
    plot(results)
    PAGE.write_text(page(results))


def plot(results: Results) -> None:
    """CPU per token event of each server, on a logarithmic axis."""
    names = list(results.cost)[::-1]
    values = [results.cost[name].cpu_us for name in names]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "headrace"}):
        figure = Figure(figsize=(7, 0.5 + 0.4 * len(names)), layout="constrained")
        axes = figure.subplots()
        colors = ["#1f6f8b" if name.startswith("Headrace") else "#b0b8bc" for name in names]
        bars = axes.barh(names, values, color=colors)
        axes.bar_label(bars, [number(value) for value in values], padding=4)
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set_xlabel("µs CPU per token event, 100 streams at 50 tokens/s (logarithmic)")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(PLOT, metadata={"Date": None})
