"""Names and ids that a request may bring: they come back in headers, logs and other people's programs."""

from typing import Annotated

from pydantic import Field

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[ -~]+$")]
"""1 to 128 printable ASCII characters."""
