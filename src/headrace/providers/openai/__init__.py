"""Models behind any server that speaks OpenAI's chat completions."""

from headrace.providers.openai.model import OpenAIModel, Timeouts

__all__ = ["OpenAIModel", "Timeouts"]
