"""Whether the owner of a run lets a call be run."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from headrace import partial_json
from headrace.events import AnyEvent, InputReceived, InputRequested
from headrace.ports import Inbox, Input, ToolCall

APPROVAL_SECONDS = 300.0
"""Undecided for so long means no."""
TIMEOUT = "timeout"
"""Who decides then."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"approved": {"type": "boolean"}, "reason": {"type": "string", "maxLength": 1000}},
    "required": ["approved"],
    "additionalProperties": False,
}


class Approval:
    """Of one call. `events` asks, unless an earlier attempt has, and waits; then `granted` and `reason` are known."""

    def __init__(
        self, request_id: str, call: ToolCall, *, asked: InputRequested | None, answered: InputReceived | None
    ) -> None:
        """`asked` and `answered` are what the log has of it already."""
        self.granted = False
        self.reason = ""
        self._request_id = request_id
        self._call = call
        self._asked = asked
        self._answered = answered
        if answered is not None:
            self._take(answered.value)

    @property
    def known(self) -> bool:
        """The log has the answer already."""
        return self._answered is not None

    async def events(self, inbox: Inbox | None, seconds: float) -> AsyncGenerator[AnyEvent, None]:
        if self._answered is not None:
            return
        if self._asked is None:
            self._asked = self._request()
            yield self._asked
        answer = await self._answer(inbox, self._asked.time + seconds - time.time(), seconds)
        self._take(answer.value)
        yield InputReceived(request_id=self._request_id, value=answer.value, by=answer.by)

    def _request(self) -> InputRequested:
        subject = {"tool_call_id": self._call.id, "tool": self._call.name, "arguments": _readable(self._call.arguments)}
        return InputRequested(request_id=self._request_id, type="approval", schema=SCHEMA, subject=subject)

    async def _answer(self, inbox: Inbox | None, left: float, most: float) -> Input:
        """`left` is by the clock on the wall, since an earlier attempt may have asked: so it is not trusted far."""
        no = Input(self._request_id, {"approved": False, "reason": "nobody answered in time"}, TIMEOUT)
        if inbox is None:
            return no
        try:
            async with asyncio.timeout(min(max(left, 0.0), most)):
                return await inbox.answer(self._request_id)
        except TimeoutError:
            return await inbox.decide(no)

    def _take(self, value: Any) -> None:
        self.granted = isinstance(value, dict) and value.get("approved") is True
        self.reason = str(value.get("reason", "")) if isinstance(value, dict) else ""


def _readable(arguments: str) -> Any:
    """For people who decide: as JSON, or as the text that is none. That is not run, but they need not know."""
    text = arguments.strip() or "{}"
    if not text.startswith("{"):
        return arguments
    try:
        return partial_json.decode(text)
    except ValueError:
        return arguments
