"""What is remembered beside a file while its job runs, so that the same command goes on with it after Ctrl-C."""

import hashlib
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from headrace.errors import ConfigurationError


class BegunJob(msgspec.Struct, kw_only=True):
    key: str
    """The idempotency key: so that not even a start whose answer was lost makes a second job."""
    digest: str
    """Of the file, and of where it is sent."""
    options: Mapping[str, str]
    job: str | None = None
    again: bool = False
    """It was remembered."""

    @classmethod
    def of(cls, file: Path, url: str, options: Mapping[str, str]) -> tuple["BegunJob", Path]:
        """As it was remembered, if it was begun with the same content; and where it is kept. Raises
        `ConfigurationError` where it was begun with other options: they cannot be changed."""
        digest = _digest(file, url)
        path = file.with_name(file.name + ".job")
        with suppress(FileNotFoundError, msgspec.MsgspecError):
            begun = msgspec.json.decode(path.read_bytes(), type=cls)
            if begun.digest == digest:
                if begun.options != options:
                    raise ConfigurationError(
                        f"The job of this file was begun with other options. Give the same ones to go on with it; or "
                        f"end it with `headrace batch cancel {begun.job or ''}`, and delete {path.name!r}."
                    )
                begun.again = True
                return begun, path
        return cls(key=secrets.token_hex(16), digest=digest, options=options), path

    def keep(self, path: Path) -> None:
        path.write_bytes(msgspec.json.encode(self))

    def forget(self, path: Path) -> None:
        """It has ended, or was never made."""
        path.unlink(missing_ok=True)


def _digest(file: Path, url: str) -> str:
    if not file.is_file():
        raise ConfigurationError(f"There is no file {str(file)!r}.")
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256")
    digest.update(url.encode())
    return digest.hexdigest()
