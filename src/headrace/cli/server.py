"""Which server a command talks to."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from headrace.client import AsyncClient
from headrace.client.async_client import DEFAULT_URL
from headrace.errors import Unreachable


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Server:
    url: Annotated[str, Parameter(env_var="HEADRACE_URL")] = DEFAULT_URL
    """Where the server is."""
    token: Annotated[str | None, Parameter(env_var="HEADRACE_TOKEN")] = None
    """Token or API key. A server on this machine asks for none unless one was made."""


LOCAL_SERVER = Server()


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[AsyncClient]:
    """A client of a server that is there. What is cut later is waited for; a server that never was is not."""
    async with AsyncClient(server.url, token=server.token) as client:
        try:
            await client.ready()
        except Unreachable as error:
            raise Unreachable(
                f"No server answers at {server.url}. Start one with `headrace serve`, or name another with --url."
            ) from error
        yield client
