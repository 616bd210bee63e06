"""JSON payloads that are safe inside one line of a text stream."""

from collections.abc import Sequence

from msgspec.json import Encoder

_encoder = Encoder()


def to_json(value: object) -> bytes:
    """Compact JSON in UTF-8, safe for `one_line`."""
    return one_line(_encoder.encode(value))


def one_line(json: bytes) -> bytes:
    """Escape U+0085, U+2028 and U+2029, which some readers of lines take for line ends. JSON itself escapes CR and LF.

    The three can stand in JSON only inside strings, and their lead bytes nowhere else in UTF-8.
    """
    if json.isascii():
        return json
    return (
        json.replace(b"\xc2\x85", b"\\u0085").replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    )


def pieces(text: str, size: int) -> Sequence[str]:
    """The text in parts of at most `size` characters; none of an empty one."""
    if len(text) <= size:
        return (text,) if text else ()
    return [text[start : start + size] for start in range(0, len(text), size)]
