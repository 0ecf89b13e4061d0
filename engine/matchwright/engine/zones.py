"""IANA time zones, always read from the ``tzdata`` package.

The operating system's own database differs between machines, and the same answer must come out
on all of them; so does its version, which is part of every effective policy.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module, resources
from typing import Any
from zoneinfo import ZoneInfo

_EPOCH = datetime.date(1970, 1, 1)
_NOON = datetime.time(12, tzinfo=datetime.UTC)
_FIRST, _LAST = 0, (datetime.date(9_999, 12, 30) - _EPOCH).days


def tz_version() -> str:
    """Version of the time zone database, such as "2025b"."""
    return str(import_module("tzdata").IANA_VERSION)


@lru_cache(maxsize=1_024)
def _zone(name: str) -> ZoneInfo | None:
    """The zone, or None when the database has no such name."""
    path = resources.files("tzdata").joinpath("zoneinfo")
    parts = name.split("/")
    if not all(part and part not in (".", "..") for part in parts):
        return None
    file = path.joinpath(*parts)
    if not file.is_file():
        return None
    with file.open("rb") as data:
        try:
            return ZoneInfo.from_file(data, key=name)
        except ValueError:
            return None


@lru_cache(maxsize=64)
def offset_minutes(zones: tuple[str, ...], as_of: int) -> tuple[int, ...]:
    """Minutes east of UTC for each zone at noon UTC on the day ``as_of``; 0 for unknown names.

    Args:
        zones: IANA names, as in ``Generation.zones``.
        as_of: days since 1970-01-01; days outside the calendar count as its ends.
    """
    day = _EPOCH + datetime.timedelta(days=min(max(as_of, _FIRST), _LAST))
    instant = datetime.datetime.combine(day, _NOON)
    return tuple(_offset(name, instant) for name in zones)


def _offset(name: str, instant: datetime.datetime) -> int:
    zone = _zone(name)
    offset = None if zone is None else instant.astimezone(zone).utcoffset()
    return 0 if offset is None else int(offset.total_seconds() // 60)


@lru_cache(maxsize=16)
def zone_numbers(zones: tuple[str, ...]) -> dict[str, int]:
    """Name -> index into ``zones``."""
    return {name: number for number, name in enumerate(zones)}


def as_zones(source: Sequence[str] | object) -> tuple[str, ...]:
    """The zone names of a generation (the names in its ``zones``), or of a sequence of names."""
    table = getattr(source, "zones", source)
    names: Any = getattr(table, "names", table)
    return tuple(names)
