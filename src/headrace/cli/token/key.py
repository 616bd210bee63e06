"""`headrace token key`."""

from typing import Annotated

from cyclopts import Parameter

from headrace.bootstrap import KEY_FILE
from headrace.cli.data import DEFAULT_DATA, Data
from headrace.cli.output import line, remark
from headrace.server.auth import KeyFile


def key(
    *,
    user: Annotated[str, Parameter(env_var="HEADRACE_USER")],
    tenant: Annotated[str, Parameter(env_var="HEADRACE_TENANT")] = "default",
    scope: Annotated[tuple[str, ...], Parameter(env_var="HEADRACE_SCOPE", negative=(), show_default=False)] = (),
    data: Data = DEFAULT_DATA,
) -> None:
    """Make an API key and print it, this once.

    Only its digest is kept. A running server takes it at once.

    Parameters
    ----------
    user
        Whom it stands for.
    tenant
        To which tenant the user belongs.
    scope
        A right beyond one's own runs, such as `metrics`; may be given several times.
    data
        Data directory of the server that shall take it.
    """
    made = KeyFile(data / KEY_FILE).create(user, tenant=tenant, scopes=scope)
    line(made.secret)
    remark(f"This is all there will be to see of it. To disable it: headrace token disable {made.key.id}")
