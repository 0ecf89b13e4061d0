"""Where the kernels run: chosen with a reason, planned, loaded and checked before anything is
answered.

A device passes three gates before it answers: its rows must fit (or the epoch is refused, with the
shard that would fit), its answers to questions of this very store must be the reference's (or
nothing is answered at all), and what was uploaded must have arrived.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from matchwright.engine.errors import DependencyUnavailable, VerificationFailed
from matchwright.engine.matcher import OTHER, Matcher, as_queries
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import Prepared, SnapshotLike, prepare
from matchwright.engine.records import KINDS, Kind
from matchwright.engine.request import Request
from matchwright.engine.runs.subcorpus import as_corpus, gather, living_rows
from matchwright.kernels.cuda_search import device_costs
from matchwright.kernels.cupy_ops import CupyOps, DeviceMismatch
from matchwright.kernels.device import DeviceError
from matchwright.kernels.device_check import compare, compare_resident
from matchwright.kernels.enduring import EnduringOps
from matchwright.kernels.faults import Fault, fault_of
from matchwright.kernels.health import Health
from matchwright.kernels.memory_plan import MemoryPlan, plan_memory
from matchwright.kernels.ops import Ops, get_ops
from matchwright.kernels.resident import corpus_segments, resident_bytes
from matchwright.kernels.types import Corpus, Segment

SAMPLE_ROWS, SAMPLE_QUERIES, TIED = 6_000, 80, 64
"""Of the store, for the comparison at the start: rows, queries of each kind, and how many rows
get one and the same vector, so that ties are decided."""
CHECK_KS = (1, 10, 100, 1_000)
FEW = (1, 12, 30, 60)
"""Sizes of smaller batches that are compared too: each has a kernel of its own."""
STALE_S = 1.0
"""So long an older epoch may answer while a newer one is on its way to the device."""

Say = Callable[[str], None]
_log = logging.getLogger(__name__)


def open_ops(
    asked: str,
    *,
    threads: int | None = None,
    memory_bytes: int = 256 << 20,
    device_memory_bytes: int | None = None,
    say: Say | None = None,
) -> Ops:
    """The backend that is asked for, and one line that says what was chosen and why.

    Args:
        say: is told that, and of the device's first fault of each kind and its loss; None: the log.

    Raises:
        DependencyUnavailable: "gpu" was asked for and there is none; the message says why.
        VerificationFailed: there is one, and its answers are wrong.
    """
    try:
        ops = get_ops(
            asked,
            threads=threads,
            memory_bytes=memory_bytes,
            device_memory_bytes=device_memory_bytes,
        )
    except DeviceMismatch as error:
        raise VerificationFailed(str(error)) from None
    except DeviceError as error:
        why = getattr(error, "why", "")
        raise DependencyUnavailable(
            f"--device {asked}: {error}; matchwright doctor tells more", why=str(why)
        ) from None
    (say or _log.info)(ops.health.chosen)
    if ops.health.on_device:
        ops.health.listeners.append(_Trouble(say or _log.error))
    return ops


_FAULTS = {
    Fault.MEMORY: "out of memory; calls go in halves, or to the CPU",
    Fault.CALL: "a call failed and went to the CPU",
}


class _Trouble:
    """Tells of the first fault of each kind and of the loss, once each."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, health: Health) -> None:
        if health.lost is not None:
            self._once(Fault.LOST, health.device)
            return
        for fault, words in _FAULTS.items():
            if health.errors[fault.value]:
                self._once(fault, f"{health.device}: {words} (told once)")

    def _once(self, fault: Fault, line: str) -> None:
        with self._lock:
            new = fault not in self._told
            self._told.add(fault)
        if new:
            self._say(f"device: {line}")


def device_plan(ops: Ops, corpora: Mapping[str, Corpus]) -> MemoryPlan:
    """What corpora take on the device that ``ops`` has; without one, what they would take."""
    there, budget = _device_ops(ops), None
    if there is not None:
        segments = corpus_segments(list(corpora.values()))
        resident = there.resident
        own = sum(map(resident_bytes, segments)) - resident.missing_bytes(segments)
        budget = resident.budget_bytes - resident.nbytes + own
    return plan_memory(corpora, temporary_bytes=ops.memory_bytes, budget_bytes=budget)


def plan_corpora(snapshot: SnapshotLike, kinds: Sequence[Kind]) -> dict[str, Corpus]:
    """What is searched when entities of these kinds ask, by name."""
    return {f"{OTHER[kind]}s": snapshot.corpus(OTHER[kind]) for kind in kinds}


def make_ready(
    ops: Ops,
    snapshot: SnapshotLike,
    policy: Policy,
    *,
    kinds: Sequence[Kind] = KINDS,
    as_of: int | None = None,
    corpora: Mapping[Kind, Corpus] | None = None,
    seed: int = 0,
    say: Say = _log.info,
) -> None:
    """Print the plan, compare answers, load the rows, measure; nothing to do for the CPU.

    Args:
        kinds: who will ask.
        corpora: what is searched, by kind, where it is a part of the snapshot's rows.
        as_of: the day of the questions that are compared; None for 20,000, any day will do.

    Raises:
        DependencyUnavailable: "gpu" was asked for, and the rows do not fit, or the device failed.
        VerificationFailed: the device's answers are wrong.
    """
    there = _device_ops(ops)
    if there is None:
        return
    if corpora is None:
        corpora = {OTHER[kind]: snapshot.corpus(OTHER[kind]) for kind in kinds}
    plan = device_plan(ops, {f"{kind}s": corpus for kind, corpus in corpora.items()})
    for line in plan.lines():
        say(line)
    refusal = plan.refusal()
    if refusal is not None:
        if ops.health.asked == "gpu":
            number = snapshot.epoch.number
            raise DependencyUnavailable(f"epoch {number}: {refusal}; or --device cpu")
        assert isinstance(ops, EnduringOps)
        ops.leave(refusal)
        say(ops.health.chosen)
        return
    try:
        _load_and_check(there, snapshot, policy, corpora, 20_000 if as_of is None else as_of, seed)
    except DeviceMismatch as error:
        raise VerificationFailed(str(error)) from None
    except Exception as error:
        if fault_of(error) is None:
            raise
        if ops.health.asked == "gpu":
            raise DependencyUnavailable(
                f"--device gpu: the device failed at the start: {error}"
            ) from error
        assert isinstance(ops, EnduringOps)
        ops.give_up(error)  # and so tells whoever ``open_ops`` was told to tell


def _device_ops(ops: Ops) -> CupyOps | None:
    return ops.device_ops if isinstance(ops, EnduringOps) else None


def _load_and_check(
    ops: CupyOps,
    snapshot: SnapshotLike,
    policy: Policy,
    corpora: Mapping[Kind, Corpus],
    as_of: int,
    seed: int,
) -> None:
    """The sample comes and goes first: it would push out rows that all but fill the device."""
    for kind, corpus in corpora.items():
        asking = _questions(snapshot, policy, OTHER[kind], as_of, seed)
        if corpus.n and asking:
            sample, what = _sample(corpus, seed), f"{OTHER[kind]}s of this store"
            compare(ops, sample, as_queries(asking), CHECK_KS, f"{len(asking)} {what}")
            for size in FEW:
                compare(ops, sample, as_queries(asking[:size]), (10,), f"{size} {what}")
            ops.resident.forget(corpus_segments([sample]))
    segments = corpus_segments(list(corpora.values()))
    ops.load(list(corpora.values())).wait()
    compare_resident(ops, segments, seed)
    for d in {int(segment.x_nd.shape[1]) for segment in segments}:
        device_costs(ops, d)  # measured now, and not while the first caller waits


def _questions(
    snapshot: SnapshotLike, policy: Policy, kind: Kind, as_of: int, seed: int
) -> list[Prepared]:
    """Queries of some stored entities, each under its own rules."""
    living = living_rows(snapshot.corpus(kind))
    generator = np.random.default_rng(seed)
    rows = generator.choice(living, min(living.size, SAMPLE_QUERIES), replace=False)
    matcher = Matcher(snapshot, Ops(threads=1), policy)
    requests = [
        Request(kind=kind, id=name, k=1, as_of=as_of) for name in snapshot.ids_of(kind, rows)
    ]
    made = prepare(snapshot, requests, policy.budgets, matcher.effective)
    return [query for query in made if isinstance(query, Prepared)]


def _sample(corpus: Corpus, seed: int) -> Corpus:
    """Some rows as a corpus of two segments; a few of them have the same vector."""
    generator = np.random.default_rng(seed + 1)
    rows = generator.choice(corpus.n, min(corpus.n, SAMPLE_ROWS), replace=False)
    cut = rows.size // 3 + 1
    parts: list[tuple[Segment, Any]] = []
    for some in (rows[:cut], rows[cut:]):
        segment = gather(corpus, some.astype(np.int64))
        segment.x_nd[generator.permutation(some.size)[:TIED]] = segment.x_nd[:1]
        parts.append((segment, generator.random(some.size) < 0.95))
    first = as_corpus(parts[0][0])
    return Corpus((*first.parts, parts[1])) if parts[1][0].n else first


# ── A newer epoch on its way ──────────────────────────────────────────────────────────────────


class LoadedEpochs:
    """A store's newest epoch that is on the device; newer ones are uploaded meanwhile.

    A request that names an epoch, or the least that it must have, gets it, and waits for its
    upload. The others are answered from the newest that has arrived, and from a newer one at last
    ``STALE_S`` seconds after it was seen.

    Args:
        store: where epochs come from.
        ops: the kernels.
        clock: seconds, monotonic.
    """

    def __init__(
        self, store: Any, ops: Ops, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.store, self.ops = store, ops
        self._clock = clock
        self._lock = threading.Lock()
        self._current: Any = None
        self._coming: tuple[Any, Future[None], float] | None = None
        self._pool = ThreadPoolExecutor(1, "matchwright-epochs")

    def snapshot(self, *, epoch: int | None = None, min_epoch: int | None = None) -> Any:
        """As the store's."""
        if epoch is not None or min_epoch is not None:
            return self.store.snapshot(epoch=epoch, min_epoch=min_epoch)
        newest = self.store.snapshot()
        with self._lock:
            if not self.ops.health.on_device:
                self._current = self._coming = None  # nor keep an old epoch's files
                return newest
            first = self._current is None or newest.epoch == self._current.epoch
            if first or self._has_come(newest):
                self._current, self._coming = newest, None
            return self._current

    def _has_come(self, newest: Any) -> bool:
        if self._coming is None or self._coming[0].epoch != newest.epoch:
            # Most of what a newer epoch lacks is on its way already, with the one before it.
            since = self._clock() if self._coming is None else self._coming[2]
            self._coming = newest, self._pool.submit(self._load, newest), since
        _, loading, since = self._coming
        return loading.done() or self._clock() - since >= STALE_S

    def _load(self, snapshot: Any) -> None:
        """Blocks are read and checked here, too, and not by whoever asks."""
        with self._lock:
            coming = self._coming
        if coming is None or coming[0].epoch != snapshot.epoch:
            return  # in force by now, or a newer one is: what this one lacks, that one lacks
        self.ops.load([snapshot.corpus(kind) for kind in KINDS]).wait()


def loaded_epochs(store: Any, ops: Ops) -> Any:
    """The store itself where the CPU answers, else its epochs as the device has them."""
    return LoadedEpochs(store, ops) if ops.health.on_device else store
