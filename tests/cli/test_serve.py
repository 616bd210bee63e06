"""`headrace serve` as a process: what it says, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PATIENCE = 30.0
Serve = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers on a port of the system's choice, and ends those that are left."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str, data: str = "data", **variables: str) -> "subprocess.Popen[bytes]":
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        environment |= {"HEADRACE_DISCOVER": "false", "HEADRACE_MODEL": "demo:echo", "HEADRACE_PORT": "0"}
        arguments = [sys.executable, "-m", "headrace", "serve", "--data", str(tmp_path / data), *options]
        process = subprocess.Popen(
            arguments, env=environment | variables, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE)


def announced(process: "subprocess.Popen[bytes]") -> list[str]:
    """The lines that it prints once it serves; they end the wait of whoever reads them."""
    assert process.stdout is not None
    lines = []
    for _ in range(5):
        line = process.stdout.readline().decode()
        assert line, process.communicate(timeout=PATIENCE)
        lines.append(line.rstrip("\n"))
    return lines


def url(process: "subprocess.Popen[bytes]") -> str:
    found = re.search(r"http://\S+", announced(process)[0])
    assert found
    return found[0]


def refusal(process: "subprocess.Popen[bytes]") -> tuple[int, str]:
    """The exit code of a server that does not start, and the one line that it says."""
    out, err = process.communicate(timeout=PATIENCE)
    assert out == b""
    lines = err.decode().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("headrace: ")
    return process.returncode, lines[0]


def test_it_says_where_it_serves_and_what(serve: Serve, tmp_path: Path) -> None:
    process = serve()
    first, model, tools, log, data = announced(process)
    address = re.fullmatch(r"Headrace serves (http://127\.0\.0\.1:\d+)  \(API page: /docs\)", first)
    assert address
    assert model == "  model  demo:echo"
    assert tools == "  tools  search, calculate"
    assert re.fullmatch(r"  log    \S.*", log)
    assert data == f"  data   {tmp_path / 'data'}"
    with urllib.request.urlopen(f"{address[1]}/health/ready", timeout=PATIENCE) as response:
        assert response.status == 200


def test_the_address_of_ipv6_can_be_opened(serve: Serve) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    address = url(serve("--host", "::1"))
    assert address.startswith("http://[::1]:")
    with urllib.request.urlopen(f"{address}/health/live", timeout=PATIENCE) as response:
        assert response.status == 200


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(serve: Serve, sign: signal.Signals) -> None:
    process = serve()
    announced(process)
    process.send_signal(sign)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, b"Traceback" in err) == (0, False)


def test_what_was_written_is_there_after_a_restart(serve: Serve) -> None:
    first = serve()
    body = b'{"input": {"message": "hi"}}'
    request = urllib.request.Request(
        f"{url(first)}/api/runs", body, {"Content-Type": "application/json", "Accept": "text/event-stream"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        location, events = response.headers["Location"], response.read()
    assert b'"run.completed"' in events
    first.terminate()
    first.communicate(timeout=PATIENCE)
    again = urllib.request.Request(f"{url(serve())}{location}", headers={"Accept": "text/event-stream"})
    with urllib.request.urlopen(again, timeout=PATIENCE) as response:
        assert response.read().split(b"\n", 1)[1] == events.split(b"\n", 1)[1]


def test_a_public_address_without_credentials_is_refused(serve: Serve) -> None:
    code, line = refusal(serve("--host", "0.0.0.0"))
    assert code == 78
    assert "HEADRACE_HOST" in line or "0.0.0.0" in line


def test_a_port_that_is_taken_is_told(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refusal(serve("--port", str(port)))
    assert code == 78
    assert str(port) in line
    assert "taken" in line


@pytest.mark.parametrize("model", ["gpt-5 please", "demo:nothing", "demo:echo?count=many", "http://"])
def test_a_model_that_is_none_is_told(serve: Serve, model: str) -> None:
    code, line = refusal(serve("--model", model))
    assert code == 78
    assert "demo" in line


def test_a_wrong_setting_is_told(serve: Serve) -> None:
    code, line = refusal(serve(STREAM_CHUNK_SIZE="many"))
    assert (code, "STREAM_CHUNK_SIZE" in line) == (78, True)


def test_two_servers_do_not_share_a_directory(serve: Serve) -> None:
    first = serve()
    announced(first)
    code, line = refusal(serve())
    assert code != 0
    assert "data" in line
    assert first.poll() is None


def test_a_directory_that_cannot_be_written_is_told(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a directory")
    code, _ = refusal(serve())
    assert code == 78


def test_a_client_that_hangs_does_not_keep_it(serve: Serve) -> None:
    process = serve("--model", "demo:echo?count=100000&pace_ms=50")
    address = url(process)
    request = urllib.request.Request(
        f"{address}/api/agent/chat?stream=true", b'{"message": "hi"}', {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        assert response.readline()
        began = time.monotonic()
        process.terminate()
        process.wait(timeout=PATIENCE)
    assert process.returncode == 0
    assert time.monotonic() - began < 15
