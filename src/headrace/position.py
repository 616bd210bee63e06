"""Where a reader stands in a log: epoch, offset, and the frame inside the event.

Text form: `<epoch>-<offset>` after a whole event, `<epoch>-<offset>.<frame>` after the first `frame` frames of an event
that a protocol shows as several. Opaque to clients. The epoch is random per log, so a position of another run, or of a
log that had to be rebuilt, is noticed instead of misread. Short ASCII, since browsers send it back in a header.
"""

import re
import secrets
from typing import NamedTuple

from headrace.errors import InvalidPosition

MAX_OFFSET = 2**63 - 1
_TEXT = re.compile(r"([0-9a-z]{1,16})-([0-9]{1,19})(?:\.([0-9]{1,6}))?", re.ASCII)
_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"


class Position(NamedTuple):
    epoch: str
    offset: int
    frame: int = 0
    """Frames of the event `offset + 1` that were already delivered, so 0 means: after the whole event `offset`."""

    def __str__(self) -> str:
        if self.frame:
            return f"{self.epoch}-{self.offset + 1}.{self.frame}"
        return f"{self.epoch}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """The position in `text`. Raises `InvalidPosition` for anything that `str` would not have written."""
        match = _TEXT.fullmatch(text) if len(text) <= 64 else None
        if match is None:
            raise InvalidPosition
        epoch, offset, frame = match[1], int(match[2]), int(match[3] or 0)
        if frame:
            offset -= 1
        position = cls(epoch, offset, frame)
        if not 0 <= offset <= MAX_OFFSET or str(position) != text:
            raise InvalidPosition
        return position


def new_epoch() -> str:
    """A random epoch for a new log: 6 letters, 30 bits."""
    return random_letters(6)


def random_letters(count: int) -> str:
    """Digits and lower-case letters without i, l, o and u: 5 random bits each."""
    bits = secrets.randbits(5 * count)
    return "".join([_LETTERS[bits >> 5 * place & 31] for place in range(count)])
