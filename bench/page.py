"""The page `docs/performance.md`."""

from collections.abc import Sequence

from claims import claims
from figures import HEADINGS, joined, rows
from scenarios import Results
from servers import RELAY_FSYNC


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
        joined="".join(f"- {line}\n" for line in joined(results)) or "- No server joined tokens.\n",
        problems="".join(f"- {each.scenario}, {each.server}: {each.what}\n" for each in results.problems)
        or "- Everything was measured.\n",
        fsync=RELAY_FSYNC,
    )


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

- **CPU per token event**: user and system time of all threads of the server, from the process's CPU clock, by the
  tokens that reached clients, while 100 streams run at 50 tokens/s. Opening the streams is part of it.
- **First token**: from the client's connect to its first token, under that load, with a new stream each second for
  each of the 100. The provider sends the first token at once.
- **Unpaced**: 1,000 streams opened together, the provider as fast as it is read.
- **Per follower**: 1,000 connections follow one run at 50 tokens/s; counted from when all are there.
- **Idle stream**: resident memory over 1,000 runs that wait for their first token, each with one follower and one
  upstream connection.
- Each turn is a new process, warmed up with 20 short streams. A turn in which a token is missing is no figure.
- **C relay**: one thread, epoll; each event is written to one segment file before it is passed on. `{fsync}` also waits
  for the disk (`fdatasync`) once per round of its loop, which is what Headrace's sqlite engine promises.
- **Bare ASGI relay**: uvicorn, uvloop, httptools, aiohttp and msgspec as in Headrace, without a log.
- **By hand**: FastAPI's server-sent events, the openai SDK, and one SQLAlchemy ORM commit per event to SQLite (WAL).
- **Raw protocol**: an asyncio protocol on uvloop that writes one shared frame to all its connections.

Tokens joined into one frame (a token counts once, however many share a frame):

{joined}
Not measured in this run:

{problems}"""
