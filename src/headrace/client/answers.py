"""What a server says, as structs and errors."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from headrace.errors import BY_CODE, AuthRevoked, Draining, HeadraceError, UnexpectedAnswer, Unreachable
from headrace.events import AnyEvent, ErrorInfo, Unknown, decode

_BEHIND_A_PROXY = frozenset({502, 503, 504})
"""What a proxy says by itself while a server restarts."""
_IN_THE_CLASS = frozenset({"type", "title", "status", "detail", "code"})


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A run and how far it has got. Times are epoch seconds."""

    id: str
    agent: str
    state: Literal["queued", "running", "completed", "failed", "cancelled"]
    created: float
    ended: float | None = None
    position: str
    """After the last event."""
    first_available: str
    """Before the first event that is still kept."""
    input: dict[str, Any] = {}
    conversation_id: str | None = None
    parent_run_id: str | None = None
    attempt: int = 0
    cancel_requested: bool = False


class RunPage(msgspec.Struct, frozen=True, kw_only=True):
    runs: list[RunInfo]
    next: str | None = None


class LoggedEvent(NamedTuple):
    """An event and where to go on after it."""

    position: str
    event: AnyEvent | Unknown


class EventLine(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    data: msgspec.Raw

    def logged(self) -> LoggedEvent:
        return LoggedEvent(self.id, decode(bytes(self.data)))


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    events: list[EventLine]
    next: str
    end: bool


class FeedItem(NamedTuple):
    """An event of any of your runs, and where the feed goes on after it."""

    position: str
    run_id: str
    event: AnyEvent | Unknown


class _FeedData(msgspec.Struct, frozen=True):
    run_id: str


class _InBand(msgspec.Struct, frozen=True):
    """`error` in the native view; in a view that has a status only, `message` and `code`."""

    error: ErrorInfo | None = None
    message: str = ""
    code: int = 500


def event_of(position: str, data: bytes) -> LoggedEvent:
    """Raises `msgspec.MsgspecError` on damage, as everything here that decodes."""
    return LoggedEvent(position, decode(data))


def feed_item(position: str, data: bytes) -> FeedItem:
    return FeedItem(position, msgspec.json.decode(data, type=_FeedData).run_id, decode(data))


def in_band_error(data: bytes) -> HeadraceError:
    """The error that ends a stream without being in the log, such as a credential that was revoked."""
    told = msgspec.json.decode(data, type=_InBand)
    if told.error is not None:
        return error_of(told.error)
    by_status = {cls.status: cls for cls in (AuthRevoked, Draining)}
    return by_status.get(told.code, HeadraceError)(told.message)


def error_of(info: ErrorInfo) -> HeadraceError:
    """As the class of its code. A code of a newer server becomes a plain `HeadraceError`, the code kept in `extra`."""
    cls = BY_CODE.get(info.code)
    if cls is not None:
        return cls(info.message)
    return HeadraceError(info.message, code=info.code)


def problem(status: int, headers: Mapping[str, str], body: bytes) -> HeadraceError:
    """A problem document as the class of its code, with its other members in `extra`."""
    try:
        document = msgspec.json.decode(body, type=dict[str, Any])
        told = {"code": document["code"], "message": document["detail"], "status": document["status"]}
        error = error_of(msgspec.convert(told, ErrorInfo))
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError):
        return Unreachable() if status in _BEHIND_A_PROXY else UnexpectedAnswer()
    error.retry_after = _seconds(headers.get("Retry-After"))
    error.extra |= {name: value for name, value in document.items() if name not in _IN_THE_CLASS}
    return error


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() else None
