"""What is measured of batches: one of ten items, and a job of thousands of operations."""

import http.client
import json
import statistics
import time
from typing import Any

import msgspec

from measure import cpu_seconds, resident_kib
from servers import Server

ITEMS = 10
_POLL_SECONDS = 0.1


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Ten chat items in one request, each with a second of model time."""

    by_single: float
    """Time of the whole batch by that of one such call by itself."""
    cpu_ms: float
    """User and system time of the server per item."""
    failed: int


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Operations that are answered at once, by a server that has both cores."""

    items_per_second: float
    """From the start of the upload to the end of the job."""
    cpu_us: float
    """Per operation."""
    grown_kib: float
    """Resident memory at the end, over that after a tenth of the operations."""
    result_ms: float
    """From when a result was made to its arrival at a live reader, the median over a job."""
    failed: int


def batch(server: Server) -> Batch:
    body = {"message": "item"}
    began = time.perf_counter()
    ask(server, "POST", "/api/agent/chat", json.dumps(body).encode(), "application/json")
    single = time.perf_counter() - began
    requests = [{"id": str(n), "method": "POST", "path": "/api/agent/chat", "body": body} for n in range(ITEMS)]
    before, began = cpu_seconds(server.pid), time.perf_counter()
    answer = ask(server, "POST", "/api/batch", json.dumps({"requests": requests}).encode(), "application/json")
    whole = time.perf_counter() - began
    return Batch(
        by_single=whole / single,
        cpu_ms=(cpu_seconds(server.pid) - before) * 1e3 / ITEMS,
        failed=sum(response["status"] != 200 for response in answer["responses"]),
    )


def job(server: Server, items: int) -> Job:
    delay = result_ms(server, items // 10)
    before, began = cpu_seconds(server.pid), time.perf_counter()
    described = start(server, items)
    early_kib = 0.0
    while described["state"] in ("queued", "running"):
        time.sleep(_POLL_SECONDS)
        described = ask(server, "GET", f"/api/batches/{described['id']}")
        if not early_kib and described["counts"]["succeeded"] >= items // 10:
            early_kib = resident_kib(server.pid)
    seconds = time.perf_counter() - began
    return Job(
        items_per_second=items / seconds,
        cpu_us=(cpu_seconds(server.pid) - before) * 1e6 / items,
        grown_kib=resident_kib(server.pid) - early_kib,
        result_ms=delay,
        failed=items - described["counts"]["succeeded"],
    )


def start(server: Server, items: int) -> Any:
    lines = "".join(f'{{"body":{{"message":"item {number}"}}}}\n' for number in range(items)).encode()
    return ask(server, "POST", "/api/batches", lines, "application/jsonl")


def result_ms(server: Server, items: int) -> float:
    """A result's event has the time at which it was made, and a reader on this machine has the same clock."""
    described = start(server, items)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(
        "GET", f"/api/runs/{described['id']}/events?kinds=data", headers={"Accept": "application/x-ndjson"}
    )
    delays: list[float] = []
    with connection.getresponse() as response:
        for line in response:
            arrived = time.time()
            event = json.loads(line or b"{}").get("data", {}) if line.strip() else {}
            if event.get("name") == "job.result":
                delays.append(arrived - event["time"])
    connection.close()
    return statistics.median(delays) * 1e3


def ask(server: Server, method: str, path: str, body: bytes | None = None, media_type: str = "") -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    try:
        connection.request(method, path, body, {"Content-Type": media_type} if body is not None else {})
        response = connection.getresponse()
        content = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status}")
        return json.loads(content)
    finally:
        connection.close()
