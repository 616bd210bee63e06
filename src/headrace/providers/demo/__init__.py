"""Models that need no key and are no AI: they quote documents, echo, or replay a recording. Always named `demo:...`."""

from headrace.providers.demo.echo import EchoModel
from headrace.providers.demo.extractive import ExtractiveModel
from headrace.providers.demo.script import ScriptModel

__all__ = ["EchoModel", "ExtractiveModel", "ScriptModel"]
