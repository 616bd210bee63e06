"""Bytes to frames, however they arrive."""

import random
from itertools import pairwise

import pytest

from headrace.client.sse import Frame, Parser

TEXT = "ä€😀 \u2028 \x85"
STREAM = (
    f"\ufeffretry: 1500\nid: a-1\ndata: {TEXT}\n\n: ping\n\nid:a-2\ndata:x\ndata: y\nevent: z\nunknown\n\ndata\n\n"
).encode()
FRAMES = [Frame("a-1", TEXT.encode()), Frame("a-2", b"x\ny"), Frame(None, b"")]


def parsed(chunks: list[bytes]) -> tuple[list[Frame], Parser]:
    parser = Parser()
    return [frame for chunk in chunks for frame in parser.feed(chunk)], parser


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_any_line_end_and_any_cut(line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    rng = random.Random(1)
    cuts = [sorted(rng.sample(range(len(stream)), rng.randrange(12))) for _ in range(200)]
    for ends in [[], range(len(stream)), *cuts]:
        edges = [0, *ends, len(stream)]
        frames, parser = parsed([stream[a:b] for a, b in pairwise(edges)])
        assert frames == FRAMES
        assert (parser.retry, parser.comments) == (1.5, 1)


def test_a_frame_without_its_end_is_no_frame() -> None:
    assert parsed([b"id: a-1\ndata: x\n"])[0] == []
    assert parsed([b"id: a-1\ndata: x"])[0] == []


def test_an_id_without_data_is_no_frame_and_is_not_kept() -> None:
    assert parsed([b"id: a-1\n\ndata: x\n\n"])[0] == [Frame(None, b"x")]


@pytest.mark.parametrize("line", [b"retry: soon", b"retry: -1", b"retry:", "retry: \u0661".encode()])
def test_a_retry_that_is_no_number_is_ignored(line: bytes) -> None:
    assert parsed([line + b"\n"])[1].retry is None


def test_an_id_with_nul_is_ignored() -> None:
    assert parsed([b"id: a\0b\ndata: x\n\n"])[0] == [Frame(None, b"x")]


def test_a_long_line_in_small_pieces() -> None:
    data = b"x" * 300_000
    stream = b"data: " + data + b"\n\n"
    assert parsed([stream[i : i + 7] for i in range(0, len(stream), 7)])[0] == [Frame(None, data)]
