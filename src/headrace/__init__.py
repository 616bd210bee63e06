"""Headrace: every run of an agent is an append-only log of events that any client can leave, resume, watch and stop."""

from headrace.bootstrap import Headrace, agent
from headrace.errors import HeadraceError
from headrace.ports import RunContext
from headrace.settings import Settings

__all__ = ["Headrace", "HeadraceError", "RunContext", "Settings", "agent"]
