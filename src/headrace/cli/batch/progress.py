"""How far a job has got, for people who look: on a terminal only."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from headrace.client import JobEnd, JobProgress, JobResult


class JobBar:
    """A bar on standard error, with the rate and what failed."""

    def __init__(self) -> None:
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("[red]{task.fields[failed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("", total=None, rate="", failed="")
        self.succeeded = 0
        self.failed = 0

    def __enter__(self) -> "JobBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, news: JobResult | JobProgress | JobEnd) -> None:
        if isinstance(news, JobResult):
            self.failed += news.failed
            self.succeeded += not news.failed
            self._progress.advance(self._task)
        elif isinstance(news, JobProgress):
            rate = f"{news.per_second:,.0f}/s" if news.per_second else ""
            failed = f"{self.failed:,} failed" if self.failed else ""
            self._progress.update(self._task, total=news.total, rate=rate, failed=failed)
