"""`headrace index`."""

from pathlib import Path

from headrace.bootstrap import INDEX_FILE
from headrace.cli.data import DEFAULT_DATA, Data
from headrace.cli.output import line, remark
from headrace.documents import DocumentIndex


def index(folder: Path, /, *, data: Data = DEFAULT_DATA) -> None:
    """Index a folder of documents, which the demo model then quotes.

    Parameters
    ----------
    folder
        Text, Markdown, reStructuredText and HTML files, also in folders below it.
    data
        Directory of the log, the keys and the document index.
    """
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = DocumentIndex.build(folder, data / INDEX_FILE)
    line(f"{made.documents:,} documents, {made.passages:,} passages")
    made.close()
    remark(f"To have them quoted: HEADRACE_DOCUMENTS={folder} headrace serve --model demo")
