"""Whatever is told, a line stays one line, short, and harmless to a terminal. Each test is a process of its own, since
logging is configured once for all of it."""

import json
import subprocess
import sys
from typing import Any

import pytest

from headrace.errors import ConfigurationError
from headrace.log_output import configure

HOSTILE = {
    "line ends": "a\r\nERROR forged",
    "separators": "a\u0085b\u2028c\u2029d",
    "escape": "a\x1b[2J\x1b]0;owned\x07b",
    "one byte escape": "a\x9b2Jb",
    "zero": "a\0b",
    "half of a pair": "a\ud800b",
    "long": "x" * 100_000,
    "wide": "𝄞" * 20_000,
}
OURS = "structlog.get_logger('ours').warning"
LIBRARY = "(lambda event, **values: logging.getLogger('library').warning('%s %s', event, values))"


def printed(style: str, script: str, level: str = "INFO") -> bytes:
    program = f"""
import logging, structlog
from headrace.log_output import configure
configure({level!r}, {style!r})
{script}
"""
    done = subprocess.run([sys.executable, "-"], input=program.encode(), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    return done.stderr


def one_line(output: bytes) -> str:
    assert output.endswith(b"\n")
    text = output.decode()[:-1]
    assert len(text.splitlines()) == 1, text[:500]
    return text


def hostile_calls(say: str, text: str) -> list[str]:
    """As a value, as the event, deep inside, in an error and as bytes."""
    return [
        f"{say}('told', path={text!r})",
        f"{say}({text!r})",
        f"{say}('told', deep={{'a': [{text!r}]}})",
        f"{say}('told', error=ValueError({text!r}))",
        f"{say}('told', raw={text.encode('utf-8', 'surrogatepass')!r})",
    ]


@pytest.mark.parametrize("style", ["json", "console"])
def test_hostile_text_stays_in_its_line(style: str) -> None:
    told = [call for say in (OURS, LIBRARY) for text in HOSTILE.values() for call in hostile_calls(say, text)]
    lines = printed(style, "\n".join(told)).decode().split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(told)
    for line in lines:
        assert line.isprintable(), ascii(line[:300])
        assert len(line) < 14_000  # a character of 2,048 may be written as an escape of six


@pytest.mark.parametrize("style", ["json", "console"])
def test_values_are_cut_at_two_thousand_characters(style: str) -> None:
    line = one_line(printed(style, f"{OURS}('told', path='x' * 5000, short='y' * 2048)"))
    assert "x" * 2048 + "…" in line
    assert "x" * 2049 not in line
    assert "y" * 2048 in line


def test_a_line_is_an_object_with_the_usual_members() -> None:
    line: dict[str, Any] = json.loads(one_line(printed("json", f"{OURS}('told', run_id='run_1', seconds=0.5)")))
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "told", "level": "warning", "logger": "ours", "run_id": "run_1", "seconds": 0.5}


def test_lines_of_libraries_look_the_same() -> None:
    line: dict[str, Any] = json.loads(one_line(printed("json", "logging.getLogger('lib').error('told %s', 'it')")))
    assert line.keys() == {"event", "level", "logger", "timestamp"}
    assert (line["event"], line["level"], line["logger"]) == ("told it", "error", "lib")


def test_a_failure_brings_its_traceback_within_the_line() -> None:
    script = """
try:
    raise ValueError("one\\ntwo \\ud800")
except ValueError:
    structlog.get_logger("ours").exception("failed", run_id="run_1")
"""
    line = json.loads(one_line(printed("json", script)))
    assert (line["event"], line["level"]) == ("failed", "error")
    assert "Traceback (most recent call last)" in line["exception"]
    assert "ValueError: one\ntwo " in line["exception"]


def test_a_long_traceback_keeps_its_end() -> None:
    script = """
def dig(depth):
    if depth:
        dig(depth - 1)
    raise ValueError("y" * 1_000_000)
try:
    dig(40)
except ValueError:
    structlog.get_logger("ours").exception("failed")
"""
    output = printed("json", script)
    assert len(output) < 20_000
    assert "Traceback" in json.loads(one_line(output))["exception"]


@pytest.mark.parametrize("level", ["info", "ERROR"])
def test_less_severe_lines_are_left_out(level: str) -> None:
    script = "\n".join(f"structlog.get_logger('x').{each}('told')" for each in ("debug", "info", "warning", "error"))
    count = {"INFO": 3, "ERROR": 1}[level.upper()]
    assert len(printed("json", script, level).splitlines()) == count


def test_what_is_told_does_not_fail_where_it_cannot_be_written() -> None:
    """A disk that is full of log lines must not end the run or the request that a line is about."""
    program = f"""
import structlog
from headrace.log_output import configure
configure("INFO", "json")
{OURS}("told")
print("went on", flush=True)
"""
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=full, timeout=60)
    assert done.stdout == b"went on\n"


def test_a_level_that_is_none_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"LOG_LEVEL: 'LOUD' is not a level"):
        configure("LOUD", "json")
