"""One text for each position, and no other text is taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidPosition
from headrace.position import MAX_OFFSET, Position, new_epoch, random_letters

_EPOCHS = st.text("0123456789abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=16)
_POSITIONS = st.builds(
    Position, _EPOCHS, st.integers(0, MAX_OFFSET) | st.integers(0, 20), st.integers(0, 999_999) | st.integers(0, 3)
)


@given(_POSITIONS)
def test_what_is_written_is_read_back(position: Position) -> None:
    text = str(position)
    assert Position.parse(text) == position
    assert text.isascii()
    assert len(text) <= 64


@given(
    st.text(max_size=40)
    | st.text("0123456789az-.", max_size=30)
    | st.from_regex(r"[0-9a-z]{1,17}-[0-9]{1,20}(\.[0-9]{1,7})?", fullmatch=True)
)
def test_nothing_else_is_a_position(text: str) -> None:
    """What is taken is exactly what this server writes."""
    try:
        position = Position.parse(text)
    except InvalidPosition:
        return
    assert str(position) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "5",
        "abc",
        "abc-",
        "abc--1",
        "abc-01",
        "abc-1.0",
        "abc-1.01",
        "abc-0.1",
        "abc-1.",
        "ABC-1",
        " abc-1",
        "abc-1\n",
        "abc-1\x00",
        "abc-١",
        "abc-9223372036854775808",
        "abc-1.1000000",
        "a" * 17 + "-1",
        "a-" + "1" * 100_000,
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidPosition):
        Position.parse(text)


def test_positions_of_one_log_are_in_order() -> None:
    """After two frames of event 5, one stands before its end and behind event 4."""
    assert Position("e", 4) < Position.parse("e-5.2") < Position("e", 5)
    assert Position.parse("e-5.2") == Position("e", 4, 2)


def test_epochs_differ_and_are_part_of_a_position() -> None:
    epochs = {new_epoch() for _ in range(200)}
    assert len(epochs) > 190
    assert all(str(Position.parse(f"{epoch}-7")) == f"{epoch}-7" for epoch in epochs)


@pytest.mark.parametrize("count", [1, 6, 26])
def test_random_letters_use_the_whole_alphabet_and_no_look_alikes(count: int) -> None:
    letters = {letter for _ in range(1000) for letter in random_letters(count)}
    assert letters == set("0123456789abcdefghjkmnpqrstvwxyz")
    assert len(random_letters(count)) == count
