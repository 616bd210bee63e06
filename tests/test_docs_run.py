"""The code blocks of README.md and docs/ run.

- A ```python block runs. The blocks of one page run in order, share a namespace and stand in an empty folder. `await`
  works. A block whose first line is `# name.py` is also saved there under that name.
- `<!-- run -->` on the line before a ```console block: each `$ ` command of it runs in bash, and must succeed and print
  the lines under it; `...` stands for anything.
- `<!-- server: OPTIONS -->` on a page: `headrace serve OPTIONS` runs while the page does, where the page says it is.
- `<!-- no-run: REASON -->` on the line before a ```python block: it is only shown.
"""

import ast
import asyncio
import doctest
import inspect
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
ADDRESS = "127.0.0.1:8000"
"""Where the pages say that the server is; replaced by where it is."""

BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>run|no-run)(?P<reason>: [^\n]+)? -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SERVER = re.compile(r"^<!-- server:(?P<options>[^\n]*)-->$", re.MULTILINE)
OUTPUT = doctest.OutputChecker()


class Block(NamedTuple):
    language: str
    code: str
    line: int
    """Of the first line of code in its page."""


def runnable(text: str) -> list[Block]:
    """The blocks of a page that are to be run, in order."""
    blocks = []
    for match in BLOCK.finditer(text):
        mark, language = match["mark"], match["language"]
        assert mark != "no-run" or match["reason"], f"say why, as in <!-- no-run: needs a key -->: {match[0]}"
        if (language == "python" and mark != "no-run") or (language in ("console", "bash") and mark == "run"):
            blocks.append(Block(language, match["code"], text.count("\n", 0, match.start("code")) + 1))
    return blocks


class Page:
    """Runs the blocks of one page."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.module = ModuleType("__main__")

    def run(self, block: Block) -> None:
        if block.language == "python":
            self.run_python(block)
        else:
            self.run_console(block)

    def run_python(self, block: Block) -> None:
        saved = re.match(r"# (\w+\.py)\n", block.code)
        if saved:
            (self.folder / saved[1]).write_text(block.code, encoding="utf-8")
        source = "\n" * (block.line - 1) + block.code
        result = eval(compile(source, self.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), vars(self.module))
        if inspect.iscoroutine(result):
            asyncio.run(result)

    def run_console(self, block: Block) -> None:
        commands = re.split(r"^\$ ", block.code, flags=re.MULTILINE)
        assert not commands[0].strip(), f"{self.name}:{block.line}: a command begins with `$ `"
        for text in commands[1:]:
            command, expected = self.split(text)
            printed = self.run_command(command)
            assert not expected or OUTPUT.check_output(expected, printed, doctest.ELLIPSIS), (
                f"{self.name}:{block.line}: {command}\nmust print\n{expected}\nbut prints\n{printed}"
            )

    @staticmethod
    def split(text: str) -> tuple[str, str]:
        r"""A command, which a `\` at the end of a line carries on, and what it must print."""
        match = re.match(r"((?:.*\\\n)*.*)\n?", text)
        assert match
        return match[1], text[match.end() :]

    def run_command(self, command: str) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, f"{self.name}: {command}\n{result.stdout}"
        return result.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(address: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{address}/health/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    pytest.fail(f"the page's server is not ready (exit code {server.poll()})")


@contextmanager
def serving(options: str, folder: Path) -> Iterator[str]:
    """A server with its data in `folder`; gives its address."""
    port = free_port()
    command = [sys.executable, "-m", "headrace", "serve", "--port", str(port), "--data", str(folder / "data")]
    with subprocess.Popen([*command, *shlex.split(options)], cwd=folder) as server:
        try:
            wait_until_ready(f"127.0.0.1:{port}", server)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=20)


@contextmanager
def standing_in(folder: Path, main: ModuleType) -> Iterator[None]:
    """As if a script stood in `folder`; what it imported from there is forgotten again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setitem(sys.modules, "__main__", main)
        yield
    for module in list(sys.modules.values()):
        if (getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[module.__name__]


def run_page(name: str, text: str, folder: Path) -> None:
    page = Page(name, folder)
    with standing_in(folder, page.module):
        for block in runnable(text):
            page.run(block)


PAGES_TO_RUN = [page for page in PAGES if runnable(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", PAGES_TO_RUN, ids=[str(page.relative_to(ROOT)) for page in PAGES_TO_RUN])
def test_page_runs(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    wanted = SERVER.search(text)
    if wanted is None:
        run_page(path.name, text, tmp_path)
        return
    with serving(wanted["options"], tmp_path) as address:
        run_page(path.name, text.replace(ADDRESS, address), tmp_path)


# --- the convention itself --------------------------------------------------------------------------------------------

GOOD = """
```python
# greeting.py
import asyncio

word = "mill"
```
```python
import greeting

await asyncio.sleep(0)
assert greeting.word == word == "mill" and __name__ == "__main__"
```
<!-- no-run: it would fail -->
```python
raise AssertionError
```
```console
$ false
```
<!-- run -->
```console
$ echo one \\
    two
one two
$ python -c "import greeting; print('the', greeting.word, 'wheel')"
the ... wheel
```
"""

BAD = [
    ("```python\nassert False\n```\n", AssertionError),
    ("```python\nmissing\n```\n", NameError),
    ("<!-- no-run -->\n```python\n1\n```\n", AssertionError),
    ("<!-- run -->\n```console\n$ false\n```\n", AssertionError),
    ("<!-- run -->\n```console\n$ echo one\ntwo\n```\n", AssertionError),
    ("<!-- run -->\n```bash\necho one\n```\n", AssertionError),
]


def test_blocks_of_a_page_run_in_order(tmp_path: Path) -> None:
    run_page("good.md", GOOD, tmp_path)
    assert "greeting" not in sys.modules


@pytest.mark.parametrize(("text", "error"), BAD)
def test_a_wrong_block_is_found(text: str, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        run_page("bad.md", text, tmp_path)
