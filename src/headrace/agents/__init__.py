"""Agents write logs: `chat` (a model with tools), `generator` (any async generator of strings)."""
