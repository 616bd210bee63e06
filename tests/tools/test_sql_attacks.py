"""Whatever a query says, nothing changes and nothing outside the database is read. On real databases, by users who may
write them: what holds a query back is the connection alone."""

import pytest
from tests.tools.postgres_server import postgres_server as postgres_server
from tests.tools.sql_shop import CONTEXT, Counter, Counters
from tests.tools.sql_shop import counters as counters

from headrace.errors import ToolError

pytestmark = pytest.mark.asyncio(loop_scope="module")

DENIED, REFUSED, RUNS = "tool.sql_denied", "tool.refused", "runs, and changes nothing"

EVERYWHERE = [
    ("SELECT 1; DROP TABLE orders", DENIED),
    ("SELECT 1; SELECT 2", DENIED),
    ("COMMIT; DROP TABLE orders", DENIED),
    ("ROLLBACK; DELETE FROM orders; SELECT 1", DENIED),
    ("SELECT 1; COMMIT; BEGIN; DROP TABLE orders; COMMIT", DENIED),
    ("/* SELECT */ DELETE FROM orders", DENIED),
    ("DELETE FROM orders RETURNING *", DENIED),
    ("UPDATE orders SET total = 0 RETURNING id", DENIED),
    ("INSERT INTO orders (id) VALUES (9) RETURNING *", DENIED),
    ("INSERT INTO orders (id) SELECT 10", DENIED),
    ("WITH x AS (SELECT 1) DELETE FROM orders", DENIED),
    ("DROP TABLE orders", DENIED),
    ("DROP VIEW spent", DENIED),
    ("CREATE TABLE x (a INTEGER)", DENIED),
    ("CREATE TEMP TABLE x (a INTEGER)", DENIED),
    ("CREATE TABLE x AS SELECT 1 AS a", DENIED),
    ("CREATE VIEW x AS SELECT 1", DENIED),
    ("ALTER TABLE orders ADD COLUMN x INTEGER", DENIED),
    ("ALTER TABLE orders RENAME TO x", DENIED),
    ("VACUUM", DENIED),
    ("ANALYZE", DENIED),
    ("BEGIN", DENIED),
    ("COMMIT", DENIED),
    ("SELECT * FROM orders INTO OUTFILE '{file}'", REFUSED),
    ("", DENIED),
    ("-- nothing", DENIED),
    (";", DENIED),
]

ATTACKS: dict[str, list[tuple[str, str]]] = {
    "sqlite": [
        *EVERYWHERE,
        ("WITH x AS (DELETE FROM orders RETURNING *) SELECT * FROM x", REFUSED),  # no syntax of SQLite
        ("SAVEPOINT x", DENIED),
        ("REPLACE INTO orders (id) VALUES (1)", DENIED),
        ("EXPLAIN DELETE FROM orders", DENIED),
        ("PRAGMA writable_schema = 1", DENIED),
        ("PRAGMA writable_schema", DENIED),
        ("PRAGMA query_only = 0", DENIED),
        ("PRAGMA journal_mode = WAL", DENIED),
        ("PRAGMA user_version = 5", DENIED),
        ("PRAGMA data_version = 5", DENIED),
        ("PRAGMA temp_store_directory = '{file}'", DENIED),
        ("PRAGMA trusted_schema = 1", DENIED),
        ("PRAGMA wal_checkpoint", DENIED),
        ("PRAGMA incremental_vacuum", DENIED),
        ("PRAGMA optimize", DENIED),
        ("SELECT * FROM pragma_database_list", DENIED),
        ("SELECT * FROM pragma_journal_mode", DENIED),
        ("UPDATE sqlite_master SET sql = 'x'", REFUSED),
        ("DELETE FROM sqlite_master", REFUSED),
        ("ATTACH '{file}' AS x", DENIED),
        ("ATTACH ':memory:' AS x", DENIED),
        ("ATTACH 'file:{file}?mode=rwc' AS x", DENIED),
        ("DETACH main", DENIED),
        ("VACUUM INTO '{file}'", DENIED),
        ("REINDEX", DENIED),
        ("SELECT load_extension('{file}')", DENIED),
        ("SELECT load_extension('/lib/x86_64-linux-gnu/libc.so.6', 'system')", DENIED),
        ("SELECT LOAD_EXTENSION('{file}') FROM orders WHERE 0", DENIED),
        ("SELECT fts3_tokenizer('simple')", DENIED),
        ("SELECT fts3_tokenizer('x', x'4141414141414141')", DENIED),
        ("SELECT writefile('{file}', 'x')", REFUSED),
        ("SELECT readfile('/etc/passwd')", REFUSED),
        ("SELECT edit('x', 'touch {file}')", REFUSED),
        ("CREATE VIRTUAL TABLE temp.x USING fts5(a)", DENIED),
        ("CREATE TRIGGER x AFTER DELETE ON orders BEGIN SELECT 1; END", DENIED),
        ("CREATE TEMP TRIGGER x AFTER DELETE ON orders BEGIN SELECT 1; END", DENIED),
    ],
    "duckdb": [
        *EVERYWHERE,
        ("WITH x AS (DELETE FROM orders RETURNING *) SELECT * FROM x", DENIED),
        ("SELECT nextval('numbers')", DENIED),
        ("EXPLAIN ANALYZE DELETE FROM orders", DENIED),
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}'", DENIED),
        ("PREPARE x AS DELETE FROM orders", DENIED),
        ("COPY orders TO '{file}'", DENIED),
        ("COPY (SELECT 1) TO '{file}' (FORMAT parquet)", DENIED),
        ("COPY (SELECT 1) TO '{database}'", DENIED),
        ("COPY (SELECT 1) TO '{database}.wal'", DENIED),
        ("COPY orders FROM '/etc/passwd'", DENIED),
        ("EXPORT DATABASE '{file}'", DENIED),
        ("IMPORT DATABASE '{file}'", DENIED),
        ("ATTACH '{file}' AS x", DENIED),
        ("ATTACH ':memory:' AS x", DENIED),
        ("ATTACH '{database}' AS x (READ_WRITE)", DENIED),
        ("DETACH shop", DENIED),
        ("INSTALL httpfs", DENIED),
        ("LOAD httpfs", DENIED),
        ("LOAD '{file}'", DENIED),
        ("SET enable_external_access = true", DENIED),
        ("SET lock_configuration = false", DENIED),
        ("RESET lock_configuration", DENIED),
        ("PRAGMA database_list", DENIED),
        ("PRAGMA enable_profiling", DENIED),
        ("PRAGMA profiling_output = '{file}'", DENIED),
        ("CALL enable_logging(storage = 'file', storage_config = {{'path': '{file}'}})", DENIED),
        ("SELECT * FROM enable_logging(storage = 'file', storage_config = {{'path': '{file}'}})", DENIED),
        ("CREATE SECRET x (TYPE s3)", DENIED),
        ("CREATE TEMP MACRO x() AS 1", DENIED),
        ("CHECKPOINT", DENIED),
        ("FORCE CHECKPOINT", DENIED),
        ("SELECT * FROM checkpoint()", RUNS),
        ("SELECT * FROM read_csv('/etc/passwd')", DENIED),
        ("SELECT * FROM read_text('/etc/passwd')", DENIED),
        ("SELECT * FROM read_blob('/etc/passwd')", DENIED),
        ("SELECT * FROM read_json('/etc/passwd')", DENIED),
        ("SELECT * FROM read_parquet('/etc/passwd')", DENIED),
        ("SELECT * FROM parquet_metadata('/etc/passwd')", DENIED),
        ("SELECT * FROM sniff_csv('/etc/passwd')", DENIED),
        ("SELECT * FROM glob('/etc/*')", DENIED),
        ("SELECT * FROM read_csv('https://127.0.0.1:1/x.csv')", DENIED),
        ("SELECT * FROM '/etc/passwd'", REFUSED),
        ("SELECT * FROM connection", REFUSED),  # a variable of Python
        ("SELECT getenv('HOME')", REFUSED),
        ("SELECT * FROM query('DROP TABLE orders')", REFUSED),
        ("SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')", DENIED),
    ],
    "postgresql": [
        *EVERYWHERE,
        ("WITH x AS (DELETE FROM orders RETURNING *) SELECT * FROM x", DENIED),
        ("SAVEPOINT x", DENIED),
        ("WITH x AS (UPDATE orders SET total = 0 RETURNING 1) SELECT 1", DENIED),
        ("SELECT 1 AS a INTO x", DENIED),
        ("SELECT * FROM orders FOR UPDATE", DENIED),
        ("LOCK TABLE orders", DENIED),
        ("TRUNCATE orders", DENIED),
        ("SELECT nextval('numbers')", DENIED),
        ("SELECT setval('numbers', 99)", DENIED),
        ("EXPLAIN ANALYZE DELETE FROM orders", DENIED),
        ("PREPARE x AS DELETE FROM orders", DENIED),
        ("DECLARE x CURSOR WITH HOLD FOR SELECT 1", DENIED),
        ("DO $$ BEGIN DELETE FROM orders; END $$", DENIED),
        ("DO $$ BEGIN COMMIT; DELETE FROM orders; END $$", DENIED),
        ("DO $$ BEGIN SET TRANSACTION READ WRITE; DELETE FROM orders; END $$", DENIED),
        ("CREATE FUNCTION x() RETURNS int LANGUAGE sql AS 'SELECT 1'", DENIED),
        ("SELECT wipe()", DENIED),
        ("SELECT unlock_and_wipe()", DENIED),
        ("SELECT commit_and_wipe()", DENIED),
        ("CALL commit_and_wipe_all()", DENIED),
        ("SELECT set_config('transaction_read_only', 'off', false)", DENIED),
        ("SELECT set_config('default_transaction_read_only', 'off', false), wipe()", DENIED),
        ("SELECT lo_from_bytea(0, 'written')", RUNS),  # before PostgreSQL 16 also in a read-only transaction
        ("SELECT query_to_xml('DELETE FROM orders', true, false, '')", REFUSED),
        ("SET TRANSACTION READ WRITE", DENIED),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE", DENIED),
        ("SET default_transaction_read_only = off", DENIED),
        ("SET ROLE postgres", DENIED),
        ("SET SESSION AUTHORIZATION postgres", DENIED),
        ("SELECT set_config('role', 'postgres', false)", DENIED),
        ("SELECT set_config('session_authorization', 'postgres', false)", DENIED),
        ("ALTER ROLE clerk SUPERUSER", DENIED),
        ("CREATE ROLE x", DENIED),
        ("GRANT ALL ON orders TO PUBLIC", DENIED),
        ("ALTER SYSTEM SET fsync = on", DENIED),
        ("COPY orders TO STDOUT", DENIED),
        ("COPY orders FROM STDIN", DENIED),
        ("COPY orders TO '{file}'", DENIED),
        ("COPY orders TO PROGRAM 'touch {file}'", DENIED),
        ("COPY orders FROM '/etc/passwd'", DENIED),
        ("SELECT pg_read_file('/etc/passwd')", DENIED),
        ("SELECT pg_read_binary_file('/etc/passwd')", DENIED),
        ("SELECT pg_ls_dir('/etc')", DENIED),
        ("SELECT pg_stat_file('/etc/passwd')", DENIED),
        ("SELECT lo_import('/etc/passwd')", DENIED),
        ("SELECT lo_export(1, '{file}')", DENIED),
        ("LOAD '{file}'", DENIED),
        ("CREATE EXTENSION plpython3u", DENIED),
        ("SELECT pg_reload_conf()", DENIED),
        ("SELECT pg_create_physical_replication_slot('x')", DENIED),
        ("SELECT pg_create_logical_replication_slot('x', 'pgoutput')", DENIED),
        ("LISTEN x", DENIED),
        ("NOTIFY x", DENIED),
        ("SELECT pg_notify('x', 'y')", RUNS),
        ("SELECT pg_advisory_lock(1)", RUNS),
        ("CHECKPOINT", DENIED),
        ("CLUSTER", DENIED),
        ("REINDEX DATABASE shop", DENIED),
        ("DISCARD ALL", DENIED),
    ],
}


async def ask(counter: Counter, query: str) -> str:
    """What comes of it: the code of an error, or `RUNS`."""
    if "{" in query:
        query = query.format(file=counter.shop.folder / "written", database=counter.shop.url.partition(":///")[2])
    try:
        await counter.tool.call({"query": query}, CONTEXT)
    except ToolError as error:
        return error.code
    return RUNS


ROWS = [(kind, *attack) for kind, attacks in ATTACKS.items() for attack in attacks]


@pytest.mark.parametrize(("kind", "query", "outcome"), ROWS, ids=[f"{kind}: {query}"[:90] for kind, query, _ in ROWS])
async def test_the_query_is_held_back(counters: Counters, kind: str, query: str, outcome: str) -> None:
    assert await ask(await counters(kind), query) == outcome


@pytest.mark.parametrize("kind", ATTACKS)
async def test_nothing_has_changed_after_all_of_them(counters: Counters, kind: str) -> None:
    shop, tool = counter = await counters(kind)
    fingerprint, files = shop.fingerprint(), shop.files()
    assert [(query, await ask(counter, query)) for query, _ in ATTACKS[kind]] == ATTACKS[kind]
    assert shop.fingerprint() == fingerprint
    assert shop.files() == files
    result = await tool.call({"query": "SELECT count(*) FROM orders"}, CONTEXT)
    assert result["rows"] == [[3]]
