"""The public names are one sorted `__all__`; everything else may move."""

import headrace


def ruffs_order(name: str) -> tuple[bool, bool, str]:
    """Constants, then classes, then the rest: the order that the linter's RUF022 writes."""
    return not name.isupper(), not name[:1].isupper(), name


def test_public_names_are_sorted_and_there() -> None:
    names: list[str] = getattr(headrace, "__all__", [])
    assert names == sorted(set(names), key=ruffs_order)
    assert [name for name in names if not hasattr(headrace, name)] == []
