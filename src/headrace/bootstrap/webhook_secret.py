"""What webhooks are signed with: made when the first one is needed."""

from headrace.batch.jobs.notice import owner_secret
from headrace.identity import Owner
from headrace.server.auth import private_file
from headrace.settings import Settings
from headrace.webhook import new_secret

SECRET_FILE = "webhook.secret"  # noqa: S105  the name of a file


class WebhookSecret:
    """Kept in the data directory; by the engine that keeps nothing, for this process only."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.data / SECRET_FILE if settings.engine != "memory" else None
        self._secret: bytes | None = None

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
            return self._path.read_bytes()
