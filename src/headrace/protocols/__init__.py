"""Protocols read logs: each is a pure two-way translation between the log and one wire format."""
