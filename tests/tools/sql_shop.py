"""The same small shop in each kind of database, for the tests of the tool `sql`."""

import asyncio
import hashlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import duckdb
import pytest
import pytest_asyncio
from tests.tools.postgres_server import PostgresServer

from headrace.identity import Owner
from headrace.ports import Run, Tool, ToolContext
from headrace.tools.sql.tool import sql_tool

TABLES = """
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer VARCHAR(100), total NUMERIC(10, 2), note TEXT);
INSERT INTO orders VALUES (1, 'ann', 12.50, NULL), (2, 'bob', 7.25, 'é'), (3, 'ann', 100.00, '');
CREATE VIEW spent AS SELECT customer, sum(total) AS total FROM orders GROUP BY customer;
"""
KINDS = ("sqlite", "duckdb", "postgresql")
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT 1 FROM c) SELECT count(*) FROM c"
RUN = Run(id="run_1", epoch="e", owner=Owner("t", "ann"), agent="a", input={}, created=1)
CONTEXT = ToolContext(run=RUN, tool_call_id="c")
POSTGRES_EXTRAS = """
CREATE SEQUENCE numbers;
CREATE FUNCTION wipe() RETURNS int LANGUAGE plpgsql AS 'BEGIN DELETE FROM orders; RETURN 1; END';
CREATE FUNCTION unlock_and_wipe() RETURNS int LANGUAGE plpgsql
    AS 'BEGIN SET TRANSACTION READ WRITE; DELETE FROM orders; RETURN 1; END';
CREATE FUNCTION commit_and_wipe() RETURNS int LANGUAGE plpgsql
    AS 'BEGIN COMMIT; DELETE FROM orders; RETURN 1; END';
CREATE PROCEDURE commit_and_wipe_all() LANGUAGE plpgsql AS 'BEGIN COMMIT; DELETE FROM orders; END';
"""


@dataclass(frozen=True)
class Shop:
    url: str
    fingerprint: Callable[[], str]
    """The same as long as nothing in the database has changed."""
    folder: Path
    """Where its database could write a file."""

    def files(self) -> set[str]:
        """What there is in the folder, but for what comes and goes with a reader."""
        return {path.name for path in self.folder.iterdir() if not path.name.endswith(("-wal", "-shm"))}


def sqlite_shop(folder: Path) -> Shop:
    path = folder / "shop.db"
    connection = sqlite3.connect(path)
    connection.executescript(TABLES)
    connection.close()
    return Shop(f"sqlite:///{path}", lambda: _digest(path), folder)


def duckdb_shop(folder: Path) -> Shop:
    path = folder / "shop.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(TABLES)
        connection.execute("CREATE SEQUENCE numbers")
    return Shop(f"duckdb:///{path}", lambda: _digest(path), folder)


@cache
def postgres_shop(server: PostgresServer) -> Shop:
    """One for all tests, since none changes it. Its user `clerk` owns the tables and may write them, so that nothing
    but the connection holds a query back."""
    server.run("CREATE ROLE clerk LOGIN; CREATE DATABASE shop;")
    server.run(f"GRANT ALL ON SCHEMA public TO clerk; SET ROLE clerk; {TABLES} {POSTGRES_EXTRAS}", "shop")
    return Shop(server.url("shop", "clerk"), lambda: server.dump("shop"), server.folder)


def make_shop(kind: str, folder: Path, request: pytest.FixtureRequest) -> Shop:
    """Of the kind that is asked for; whoever asks imports the fixture `postgres_server`."""
    if kind == "postgresql":
        return postgres_shop(request.getfixturevalue("postgres_server"))
    return sqlite_shop(folder) if kind == "sqlite" else duckdb_shop(folder)


@pytest.fixture(params=KINDS)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    return make_shop(request.param, tmp_path, request)


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Tool]:
    """With time enough for a machine that is busy, unless a test is about time."""
    async with sql_tool(url, **{"seconds": 60, **options})() as (tool,):
        yield tool


async def ask(tool: Tool, query: str, *parameters: Any) -> Any:
    return await tool.call({"query": query, "parameters": list(parameters)}, CONTEXT)


class Counter(NamedTuple):
    """A shop and its tool."""

    shop: Shop
    tool: Tool


Counters: TypeAlias = Callable[[str], Awaitable[Counter]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def counters(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Counters]:
    """By the kind of the shop, opened when they are first asked for. Tests that use it say `loop_scope="module"`."""
    async with AsyncExitStack() as stack:

        @cache
        def opened(kind: str) -> "asyncio.Future[Counter]":
            return asyncio.ensure_future(open_counter(kind))

        async def open_counter(kind: str) -> Counter:
            shop = make_shop(kind, tmp_path_factory.mktemp("shop"), request)
            (tool,) = await stack.enter_async_context(sql_tool(shop.url)())
            return Counter(shop, tool)

        yield opened


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
