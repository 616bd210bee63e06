"""Which files of a folder are its documents."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from headrace.documents.formats import READERS

MAX_FILE_BYTES = 2 * 1024 * 1024
"""Larger files are left out."""


def default_documents() -> Path:
    """The project's own documents: inside the package when installed from a wheel, else next to `src`."""
    package = Path(__file__).parent.parent
    packed = package / "docs"
    return packed if packed.is_dir() else package.parent.parent / "docs"


class DocumentFile(NamedTuple):
    real: Path
    source: str
    mtime_ns: int
    size: int


def document_files(folder: Path) -> Iterator[DocumentFile]:
    """The documents below `folder`, each once; none that is hidden, too large, or a link that leads outside."""
    seen: set[Path] = set()
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or Path(name).suffix.lower() not in READERS:
                continue
            with contextlib.suppress(OSError, RuntimeError):  # gone meanwhile, not readable, a link to itself
                real = Path(where, name).resolve(strict=True)
                status = real.stat()
                if real not in seen and _is_document(real, status, folder):
                    seen.add(real)
                    source = os.fsencode(Path(where, name).relative_to(folder).as_posix()).decode("utf-8", "replace")
                    yield DocumentFile(real, source, status.st_mtime_ns, status.st_size)


def _is_document(real: Path, status: os.stat_result, folder: Path) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES and real.is_relative_to(folder)


def read_document(file: DocumentFile) -> bytes | None:
    """The bytes of a text file; `None` where it is not one."""
    try:
        with file.real.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError:
        return None
    return None if b"\0" in data or len(data) > MAX_FILE_BYTES else data
