"""Which tools there are, from the settings."""

from collections.abc import Sequence

from headrace.ports import ToolSource
from headrace.settings import Settings


def tool_sources(settings: Settings) -> Sequence[ToolSource]:
    """Entered at the start, in this order. Raises `ConfigurationError` for a tool that there is not."""
    return []
