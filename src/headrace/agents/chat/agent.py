"""One conversation turn: asks the model, runs the tools that it asks for, and asks again, until it has answered."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, cast

import msgspec

from headrace import json_schema
from headrace.agents.chat.approval import APPROVAL_SECONDS
from headrace.agents.chat.chat_input import ChatInput, chat_input
from headrace.agents.chat.past import Past
from headrace.agents.chat.step import Cost, Step
from headrace.agents.chat.tool_use import ToolUse
from headrace.errors import Interrupted, ModelEmpty, ModelError, ModelOutputInvalid, TooManySteps
from headrace.events import OUTPUT, AnyEvent, Data
from headrace.ports import (
    Agent,
    AgentFactory,
    AgentItem,
    Message,
    Model,
    ModelEvent,
    ModelRequest,
    ModelUsage,
    Run,
    RunContext,
    Tool,
)
from headrace.toolbox import Toolbox
from headrace.usage import estimate

MAX_STEPS = 40

UNCHECKED = frozenset({"budget", "cancelled"})
"""Reasons after which an answer in JSON need not be whole."""

OnLostCall = Callable[[str, ModelUsage, int], Awaitable[None]]
"""Takes the name of a model, an estimate, and how many `usage` events the log has so far."""


class ChatAgent:
    """Goes on after a crash: with the text that is already shown where the model can, else visibly anew."""

    resumable = True

    def __init__(
        self,
        model: Model,
        *,
        system_prompt: str = "",
        tools: Toolbox | None = None,
        cost: Cost | None = None,
        on_lost_call: OnLostCall | None = None,
        max_steps: int = MAX_STEPS,
        approval_seconds: float = APPROVAL_SECONDS,
    ) -> None:
        """`on_lost_call` is told what a call took that was lost with an earlier attempt, before the log tells it."""
        self._model = model
        self._system_prompt = system_prompt
        self._tools = tools or Toolbox()
        self._cost = cost
        self._on_lost_call = on_lost_call
        self._max_steps = max_steps
        self._approval_seconds = approval_seconds
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False
        self._heeding = True
        """Not while it is up to others to take what the model said."""

    async def cancel(self) -> None:
        """Interrupt the model at once; `run` then closes the open message and notes the usage."""
        self._cancelled = True
        if self._task is not None and self._heeding:
            self._task.cancel()

    async def run(self, context: RunContext) -> AsyncIterator[AgentItem]:
        self._task = asyncio.current_task()
        chat = chat_input(context.run)
        past = Past.of(context.history)
        if past.finished:
            if past.finish_reason not in UNCHECKED:
                await self._value(chat, past.messages[-1].content)  # which may be why it failed, and nobody wrote that
            return
        messages = [*self._opening(chat), *past.messages]
        tools = ToolUse(self._tools, context, approval_seconds=self._approval_seconds)
        offered = self._tools.open_to(context.run.scopes)
        async with aclosing(tools.run(past.steps, past.unanswered, messages, past=past)) as events_of_tools:
            async for event in events_of_tools:
                yield event
        for number in range(past.steps + 1, self._max_steps + 1):
            is_json = chat.output_schema is not None
            step = Step(context, number, self._model.name, cost=self._cost, is_json=is_json)
            request = self._request(chat, messages, offered)
            if past.begun:
                request, events = await self._go_on(step, request, past)
                past = Past()
                yield events
            else:
                yield step.begin()
            async with aclosing(self._answer(step, request)) as answer:
                async for events in answer:
                    yield events
            output, invalid = await self._output(chat, step)
            yield [*step.end(request), *output]
            if invalid is not None:
                raise invalid
            if self._cancelled or not step.wants_tools:
                return
            messages.append(step.message())
            async with aclosing(tools.run(number, step.calls, messages)) as events_of_tools:
                async for event in events_of_tools:
                    yield event
        raise TooManySteps

    async def _go_on(self, step: Step, request: ModelRequest, past: Past) -> tuple[ModelRequest, Sequence[AnyEvent]]:
        """The request that goes on in a message that an earlier attempt had begun, and what is to be told first."""
        model = past.model or self._model.name
        events = [*step.void(past.calls)]
        if past.unpaid:
            usage = estimate.completed(None, request, past.unpaid)
            if self._on_lost_call is not None:
                await self._on_lost_call(model, usage, past.usages)
            events.append(step.usage(model, usage))
        if self._model.continues:
            step.go_on(past.text, past.reasoning)
            return msgspec.structs.replace(request, prefix=past.text), events
        if past.text or past.reasoning or past.calls:
            events.append(step.restart(model=self._model.name, reason=Interrupted.code))
        return request, events

    async def _answer(self, step: Step, request: ModelRequest) -> AsyncGenerator[Sequence[AnyEvent], None]:
        """The model's events as the log's. A cancel of ours ends it quietly, with what there was."""
        try:
            async with aclosing(
                cast("AsyncGenerator[Sequence[ModelEvent], None]", self._model.stream(request))
            ) as stream:
                async for model_events in stream:
                    if events := step.translate(model_events):
                        self._heeding = False
                        yield events
                        self._heeding = True
                        if self._cancelled:
                            step.finish_reason = "cancelled"
                            return
        except asyncio.CancelledError:
            if not self._cancelled:
                raise
            step.finish_reason = "cancelled"
        except ModelError:
            yield step.fail(request)
            raise
        if not step.finish_reason:
            raise ModelEmpty

    async def _output(self, chat: ChatInput, step: Step) -> tuple[Sequence[AnyEvent], ModelOutputInvalid | None]:
        """The value of the last message, where one was asked for, or that it is none."""
        if chat.output_schema is None or step.wants_tools or step.finish_reason in UNCHECKED:
            return (), None
        try:
            return [Data(name=OUTPUT, value=await self._value(chat, step.text))], None
        except ModelOutputInvalid as error:
            return (), error

    async def _value(self, chat: ChatInput, text: str) -> Any:
        if chat.output_schema is None:
            return None
        return await asyncio.to_thread(json_schema.parse, text, chat.output_schema)

    def _opening(self, chat: ChatInput) -> list[Message]:
        system = [Message(role="system", content=self._system_prompt)] if self._system_prompt else []
        return [*system, *(turn.message() for turn in chat.history), Message(role="user", content=chat.message)]

    def _request(self, chat: ChatInput, messages: Sequence[Message], tools: tuple[Tool, ...]) -> ModelRequest:
        return ModelRequest(
            messages=tuple(messages),
            tools=tools,
            max_tokens=chat.max_tokens,
            temperature=chat.temperature,
            output_schema=chat.output_schema,
        )


def chat_agent(model: Model, *, system_prompt: str = "", tools: Toolbox | None = None) -> AgentFactory:
    """A factory for chat agents over one model."""

    def make(run: Run) -> Agent:
        return ChatAgent(model, system_prompt=system_prompt, tools=tools)

    return make
