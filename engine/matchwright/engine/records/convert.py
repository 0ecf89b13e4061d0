"""Raw rows to a validated frame: a column at a time, every refused row with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import polars as pl

from matchwright.engine.errors import InvalidData, unknown_key
from matchwright.engine.records.conditions import is_empty
from matchwright.engine.records.fields import FIELDS, Kind, Type
from matchwright.engine.records.map_fields import FieldMap
from matchwright.engine.records.maps import RecordMap, native_map
from matchwright.engine.records.reasons import MEANING, Bad, Reason
from matchwright.engine.records.rows import ObjectRows, Refused, Rows, refused, shown
from matchwright.engine.records.schema import SCHEMAS, series
from matchwright.engine.records.values import parser_for, text_of, value_key

MEMO_SIZE = 1 << 15
MEMO_CHARS_MAX = 256
_NEW: Any = object()
_FEW = 64
"""Fewer records than this are not worth a converter of their own."""

HALF_KNOWN = MEANING[Reason.HALF_KNOWN]
_JOINED = (Type.TITLE, Type.TEXT, Type.ID)
_ORDERED: dict[Kind, tuple[tuple[str, str], ...]] = {
    "job": (
        ("rate_min_cents", "rate_max_cents"),
        ("min_rate_cents", "max_rate_cents"),
        ("posted", "closes"),
    ),
    "freelancer": (),
}
"""Pairs of fields of which the first must not be above the second."""


@dataclass(slots=True)
class Converted:
    """What became of a chunk.

    Attributes:
        frame: the rows that are fine, in the schema of the kind.
        number: their row numbers.
        refused: the others.
        known, unknown, changed: per field, among rows that are fine: how many have a value; how
            many a bad value that the map turns into unknown; how many a text that was changed by
            more than blanks (markup, encoding, personal data, length).
    """

    frame: pl.DataFrame
    number: list[int]
    refused: list[Refused]
    known: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Parsed:
    """The fields of a chunk, and what is wrong with it.

    Attributes:
        values: field -> a value for each row.
        bad: row -> why it is refused.
        lost, changed: field -> rows whose value became unknown, or whose text was changed.
    """

    values: dict[str, list[Any]] = field(default_factory=dict)
    bad: dict[int, Refused] = field(default_factory=dict)
    lost: dict[str, set[int]] = field(default_factory=dict)
    changed: dict[str, list[int]] = field(default_factory=dict)


class Converter:
    """Applies a map to chunks. Thread-safe.

    Args:
        record_map: what the fields are made of.
        id_required: refuse rows without an id.
        remember: keep parsed values of columns between chunks.
    """

    def __init__(
        self, record_map: RecordMap, *, id_required: bool = True, remember: bool = True
    ) -> None:
        self._kind: Kind = record_map.kind
        self._id_required = id_required
        self._columns = {
            mapped.spec.name: _Column(mapped, remember) for mapped in record_map.fields
        }

    def convert(self, rows: Rows) -> Converted:
        """A validated frame and every row that is not in it."""
        n = len(rows.number)
        found = self.parse(rows)
        values, bad = found.values, found.bad
        kept = [row for row in range(n) if row not in bad] if bad else range(n)
        done = Converted(
            self.frame(values, kept, n),
            [rows.number[row] for row in kept],
            [bad[row] for row in sorted(bad)],
        )
        done.known.update({c: done.frame.height - done.frame[c].null_count() for c in values})
        done.unknown.update({name: len(at - bad.keys()) for name, at in found.lost.items()})
        done.changed.update({name: len(set(at) - bad.keys()) for name, at in found.changed.items()})
        return done

    def parse(self, rows: Rows, names: Iterable[str] | None = None) -> _Parsed:
        """Every field's values, and every row that is refused.

        Args:
            names: fields of the map to fill, in this order; None for all.
        """
        done = _Parsed()
        for name in self._columns if names is None else names:
            column = self._columns[name]
            outcome = column.parse(rows)
            done.values[name], done.changed[name] = outcome.values, outcome.changed
            for row, (raw, error) in outcome.errors.items():
                if column.mapped.on_error == "unknown":
                    done.lost.setdefault(name, set()).add(row)
                elif row in done.bad:
                    done.bad[row] = _also(done.bad[row], name)
                else:
                    done.bad[row] = _refusal(rows.number[row], name, raw, error)
        self._check_ids(done.values, rows, done.bad)
        self._check_pairs(done.values, rows, done.bad)
        ids = done.values.get("id", [None] * len(rows.number))
        done.bad = {row: replace(one, id=ids[row] or "") for row, one in done.bad.items()}
        return done

    def _check_ids(self, values: dict[str, list[Any]], rows: Rows, bad: dict[int, Refused]) -> None:
        if not self._id_required:
            return
        ids = values.get("id", [None] * len(rows.number))
        for row, value in enumerate(ids):
            if value is None and row not in bad:
                bad[row] = refused(rows.number[row], "id", "", Reason.MISSING, "a row without id")

    def _check_pairs(
        self, values: dict[str, list[Any]], rows: Rows, bad: dict[int, Refused]
    ) -> None:
        for low_name, high_name in _ORDERED[self._kind]:
            if low_name not in values or high_name not in values:
                continue
            pairs = zip(values[low_name], values[high_name], strict=True)
            for row, (low, high) in enumerate(pairs):
                if low is not None and high is not None and low > high and row not in bad:
                    detail = f"{low_name} {low} is above {high_name} {high}"
                    bad[row] = refused(
                        rows.number[row], high_name, high, Reason.RANGE_REVERSED, detail
                    )
        n = len(rows.number)
        starts, ends = (values.get(name, [None] * n) for name in ("hours_start", "hours_end"))
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if (start is None) != (end is None) and row not in bad:
                name = "hours_end" if end is None else "hours_start"
                bad[row] = refused(rows.number[row], name, "", Reason.HALF_KNOWN, HALF_KNOWN)

    def frame(self, values: dict[str, list[Any]], kept: Sequence[int], n: int) -> pl.DataFrame:
        everything = len(kept) == n
        columns = []
        for name, dtype in SCHEMAS[self._kind].items():
            if name in values:
                column = values[name]
                chosen = column if everything else [column[row] for row in kept]
                columns.append(series(name, chosen, dtype))
            else:
                columns.append(pl.Series(name, dtype=dtype).extend_constant(None, len(kept)))
        return pl.DataFrame(columns)


def _refusal(row: int, name: str, raw: Any, error: Bad) -> Refused:
    return refused(
        row, name, error.item if error.item is not None else raw, error.reason, error.detail
    )


def _also(first: Refused, name: str) -> Refused:
    """The same refusal, saying that another field is bad as well."""
    detail = (
        f"{first.detail}; also {name}"
        if "; also " not in first.detail
        else first.detail + f", {name}"
    )
    return replace(first, detail=detail)


# ── One column ────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Outcome:
    values: list[Any]
    errors: dict[int, tuple[Any, Bad]]
    changed: list[int]


class _Column:
    """One field of a map, ready to be applied."""

    def __init__(self, mapped: FieldMap, remember: bool) -> None:
        self.mapped = mapped
        self._parse = parser_for(mapped.spec, mapped.options)
        self._prose = mapped.spec.type in (Type.TITLE, Type.TEXT)
        # Equal numbers of different types (1, 1.0, True) must not share an entry.
        self._memo: dict[type, dict[Any, Any]] = {str: {}, float: {}}
        if self._prose or mapped.spec.type is Type.ID or not remember:
            self._memo = {}

    def parse(self, rows: Rows) -> _Outcome:
        mapped = self.mapped
        n = len(rows.number)
        if not mapped.columns:
            values = [mapped.const] * n
            done = _Outcome(values, {}, [])
            self._blank(rows, values)
            return done
        raws = list(self._raws(rows))
        self._blank(rows, raws)
        if mapped.currency_from is not None and mapped.options.money is not None:
            return self._with_currency(raws, rows.column(mapped.currency_from))
        return self._each(raws)

    def _raws(self, rows: Rows) -> Sequence[Any]:
        mapped = self.mapped
        columns = [rows.column(name) for name in mapped.columns]
        if mapped.spec.type in _JOINED:
            if len(columns) == 1 and mapped.spec.type is not Type.TEXT:
                return columns[0]
            need_all = mapped.spec.type is Type.ID
            return [_joined(parts, mapped.join, need_all) for parts in zip(*columns, strict=True)]
        if len(columns) == 1:
            return columns[0]
        if mapped.spec.is_list:
            return [
                _concatenated(parts, mapped.options.split) for parts in zip(*columns, strict=True)
            ]
        return [
            next((part for part in parts if not is_empty(part)), None)
            for parts in zip(*columns, strict=True)
        ]

    def _blank(self, rows: Rows, raws: list[Any]) -> None:
        """Sets to None what the map declares unknown."""
        mapped = self.mapped
        n = len(raws)
        if mapped.unknown_values:
            for row, raw in enumerate(raws):
                if type(raw) in (str, int, float, bool) and _key(raw) in mapped.unknown_values:
                    raws[row] = None
        for condition in mapped.unknown_if:
            for row, holds in enumerate(condition.holds(rows.column, n)):
                if holds:
                    raws[row] = None
        if mapped.when is not None:
            for row, holds in enumerate(mapped.when.holds(rows.column, n)):
                if not holds:
                    raws[row] = None

    def _each(self, raws: list[Any]) -> _Outcome:
        values: list[Any] = []
        done = _Outcome(values, {}, [])
        memos = self._memo
        for row, raw in enumerate(raws):
            if raw is None or raw == "":
                values.append(None)
                continue
            memo = memos.get(type(raw))
            value = _NEW if memo is None else memo.get(raw, _NEW)
            if value is _NEW:
                value = self._one(raw)
                if memo is not None and (type(raw) is float or len(raw) <= MEMO_CHARS_MAX):
                    if len(memo) >= MEMO_SIZE:
                        memo.clear()
                    memo[raw] = value
            if type(value) is Bad:
                done.errors[row] = (raw, value)
                value = None
            elif self._prose and _differs(raw, value):
                done.changed.append(row)
            values.append(value)
        return done

    def _one(self, raw: Any) -> Any:
        """The parsed value, or the ``Bad`` that says why there is none."""
        try:
            if type(raw) is list and not self.mapped.spec.is_list and self.mapped.pick:
                return self._picked(raw)
            return self._parse(raw)
        except Bad as bad:
            return bad

    def _picked(self, raws: list[Any]) -> Any:
        values = [self._parse(raw) for raw in raws if not is_empty(raw)]
        values = [value for value in values if value is not None]
        if not values:
            return None
        pick = self.mapped.pick
        if pick == "min":
            return min(values)
        if pick == "max":
            return max(values)
        return values[0] if pick == "first" else values[-1]

    def _with_currency(self, raws: list[Any], codes: Sequence[Any]) -> _Outcome:
        rule = self.mapped.options.money
        assert rule is not None
        done = _Outcome([], {}, [])
        for row, (raw, code) in enumerate(zip(raws, codes, strict=True)):
            value = None
            if not is_empty(raw):
                try:
                    value = rule.cents(
                        raw, None if is_empty(code) else text_of(code).strip().upper()
                    )
                except Bad as bad:
                    done.errors[row] = (raw, bad)
            done.values.append(value)
        return done


def _key(raw: Any) -> str:
    return value_key(raw) if type(raw) is not str or len(raw) <= MEMO_CHARS_MAX else "\0"


def _differs(raw: Any, value: str | None) -> bool:
    return type(raw) is str and raw != value and raw.split() != (value or "").split()


def _joined(parts: Sequence[Any], join: str, need_all: bool) -> Any:
    flat = list(_flat(parts))
    if need_all and (len(flat) < len(parts) or any(is_empty(part) for part in parts)):
        return None
    if len(flat) == 1:
        return flat[0]
    if any(not isinstance(part, str | int) or isinstance(part, bool) for part in flat):
        return flat  # the parser says what is wrong with it
    return join.join(map(str, flat)) if flat else None


def _flat(parts: Sequence[Any]) -> list[Any]:
    done: list[Any] = []
    for part in parts:
        if isinstance(part, list):
            done += [item for item in part if not is_empty(item)]
        elif not is_empty(part):
            done.append(part)
    return done


def _concatenated(parts: Sequence[Any], split: str | None) -> list[Any] | None:
    done: list[Any] = []
    for part in parts:
        if is_empty(part):
            continue
        if isinstance(part, str) and split:
            done += part.split(split)
        elif isinstance(part, list):
            done += part
        else:
            done.append(part)
    return done or None


# ── Records that come as dictionaries ─────────────────────────────────────────────────────────


def to_frame(
    kind: Kind, rows: Sequence[dict[str, Any]], *, id_required: bool = True
) -> pl.DataFrame:
    """A validated frame of records that use our own field names and units.

    Everything that the import does to values is done here too: skills are normalised, countries
    become codes, texts are scrubbed. A record that is already in stored form does not change.

    Args:
        id_required: False for an inline query, whose id may be absent (it is then null).

    Raises:
        UnknownKey: a key that no record of the kind has.
        InvalidData: the first value that cannot be used; ``details`` hold row (0-based), field,
            reason and value.
    """
    values = _checked(kind, rows, id_required)
    return _native(kind, id_required).frame(values, range(len(rows)), len(rows))


def to_rows(
    kind: Kind, rows: Sequence[dict[str, Any]], *, id_required: bool = True
) -> list[dict[str, Any]]:
    """``to_frame(...).to_dicts()``, without a frame: what takes longest for a few records."""
    values = _checked(kind, rows, id_required)
    return [
        {name: values[name][n] if name in values else None for name in SCHEMAS[kind]}
        for n in range(len(rows))
    ]


def _checked(kind: Kind, rows: Sequence[dict[str, Any]], id_required: bool) -> dict[str, list[Any]]:
    """Field -> values, of the fields that some row has, all of them as they are stored."""
    known = FIELDS[kind]
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InvalidData(
                f"record {place}: a dictionary expected, got {type(row).__name__}", row=place
            )
        for key in row:
            if key not in known:
                raise unknown_key(f"{kind} field", str(key)[:100], known)
    used = dict.fromkeys(key for row in rows for key in row)
    used["id"] = None
    few = len(rows) < _FEW
    converter = _native(kind, id_required) if few else _converter(kind, id_required, remember=True)
    found = converter.parse(ObjectRows(range(len(rows)), rows), used)
    if found.bad:
        first = found.bad[min(found.bad)]
        name = rows[first.row].get("id")
        raise InvalidData(
            f"{kind} {shown(name) or first.row}, field {first.field!r}: {first.detail}; "
            f"got {first.value!r}",
            row=first.row,
            field=first.field,
            reason=first.reason,
            value=first.value,
        )
    return found.values


@cache
def _native(kind: Kind, id_required: bool) -> Converter:
    """Kept for messages; it remembers no values, which are whatever callers send."""
    return _converter(kind, id_required, remember=False)


def _converter(kind: Kind, id_required: bool, *, remember: bool) -> Converter:
    return Converter(native_map(kind), id_required=id_required, remember=remember)
