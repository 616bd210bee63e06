"""The one place that picks adapters: settings in, a whole Headrace out."""

from headrace.bootstrap.auth import KEY_FILE, TOKEN_SECRET, auth_config
from headrace.bootstrap.documents import INDEX_FILE
from headrace.bootstrap.headrace import Headrace, agent
from headrace.bootstrap.models import choose_model, names_of
from headrace.bootstrap.tools import tool_sources

__all__ = [
    "INDEX_FILE",
    "KEY_FILE",
    "TOKEN_SECRET",
    "Headrace",
    "agent",
    "auth_config",
    "choose_model",
    "names_of",
    "tool_sources",
]
