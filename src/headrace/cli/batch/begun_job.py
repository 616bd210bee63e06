"""What is remembered beside a file while its job runs, so that the same command goes on with it after Ctrl-C."""

import hashlib
import secrets
from contextlib import suppress
from pathlib import Path

import msgspec


class BegunJob(msgspec.Struct, kw_only=True):
    key: str
    """The idempotency key: so that not even a start whose answer was lost makes a second job."""
    digest: str
    """Of the file, and of where it is sent."""
    job: str | None = None

    @classmethod
    def of(cls, file: Path, url: str) -> tuple["BegunJob", Path]:
        """As it was remembered, if it was begun with the same content; and where it is kept."""
        digest = _digest(file, url)
        path = file.with_name(file.name + ".job")
        with suppress(FileNotFoundError, msgspec.MsgspecError):
            begun = msgspec.json.decode(path.read_bytes(), type=cls)
            if begun.digest == digest:
                return begun, path
        return cls(key=secrets.token_hex(16), digest=digest), path

    def keep(self, path: Path) -> None:
        path.write_bytes(msgspec.json.encode(self))


def _digest(file: Path, url: str) -> str:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256")
    digest.update(url.encode())
    return digest.hexdigest()
