"""Jobs on behalf of a principal: make, look at, list, cancel, try again, delete."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import msgspec

from headrace.batch.jobs import agent, notice
from headrace.batch.jobs.agent import JobInput
from headrace.batch.jobs.file import JobFiles, NewJobFile
from headrace.batch.jobs.tally import tally_of
from headrace.egress import Egress
from headrace.errors import InvalidField, NotFound, RunActive, URLDenied
from headrace.events import JOB_RESULT, Data
from headrace.identity import Owner, Principal
from headrace.ports import Created, Head, Idempotency, StartCommand, child_id
from headrace.runs import Birth, Runs, new_run_id


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
        created: Created | None = None
        try:
            created = await self._runs.start(principal, command, idempotency, own=True, run_id=run_id)
            await self._start_notice(principal, created.head)
        finally:
            if created is None or not created.new:
                await self._files.delete(run_id)
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
        """As it is told to people: what was asked, and how far it has got."""
        job = msgspec.convert(head.run.input, JobInput)
        tally = await tally_of(self._runs, head)
        remaining = job.items - tally.done
        per_second = tally.per_second
        if head.ended is not None and head.ended > head.run.created:
            per_second = round(tally.done / (head.ended - head.run.created), 2)
        return {
            "id": head.run.id,
            "name": job.name,
            "state": head.state,
            "created": head.run.created,
            "ended": head.ended,
            "counts": {
                "total": job.items,
                "succeeded": tally.succeeded,
                "failed": tally.failed,
                "remaining": remaining,
            },
            "per_second": per_second,
            "seconds_left": round(remaining / per_second, 1) if per_second and not head.closed else None,
            "concurrency": job.concurrency,
            "rate": job.rate,
            "retry_of": job.retry_of,
            "cancel_requested": head.cancel_by is not None,
            "webhook": await self._describe_webhook(head, job),
        }

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
            async for operations in self._files.read(head.run.id):
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
        """With its results and the runs of its operations. Raises `RunActive` while it has not ended."""
        head = await self.get(principal, job_id)
        await self._runs.delete(principal, head.run.id)
        await self._files.delete(head.run.id)

    async def _succeeded(self, head: Head) -> set[int]:
        lines: set[int] = set()
        async for blocks in self._runs.read(head, 0):
            for event in chain.from_iterable(block.events for block in blocks):
                if isinstance(event, Data) and event.name == JOB_RESULT and event.value["status"] < 400:
                    lines.add(event.value["line"])
        return lines

    async def _start_notice(self, principal: Principal, head: Head) -> None:
        """At once, so that no way in which the job can end goes past it. Made once, however often it is asked for."""
        url = head.run.input.get("webhook")
        if url is None:
            return
        command = StartCommand(agent=notice.NAME, input={"job": head.run.id, "url": url})
        await self._runs.start(principal, command, own=True, birth=Birth(head.run, notice.NUMBER))

    async def _describe_webhook(self, head: Head, job: JobInput) -> dict[str, Any] | None:
        if job.webhook is None:
            return None
        try:
            sent = await self._runs.get(head.run.principal, child_id(head.run.id, notice.NUMBER))
            state = {"completed": "delivered", "failed": "failed"}.get(sent.state, "waiting")
        except NotFound:
            state = "waiting"
        return {"url": job.webhook, "state": state, "secret": self._secret_of(head.run.owner)}
