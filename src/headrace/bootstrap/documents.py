"""The index of the documents, from the settings."""

from headrace.documents import DocumentIndex, default_documents
from headrace.settings import Settings

INDEX_FILE = "documents.db"


def open_index(settings: Settings) -> DocumentIndex:
    """Kept in the data directory; by the engine that keeps nothing, in memory. Reads files: call it in a thread."""
    path = settings.data / INDEX_FILE if settings.engine != "memory" else None
    return DocumentIndex.build(settings.documents or default_documents(), path)
