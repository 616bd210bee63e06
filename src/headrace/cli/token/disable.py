"""`headrace token disable`."""

from headrace.bootstrap import KEY_FILE
from headrace.cli.data import DEFAULT_DATA, Data
from headrace.cli.output import line
from headrace.errors import NotFound
from headrace.server.auth import KeyFile


def disable(key_id: str, /, *, data: Data = DEFAULT_DATA) -> None:
    """Disable an API key for good.

    A running server notices within seconds, and ends the streams that it opened.

    Parameters
    ----------
    key_id
        Its id, as `headrace token list` shows it.
    data
        Data directory of the server.
    """
    try:
        disabled = KeyFile(data / KEY_FILE).disable(key_id)
    except NotFound:
        raise NotFound("There is no key with this id. `headrace token list` shows those that there are.") from None
    line(f"{disabled.id} disabled")
