"""Logged decisions: one Parquet row for each match that was returned, and what came of it.

``COLUMNS`` is the schema (``docs/training.md`` explains it); features of the moment of the decision
are further columns named ``f.NAME``. ``check`` sorts the rows of a frame into good and refused
ones; reading whole files is ``rerank/decisions_read.py``.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import polars as pl

from matchwright.engine.errors import InvalidData

FEATURE = "f."
"""Prefix of feature columns."""
NOT_POINT_IN_TIME = "FEATURES_NOT_POINT_IN_TIME"
"""Carried by data, models and outputs whose features were joined after the decision."""
OUTCOMES = ("viewed", "invited", "replied", "hired", "success")
"""From the weakest to the strongest; an outcome happened when its ``_at`` column has a time."""
POSITION_MAX = 1_000
ID_BYTES_MAX = 128
FEATURE_LIMIT = 1 << 24
ASKING = ("job", "freelancer")
SEGMENTS = ("newcomer", "category", "country")
_TIME = pl.Datetime("us", "UTC")
_WIDE = (pl.UInt64(), pl.Int128())
_FAR = 1 << 62
_FIRST = datetime.datetime(1, 1, 1, tzinfo=datetime.UTC)
_LAST = datetime.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        dtype: as it is read; other widths of the same kind are taken too.
        required: whether a file without it is refused.
        text: what it says, for the documentation.
    """

    dtype: pl.DataType
    required: bool
    text: str


COLUMNS: Mapping[str, Column] = MappingProxyType(
    {
        "decision_id": Column(pl.String(), True, "names the answer; its rows share it"),
        "decided_at": Column(_TIME, True, "when it was answered; the same in all its rows"),
        "asking": Column(pl.String(), True, "`job` or `freelancer`: who asked"),
        "query_id": Column(pl.String(), True, "id of the one who asked"),
        "candidate_id": Column(pl.String(), True, "id of the one who was returned"),
        "position": Column(pl.Int32(), True, "place at which it was shown, from 1, at most 1,000"),
        "first_rank": Column(pl.Int32(), True, "place in the first phase's order, from 1"),
        "first_points": Column(pl.Int32(), False, "points of the first phase"),
        "first_score": Column(pl.Float64(), False, "score of the first phase"),
        "policy": Column(pl.String(), False, "id of the effective policy"),
        "generation": Column(pl.String(), False, "generation of the answer"),
        "epoch": Column(pl.Int64(), False, "epoch of the answer"),
        "ranker_version": Column(pl.Int32(), False, "of the ranker that ordered it; null: none"),
        "explored": Column(
            pl.String(), False, "how its place was randomised, such as `swap`; null: it was not"
        ),
        "propensity": Column(
            pl.Float64(), False,
            "probability with which it got this place among those that the randomisation could "
            "give it; null: not randomised",
        ),
        "shown_at": Column(
            _TIME, False, "when it was on a screen; null: never; without the column all were shown"
        ),
        "viewed_at": Column(_TIME, False, "when it was opened"),
        "invited_at": Column(_TIME, False, "when it was invited, or applied to"),
        "replied_at": Column(_TIME, False, "when the other side answered"),
        "hired_at": Column(_TIME, False, "when it came to a contract"),
        "success_at": Column(_TIME, False, "when the contract ended well"),
        "newcomer": Column(pl.Boolean(), False, "segment: the freelancer is new"),
        "category": Column(pl.String(), False, "segment: field of work"),
        "country": Column(pl.String(), False, "segment: country of the candidate"),
        "features_version": Column(pl.Int32(), False, "version of the features' definition"),
    }
)  # fmt: skip


class Wrong(enum.StrEnum):
    """Why a row was refused; names never change once published."""

    MISSING = "missing"
    ID_TOO_LONG = "id_too_long"
    VALUE_UNKNOWN = "value_unknown"
    OUT_OF_RANGE = "out_of_range"
    BEFORE_DECISION = "before_decision"
    NOT_SHOWN = "not_shown"
    HALF_KNOWN = "half_known"
    OTHER_VERSION = "other_version"
    NO_FEATURES = "no_features"
    DUPLICATE = "duplicate"
    CONTRADICTION = "contradiction"
    NOT_IN_STORE = "not_in_store"


WRONG_TEXT: Mapping[Wrong, str] = MappingProxyType(
    {
        Wrong.MISSING: "a required value is not there",
        Wrong.ID_TOO_LONG: "an id of more than 128 bytes",
        Wrong.VALUE_UNKNOWN: "`asking` is neither job nor freelancer",
        Wrong.OUT_OF_RANGE: "a number outside its range, or a decision outside the years 1 to 9999",
        Wrong.BEFORE_DECISION: "an outcome earlier than the decision",
        Wrong.NOT_SHOWN: "an outcome of a match that was not shown",
        Wrong.HALF_KNOWN: "`explored` without `propensity`, or the other way round",
        Wrong.OTHER_VERSION: "features of another version than the one that is trained on",
        Wrong.NO_FEATURES: "a feature is null",
        Wrong.DUPLICATE: "the same candidate, or the same position, twice in a decision",
        Wrong.CONTRADICTION: "rows of one decision that name different times or queries",
        Wrong.NOT_IN_STORE: "features are joined from a store that does not have both sides",
    }
)
REFUSED_SCHEMA = pl.Schema(
    {
        "file": pl.String, "row": pl.Int64, "id": pl.String, "field": pl.String,
        "value": pl.String, "reason": pl.String,
    }
)  # fmt: skip


def check_schema(schema: Mapping[str, pl.DataType], where: str) -> tuple[str, ...]:
    """The features of a file, in its order of columns.

    Raises:
        InvalidData: a required column is missing or a column has another type; it is named.
    """
    for name, column in COLUMNS.items():
        if name not in schema:
            if column.required:
                raise InvalidData(
                    f"{where}: no column {name!r}: {column.text}; see docs/training.md", field=name
                )
        elif not _fits(schema[name], column.dtype):
            raise InvalidData(
                f"{where}: column {name!r} is {schema[name]}, expected {column.dtype}", field=name
            )
    features = tuple(name for name in schema if name.startswith(FEATURE))
    for name in features:
        if not schema[name].is_integer():
            raise InvalidData(
                f"{where}: feature column {name!r} is {schema[name]}; features are integers",
                field=name,
            )
    if features and "features_version" not in schema:
        raise InvalidData(
            f"{where}: features without 'features_version', which says what they mean",
            field="features_version",
        )
    return tuple(name.removeprefix(FEATURE) for name in features)


def _fits(got: pl.DataType, wanted: pl.DataType) -> bool:
    if got == pl.Null():
        return True
    if isinstance(wanted, pl.Datetime):
        return isinstance(got, pl.Datetime) and got.time_zone in (None, "UTC")
    if wanted.is_integer():
        return got.is_integer()
    if wanted.is_float():
        return got.is_numeric()
    return got == wanted or (wanted == pl.String() and isinstance(got, pl.Categorical | pl.Enum))


def normalised(frame: pl.DataFrame, features: Sequence[str]) -> pl.DataFrame:
    """Every column of the schema and the features, as the types that are worked with.

    Integers become Int64 here, so that what is out of range is refused and not wrapped around.
    """
    wanted: list[pl.Expr] = []
    for name, column in COLUMNS.items():
        dtype = pl.Int64() if column.dtype.is_integer() else column.dtype
        if name not in frame.columns:
            absent = pl.col("decided_at") if name == "shown_at" else pl.lit(None)
            wanted.append(absent.cast(dtype).alias(name))
        elif isinstance(dtype, pl.Datetime) and frame.schema[name] != pl.Null():
            wanted.append(_microseconds(name, frame.schema[name]))
        elif dtype == pl.Int64():
            wanted.append(_int64(name, frame.schema[name]))
        else:
            wanted.append(pl.col(name).cast(dtype))
    wanted += [_int64(FEATURE + name, frame.schema[FEATURE + name]) for name in features]
    return frame.select(wanted)


def _int64(name: str, dtype: pl.DataType) -> pl.Expr:
    """As int64; what is beyond it stays out of range."""
    column = pl.col(name)
    if dtype in _WIDE:
        column = pl.min_horizontal(column, pl.lit(_FAR, dtype))
        if dtype.is_signed_integer():
            column = pl.max_horizontal(column, pl.lit(-_FAR, dtype))
        column = pl.when(pl.col(name).is_not_null()).then(column)
    return column.cast(pl.Int64).alias(name)


def _microseconds(name: str, dtype: pl.DataType) -> pl.Expr:
    """A time in UTC and microseconds; one that these cannot tell stays out of range."""
    if isinstance(dtype, pl.Datetime) and dtype.time_unit == "ms":
        since = pl.col(name).cast(pl.Int64).clip(-_FAR // 1_000, _FAR // 1_000) * 1_000
        return since.cast(_TIME).alias(name)
    return pl.col(name).dt.replace_time_zone("UTC").dt.cast_time_unit("us")


def check(
    frame: pl.DataFrame, features: Sequence[str], features_version: int | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Good rows, and refused ones as (row, id, field, value, reason).

    Args:
        frame: ``normalised``, with a column ``row``.
        features: names without prefix; empty when features are joined later.
        features_version: the version asked for; None when there are no features.
    """
    tests = _tests(features, features_version)
    bad = pl.coalesce(
        [pl.when(test.fill_null(True)).then(pl.lit(at, pl.Int32)) for at, (_, _, test)
         in enumerate(tests)] + [pl.lit(-1, pl.Int32)]
    )  # fmt: skip
    marked = frame.with_columns(_bad=bad)
    good = marked.filter(pl.col("_bad") < 0).drop("_bad")
    refused = [
        marked.filter(pl.col("_bad") == at).select(
            "row",
            pl.col("decision_id").fill_null("").str.slice(0, 200).alias("id"),
            pl.lit(field).alias("field"),
            _as_text(field, marked.schema[field]).str.slice(0, 200).alias("value"),
            pl.lit(str(reason)).alias("reason"),
        )
        for at, (field, reason, _) in enumerate(tests)
    ]
    return good, pl.concat(refused).sort("row")


def _as_text(field: str, dtype: pl.DataType) -> pl.Expr:
    """A value; of a time out of range its microseconds since 1970."""
    column = pl.col(field)
    if not isinstance(dtype, pl.Datetime):
        return column.cast(pl.String).fill_null("")
    told = column.is_between(_FIRST, _LAST)
    text = pl.when(told).then(column).cast(pl.String)
    return pl.coalesce(text, column.dt.epoch("us").cast(pl.String), pl.lit(""))


def _tests(
    features: Sequence[str], features_version: int | None
) -> list[tuple[str, Wrong, pl.Expr]]:
    """(field, reason, whether a row is wrong); null counts as wrong."""
    tests: list[tuple[str, Wrong, pl.Expr]] = []
    for name in ("decision_id", "query_id", "candidate_id"):
        size = pl.col(name).str.len_bytes()
        tests += [(name, Wrong.MISSING, size == 0), (name, Wrong.ID_TOO_LONG, size > ID_BYTES_MAX)]
    decided = pl.col("decided_at")
    tests.append(("decided_at", Wrong.MISSING, decided.is_null()))
    tests.append(("decided_at", Wrong.OUT_OF_RANGE, ~decided.is_between(_FIRST, _LAST)))
    tests.append(("asking", Wrong.VALUE_UNKNOWN, ~pl.col("asking").is_in(list(ASKING))))
    tests.append(("position", Wrong.OUT_OF_RANGE, ~pl.col("position").is_between(1, POSITION_MAX)))
    tests.append(("first_rank", Wrong.OUT_OF_RANGE, ~pl.col("first_rank").is_between(1, 2**31 - 1)))
    chance = pl.col("propensity")
    half = chance.is_null() != pl.col("explored").is_null()
    inside = chance.is_null() | ((chance > 0) & (chance <= 1) & chance.is_not_nan())
    tests += [("propensity", Wrong.HALF_KNOWN, half), ("propensity", Wrong.OUT_OF_RANGE, ~inside)]
    for name in ("shown", *OUTCOMES):
        at = pl.col(f"{name}_at")
        early = at.is_not_null() & (at < pl.col("decided_at"))
        tests.append((f"{name}_at", Wrong.BEFORE_DECISION, early))
        if name != "shown":
            unseen = at.is_not_null() & pl.col("shown_at").is_null()
            tests.append((f"{name}_at", Wrong.NOT_SHOWN, unseen))
    if features:
        version = pl.col("features_version").ne_missing(pl.lit(features_version, pl.Int64))
        tests.append(("features_version", Wrong.OTHER_VERSION, version))
    for name in features:
        value = pl.col(FEATURE + name)
        tests.append((FEATURE + name, Wrong.NO_FEATURES, value.is_null()))
        wide = ~value.is_between(-FEATURE_LIMIT + 1, FEATURE_LIMIT - 1)
        tests.append((FEATURE + name, Wrong.OUT_OF_RANGE, wide))
    return tests
