"""Reading files of logged decisions, a batch at a time, into the arrays that training needs.

A row in memory takes about 90 bytes and 4 for each feature; what the files hold besides (ids,
times, texts) is let go batch by batch. Rows that cannot be used go to a quarantine file with their
reason, also when that shows only when a whole decision is looked at.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import polars as pl

from matchwright.engine.errors import InvalidArgument, InvalidData
from matchwright.engine.parquet import join, writing
from matchwright.engine.rerank.decisions import (
    COLUMNS,
    FEATURE,
    NOT_POINT_IN_TIME,
    OUTCOMES,
    REFUSED_SCHEMA,
    SEGMENTS,
    Wrong,
    check,
    check_schema,
    normalised,
)
from matchwright.kernels.types import Bool, Float64, Int8, Int32, Int64, UInt64

BATCH_ROWS = 1 << 16
ROWS_MAX = 50_000_000
NEVER = 2**31 - 1
"""The day of an outcome that did not happen."""
_DAY_US = 86_400_000_000
Join = Callable[[pl.DataFrame], tuple[pl.DataFrame, pl.DataFrame]]
"""Adds feature columns to good rows: (rows with features, refused rows)."""


@dataclass(frozen=True, eq=False)
class Logged:
    """Decisions in order of time; N rows in D decisions, the rows of one side by side.

    Attributes:
        features: names of the columns of ``f_nf``.
        features_version: what defines them.
        f_nf: int32 (N, F).
        start_d: int64 (D + 1,); decision d owns rows ``start_d[d]:start_d[d + 1]``.
        day_d: int32 (D,), days since 1970-01-01 (UTC).
        position, first_rank: int32 (N,), from 1.
        shown: bool (N,).
        reached: int32 (N, 5), the day of each of ``OUTCOMES``, or ``NEVER``.
        propensity: float64 (N,), NaN where the place was not randomised.
        pair: uint64 (N,), the same for the same query and candidate.
        ranker: int32 (N,), version of the ranker that ordered the row, 0 for none.
        segments: segment column -> (int32 (N,) codes, -1 unknown; names).
        point_in_time: False when the features were joined after the decision.
        digest: BLAKE2b-256 over the files, in the order given.
        rows_read, refused: rows of the files, and refused ones by reason.
    """

    features: tuple[str, ...]
    features_version: int
    f_nf: Int32
    start_d: Int64
    day_d: Int32
    position: Int32
    first_rank: Int32
    shown: Bool
    reached: Int32
    propensity: Float64
    pair: UInt64
    ranker: Int32
    segments: Mapping[str, tuple[Int32, tuple[str, ...]]]
    point_in_time: bool
    digest: str
    rows_read: int
    refused: Mapping[str, int]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What every output about this data must carry."""
        return () if self.point_in_time else (NOT_POINT_IN_TIME,)

    @property
    def decision(self) -> Int64:
        """int64 (N,): number of each row's decision."""
        return np.repeat(np.arange(self.day_d.size), np.diff(self.start_d))

    def grade(self, known_until: int = NEVER) -> Int8:
        """int8 (N,): 0 for nothing, else 1 + the place in ``OUTCOMES`` of the strongest outcome.

        Args:
            known_until: outcomes of this day and later are not known yet.
        """
        known = self.reached < known_until
        grade: Int8 = (known * np.arange(1, len(OUTCOMES) + 1)).max(axis=1).astype(np.int8)
        return grade

    def ordered(self, features: Sequence[str]) -> Logged:
        """The same with these feature columns, in this order.

        Raises:
            InvalidData: one of them is not there.
        """
        missing = [name for name in features if name not in self.features]
        if missing:
            raise InvalidData(
                f"the decisions have no feature {', '.join(missing[:5])} (version "
                f"{self.features_version}); they have {', '.join(self.features)}"
            )
        columns = [self.features.index(name) for name in features]
        return dataclasses.replace(
            self, features=tuple(features), f_nf=np.ascontiguousarray(self.f_nf[:, columns])
        )

    def part(self, keep_d: Bool) -> Logged:
        """Some decisions.

        Args:
            keep_d: bool (D,).
        """
        return self.rows(keep_d[self.decision])

    def rows(self, keep_n: Bool) -> Logged:
        """Some rows, bool (N,); decisions that lose all of theirs are gone."""
        by_row = ("f_nf", "position", "first_rank", "shown", "reached", "propensity", "pair",
                  "ranker")  # fmt: skip
        changed: dict[str, Any] = {name: getattr(self, name)[keep_n] for name in by_row}
        lengths = np.bincount(self.decision[keep_n], minlength=self.day_d.size)
        changed["start_d"] = np.concatenate([[0], np.cumsum(lengths[lengths > 0])])
        changed["day_d"] = self.day_d[lengths > 0]
        changed["segments"] = {
            name: (codes[keep_n], names) for name, (codes, names) in self.segments.items()
        }
        return dataclasses.replace(self, **changed)


class Refusals:
    """Writes refused rows to one file, which appears when the block ends well."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.reasons: Counter[str] = Counter()
        self._parts: list[Path] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self.path is not None and self._parts:
                join(self._parts, self.path)
        finally:
            if self._folder is not None:
                self._folder.cleanup()

    def add(self, file: str, refused: pl.DataFrame) -> None:
        """Takes (row, id, field, value, reason) of a file."""
        if refused.is_empty():
            return
        self.reasons.update(refused["reason"].to_list())
        if self.path is None:
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="matchwright-refused-")
        part = Path(self._folder.name) / f"{len(self._parts):06}.parquet"
        whole = refused.with_columns(file=pl.lit(file), row=pl.col("row").cast(pl.Int64))
        with writing(part):
            whole.select(list(REFUSED_SCHEMA)).write_parquet(part)
        self._parts.append(part)


def read(
    files: Sequence[Path],
    *,
    quarantine: Path | None = None,
    features_version: int | None = None,
    join: Join | None = None,
    joined: tuple[Sequence[str], int] | None = None,
    advance: Callable[[int], None] = lambda rows: None,
    rows_max: int = ROWS_MAX,
) -> Logged:
    """All decisions of some files.

    Args:
        quarantine: where refused rows go; None to count them only.
        features_version: take rows of this version; the first row's when None.
        join: adds features where files have none; ``joined`` names them and their version.
        advance: told how many rows were read.
        rows_max: refuse more good rows than this.

    Raises:
        InvalidData: a file is no such file, features differ between files, or no row is good.
        InvalidArgument: too many rows, or files without features and nothing to join.
    """
    if not files:
        raise InvalidArgument("no file of decisions was given", field="decisions")
    reader = _Reader(files, features_version, join, joined)
    with Refusals(quarantine) as refusals:
        for at, file in enumerate(files):
            reader.add(at, file, refusals, advance, rows_max)
        return reader.finish(refusals)


class _Reader:
    """Collects compact rows of all files."""

    def __init__(
        self,
        files: Sequence[Path],
        features_version: int | None,
        join: Join | None,
        joined: tuple[Sequence[str], int] | None,
    ) -> None:
        self._files = files
        self._join = join
        self._kept: list[pl.DataFrame] = []
        self._hash = hashlib.blake2b(digest_size=32)
        self._rows_read = self._rows_kept = 0
        self._features: tuple[str, ...] | None = tuple(joined[0]) if joined else None
        self._version = joined[1] if joined else features_version

    def add(
        self,
        at: int,
        file: Path,
        refusals: Refusals,
        advance: Callable[[int], None],
        rows_max: int,
    ) -> None:
        _hash_file(self._hash, file)
        row = 0
        for batch in _batches(file):
            self._take_features(batch, file)
            rows = normalised(batch, () if self._join else self._features or ())
            rows = rows.with_columns(row=pl.int_range(row + 1, pl.len() + row + 1, dtype=pl.Int64))
            row += batch.height
            good, refused = check(rows, () if self._join else self._features or (), self._version)
            refusals.add(str(file), refused)
            if self._join is not None and good.height:
                good, refused = self._join(good)
                refusals.add(str(file), refused)
            self._kept.append(_compact(good, self._features or (), at))
            self._rows_kept += good.height
            advance(batch.height)
            if self._rows_kept > rows_max:
                raise InvalidArgument(
                    f"more than {rows_max:,} rows; give fewer files, or raise --rows-max "
                    "(a row takes about 90 bytes and 4 for each feature)"
                )
        self._rows_read += row

    def _take_features(self, batch: pl.DataFrame, file: Path) -> None:
        found = check_schema(batch.schema, str(file))
        if self._join is not None:
            return
        if not found:
            raise InvalidArgument(
                f"{file} has no features of the moment of the decision (columns {FEATURE}NAME); "
                "with --store DIR they are joined from the store as it is now, and the model "
                f"carries {NOT_POINT_IN_TIME}",
                field="decisions",
            )
        if self._features is None:
            self._features = found
        elif sorted(found) != sorted(self._features):
            odd = sorted(set(found) ^ set(self._features))
            raise InvalidData(f"{file}: its features differ from the first file's: {odd[:5]}")
        if self._version is None:
            versions = batch["features_version"].drop_nulls()
            self._version = int(versions[0]) if len(versions) else None
        if self._version is not None and not 0 <= self._version < 1 << 31:
            raise InvalidData(f"{file}: its features_version is {self._version:,}; of 32 bits here")

    def finish(self, refusals: Refusals) -> Logged:
        kept = pl.concat(self._kept) if self._kept else None
        if kept is not None and kept.height:
            kept = self._whole_decisions(kept, refusals)
        if kept is None or not kept.height or self._features is None or self._version is None:
            worst = ", ".join(f"{name} {n:,}" for name, n in refusals.reasons.most_common(3))
            raise InvalidData(
                f"no row of {self._rows_read:,} can be used ({worst or 'the files are empty'}); "
                "see docs/training.md for the schema"
            )
        return _logged(
            kept, self._features, self._version, self._join is None, self._hash.hexdigest(),
            self._rows_read, dict(refusals.reasons),
        )  # fmt: skip

    def _whole_decisions(self, kept: pl.DataFrame, refusals: Refusals) -> pl.DataFrame:
        """What only shows beside the decision's other rows."""
        kept = kept.with_columns(
            first=(pl.col("file").cast(pl.UInt64) * (1 << 32) + pl.col("line"))
            .min()
            .over("decision"),
        ).sort("decided_at", "first", "position", "file", "line", maintain_order=True)
        same = pl.col("decided_at").eq(pl.col("decided_at").first().over("decision"))
        same &= pl.col("query").eq(pl.col("query").first().over("decision"))
        again = pl.col("pair").cum_count().over("decision", "pair") > 1
        again |= pl.col("position").cum_count().over("decision", "position") > 1
        for reason, bad in ((Wrong.CONTRADICTION, ~same), (Wrong.DUPLICATE, again)):
            kept = kept.with_columns(_bad=bad)
            for (at,), rows in kept.filter(pl.col("_bad")).group_by("file", maintain_order=True):
                told = rows.select(
                    pl.col("line").alias("row"), pl.lit("").alias("id"),
                    pl.lit("decision_id").alias("field"), pl.lit("").alias("value"),
                    pl.lit(str(reason)).alias("reason"),
                )  # fmt: skip
                refusals.add(str(self._files[int(str(at))]), told)
            kept = kept.filter(~pl.col("_bad")).drop("_bad")
        return kept


def _hash_file(into: hashlib.blake2b, file: Path) -> None:
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            into.update(piece)


def _batches(file: Path) -> Iterator[pl.DataFrame]:
    try:
        scan = pl.scan_parquet(file, glob=False)
        schema = scan.collect_schema()
        check_schema(schema, str(file))
        wanted = [name for name in schema if name in COLUMNS or name.startswith(FEATURE)]
        batches = iter(
            scan.select(wanted).collect_batches(chunk_size=BATCH_ROWS, maintain_order=True)
        )
        while (batch := next(batches, None)) is not None:
            yield from batch.iter_slices(BATCH_ROWS)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise InvalidData(f"{file} cannot be read as Parquet: {said[0][:200]}", file=file) from None


def _compact(good: pl.DataFrame, features: Sequence[str], at: int) -> pl.DataFrame:
    """The rows without ids, texts and times."""
    query = pl.concat_str("asking", "query_id", separator="\0")
    days = [
        (pl.col(f"{name}_at").dt.timestamp("us") // _DAY_US).fill_null(NEVER).cast(pl.Int32)
        .alias(name) for name in OUTCOMES
    ]  # fmt: skip
    newcomer = pl.when("newcomer").then(pl.lit("newcomer")).otherwise(pl.lit("established"))
    return good.select(
        pl.col("decision_id").hash(seed=1).alias("decision"),
        query.hash(seed=2).alias("query"),
        pl.concat_str(query, "candidate_id", separator="\0").hash(seed=3).alias("pair"),
        pl.col("decided_at").dt.timestamp("us"),
        pl.lit(at, pl.UInt16).alias("file"),
        pl.col("row").cast(pl.UInt32).alias("line"),
        pl.col("position").cast(pl.Int32),
        pl.col("first_rank").cast(pl.Int32),
        pl.col("shown_at").is_not_null().alias("shown"),
        *days,
        pl.col("propensity").fill_null(float("nan")),
        pl.col("ranker_version").fill_null(0).cast(pl.Int32, strict=False).alias("ranker"),
        pl.when(pl.col("newcomer").is_not_null()).then(newcomer).cast(pl.Categorical)
        .alias("newcomer"),
        pl.col("category").cast(pl.Categorical),
        pl.col("country").cast(pl.Categorical),
        *(pl.col(FEATURE + name).cast(pl.Int32) for name in features),
    )  # fmt: skip


def _logged(
    kept: pl.DataFrame, features: tuple[str, ...], version: int, point_in_time: bool,
    digest: str, rows_read: int, refused: Mapping[str, int],
) -> Logged:  # fmt: skip
    decision = kept["decision"].to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], decision[1:] != decision[:-1]]))
    day = (kept["decided_at"].to_numpy()[starts] // _DAY_US).astype(np.int32)
    return Logged(
        features=features,
        features_version=version,
        f_nf=np.ascontiguousarray(
            kept.select(FEATURE + name for name in features).to_numpy(), dtype=np.int32
        ),
        start_d=np.concatenate([starts, [kept.height]]).astype(np.int64),
        day_d=day,
        position=kept["position"].to_numpy(),
        first_rank=kept["first_rank"].to_numpy(),
        shown=kept["shown"].to_numpy(),
        reached=np.ascontiguousarray(kept.select(OUTCOMES).to_numpy(), dtype=np.int32),
        propensity=kept["propensity"].to_numpy(),
        pair=kept["pair"].to_numpy(),
        ranker=kept["ranker"].fill_null(0).to_numpy(),
        segments={name: _codes(kept[name]) for name in SEGMENTS},
        point_in_time=point_in_time,
        digest=digest,
        rows_read=rows_read,
        refused=refused,
    )


def _codes(column: pl.Series) -> tuple[Int32, tuple[str, ...]]:
    """Codes of a text column, names in order of spelling, -1 for null."""
    names = sorted(column.drop_nulls().unique().cast(pl.String).to_list())
    if not names:
        return np.full(len(column), -1, dtype=np.int32), ()
    codes = column.cast(pl.String).replace_strict(
        names, list(range(len(names))), default=-1, return_dtype=pl.Int32
    )
    return codes.fill_null(-1).to_numpy(), tuple(names)


def day_text(day: int) -> str:
    """A day number as YYYY-MM-DD."""
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=int(day))).isoformat()
