"""The generation's table of time zones: names, and the mean of their winter and summer offsets."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources
from zoneinfo import ZoneInfo

import msgspec
import numpy as np

from matchwright.kernels.types import UNKNOWN, Bool, Int32, Int64

_EPOCH = datetime.date(1970, 1, 1)


class Zones(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """IANA names, ascending, and minutes east of UTC (mean of mid January and mid July)."""

    names: tuple[str, ...]
    mean_minutes: tuple[int, ...]

    def index(self, name: str | None) -> int:
        """Index into ``names``; ``UNKNOWN`` for a name that is not in the table, or None."""
        return _numbers(self.names).get(name, UNKNOWN) if name is not None else UNKNOWN

    def indexes(self, names: Iterable[str | None]) -> Int32:
        """int32 (N,) of ``index`` for a column of names."""
        numbers = _numbers(self.names)
        found = [UNKNOWN if name is None else numbers.get(name, UNKNOWN) for name in names]
        return np.array(found, dtype=np.int32)

    def means(self, names: Iterable[str | None]) -> tuple[Int64, Bool]:
        """Mean offsets in minutes (N,), 0 where not known, and where they are known."""
        index = self.indexes(names)
        known = index != UNKNOWN
        table = np.array(self.mean_minutes, dtype=np.int64)
        return np.where(known, table[np.where(known, index, 0)], 0), known


@lru_cache(maxsize=16)
def _numbers(names: tuple[str, ...]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def zones_of(year: int) -> Zones:
    """All zones of the installed ``tzdata`` package, with the offsets of ``year``."""
    root = resources.files("tzdata")
    names = sorted(root.joinpath("zones").read_text("utf-8").split())
    return Zones(tuple(names), tuple(_mean(name, year) for name in names))


def year_of(as_of: int) -> int:
    """The calendar year of a day, within what time zones are defined for."""
    return (_EPOCH + datetime.timedelta(days=min(max(as_of, 0), 47_846))).year


def _mean(name: str, year: int) -> int:
    file = resources.files("tzdata").joinpath("zoneinfo", *name.split("/"))
    with file.open("rb") as data:
        zone = ZoneInfo.from_file(data, key=name)
    minutes = 0
    for month in (1, 7):
        offset = datetime.datetime(year, month, 15, 12, tzinfo=zone).utcoffset()
        minutes += 0 if offset is None else int(offset.total_seconds() // 60)
    return minutes // 2
