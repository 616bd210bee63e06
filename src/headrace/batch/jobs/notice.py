"""Tells a webhook how a job has ended: as a run of its own, which waits for the job, and is gone on with after a crash.

A receiver may hear of one job more than once, each time with the same id.
"""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec
import structlog

from headrace.errors import InvalidField, ToolUnavailable
from headrace.events import OUTPUT, Data
from headrace.identity import Owner
from headrace.ports import AgentItem, Head, Run, RunContext, StartCommand
from headrace.runs import Birth, Runs
from headrace.webhook import Webhooks

logger = structlog.get_logger("headrace.batch")

NAME = "batch_notice"
"""Of the agent."""
NUMBER = 0
"""Which child of the job it is: the operations count from 1."""

Describe: TypeAlias = Callable[[Head], Awaitable[dict[str, Any]]]


class NoticeInput(msgspec.Struct, frozen=True, kw_only=True):
    """What it reads of a run's input."""

    job: str
    url: str


class NoticeAgent:
    resumable = True

    def __init__(self, runs: Runs, webhooks: Webhooks, describe: Describe, *, secret: bytes) -> None:
        """`secret`: of the owner, see `owner_secret`."""
        self._runs = runs
        self._webhooks = webhooks
        self._describe = describe
        self._secret = secret
        self._task: asyncio.Task[object] | None = None

    async def run(self, context: RunContext) -> AsyncIterator[AgentItem]:
        self._task = asyncio.current_task()
        try:
            notice = msgspec.convert(context.run.input, NoticeInput)
        except msgspec.ValidationError as error:
            raise InvalidField from error
        principal = context.run.principal
        head = await self._runs.get(principal, notice.job)
        if not head.closed:
            await self._runs.result(head)
            head = await self._runs.get(principal, notice.job)
        document = {
            "type": f"batch_job.{head.state}",
            "timestamp": datetime.fromtimestamp(head.ended or 0.0, UTC).isoformat(),
            "data": await self._describe(head),
        }
        delivery = await self._webhooks.deliver(notice.url, context.run.id, document, secret=self._secret)
        yield Data(name=OUTPUT, value=delivery._asdict())
        if not delivery.delivered:
            raise ToolUnavailable("The webhook did not take the message.")

    async def cancel(self) -> None:
        """At once: there is nothing to be ended in order."""
        if self._task is not None:
            self._task.cancel()


async def start(runs: Runs, job: Run, url: str) -> None:
    """Made once, however often it is asked for. Raises `StorageFull`."""
    command = StartCommand(agent=NAME, input={"job": job.id, "url": url})
    await runs.start(job.principal, command, own=True, birth=Birth(job, NUMBER))


def owner_secret(server_secret: bytes, owner: Owner) -> bytes:
    """Of one owner: so that nobody can sign what another one receives. 32 bytes."""
    name = f"{len(owner.tenant)}:{owner.tenant}{owner.subject}"
    return hmac.digest(server_secret, f"headrace webhook {name}".encode(), hashlib.sha256)
