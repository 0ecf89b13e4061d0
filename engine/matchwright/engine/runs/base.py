"""The earlier run that an incremental one starts from: what is stored of a range of queries."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import polars as pl

from matchwright.engine.matcher import OTHER
from matchwright.engine.records import Kind
from matchwright.engine.runs.fingerprint import Prints, from_parquet
from matchwright.engine.runs.folder import RunFolder
from matchwright.engine.runs.merge import NO_HITS, Hits, Horizons
from matchwright.engine.runs.pairing import Side
from matchwright.engine.runs.plan import Plan, Unit
from matchwright.kernels.types import Bool, Int64, UInt64

UNITS_HELD = 4
"""Units of the base that are kept decoded: consecutive units of a run need the same ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """What the base holds of some queries, in the order that they were asked for.

    Attributes:
        known_q: bool (Q,), the query was in the base, without an error.
        print_q: (Q,) bytes; b"" where not known.
        horizons: of the stored rows; not set where not known.
        hits: part and slack of all of them.
    """

    known_q: Bool
    print_q: list[bytes]
    horizons: Horizons
    hits: Hits


def corpus_file(kind: Kind) -> str:
    """Name of the fingerprints of a kind's rows within a run."""
    return f"corpus-{kind}.parquet"


class Base:
    """A complete run, read a few units at a time. Thread-safe.

    People who were erased from it are in neither its rows nor its fingerprints, so what it says of
    everybody else still holds.

    Args:
        one: the run.
    """

    def __init__(self, one: Side) -> None:
        self.side = one
        self._lock = threading.Lock()
        self._held: dict[str, tuple[pl.DataFrame, pl.DataFrame]] = {}
        self._ends: dict[Kind, tuple[list[Unit], UInt64]] = {}

    @property
    def folder(self) -> RunFolder:
        return self.side.folder

    @property
    def plan(self) -> Plan:
        return self.side.plan

    def prints(self, kind: Kind) -> Prints | None:
        """Fingerprints of a kind's corpus; None where the run kept none."""
        name = corpus_file(kind)
        if not self.folder.exists(name):
            return None
        return from_parquet(self.folder.read(name), self.folder.url_of(name))

    def unusable(self, plan: Plan, kind: Kind) -> str:
        """Why nothing of the base helps a plan's queries of a kind; "" when something may."""
        mine, theirs = self.plan.determinants, plan.determinants
        if kind not in self.plan.options.kinds:
            return f"the base has no answers for {kind}s"
        for name, what in (
            ("store", "another store"),
            ("generation", "another generation"),
        ):
            if mine[name] != theirs[name]:
                return what
        if mine["policy"] != theirs["policy"] and not self._same_first_phase(plan):
            return "another effective policy"
        if not self.folder.exists(corpus_file(OTHER[kind])):
            return f"the base kept no fingerprints of {OTHER[kind]}s"
        return ""

    def _same_first_phase(self, plan: Plan) -> bool:
        """Whether the policies differ in their second phase alone: stored rows are the first's."""
        mine, theirs = self.plan.options.policy, plan.options.policy
        if mine.effective().id != self.plan.policy_id:
            return False  # the time zones that it was made with are not at hand
        return mine.without_rerank().effective().id == theirs.without_rerank().effective().id

    def stored(self, kind: Kind, key_q: UInt64) -> Stored:
        """What is stored of queries.

        Args:
            key_q: uint64 (Q,), ascending.
        """
        n = key_q.size
        known = np.zeros(n, dtype=np.bool_)
        prints = [b""] * n
        horizons = Horizons(
            np.zeros(n, dtype=np.bool_),
            np.zeros(n, dtype=np.int32),
            np.zeros(n, dtype=np.uint32),
            np.zeros(n, dtype=np.uint32),
        )
        hits = [NO_HITS]
        for unit in self._units_with(kind, key_q):
            queries, rows = self._load(unit)
            at, here = _common(queries["query_key"].to_numpy(), key_q)
            fine = queries["error"].is_null().to_numpy()[at]
            at, here = at[fine], here[fine]
            known[here] = True
            some = queries["print"].gather(at).to_list()
            for place, one in zip(here.tolist(), some, strict=True):
                prints[place] = one
            far = queries.select("horizon_points", "horizon_mix", "horizon_low")[at]
            horizons.set_q[here] = far["horizon_points"].is_not_null().to_numpy()
            horizons.points_q[here] = far["horizon_points"].fill_null(0).to_numpy()
            horizons.mix_q[here] = far["horizon_mix"].fill_null(0).to_numpy()
            horizons.low_q[here] = far["horizon_low"].fill_null(0).to_numpy()
            hits.append(_hits(rows, key_q[here], here))
        return Stored(known, prints, horizons, _joined(hits))

    def _units_with(self, kind: Kind, key_q: UInt64) -> list[Unit]:
        """The base's units that may hold some of these queries."""
        if not key_q.size:
            return []
        with self._lock:
            if kind not in self._ends:
                self._ends[kind] = self._last_keys(kind)
            units, last = self._ends[kind]
        first_unit = int(np.searchsorted(last, key_q[0]))
        last_unit = int(np.searchsorted(last, key_q[-1]))
        return units[first_unit : last_unit + 1]

    def _last_keys(self, kind: Kind) -> tuple[list[Unit], UInt64]:
        """Units that hold queries, and the last query key of each."""
        units: list[Unit] = []
        last: list[int] = []
        for unit in self.plan.units_of(kind):
            keys = self.folder.queries(unit)["query_key"]
            if keys.len():
                units.append(unit)
                last.append(int(keys[-1]))
        return units, np.array(last, dtype=np.uint64)

    def _load(self, unit: Unit) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(queries, rows of part and slack) of a unit."""
        with self._lock:
            held = self._held.pop(unit.key, None)
            if held is None:
                columns = ("query_key", "key", "points")
                rows = [self.folder.part(unit).select(columns)]
                if self.plan.options.slack:
                    rows.append(self.folder.slack(unit).select(columns))
                held = self.folder.queries(unit), pl.concat(rows)
            self._held[unit.key] = held
            while len(self._held) > UNITS_HELD:
                self._held.pop(next(iter(self._held)))
            return held


def _common(there: UInt64, wanted: UInt64) -> tuple[Int64, Int64]:
    """Positions of the keys that are in both, in each; both ascend."""
    _, at, here = np.intersect1d(there, wanted, assume_unique=True, return_indices=True)
    return at.astype(np.int64), here.astype(np.int64)


def _hits(rows: pl.DataFrame, keys: UInt64, places: Int64) -> Hits:
    """Rows of some queries, with the places of these; ``keys`` ascend."""
    asked = rows["query_key"].to_numpy()
    if not keys.size:
        return NO_HITS
    at = np.minimum(np.searchsorted(keys, asked), keys.size - 1)
    mine = keys[at] == asked
    return Hits(places[at[mine]], rows["key"].to_numpy()[mine], rows["points"].to_numpy()[mine])


def _joined(hits: list[Hits]) -> Hits:
    return Hits(
        np.concatenate([one.query_m for one in hits]),
        np.concatenate([one.key_m for one in hits]),
        np.concatenate([one.points_m for one in hits]),
    )
