"""MCP servers written by hand, which do what the official package would not. The argument says what."""

import json
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OLD_VERSION = "2025-06-18"
GARBAGE = [b"Welcome!\n", b"\xff\xfe\x00\n", b"{}\n", b'{"jsonrpc": "2.0"}\n', b"[" * 5000 + b"\n", b"null\n"]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any]
    match request["method"]:
        case "initialize":
            information = {"name": "raw", "version": "1"}
            result = {"protocolVersion": OLD_VERSION, "capabilities": {"tools": {}}, "serverInfo": information}
        case "tools/list":
            result = {"tools": [{"name": "process", "inputSchema": {"type": "object"}}]}
        case "tools/call":
            result = {"content": [{"type": "text", "text": str(os.getpid())}]}
        case _:
            return {"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32601, "message": "What?"}}
    return {"jsonrpc": "2.0", "id": request["id"], "result": result}


def requests() -> Iterator[dict[str, Any]]:
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "id" in request:
            yield request


def chatter() -> None:
    """Answers, and says what is no message before each answer."""
    for request in requests():
        for line in [*GARBAGE, json.dumps(answer(request)).encode() + b"\n"]:
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def rave() -> None:
    """Says nothing else."""
    for _ in requests():
        for line in GARBAGE:
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def hush() -> None:
    """Never answers."""
    for _ in requests():
        pass


def stall() -> None:
    """Answers until it is called, and reads nothing more then."""
    for request in requests():
        if request["method"] == "tools/call":
            signal.pause()
        print(json.dumps(answer(request)), flush=True)


def cling() -> None:
    """Answers, and does not end when it should."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for request in requests():
        print(json.dumps(answer(request)), flush=True)
    while True:
        signal.pause()


def quit() -> None:
    """Answers until it is called."""
    for request in requests():
        if request["method"] == "tools/call":
            sys.exit("not that")
        print(json.dumps(answer(request)), flush=True)


class Sessions(BaseHTTPRequestHandler):
    """Over HTTP, with sessions that a start of the server does not outlive."""

    protocol_version = "HTTP/1.1"
    known: set[str | None] = set()  # noqa: RUF012

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        session = self.headers["Mcp-Session-Id"]
        if self.headers["X-Key"] != "k":
            self.send(401, b"")
            return
        if request["method"] == "initialize":
            session = str(uuid.uuid4())
            self.known.add(session)
        elif session not in self.known:
            self.send(404 if session else 400, b"")
            return
        if "id" in request:
            self.send(200, json.dumps(answer(request)).encode(), session)
        else:
            self.send(202, b"", session)

    def do_GET(self) -> None:
        self.send(405, b"")

    def do_DELETE(self) -> None:
        self.known.discard(self.headers["Mcp-Session-Id"])
        print("left", flush=True)
        self.send(200, b"")

    def send(self, status: int, body: bytes, session: str | None = None) -> None:
        self.send_response(status)
        if session is not None:
            self.send_header("Mcp-Session-Id", session)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


def http() -> None:
    listening = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Sessions)
    print(listening.server_port, flush=True)
    listening.serve_forever()


if __name__ == "__main__":
    {each.__name__: each for each in (chatter, rave, hush, stall, cling, quit, http)}[sys.argv[1]]()
