"""One side of the marketplace by key, as an epoch of the store holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from matchwright.engine.columns import FREELANCER_STATES, JOB_STATES
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.runs.plan import asking_of
from matchwright.kernels.types import UNKNOWN, Bool, Corpus, Int32, Int64, UInt64

_STATES: Mapping[Kind, tuple[str, tuple[str, ...]]] = {
    "job": ("job_status", JOB_STATES),
    "freelancer": ("freelancer_status", FREELANCER_STATES),
}


@dataclass(frozen=True, eq=False)
class Side:
    """The living rows of a kind in ascending order of their keys.

    Attributes:
        kind: what they are.
        snapshot: the epoch.
        key_n: uint64 (N,), ascending.
        row_n: int64 (N,), global rows.
    """

    kind: Kind
    snapshot: SnapshotLike
    key_n: UInt64
    row_n: Int64
    _columns: dict[str, Int32] = field(default_factory=dict)

    @classmethod
    def of(cls, snapshot: SnapshotLike, kind: Kind) -> Side:
        """Everybody of a kind."""
        rows = asking_of(snapshot.corpus(kind))
        return cls(kind, snapshot, rows.key_n, rows.row_n)

    @property
    def corpus(self) -> Corpus:
        return self.snapshot.corpus(self.kind)

    @property
    def n(self) -> int:
        return int(self.key_n.size)

    def scalar(self, name: str) -> Int32:
        """A rule column, int32 (N,), in the order of ``key_n``."""
        if name not in self._columns:
            whole = [segment.scalars[name] for segment, _ in self.corpus.parts]
            column = np.concatenate([np.zeros(0, dtype=np.int32), *whole])
            self._columns[name] = column[self.row_n]
        return self._columns[name]

    def find(self, keys: UInt64) -> Int64:
        """int64 (M,): where keys stand in ``key_n``; -1 where they do not."""
        if not self.n:
            return np.full(keys.size, -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.key_n, keys), self.n - 1)
        found: Int64 = np.where(self.key_n[at] == keys, at, -1)
        return found

    def available(self, policy: Policy, as_of: int) -> Bool:
        """bool (N,): who takes part, by the policy's rules about status and last day."""
        rule, states = _STATES[self.kind]
        setting = policy.rules[rule]
        good = np.ones(self.n, dtype=np.bool_)
        if setting.enabled:
            status = self.scalar("status")
            accepted = [states.index(name) for name in setting.option("accept")]
            unknown = (status == UNKNOWN) & setting.unknown_passes
            good = np.isin(status, accepted) | unknown
        if self.kind == "job" and policy.rules["job_closing"].enabled:
            good &= self.scalar("closes") >= as_of
        return good

    def ids(self, at: Int64) -> list[str]:
        """Ids of places in ``key_n``."""
        return self.snapshot.ids_of(self.kind, self.row_n[at])
