"""``run verify``: everything that can be checked of a run, in one pass over its units.

Files, keys, order, scores and counts are checked from the run alone. With the epoch that the run
was made from at hand, every pair's points and rules are checked against the stored rows, and a
sample of queries is recomputed by brute force (``referee``). Where a model ordered the candidates,
its order is checked over everything, and with its trees at hand features and scores of the sample.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.errors import FailedPrecondition, NotFound, StoreDamaged, StoreError
from matchwright.engine.matcher import OTHER
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.rerank.rerank_block import TreesLike
from matchwright.engine.runs import checks, checks_second
from matchwright.engine.runs.base import corpus_file
from matchwright.engine.runs.digest import unit_bytes
from matchwright.engine.runs.findings import Findings
from matchwright.engine.runs.fingerprint import from_parquet, prints_of
from matchwright.engine.runs.folder import PLAN, SUMMARY, RunFolder, sha256
from matchwright.engine.runs.plan import Plan, Unit, asking, unit_key
from matchwright.engine.runs.referee import Referee

SAMPLE = 100
SOUND, REDACTED, FAILED = "SOUND", "REDACTED", "FAILED"
NEEDS_STORE = ("keys", "corpus", "questions", "points", "rules", "sample")

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification says.

    Attributes:
        run_id: of the run.
        verdict: SOUND; REDACTED: sound but for people who were erased; FAILED.
        digest: the digest that was recomputed, "" when it could not be.
        queries, rows, sampled: how much was looked at.
        seed: of the sample.
        checks: one for each of ``findings.CHECKS``, in their order.
    """

    run_id: str
    verdict: str
    digest: str
    queries: int
    rows: int
    sampled: int
    seed: int
    checks: Sequence[Mapping[str, Any]]

    @property
    def sound(self) -> bool:
        return self.verdict != FAILED

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "run": self.run_id,
            "verdict": self.verdict,
            "digest": self.digest,
            "queries": self.queries,
            "rows": self.rows,
            "sampled": self.sampled,
            "seed": self.seed,
            "checks": [dict(check) for check in self.checks],
        }

    def figures(self) -> list[str]:
        """One line for each check that failed."""
        return [
            f"{check['check']}: {check['failed']:,} of {check['checked']:,} failed; "
            + "; ".join(check["examples"])
            for check in self.checks
            if check["failed"]
        ]


def verify(
    folder: RunFolder,
    snapshot: SnapshotLike | None,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    absent: str = "",
    advance: Advance = lambda queries: None,
    trees: TreesLike | None = None,
    no_trees: str = "",
) -> Verdict:
    """Check a complete run.

    Args:
        folder: the run.
        snapshot: the epoch that it was made from; None when that is not at hand.
        sample: queries that are recomputed by brute force, at most.
        seed: which ones.
        absent: why there is no snapshot.
        advance: called with the queries of each unit that was checked.
        trees: of the run's model; None when they are not at hand.
        no_trees: why there are none.

    Raises:
        NotFound: there is no run.
        FailedPrecondition: the run is not complete.
        StoreDamaged, StoreFormat: its plan or run.json cannot be read.
    """
    plan, summary = folder.plan(), folder.summary()
    if summary is None:
        raise FailedPrecondition(
            f"run {folder.run_id} in {folder.url} is not complete; go on with: "
            f"matchwright run resume {folder.url}",
            run=folder.run_id,
        )
    verification = _Verification(folder, plan, summary, snapshot, absent)
    verification.take(trees, no_trees)
    return verification.run(sample, seed, advance)


class _Verification:
    def __init__(
        self,
        folder: RunFolder,
        plan: Plan,
        summary: Mapping[str, Any],
        snapshot: SnapshotLike | None,
        absent: str,
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.summary = summary
        self.findings = Findings(second=plan.ranker is not None)
        self.snapshot = snapshot
        self.referee = None if snapshot is None else Referee(snapshot, plan)
        self.trees: TreesLike | None = None
        self.degraded = 0
        if self.referee is None:
            why = absent or "the store was not given"
            self.findings.skip((*NEEDS_STORE, "model_sample"), why)
        self.state = hashlib.sha256()
        self.digest_broken = ""
        self.counts: dict[str, Counter[str]] = {kind: Counter() for kind in plan.options.kinds}
        try:
            self.told = {(u["kind"], u["number"]): u for u in summary["units"]}
            log = summary["redacted"]
            self.redacted = {(e["unit"]["kind"], e["unit"]["number"]) for e in log}
            self.erased_half = sum(not entry["done"] for entry in log)
            self.hashes = {key: dict(one["sha256"]) for key, one in self.told.items()}
            self.told_counts = {kind: dict(one) for kind, one in summary["counts"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            where = folder.url_of(SUMMARY)
            raise StoreDamaged(
                f"{where}: is no summary of a run ({type(error).__name__}: {error})", file=where
            ) from None

    def take(self, trees: TreesLike | None, no_trees: str) -> None:
        """The trees of the run's model, or why there are none."""
        pinned = self.plan.ranker
        if pinned is None:
            return
        self.trees = trees
        if trees is None:
            why = no_trees or "the model repository was not given"
            self.findings.skip(("model_sample",), why)
            return
        self.findings.expect(
            "run",
            (trees.content_hash, tuple(trees.features)) == (pinned.content_hash, pinned.features),
            PLAN,
            f"it names {pinned} of content {pinned.content_hash}, the trees are of content "
            f"{trees.content_hash}",
        )

    def run(self, sample: int, seed: int, advance: Advance) -> Verdict:
        self._check_summary()
        self._check_names()
        self._check_asking()
        picked = picks(self.plan, sample, seed)
        for unit in self.plan.units:
            self._check_unit(unit, picked.get(unit.key, ()))
            advance(unit.queries)
        self._check_totals()
        self._check_corpora()
        digest = self._check_digest()
        failed = self.findings.failed
        return Verdict(
            run_id=self.folder.run_id,
            verdict=FAILED if failed else REDACTED if self.redacted else SOUND,
            digest=digest,
            queries=sum(count["queries"] for count in self.counts.values()),
            rows=sum(count["rows"] for count in self.counts.values()),
            sampled=self.findings.checks["sample"].checked,
            seed=seed,
            checks=[check.to_dict() for check in self.findings.checks.values()],
        )

    def _check_summary(self) -> None:
        where = SUMMARY
        for name, got, expected in (
            ("run_id", self.summary.get("run_id"), self.plan.run_id),
            ("state", self.summary.get("state"), "complete"),
            ("determinants", self.summary.get("determinants"), dict(self.plan.determinants)),
            ("folder", self.folder.run_id, self.plan.run_id),
        ):
            self.findings.expect(
                "run", got == expected, where, f"{name} is {got!r}, expected {expected!r}"
            )
        policy = self.plan.options.policy.effective().id
        self.findings.expect(
            "run",
            policy == self.plan.policy_id,
            PLAN,
            f"its policy has the effective id {policy} here, and the run says "
            f"{self.plan.policy_id}: verify with the same version of the time zone database",
        )
        planned = {(unit.kind, unit.number) for unit in self.plan.units}
        self.findings.expect(
            "run", set(self.told) == planned, where, "its units are not those of plan.json"
        )

    def _check_names(self) -> None:
        """No Parquet file beside those of the units: whoever reads a folder would read it too."""
        whats = ("part", "queries", "slack") if self.plan.options.slack else ("part", "queries")
        known = {unit.file(what) for unit in self.plan.units for what in whats}
        for name in sorted(self.folder.list()):
            if name.startswith("for=") and name.endswith(".parquet") and name not in known:
                self.findings.expect("files", False, name, "is not a file of this run")

    def _check_asking(self) -> None:
        """Everybody of the kinds asks, in units without gaps."""
        for kind in self.plan.options.kinds:
            units = self.plan.units_of(kind)
            stops = [0, *(unit.stop for unit in units)]
            whole = all(unit.start == stop for unit, stop in zip(units, stops, strict=False))
            count = self.plan.counts.get(kind)
            self.findings.expect(
                "units", whole and stops[-1] == count, PLAN, f"the units of {kind}s have gaps"
            )
            if self.snapshot is None or self.redacted:
                continue
            key_n = asking(self.snapshot, kind).key_n
            self.findings.expect(
                "units",
                key_n.size == count,
                PLAN,
                f"{key_n.size:,} {kind}s are to ask, not {count}",
            )
            for unit in units:
                key = unit_key(self.plan.run_id, kind, unit.number, key_n, unit.start, unit.stop)
                told = f"{unit} is not of the {kind}s that the store holds"
                self.findings.expect("units", key == unit.key, PLAN, told)

    def _check_unit(self, unit: Unit, sample: Sequence[int]) -> None:
        frames = self._read(unit)
        if frames is None or not checks.check_schema(self.findings, frames, self.plan):
            self.digest_broken = f"{unit} could not be read"
            return
        data = checks.arrays_of(self.findings, frames)
        checks.check_unit(self.findings, self.plan, data)
        checks.check_scores(self.findings, frames, data, self.plan)
        checks.check_shortfall(self.findings, frames, self.plan)
        if self.plan.ranker is not None:
            checks_second.check_model(self.findings, self.plan, frames, data)
            self.degraded += int(data.degraded_q.sum())
        self.counts[unit.kind].update(checks.facts(data, self.plan))
        self._feed_digest(frames)
        if self.referee is not None and self.snapshot is not None:
            checks.check_keys(self.findings, frames, self.snapshot.salt)
            asked = self.referee.questions(frames)
            self.referee.check_questions(self.findings, frames, asked)
            self.referee.check_pairs(self.findings, frames, data, asked)
            self.referee.check_sampled(self.findings, frames, data, asked, sample)
            if self.trees is not None:
                checks_second.check_model_sampled(
                    self.findings, self.referee, self.trees, data, asked, sample
                )

    def _feed_digest(self, frames: checks.UnitFrames) -> None:
        """Add a unit; of a run from which people were erased, the rows that are left count."""
        queries, unit = frames.queries, frames.unit
        if self.redacted:
            left = frames.part.group_by("query_key").agg(left=pl.len().cast(pl.Int32))
            queries = queries.join(left, on="query_key", how="left", maintain_order="left")
            queries = queries.with_columns(returned=pl.col("left").fill_null(0))
        try:
            self.state.update(unit_bytes(frames.part, queries, unit.file("part")))
        except StoreError:
            self.digest_broken = f"the rows of {unit} are not those of its queries"

    def _read(self, unit: Unit) -> checks.UnitFrames | None:
        """The unit's files, each against its hash; None when one cannot be read."""
        slack = self.plan.options.slack > 0
        told = self.told.get((unit.kind, unit.number), {})
        hashes = self.hashes.get((unit.kind, unit.number), {})
        frames = {}
        for what in ("part", "queries", "slack") if slack else ("part", "queries"):
            name = unit.file(what)
            try:
                data = self.folder.read(name)
                expected = hashes.get(what)
                self.findings.expect(
                    "files", sha256(data) == expected, name, f"SHA-256 is not {expected}"
                )
                frames[what] = self.folder.decoded(data, unit, what)
            except (NotFound, StoreError) as error:
                self.findings.fail("files", name, str(error))
                return None
        self._check_record(unit, hashes)
        self.findings.expect(
            "units", told.get("key") == unit.key, SUMMARY, f"{unit} has another key in plan.json"
        )
        erased = (unit.kind, unit.number) in self.redacted
        return checks.UnitFrames(
            unit, frames["part"], frames["queries"], frames.get("slack"), erased
        )

    def _check_record(self, unit: Unit, hashes: Mapping[str, Any]) -> None:
        """The unit's own record names the same files."""
        name = unit.file("unit")
        try:
            record = self.folder.read_json(name)
            good = (record["key"], record["sha256"]) == (unit.key, dict(hashes))
        except (NotFound, StoreError, KeyError, TypeError):
            good = False
        self.findings.expect("files", good, name, "does not say what run.json says")

    def _check_totals(self) -> None:
        if self.redacted:
            self.findings.skip(("counts",), "people were erased")
            return
        for kind, count in self.counts.items():
            told = self.told_counts.get(kind, {})
            for name in ("queries", "full", "few", "none", "errors", "rows"):
                self.findings.expect(
                    "counts",
                    told.get(name) == count[name],
                    SUMMARY,
                    f"{kind}.{name} is {told.get(name)}, the files hold {count[name]:,}",
                )

        if self.plan.ranker is not None:
            told_in_all = self.summary.get("degraded")
            self.findings.expect(
                "counts",
                told_in_all == self.degraded,
                SUMMARY,
                f"degraded is {told_in_all}, the files hold {self.degraded:,}",
            )

    def _check_corpora(self) -> None:
        """What an incremental run will go by: who was there, and what they were."""
        if self.snapshot is None or not self.plan.options.slack:
            return
        for kind in self.plan.options.kinds:
            name = corpus_file(OTHER[kind])
            expected = prints_of(self.snapshot.corpus(OTHER[kind]))
            try:
                stored = from_parquet(self.folder.read(name), name)
            except (NotFound, StoreError, pl.exceptions.PolarsError) as error:
                self.findings.expect("corpus", False, name, str(error))
                continue
            wrong = len(stored) - stored.agreeing(expected)
            absent = int((stored.find(expected.key_n) < 0).sum())
            self.findings.looked("corpus", len(stored))
            self.findings.fail("corpus", name, "a print is another one", wrong)
            self.findings.fail("corpus", name, "somebody is missing", absent)

    def _check_digest(self) -> str:
        """Of a run from which people were erased, the digest that it has now."""
        self.findings.expect(
            "run", not self.erased_half, SUMMARY, "an erasure was cut short; erase again"
        )
        if self.digest_broken:
            self.findings.expect("digest", False, SUMMARY, self.digest_broken)
            return ""
        name = "digest_redacted" if self.redacted else "digest"
        digest, told = self.state.hexdigest(), self.summary.get(name)
        self.findings.expect(
            "digest", digest == told, SUMMARY, f"{name} is {told}, the files give {digest}"
        )
        return digest


def picks(plan: Plan, sample: int, seed: int) -> dict[str, list[int]]:
    """Unit key -> positions of the sampled queries: drawn from all without replacement."""
    total = sum(unit.queries for unit in plan.units)
    chosen = np.random.default_rng(seed).choice(total, size=min(sample, total), replace=False)
    chosen.sort()
    found: dict[str, list[int]] = {}
    base = 0
    for unit in plan.units:
        here = chosen[(chosen >= base) & (chosen < base + unit.queries)] - base
        if here.size:
            found[unit.key] = here.tolist()
        base += unit.queries
    return found
