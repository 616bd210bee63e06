"""The tool `sql` on real databases: what it answers, where it stops, and what it says of a mistake."""

import contextlib
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tests.tools.postgres_server import PostgresServer
from tests.tools.postgres_server import postgres_server as postgres_server
from tests.tools.sql_shop import (
    CONTEXT,
    ENDLESS,
    KINDS,
    RUN,
    Counters,
    Shop,
    ask,
    make_shop,
    opened,
    postgres_shop,
    sqlite_shop,
)
from tests.tools.sql_shop import counters as counters
from tests.tools.sql_shop import shop as shop

from headrace.errors import (
    ConfigurationError,
    SQLDenied,
    ToolRefused,
    ToolTimeout,
    ToolUnavailable,
)
from headrace.ports import ToolCall
from headrace.toolbox import Toolbox
from headrace.tools.sql.tool import sql_tool


def placeholders(shop: Shop, query: str) -> str:
    return query.replace("?", "$1") if shop.url.startswith("postgresql") else query


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_a_query_gives_columns_and_rows(shop: Shop) -> None:
    async with opened(shop.url) as tool:
        assert await ask(tool, "SELECT id, customer, note FROM orders ORDER BY id") == {
            "columns": ["id", "customer", "note"],
            "rows": [[1, "ann", None], [2, "bob", "é"], [3, "ann", ""]],
            "row_count": 3,
            "truncated": False,
        }
        assert (await ask(tool, "SELECT id, id AS id FROM orders WHERE id > 9"))["rows"] == []
        assert (await tool.call({"query": "SELECT 1 AS one;"}, CONTEXT))["rows"] == [[1]]
        assert (await ask(tool, "SELECT customer FROM spent ORDER BY customer"))["rows"] == [["ann"], ["bob"]]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["bob", "' OR 1=1 --", "bob'; DROP TABLE orders; --", "\x01 ✓"])
async def test_a_parameter_is_a_value_and_never_text_of_the_query(counters: Counters, kind: str, value: str) -> None:
    shop, tool = await counters(kind)
    query = placeholders(shop, "SELECT id FROM orders WHERE customer = ?")
    assert (await ask(tool, query, value))["rows"] == ([[2]] if value == "bob" else [])


async def test_parameters_are_text_numbers_truth_and_null(shop: Shop) -> None:
    sql = {
        "sqlite": "SELECT ?, ?, ?, ?, ?",
        "duckdb": "SELECT ?, ?, ?, ?, ?",
        "postgresql": "SELECT $1::text, $2::int, $3::float8, $4::bool, $5::text",
    }
    async with opened(shop.url) as tool:
        result = await ask(tool, sql[shop.url.partition(":")[0]], "é", 5, 2.5, True, None)
        assert result["rows"] == [["é", 5, 2.5, True, None]]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("kind", "query", "row"),
    [
        ("sqlite", "SELECT 9007199254740992, 9007199254740993", [9007199254740992, "9007199254740993"]),
        ("sqlite", "SELECT x'00ff', 1e999, -1e999, CAST(x'c328' AS TEXT)", ["0x00ff", "Infinity", "-Infinity", "�("]),
        ("duckdb", "SELECT 12.50::DECIMAL(9, 2), 2::HUGEINT ** 0, 'NaN'::DOUBLE", ["12.50", 1.0, "NaN"]),
        ("duckdb", "SELECT 170141183460469231731687303715884105727", ["170141183460469231731687303715884105727"]),
        ("duckdb", "SELECT DATE '2024-02-29', TIME '10:00', TIMESTAMP '2024-01-01 10:00'",
         ["2024-02-29", "10:00:00", "2024-01-01T10:00:00"]),
        ("duckdb", "SELECT [1, NULL], {'a': DATE '2024-01-01'}, MAP {'k': 'v'}",
         [[1, None], {"a": "2024-01-01"}, {"k": "v"}]),
        ("duckdb", "SELECT '\\x00'::BLOB, '8d7c0a0e-0000-4000-8000-000000000000'::UUID",
         ["0x00", "8d7c0a0e-0000-4000-8000-000000000000"]),
        ("postgresql", "SELECT 12.50::numeric, 'NaN'::numeric, 2::numeric ^ 100",
         ["12.50", "NaN", "1267650600228229401496703205376.0000000000000000"]),
        ("postgresql", "SELECT 'infinity'::date, '4000-01-01 BC'::date, '1 month'::interval",
         ["infinity", "4000-01-01 BC", "1 mon"]),
        ("postgresql", "SELECT '2024-01-01 10:00+02'::timestamptz, '{1,NULL}'::int[], '\\x00ff'::bytea",
         ["2024-01-01 08:00:00+00", [1, None], "0x00ff"]),
        ("postgresql", """SELECT '{"a": [1, null]}'::jsonb, '"x"'::json, '10.0.0.1'::inet""",
         [{"a": [1, None]}, "x", "10.0.0.1"]),
        ("postgresql", "SELECT daterange('2024-01-01', '2024-02-01'), 'empty'::int4range, int4range(1, NULL)",
         ["[2024-01-01,2024-02-01)", "empty", "[1,)"]),
        ("postgresql", "SELECT o FROM orders AS o WHERE id = 1",
         [{"id": 1, "customer": "ann", "total": "12.50", "note": None}]),
        ("postgresql", "SELECT row(1, 'a'), b'101', point(1, 2), '8d7c0a0e-0000-4000-8000-000000000000'::uuid",
         [[1, "a"], "101", "(1,2)", "8d7c0a0e-0000-4000-8000-000000000000"]),
    ],
)  # fmt: skip
async def test_what_json_has_not_becomes_sensible_json(
    counters: Counters, kind: str, query: str, row: list[Any]
) -> None:
    _, tool = await counters(kind)
    assert (await ask(tool, query))["rows"] == [row]


async def test_postgresql_takes_dates_and_numbers_as_a_query_would_write_them(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with opened(make_shop("postgresql", tmp_path, request).url) as tool:
        result = await ask(
            tool, "SELECT $1::date + 1, $2::numeric * 2, $3::timestamptz", "2024-02-28", 1.5, "2024-01-01"
        )
        assert result["rows"] == [["2024-02-29", "3.0", "2024-01-01 00:00:00+00"]]


async def test_a_sqlite_file_with_virtual_tables_a_broken_view_and_a_write_ahead_log(tmp_path: Path) -> None:
    path = tmp_path / "it's 100% #1?.db"
    connection = sqlite3.connect(path)
    connection.executescript(
        """
        PRAGMA journal_mode = WAL;
        CREATE VIRTUAL TABLE pages USING fts5(body);
        INSERT INTO pages VALUES ('the wheel turns');
        CREATE VIRTUAL TABLE places USING rtree(id, low, high);
        INSERT INTO places VALUES (1, 0, 2);
        CREATE VIEW broken AS SELECT * FROM gone;
        CREATE TABLE "Order ""Lines" ("unit price" REAL);
        """
    )
    async with opened(str(path)) as tool:
        assert (await ask(tool, "SELECT body FROM pages WHERE pages MATCH 'wheel'"))["rows"] == [["the wheel turns"]]
        assert (await ask(tool, "SELECT id FROM places WHERE low < 1"))["rows"] == [[1]]
        assert (await ask(tool, "SELECT value FROM json_each('[1, 2]')"))["rows"] == [[1], [2]]
        with pytest.raises(ToolRefused, match="no such table"):
            await ask(tool, "SELECT * FROM broken")
        assert tool.description.endswith(
            'Tables: pages(body); places(id INT, low REAL, high REAL); "Order ""Lines"("unit price" REAL).'
        )
        connection.execute("INSERT INTO pages VALUES ('and turns')")  # while the tool is open
        connection.commit()
        assert (await ask(tool, "SELECT count(*) FROM pages WHERE pages MATCH 'turns'"))["rows"] == [[2]]
    connection.close()


async def test_the_description_names_dialect_placeholder_and_tables(shop: Shop) -> None:
    names = {"sqlite": ("SQLite", "`?`"), "duckdb": ("DuckDB", "`?`"), "postgresql": ("PostgreSQL", "`$1`")}
    dialect, placeholder = names[shop.url.partition(":")[0]]
    async with opened(shop.url, name="shop", scope="shop:read", max_rows=7, seconds=3) as tool:
        assert (tool.name, tool.scope, tool.idempotent, tool.concurrency) == ("shop", "shop:read", True, 2)
        assert tool.timeout > 3
        assert all(word in tool.description for word in (dialect, placeholder, "at most 7 rows"))
        assert "orders(id " in tool.description
        assert "spent(customer" in tool.description


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_rows_stop_at_their_number(shop: Shop) -> None:
    async with opened(shop.url, max_rows=2) as tool:
        cut = await ask(tool, "SELECT id FROM orders ORDER BY id")
        assert cut == {"columns": ["id"], "rows": [[1], [2]], "row_count": 2, "truncated": True}
        whole = await ask(tool, "SELECT id FROM orders WHERE id < 3 ORDER BY id")
        assert whole == {"columns": ["id"], "rows": [[1], [2]], "row_count": 2, "truncated": False}
        without_end = await ask(tool, "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c")
        assert without_end["rows"] == [[1], [2]]


REPEAT = {"sqlite": "printf('%.*c', {}, 'é')", "duckdb": "repeat('é', {})", "postgresql": "repeat('é', {})"}


async def test_rows_stop_at_their_bytes_and_the_whole_is_json_for_a_model(shop: Shop) -> None:
    text = REPEAT[shop.url.partition(":")[0]].format(1000)
    call = ToolCall(
        id="c",
        name="sql",
        arguments=json.dumps({"query": f"SELECT a.id, {text} AS t FROM orders a, orders b, orders c, orders d"}),
    )
    async with opened(shop.url) as tool:
        (outcome,) = [each async for each in Toolbox([tool]).execute(call, RUN)]
    assert outcome.is_json
    assert len(outcome.output.encode()) <= 50_000
    result = json.loads(outcome.output)
    assert 20 <= result["row_count"] == len(result["rows"]) < 81
    assert result["truncated"]


async def test_a_long_value_is_cut_and_says_so(shop: Shop) -> None:
    text = REPEAT[shop.url.partition(":")[0]]
    async with opened(shop.url) as tool:
        result = await ask(tool, f"SELECT {text.format(2000)}, {text.format(1_000_000)}")
        ((exact, cut),) = result["rows"]
        assert len(exact) == 2000
        assert cut[:2000] == exact
        assert cut[2000:] == "… [cut: 1,000,000 characters]"
        assert result["truncated"]
        assert not (await ask(tool, f"SELECT {text.format(2000)}"))["truncated"]


async def test_one_row_that_does_not_fit_is_refused(shop: Shop) -> None:
    text = REPEAT[shop.url.partition(":")[0]].format(1500)
    async with opened(shop.url, max_bytes=1000) as tool:
        with pytest.raises(ToolRefused, match="A single row"):
            await ask(tool, f"SELECT {text}")
        with pytest.raises(ToolRefused, match="too many columns"):
            await ask(tool, "SELECT " + ", ".join(f"1 AS column_number_{number}" for number in range(100)))


@pytest.mark.parametrize(
    ("kind", "query"),
    [
        ("sqlite", "SELECT zeroblob(1000000000)"),
        ("sqlite", "SELECT replace(replace(printf('%.*c', 10000000, 'x'), 'x', 'xyz'), 'y', 'xyz')"),
        ("duckdb", "SELECT length(repeat('x', 2000000000))"),
        ("duckdb", "SELECT repeat('x', 2000000000)"),
        ("duckdb", "SELECT list(x) FROM range(1000000000) t(x)"),
        ("duckdb", "SELECT repeat('x', 1000000) || x FROM range(100000) t(x) ORDER BY 1"),
    ],
)
async def test_huge_values_are_refused_and_the_next_query_works(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, query: str
) -> None:
    async with opened(make_shop(kind, tmp_path, request).url) as tool:
        with pytest.raises(ToolRefused):
            await ask(tool, query)
        assert (await ask(tool, "SELECT 1"))["rows"] == [[1]]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT repeat('x', 1000000000)",  # a message of a gigabyte
        "SELECT repeat('x', 100000000) FROM generate_series(1, 100)",
        "SELECT array(SELECT generate_series(1, 30000000))",
    ],
)
async def test_huge_values_of_a_server_do_not_fill_this_one(
    request: pytest.FixtureRequest, tmp_path: Path, query: str
) -> None:
    async with opened(make_shop("postgresql", tmp_path, request).url, seconds=1) as tool:
        with pytest.raises((ToolRefused, ToolTimeout, ToolUnavailable)):
            await ask(tool, query)
        assert (await ask(tool, "SELECT 1"))["rows"] == [[1]]


async def test_an_endless_query_is_ended_and_the_next_one_works(shop: Shop) -> None:
    async with opened(shop.url, seconds=0.5) as tool:
        with pytest.raises(ToolTimeout, match=r"longer than 0\.5 seconds"):
            await ask(tool, ENDLESS)
        assert (await ask(tool, "SELECT 1"))["rows"] == [[1]]


@pytest.mark.parametrize(
    ("kind", "query"),
    [
        ("sqlite", "SELECT instr(printf('%.*c', 8000000, 'a'), printf('%.*c', 4000000, 'a') || 'b')"),
        ("sqlite", "SELECT count(*) FROM orders a, orders b" + ", orders" * 40),
        ("sqlite", "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT group_concat(x) FROM c"),
        ("duckdb", "SELECT count(*) FROM range(1000000000000)"),
        ("postgresql", "SELECT pg_sleep(60)"),
        (
            "postgresql",
            "SELECT set_config('statement_timeout', '0', false) UNION ALL "
            "SELECT 'x' FROM generate_series(1, 100) UNION ALL SELECT pg_sleep(60)::text",
        ),
    ],
)
async def test_no_query_is_beyond_its_deadline(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, query: str
) -> None:
    async with opened(make_shop(kind, tmp_path, request).url, seconds=0.5) as tool:
        with pytest.raises(ToolTimeout):
            await ask(tool, query)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELEC 1", "SELEC"),
        ("SELECT nope FROM orders", "nope"),
        ("SELECT * FROM nowhere", "nowhere"),
        ("SELECT (", "syntax"),
        ("SELECT missing_function(1)", "missing_function"),
    ],
)
async def test_a_mistake_is_told_in_the_words_of_the_database(
    counters: Counters, kind: str, query: str, words: str
) -> None:
    shop, tool = await counters(kind)
    with pytest.raises(ToolRefused) as refused:
        await ask(tool, query)
    assert words in refused.value.message or "incomplete" in refused.value.message
    assert len(refused.value.message) < 600
    assert str(shop.folder) not in refused.value.message


async def test_parameters_that_do_not_fit_are_told(shop: Shop) -> None:
    async with opened(shop.url) as tool:
        for query, parameters in (
            (placeholders(shop, "SELECT id FROM orders WHERE customer = ?"), []),
            ("SELECT 1", ["too", "many"]),
        ):
            with pytest.raises(ToolRefused):
                await ask(tool, query, *parameters)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"query": ""},
        {"query": 5},
        {"query": "x" * 20_001},
        {"query": "SELECT 1", "parameters": {"a": 1}},
        {"query": "SELECT ?", "parameters": [[1]]},
        {"query": "SELECT ?", "parameters": [{"a": 1}]},
        {"query": "SELECT 1", "parameters": [1] * 101},
        {"query": "SELECT 1", "path": "/etc/passwd"},
    ],
)
async def test_other_arguments_do_not_fit(tmp_path: Path, arguments: dict[str, Any]) -> None:
    async with opened(sqlite_shop(tmp_path).url) as tool:
        call = ToolCall(id="c", name="sql", arguments=json.dumps(arguments))
        (outcome,) = [each async for each in Toolbox([tool]).execute(call, RUN)]
    assert outcome.error is not None
    assert outcome.error.code == "tool.arguments_invalid"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "query", ["SELECT 1\x00; DROP TABLE orders", "\x00", "SELECT '\ud800'", "\u202eSELECT 1", "ＳＥＬＥＣＴ 1"]
)
async def test_odd_text_is_an_error_and_no_crash(counters: Counters, kind: str, query: str) -> None:
    shop, tool = await counters(kind)
    fingerprint = shop.fingerprint()
    with contextlib.suppress(ToolRefused, SQLDenied, UnicodeEncodeError):
        await ask(tool, query)
    assert (await ask(tool, "SELECT 1"))["rows"] == [[1]]
    assert shop.fingerprint() == fingerprint


async def test_a_database_that_is_busy_or_gone_is_unavailable(tmp_path: Path) -> None:
    shop = sqlite_shop(tmp_path)
    async with opened(shop.url) as tool:
        with contextlib.closing(sqlite3.connect(tmp_path / "shop.db", isolation_level=None)) as writer:
            writer.execute("BEGIN EXCLUSIVE")
            with pytest.raises(ToolUnavailable):
                await ask(tool, "SELECT * FROM orders")
            writer.execute("ROLLBACK")
        assert (await ask(tool, "SELECT 1"))["rows"] == [[1]]
        (tmp_path / "shop.db").unlink()
        with pytest.raises(ToolUnavailable):
            await ask(tool, "SELECT * FROM orders")
    assert not (tmp_path / "shop.db").exists()


async def test_a_duckdb_file_can_be_written_by_others_between_queries(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with opened(make_shop("duckdb", tmp_path, request).url) as tool:
        with duckdb.connect(str(tmp_path / "shop.duckdb")) as writer:
            writer.execute("INSERT INTO orders VALUES (4, 'eve', 1, NULL)")
            with pytest.raises(ToolUnavailable):
                await ask(tool, "SELECT * FROM orders")
        assert (await ask(tool, "SELECT count(*) FROM orders"))["rows"] == [[4]]


async def test_a_server_that_is_restarted_is_found_again(postgres_server: PostgresServer) -> None:
    shop = postgres_shop(postgres_server)
    async with opened(shop.url) as tool:
        with pytest.raises(ToolUnavailable):
            await ask(tool, "SELECT pg_terminate_backend(pg_backend_pid())")
        assert (await ask(tool, "SELECT 1"))["rows"] == [[1]]


# --- set up wrongly ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "shop",
        "shop.txt",
        ":memory:",
        "sqlite://",
        "sqlite:///",
        "sqlite://host/x.db",
        "mysql://u@h/d",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_database_is_told(url: str) -> None:
    with pytest.raises(ConfigurationError, match="The SQL tool takes"):
        sql_tool(url)


@pytest.mark.parametrize("url", ["sqlite:///{}/gone.db", "duckdb:///{}/gone.duckdb", "{}/gone.sqlite3", "sqlite:///{}"])
def test_a_file_that_is_not_there_is_told_and_not_made(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="not there"):
        sql_tool(url.format(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["sqlite", "duckdb"])
async def test_a_file_that_is_no_database_is_told(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "secret").write_text("root:x:0:0:root:/root:/bin/bash\n" * 100)
    with pytest.raises(ConfigurationError, match="cannot be read") as refused:
        async with opened(f"{scheme}:///{tmp_path}/secret"):
            pass
    assert "root" not in refused.value.message


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("duckdb:///x.duckdb", "duckdb", "headrace[duckdb]"),
        ("postgresql://u@h/d", "asyncpg", "headrace[postgres]"),
        ("postgres://u@h/d", "asyncpg", "headrace[postgres]"),
    ],
)
def test_a_missing_library_is_told_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError) as refused:
        sql_tool(url)
    assert f"pip install '{extra}'" in refused.value.message


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://clerk:sk-canary@127.0.0.1:1/shop",
        "postgresql://clerk:sk-canary@127.0.0.1:x/shop",
        "postgresql://clerk:sk-canary/x@127.0.0.1/shop",
        "postgresql://clerk:sk-canary@127.0.0.1:1/shop?sslmode=canary",
    ],
)
async def test_a_server_that_is_not_there_is_told_without_its_url(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        async with opened(url):
            pass
    printed = capsys.readouterr()
    assert "canary" not in refused.value.message + printed.out + printed.err


@pytest.mark.parametrize(
    "role",
    [
        "SUPERUSER",
        "REPLICATION",
        "IN ROLE pg_execute_server_program",
        "NOINHERIT IN ROLE pg_read_server_files",
        "IN ROLE pg_write_server_files",
        "IN ROLE pg_signal_backend",
        "NOINHERIT IN ROLE postgres",
    ],
)
async def test_a_role_that_may_leave_the_database_is_refused(postgres_server: PostgresServer, role: str) -> None:
    postgres_server.run(f"CREATE ROLE mighty LOGIN {role}")
    try:
        with pytest.raises(ConfigurationError, match="CREATE ROLE reader LOGIN"):
            async with opened(postgres_server.url(user="mighty")):
                pass
    finally:
        postgres_server.run("DROP ROLE mighty")


async def test_a_role_that_has_become_mighty_is_refused_from_then_on(postgres_server: PostgresServer) -> None:
    postgres_server.run("CREATE ROLE rising LOGIN")
    try:
        async with opened(postgres_server.url(user="rising")) as tool:
            assert (await ask(tool, "SELECT 1"))["rows"] == [[1]]
            postgres_server.run("ALTER ROLE rising SUPERUSER")
            with pytest.raises(ConfigurationError):
                await ask(tool, "SELECT pg_read_file('/etc/passwd')")
    finally:
        postgres_server.run("DROP ROLE rising")


@pytest.mark.parametrize(
    "options",
    [
        {"max_rows": 0},
        {"max_rows": 10_001},
        {"max_bytes": 999},
        {"max_bytes": 65_536},
        {"seconds": 0},
        {"seconds": float("nan")},
    ],
)
def test_limits_that_are_none_are_told(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        sql_tool(sqlite_shop(tmp_path).url, **options)


def test_paths_are_as_sqlalchemy_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sqlite_shop(tmp_path)
    for url in (
        "sqlite:///shop.db",
        f"sqlite:///{tmp_path}/shop.db",
        "shop.db",
        f"{tmp_path}/shop.db",
        "SQLite:///shop.db",
    ):
        sql_tool(url)
