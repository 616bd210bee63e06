"""A folder of documents, searchable by words."""

from headrace.documents.files import default_documents
from headrace.documents.index import DocumentIndex
from headrace.documents.passages import Passage, sentences
from headrace.documents.words import query_terms, terms

__all__ = ["DocumentIndex", "Passage", "default_documents", "query_terms", "sentences", "terms"]
