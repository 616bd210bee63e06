"""Batches and batch jobs from Python."""

from contextlib import aclosing
from pathlib import Path

import pytest
from tests.server.serving import Serving, settings

from headrace.client import AsyncClient, Client, JobEnd, JobProgress, JobResult
from headrace.errors import BatchFileInvalid, Cancelled, InvalidField, NotFound, RunActive


@pytest.fixture
async def client(tmp_path: Path):  # type: ignore[no-untyped-def]
    async with Serving(settings(tmp_path)).open() as serving, AsyncClient(serving.url) as client:
        yield serving, client


async def test_several_calls_at_once(client: tuple[Serving, AsyncClient]) -> None:
    requests = [
        {"id": name, "method": "POST", "path": "/api/agent/chat", "body": {"message": name}} for name in ("a", "b")
    ]
    responses = await client[1].batch(requests)
    assert [(response["id"], response["body"]["response"]) for response in responses] == [("a", "a"), ("b", "b")]
    with pytest.raises(InvalidField):
        await client[1].batch([])


async def test_a_job_of_operations_from_here(client: tuple[Serving, AsyncClient]) -> None:
    operations = [{"id": str(number), "body": {"message": f"item {number}"}} for number in range(20)]
    job = await client[1].start_job(operations, concurrency=3, name="twenty")
    results = {result.id: result async for result in job.results()}
    assert {id: result.body["response"] for id, result in results.items()} == {str(n): f"item {n}" for n in range(20)}
    info = await job.info()
    assert (info.state, info.name, info.concurrency, info.counts.succeeded) == ("completed", "twenty", 3, 20)
    assert [each.id async for each in client[1].jobs()] == [job.id]
    await job.delete()
    await job.delete()  # as good as deleted
    with pytest.raises(NotFound):
        await job.info()


async def test_a_job_of_a_file_is_made_once(client: tuple[Serving, AsyncClient], tmp_path: Path) -> None:
    path = tmp_path / "operations.jsonl"
    path.write_text('{"body": {"message": "one"}}\n{"body": {"message": "two", "agent_id": "fail"}}\n')
    first = await client[1].start_job(path, idempotency_key="k")
    assert (await client[1].start_job(path, idempotency_key="k")).id == first.id
    async with aclosing(first.follow()) as items:
        news = [item async for item in items]
    assert isinstance(news[0].news, JobProgress)
    assert news[0].news.total == 2
    assert isinstance(news[-1].news, JobEnd)
    results = [item.news for item in news if isinstance(item.news, JobResult)]
    assert sorted((result.id, result.failed) for result in results) == [("1", False), ("2", True)]
    async with aclosing(first.follow(after=news[0].position)) as items:
        assert [item async for item in items] == news[1:]
    assert [item async for item in first.follow(after=news[-1].position)] == []
    again = await first.retry()
    assert [result.id async for result in again.results()] == ["2"]


async def test_what_is_wrong_is_raised(client: tuple[Serving, AsyncClient]) -> None:
    with pytest.raises(BatchFileInvalid) as caught:
        await client[1].start_job([{"body": {"message": ""}}])
    assert caught.value.extra["errors"][0]["line"] == 1
    job = await client[1].start_job([{"body": {"message": "wait", "agent_id": "stall"}}])
    with pytest.raises(RunActive):
        await job.delete()
    with pytest.raises(RunActive):
        await job.retry()
    await job.cancel()
    with pytest.raises(Cancelled):
        [result async for result in job.results()]


async def test_without_await(tmp_path: Path) -> None:
    import asyncio

    def use(url: str) -> list[str]:
        with Client(url) as client:
            job = client.start_job([{"body": {"message": "one"}}])
            assert client.job(job.id).info().counts.total == 1
            texts = [result.body["response"] for result in job.results()]
            [listed] = list(client.jobs())
            assert listed.id == job.id
            response = client.batch([{"id": "a", "method": "GET", "path": "/api/tools"}])
            assert response[0]["status"] == 200
            return texts

    async with Serving(settings(tmp_path)).open() as serving:
        assert await asyncio.to_thread(use, serving.url) == ["one"]
