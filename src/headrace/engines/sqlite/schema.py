"""The tables of the log file, and how a connection is opened.

`blocks` has no index but its row id: every commit appends to the end of one B-tree, so that a commit for many runs
touches few pages (measured: 4 µs a row against 11 with an index on the run). Which blocks belong to a run is kept in
memory while it is live and in `runs.blocks` once it has ended; after a crash the blocks since `meta.indexed` are read
through once.
"""

import sqlite3
from pathlib import Path

from headrace.errors import ConfigurationError
from headrace.position import new_epoch

VERSION = 2

_TABLES = """
CREATE TABLE runs (
  no        INTEGER PRIMARY KEY,
  id        TEXT NOT NULL UNIQUE,
  tenant    TEXT NOT NULL,
  subject   TEXT NOT NULL,
  state     TEXT NOT NULL,
  attempt   INTEGER NOT NULL DEFAULT 0,
  head      INTEGER NOT NULL DEFAULT 0,  -- last offset, exact once the run has ended
  first     INTEGER NOT NULL DEFAULT 1,  -- first offset that is kept
  bytes     INTEGER NOT NULL DEFAULT 0,  -- of the kept events, once the run has ended
  ended     REAL,
  cancel_by TEXT,
  parent    TEXT,
  agent     TEXT NOT NULL,
  record    BLOB NOT NULL,               -- ports.Run as JSON
  blocks    BLOB                         -- see stored.BlockList
) STRICT;
-- Not of children: they are found by their ids.
CREATE INDEX runs_of_owner ON runs (tenant, subject, no) WHERE parent IS NULL;
CREATE INDEX runs_of_agent ON runs (tenant, subject, agent, no) WHERE parent IS NULL;
CREATE INDEX runs_open ON runs (no) WHERE ended IS NULL;
CREATE INDEX runs_ended ON runs (ended) WHERE bytes > 0;

CREATE TABLE blocks (
  id       INTEGER PRIMARY KEY,          -- commit order over all runs
  run      INTEGER NOT NULL,
  first    INTEGER NOT NULL,
  last     INTEGER NOT NULL,
  checksum INTEGER NOT NULL,             -- see stored.checksum
  body     BLOB NOT NULL                 -- one event a line
) STRICT;

CREATE TABLE idempotency (
  tenant      TEXT NOT NULL,
  subject     TEXT NOT NULL,
  key         TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  run         INTEGER NOT NULL REFERENCES runs,
  PRIMARY KEY (tenant, subject, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_run ON idempotency (run);

CREATE TABLE inputs (
  run     INTEGER NOT NULL REFERENCES runs,
  request TEXT NOT NULL,
  value   BLOB NOT NULL,                 -- JSON
  by      TEXT NOT NULL,
  PRIMARY KEY (run, request)
) STRICT, WITHOUT ROWID;

CREATE TABLE meta (
  epoch      TEXT NOT NULL,              -- of feed positions
  indexed    INTEGER NOT NULL,           -- blocks up to this id are in runs.blocks
  feed_floor INTEGER NOT NULL,           -- blocks up to this id may have been trimmed
  block      INTEGER NOT NULL            -- ids up to this one were given out, even where the rows are gone
) STRICT;
"""

_FROM_1 = """
ALTER TABLE runs ADD COLUMN parent TEXT;
ALTER TABLE runs ADD COLUMN agent TEXT NOT NULL DEFAULT '';
UPDATE runs SET agent = coalesce(json_extract(CAST(record AS TEXT), '$.agent'), '')
 WHERE json_valid(CAST(record AS TEXT));
DROP INDEX runs_of_owner;
CREATE INDEX runs_of_owner ON runs (tenant, subject, no) WHERE parent IS NULL;
CREATE INDEX runs_of_agent ON runs (tenant, subject, agent, no) WHERE parent IS NULL;
CREATE TABLE inputs (
  run     INTEGER NOT NULL REFERENCES runs,
  request TEXT NOT NULL,
  value   BLOB NOT NULL,
  by      TEXT NOT NULL,
  PRIMARY KEY (run, request)
) STRICT, WITHOUT ROWID;
"""
"""What a file of version 1 lacks."""

_BUSY_SECONDS = 60.0
"""How long a commit waits where somebody else, such as a backup, holds the file."""


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The writing connection, with the tables made. Raises `ConfigurationError` for a file of another kind."""
    db = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=512, timeout=_BUSY_SECONDS
    )
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version > VERSION:
            raise ConfigurationError(f"{path.name} was written by a newer Headrace: upgrade, or choose another --data.")
        if tables and version not in (1, VERSION):
            raise ConfigurationError(f"{path.name} is not a log of Headrace: choose another --data directory.")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_size_limit = 67108864")
        if not tables:
            db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION};")
            db.execute("INSERT INTO meta VALUES (?, 0, 0, 0)", (new_epoch(),))
            db.execute("COMMIT")
        elif version == 1:
            db.executescript(f"BEGIN; {_FROM_1} PRAGMA user_version = {VERSION}; COMMIT;")
    except BaseException:
        db.close()
        raise
    return db


def open_for_reading(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA query_only = ON")
    return db
