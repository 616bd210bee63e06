"""A folder of documents as a full-text index in one SQLite file."""

import hashlib
import math
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Self

from headrace.documents.files import DocumentFile, document_files, read_document
from headrace.documents.formats import READERS
from headrace.documents.passages import Outline, Passage
from headrace.documents.words import query_terms, terms
from headrace.errors import ConfigurationError

_VERSION = 1
"""Of the schema and of `terms`: an index of another version is made anew."""
_SETTLED_NS = 2_000_000_000
_NUMBER_BITS = 20
"""The row of a passage is its file's id and its number in the file, so that a file's passages are one range."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS document_files (
    id INTEGER PRIMARY KEY,
    path BLOB NOT NULL UNIQUE,
    title TEXT NOT NULL,
    mtime_ns INTEGER NOT NULL,
    size INTEGER NOT NULL,
    digest BLOB NOT NULL
);
CREATE VIRTUAL TABLE IF NOT EXISTS document_passages USING fts5 (
    title_terms, heading_terms, text_terms,
    source UNINDEXED, title UNINDEXED, heading UNINDEXED, text UNINDEXED
);
CREATE VIRTUAL TABLE IF NOT EXISTS document_terms USING fts5vocab (document_passages, row);
"""
_DROP = """
DROP TABLE IF EXISTS document_terms;
DROP TABLE IF EXISTS document_passages;
DROP TABLE IF EXISTS document_files;
"""
_INSERT = """
INSERT INTO document_passages
(rowid, title_terms, heading_terms, text_terms, source, title, heading, text) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_SEARCH = """
SELECT source, title, heading, text, -bm25(document_passages, 4.0, 3.0, 1.0) AS score
FROM document_passages WHERE document_passages MATCH ? ORDER BY score DESC, rowid LIMIT ?
"""


class DocumentIndex:
    """The passages of a folder of documents. Blocking; safe to use from several threads, so by `asyncio.to_thread`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.documents = 0
        """Number of files in the index, when it was built."""
        self.passages = 0

    @classmethod
    def build(cls, folder: Path, path: Path | None = None) -> Self:
        """The index of the documents in `folder`, kept in the file `path`, or in memory.

        Takes `.md`, `.markdown`, `.txt`, `.rst`, `.html` and `.htm` files of up to `MAX_FILE_BYTES`; leaves out what is
        hidden, binary, or linked from outside the folder. With a `path` only what changed since the last time is read.
        Raises `ConfigurationError`.
        """
        folder = folder.resolve()
        if not folder.is_dir():
            raise ConfigurationError("The folder of documents is not there. Name a folder that is.")
        try:
            index = cls(_connect(path))
            try:
                index._update(folder)
            except BaseException:
                index.close()
                raise
        except sqlite3.Error as error:
            raise ConfigurationError(
                "The index of the documents cannot be written. Check that its folder is there and writable; "
                "if the index is damaged, delete it: it is made again from the documents."
            ) from error
        return index

    def search(self, query: str, limit: int = 8) -> list[Passage]:
        """The passages that fit best, best first: those with the rarest words of `query`, headings counting more.

        Any text may be asked for; nothing in it is query syntax. Nothing is found for filler words alone.
        """
        wanted = query_terms(query)
        if not wanted:
            return []
        match = " OR ".join(f'"{term}"' for term in wanted)
        with self._lock:
            rows = self._connection.execute(_SEARCH, (match, limit)).fetchall()
        return [Passage(*row) for row in rows]

    def weights(self, query: str) -> dict[str, float]:
        """How much each term of `query` tells: the rarer in the documents, the more, and never less than 1."""
        found: dict[str, float] = {}
        with self._lock:
            for term in query_terms(query):
                row = self._connection.execute("SELECT doc FROM document_terms WHERE term = ?", (term,)).fetchone()
                count = row[0] if row else 0
                found[term] = 1 + math.log(1 + (max(self.passages, count) - count + 0.5) / (count + 0.5))
        return found

    def titles(self, limit: int = 5) -> list[str]:
        """Titles of some of the documents, in the order of their paths."""
        with self._lock:
            rows = self._connection.execute("SELECT title FROM document_files ORDER BY path LIMIT ?", (limit,))
            return [title for (title,) in rows]

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _update(self, folder: Path) -> None:
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        try:
            known = {
                os.fsdecode(path): (id, mtime_ns, size, digest)
                for id, path, mtime_ns, size, digest in run(
                    "SELECT id, path, mtime_ns, size, digest FROM document_files"
                )
            }
            for file in document_files(folder):
                self._put(file, known.pop(str(file.real), None))
            for id, *_ in known.values():
                self._forget(id)
            self.documents = run("SELECT count(*) FROM document_files").fetchone()[0]
            self.passages = run("SELECT count(*) FROM document_passages").fetchone()[0]
        except BaseException:
            run("ROLLBACK")
            raise
        run("COMMIT")

    def _put(self, file: DocumentFile, known: tuple[int, int, int, bytes] | None) -> None:
        if known is not None and known[1:3] == (file.mtime_ns, file.size):
            return
        data = read_document(file)
        if data is None:
            if known is not None:
                self._forget(known[0])
            return
        # A file that was written just now may be written again without a change of its time or size: look again.
        mtime_ns = file.mtime_ns if time.time_ns() - file.mtime_ns > _SETTLED_NS else -1
        digest = hashlib.sha256(data).digest()
        if known is not None and known[3] == digest:
            self._connection.execute(
                "UPDATE document_files SET mtime_ns = ?, size = ? WHERE id = ?", (mtime_ns, file.size, known[0])
            )
            return
        if known is not None:
            self._forget(known[0])
        self._add(file, data, mtime_ns, digest)

    def _add(self, file: DocumentFile, data: bytes, mtime_ns: int, digest: bytes) -> None:
        text = READERS[Path(file.source).suffix.lower()](data.decode("utf-8-sig", "replace").replace("\r\n", "\n"))
        outline = Outline(text)
        title = outline.title or Path(file.source).stem
        id = self._connection.execute(
            "INSERT INTO document_files (path, title, mtime_ns, size, digest) VALUES (?, ?, ?, ?, ?)",
            (os.fsencode(file.real), title, mtime_ns, file.size, digest),
        ).lastrowid
        assert id is not None
        first, title_terms = id << _NUMBER_BITS, _joined(title)
        self._connection.executemany(
            _INSERT,
            [
                (first + number, title_terms, _joined(heading), _joined(text), file.source, title, heading, text)
                for number, (heading, text) in enumerate(outline.passages)
            ],
        )

    def _forget(self, id: int) -> None:
        first = id << _NUMBER_BITS
        self._connection.execute(
            "DELETE FROM document_passages WHERE rowid BETWEEN ? AND ?", (first, first + (1 << _NUMBER_BITS) - 1)
        )
        self._connection.execute("DELETE FROM document_files WHERE id = ?", (id,))


def _connect(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(path or ":memory:", timeout=10, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != _VERSION:
            connection.executescript(f"{_DROP} PRAGMA user_version = {_VERSION};")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def _joined(text: str) -> str:
    return " ".join(terms(text))
