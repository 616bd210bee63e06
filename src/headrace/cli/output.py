"""What is written where: answers to standard output, everything about them to standard error."""

import sys
from datetime import datetime

from rich.console import Console
from rich.text import Text

from headrace.errors import HeadraceError

_HIDDEN = "\N{REPLACEMENT CHARACTER}"


def harmless(text: str) -> str:
    """Without the control characters by which a text could take over a terminal."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def line(text: str) -> None:
    """One line on standard output, at once, as long as it is."""
    print(harmless(text) if sys.stdout.isatty() else text, flush=True)


def remark(text: str) -> None:
    """One line for people, on standard error."""
    _to_stderr(text, "dim")


def complain(error: HeadraceError) -> None:
    """The one line that an error is."""
    _to_stderr(f"headrace: {error.message}", "red")
    for fault in error.extra.get("errors", ()):
        line = f"line {fault['line']}:" if "line" in fault else ""
        where = line or fault.get("pointer") or fault.get("parameter", "")
        _to_stderr(f"  {where} {fault.get('detail', '')}", "red")


def clock(seconds: float) -> str:
    """Epoch seconds as local time."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


class Answer:
    """Text as it comes: as it is into a pipe or a file, harmless on a terminal, with a line end at its end."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._last = "\n"

    def write(self, text: str) -> None:
        if text:
            sys.stdout.write(harmless(text) if self._terminal else text)
            sys.stdout.flush()
            self._last = text[-1]

    def end(self) -> None:
        if self._last != "\n":
            self.write("\n")


def _to_stderr(text: str, style: str) -> None:
    Console(stderr=True).print(Text(harmless(text), style=style), soft_wrap=True)
