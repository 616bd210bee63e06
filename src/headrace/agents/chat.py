"""The chat agent: system prompt, history, a model, and tools that the server runs, step by step.

Ids are made from the run's id and the number of the step, so an attempt that goes on after a crash gives the same ones.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

import msgspec

from headrace.errors import Interrupted, InvalidField, ModelEmpty, TooManySteps
from headrace.events import (
    AnyEvent,
    Data,
    MessageEnd,
    MessageStart,
    ReasoningDelta,
    StepFinished,
    StepStarted,
    TextDelta,
    ToolCallArgs,
    ToolCallEnd,
    ToolCallResult,
    ToolCallStart,
    Usage,
)
from headrace.ports import (
    Agent,
    AgentFactory,
    AgentItem,
    Message,
    Model,
    ModelData,
    ModelEvent,
    ModelFinish,
    ModelReasoning,
    ModelRequest,
    ModelText,
    ModelToolCall,
    ModelUsage,
    Run,
    RunContext,
    ToolCall,
    ToolContext,
)
from headrace.tools import Toolbox

MAX_STEPS = 40


class ChatInput(msgspec.Struct, frozen=True, kw_only=True):
    """What a chat agent reads of a run's input."""

    message: str
    history: tuple[Message, ...] = ()
    """Earlier turns, oldest first."""
    max_tokens: int | None = None
    temperature: float | None = None


class ChatAgent:
    """One conversation turn. Not resumable where the model cannot go on from a text that is already shown."""

    def __init__(
        self, model: Model, *, system_prompt: str = "", tools: Toolbox | None = None, max_steps: int = MAX_STEPS
    ) -> None:
        self.resumable = model.continues
        self._model = model
        self._system_prompt = system_prompt
        self._tools = tools or Toolbox()
        self._max_steps = max_steps
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False

    async def cancel(self) -> None:
        """Interrupt the model at once; `run` then closes the open message and notes the usage."""
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    async def run(self, context: RunContext) -> AsyncIterator[AgentItem]:
        self._task = asyncio.current_task()
        past = _Past.of(context)
        if past.finished:
            return
        messages = [*self._opening(context.run), *past.messages]
        for number in range(past.steps + 1, self._max_steps + 1):
            step = _Step(context.run, number, self._model.name, text=past.text, reasoning=past.reasoning)
            if not past.open:
                yield step.begin()
            request = self._request(context.run, messages, prefix=past.text)
            past = _Past(steps=number)
            async with aclosing(self._answer(step, request)) as answer:
                async for events in answer:
                    yield events
            yield step.end()
            if self._cancelled or not step.calls:
                return
            calls = step.tool_calls()
            messages.append(Message(role="assistant", content=step.whole_text(), tool_calls=calls))
            for call in calls:
                result = await self._call(context.run, call)
                messages.append(Message(role="tool", content=result.output, tool_call_id=call.id))
                yield result
        raise TooManySteps

    async def _answer(self, step: "_Step", request: ModelRequest) -> AsyncGenerator[Sequence[AnyEvent], None]:
        """The model's events as the log's. A cancel of ours ends it quietly, with what there was."""
        try:
            async with aclosing(
                cast("AsyncGenerator[Sequence[ModelEvent], None]", self._model.stream(request))
            ) as stream:
                async for model_events in stream:
                    if events := step.translate(model_events):
                        yield events
        except asyncio.CancelledError:
            if not self._cancelled:
                raise
            step.finish_reason = "cancelled"
        if not step.finish_reason:
            raise ModelEmpty

    async def _call(self, run: Run, call: ToolCall) -> ToolCallResult:
        outcome = await self._tools.execute(call, ToolContext(run=run, tool_call_id=call.id))
        return ToolCallResult(tool_call_id=call.id, output=outcome.output, is_error=outcome.is_error)

    def _opening(self, run: Run) -> list[Message]:
        chat = _chat_input(run)
        system = [Message(role="system", content=self._system_prompt)] if self._system_prompt else []
        return [*system, *chat.history, Message(role="user", content=chat.message)]

    def _request(self, run: Run, messages: Sequence[Message], *, prefix: str) -> ModelRequest:
        chat = _chat_input(run)
        return ModelRequest(
            messages=tuple(messages),
            tools=self._tools.all,
            max_tokens=chat.max_tokens,
            temperature=chat.temperature,
            prefix=prefix,
        )


def chat_agent(model: Model, *, system_prompt: str = "", tools: Toolbox | None = None) -> AgentFactory:
    """A factory for chat agents over one model."""

    def make(run: Run) -> Agent:
        return ChatAgent(model, system_prompt=system_prompt, tools=tools)

    return make


class _Step:
    """One call of the model: turns what it says into events and gathers the whole of it."""

    def __init__(self, run: Run, number: int, model: str, *, text: str, reasoning: str) -> None:
        suffix = "" if number == 1 else f"_{number}"
        self.message_id = f"msg_{run.id.removeprefix('run_')}{suffix}"
        self.step_id = f"step_{number}"
        self.finish_reason = ""
        self.calls: dict[int, _Call] = {}
        self._agent = run.agent
        self._model = model
        self._text = [text]
        self._reasoning = [reasoning]
        self._usage: ModelUsage | None = None

    def begin(self) -> Sequence[AnyEvent]:
        return [
            StepStarted(step_id=self.step_id, agent=self._agent),
            MessageStart(message_id=self.message_id, step_id=self.step_id, agent=self._agent, role="assistant"),
        ]

    def translate(self, model_events: Sequence[ModelEvent]) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        for event in model_events:
            if type(event) is ModelText:
                self._text.append(event.text)
                events.append(
                    TextDelta(message_id=self.message_id, step_id=self.step_id, agent=self._agent, delta=event.text)
                )
            elif isinstance(event, ModelReasoning):
                self._reasoning.append(event.text)
                events.append(
                    ReasoningDelta(
                        message_id=self.message_id, step_id=self.step_id, agent=self._agent, delta=event.text
                    )
                )
            elif isinstance(event, ModelToolCall):
                events += self._tool_call(event)
            elif isinstance(event, ModelUsage):
                self._usage = event
            elif isinstance(event, ModelData):
                events.append(Data(name=event.name, value=event.value))
            elif isinstance(event, ModelFinish):
                self.finish_reason = event.reason
        return events

    def end(self) -> Sequence[AnyEvent]:
        usage = self._usage or ModelUsage()
        return [
            *[
                ToolCallEnd(tool_call_id=call.id, name=call.name, message_id=self.message_id, args=call.arguments)
                for call in self.calls.values()
            ],
            MessageEnd(
                message_id=self.message_id,
                step_id=self.step_id,
                agent=self._agent,
                text=self.whole_text(),
                reasoning="".join(self._reasoning),
                finish_reason=self.finish_reason,
            ),
            Usage(
                step_id=self.step_id,
                model=self._model,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cached=usage.cached,
                reasoning=usage.reasoning,
            ),
            StepFinished(
                step_id=self.step_id,
                agent=self._agent,
                status="cancelled" if self.finish_reason == "cancelled" else "completed",
            ),
        ]

    def whole_text(self) -> str:
        return "".join(self._text)

    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in self.calls.values())

    def _tool_call(self, piece: ModelToolCall) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        call = self.calls.get(piece.index)
        if call is None:
            call_id = f"call_{self.message_id.removeprefix('msg_')}_{piece.index}"
            call = self.calls[piece.index] = _Call(piece.id or call_id, piece.name or "")
            events.append(
                ToolCallStart(tool_call_id=call.id, name=call.name, message_id=self.message_id, executed_by="server")
            )
        if piece.arguments:
            call.arguments += piece.arguments
            events.append(ToolCallArgs(tool_call_id=call.id, message_id=self.message_id, delta=piece.arguments))
        return events


class _Call:
    """A tool call that is being written."""

    def __init__(self, call_id: str, name: str) -> None:
        self.id = call_id
        self.name = name
        self.arguments = ""


class _Past:
    """What earlier attempts had done: whole steps as messages, and what was said in the one that was open."""

    def __init__(self, steps: int = 0) -> None:
        self.steps = steps
        self.messages: list[Message] = []
        self.text = ""
        self.reasoning = ""
        self.open = False

    @property
    def finished(self) -> bool:
        """All was said, only the run's end was not written yet."""
        return bool(self.messages) and not self.open and self.messages[-1].role == "assistant"

    @classmethod
    def of(cls, context: RunContext) -> "_Past":
        """Raises `Interrupted` where a tool call was open: whether the tool ran is not known."""
        past = cls()
        unanswered: dict[str, ToolCall] = {}  # some models use an id again once its call is answered
        for event in context.history:
            if isinstance(event, MessageStart):
                past.open, past.text, past.reasoning = True, "", ""
            elif isinstance(event, TextDelta):
                past.text += event.delta
            elif isinstance(event, ReasoningDelta):
                past.reasoning += event.delta
            elif isinstance(event, ToolCallStart):
                unanswered[event.tool_call_id] = ToolCall(id=event.tool_call_id, name=event.name, arguments="")
            elif isinstance(event, ToolCallEnd):
                unanswered[event.tool_call_id] = ToolCall(id=event.tool_call_id, name=event.name, arguments=event.args)
            elif isinstance(event, MessageEnd):
                calls = tuple(unanswered.values())
                past.messages.append(Message(role="assistant", content=event.text, tool_calls=calls))
                past.open, past.text, past.reasoning, past.steps = False, "", "", past.steps + 1
            elif isinstance(event, ToolCallResult):
                unanswered.pop(event.tool_call_id, None)
                past.messages.append(Message(role="tool", content=event.output, tool_call_id=event.tool_call_id))
        if unanswered:
            raise Interrupted
        return past


def _chat_input(run: Run) -> ChatInput:
    try:
        return msgspec.convert(run.input, ChatInput)
    except msgspec.ValidationError as error:
        raise InvalidField(f"The input of a chat has a value that is not allowed: {error}.") from error
