"""Headrace: every run of an agent is an append-only log of events that any client can leave, resume, watch and stop."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.bootstrap import Headrace, agent
    from headrace.client import AsyncClient, Client
    from headrace.errors import HeadraceError
    from headrace.ports import RunContext, ToolContext
    from headrace.settings import Settings
    from headrace.tools.function import tool

__all__ = [
    "AsyncClient",
    "Client",
    "Headrace",
    "HeadraceError",
    "RunContext",
    "Settings",
    "ToolContext",
    "agent",
    "tool",
]

_HOMES = {
    "AsyncClient": "client",
    "Client": "client",
    "Headrace": "bootstrap",
    "HeadraceError": "errors",
    "RunContext": "ports",
    "Settings": "settings",
    "ToolContext": "ports",
    "agent": "bootstrap",
    "tool": "tools.function",
}
"""Loaded when they are first asked for: who imports the client does not load a server."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
