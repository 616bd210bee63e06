"""`headrace runs`: what ran on a server, and what runs there."""

from cyclopts import App

from headrace.cli.runs.cancel import cancel
from headrace.cli.runs.list import list_runs
from headrace.cli.runs.replay import replay
from headrace.cli.runs.show import show
from headrace.cli.runs.tail import tail

app = App(name="runs", help="List, show, follow, replay and cancel runs.")
app.command(list_runs, name="list")
app.command(show)
app.command(tail)
app.command(replay)
app.command(cancel)
