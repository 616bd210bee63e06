"""The C programs of the bench, compiled on first use."""

import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent / "c"
BUILD = Path(__file__).parent / "build"


def binary(name: str) -> Path:
    """The compiled program; compiled anew when a source is newer. Exits with a message where there is no compiler."""
    program = BUILD / name
    newest = max(source.stat().st_mtime for source in (SOURCES / f"{name}.c", SOURCES / "wire.h"))
    if not program.exists() or program.stat().st_mtime < newest:
        compile_program(name, program)
    return program


def compile_program(name: str, program: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise SystemExit("The bench needs a C compiler for its load client: install gcc, then run it again.")
    BUILD.mkdir(exist_ok=True)
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", program, SOURCES / f"{name}.c"], check=True)
