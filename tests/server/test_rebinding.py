"""Whoever owns a name can point it at this machine after their page was loaded (DNS rebinding)."""

import httpx
import pytest
from tests.server.serving import Serving


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "1.2.3.4.evil.example"]
)
async def test_a_name_that_anybody_can_own_is_refused_where_no_credential_is_asked_for(
    server: Serving, host: str
) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.get("/api/runs", headers={"Host": host})
    assert (answer.status_code, answer.json()["code"]) == (403, "origin.denied")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "[::1]:8000", "192.168.1.7"])
async def test_addresses_and_localhost_cannot_be_pointed_elsewhere(server: Serving, host: str) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/api/runs", headers={"Host": host})).status_code == 200
