"""Headrace: every run of an agent is an append-only log of events that any client can leave, resume, watch and stop."""
