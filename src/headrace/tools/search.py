"""A search over a folder of documents as a tool."""

import asyncio
from collections.abc import Mapping
from typing import Any

from headrace.documents import DocumentIndex
from headrace.ports import Tool, ToolContext

_MOST_RESULTS = 20
_DEFAULT_RESULTS = 5
_LONGEST_TITLE = 80
"""Characters of a title in the description."""


class SearchTool(Tool):
    """Finds passages by words. An empty result is a result."""

    name = "search"
    description = ""
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "query": {
                "type": "string",
                "minLength": 1,
                "maxLength": 1_000,
                "description": "Words that the passages should have. There is no query syntax.",
            },
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": _MOST_RESULTS,
                "default": _DEFAULT_RESULTS,
                "description": "Number of passages.",
            },
        },
        "required": ["query"],
        "additionalProperties": False,
    }
    idempotent = True
    timeout = 10.0
    concurrency = 1
    """The index answers one at a time: more would only hold threads."""

    def __init__(self, index: DocumentIndex) -> None:
        """`index` stays its owner's to close. Reads some titles from it, so make the tool before serving."""
        self._index = index
        titles = ", ".join(title[:_LONGEST_TITLE] for title in index.titles())
        self.description = (
            "Searches the documents of this server by words and gives the passages that fit best, best first."
            f"{f' Among the documents: {titles}.' if titles else ''}"
        )

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> dict[str, Any]:
        limit = int(arguments.get("limit", _DEFAULT_RESULTS))  # 5.0 is an integer as well in JSON Schema
        passages = await asyncio.to_thread(self._index.search, arguments["query"], limit)
        return {"results": [passage._asdict() for passage in passages]}
