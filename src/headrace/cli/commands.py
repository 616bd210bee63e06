"""Which commands there are. What a command needs is loaded when it is run, so `headrace ask` loads no server."""

from importlib.metadata import version

from cyclopts import App

app = App(
    name="headrace",
    help="Every run of an agent is an append-only log that any client can leave, resume, watch, stop and replay.",
    version=version("headrace"),
)
app.command("headrace.cli.serve:serve")
app.command("headrace.cli.ask:ask")

runs = App(name="runs", help="List, show, follow, replay and cancel runs.")
runs.command("headrace.cli.runs.list:list_runs", name="list")
runs.command("headrace.cli.runs.show:show")
runs.command("headrace.cli.runs.tail:tail")
runs.command("headrace.cli.runs.replay:replay")
runs.command("headrace.cli.runs.cancel:cancel")
app.command(runs)

app.command("headrace.cli.index:index")

token = App(name="token", help="Make a token for development; make, list and disable API keys.")
token.default("headrace.cli.token.issue:issue")
token.command("headrace.cli.token.key:key")
token.command("headrace.cli.token.list:list_keys", name="list")
token.command("headrace.cli.token.disable:disable")
app.command(token)

app.command("headrace.cli.check:check")
app.command("headrace.cli.fake_provider:fake_provider", name="fake-provider")
