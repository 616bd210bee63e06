"""A real PostgreSQL server for tests: started once per process of the tests, without a password, gone at the end.

Import the fixture `postgres_server` where you need it. Where there is no server program, the test skips and says so.
"""

import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "50",
    "timezone": "UTC",
}


@dataclass(frozen=True)
class PostgresServer:
    programs: Path
    folder: Path
    """Where the server may write; it has the socket."""
    port: int

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def run(self, sql: str, database: str = "postgres") -> str:
        """As a superuser; gives the rows, one on a line. Several statements are several transactions."""
        psql = [str(self.programs / "psql"), "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-d", self.url(database)]
        return subprocess.run(psql, input=sql, capture_output=True, text=True, check=True, timeout=60).stdout

    def dump(self, database: str) -> str:
        """The database with its large objects, and the roles, as SQL."""
        commands: tuple[list[Any], ...] = (
            [self.programs / "pg_dump", "--blobs", "-d", self.url(database)],
            [self.programs / "pg_dumpall", "--globals-only", "-d", self.url()],
        )
        done = [
            subprocess.run(each, capture_output=True, text=True, check=True, timeout=60).stdout for each in commands
        ]
        return re.sub(r"^\\(un)?restrict .*$", "", "".join(done), flags=re.MULTILINE)  # a random word each time


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    programs = _programs()
    if programs is None:
        pytest.skip("there is no PostgreSQL server: neither on PATH nor in /usr/lib/postgresql (Debian: postgresql)")
    identity = _identity()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        if identity:
            os.chown(folder, identity["user"], identity["group"])
        server = PostgresServer(programs, folder, _free_port())
        _start(server, identity)
        try:
            yield server
        finally:
            _control(server, identity, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def _programs() -> Path | None:
    """The folder with all programs of the newest server there is."""
    installed = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = sorted(installed, key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0)[-1:]
    on_path = shutil.which("initdb")
    found = Path(on_path).resolve() if on_path else newest[0] if newest else None
    return found.parent if found and (found.parent / "postgres").exists() else None


def _identity() -> Mapping[str, Any]:
    """Whom the server runs as: it refuses to be root."""
    if os.geteuid() != 0:
        return {}
    names = {each.pw_name: each for each in pwd.getpwall()}
    user = names.get("postgres") or names.get("nobody")
    if user is None:
        pytest.skip("PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody`")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start(server: PostgresServer, identity: Mapping[str, Any]) -> None:
    make = [str(server.programs / "initdb"), "-D", str(server.folder / "data"), "-U", "postgres", "-A", "trust"]
    subprocess.run(
        [*make, "-E", "UTF8", "--locale=C", "--no-sync"],
        cwd=server.folder,
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=60,
        **identity,
    )
    options = {**_OPTIONS, "port": str(server.port), "unix_socket_directories": str(server.folder)}
    words = " ".join(f"-c {name}={value}" for name, value in options.items())
    _control(server, identity, "-o", words, "-l", str(server.folder / "log"), "start")


def _control(server: PostgresServer, identity: Mapping[str, Any], *command: str) -> None:
    """Returns when it is done. The server keeps the streams that it inherits, so there is none to read to its end."""
    subprocess.run(
        [server.programs / "pg_ctl", "-D", server.folder / "data", "-w", "-t", "60", *command],
        cwd=server.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=90,
        **identity,
    )
