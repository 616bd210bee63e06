"""The embedded engine: one SQLite file, one writer thread, group commit.

- `engine`      the port: what the event loop knows of live runs, and what it asks the writer for
- `writer`      the thread that owns the writing connection and commits everything that waits in one transaction
- `operations`  what can be in such a transaction, one class each
- `reader`      stored blocks and heads, read by threads with their own read-only connections
- `schema`      the tables
- `stored`      how a block and a list of blocks look as bytes
"""

from headrace.engines.sqlite.engine import SqliteEngine

__all__ = ["SqliteEngine"]
