"""`headrace batch`: many operations from a file."""

from cyclopts import App

from headrace.cli.batch.cancel import cancel
from headrace.cli.batch.list import list_jobs
from headrace.cli.batch.results import results
from headrace.cli.batch.retry import retry
from headrace.cli.batch.run import run
from headrace.cli.batch.show import show

app = App(name="batch", help="Run, show and cancel batch jobs, and fetch their results.")
app.command(run)
app.command(list_jobs, name="list")
app.command(show)
app.command(results)
app.command(retry)
app.command(cancel)
