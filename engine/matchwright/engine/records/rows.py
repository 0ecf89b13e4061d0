"""Raw rows, a chunk at a time, and what is refused of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from matchwright.engine.records.reasons import Reason
from matchwright.engine.records.scrub import clean, scrub

VALUE_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that goes to the quarantine.

    Attributes:
        row: 1-based number among the file's data rows.
        field: the field at fault; "" when the row as a whole could not be read.
        value: what was there: at most 200 characters without control characters.
        id: of the record, as given, so that its refused rows can be erased with it; "" where it
            could not be read.
    """

    row: int
    field: str
    value: str
    reason: Reason
    detail: str = ""
    id: str = ""


def refused(
    row: int,
    field_name: str,
    value: object,
    reason: Reason,
    detail: str = "",
    id: object = "",  # noqa: A002
) -> Refused:
    """A ``Refused`` whose value is fit to be shown and stored; an id that is no text is none."""
    name = id[:VALUE_CHARS_MAX] if isinstance(id, str) else ""
    return Refused(row, field_name, shown(value), reason, clean(detail)[:VALUE_CHARS_MAX], name)


def shown(value: object) -> str:
    """At most 200 characters of a value, without control characters, mail and links."""
    if value is None:
        return ""
    if not isinstance(value, str):
        try:
            value = str(value) if not isinstance(value, list | dict) else repr(value)
        except (ValueError, RecursionError):
            value = f"a value of type {type(value).__name__}"
    short = " ".join(clean(value[: VALUE_CHARS_MAX * 2]).split())
    if not short.isprintable():
        short = "".join(char if char.isprintable() else "\ufffd" for char in short)
    if any(char.isalpha() for char in short):  # numbers alone are no personal data
        short = scrub(short)
    return short if len(short) <= VALUE_CHARS_MAX else short[: VALUE_CHARS_MAX - 1] + "…"


class Rows(Protocol):
    """Raw rows by column."""

    @property
    def number(self) -> Sequence[int]:
        """1-based numbers of the rows."""
        ...

    def column(self, name: str) -> Sequence[Any]:
        """The raw values of a column or path; None where a row does not have it."""
        ...


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of a table: a value for every column."""

    number: Sequence[int]
    columns: dict[str, Sequence[Any]]

    def column(self, name: str) -> Sequence[Any]:
        found = self.columns.get(name)
        if found is not None:
            return found
        head, _, rest = name.partition(".")
        if rest and head in self.columns:
            path = rest.split(".")
            return [_along(value, path) for value in self.columns[head]]
        return [None] * len(self.number)


@dataclass(frozen=True, slots=True)
class ObjectRows:
    """Rows that are objects: any keys, any depth."""

    number: Sequence[int]
    objects: Sequence[dict[str, Any]]

    def column(self, name: str) -> Sequence[Any]:
        if "." not in name:
            return [row.get(name) for row in self.objects]
        path = name.split(".")
        return [row[name] if name in row else _along(row, path) for row in self.objects]


def _along(value: Any, path: list[str]) -> Any:
    """What lies at the end of a path; a list on the way gives the list of what its items give."""
    for place, key in enumerate(path):
        if isinstance(value, list):
            found = [_along(item, path[place:]) for item in value]
            return [item for item in found if item is not None] or None
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


@dataclass(slots=True)
class Chunk:
    """A piece of a file.

    Attributes:
        rows: those that could be read.
        refused: those that could not.
        bytes_read: of the file, up to the end of this chunk.
    """

    rows: Rows
    refused: list[Refused] = field(default_factory=list)
    bytes_read: int = 0
