"""Checks of a run's second phase: the order over everything, features and scores of a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from matchwright.engine.errors import MatchwrightError
from matchwright.engine.matcher import OTHER
from matchwright.engine.prepare import Prepared
from matchwright.engine.rerank.features import INDEX
from matchwright.engine.rerank.features_pairs import FeatureMaker
from matchwright.engine.rerank.rerank_block import TreesLike
from matchwright.engine.rerank.rerank_order import SCORE_LIMIT
from matchwright.engine.results import Degraded
from matchwright.engine.runs.block import rows_with_keys
from matchwright.engine.runs.checks import Rows, UnitArrays, UnitFrames
from matchwright.engine.runs.findings import Findings
from matchwright.engine.runs.merge import starts_of
from matchwright.engine.runs.plan import Plan
from matchwright.engine.runs.referee import Referee
from matchwright.engine.runs.second import NO_SCORE
from matchwright.kernels.types import Bool, Int64


def check_model(findings: Findings, plan: Plan, frames: UnitFrames, data: UnitArrays) -> None:
    """Every candidate has a score, nobody else has one, and ranks follow from the scores."""
    rows, where = _all(data), data.unit.file("part")
    query_m = rows.hits.query_m
    findings.looked("model", query_m.size)
    candidate = rows.first_m <= plan.options.candidates
    scored = rows.model_m != NO_SCORE
    wanted = candidate & ~data.degraded_q[query_m]
    _fail(findings, data, where, rows, scored != wanted, "has a score that it should not, or none")
    far = scored & (np.abs(rows.model_m.astype(np.int64)) >= SCORE_LIMIT)
    _fail(findings, data, where, rows, far, f"its score is not below {SCORE_LIMIT:,}")
    _check_ranks(findings, data, rows, candidate & scored)
    _check_degraded(findings, plan, frames, data)


def _all(data: UnitArrays) -> Rows:
    """Part and slack as one list."""
    part, slack = data.part, data.slack
    return Rows(
        hits=part.hits.joined(part.hits, slack.hits),
        rank_m=np.concatenate([part.rank_m, slack.rank_m]),
        score_m=np.concatenate([part.score_m, slack.score_m]),
        moved_m=np.concatenate([part.moved_m, slack.moved_m]),
        first_m=np.concatenate([part.first_m, slack.first_m]),
        model_m=np.concatenate([part.model_m, slack.model_m]),
    )


def _check_ranks(findings: Findings, data: UnitArrays, rows: Rows, scored: Bool) -> None:
    """Rows that no other pass moved stand where the second phase puts them."""
    query_m, where = rows.hits.query_m, data.unit.file("part")
    score = np.where(scored, -rows.model_m.astype(np.int64), 0)
    order = np.lexsort((rows.first_m, score, ~scored, query_m))
    place = np.empty(order.size, dtype=np.int64)
    place[order] = np.arange(order.size)
    place -= starts_of(query_m[order], data.key_q.size)[query_m]
    if not data.redacted:
        bad = (rows.rank_m != place + 1) & ~rows.moved_m
        _fail(findings, data, where, rows, bad, "is not where its model score puts it")
        return
    # Where somebody was erased ranks have gaps: they ascend along the order.
    stays = order[~rows.moved_m[order]]
    same = query_m[stays][1:] == query_m[stays][:-1]
    back = same & (rows.rank_m[stays][1:] <= rows.rank_m[stays][:-1])
    bad = np.zeros(order.size, dtype=np.bool_)
    bad[stays[1:][back]] = True
    _fail(findings, data, where, rows, bad, "is not where its model score puts it")


def _fail(
    findings: Findings, data: UnitArrays, where: str, rows: Rows, bad: Bool, what: str
) -> None:
    """Report the bad rows; the first is told by query and key."""
    if bad.any():
        row = int(np.argmax(bad))
        query = int(data.key_q[rows.hits.query_m[row]])
        pair = f"query key {query:016x} and key {int(rows.hits.key_m[row]):016x}"
        findings.fail("model", where, f"{pair}: {what}", int(bad.sum()))


def _check_degraded(findings: Findings, plan: Plan, frames: UnitFrames, data: UnitArrays) -> None:
    where = data.unit.file("queries")
    known = {str(why) for why in Degraded}
    reasons = frames.queries["degraded"].drop_nulls()
    unknown = int((~reasons.is_in(sorted(known))).sum())
    findings.fail("model", where, "an unknown reason of a degraded query", unknown)
    if not plan.options.allow_degraded:
        told = "degraded, and the run was not told to allow that"
        findings.fail("model", where, told, reasons.len())
    empty = np.bincount(data.part.hits.query_m, minlength=data.key_q.size) == 0
    if not data.redacted:
        idle = int((data.degraded_q & empty).sum())
        findings.fail("model", where, "degraded, and it has no candidates", idle)


def check_model_sampled(
    findings: Findings,
    referee: Referee,
    trees: TreesLike,
    data: UnitArrays,
    asked: Sequence[Prepared | MatchwrightError],
    sample: Sequence[int],
) -> None:
    """Features of sampled queries made anew, one query at a time and from nothing that is kept, and
    what the trees make of them; that these are the first phase's candidates, ``sample`` checks."""
    rows, where = _all(data), data.unit.file("part")
    columns = np.array([INDEX[name] for name in trees.features], dtype=np.int64)
    corpus = referee.corpus(data)
    for position in (place for place in sample if place < len(asked)):
        query = asked[position]
        if isinstance(query, MatchwrightError) or data.degraded_q[position]:
            continue
        here = np.flatnonzero((rows.hits.query_m == position) & (rows.model_m != NO_SCORE))
        findings.looked("model_sample")
        try:
            found: Int64 = rows_with_keys(corpus, rows.hits.key_m[here])
        except KeyError:
            name = OTHER[data.unit.kind]
            findings.fail("model_sample", where, f"{query.query_id!r}: no such {name}")
            continue
        features = FeatureMaker().make(referee.snapshot, [query], [found])[:, columns]
        wrong = int(np.count_nonzero(trees.score(features) != rows.model_m[here]))
        told = f"{query.query_id!r}: scores that the trees do not give its features"
        findings.fail("model_sample", where, told, wrong)
