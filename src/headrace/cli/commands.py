"""Which commands there are.

Those that need a server's code load it when they are run, so that `headrace ask` is quick; their help stands here.
"""

from importlib.metadata import version

from cyclopts import App

from headrace.cli import batch, runs
from headrace.cli.ask import ask

app = App(
    name="headrace",
    help="Every run of an agent is an append-only log that any client can leave, resume, watch, stop and replay.",
    version=version("headrace"),
)
app.command("headrace.cli.serve:serve", help="Serve agents over HTTP and WebSocket.")
app.command(ask)
app.command(runs.app)
app.command(batch.app)
app.command(
    "headrace.cli.index:index",
    help="Index a folder of documents, which the demo model then quotes.\n\nOnly what has changed is read again.",
)
app.command(
    "headrace.cli.token:app",
    name="token",
    help="Print a token for a user, to develop with; make, list and disable API keys.",
)
app.command(
    "headrace.cli.check:check",
    help="Say what is configured here, and whether a server answers.\n\n"
    "The server is asked one question, of a few tokens; nothing is written here. The exit code is 78 for a "
    "configuration with which no server starts, and 1 where the server of `--url` does not answer as it should.",
)
app.command(
    "headrace.cli.fake_provider:fake_provider",
    name="fake-provider",
    help="Serve a model server that follows scripts and speaks chat completions, responses and messages.\n\n"
    "For load, and for every fault of real ones: the name of the model chooses the script.",
)
