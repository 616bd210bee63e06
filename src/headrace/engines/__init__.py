"""Engines keep logs, leases and the queue of runs: `memory`, `sqlite`."""
