"""`headrace token list`."""

from headrace.bootstrap import KEY_FILE
from headrace.cli.data import DEFAULT_DATA, Data
from headrace.cli.output import clock, line
from headrace.server.auth import ApiKey, KeyFile


def list_keys(*, data: Data = DEFAULT_DATA) -> None:
    """List the API keys.

    Id, state, tenant, user, when it was made, and scopes. The keys themselves are not known.

    Parameters
    ----------
    data
        Data directory of the server.
    """
    for each in KeyFile(data / KEY_FILE).list():
        line("\t".join(_row(each)))


def _row(key: ApiKey) -> list[str]:
    state = "disabled" if key.disabled else "good"
    return [key.id, state, key.tenant, key.subject, clock(key.created), " ".join(key.scopes)]
