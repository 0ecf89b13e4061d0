"""``run diff A B``: what changed for each query from one run to another, and why.

A row that *entered* a top K did so because the person is new or was edited, because the question is
another one (the query was edited, or policy, generation or day changed), because the exposure pass
moved it, or because somebody above it left. A row *left* because the person is gone, was edited, or
was displaced by others. People are compared by the fingerprints that runs with slack keep; without
them an epoch that is the same says that nobody changed, and otherwise nobody can tell.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.errors import InvalidArgument
from matchwright.engine.matcher import OTHER
from matchwright.engine.records import KINDS, Kind
from matchwright.engine.runs.base import corpus_file
from matchwright.engine.runs.fingerprint import Prints, from_parquet
from matchwright.engine.runs.pairing import Side, Window, windows
from matchwright.kernels.types import Bool, UInt64

SETTINGS = ("store", "generation", "policy", "ranker", "as_of", "k", "epoch")
"""What two runs may differ in as a whole, in the order in which it is told."""


class Status(enum.StrEnum):
    """What became of a query."""

    SAME = "SAME"
    """The same people in the same order with the same points."""
    CHANGED = "CHANGED"
    NEW = "NEW"
    """Only the second run has it."""
    GONE = "GONE"
    """Only the first run has it."""


class Why(enum.StrEnum):
    """Why a row entered, left or moved."""

    NEW_PERSON = "NEW_PERSON"
    GONE_PERSON = "GONE_PERSON"
    CHANGED_PERSON = "CHANGED_PERSON"
    CHANGED_QUERY = "CHANGED_QUERY"
    CHANGED_POLICY = "CHANGED_POLICY"
    CHANGED_GENERATION = "CHANGED_GENERATION"
    CHANGED_DAY = "CHANGED_DAY"
    CHANGED_K = "CHANGED_K"
    CHANGED_MODEL = "CHANGED_MODEL"
    """Another ranker ordered the candidates, or only one of the runs has one."""
    EXPOSURE = "EXPOSURE"
    SECOND_PHASE = "SECOND_PHASE"
    """Nothing about the pair changed, and the first phase had it at the same place, or would not
    have shown it: the model moved it."""
    OTHERS = "OTHERS"
    """Nothing about the pair changed: others came or went around it."""
    UNKNOWN = "UNKNOWN"
    """The runs keep no fingerprints of people, and their epochs differ."""


@dataclass(frozen=True, slots=True)
class QueryDiff:
    """One query in both runs.

    Attributes:
        kind, query_id: who asked.
        status: what became of it.
        before, after: how many were returned; None where the run does not have the query.
        entered, left, moved: ids; moved ones are in both, at another rank or with other points.
        why: reason -> rows that it explains, of those that entered, left or moved.
        same_question: whether both runs asked the same; None where one lacks the query.
    """

    kind: Kind
    query_id: str
    status: Status
    before: int | None
    after: int | None
    entered: Sequence[str] = ()
    left: Sequence[str] = ()
    moved: Sequence[str] = ()
    why: Mapping[str, int] = field(default_factory=dict)
    same_question: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, one level deep but for lists."""
        return {
            "kind": self.kind,
            "query_id": self.query_id,
            "status": str(self.status),
            "before": self.before,
            "after": self.after,
            "entered": list(self.entered),
            "left": list(self.left),
            "moved": list(self.moved),
            "why": dict(self.why),
            "same_question": self.same_question,
        }


@dataclass(slots=True)
class Summary:
    """Two runs as wholes.

    Attributes:
        first, second: run ids.
        settings: name -> (in the first, in the second), of what differs.
        people: kind -> new, edited and gone people; None where nobody can tell.
        kinds: kind -> counts of queries by status, of rows by what happened, and by reason.
    """

    first: str
    second: str
    settings: dict[str, tuple[Any, Any]]
    people: dict[str, dict[str, int] | None]
    kinds: dict[str, dict[str, Counter[str]]]

    def to_dict(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "second": self.second,
            "same": self.same,
            "settings": {name: list(pair) for name, pair in self.settings.items()},
            "people": self.people,
            "kinds": {
                kind: {name: dict(count) for name, count in counts.items()}
                for kind, counts in self.kinds.items()
            },
        }

    @property
    def same(self) -> bool:
        """Whether every query has the same answer."""
        return all(set(counts["queries"]) <= {Status.SAME} for counts in self.kinds.values())


class Diff:
    """Compares two complete runs of one store.

    Args:
        first, second: the runs; "new" is what only the second has.

    Raises:
        InvalidArgument: the runs are of two stores, whose keys do not compare.
    """

    def __init__(self, first: Side, second: Side) -> None:
        if first.plan.determinants["store"] != second.plan.determinants["store"]:
            raise InvalidArgument(
                f"run {first.run_id} is of store {first.plan.determinants['store']} and run "
                f"{second.run_id} of {second.plan.determinants['store']}; only runs of one store "
                "compare"
            )
        self.first, self.second = first, second
        mine, theirs = first.plan.determinants, second.plan.determinants
        self.settings = {
            n: (_told(mine.get(n)), _told(theirs.get(n)))
            for n in SETTINGS
            if mine.get(n) != theirs.get(n)
        }
        asked = {*first.plan.options.kinds, *second.plan.options.kinds}
        self.kinds = [kind for kind in KINDS if kind in asked]
        self.summary = Summary(
            first.run_id,
            second.run_id,
            self.settings,
            {},
            {kind: {name: Counter() for name in ("queries", "rows", "why")} for kind in self.kinds},
        )

    def queries(self, *, unchanged: bool = False) -> Iterator[QueryDiff]:
        """Every query that changed, in the order of kinds and keys; ``summary`` fills meanwhile.

        Args:
            unchanged: also those that stayed the same.
        """
        for kind in self.kinds:
            people = _People(self.first, self.second, OTHER[kind])
            self.summary.people[OTHER[kind]] = people.counts()
            for window in windows(self.first, self.second, kind):
                for one in self._window(kind, window, people):
                    self._count(one)
                    if unchanged or one.status != Status.SAME:
                        yield one

    def _count(self, one: QueryDiff) -> None:
        counts = self.summary.kinds[one.kind]
        counts["queries"][one.status] += 1
        counts["why"].update(one.why)
        for name in ("entered", "left", "moved"):
            counts["rows"][name] += len(getattr(one, name))

    def _window(self, kind: Kind, window: Window, people: _People) -> Iterator[QueryDiff]:
        rows = _both_rows(window, people, self.second.plan.options.k)
        asked = _both_queries(window)
        by_query = {
            int(key[0]): frame
            for key, frame in rows.partition_by("query_key", as_dict=True).items()
        }
        for query in asked.iter_rows(named=True):
            mine = by_query.get(query["query_key"])
            yield self._query(kind, query, mine)

    def _query(self, kind: Kind, query: dict[str, Any], rows: pl.DataFrame | None) -> QueryDiff:
        name, before, after = query["query_id"], query["before"], query["after"]
        if before is None or after is None:
            status = Status.NEW if before is None else Status.GONE
            return QueryDiff(kind, name, status, before, after)
        same_question = query["print_a"] == query["print_b"]
        why: Counter[str] = Counter()
        found: dict[str, list[str]] = {"entered": [], "left": [], "moved": []}
        asked = self._question(same_question)
        for row in () if rows is None else rows.iter_rows(named=True):
            what = _what(row)
            found[what].append(row["id"])
            why.update(reasons(row, what, asked))
        changed = any(found.values()) or before != after
        status = Status.CHANGED if changed else Status.SAME
        return QueryDiff(
            kind,
            name,
            status,
            before,
            after,
            entered=found["entered"],
            left=found["left"],
            moved=found["moved"],
            why=dict(why),
            same_question=same_question,
        )

    def _question(self, same: bool) -> list[Why]:
        """Why the question is another one; empty when it is the same."""
        found = []
        for name, why in (
            ("generation", Why.CHANGED_GENERATION),
            ("policy", Why.CHANGED_POLICY),
            ("ranker", Why.CHANGED_MODEL),
        ):
            if name in self.settings:
                found.append(why)
        if not same and not found:
            found.append(Why.CHANGED_DAY if "as_of" in self.settings else Why.CHANGED_QUERY)
        if "k" in self.settings:
            found.append(Why.CHANGED_K)
        return found


def _told(value: Any) -> Any:
    """A setting on one line: of a model its name, version and content."""
    if not isinstance(value, Mapping):
        return value
    return f"{value['model']}:{value['version']} {value['content_hash']}"


def _what(row: Mapping[str, Any]) -> str:
    if row["rank_a"] is None:
        return "entered"
    return "left" if row["rank_b"] is None else "moved"


def reasons(row: Mapping[str, Any], what: str, question: Sequence[Why]) -> list[str]:
    """Why a row entered, left or moved: one reason, or several for another question.

    Args:
        row: with ``person``: NEW, GONE, CHANGED, SAME or UNKNOWN, ``exposure`` and ``second``.
        what: "entered", "left" or "moved".
        question: why the question is another one.
    """
    person = row["person"]
    if person == "NEW":
        return [Why.NEW_PERSON]
    if person == "GONE":
        return [Why.GONE_PERSON]
    if person == "CHANGED":
        return [Why.CHANGED_PERSON, *question]
    if question:
        return list(question)
    if row["exposure"]:
        return [Why.EXPOSURE]
    if row["second"]:
        return [Why.SECOND_PHASE]
    return [Why.UNKNOWN if person == "UNKNOWN" else Why.OTHERS]


def _both_queries(window: Window) -> pl.DataFrame:
    """query_id, query_key, before, after, print_a, print_b, by ascending key."""
    first = window.first.queries.select(
        "query_key",
        "query_id",
        pl.col("returned").alias("before"),
        pl.col("print").alias("print_a"),
    )
    second = window.second.queries.select(
        "query_key",
        pl.col("query_id").alias("id_b"),
        pl.col("returned").alias("after"),
        pl.col("print").alias("print_b"),
    )
    both = first.join(second, on="query_key", how="full", coalesce=True)
    return both.with_columns(pl.coalesce("query_id", "id_b").alias("query_id")).sort("query_key")


def _second(k: int) -> pl.Expr:
    """Whether the model is the reason, where both runs have one and the pair is what it was."""
    scored = pl.coalesce("model_score_a", "model_score_b").is_not_null()
    first = pl.coalesce("first_rank_a", "first_rank_b")
    both = pl.col("rank_a").is_not_null() & pl.col("rank_b").is_not_null()
    stayed = (pl.col("first_rank_a") == pl.col("first_rank_b")).fill_null(False)
    return scored & pl.when(both).then(stayed).otherwise(first > k)


def _both_rows(window: Window, people: _People, k: int) -> pl.DataFrame:
    """Rows that are not the same in both runs, of queries that are in both, best first."""
    both = window.first.queries.select("query_key").join(
        window.second.queries.select("query_key"), on="query_key"
    )
    sides = []
    for half, tail in ((window.first, "a"), (window.second, "b")):
        columns = ("rank", "points", "id", "moved", "first_rank", "model_score")
        renamed = {name: f"{name}_{tail}" for name in columns}
        names = ("query_key", "key", *renamed)
        rows = half.rows.select(names).rename(renamed)
        sides.append(rows.join(both, on="query_key", how="semi"))
    rows = sides[0].join(sides[1], on=("query_key", "key"), how="full", coalesce=True)
    same = (pl.col("rank_a") == pl.col("rank_b")) & (pl.col("points_a") == pl.col("points_b"))
    rows = rows.filter(~same.fill_null(False))
    return rows.with_columns(
        pl.coalesce("id_b", "id_a").alias("id"),
        (pl.col("moved_a").is_not_null() | pl.col("moved_b").is_not_null()).alias("exposure"),
        _second(k).alias("second"),
        people.states(rows["key"].to_numpy()).alias("person"),
    ).sort("query_key", pl.coalesce("rank_b", "rank_a"), "key")


class _People:
    """Who is new, edited and gone, as far as the runs can tell."""

    def __init__(self, first: Side, second: Side, kind: Kind) -> None:
        self._same_epoch = first.plan.epoch == second.plan.epoch
        self._before, self._after = _prints(first, kind), _prints(second, kind)
        self._comparable = (
            self._before is not None
            and self._after is not None
            and first.plan.generation == second.plan.generation
            and self._before.layout == self._after.layout
        )

    def states(self, key_m: UInt64) -> pl.Series:
        """NEW, GONE, CHANGED, SAME or UNKNOWN for each key."""
        if self._same_epoch:
            return pl.Series(["SAME"]).gather(np.zeros(key_m.size, dtype=np.int64))
        if self._before is None or self._after is None:
            return pl.Series(["UNKNOWN"]).gather(np.zeros(key_m.size, dtype=np.int64))
        at, here = self._before.find(key_m), self._after.find(key_m)
        code = np.full(key_m.size, 3 if self._comparable else 4)
        if self._comparable:
            code[self._edited(at, here)] = 2
        code[(at < 0) & (here >= 0)] = 0
        code[(at >= 0) & (here < 0)] = 1
        return pl.Series(["NEW", "GONE", "CHANGED", "SAME", "UNKNOWN"]).gather(code)

    def _edited(self, at: Any, here: Any) -> Bool:
        assert self._before is not None
        assert self._after is not None
        both = (at >= 0) & (here >= 0)
        edited = np.zeros(at.size, dtype=np.bool_)
        mine, theirs = self._before.print_n2[at[both]], self._after.print_n2[here[both]]
        edited[both] = (mine != theirs).any(axis=1)
        return edited

    def counts(self) -> dict[str, int] | None:
        """How many are new, edited and gone; None when nobody can tell."""
        if self._same_epoch:
            return {"new": 0, "edited": 0, "gone": 0}
        if self._before is None or self._after is None:
            return None
        at = self._before.find(self._after.key_n)
        gone = int((self._after.find(self._before.key_n) < 0).sum())
        counts = {"new": int((at < 0).sum()), "gone": gone}
        if self._comparable:
            everyone = np.arange(len(self._after), dtype=np.int64)
            counts["edited"] = int(self._edited(at, everyone).sum())
        return counts


def _prints(one: Side, kind: Kind) -> Prints | None:
    name = corpus_file(kind)
    if not one.folder.exists(name):
        return None
    return from_parquet(one.folder.read(name), one.folder.url_of(name))
