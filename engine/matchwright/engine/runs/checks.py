"""Checks of one unit's files that need nothing but the files and the plan.

Each takes the unit as arrays and writes what it finds into ``Findings``. None stops at a failure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.results import Shortfall
from matchwright.engine.runs.findings import Findings
from matchwright.engine.runs.merge import Hits, Horizons, order_words, reaches, starts_of
from matchwright.engine.runs.plan import Plan, Unit, unit_key
from matchwright.engine.runs.second import NO_SCORE
from matchwright.kernels.order import hash_keys
from matchwright.kernels.types import Bool, Float64, Int32, UInt64

ROWS = {
    "query_id": pl.String,
    "query_key": pl.UInt64,
    "rank": pl.Int32,
    "id": pl.String,
    "key": pl.UInt64,
    "points": pl.Int32,
    "score": pl.Float64,
}
"""Columns that part and slack files must have."""
QUERIES = {
    "query_id": pl.String,
    "query_key": pl.UInt64,
    "returned": pl.Int32,
    "eligible": pl.Int64,
    "unverified": pl.Int64,
    "shortfall": pl.String,
    "error": pl.String,
    "t": pl.Float64,
    "attainable": pl.Float64,
    "resolution": pl.Int32,
    "print": pl.Binary,
    "horizon_points": pl.Int32,
    "horizon_mix": pl.UInt32,
    "horizon_low": pl.UInt32,
}
NULLABLE = {
    "shortfall", "error", "horizon_points", "horizon_mix", "horizon_low", "model_score", "degraded",
}  # fmt: skip
NAMED = ("epoch", "generation", "policy")
"""Constant columns of a part, each equal to the plan's."""


@dataclass(frozen=True, slots=True)
class UnitFrames:
    """A unit's files, decoded.

    Attributes:
        unit: which.
        part, queries, slack: slack is None where the run keeps none.
        redacted: whether somebody was erased from these files.
    """

    unit: Unit
    part: pl.DataFrame
    queries: pl.DataFrame
    slack: pl.DataFrame | None
    redacted: bool


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of a part or slack file.

    Attributes:
        hits: query positions, keys, points.
        rank_m: int32 (M,).
        score_m: float64 (M,).
        moved_m: bool (M,), moved by the exposure pass.
        first_m: int32 (M,), rank in the first phase.
        model_m: int32 (M,), the model's score; ``NO_SCORE`` where there is none.
    """

    hits: Hits
    rank_m: Int32
    score_m: Float64
    moved_m: Bool
    first_m: Int32
    model_m: Int32


@dataclass(frozen=True, slots=True, eq=False)
class UnitArrays:
    """A unit as arrays; rows of unknown queries are left out (and were reported)."""

    unit: Unit
    redacted: bool
    key_q: UInt64
    returned_q: Int32
    t_q: Float64
    error_q: Bool
    horizons: Horizons
    part: Rows
    slack: Rows
    degraded_q: Bool


def check_schema(findings: Findings, frames: UnitFrames, plan: Plan) -> bool:
    """Columns, types, nulls and constant names. False where nothing else can be checked."""
    unit, good = frames.unit, True
    rows, queries = dict(ROWS), dict(QUERIES)
    if plan.ranker is not None:
        rows |= {"first_rank": pl.Int32, "model_score": pl.Int32}
        queries |= {"degraded": pl.String}
    wanted = dict(rows)
    if plan.options.contributions:
        wanted |= {f"points_{name}": pl.Int32 for name in plan.facets}
    for what, frame, schema in (
        ("part", frames.part, wanted),
        ("slack", frames.slack, rows),
        ("queries", frames.queries, queries),
    ):
        if frame is None:
            continue
        for problem in _schema_problems(frame, schema):
            good = False
            findings.fail("schema", unit.file(what), problem)
        findings.looked("schema")
    for name in NAMED:
        good &= _check_constant(findings, frames, name, str(plan.determinants[name]))
    return good


def _schema_problems(frame: pl.DataFrame, schema: Any) -> list[str]:
    found = []
    for name, dtype in schema.items():
        if name not in frame.columns:
            found.append(f"lacks the column {name!r}")
        elif frame.schema[name] != dtype:
            found.append(f"column {name!r} is {frame.schema[name]}, expected {dtype}")
        elif name not in NULLABLE and frame[name].null_count():
            found.append(f"column {name!r} holds {frame[name].null_count():,} nulls")
    return found


def _check_constant(findings: Findings, frames: UnitFrames, name: str, value: str) -> bool:
    where = frames.unit.file("part")
    if name not in frames.part.columns:
        findings.fail("schema", where, f"lacks the column {name!r}")
        return False
    other = frames.part[name].cast(pl.String).ne_missing(pl.Series([value]))
    wrong = int(other.sum())
    findings.fail("schema", where, f"{name} is not the plan's {value!r}", wrong)
    return not wrong


def arrays_of(findings: Findings, frames: UnitFrames) -> UnitArrays:
    """The unit as arrays, after a look at its query keys."""
    queries = frames.queries
    key_q = queries["query_key"].to_numpy()
    far = queries["horizon_points"].is_not_null().to_numpy()
    horizons = Horizons(
        set_q=far,
        points_q=queries["horizon_points"].fill_null(0).to_numpy(),
        mix_q=queries["horizon_mix"].fill_null(0).to_numpy(),
        low_q=queries["horizon_low"].fill_null(0).to_numpy(),
    )
    return UnitArrays(
        unit=frames.unit,
        redacted=frames.redacted,
        key_q=key_q,
        returned_q=queries["returned"].to_numpy(),
        t_q=queries["t"].to_numpy(),
        error_q=queries["error"].is_not_null().to_numpy(),
        horizons=horizons,
        part=_rows(findings, frames.unit, "part", frames.part, key_q),
        slack=_rows(findings, frames.unit, "slack", frames.slack, key_q),
        degraded_q=degraded_of(queries),
    )


def degraded_of(queries: pl.DataFrame) -> Bool:
    """bool (Q,): whose model was not asked."""
    if "degraded" not in queries.columns:
        return np.zeros(queries.height, dtype=np.bool_)
    return np.asarray(queries["degraded"].is_not_null().to_numpy())


def _rows(
    findings: Findings, unit: Unit, what: str, frame: pl.DataFrame | None, key_q: UInt64
) -> Rows:
    if frame is None:
        frame = pl.DataFrame(schema=ROWS)
    asked = frame["query_key"].to_numpy()
    order = np.argsort(key_q, kind="stable")
    at = np.searchsorted(key_q[order], asked)
    query_m = order[np.minimum(at, max(key_q.size - 1, 0))] if key_q.size else at * 0 - 1
    known = key_q[query_m] == asked if key_q.size else np.zeros(asked.size, np.bool_)
    findings.fail(
        "returned", unit.file(what), "a row of a query that is not in the unit", int((~known).sum())
    )
    moved, first = _moved(frame)
    hits = Hits(query_m.astype(np.int64), frame["key"].to_numpy(), frame["points"].to_numpy())
    return Rows(
        hits=hits.take(known),
        rank_m=frame["rank"].to_numpy()[known],
        score_m=frame["score"].to_numpy()[known],
        moved_m=moved[known],
        first_m=first[known],
        model_m=_model_scores(frame)[known],
    )


def _model_scores(frame: pl.DataFrame) -> Int32:
    if "model_score" not in frame.columns:
        return np.full(frame.height, NO_SCORE, dtype=np.int32)
    return np.asarray(frame["model_score"].cast(pl.Int32).fill_null(NO_SCORE).to_numpy())


def _moved(frame: pl.DataFrame) -> tuple[Bool, Int32]:
    """(moved, rank before the exposure pass) of each row."""
    rank = frame["rank"].to_numpy()
    if "moved" not in frame.columns or "first_rank" not in frame.columns:
        return np.zeros(rank.size, dtype=np.bool_), rank
    first = frame["first_rank"].cast(pl.Int32)
    return frame["moved"].is_not_null().to_numpy(), first.fill_null(frame["rank"]).to_numpy()


def check_unit(findings: Findings, plan: Plan, data: UnitArrays) -> None:
    """Everything that the arrays of one unit can tell."""
    check_keys_of_queries(findings, plan, data)
    check_ranks(findings, plan, data)
    check_order(findings, data)
    check_duplicates(findings, data)
    check_returned(findings, plan, data)
    check_horizon(findings, plan, data)


def check_keys_of_queries(findings: Findings, plan: Plan, data: UnitArrays) -> None:
    """Query keys ascend, and the unit's key follows from them.

    Of an unit from which queries were erased, only that the others ascend.
    """
    unit, where = data.unit, data.unit.file("queries")
    down = int((data.key_q[1:] <= data.key_q[:-1]).sum())
    findings.looked("units")
    findings.fail("units", where, "query keys do not ascend", down)
    if data.redacted:
        return
    key = unit_key(plan.run_id, unit.kind, unit.number, data.key_q, 0, data.key_q.size)
    findings.expect(
        "units", key == unit.key, where, f"its queries give the key {key}, the plan has {unit.key}"
    )


def check_ranks(findings: Findings, plan: Plan, data: UnitArrays) -> None:
    """1, 2, 3 ... for each query; the slack goes on from K + 1. Where erased, gaps are allowed."""
    for what, rows, first in (("part", data.part, 1), ("slack", data.slack, plan.options.k + 1)):
        where, query_m = data.unit.file(what), rows.hits.query_m
        findings.looked("ranks", query_m.size)
        if not query_m.size:
            continue
        back = int((query_m[1:] < query_m[:-1]).sum())
        findings.fail("ranks", where, "rows are not in the order of query keys", back)
        begins = np.concatenate([[True], query_m[1:] != query_m[:-1]])
        begin = np.flatnonzero(begins)
        place = np.arange(query_m.size) - np.repeat(begin, np.diff([*begin, query_m.size]))
        if data.redacted:
            bad = (rows.rank_m < first + place) | ~(begins | _rises(rows.rank_m))
        else:
            bad = rows.rank_m != first + place
        if what == "part":
            bad |= rows.rank_m > plan.options.k
        _fail_first(findings, "ranks", where, bad, rows.rank_m, "a rank out of place:")
    if not data.redacted:
        hits, first_m = together(data)
        place = np.arange(first_m.size) - starts_of(hits.query_m, data.key_q.size)[hits.query_m]
        bad = first_m != place + 1
        where = data.unit.file("part")
        _fail_first(findings, "ranks", where, bad, first_m, "ranks before the exposure pass, at")


def _rises(values: Int32) -> Bool:
    return np.concatenate([[True], values[1:] > values[:-1]])


def _fail_first(
    findings: Findings, name: str, where: str, bad: Bool, values: Any, what: str
) -> None:
    """Report the bad rows; the first is told by its number and value."""
    if bad.any():
        row = int(np.argmax(bad))
        findings.fail(name, where, f"row {row}: {what} {values[row]}", int(bad.sum()))


def together(data: UnitArrays) -> tuple[Hits, Int32]:
    """Part and slack as one list by (query, first rank), and these ranks."""
    hits = Hits.joined(data.part.hits, data.slack.hits)
    first = np.concatenate([data.part.first_m, data.slack.first_m])
    order = np.lexsort((first, hits.query_m))
    return hits.take(order), first[order]


def check_order(findings: Findings, data: UnitArrays) -> None:
    """Rows descend by the 96-bit key, in the order they had before the exposure pass."""
    hits, first = together(data)
    findings.looked("order", hits.query_m.size)
    if hits.query_m.size < 2:
        return
    mix, low = order_words(data.key_q, hits)
    points = hits.points_m
    tied = points[1:] == points[:-1]
    mixed = mix[1:] == mix[:-1]
    after = (mix[1:] > mix[:-1]) | (mixed & (low[1:] > low[:-1]))
    good = (points[1:] < points[:-1]) | (tied & after)
    bad = np.concatenate([[False], (hits.query_m[1:] == hits.query_m[:-1]) & ~good])
    if bad.any():
        at = int(np.argmax(bad))
        findings.fail(
            "order",
            data.unit.file("part"),
            f"query key {int(data.key_q[hits.query_m[at]]):016x}: rank {int(first[at])} beats "
            f"the one before it ({int(points[at])} points after {int(points[at - 1])})",
            int(bad.sum()),
        )


def check_duplicates(findings: Findings, data: UnitArrays) -> None:
    """Nobody twice in one answer, slack included."""
    hits = Hits.joined(data.part.hits, data.slack.hits)
    findings.looked("duplicates", hits.query_m.size)
    order = np.lexsort((hits.key_m, hits.query_m))
    query_m, key_m = hits.query_m[order], hits.key_m[order]
    twice = (query_m[1:] == query_m[:-1]) & (key_m[1:] == key_m[:-1])
    if twice.any():
        at = int(np.argmax(twice))
        findings.fail(
            "duplicates",
            data.unit.file("part"),
            f"query key {int(data.key_q[query_m[at]]):016x} has the key {int(key_m[at]):016x} "
            "twice",
            int(twice.sum()),
        )


def check_scores(findings: Findings, frames: UnitFrames, data: UnitArrays, plan: Plan) -> None:
    """score = points * t, to the bit; contributions add up to the points."""
    for what, rows in (("part", data.part), ("slack", data.slack)):
        expected = rows.hits.points_m.astype(np.float64) * data.t_q[rows.hits.query_m]
        findings.looked("scores", expected.size)
        bad = rows.score_m.view(np.uint64) != expected.view(np.uint64)
        _fail_first(
            findings, "scores", frames.unit.file(what), bad, rows.score_m, "is not points * t:"
        )
    if not plan.options.contributions or not plan.facets:
        return
    parts = frames.part.select([f"points_{name}" for name in plan.facets])
    total = parts.select(pl.sum_horizontal(pl.all().cast(pl.Int64))).to_series()
    bad = (total != frames.part["points"]).to_numpy()
    _fail_first(
        findings, "scores", frames.unit.file("part"), bad, total.to_numpy(), "facets add up to"
    )


def check_returned(findings: Findings, plan: Plan, data: UnitArrays) -> None:
    """As many rows as said; K at most; no rows where there was an error."""
    where, k = data.unit.file("queries"), plan.options.k
    rows_q = np.bincount(data.part.hits.query_m, minlength=data.key_q.size)
    findings.looked("returned", data.key_q.size)
    if data.redacted:
        bad = rows_q > data.returned_q
    else:
        bad = rows_q != data.returned_q
    _fail_first(findings, "returned", where, bad, data.returned_q, "the part has not as many as")
    bad = (data.returned_q > k) | (data.returned_q < 0)
    _fail_first(findings, "returned", where, bad, data.returned_q, f"with K = {k}, returned is")
    bad = data.error_q & (data.returned_q != 0)
    _fail_first(findings, "returned", where, bad, data.returned_q, "an error, and returned is")


def check_shortfall(findings: Findings, frames: UnitFrames, plan: Plan) -> None:
    """A shortfall where, and only where, fewer than K are returned and there was no error."""
    where, queries = frames.unit.file("queries"), frames.queries
    unknown = queries["shortfall"].drop_nulls().is_in([str(one) for one in Shortfall]).not_()
    findings.fail("returned", where, "an unknown shortfall", int(unknown.sum()))
    short = (queries["returned"] < plan.options.k) & queries["error"].is_null()
    if frames.redacted:
        return
    wrong = (short != queries["shortfall"].is_not_null()).to_numpy()
    _fail_first(
        findings,
        "returned",
        where,
        wrong,
        queries["shortfall"].to_list(),
        f"{plan.options.k} wanted, and the shortfall is",
    )


def check_horizon(findings: Findings, plan: Plan, data: UnitArrays) -> None:
    """Stored rows reach the horizon; without one, fewer are stored than could be."""
    where = data.unit.file("queries")
    hits = Hits.joined(data.part.hits, data.slack.hits)
    findings.looked("horizon", data.key_q.size)
    mix, low = order_words(data.key_q, hits)
    beyond = ~reaches(hits.points_m, mix, low, data.horizons, hits.query_m)
    _fail_first(findings, "horizon", where, beyond, hits.points_m, "a stored row lies beyond it:")
    stored_q = np.bincount(hits.query_m, minlength=data.key_q.size)
    most = plan.options.k + plan.options.slack
    bad = (stored_q >= most) & ~data.horizons.set_q
    _fail_first(findings, "horizon", where, bad, stored_q, "no horizon, and rows stored:")
    short = np.bincount(data.part.hits.query_m, minlength=data.key_q.size) < plan.options.k
    bad = short & data.horizons.set_q & (not data.redacted)
    _fail_first(findings, "horizon", where, bad, stored_q, "a horizon, and rows stored:")


def check_keys(findings: Findings, frames: UnitFrames, salt: bytes) -> None:
    """Keys are the hashes of ids, of queries and of rows."""
    for what, frame, id_, key in (
        ("queries", frames.queries, "query_id", "query_key"),
        ("part", frames.part, "id", "key"),
        ("part", frames.part, "query_id", "query_key"),
        ("slack", frames.slack, "id", "key"),
    ):
        if frame is None:
            continue
        distinct = frame.select(id_, key).unique(maintain_order=True)
        right = hash_keys(distinct[id_].to_list(), salt)
        bad = distinct[key].to_numpy() != right
        findings.looked("keys", distinct.height)
        _fail_first(findings, "keys", frames.unit.file(what), bad, distinct[id_], "another key:")


def facts(data: UnitArrays, plan: Plan) -> dict[str, int]:
    """What run.json counts, of one unit."""
    returned, fine = data.returned_q, ~data.error_q
    full = returned == plan.options.k
    return {
        "queries": int(returned.size),
        "full": int((full & fine).sum()),
        "few": int((~full & (returned > 0) & fine).sum()),
        "none": int(((returned == 0) & fine).sum()),
        "errors": int(data.error_q.sum()),
        "rows": int(data.part.hits.query_m.size),
    }
