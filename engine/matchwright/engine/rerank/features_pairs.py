"""Computes the features of ``features.FEATURES`` for the candidates of queries."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from matchwright.engine.corpus_rows import take_rows
from matchwright.engine.prepare import Prepared, SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.rerank.features import (
    FEATURES,
    INDEX,
    UNKNOWN,
    allowed,
)
from matchwright.engine.rerank.features_points import scaled, write_points
from matchwright.engine.rerank.features_pool import RowPool
from matchwright.engine.rerank.features_records import records_of
from matchwright.engine.rerank.features_rows import Side, side_of_rows
from matchwright.engine.rerank.features_sides import GROUPS, write_sides
from matchwright.engine.rerank.reciprocal import (
    direction,
    query_vectors,
    reciprocal_points,
    rows_of_queries,
)
from matchwright.engine.table import Records
from matchwright.kernels.types import Corpus, Float64, Int32, Int64

FACTS_MAX = 1 << 17
"""Rows whose facts are kept: some 65 MB."""
VECTORS_MAX = 1 << 16
"""Query vectors of candidates that are kept: some 50 MB at 384 dimensions."""
WIDTHS_MAX = 4
"""Widths of which query vectors are kept: more encoders are hardly ever in use at once."""
CONTEXTS_MAX = 1_024
_NUMBER_BITS = 64
"""Of the number of a record, in a key; the context stands above them."""
_OTHER: Mapping[Kind, Kind] = {"job": "freelancer", "freelancer": "job"}


@dataclass(frozen=True, slots=True, eq=False)
class Inline:
    """A corpus with rows at its end that are not stored, and their records.

    Attributes:
        corpus: searched in place of the snapshot's own.
        records: global row -> record.
    """

    corpus: Corpus
    records: Mapping[int, Mapping[str, Any]]


class FeatureMaker:
    """Makes features, and keeps what is dear to make twice. Thread-safe.

    What is kept changes no feature: keys hold everything that determines a row.

    Args:
        facts_max, vectors_max: most rows that are kept of either.
    """

    def __init__(self, facts_max: int = FACTS_MAX, vectors_max: int = VECTORS_MAX) -> None:
        self.facts = RowPool(facts_max)
        self._vectors_max = vectors_max
        self._by_width: OrderedDict[int, RowPool] = OrderedDict()
        self._contexts: OrderedDict[Any, int] = OrderedDict()
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    @property
    def vectors(self) -> RowPool:
        """The pool of query vectors that was asked for last."""
        with self._lock:
            return next(reversed(self._by_width.values()), RowPool(self._vectors_max))

    def vectors_of(self, width: int) -> RowPool:
        """The pool of query vectors of a width: generations in one process may differ in it.

        Another encoder or another marketplace has its own; those of ``WIDTHS_MAX`` widths are kept.
        """
        with self._lock:
            found = self._by_width.pop(width, None)
            self._by_width[width] = RowPool(self._vectors_max) if found is None else found
            while len(self._by_width) > WIDTHS_MAX:
                self._by_width.popitem(last=False)
            return self._by_width[width]

    def make(
        self,
        snapshot: SnapshotLike,
        prepared: Sequence[Prepared],
        rows_per_query: Sequence[Int64],
        *,
        names: Sequence[str] | None = None,
        inline: Inline | None = None,
        deadline: float | None = None,
    ) -> Int32:
        """Features of pairs, query after query, int32 (sum M, F).

        Args:
            rows_per_query: for each query int64 (M,) distinct global rows of the other kind.
            names: compute these alone; other columns are ``UNKNOWN``.
            inline: rows that are not stored; for queries of one kind.
            deadline: moment of the monotonic clock until which a served encoder may take.

        Raises:
            ModelUnavailable, ModelLate, ModelWrong: a served encoder has to be asked, and did not
                answer.
        """
        sizes = [rows.size for rows in rows_per_query]
        out = np.full((sum(sizes), len(FEATURES)), UNKNOWN, dtype=np.int32)
        start_q = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        for kind in ("job", "freelancer"):
            at = [n for n, query in enumerate(prepared) if query.request.kind == kind]
            if at:
                queries = [prepared[n] for n in at]
                parts = [out[start_q[n] : start_q[n + 1]] for n in at]
                rows = [np.asarray(rows_per_query[n], dtype=np.int64) for n in at]
                _Block(self, snapshot, queries, rows, names, inline, deadline).fill(parts)
        return out

    def keys(
        self, snapshot: SnapshotLike, kind: Kind, rows: Int64, corpus: Corpus, *what: Any
    ) -> list[int] | None:
        """Keys of rows in a pool; None where a snapshot does not number its records."""
        numbers = getattr(snapshot, "record_numbers", None)
        if numbers is None or corpus is not snapshot.corpus(kind):
            return None
        token, seq_n = numbers(kind, rows)
        # One number and not a pair: the collector of garbage has nothing to follow.
        context = self._context((token, kind, snapshot.generation.id, *what)) << _NUMBER_BITS
        return [context + seq for seq in seq_n.tolist()]

    def _context(self, what: Any) -> int:
        """A small number that stands for what many keys share; none is ever used again."""
        with self._lock:
            number = self._contexts.get(what)
            if number is None:
                number = self._contexts[what] = next(self._numbers)
            self._contexts.move_to_end(what)
            if len(self._contexts) > CONTEXTS_MAX:
                self._contexts.popitem(last=False)
            return number


class _Block:
    """Queries of one kind and their candidates, of which some are shared."""

    def __init__(
        self,
        maker: FeatureMaker,
        snapshot: SnapshotLike,
        queries: Sequence[Prepared],
        rows_per_query: Sequence[Int64],
        names: Sequence[str] | None,
        inline: Inline | None,
        deadline: float | None,
    ) -> None:
        self.maker, self.snapshot, self.queries = maker, snapshot, queries
        self.deadline = deadline
        self.kind: Kind = queries[0].request.kind
        self.other = _OTHER[self.kind]
        self.corpus = snapshot.corpus(self.other) if inline is None else inline.corpus
        self.rows_per_query = rows_per_query
        wanted = INDEX.keys() if names is None else set(names)
        self.groups = frozenset(f.group for f in FEATURES if f.name in wanted)
        self.wanted = np.array([f.name in wanted for f in FEATURES], dtype=np.bool_)
        if len(queries) == 1:
            self.rows, self.at = rows_per_query[0], None
        else:
            self.rows, place = np.unique(np.concatenate(rows_per_query), return_inverse=True)
            sizes = np.cumsum([rows.size for rows in rows_per_query])[:-1]
            self.at = np.split(place, sizes)
        self._records = records_of(snapshot, self.other, inline.records if inline else {})

    def fill(self, parts: Sequence[Int32]) -> None:
        """Write each query's features into its part, int32 (M, F)."""
        if not self.rows.size:
            return
        x_ud, _ = take_rows(self.corpus, self.rows, self.queries[0].q_d.size)
        if "reciprocal" in self.groups:
            self._reciprocal(parts)
        for n, (query, part) in enumerate(zip(self.queries, parts, strict=True)):
            write_points(self.snapshot, query, x_ud if self.at is None else x_ud[self.at[n]], part)
        if self.groups & GROUPS:
            write_sides(
                self.snapshot, self.queries, self._side(), self.at, parts, self.groups & GROUPS
            )
        policies = {id(query.policy): query.policy for query in self.queries}
        without = {key: ~(allowed(policy) & self.wanted) for key, policy in policies.items()}
        for query, part in zip(self.queries, parts, strict=True):
            part[:, without[id(query.policy)]] = UNKNOWN

    def _side(self) -> Side:
        keys = self.maker.keys(self.snapshot, self.other, self.rows, self.corpus)
        return side_of_rows(
            self.snapshot, self.other, self.corpus, self.rows, self._fetch, self.maker.facts, keys
        )

    def _fetch(self, at: Int64) -> Records:
        """Records of some of the rows."""
        return self._records(self.rows[at])

    # ── Reciprocal fit ────────────────────────────────────────────────────────────────────────

    def _reciprocal(self, parts: Sequence[Int32]) -> None:
        x_qd = rows_of_queries(self.snapshot, self.queries)
        alike: dict[Any, list[int]] = {}
        for n, query in enumerate(self.queries):
            day = int(query.request.as_of or 0)
            alike.setdefault(direction(query.policy, day), []).append(n)
        for what, members in alike.items():
            used = np.arange(self.rows.size)
            if self.at is not None and len(alike) > 1:
                used = np.unique(np.concatenate([self.at[n] for n in members]))
            q_ud, t_u = self._vectors(what, self.queries[members[0]], used)
            for n in members:
                here = used if self.at is None else np.searchsorted(used, self.at[n])
                q_md = q_ud[here]
                score = scaled(reciprocal_points(q_md, x_qd[n]), t_u[here])
                parts[n][:, INDEX["reciprocal"]] = np.where(q_md.any(axis=1), score, UNKNOWN)

    def _vectors(self, what: Any, like: Prepared, used: Int64) -> tuple[Any, Float64]:
        keys = self.maker.keys(self.snapshot, self.other, self.rows[used], self.corpus, what)
        return query_vectors(
            self.snapshot,
            self.other,
            like.policy,
            int(like.request.as_of or 0),
            used.size,
            lambda at: self._fetch(used[at]),
            self.maker.vectors_of(self.snapshot.generation.d),
            keys,
            self.deadline,
        )


SHARED = FeatureMaker()
"""One for the process; keys name the catalog, so stores do not mix."""
