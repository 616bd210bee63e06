"""Jobs on behalf of a principal: make, look at, list, cancel, try again, delete."""

from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from itertools import chain
from typing import Any

import msgspec

from headrace.batch.jobs import agent, notice
from headrace.batch.jobs.agent import JobInput
from headrace.batch.jobs.file import JobFiles, NewJobFile
from headrace.batch.jobs.tally import Tally, tally_of
from headrace.egress import Egress
from headrace.errors import (
    InvalidField,
    LogCorrupt,
    NotFound,
    PositionGone,
    RunActive,
    StorageFailed,
    StorageFull,
    URLDenied,
)
from headrace.events import JOB_RESULT, Data
from headrace.identity import Owner, Principal
from headrace.ports import Created, Head, Idempotency, StartCommand, child_id
from headrace.runs import Runs, new_run_id


class JobOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller may ask of a job."""

    concurrency: int | None = None
    rate: float | None = None
    name: str | None = None
    webhook: str | None = None


class Jobs:
    """Every call sees only the principal's own jobs: others raise `NotFound`, like unknown ones."""

    def __init__(
        self, runs: Runs, files: JobFiles, egress: Egress, *, concurrency: int, secret_of: Callable[[Owner], str]
    ) -> None:
        """`concurrency`: most operations of one job at the same time. `secret_of` gives the secret by which an owner
        checks webhooks."""
        self._runs = runs
        self._files = files
        self._egress = egress
        self._concurrency = concurrency
        self._secret_of = secret_of

    def new_file(self) -> tuple[str, NewJobFile]:
        """For a job that may come to be, and the id that its run will have."""
        run_id = new_run_id()
        return run_id, self._files.create(run_id)

    async def create(
        self,
        principal: Principal,
        run_id: str,
        file: NewJobFile,
        options: JobOptions,
        idempotency: Idempotency | None = None,
        *,
        retry_of: str | None = None,
    ) -> Created:
        """Commit the job with the operations that were written to `file`. Raises `InvalidField`."""
        self.check(options)
        if options.webhook is not None:
            self._secret_of(principal.owner)  # before there is a job, should it have none
        await file.keep()
        job = JobInput(
            items=file.count,
            concurrency=min(options.concurrency or self._concurrency, self._concurrency),
            rate=options.rate,
            name=options.name,
            webhook=options.webhook,
            retry_of=retry_of,
        )
        command = StartCommand(agent=agent.NAME, input=msgspec.to_builtins(job))
        try:
            created = await self._runs.start(principal, command, idempotency, own=True, run_id=run_id)
        except StorageFailed:
            raise  # it may be there nevertheless, as after a cancel: the next start sees whether it needs its file
        except Exception:
            await self._files.delete(run_id)
            raise
        if not created.new:
            await self._files.delete(run_id)
        await self._start_notice(created.head)
        return created

    def check(self, options: JobOptions) -> None:
        """Raises `InvalidField` for a webhook that may not be asked."""
        if options.webhook is not None:
            try:
                self._egress.check(options.webhook)
            except URLDenied as error:
                raise InvalidField(errors=[{"parameter": "webhook", "detail": error.message}]) from error

    async def get(self, principal: Principal, job_id: str) -> Head:
        head = await self._runs.get(principal, job_id)
        if head.run.agent != agent.NAME:
            raise NotFound
        return head

    async def list(self, principal: Principal, *, limit: int, before: str | None = None) -> Sequence[Head]:
        return await self._runs.list(principal, limit=limit, before=before, agent=agent.NAME)

    async def describe(self, head: Head) -> dict[str, Any]:
        """As it is told to people: what was asked, and how far it has got, which is `None` where the log is gone."""
        job = msgspec.convert(head.run.input, JobInput)
        tally = await self._tally(head)
        remaining = job.items - tally.done if tally is not None else None
        per_second = _per_second(head, tally) if tally is not None else 0.0
        return {
            "id": head.run.id,
            "name": job.name,
            "state": head.state,
            "created": head.run.created,
            "ended": head.ended,
            "counts": {
                "total": job.items,
                "succeeded": tally.succeeded if tally is not None else None,
                "failed": tally.failed if tally is not None else None,
                "remaining": remaining,
            },
            "per_second": per_second,
            "seconds_left": round(remaining / per_second, 1) if remaining and per_second and not head.closed else None,
            "concurrency": job.concurrency,
            "rate": job.rate,
            "retry_of": job.retry_of,
            "cancel_requested": head.cancel_by is not None,
            "webhook": await self._describe_webhook(head, job),
        }

    def webhook_secret(self, owner: Owner) -> str:
        """By which they check what their webhooks are told. Not to be told to anybody else."""
        return self._secret_of(owner)

    async def cancel(self, principal: Principal, job_id: str) -> str:
        """Start no more operations, and cancel those that run. What is done stays."""
        head = await self.get(principal, job_id)
        return await self._runs.cancel(principal, head.run.id)

    async def retry(self, principal: Principal, job_id: str, idempotency: Idempotency | None = None) -> Created:
        """A new job of those operations that did not succeed, whether they failed or were never started.

        Raises `RunActive` while the job has not ended, and `InvalidField` where there is nothing to try again.
        """
        head = await self.get(principal, job_id)
        if not head.closed:
            raise RunActive
        succeeded = await self._succeeded(head)
        run_id, file = self.new_file()
        try:
            async with aclosing(self._files.read(head.run.id)) as batches:
                async for operations in batches:
                    for number, operation in operations:
                        if number not in succeeded:
                            file.write(operation)
            if not file.count:
                raise InvalidField("Every operation of this job has succeeded: there is nothing to try again.")
            job = msgspec.convert(head.run.input, JobInput)
            options = JobOptions(concurrency=job.concurrency, rate=job.rate, name=job.name, webhook=job.webhook)
            return await self.create(principal, run_id, file, options, idempotency, retry_of=head.run.id)
        except FileNotFoundError as error:
            raise NotFound from error
        finally:
            file.discard()

    async def delete(self, principal: Principal, job_id: str) -> None:
        """With its results and the runs of its operations. Raises `RunActive` while it has not ended. A webhook that
        has not taken the notice by now is told nothing more."""
        head = await self.get(principal, job_id)
        if not head.closed:
            raise RunActive
        if head.run.input.get("webhook") is not None:
            await self._end_notice(principal, head)
        await self._runs.delete(principal, head.run.id)
        await self._files.delete(head.run.id)

    async def _succeeded(self, head: Head) -> set[int]:
        lines: set[int] = set()
        async for blocks in self._runs.read(head, 0):
            for event in chain.from_iterable(block.events for block in blocks):
                if isinstance(event, Data) and event.name == JOB_RESULT and event.value["status"] < 400:
                    lines.add(event.value["line"])
        return lines

    async def _start_notice(self, head: Head) -> None:
        """At once, so that no way in which the job can end goes past it. Where that cannot be, the job sees to it."""
        url = head.run.input.get("webhook")
        if url is not None:
            with suppress(StorageFull):
                await notice.start(self._runs, head.run, url)

    async def _end_notice(self, principal: Principal, head: Head) -> None:
        notice_id = child_id(head.run.id, notice.NUMBER)
        with suppress(NotFound):
            await self._runs.cancel(principal, notice_id)
            await self._runs.result(await self._runs.get(principal, notice_id))

    async def _tally(self, head: Head) -> Tally | None:
        try:
            return await tally_of(self._runs, head)
        except (PositionGone, LogCorrupt, NotFound):  # of one job, which a list of others has nothing to do with
            return None

    async def _describe_webhook(self, head: Head, job: JobInput) -> dict[str, Any] | None:
        if job.webhook is None:
            return None
        state = "waiting"
        with suppress(NotFound):
            sent = await self._runs.get(head.run.principal, child_id(head.run.id, notice.NUMBER))
            state = _NOTICES.get(sent.state, state)
        return {"url": job.webhook, "state": state}


_NOTICES = {"completed": "delivered", "failed": "failed", "cancelled": "cancelled"}


def _per_second(head: Head, tally: Tally) -> float:
    """Of the last seconds; of a job that has ended, of all of its time."""
    if head.ended is None or head.ended <= head.run.created:
        return tally.per_second
    return round(tally.done / (head.ended - head.run.created), 2)
