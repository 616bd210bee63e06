"""The import contracts in pyproject.toml hold, and each of them can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")

WRONG_IMPORTS = [
    ("events.py", "headrace.errors", "Imports point down only"),
    ("ports.py", "headrace.engines", "Imports point down only"),
    ("engines/__init__.py", "headrace.agents", "Imports point down only"),
    ("a_module_without_a_place.py", "headrace.events", "Imports point down only"),
    ("protocols/__init__.py", "asyncio", "A protocol is pure"),
    ("protocols/__init__.py", "starlette.requests", "A protocol is pure"),
    ("protocols/__init__.py", "headrace.runs", "A protocol knows no service"),
    ("server/__init__.py", "headrace.providers", "The server names no engine"),
    ("server/__init__.py", "headrace.settings", "Only bootstrap and cli read settings"),
    ("client/__init__.py", "headrace.ports", "The client is light"),
]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """The contracts over the `headrace` in `folder`, else over the installed one."""
    command = [str(LINT_IMPORTS), "--no-logo", "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_contracts_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("file", "imported", "contract"), WRONG_IMPORTS)
def test_wrong_import_is_found(tmp_path: Path, file: str, imported: str, contract: str) -> None:
    package = tmp_path / "headrace"
    shutil.copytree(ROOT / "src" / "headrace", package, ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("runs.py", "settings.py"):
        (package / module).touch()
    with (package / file).open("a") as source:
        source.write(f"\nimport {imported}\n")
    result = lint_imports(tmp_path)
    broken = [line for line in result.stdout.splitlines() if line.endswith("BROKEN")]
    assert result.returncode == 1, result.stdout + result.stderr
    assert any(line.startswith(contract) for line in broken), result.stdout
