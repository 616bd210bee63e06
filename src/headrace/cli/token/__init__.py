"""`headrace token`: who may ask."""

from cyclopts import App

from headrace.cli.token.disable import disable
from headrace.cli.token.issue import issue
from headrace.cli.token.key import key
from headrace.cli.token.list import list_keys

app = App(name="token")
app.default(issue)
app.command(key)
app.command(list_keys, name="list")
app.command(disable)
