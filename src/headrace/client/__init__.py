"""Start, follow and stop runs from Python, async or not. A stream that is cut goes on by itself where it was cut.

async_client   the client
run_handle     one run of a server
job_handle     one batch job of a server
sync_client    both of them without `await`, derived
connection     requests that are repeated, streams that are resumed
patience       how long, and how often
sse            Server-Sent Events, bytes to frames
answers        what a server says, as structs and errors
"""

from headrace.client.answers import FeedItem, LoggedEvent, RunInfo
from headrace.client.async_client import AsyncClient
from headrace.client.job_handle import JobEnd, JobHandle, JobInfo, JobNews, JobProgress, JobResult
from headrace.client.run_handle import RunHandle
from headrace.client.sync_client import Client, SyncJobHandle, SyncRunHandle

__all__ = [
    "AsyncClient",
    "Client",
    "FeedItem",
    "JobEnd",
    "JobHandle",
    "JobInfo",
    "JobNews",
    "JobProgress",
    "JobResult",
    "LoggedEvent",
    "RunHandle",
    "RunInfo",
    "SyncJobHandle",
    "SyncRunHandle",
]
