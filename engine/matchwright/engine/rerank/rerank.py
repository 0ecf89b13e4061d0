"""The second phase: from the first phase's M candidates to K, by the scores of a served model.

::

    gather (device thread)          ask (blocks, or is awaited)        finish (pure)
    first M, their features  ──>  one call for a block of queries ──>  order, check, Result

Candidates are ordered by (model score, first-phase key), descending. A score is an integer on the
model's dyadic grid, so the order is the same in any batch. Nothing that goes wrong with the model
is an error of the request: the answer is then the first phase's, and says why (``Degraded``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.engine.errors import (
    DeadlineExceeded,
    DependencyUnavailable,
    FailedPrecondition,
    InvalidArgument,
    MatchwrightError,
    ModelLate,
    ModelWrong,
)
from matchwright.engine.models.description import (
    RANKER,
    RANKER_INPUT,
    RANKER_OUTPUT,
    RANKER_ROWS_MAX,
)
from matchwright.engine.policy import Policy
from matchwright.engine.policy_rerank import Rerank
from matchwright.engine.prepare import Prepared, SnapshotLike
from matchwright.engine.rerank.features import FEATURES_VERSION, INDEX, check_manifest
from matchwright.engine.rerank.features_pairs import SHARED, FeatureMaker, Inline
from matchwright.engine.rerank.rerank_block import (
    Candidates,
    Infers,
    RankerSource,
    Scored,
    TreesLike,
    late,
)
from matchwright.engine.rerank.rerank_order import answers
from matchwright.engine.results import Degraded, Result
from matchwright.kernels.types import Float32, Int32, Int64

FINISH_S = 0.002
"""What is kept of a deadline for ordering and checking after the model's answer."""

_log = logging.getLogger(__name__)


class Ranker:
    """One version of the ranker: its trees, and whom to ask. Thread-safe.

    Args:
        client: asks the served model.
        trees: the same version's exported trees.
        ref: name and version, as ``client`` takes it.
        maker: makes features.
        rows_max: rows of one call at most; the model's largest batch.
        clock: the clock that deadlines are told in.

    Raises:
        FailedPrecondition: the model's features are of another version than this engine's.
    """

    def __init__(
        self,
        client: Infers,
        trees: TreesLike,
        ref: Any,
        *,
        maker: FeatureMaker = SHARED,
        rows_max: int = RANKER_ROWS_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client, self.trees, self.ref, self.maker = client, trees, ref, maker
        self._rows_max, self._clock = rows_max, clock
        if trees.features_version != FEATURES_VERSION:
            raise FailedPrecondition(
                f"{self} was trained with features of version {trees.features_version}; this "
                f"engine computes version {FEATURES_VERSION}: train it anew, or run the engine "
                "that it was trained with"
            )
        unknown = [name for name in trees.features if name not in INDEX]
        if unknown:
            raise FailedPrecondition(
                f"{self} was trained with the feature {unknown[0]!r}, which this engine does not "
                "compute; train it anew",
                feature=unknown[0],
            )
        self._columns = np.array([INDEX[name] for name in trees.features], dtype=np.int64)

    def __str__(self) -> str:
        return f"{RANKER}:{self.version}"

    @property
    def version(self) -> int:
        return int(self.ref.version)

    @property
    def asked(self) -> tuple[str, ...]:
        """The features that some split of the trees asks about."""
        return tuple(getattr(self.trees, "asked", self.trees.features))

    def ranker(self, version: int) -> Ranker:
        """Itself, where one version is all there is.

        Raises:
            FailedPrecondition: another version is asked for.
        """
        if version != self.version:
            raise FailedPrecondition(f"{RANKER}:{version} is asked for; there is {self}")
        return self

    def check(self, policy: Policy) -> None:
        """Refuse a policy whose input manifest does not allow a feature that the trees ask for.

        Raises:
            FailedPrecondition: naming the feature and the field.
        """
        check_manifest(policy, self.asked, str(self))

    # ── Gather ────────────────────────────────────────────────────────────────────────────────

    def features(
        self,
        snapshot: SnapshotLike,
        prepared: Sequence[Prepared],
        rows_per_query: Sequence[Int64],
        inline: Inline | None = None,
        deadline: float | None = None,
    ) -> Int32:
        """int32 (sum M, F): the model's features of pairs, in the order of its columns."""
        made = self.maker.make(
            snapshot,
            prepared,
            rows_per_query,
            names=self.asked,
            inline=inline,
            deadline=deadline,
        )
        return np.ascontiguousarray(made[:, self._columns])

    def gather(
        self,
        snapshot: SnapshotLike,
        prepared: Sequence[Prepared],
        wide: Sequence[Result],
        rows_per_query: Sequence[Int64],
        deadline: float | None = None,
    ) -> list[Candidates]:
        """Candidates of queries of one kind.

        Args:
            wide: first-phase answers of up to M rows.
            rows_per_query: int64 (M,), the global rows of each.
            deadline: until when a served encoder may take, where it has to be asked.
        """
        why = ""
        parts: list[Int32 | None] = [None] * len(prepared)
        try:
            settings = prepared[0].policy.rerank
            assert settings is not None
            until = self.until(settings, deadline)
            whole = self.features(snapshot, prepared, rows_per_query, deadline=until)
            edges = np.cumsum([rows.size for rows in rows_per_query])[:-1]
            parts = list(np.split(whole, edges))
        except (DependencyUnavailable, DeadlineExceeded) as error:
            if len(prepared) > 1:  # the others of its block do not go without because of one
                half = len(prepared) // 2
                some, rest = slice(None, half), slice(half, None)
                return [
                    one
                    for at in (some, rest)
                    for one in self.gather(
                        snapshot, prepared[at], wide[at], rows_per_query[at], deadline
                    )
                ]
            why = str(error)
        made = []
        for query, result, part in zip(prepared, wide, parts, strict=True):
            assert query.policy.rerank is not None
            made.append(Candidates(result, part, self, query.policy.rerank, why))
        return made

    # ── Ask ───────────────────────────────────────────────────────────────────────────────────

    def until(self, settings: Rerank, deadline: float | None) -> float:
        """The moment until which an answer waits for the model: what the policy allows from now
        on, or what the request's deadline leaves, whichever is sooner."""
        allowed = self._clock() + settings.timeout_ms / 1_000
        return allowed if deadline is None else min(allowed, deadline - FINISH_S)

    async def ask(self, block: Sequence[Candidates], deadline: float | None = None) -> list[Scored]:
        """Scores of all candidates of a block; never raises what the model does wrong.

        A caller whose own deadline is sooner than the block's stops waiting by itself and
        finishes with ``late()``; the block's deadline is the latest of its members'.

        Args:
            block: queries whose rows go to the model together.
            deadline: of the request, on the ranker's clock; None for the policy's time alone.
        """
        began = self._clock()
        try:
            served: list[Float32] = []
            until = self._until(block, deadline)
            for chunk in self._chunks(block):
                self._in_time(until)
                answer = await self.client.infer(
                    self.ref, {RANKER_INPUT: chunk}, [RANKER_OUTPUT], deadline=until
                )
                served.append(_read(answer, len(chunk)))
            self._in_time(until if served else None)
        except Exception as error:
            return self._failed(block, error, began)
        return self._scored(block, served, began)

    def ask_blocking(
        self, block: Sequence[Candidates], deadline: float | None = None
    ) -> list[Scored]:
        """As ``ask``, for callers without an event loop."""
        began = self._clock()
        try:
            served: list[Float32] = []
            until = self._until(block, deadline)
            for chunk in self._chunks(block):
                self._in_time(until)
                answer = self.client.infer_blocking(
                    self.ref, {RANKER_INPUT: chunk}, [RANKER_OUTPUT], deadline=until
                )
                served.append(_read(answer, len(chunk)))
            self._in_time(until if served else None)
        except Exception as error:
            return self._failed(block, error, began)
        return self._scored(block, served, began)

    def served(self, rows_nf: Int32, deadline: float) -> Float32:
        """float32 (N,): what the served model says of rows. Blocks; for callers who wait and ask
        again, such as runs.

        Args:
            deadline: of all calls together, on the ranker's clock.

        Raises:
            ModelUnavailable, ModelLate, ModelWrong: what it does wrong.
        """
        served = [np.zeros(0, dtype=np.float32)]
        for low in range(0, len(rows_nf), self._rows_max):
            chunk = rows_nf[low : low + self._rows_max].astype(np.float32)
            answer = self.client.infer_blocking(
                self.ref, {RANKER_INPUT: chunk}, [RANKER_OUTPUT], deadline=deadline
            )
            served.append(_read(answer, len(chunk)))
        return np.concatenate(served)

    @property
    def rows_max(self) -> int:
        """Rows of one call at most."""
        return self._rows_max

    def _until(self, block: Sequence[Candidates], deadline: float | None) -> float:
        return min((self.until(one.settings, deadline) for one in block), default=0.0)

    def _in_time(self, until: float | None) -> None:
        if until is not None and self._clock() >= until:
            raise ModelLate(f"{self} had not answered when its time was over", model=str(self))

    def _chunks(self, block: Sequence[Candidates]) -> Iterator[Float32]:
        """float32 (N, F) rows of all queries one after the other, ``rows_max`` at a time."""
        parts = [one.features_mf for one in block if one.features_mf is not None]
        rows = np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.int32)
        for low in range(0, len(rows), self._rows_max):
            yield rows[low : low + self._rows_max].astype(np.float32)

    def _scored(
        self, block: Sequence[Candidates], served: Sequence[Float32], began: float
    ) -> list[Scored]:
        scores = np.concatenate(served) if served else np.zeros(0, dtype=np.float32)
        seconds = self._clock() - began
        made, start = [], 0
        for one in block:
            if one.features_mf is None:
                made.append(Scored(None, Degraded.NO_FEATURES, one.why))
                continue
            made.append(Scored(scores[start : start + one.rows], seconds=seconds))
            start += one.rows
        return made

    def _failed(self, block: Sequence[Candidates], error: Exception, began: float) -> list[Scored]:
        reason = reason_of(error)
        if reason is Degraded.FAILED:
            _log.error("%s could not be asked", self, exc_info=error)
        seconds = self._clock() - began
        return [Scored(None, reason, f"{type(error).__name__}: {error}", seconds)] * len(block)

    # ── Finish ────────────────────────────────────────────────────────────────────────────────

    def finish(self, block: Sequence[Candidates], scored: Sequence[Scored]) -> list[Result]:
        """Answers out of candidates and what was said of them; pure."""
        return answers(self.trees, self.version, block, scored)


def _read(answer: Mapping[str, NDArray[Any]], rows: int) -> Float32:
    """float32 (N,) out of a model's answer.

    Raises:
        ModelWrong: another shape or type than was asked for.
    """
    output = answer.get(RANKER_OUTPUT)
    if output is None or output.shape != (rows, 1) or output.dtype != np.float32:
        got = "nothing" if output is None else f"{output.dtype} {output.shape}"
        raise ModelWrong(f"{RANKER_OUTPUT} is {got}; expected float32 ({rows}, 1)", model=RANKER)
    return output[:, 0]


def reason_of(error: Exception) -> Degraded:
    """What an answer says of a model that failed so."""
    if isinstance(error, DeadlineExceeded | TimeoutError):
        return Degraded.LATE
    if isinstance(error, ModelWrong):
        return Degraded.WRONG_OUTPUT
    if isinstance(error, DependencyUnavailable):
        why = error.details.get("why", "")
        return Degraded(why) if why in ("BREAKER_OPEN", "NOT_READY") else Degraded.UNREACHABLE
    return Degraded.FAILED


def ranker_of(policy: Policy, source: RankerSource | None) -> Ranker | None:
    """The ranker that a policy names; None where it does not rerank.

    Raises:
        FailedPrecondition: nobody said where models are, or the model does not fit the policy.
        NotFound: the repository has no such version.
    """
    if policy.rerank is None:
        return None
    if source is None:
        raise FailedPrecondition(
            f"the policy {policy.name!r} reranks with {RANKER}:{policy.rerank.version}, and no "
            "model repository and server are given; name them (--models DIR --triton HOST:PORT), "
            "or answer without the second phase (--no-rerank)"
        )
    ranker = source.ranker(policy.rerank.version)
    ranker.check(policy)
    return ranker


def refuse_k(policy: Policy, k: int) -> None:
    """Refuse more results than the model orders.

    Raises:
        InvalidArgument: naming both.
    """
    if policy.rerank is not None and k > policy.rerank.candidates:
        raise InvalidArgument(
            f"request.k is {k:,}, and the policy's rerank.candidates is "
            f"{policy.rerank.candidates:,}; ask for at most that many, or raise it in the policy",
            field="k",
        )


def settle(
    items: Sequence[Result | Candidates | MatchwrightError], deadline: float | None = None
) -> list[Result | MatchwrightError]:
    """Answers in the place of candidates; those of one ranker share a call. Blocks.

    Args:
        deadline: of the requests, on the ranker's clock.
    """
    made: dict[int, Result] = {}
    blocks: dict[int, list[int]] = {}
    for n, one in enumerate(items):
        if isinstance(one, Candidates):
            blocks.setdefault(id(one.ranker), []).append(n)
    for members in blocks.values():
        block = [one for n in members if isinstance(one := items[n], Candidates)]
        ranker = block[0].ranker
        done = ranker.finish(block, ranker.ask_blocking(block, deadline))
        made |= dict(zip(members, done, strict=True))
    return [made[n] if isinstance(one, Candidates) else one for n, one in enumerate(items)]


__all__ = [
    "Candidates",
    "Infers",
    "Ranker",
    "RankerSource",
    "Scored",
    "TreesLike",
    "late",
    "ranker_of",
    "reason_of",
    "refuse_k",
    "settle",
]
