"""Which commands there are."""

from importlib.metadata import version

from cyclopts import App

from headrace.cli import serve

app = App(
    name="headrace",
    help="Every run of an agent is an append-only log that any client can leave, resume, watch, stop and replay.",
    version=version("headrace"),
)
app.command(serve.serve)
