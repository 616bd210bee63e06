"""The page `docs/performance.md`."""

from collections.abc import Sequence

from claims import claims
from figures import HEADINGS, batches, joined, rows
from scenarios import Results


def page(results: Results) -> str:
    return PAGE_TEXT.format(
        date=results.date,
        size="short" if results.size.repeats == 1 else f"median of {results.size.repeats} turns",
        python=results.python,
        claims=markdown(
            ("what", "bound", "measured", ""),
            [(each.what, each.bound, each.value, each.verdict) for each in claims(results)],
        ),
        figures=markdown(HEADINGS, list(rows(results))),
        batches=bullets(list(batches(results))),
        joined=bullets(list(joined(results))),
        problems=bullets([f"{each.scenario}, {each.server}: {each.what}" for each in results.problems]),
    )


def bullets(lines: Sequence[str]) -> str:
    return "".join(f"- {line}\n" for line in lines or ("none",))


def markdown(headings: Sequence[str], lines: Sequence[tuple[str, ...]]) -> str:
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *lines))


PAGE_TEXT = """\
# Performance

Written by `make bench`; do not edit. Last run: {date}, {size}, Python {python}.

All figures are from one run on one machine with two cores: the server on one, the load client and the fake provider
on the other. What counts are the ratios; the absolute figures are those of a small shared machine.

## What is promised

{claims}

## Figures

{figures}

![CPU per token event](assets/performance.svg)

## How it is measured

- **µs per token**: user and system time of all threads of the server, from the process's CPU clock, by the tokens that
  reached clients, while 100 streams run at 50 tokens/s. Opening the streams is part of it. **by C**: by the C relay's.
- **first p50 ms**, **p99 ms**: from the client's connect to its first token under that load, with each stream
  followed by a new one after a second. The provider sends the first token at once.
- **tokens per s**: 1,000 streams opened together, the provider as fast as it is read. **slowest**: the longest
  stream by the median one.
- **µs per follower**: CPU per token and follower, 1,000 connections on one run at 50 tokens/s, from when all are there.
- **KiB idle**: resident memory by 1,000 runs that wait for their first token, each with one follower and one upstream
  connection.
- **failed**: streams with an error, cut, or late, over all loads. A turn in which a token is missing is no figure.

Each turn is a new process, warmed up with 20 short streams. The servers take turns, and a figure is their median.

| server | what it is |
| --- | --- |
| C relay | one thread and epoll; each event is written to one segment file before it is passed on |
| C relay, fsync | the same, with one `fdatasync` per round of its loop before anything is passed on |
| ASGI relay, no log | uvicorn, uvloop, httptools, aiohttp and msgspec as in Headrace, and nothing else |
| by hand | FastAPI's server-sent events, the openai SDK, one SQLAlchemy ORM commit per event to SQLite in WAL mode |
| raw protocol | an asyncio protocol on uvloop that writes one shared frame to all its connections |

Batches, of which the job has both cores for itself and its model answers at once:

{batches}
Tokens joined into one frame (a token counts once, however many share a frame):

{joined}
Not measured:

{problems}"""
