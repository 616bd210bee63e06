"""`headrace token`."""

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from headrace.bootstrap import TOKEN_SECRET
from headrace.cli.data import DEFAULT_DATA, Data
from headrace.cli.output import line, remark
from headrace.errors import InvalidField
from headrace.server.auth import issue_token, load_secret
from headrace.server.auth.credential import is_name


def issue(
    *,
    user: Annotated[str, Parameter(env_var="HEADRACE_USER")],
    tenant: Annotated[str, Parameter(env_var="HEADRACE_TENANT")] = "default",
    ttl: Annotated[int, Parameter(env_var="HEADRACE_TTL", validator=Number(gt=0))] = 3600,
    data: Data = DEFAULT_DATA,
) -> None:
    """Print a token (JWT) for a user, to develop with.

    Only its end takes it back: for anything else make an API key.

    Parameters
    ----------
    user
        Whom it stands for.
    tenant
        To which tenant the user belongs.
    ttl
        Seconds for which it is good.
    data
        Data directory of the server that shall take it. Its signing secret is made if there is none.
    """
    if not (is_name(user) and is_name(tenant)):
        raise InvalidField("--user and --tenant are 1 to 255 printable characters each.")
    secret = data / TOKEN_SECRET
    if not secret.exists():
        remark("From its next start, a server on this data directory asks everybody for a credential.")
    line(issue_token(load_secret(secret), subject=user, tenant=tenant, ttl=ttl))
