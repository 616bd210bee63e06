"""A file that is read again when it has changed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from headrace.errors import ConfigurationError

T = TypeVar("T")

INTERVAL = 2.0
"""Seconds between two looks at the file."""

logger = structlog.get_logger("headrace.server.auth")


class Watched(Generic[T]):
    """What `read` makes of the file at `path`, at most `INTERVAL` seconds old.

    `read` raises `ConfigurationError` for a file it cannot use: at first that goes on to the caller, later the last
    good content stays and the log says so, since a slip of an editor must not lock everybody out.
    """

    def __init__(self, path: Path, read: Callable[[Path], T], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._read = read
        self._clock = clock
        self._looked = clock()
        self._version = self._look()
        self._content = read(path)

    def get(self, *, fresh: bool = False) -> T:
        """The content; with `fresh`, as of this moment."""
        now = self._clock()
        if fresh or now - self._looked >= INTERVAL:
            self._looked = now
            self._reread()
        return self._content

    def _reread(self) -> None:
        # Looked at before it is read: a change in between is then found by the next look.
        version = self._look()
        if version == self._version:
            return
        self._version = version
        try:
            self._content = self._read(self._path)
        except ConfigurationError as error:
            logger.error("file_unusable", file=self._path.name, reason=error.message, kept="the last good content")

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
