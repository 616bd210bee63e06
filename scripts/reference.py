"""Writes the generated parts of docs/reference from the code; with `--check`, says what is out of date instead.

A generated part stands between `<!-- generated -->` and `<!-- end -->`; the words around it are written by hand.
"""

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from headrace.cli.commands import app
from headrace.errors import BY_CODE, HeadraceError
from headrace.events import KINDS, TERMINAL, ErrorInfo, Event
from headrace.settings import Settings

PAGES = Path(__file__).parent.parent / "docs" / "reference"
GENERATED = re.compile(r"(?<=<!-- generated -->\n).*?(?=<!-- end -->)", re.DOTALL)


def own_docstring(cls: type) -> str:
    """The docstring of the class itself, not one it inherits, as one paragraph."""
    return " ".join(inspect.cleandoc(vars(cls).get("__doc__") or "").split())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# --- errors -----------------------------------------------------------------------------------------------------------


def families(
    cls: type[HeadraceError] = HeadraceError,
) -> Iterator[tuple[type[HeadraceError], list[type[HeadraceError]]]]:
    """Each class with the errors a user can meet directly under it, in the order of the tree."""
    children = cls.__subclasses__()
    own = [child for child in children if BY_CODE.get(child.code) is child]
    yield cls, [cls, *own] if cls is HeadraceError else own
    for child in children:
        if child not in own:
            yield from families(child)


def error_row(cls: type[HeadraceError]) -> list[str]:
    return [f"`{cls.code}`", str(cls.status), "yes" if cls.retryable else "no", f"`{cls.__name__}`", cls.detail]


def errors() -> str:
    header = ["code", "status", "retry", "class", "what is said"]
    parts = [
        f"### {family.__name__}\n\n{own_docstring(family)}\n\n{table(header, [error_row(cls) for cls in leaves])}\n"
        for family, leaves in families()
        if leaves
    ]
    return "\n" + "\n".join(parts) + "\n"


# --- events -----------------------------------------------------------------------------------------------------------

WORDS: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    dict: "object",
    list: "list",
    Any: "any JSON value",
    ErrorInfo: "object: " + ", ".join(f"`{name}`" for name in ErrorInfo.__struct_fields__),
}


def in_words(hint: Any) -> str:
    """A type as people who do not write Python say it. A null is not said: it is left out on the wire."""
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in get_args(hint))
    if origin is UnionType:
        return " or ".join(in_words(part) for part in get_args(hint) if part is not NoneType)
    return WORDS[origin or hint]


def field_line(field: msgspec.structs.FieldInfo, hint: Any) -> str:
    if field.required:
        missing = ""
    elif field.default in (None, "", False, msgspec.NODEFAULT):
        missing = ", may be missing"
    else:
        missing = f", `{field.default}` if missing"
    return f"`{field.encode_name}` ({in_words(hint)}{missing})"


def event_row(kind: str, cls: type[Event]) -> list[str]:
    hints = get_type_hints(cls)
    fields = [field_line(field, hints[field.name]) for field in msgspec.structs.fields(cls) if field.name != "time"]
    closing = "Closes the log." if cls in TERMINAL else ""
    return [f"`{kind}`", "<br>".join(fields), " ".join(filter(None, [own_docstring(cls), closing]))]


def events() -> str:
    rows = [event_row(kind, cls) for kind, cls in KINDS.items()]
    return "\n" + table(["kind", "fields", "notes"], rows) + "\n\n"


# --- settings ---------------------------------------------------------------------------------------------------------


def variables(name: str, field: FieldInfo) -> str:
    """The environment variables that set it, the first of which wins."""
    alias = field.validation_alias
    names = alias.choices if isinstance(alias, AliasChoices) else [f"HEADRACE_{name.upper()}"]
    return "<br>".join(f"`{variable}`" for variable in names)


def default(field: FieldInfo) -> str:
    value = field.default
    if value in (None, "", (), frozenset()):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def settings() -> str:
    rows = [
        [variables(name, field), default(field), field.description or ""]
        for name, field in Settings.model_fields.items()
    ]
    return "\n" + table(["variable", "default", "what it does"], rows) + "\n\n"


# --- the command line -------------------------------------------------------------------------------------------------


def commands() -> str:
    """The help of every command, without what stands above them."""
    text: str = app.generate_docs(heading_level=1)
    return text[text.index("\n## headrace ") :].rstrip() + "\n\n"


# --- pages ------------------------------------------------------------------------------------------------------------

GENERATORS: dict[str, Callable[[], str]] = {
    "cli.md": commands,
    "errors.md": errors,
    "events.md": events,
    "settings.md": settings,
}


def renewed(page: Path) -> str:
    text, count = GENERATED.subn(lambda _: GENERATORS[page.name](), page.read_text(encoding="utf-8"))
    if count != 1:
        raise SystemExit(f"{page} needs one part between <!-- generated --> and <!-- end -->")
    return text


def check(page: Path) -> list[str]:
    old, new = page.read_text(encoding="utf-8").splitlines(), renewed(page).splitlines()
    return list(difflib.unified_diff(old, new, page.name, "from the code", lineterm=""))


def main() -> None:
    pages = [PAGES / name for name in GENERATORS]
    if "--check" not in sys.argv:
        for page in pages:
            page.write_text(renewed(page), encoding="utf-8")
        return
    differences = [line for page in pages for line in check(page)]
    if differences:
        raise SystemExit("\n".join([*differences, "run `make docs`"]))


if __name__ == "__main__":
    main()
