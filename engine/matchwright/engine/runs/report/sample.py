"""Drawn queries with their matches and the reasons for them, in words. For operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.explain import fit_of
from matchwright.engine.matcher import OTHER
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.runs.report.causes import Blocked
from matchwright.engine.runs.report.outcomes import Sampled
from matchwright.engine.skill_match import match_skills

MATCHES_SHOWN = 5
TITLE_MAX, SKILLS_NAMED = 120, 8
BLOCKED_SHOWN = 4
_CONTROLS = dict.fromkeys(
    (*range(32), *range(127, 160), *range(8234, 8239), 8232, 8233)
) | dict.fromkeys(range(8294, 8298))


@dataclass(frozen=True)
class Share:
    """What one facet gave to a match, and in a word how good that is."""

    facet: str
    score: float
    fit: str


@dataclass(frozen=True)
class Shown:
    """A match as it is shown.

    Attributes:
        id: None where the person was erased.
        title: None where not known.
        shares: facet by facet; empty when neither the run nor the store can tell.
        skills_asked, skills_held: how many the job asks for, and of these how many are there; -1
            when a side does not tell its skills.
        skills_matched, skills_missing: the first of both, by name.
        money: rate and budget in words; empty when neither is stated.
        moved: of the exposure pass, else None.
        first_rank: in the first phase, where it is another one, or a model ordered the matches.
        model_score: in units of the model's grid, else None.
    """

    rank: int
    id: str | None
    title: str | None
    points: int
    score: float
    shares: tuple[Share, ...] = ()
    skills_asked: int = -1
    skills_held: int = -1
    skills_matched: tuple[str, ...] = ()
    skills_missing: tuple[str, ...] = ()
    money: str = ""
    moved: str | None = None
    first_rank: int | None = None
    model_score: int | None = None


@dataclass(frozen=True)
class Query:
    """A drawn query as it is shown.

    Attributes:
        outcome: "full", "few" or "none".
        eligible: -1 when not counted.
        attainable: score of the best conceivable match.
        blocked: what keeps it from more matches, most in the way first; of short queries.
    """

    kind: Kind
    id: str
    title: str | None
    outcome: str
    returned: int
    eligible: int
    unverified: int
    shortfall: str | None
    attainable: float
    matches: tuple[Shown, ...]
    blocked: tuple[Blocked, ...] = ()


def clean(text: str | None, limit: int = TITLE_MAX) -> str | None:
    """A text on one line without control and bidirectional characters, cut at ``limit``."""
    if text is None:
        return None
    plain = " ".join(text.replace("\n", " ").translate(_CONTROLS).split())
    return plain if len(plain) <= limit else plain[: limit - 1].rstrip() + "…"


def plain_queries(kind: Kind, sampled: Sampled, k: int) -> list[Query]:
    """The queries as the run's files alone tell them."""
    return [
        Query(
            kind=kind,
            id=name,
            title=None,
            outcome="full" if row["returned"] >= k else "few" if row["returned"] else "none",
            returned=row["returned"],
            eligible=row["eligible"],
            unverified=row["unverified"],
            shortfall=row["shortfall"],
            attainable=row["attainable"],
            matches=tuple(_plain_match(match) for match in rows_of(sampled, name)),
        )
        for name, row in sampled.queries.items()
    ]


def rows_of(sampled: Sampled, name: str) -> list[dict[str, Any]]:
    """The rows of a drawn query that are shown, best first."""
    if not sampled.queries[name]["returned"]:
        return []
    chosen = (pl.col("query_id") == name) & (pl.col("rank") <= MATCHES_SHOWN)
    return sampled.rows.filter(chosen).sort("rank").to_dicts()


def _plain_match(row: Mapping[str, Any]) -> Shown:
    return Shown(
        rank=row["rank"],
        id=row["id"] or None,
        title=None,
        points=row["points"],
        score=row["score"],
        moved=row.get("moved"),
        first_rank=row.get("first_rank"),
        model_score=row.get("model_score"),
    )


class Teller:
    """Adds what the store knows: titles, skills, money, and what each facet gave.

    Args:
        snapshot: the run's epoch, or one that is close.
        policy: the run's.
        as_of: the run's day.
    """

    def __init__(self, snapshot: SnapshotLike, policy: Policy, as_of: int) -> None:
        self._snapshot, self._policy, self._as_of = snapshot, policy, as_of

    def told(
        self,
        kind: Kind,
        queries: Sequence[Query],
        rows: pl.DataFrame,
        blocked: Mapping[str, Sequence[Blocked]],
    ) -> list[Query]:
        """The queries of one direction, with all that is known about them.

        Args:
            rows: of these queries, with the points of facets where they are known.
            blocked: by the query's id.
        """
        asking = self._records(kind, [query.id for query in queries])
        names = [match.id for query in queries for match in query.matches if match.id]
        others = self._records(OTHER[kind], list(dict.fromkeys(names)))
        parts = _first_rows(rows)
        pairs = _Pairs(self._snapshot, self._policy, self._as_of, kind, asking, others)
        return [
            replace(
                query,
                title=pairs.title(kind, query.id),
                matches=tuple(
                    pairs.match(query.id, match, parts.get((query.id, match.rank), {}))
                    for match in query.matches
                ),
                blocked=tuple(blocked.get(query.id, ())[:BLOCKED_SHOWN])
                if query.outcome != "full"
                else (),
            )
            for query in queries
        ]

    def _records(self, kind: Kind, ids: list[str]) -> list[dict[str, Any]]:
        """The records of those ids that are still stored."""
        rows = self._snapshot.rows_of(kind, ids).tolist() if ids else []
        there = [name for name, row in zip(ids, rows, strict=True) if row >= 0]
        return self._snapshot.rows(kind, there)


def _first_rows(rows: pl.DataFrame) -> dict[tuple[str, int], dict[str, Any]]:
    """(query id, rank) -> row, of the rows that are shown."""
    if not rows.height:
        return {}
    first = rows.filter(pl.col("rank") <= MATCHES_SHOWN)
    return {(row["query_id"], row["rank"]): row for row in first.iter_rows(named=True)}


class _Pairs:
    """Records of both sides of the drawn pairs, and the most that each facet could give."""

    def __init__(
        self,
        snapshot: SnapshotLike,
        policy: Policy,
        as_of: int,
        kind: Kind,
        asking: list[dict[str, Any]],
        others: list[dict[str, Any]],
    ) -> None:
        self._generation, self._kind = snapshot.generation, kind
        self._records = {kind: _by_id(asking), OTHER[kind]: _by_id(others)}
        self._facets = [facet.name for facet in snapshot.generation.facets]
        ids = [record["id"] for record in asking]
        vectors = self._generation.query(kind, asking, policy.facets, as_of)
        weights = np.array([policy.weights.get(name, 0.0) for name in self._facets])
        self._best = dict(zip(ids, (vectors.best_qb * weights).tolist(), strict=True))
        self._asked = dict(zip(ids, vectors.known_qb.tolist(), strict=True))
        known = self._generation.encode(OTHER[kind], others).known_nb.tolist()
        self._known = {record["id"]: row for record, row in zip(others, known, strict=True)}

    def title(self, kind: Kind, name: str) -> str | None:
        """The title of a record, fit to be shown."""
        return clean(self._records[kind].get(name, {}).get("title"))

    def match(self, query: str, match: Shown, row: Mapping[str, Any]) -> Shown:
        """A match with what is known about it."""
        if match.id is None or match.id not in self._known or query not in self._asked:
            return match
        both = {
            self._kind: self._records[self._kind][query],
            OTHER[self._kind]: self._records[OTHER[self._kind]][match.id],
        }
        found = match_skills(both["job"], both["freelancer"], self._generation)
        return replace(
            match,
            title=self.title(OTHER[self._kind], match.id),
            shares=self._shares(query, match, row),
            skills_asked=len(found.matched) + len(found.missing) if found.known else -1,
            skills_held=len(found.matched) if found.known else -1,
            skills_matched=tuple(skill.name for skill in found.matched[:SKILLS_NAMED]),
            skills_missing=tuple(skill.name for skill in found.missing[:SKILLS_NAMED]),
            money=money(both["job"], both["freelancer"]),
        )

    def _shares(self, query: str, match: Shown, row: Mapping[str, Any]) -> tuple[Share, ...]:
        parts = [row[f"points_{name}"] for name in self._facets if f"points_{name}" in row]
        if len(parts) < len(self._facets) or not match.points:
            return ()
        step = match.score / match.points
        told = zip(
            self._facets,
            parts,
            self._best[query],
            self._asked[query],
            self._known[str(match.id)],
            strict=True,
        )
        return tuple(
            Share(name, part * step, fit_of(part * step, best, asked and best > 0, known))
            for name, part, best, asked, known in told
        )


def _by_id(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {record["id"]: record for record in records}


def money(job: Mapping[str, Any], person: Mapping[str, Any]) -> str:
    """What is asked and what is offered, in words and whole units with two decimals."""
    said = []
    if person["rate_cents"] is not None:
        said.append(f"asks {_units(person['rate_cents'])} an hour")
    low, high = job["rate_min_cents"], job["rate_max_cents"]
    if low is not None and high is not None and low != high:
        said.append(f"budget {_units(low)} to {_units(high)} an hour")
    elif high is not None or low is not None:
        said.append(f"budget {_units(low if high is None else high)} an hour")
    if job["fixed_cents"] is not None:
        said.append(f"fixed price {_units(job['fixed_cents'])}")
    return ", ".join(said)


def _units(cents: int) -> str:
    return f"{cents / 100:,.2f}"
