"""Checks of the values in a map file; every error says where it is and what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matchwright.engine.errors import InvalidArgument, unknown_key


def table(value: object, known: Sequence[str], where: str) -> Mapping[str, Any]:
    """A table whose keys are all known.

    Raises:
        InvalidArgument, UnknownKey.
    """
    if not isinstance(value, dict):
        raise InvalidArgument(f"{where}: a table expected, got {shown(value)}")
    for key in value:
        if key not in known:
            raise unknown_key("key", key, known, where)
    return value


def text(value: object, where: str) -> str:
    """A string.

    Raises:
        InvalidArgument.
    """
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}: text expected, got {shown(value)}")
    return value


def true_false(value: object, where: str) -> bool:
    """A boolean.

    Raises:
        InvalidArgument.
    """
    if not isinstance(value, bool):
        raise InvalidArgument(f"{where}: true or false expected, got {shown(value)}")
    return value


def choice(value: object, known: Sequence[str], where: str) -> str:
    """One of the known strings.

    Raises:
        InvalidArgument, UnknownKey.
    """
    got = text(value, where)
    if got not in known:
        raise unknown_key("value", got, known, where)
    return got


def texts(value: object, where: str) -> tuple[str, ...]:
    """A string, or a list of strings that is not empty.

    Raises:
        InvalidArgument.
    """
    items = value if isinstance(value, list) else [value]
    if not items:
        raise InvalidArgument(f"{where}: at least one text expected, got an empty list")
    return tuple(text(item, where) for item in items)


def scalars(value: object, where: str) -> tuple[str | int | float | bool, ...]:
    """A text, number or boolean, or a list of them.

    Raises:
        InvalidArgument.
    """
    items: list[Any] = value if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, str | int | float | bool):
            raise InvalidArgument(f"{where}: text or numbers expected, got {shown(item)}")
    return tuple(items)


def shown(value: object) -> str:
    """A value as it is shown in a message: at most 80 characters."""
    try:
        whole = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a deep table
        whole = f"a value of type {type(value).__name__}"
    return whole if len(whole) <= 80 else whole[:77] + "..."
