"""Which database a URL names."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from headrace.errors import ConfigurationError

Dialect: TypeAlias = Literal["sqlite", "duckdb", "postgresql"]

_SUFFIXES: dict[str, Dialect] = {".db": "sqlite", ".sqlite": "sqlite", ".sqlite3": "sqlite", ".duckdb": "duckdb"}
_SCHEMES: dict[str, Dialect] = {
    "sqlite": "sqlite",
    "duckdb": "duckdb",
    "postgresql": "postgresql",
    "postgres": "postgresql",
}
_EXTRAS: dict[Dialect, tuple[str, str]] = {
    "duckdb": ("duckdb", "headrace[duckdb]"),
    "postgresql": ("asyncpg", "headrace[postgres]"),
}
"""The module that a database needs, and what installs it."""


class Location(NamedTuple):
    dialect: Dialect
    address: str
    """The absolute path of a file, or the URL of a server. It may hold a password, so it is shown nowhere."""


def locate(url: str) -> Location:
    """Raises `ConfigurationError` for what is no database, a file that is not there, and a library that is not.

    Paths are as SQLAlchemy has them: `sqlite:///shop.db` is relative, `sqlite:////data/shop.db` is not.
    """
    location = _parse(url)
    if location.dialect in _EXTRAS:
        module, extra = _EXTRAS[location.dialect]
        if find_spec(module) is None:
            raise ConfigurationError(f"The SQL tool needs `{module}` for this database: pip install '{extra}'.")
    if location.dialect != "postgresql" and not Path(location.address).is_file():
        raise ConfigurationError("The database file of the SQL tool is not there. Name a file that is.")
    return location


def _parse(url: str) -> Location:
    scheme, separator, path = url.partition("://")
    if not separator and (dialect := _SUFFIXES.get(Path(url).suffix.lower())):
        return Location(dialect, str(Path(url).absolute()))
    dialect = _SCHEMES.get(scheme.lower()) if separator else None
    if dialect == "postgresql":
        return Location(dialect, url)
    if dialect and path.startswith("/") and len(path) > 1:
        return Location(dialect, str(Path(path[1:]).absolute()))
    raise ConfigurationError(
        "The SQL tool takes `sqlite:///PATH`, `duckdb:///PATH`, `postgresql://USER:PASSWORD@HOST/NAME`, "
        f"or a path that ends in {', '.join(_SUFFIXES)}."
    )
