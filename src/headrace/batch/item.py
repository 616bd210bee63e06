"""One call of a batch, and what it was answered."""

from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.errors import HeadraceError


class Item(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    method: str
    path: str
    body: dict[str, Any] | None = None
    headers: Mapping[str, str] = {}
    depends_on: tuple[str, ...] = msgspec.field(default=(), name="dependsOn")


class Response(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`body` where it went well, else `error`, in words, and `code`, which is stable."""

    id: str
    status: int
    body: Any = msgspec.UNSET
    error: str | None = None
    code: str | None = None
    errors: list[dict[str, Any]] | None = None
    budget: str | None = None
    """Which one was used up."""
    run_id: str | None = None
    """Of the run that the call was."""

    @property
    def failed(self) -> bool:
        return self.status >= 400


def refusal(item_id: str, error: HeadraceError, *, run_id: str | None = None) -> Response:
    """What an error of ours is as a response."""
    return Response(
        id=item_id,
        status=error.status,
        error=error.message,
        code=error.code,
        errors=error.extra.get("errors"),
        budget=error.extra.get("budget"),
        run_id=run_id,
    )
