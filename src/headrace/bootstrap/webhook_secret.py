"""What webhooks are signed with: made when the first one is needed."""

from pathlib import Path

from headrace.batch.jobs.notice import owner_secret
from headrace.errors import ConfigurationError
from headrace.identity import Owner
from headrace.server.auth import private_file
from headrace.settings import Settings
from headrace.webhook import new_secret

SECRET_FILE = "webhook.secret"  # noqa: S105  the name of a file
_BYTES = 32


class WebhookSecret:
    """Kept in the data directory; by the engine that keeps nothing, for this process only. Raises `ConfigurationError`
    for a file that holds no secret."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.data / SECRET_FILE if settings.engine != "memory" else None
        self._secret: bytes | None = None
        if self._path is not None and self._path.exists():
            self._secret = self._read(self._path)

    def of(self, owner: Owner) -> bytes:
        if self._secret is None:
            self._secret = self._load()
        return owner_secret(self._secret, owner)

    def _load(self) -> bytes:
        if self._path is None:
            return new_secret()
        with private_file.locked(self._path):
            if not self._path.exists():
                private_file.write(self._path, new_secret())
            return self._read(self._path)

    def _read(self, path: Path) -> bytes:
        if path.stat().st_mode & 0o007:
            raise ConfigurationError(f"Others can read the secret in {path.name!r}: `chmod 600` it, then replace it.")
        secret = path.read_bytes()
        if len(secret) < _BYTES:  # with nothing for a secret anybody could sign
            raise ConfigurationError(f"The secret in {path.name!r} is shorter than {_BYTES} bytes: remove the file.")
        return secret
