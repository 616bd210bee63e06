"""The data directory, as an option of commands."""

from pathlib import Path
from typing import Annotated, TypeAlias

from cyclopts import Parameter

from headrace.settings import Settings

Data: TypeAlias = Annotated[Path, Parameter(env_var="HEADRACE_DATA")]

DEFAULT_DATA: Path = Settings.model_fields["data"].default
