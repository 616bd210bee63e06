"""`/api/batches`: batch jobs."""

import hashlib
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from headrace.batch.jobs.service import JobOptions
from headrace.errors import BatchDisabled, BodyTooLarge, Draining, RunActive, UnsupportedMediaType
from headrace.ports import Created, Head, Idempotency
from headrace.position import Position
from headrace.protocols.batch_job import JobLines as ResultLines
from headrace.protocols.payload import to_json
from headrace.server import accept
from headrace.server.endpoints.parameters import (
    After,
    Caller,
    Door,
    RootPath,
    idempotency_key,
)
from headrace.server.endpoints.runs import page
from headrace.server.follow import check_frame, follow
from headrace.server.framing import NDJSON, SSE, LinesOnly
from headrace.server.job_lines import JobLines
from headrace.server.services import Services

router = APIRouter(prefix="/api/batches", tags=["batch"])

_FILE_TYPES = frozenset({"application/jsonl", "application/x-ndjson", "application/jsonlines"})


class _ResultFile(LinesOnly):
    """What the end of the server cuts says so in its last line: nothing else tells it from a whole file."""

    goodbye = to_json({"error": Draining().info()}) + b"\n"


_RESULT_FILE = _ResultFile()


async def _options(
    concurrency: Annotated[int | None, Query(ge=1, le=1000, description="Operations at the same time.")] = None,
    rate: Annotated[float | None, Query(gt=0, le=100_000, description="Operations that start each second.")] = None,
    name: Annotated[str | None, Query(min_length=1, max_length=128, description="For people.")] = None,
    webhook: Annotated[str | None, Query(max_length=2048, description="Is told when the job has ended.")] = None,
) -> JobOptions:
    return JobOptions(concurrency=concurrency, rate=rate, name=name, webhook=webhook)


@router.post(
    "",
    status_code=201,
    summary="Start a batch job",
    openapi_extra={"requestBody": {"required": True, "content": {"application/jsonl": {"schema": {"type": "string"}}}}},
)
async def create(
    request: Request,
    principal: Caller,
    services: Door,
    root_path: RootPath,
    options: Annotated[JobOptions, Depends(_options)],
) -> Response:
    """The body is a file of operations, one a line: `{"id", "method", "path", "body"}`. All lines are looked through
    before the first one is started."""
    _check_taken(services)
    _check_headers(services, request)
    services.jobs.check(options)
    key = idempotency_key(request)
    run_id, file = services.jobs.new_file()
    try:
        lines = JobLines(services, principal, file)
        async for chunk in request.stream():
            await lines.feed(chunk)
        await lines.end()
        created = await services.jobs.create(
            principal, run_id, file, options, _idempotency(request, key, lines.digest.digest())
        )
    except ClientDisconnect:
        return Response(status_code=499)  # to nobody
    finally:
        file.discard()
    return await _made(services, created, root_path)


@router.get("", summary="List your batch jobs")
async def list_jobs(
    principal: Caller,
    services: Door,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[str | None, Query(max_length=128, description="A job id: the page after it.")] = None,
) -> Response:
    heads = await services.jobs.list(principal, limit=limit + 1, before=before)
    shown = heads[:limit]
    following = shown[-1].run.id if len(heads) > limit else None
    return JSONResponse({"batches": [await services.jobs.describe(head) for head in shown], "next": following})


@router.get("/{job_id}", summary="Look at a batch job")
async def look(job_id: str, principal: Caller, services: Door, root_path: RootPath) -> Response:
    return JSONResponse(await _described(services, await services.jobs.get(principal, job_id), root_path))


@router.get("/{job_id}/results", summary="Read or follow the results")
async def results(
    request: Request,
    job_id: str,
    principal: Caller,
    services: Door,
    root_path: RootPath,
    after: After,
    limit: Annotated[int, Query(ge=1, le=1000, description="Results of a JSON page.")] = 100,
) -> Response:
    """In the order in which they come, while the job runs as well. SSE or NDJSON follow the job to its end and can be
    resumed; JSON gives one page of what there is."""
    offered = ["application/json", "text/event-stream", "application/x-ndjson"]
    media_type = accept.choose(request.headers.get("accept"), offered)
    head = await services.jobs.get(principal, job_id)
    protocol = services.protocols["batch_job"]
    await check_frame(services, head, protocol, after)
    if media_type == "application/json":
        return await page(services, head, protocol.name, after, None, limit)
    if media_type == "text/event-stream" and head.closed and after == Position(head.run.epoch, head.offset):
        return Response(status_code=204)  # tells an EventSource to stop coming back
    framing = SSE if media_type == "text/event-stream" else NDJSON
    return follow(services, principal, head, protocol, framing, root_path=root_path, after=after)


@router.get("/{job_id}/files/{which}", summary="Download the results of an ended job")
async def download(
    job_id: str, which: Literal["succeeded", "failed"], principal: Caller, services: Door, root_path: RootPath
) -> Response:
    """As JSON lines: those that succeeded, or those that failed. 409 while the job has not ended."""
    head = await services.jobs.get(principal, job_id)
    if not head.closed:
        raise RunActive("The job has not ended: follow its results, or come back later.")
    response = follow(services, principal, head, ResultLines(which), _RESULT_FILE, root_path=root_path)
    del response.headers["Location"]  # of a view that no other route has
    return response


@router.post("/{job_id}/cancel", status_code=202, summary="Cancel a batch job")
async def cancel(job_id: str, principal: Caller, services: Door, root_path: RootPath) -> Response:
    """What is done stays. 202 for the first request, 200 once it was asked for before or the job has ended."""
    outcome = await services.jobs.cancel(principal, job_id)
    head = await services.jobs.get(principal, job_id)
    return JSONResponse(await _described(services, head, root_path), 202 if outcome == "requested" else 200)


@router.post("/{job_id}/retry", status_code=201, summary="Try again what did not succeed")
async def retry(request: Request, job_id: str, principal: Caller, services: Door, root_path: RootPath) -> Response:
    """A new job of the operations that failed or were never started."""
    _check_taken(services)
    asked = _idempotency(request, idempotency_key(request))
    return await _made(services, await services.jobs.retry(principal, job_id, asked), root_path)


@router.delete("/{job_id}", status_code=204, summary="Delete a batch job that has ended")
async def delete(job_id: str, principal: Caller, services: Door) -> Response:
    await services.jobs.delete(principal, job_id)
    return Response(status_code=204)


def _check_taken(services: Services) -> None:
    if not services.batch.enabled:
        raise BatchDisabled
    if services.open_streams.draining:
        raise Draining(retry_after=1)


def _check_headers(services: Services, request: Request) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in _FILE_TYPES:
        raise UnsupportedMediaType("Send the file as `Content-Type: application/jsonl`, without Content-Encoding.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType
    if int(request.headers.get("content-length", 0)) > services.batch.max_bytes:
        raise BodyTooLarge


def _idempotency(request: Request, key: str | None, digest: bytes = b"") -> Idempotency | None:
    """`digest`: of the body, where it says anything."""
    if key is None:
        return None
    asked = b"\n".join([b"POST", request.url.path.encode(), request.scope["query_string"], digest])
    return Idempotency(key, hashlib.sha256(asked).hexdigest())


async def _made(services: Services, created: Created, root_path: str) -> Response:
    """The one answer that tells the secret of the webhook."""
    described = await _described(services, created.head, root_path)
    if described["webhook"] is not None:
        described["webhook"]["secret"] = services.jobs.webhook_secret(created.head.run.owner)
    headers = {"Location": f"{root_path}/api/batches/{created.head.run.id}"}
    return JSONResponse(described, 201 if created.new else 200, headers)


async def _described(services: Services, head: Head, root_path: str) -> dict[str, Any]:
    path = f"{root_path}/api/batches/{head.run.id}"
    files = {which: f"{path}/files/{which}" for which in ("succeeded", "failed")} if head.closed else None
    return {**await services.jobs.describe(head), "results": f"{path}/results", "files": files}
