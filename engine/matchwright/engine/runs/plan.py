"""What determines a run, its id, and its work units.

A run id hashes the content of ``Plan.determinants`` alone, so the same inputs give the same id.
How the work is cut into units, where it is written and what does it are not part of it: the
results do not depend on them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from matchwright.engine.errors import InvalidArgument, StoreDamaged, StoreFormat
from matchwright.engine.matcher import OTHER, facet_names
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import KINDS, Kind
from matchwright.engine.request import DAY_MAX
from matchwright.engine.results import canonical_json
from matchwright.engine.runs.pinned import PinnedRanker, check_pinned
from matchwright.kernels.types import K_MAX, Corpus, Int64, UInt64

PLAN_FORMAT = 1
RUN_ID_DIGITS = 16
PAIRS_PER_UNIT = 1 << 29
"""Pairs of one unit, about: a second of one core under rules; cores end together."""
BLOCK_MIN, BLOCK_MAX = 256, 4_096
"""Queries of a unit, unless it is said: enough that rows are read seldom, few enough to redo."""
CANDIDATES_PER_UNIT = 200_000
"""Rows of one unit that a model orders, about: some 25 MB of features."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What is asked of a run.

    Attributes:
        kinds: the kinds that ask, in the order job, freelancer.
        k: matches of each query, 1..1,000.
        as_of: the day to decide for, days since 1970-01-01.
        policy: as it was read; runs use its effective form.
        slack: further rows kept of each query for incremental runs; k + slack <= 1,000.
        contributions: also keep the points of each facet.
        count: also count the eligible.
        base: run id of the run that an incremental one starts from.
        block: queries of a unit; None chooses. Results do not depend on it.
        allow_degraded: units whose model cannot be asked keep the first phase's order, marked.
    """

    kinds: tuple[Kind, ...] = ("job",)
    k: int = 100
    as_of: int
    policy: Policy
    slack: int = 0
    contributions: bool = False
    count: bool = False
    base: str | None = None
    block: int | None = None
    allow_degraded: bool = False

    @property
    def candidates(self) -> int:
        """Rows of the first phase that a model orders; 0 where none does."""
        return 0 if self.policy.rerank is None else self.policy.rerank.candidates

    def check(self) -> None:
        """Refuse what no run can do.

        Raises:
            InvalidArgument: naming the option, what was got and what is expected.
        """
        if not self.kinds or [kind for kind in KINDS if kind in self.kinds] != list(self.kinds):
            raise InvalidArgument(f"kinds are {self.kinds!r}; expected some of {KINDS!r}, in order")
        most = min(K_MAX, self.policy.budgets.k_max)
        if not 1 <= self.k <= most:
            raise InvalidArgument(f"k is {self.k:,}; expected 1..{most:,}", field="k")
        if not 0 <= self.slack <= K_MAX - self.k:
            raise InvalidArgument(
                f"slack is {self.slack:,}; with k = {self.k} it is 0..{K_MAX - self.k:,}",
                field="slack",
            )
        if not 0 <= self.as_of <= DAY_MAX:
            raise InvalidArgument(f"as_of is {self.as_of}; expected 0..{DAY_MAX:,}", field="as_of")
        self._check_second()
        if self.block is not None and not 1 <= self.block <= 1 << 20:
            raise InvalidArgument(f"block is {self.block:,}; expected 1..1,048,576", field="block")

    def _check_second(self) -> None:
        if self.policy.rerank is None and self.allow_degraded:
            raise InvalidArgument(
                f"the policy {self.policy.name!r} does not rerank, so nothing can be degraded; "
                "leave allow_degraded out",
                field="allow_degraded",
            )
        if self.policy.rerank is not None and self.k > self.candidates:
            raise InvalidArgument(
                f"k is {self.k:,}, and the policy's rerank.candidates is {self.candidates:,}; ask "
                "for at most that many, or raise it in the policy",
                field="k",
            )


@dataclass(frozen=True, slots=True)
class Unit:
    """A block of queries of one kind, contiguous in the order of their keys.

    Attributes:
        kind: the kind that asks.
        number: counts from 0 within the kind.
        start, stop: which of the kind's queries, in ascending order of keys.
        key: 32 hex digits over run id, kind, number and the keys of its queries.
    """

    kind: Kind
    number: int
    start: int
    stop: int
    key: str

    @property
    def queries(self) -> int:
        return self.stop - self.start

    @property
    def folder(self) -> str:
        return f"for={self.kind}"

    def file(self, what: str) -> str:
        """Path within the run of its "part", "queries", "slack" (Parquet) or "unit" (JSON)."""
        ending = "json" if what == "unit" else "parquet"
        return f"{self.folder}/{what}-{self.number:05d}.{ending}"

    def __str__(self) -> str:
        return f"{self.kind} unit {self.number}"


@dataclass(frozen=True, slots=True, eq=False)
class Asking:
    """Who asks: the living rows of a kind in ascending order of their keys.

    Attributes:
        key_n: uint64 (N,), ascending.
        row_n: int64 (N,), global rows of the snapshot.
    """

    key_n: UInt64
    row_n: Int64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that determines a run, and its units.

    Attributes:
        run_id: 16 hex digits of SHA-256 over the canonical form of ``determinants``.
        determinants: format, store, epoch, generation, policy, as_of, kinds, k, slack,
            contributions, count, base; ranker where the policy reranks; allow_degraded if asked.
        options: what was asked.
        facets: names, in the order of contributions.
        counts: living rows of both kinds.
        units: in the order of kinds and numbers.
        store: the folder of the store when the run was planned; for people and for ``resume``.
        base: URL of the folder of the run that an incremental one starts from; "" for none.
        created: when, UTC, ISO 8601; "" when nobody said.
        ranker: the model that orders candidates; None where the policy does not rerank.
    """

    run_id: str
    determinants: Mapping[str, Any]
    options: RunOptions
    facets: tuple[str, ...]
    counts: Mapping[Kind, int]
    units: tuple[Unit, ...]
    store: str = ""
    base: str = ""
    created: str = ""
    ranker: PinnedRanker | None = None

    @property
    def epoch(self) -> str:
        return str(self.determinants["epoch"])

    @property
    def generation(self) -> str:
        return str(self.determinants["generation"])

    @property
    def policy_id(self) -> str:
        """Id of the effective policy."""
        return str(self.determinants["policy"])

    @property
    def epoch_number(self) -> int:
        return int(self.epoch.split(":")[1])

    def units_of(self, kind: Kind) -> tuple[Unit, ...]:
        """The units in which a kind asks."""
        return tuple(unit for unit in self.units if unit.kind == kind)

    def to_json(self) -> bytes:
        """What ``plan.json`` holds."""
        options = self.options
        document = {
            "format": PLAN_FORMAT,
            "run_id": self.run_id,
            "determinants": dict(self.determinants),
            "store": self.store,
            "base": self.base,
            "created": self.created,
            "facets": list(self.facets),
            "counts": dict(self.counts),
            "policy": options.policy.to_dict(),
            **({} if self.ranker is None else {"ranker": self.ranker.to_dict()}),
            "units": [
                [unit.kind, unit.number, unit.start, unit.stop, unit.key] for unit in self.units
            ],
        }
        return json.dumps(document, ensure_ascii=False, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str = "plan.json") -> Self:
        """The plan that a run's folder holds.

        Raises:
            StoreFormat: a newer format.
            StoreDamaged: not a plan, or one whose content does not have its id.
        """
        try:
            document = json.loads(data)
            if document["format"] > PLAN_FORMAT:
                raise StoreFormat(
                    f"{where}: has format {document['format']}, this version reads up to "
                    f"{PLAN_FORMAT}; use a newer matchwright",
                    file=where,
                )
            plan = cls._of(document, where)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreDamaged(
                f"{where}: is no plan of a run ({type(error).__name__}: {error}); "
                "start the run again",
                file=where,
            ) from None
        if plan.run_id != run_id_of(plan.determinants):
            raise StoreDamaged(f"{where}: its content does not have its run id", file=where)
        return plan

    @classmethod
    def _of(cls, document: Mapping[str, Any], where: str) -> Self:
        given = document["determinants"]
        options = RunOptions(
            kinds=tuple(given["kinds"]),
            k=given["k"],
            as_of=given["as_of"],
            policy=Policy.from_dict(document["policy"], where),
            slack=given["slack"],
            contributions=given["contributions"],
            count=given["count"],
            base=given["base"],
            allow_degraded=given.get("allow_degraded", False),
        )
        ranker = PinnedRanker.from_dict(document["ranker"]) if "ranker" in given else None
        if ranker is not None and ranker.determinants != given["ranker"]:
            raise ValueError("its ranker is not the one that determines it")
        return cls(
            run_id=document["run_id"],
            determinants=given,
            options=options,
            facets=tuple(document["facets"]),
            counts=document["counts"],
            units=tuple(Unit(*unit) for unit in document["units"]),
            store=document["store"],
            base=document["base"],
            created=document["created"],
            ranker=ranker,
        )


def make_plan(
    snapshot: SnapshotLike,
    options: RunOptions,
    *,
    store: str = "",
    base: str = "",
    created: str = "",
    ranker: PinnedRanker | None = None,
) -> Plan:
    """The plan of a run over one epoch: every stored entity of the kinds asks.

    Args:
        snapshot: the epoch.
        options: what is asked.
        store: the store's folder, to find it again.
        base: URL of the base's folder, to find it again.
        created: the time, UTC, ISO 8601.
        ranker: the model of a policy that reranks.

    Raises:
        InvalidArgument: options that no run can do.
        FailedPrecondition: the policy reranks, and its model is not given.
    """
    options.check()
    check_pinned(options.policy, ranker)
    options = with_depth(options)
    if not options.candidates:
        ranker = None
    determinants = {
        "format": PLAN_FORMAT,
        "store": str(snapshot.epoch.uuid),
        "epoch": str(snapshot.epoch),
        "generation": snapshot.generation.id,
        "policy": options.policy.effective().id,
        "as_of": options.as_of,
        "kinds": list(options.kinds),
        "k": options.k,
        "slack": options.slack,
        "contributions": options.contributions,
        "count": options.count,
        "base": options.base,
        **({} if ranker is None else {"ranker": ranker.determinants}),
        **({"allow_degraded": True} if options.allow_degraded else {}),
    }
    run_id = run_id_of(determinants)
    counts = {kind: snapshot.count(kind) for kind in KINDS}
    units: list[Unit] = []
    for kind in options.kinds:
        block = options.block or block_size(counts[OTHER[kind]], options.candidates)
        units += cut(run_id, kind, asking(snapshot, kind).key_n, block)
    return Plan(
        run_id=run_id,
        determinants=determinants,
        options=options,
        facets=facet_names(snapshot),
        counts=counts,
        units=tuple(units),
        store=store,
        base=base,
        created=created,
        ranker=ranker,
    )


def with_depth(options: RunOptions) -> RunOptions:
    """The options, with at least the slack that later passes read: with K, all candidates of the
    model, and what the policy's exposure pass fills places from."""
    options = replace(options, slack=max(options.slack, options.candidates - options.k))
    ask = options.policy.exposure
    if ask is None or not set(ask.asking) & set(options.kinds):
        return options
    needed = min(ask.slack_rows, K_MAX - options.k)
    return replace(options, slack=max(options.slack, needed))


def run_id_of(determinants: Mapping[str, Any]) -> str:
    """16 hex digits that name the content."""
    return hashlib.sha256(canonical_json(determinants)).hexdigest()[:RUN_ID_DIGITS]


def block_size(corpus: int, candidates: int = 0) -> int:
    """Queries of a unit against a corpus of so many rows: a power of two.

    Args:
        candidates: rows of each query that a model orders.
    """
    wanted = max(BLOCK_MIN, min(BLOCK_MAX, PAIRS_PER_UNIT // max(corpus, 1)))
    if candidates:
        wanted = max(BLOCK_MIN, min(wanted, CANDIDATES_PER_UNIT // min(candidates, max(corpus, 1))))
    return int(1 << (wanted.bit_length() - 1))


def cut(run_id: str, kind: Kind, key_n: UInt64, block: int) -> list[Unit]:
    """Queries in ascending order of keys, as units of ``block``."""
    units = []
    for number, start in enumerate(range(0, key_n.size, block)):
        stop = min(start + block, key_n.size)
        units.append(
            Unit(kind, number, start, stop, unit_key(run_id, kind, number, key_n, start, stop))
        )
    return units


def unit_key(run_id: str, kind: Kind, number: int, key_n: UInt64, start: int, stop: int) -> str:
    """32 hex digits that name a unit's content."""
    state = hashlib.blake2b(f"{run_id}:{kind}:{number}:".encode(), digest_size=16)
    state.update(key_n[start:stop].astype("<u8").tobytes())
    return state.hexdigest()


def asking(snapshot: SnapshotLike, kind: Kind) -> Asking:
    """Everybody of a kind, in ascending order of keys."""
    return asking_of(snapshot.corpus(kind))


def asking_of(corpus: Corpus) -> Asking:
    """The living rows of a corpus in ascending order of keys."""
    keys: list[UInt64] = [np.zeros(0, dtype=np.uint64)]
    rows: list[Int64] = [np.zeros(0, dtype=np.int64)]
    for (segment, alive), base in zip(corpus.parts, corpus.base.tolist(), strict=False):
        local = np.arange(segment.n) if alive is None else np.flatnonzero(alive)
        keys.append(segment.key_n[local])
        rows.append(base + local)
    key_n, row_n = np.concatenate(keys), np.concatenate(rows)
    order = np.argsort(key_n, kind="stable")
    return Asking(key_n[order], row_n[order])


def kinds_of(word: str) -> tuple[Kind, ...]:
    """The kinds of "jobs", "freelancers" or "both"."""
    known: Mapping[str, tuple[Kind, ...]] = {
        "jobs": ("job",),
        "freelancers": ("freelancer",),
        "both": KINDS,
    }
    if word not in known:
        raise InvalidArgument(f"--for takes jobs, freelancers or both, got {word!r}")
    return known[word]


def check_units(plan: Plan, kind: Kind, key_n: UInt64) -> Sequence[Unit]:
    """The kind's units, after a look whether the store still gives them these queries.

    Raises:
        StoreDamaged: the queries of a unit are others.
    """
    units = plan.units_of(kind)
    for unit in units:
        expected = unit_key(plan.run_id, kind, unit.number, key_n, unit.start, unit.stop)
        if unit.key != expected:
            raise StoreDamaged(
                f"run {plan.run_id}: the store does not hold the queries of {unit}; "
                "was the plan made from another store?",
                run=plan.run_id,
            )
    return units
