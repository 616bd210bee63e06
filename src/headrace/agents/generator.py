"""A plain async generator of strings as an agent."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from headrace.events import MessageEnd, MessageStart, TextDelta
from headrace.ports import Agent, AgentFactory, AgentItem, Run, RunContext

TextGenerator = Callable[[RunContext], AsyncGenerator[str, None]]
"""Takes the context of a run and yields its answer piece by piece."""


class GeneratorAgent:
    """One message, one text delta for each string."""

    resumable = False

    def __init__(self, generator: TextGenerator) -> None:
        self._generator = generator

    async def run(self, context: RunContext) -> AsyncIterator[AgentItem]:
        name = context.run.agent
        message_id = f"msg_{context.run.id.removeprefix('run_')}"
        yield MessageStart(message_id=message_id, step_id="step_1", agent=name, role="assistant")
        parts: list[str] = []
        async with aclosing(self._generator(context)) as texts:
            async for text in texts:
                if not isinstance(text, str):
                    raise TypeError(f"an agent of a generator yields strings, not {type(text).__name__}")
                parts.append(text)
                yield TextDelta(message_id=message_id, step_id="step_1", agent=name, delta=text)
        yield MessageEnd(message_id=message_id, step_id="step_1", agent=name, text="".join(parts), finish_reason="stop")

    async def cancel(self) -> None:
        """Nothing to ask: cancelling the task closes the generator."""


def generator_agent(generator: TextGenerator) -> AgentFactory:
    """A factory for agents of this generator function."""

    def make(run: Run) -> Agent:
        return GeneratorAgent(generator)

    return make
