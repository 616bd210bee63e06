"""`headrace batch run`."""

from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from headrace.cli.batch.begun_job import BegunJob
from headrace.cli.batch.progress import JobBar
from headrace.cli.batch.result_files import ResultFiles
from headrace.cli.output import line, remark
from headrace.cli.server import LOCAL_SERVER, Server, connected
from headrace.client import AsyncClient, JobEnd, JobHandle, JobResult
from headrace.errors import HeadraceError, NotFound, StreamCut


async def run(
    file: Path,
    /,
    *,
    server: Server = LOCAL_SERVER,
    output: Annotated[Path | None, Parameter(env_var="HEADRACE_OUTPUT")] = None,
    concurrency: Annotated[int | None, Parameter(env_var="HEADRACE_CONCURRENCY")] = None,
    rate: Annotated[float | None, Parameter(env_var="HEADRACE_RATE")] = None,
    name: Annotated[str | None, Parameter(env_var="HEADRACE_NAME")] = None,
    webhook: Annotated[str | None, Parameter(env_var="HEADRACE_WEBHOOK")] = None,
) -> None:
    """Work through a file of operations, and write the results as they come.

    Ctrl-C only stops looking: the same command goes on with the job, and `headrace batch cancel` ends it. The exit code
    is 1 where an operation failed.

    Parameters
    ----------
    file
        JSON lines, each `{"id": ..., "body": {"message": ...}}`, or with the `method` and `path` of another operation.
    output
        File of the results; those that failed go beside it. By default both are named after the file.
    concurrency
        Operations at the same time, at most.
    rate
        Operations that start each second, at most.
    name
        What people know the job by.
    webhook
        URL that is told when the job has ended.
    """
    options = {"concurrency": concurrency, "rate": rate, "name": name, "webhook": webhook}
    given = {option: str(value) for option, value in options.items() if value is not None}
    begun, kept = BegunJob.of(file, server.url, given)
    with ResultFiles.beside(file, output, again=begun.again) as files:
        async with connected(server) as client:
            job = await _job(client, file, options, begun, kept, files)
            end = await _follow(job, files)
    begun.forget(kept)
    end.check()


async def _job(
    client: AsyncClient, file: Path, options: dict[str, Any], begun: BegunJob, kept: Path, files: ResultFiles
) -> JobHandle:
    """The job that was begun, or a new one."""
    if begun.job is not None and await _is_there(client.job(begun.job)):
        remark(f"Going on with {begun.job}.")
        return client.job(begun.job)
    begun.keep(kept)  # before it is sent: what comes back may be lost
    try:
        job = await client.start_job(file, idempotency_key=begun.key, **options)
    except HeadraceError as error:
        if error.status < 500:  # it was refused, so there is none
            begun.forget(kept)
            files.discard()
        raise
    begun.job = job.id
    begun.keep(kept)
    remark(f"{job.id} works on it. Ctrl-C only stops looking; the same command goes on with it.")
    return job


async def _follow(job: JobHandle, files: ResultFiles) -> JobEnd:
    """Write every result to its file, and show how far the job has got. How it ended, which is an error where an
    operation failed."""
    end = JobEnd(error=StreamCut.detail)
    with JobBar() as bar:
        async with aclosing(job.follow()) as items:
            async for _, news in items:
                bar.show(news)
                if isinstance(news, JobResult):
                    files.write(news)
                elif isinstance(news, JobEnd):
                    end = news
    line(f"{bar.succeeded:,} succeeded: {files.succeeded}")
    if bar.failed:
        line(f"{bar.failed:,} failed: {files.failed}")
    if bar.failed and end.error is None:
        return JobEnd(error=f"Not all have succeeded. To try the others again: headrace batch retry {job.id}")
    return end


async def _is_there(job: JobHandle) -> bool:
    try:
        await job.info()
    except NotFound:
        return False
    return True
