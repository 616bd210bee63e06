"""Where results go: those that succeeded into one file, those that failed into another."""

from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from headrace.client import JobResult
from headrace.errors import ConfigurationError

_encode = msgspec.json.Encoder().encode


class ResultFiles:
    """Written from the first result on, since the server keeps them all. Opened before a job is started, so that what
    cannot be written is told before it costs anything; the one of failures only where there is one."""

    def __init__(self, succeeded: Path, failed: Path) -> None:
        self.succeeded = succeeded
        self.failed = failed
        self._files: dict[bool, IO[bytes]] = {}

    @classmethod
    def beside(cls, file: Path, output: Path | None, *, again: bool) -> "ResultFiles":
        """`output`, or named after the file of the operations; failed ones beside it. `again`: they may be there from
        an earlier look at the same job. Raises `ConfigurationError`, and nothing is overwritten."""
        if not file.is_file():
            raise ConfigurationError(f"There is no file {str(file)!r}.")
        succeeded = output or file.with_name(f"{file.stem}.results.jsonl")
        stem = succeeded.name.removesuffix(".jsonl").removesuffix(".results")
        files = cls(succeeded, succeeded.with_name(f"{stem}.failed.jsonl"))
        for each in (files.succeeded, files.failed):
            if each.exists() and (not again or each.samefile(file)):
                raise ConfigurationError(
                    f"{str(each)!r} is there already, and would be overwritten: move it, or name another --output."
                )
        return files

    def __enter__(self) -> Self:
        self._open(False, self.succeeded)
        self.failed.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            try:
                file.close()
            except OSError as unwritten:
                raise _not_written(self.succeeded, unwritten) from unwritten

    def write(self, result: JobResult) -> None:
        path = self.failed if result.failed else self.succeeded
        if result.failed not in self._files:
            self._open(True, self.failed)
        try:
            self._files[result.failed].write(_encode(result) + b"\n")
        except OSError as error:
            raise _not_written(path, error) from error

    def discard(self) -> None:
        """Where no job was started."""
        for file in self._files.values():
            file.close()
        self.succeeded.unlink(missing_ok=True)

    def _open(self, failed: bool, path: Path) -> None:
        try:
            self._files[failed] = path.open("wb")
        except OSError as error:
            raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"{str(path)!r} cannot be written: {error.strerror or 'an error of the disk'}.")
