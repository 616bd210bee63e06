"""Where results go: those that succeeded into one file, those that failed into another."""

from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from headrace.client import JobResult
from headrace.errors import ConfigurationError

_encode = msgspec.json.Encoder().encode


class ResultFiles:
    """Written anew from the first result on, whatever was there: the server keeps them all."""

    def __init__(self, succeeded: Path, failed: Path) -> None:
        self.succeeded = succeeded
        self.failed = failed
        self._files: list[IO[bytes]] = []

    @classmethod
    def beside(cls, file: Path, output: Path | None) -> "ResultFiles":
        """`output`, or named after the file of the operations; failed ones beside it. Raises `ConfigurationError`."""
        if not file.is_file():
            raise ConfigurationError(f"There is no file {str(file)!r}.")
        succeeded = output or file.with_name(f"{file.stem}.results.jsonl")
        stem = succeeded.name.removesuffix(".jsonl").removesuffix(".results")
        return cls(succeeded, succeeded.with_name(f"{stem}.failed.jsonl"))

    def __enter__(self) -> Self:
        self._files = [self.succeeded.open("wb"), self.failed.open("wb")]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()

    def write(self, result: JobResult) -> None:
        self._files[result.failed].write(_encode(result) + b"\n")
