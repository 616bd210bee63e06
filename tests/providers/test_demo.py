import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from headrace.documents import DocumentIndex
from headrace.errors import ConfigurationError, ModelCut, ModelEmpty, ModelOverloaded, ModelUnavailable
from headrace.ports import (
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
)
from headrace.providers.demo import EchoModel, ExtractiveModel, ScriptModel
from headrace.providers.demo.extractive import LABEL
from headrace.providers.demo.pace import Pace
from headrace.providers.demo.script import SAMPLE


def ask(text: str, *, prefix: str = "", max_tokens: int | None = None) -> ModelRequest:
    messages = (Message(role="system", content="Be brief."), Message(role="user", content=text))
    return ModelRequest(messages=messages, prefix=prefix, max_tokens=max_tokens)


async def all_of(model: Model, request: ModelRequest) -> list[ModelEvent]:
    return [event async for events in model.stream(request) for event in events]


def text_of(events: Sequence[ModelEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, ModelText))


def sources_of(events: Sequence[ModelEvent]) -> list[ModelData]:
    return [event for event in events if isinstance(event, ModelData)]


async def check_every_prefix(model: Model, question: str) -> None:
    """Wherever an answer was cut, the rest makes it whole, and it ends."""
    whole = text_of(await all_of(model, ask(question)))
    for cut in range(len(whole) + 1):
        events = await all_of(model, ask(question, prefix=whole[:cut]))
        assert whole[:cut] + text_of(events) == whole
        assert isinstance(events[-1], ModelFinish)


# --- extractive -------------------------------------------------------------------------------------------------------

MILL = """# The mill
The wheel drives the stones. It is made of oak. A sluice lets the water in.

## Gears
The pit wheel has 80 teeth. Each tooth is greased on Monday.
"""
MILLER = """# The miller
The miller sleeps at night and grinds by day. His flour is white.
"""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[DocumentIndex]:
    (tmp_path / "mill.md").write_text(MILL)
    (tmp_path / "miller.md").write_text(MILLER)
    with contextlib.closing(DocumentIndex.build(tmp_path)) as index:
        yield index


async def test_an_answer_quotes_and_names_its_sources(index: DocumentIndex) -> None:
    events = await all_of(ExtractiveModel(index, pace_ms=0), ask("How many teeth has the pit wheel?"))
    assert text_of(events) == (
        f"{LABEL}\n\nThe pit wheel has 80 teeth. [1] Each tooth is greased on Monday. [1]\n\n"
        "Sources:\n[1] The mill, Gears (mill.md)"
    )
    quotes = ["The pit wheel has 80 teeth.", "Each tooth is greased on Monday."]
    source = {"number": 1, "source": "mill.md", "title": "The mill", "heading": "Gears", "quotes": quotes}
    assert sources_of(events) == [ModelData("source", source)]
    assert events[-2:] == [
        ModelUsage(input_tokens=9, output_tokens=len(text_of(events).split())),
        ModelFinish("stop"),
    ]


async def test_several_sources_are_numbered(index: DocumentIndex) -> None:
    events = await all_of(ExtractiveModel(index, pace_ms=0), ask("white flour oak"))
    text = text_of(events)
    assert "His flour is white. [1]" in text
    assert [event.value["number"] for event in sources_of(events)] == list(range(1, len(sources_of(events)) + 1))
    assert all(f"[{event.value['number']}] {event.value['title']}" in text for event in sources_of(events))


async def test_at_most_five_sentences(tmp_path: Path) -> None:
    (tmp_path / "long.md").write_text(" ".join(f"Water number {n} flows here." for n in range(20)))
    with contextlib.closing(DocumentIndex.build(tmp_path)) as index:
        events = await all_of(ExtractiveModel(index, pace_ms=0), ask("Where does water flow?"))
    assert 2 <= len(sources_of(events)[0].value["quotes"]) <= 5


@pytest.mark.parametrize(
    "question",
    ["What is the capital of France?", "Who wrote the novel about a wheel in Patagonia?", "of the", "x" * 10**6],
)
async def test_where_nothing_fits_it_says_so_and_what_can_be_done(index: DocumentIndex, question: str) -> None:
    events = await all_of(ExtractiveModel(index, pace_ms=0), ask(question))
    text = text_of(events)
    assert text.startswith(f"{LABEL}\n\nNothing in the documents fits this question.")
    assert "The mill, The miller" in text
    assert "set OPENAI_API_KEY" in text
    assert sources_of(events) == []


async def test_one_short_document_is_enough(tmp_path: Path) -> None:
    (tmp_path / "mill.md").write_text("# The mill\n\nThe pit wheel has 80 teeth. It turns the stones.\n")
    with contextlib.closing(DocumentIndex.build(tmp_path)) as index:
        text = text_of(await all_of(ExtractiveModel(index, pace_ms=0), ask("How many big teeth has the pit wheel?")))
    assert "The pit wheel has 80 teeth. [1]" in text


async def test_without_documents_it_says_so(tmp_path: Path) -> None:
    with contextlib.closing(DocumentIndex.build(tmp_path)) as index:
        text = text_of(await all_of(ExtractiveModel(index, pace_ms=0), ask("How many teeth?")))
    assert "none yet" in text


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("Hello!", "Hello!"),
        ("good morning", "Hello!"),
        ("Thank you very much.", "You are welcome."),
        ("How are you?", "As well as"),
        ("What can you do?", "I look your question up"),
        ("  ?! ", "Ask me something"),
        ("", "Ask me something"),
    ],
)
async def test_small_talk(index: DocumentIndex, said: str, answer: str) -> None:
    assert text_of(await all_of(ExtractiveModel(index, pace_ms=0), ask(said))).startswith(f"{LABEL}\n\n{answer}")


async def test_the_last_user_turn_is_answered(index: DocumentIndex) -> None:
    turns = [Message(role="user", content="flour"), Message(role="assistant", content="sluice")]
    request = ModelRequest(messages=(*turns, Message(role="user", content="pit wheel teeth"), turns[1]))
    assert "80 teeth" in text_of(await all_of(ExtractiveModel(index, pace_ms=0), request))


async def test_an_extractive_answer_goes_on_where_it_was_cut(index: DocumentIndex) -> None:
    await check_every_prefix(ExtractiveModel(index, pace_ms=0), "How many teeth has the pit wheel?")


async def test_another_answer_than_the_one_begun_follows_as_a_whole(index: DocumentIndex) -> None:
    model = ExtractiveModel(index, pace_ms=0)
    whole = text_of(await all_of(model, ask("Hello!")))
    assert text_of(await all_of(model, ask("Hello!", prefix="Something else"))) == f"\n\n{whole}"


async def test_an_extractive_answer_is_as_long_as_allowed(index: DocumentIndex) -> None:
    model = ExtractiveModel(index, pace_ms=0)
    events = await all_of(model, ask("How many teeth?", max_tokens=4))
    assert text_of(events) == "Demo model (no AI): "
    assert events[-1] == ModelFinish("length")
    events = await all_of(model, ask("How many teeth?", max_tokens=4, prefix="Demo model "))
    assert text_of(events) == "(no AI): "


async def test_words_come_one_by_one_at_their_pace(index: DocumentIndex) -> None:
    stream = [events async for events in ExtractiveModel(index, pace_ms=1).stream(ask("Hello!"))]
    assert len(stream) > 3
    assert stream[0][0] == ModelText("Demo ")


async def test_an_index_that_fails_is_a_model_that_cannot_be_reached(index: DocumentIndex) -> None:
    index.close()
    with pytest.raises(ModelUnavailable):
        await all_of(ExtractiveModel(index), ask("How many teeth?"))


# --- echo -------------------------------------------------------------------------------------------------------------


async def test_echo_says_what_was_said_word_by_word() -> None:
    said = "  Déjà\nvu, 🙂‍↔️ twice \n"
    events = await all_of(EchoModel(), ask(said))
    assert events == [
        *(ModelText(word) for word in ("  ", "Déjà\n", "vu, ", "🙂‍↔️ ", "twice \n")),
        ModelUsage(input_tokens=6, output_tokens=5),
        ModelFinish("stop"),
    ]


async def test_echo_of_nothing_is_an_empty_answer() -> None:
    with pytest.raises(ModelEmpty):
        await all_of(EchoModel(), ModelRequest(messages=()))


async def test_echo_counts_in_tokens_of_one_size() -> None:
    assert text_of(await all_of(EchoModel(count=3), ask("x"))) == "0000 0001 0002 "
    assert text_of(await all_of(EchoModel(count=12, size=1), ask("x"))) == "012345678901"
    assert text_of(await all_of(EchoModel(count=11, size=2), ask("x"))) == "0 1 2 3 4 5 6 7 8 9 0 "


@pytest.mark.parametrize("batch", [1, 32, 2500])
async def test_echo_gives_every_token_once_whatever_the_batch(batch: int) -> None:
    stream = [events async for events in EchoModel(count=2345, batch=batch).stream(ask("x"))]
    *texts, (usage, finish) = stream
    assert [event for events in texts for event in events] == [ModelText(f"{n % 1000:04} ") for n in range(2345)]
    assert max(map(len, texts)) == min(batch, 2345)
    assert (usage, finish) == (ModelUsage(input_tokens=3, output_tokens=2345), ModelFinish("stop"))


@pytest.mark.parametrize("model", [EchoModel(), EchoModel(count=4, batch=3), EchoModel(count=3, size=1)])
async def test_an_echo_goes_on_where_it_was_cut(model: EchoModel) -> None:
    await check_every_prefix(model, "one  two three ")


async def test_an_echo_is_as_long_as_allowed() -> None:
    events = await all_of(EchoModel(count=9), ask("x", max_tokens=2))
    assert (text_of(events), events[-1]) == ("0000 0001 ", ModelFinish("length"))
    events = await all_of(EchoModel(count=9), ask("x", max_tokens=2, prefix="0000 "))
    assert (text_of(events), events[-1]) == ("0001 ", ModelFinish("length"))
    assert (await all_of(EchoModel(count=2), ask("x", max_tokens=2)))[-1] == ModelFinish("stop")


async def said_before_failure(model: Model, request: ModelRequest, failure: type[Exception]) -> str:
    said: list[ModelEvent] = []
    try:
        async for events in model.stream(request):
            said += events
    except failure:
        return text_of(said)
    raise AssertionError(f"ended without {failure.__name__}")


async def test_echo_fails_where_and_how_it_is_told() -> None:
    assert await said_before_failure(EchoModel(count=5, error_after=2), ask("x"), ModelCut) == "0000 0001 "
    overloaded = EchoModel(count=5, error="model.overloaded")
    assert await said_before_failure(overloaded, ask("x"), ModelOverloaded) == ""
    at_the_end = EchoModel(count=2, error_after=2)
    assert await said_before_failure(at_the_end, ask("x"), ModelCut) == "0000 0001 "
    again = EchoModel(count=5, error_after=2)
    assert await said_before_failure(again, ask("x", prefix="0000 "), ModelCut) == "0001 "
    with pytest.raises(ConfigurationError, match=r"model\.overloaded"):
        EchoModel(error="not_found")


async def test_echo_stalls_where_it_is_told_and_can_be_cancelled() -> None:
    said: list[ModelEvent] = []
    told = asyncio.Event()

    async def listen() -> None:
        async for events in EchoModel(count=5, stall_after=3, batch=2).stream(ask("x")):
            said.extend(events)
            if len(said) == 3:
                told.set()

    task = asyncio.create_task(listen())
    await asyncio.wait_for(told.wait(), 10)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    assert text_of(said) == "0000 0001 0002 "
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_echo_keeps_its_schedule() -> None:
    begun = time.monotonic()
    stream = [events async for events in EchoModel(count=5, pace_ms=10, first_ms=30).stream(ask("x"))]
    assert time.monotonic() - begun >= 0.068
    assert sum(isinstance(event, ModelText) for events in stream for event in events) == 5


async def test_who_is_late_gets_what_became_due() -> None:
    pace = Pace(0.001)
    assert await pace.reach(0) >= 1
    time.sleep(0.02)  # noqa: ASYNC251  the loop is held up on purpose
    assert await pace.reach(1) >= 20
    assert await Pace(0).reach(7) > 10**9


async def test_an_unpaced_echo_lets_others_run() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await all_of(EchoModel(count=1000, batch=10), ask("x"))
    task.cancel()
    assert turns >= 90


# --- script -----------------------------------------------------------------------------------------------------------


def script(path: Path, *lines: str) -> Path:
    file = path / "script.jsonl"
    file.write_text("\n".join(lines))
    return file


async def test_a_script_is_replayed(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        '{"reasoning": "Hm. "}',
        '{"after_ms": 5, "text": "One "}',
        "",
        '{"text": "two"}',
        '{"tool_call": {"index": 0, "id": "c1", "name": "search", "arguments": "{}"}}',
        '{"usage": {"input_tokens": 3, "output_tokens": 2}}',
        '{"finish": "tool_calls"}',
    )
    assert await all_of(ScriptModel(path, speed=100), ask("x")) == [
        ModelReasoning("Hm. "),
        ModelText("One "),
        ModelText("two"),
        ModelToolCall(index=0, id="c1", name="search", arguments="{}"),
        ModelUsage(input_tokens=3, output_tokens=2),
        ModelFinish("tool_calls"),
    ]


async def test_a_script_keeps_its_timing_and_speed(tmp_path: Path) -> None:
    path = script(tmp_path, '{"after_ms": 40, "text": "a"}', '{"after_ms": 40, "finish": "stop"}')
    begun = time.monotonic()
    await all_of(ScriptModel(path, speed=2), ask("x"))
    half = time.monotonic() - begun
    begun = time.monotonic()
    await all_of(ScriptModel(path), ask("x"))
    assert half >= 0.038
    assert time.monotonic() - begun >= 0.078


async def test_a_script_goes_on_where_it_was_cut() -> None:
    await check_every_prefix(ScriptModel(SAMPLE, speed=1_000_000), "x")


async def test_what_came_before_the_prefix_is_not_replayed() -> None:
    events = await all_of(ScriptModel(SAMPLE, speed=1_000_000), ask("x", prefix="This answer was "))
    assert events[0] == ModelText("recorded. ")
    assert not any(isinstance(event, ModelReasoning) for event in events)


async def test_a_script_without_a_finish_is_cut(tmp_path: Path) -> None:
    model = ScriptModel(script(tmp_path, '{"text": "One "}'))
    assert await said_before_failure(model, ask("x"), ModelCut) == "One "


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (['{"text": "a"}', "{"], "Line 2"),
        (['{"text": "a", "finish": "stop"}'], "Line 1"),
        (['{"after_ms": 3}'], "Line 1"),
        (['{"after_ms": -1, "text": "a"}'], "Line 1"),
        (['{"txt": "a"}'], "Line 1"),
        ([], "empty"),
        (['{"finish": "stop"}', '{"text": "a"}'], "finish"),
    ],
)
def test_a_script_that_is_none_is_told(tmp_path: Path, lines: list[str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        ScriptModel(script(tmp_path, *lines))


def test_a_script_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xff"}')
    for path in (tmp_path / "nowhere.jsonl", tmp_path, Path("\0"), tmp_path / "latin.jsonl"):
        with pytest.raises(ConfigurationError, match="script"):
            ScriptModel(path)


@pytest.mark.parametrize("model", [EchoModel(count=1), ScriptModel(SAMPLE)])
async def test_demo_models_are_named_as_such_and_can_go_on(model: Model) -> None:
    assert model.name.startswith("demo:")
    assert model.continues
    await model.start()
    await model.close()
