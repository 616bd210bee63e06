"""API keys and switched-off subjects: the file `auth.json` in the data directory.

The file holds the SHA-256 of each key, never the key. That needs no salt and no slow hash, since a key is 256 random
bits; and since a look-up goes by the digest, its time says nothing about the keys there are.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from headrace.errors import ConfigurationError, InvalidField, NotFound
from headrace.identity import Limits, Owner, Principal
from headrace.server.auth import private_file
from headrace.server.auth.credential import is_name

PREFIX = "hr_"


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is known of a key: everything but the key."""

    id: str
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    subject: str
    tenant: str = "default"
    scopes: tuple[str, ...] = ()
    created: float
    """Epoch seconds."""
    disabled: bool = False
    limits: Limits | None = None
    """Instead of the server's."""

    def principal(self, default: Limits) -> Principal:
        return Principal(
            subject=self.subject,
            tenant=self.tenant,
            scopes=frozenset(self.scopes),
            limits=self.limits or default,
            credential_id=self.id,
        )


class NewKey(NamedTuple):
    key: ApiKey
    secret: str
    """To be shown to its owner now; nobody can find it again."""


class _Content(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    keys: tuple[ApiKey, ...] = ()
    disabled_subjects: tuple[Owner, ...] = ()


class Keys:
    """The content of a key file at one moment, ready for look-ups."""

    def __init__(self, keys: Sequence[ApiKey], disabled_subjects: Iterable[Owner]) -> None:
        self.all = keys
        self.disabled_subjects = frozenset(disabled_subjects)
        self._by_id = {key.id: key for key in keys}
        self._by_digest = {key.sha256: key for key in keys}

    def find(self, secret: str) -> ApiKey | None:
        """The key whose secret this is, unless it is disabled."""
        key = self._by_digest.get(_digest(secret))
        return None if key is None or key.disabled else key

    def grants(self, principal: Principal) -> bool:
        """Whether the key that made `principal` still gives it all that it has."""
        key = self._by_id.get(principal.credential_id or "")
        return (
            key is not None
            and not key.disabled
            and Owner(key.tenant, key.subject) == principal.owner
            and principal.scopes.issubset(key.scopes)
        )


def read(path: Path) -> Keys:
    """The keys in the file at `path`; none where there is no file. Raises `ConfigurationError` for a damaged one."""
    content = _read(path)
    return Keys(content.keys, content.disabled_subjects)


class KeyFile:
    """Changes the key file. Several processes may do so at once; a running server notices within seconds."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock

    def list(self) -> Sequence[ApiKey]:
        """In the order in which they were made."""
        return _read(self._path).keys

    def create(
        self, subject: str, *, tenant: str = "default", scopes: Sequence[str] = (), limits: Limits | None = None
    ) -> NewKey:
        """A new key for `subject`. Raises `InvalidField` for names that cannot be."""
        _check_names(subject=subject, tenant=tenant, scopes=scopes)
        secret = PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(
            id="key_" + secrets.token_hex(6),
            sha256=_digest(secret),
            subject=subject,
            tenant=tenant,
            scopes=tuple(scopes),
            created=self._clock(),
            limits=limits,
        )
        self._change(lambda content: msgspec.structs.replace(content, keys=(*content.keys, key)))
        return NewKey(key, secret)

    def disable(self, key_id: str) -> ApiKey:
        """Switch a key off for good. Raises `NotFound`. Twice is as good as once."""
        disabled: list[ApiKey] = []

        def change(content: _Content) -> _Content:
            old = next((key for key in content.keys if key.id == key_id), None)
            if old is None:
                raise NotFound
            new = msgspec.structs.replace(old, disabled=True)
            disabled.append(new)
            return msgspec.structs.replace(content, keys=tuple(new if key is old else key for key in content.keys))

        self._change(change)
        return disabled[0]

    def disabled_subjects(self) -> Sequence[Owner]:
        return _read(self._path).disabled_subjects

    def disable_subject(self, owner: Owner) -> None:
        """Refuse every key and every token of a subject."""
        self._change(
            lambda content: msgspec.structs.replace(
                content, disabled_subjects=(*(other for other in content.disabled_subjects if other != owner), owner)
            )
        )

    def enable_subject(self, owner: Owner) -> None:
        """Take `disable_subject` back."""
        self._change(
            lambda content: msgspec.structs.replace(
                content, disabled_subjects=tuple(other for other in content.disabled_subjects if other != owner)
            )
        )

    def _change(self, change: Callable[[_Content], _Content]) -> None:
        with private_file.locked(self._path):
            content = change(_read(self._path))
            private_file.write(self._path, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def _read(path: Path) -> _Content:
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_Content)
    except FileNotFoundError:
        return _Content()
    except OSError as error:
        raise ConfigurationError(f"The key file {path.name!r} cannot be read: check its owner and mode.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The key file {path.name!r} is damaged ({error}): mend it, or put a backup in its place."
        ) from error
    if len({key.id for key in content.keys}) < len(content.keys):
        raise ConfigurationError(f"The key file {path.name!r} has two keys with the same id: remove one of them.")
    return content


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _check_names(*, subject: str, tenant: str, scopes: Sequence[str]) -> None:
    errors = [
        {"pointer": f"/{field}", "detail": "1 to 255 printable characters"}
        for field, value in (("subject", subject), ("tenant", tenant))
        if not is_name(value)
    ]
    errors += [
        {"pointer": f"/scopes/{index}", "detail": "1 to 255 printable characters without spaces"}
        for index, scope in enumerate(scopes)
        if not is_name(scope) or " " in scope
    ]
    if errors:
        raise InvalidField(errors=errors)
