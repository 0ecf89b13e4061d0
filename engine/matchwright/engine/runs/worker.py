"""What another process does for a run: holds rows of the corpus and answers blocks of queries.

Plain Python: ``ray_executor`` makes actors of it, ``processes`` serves it over a socket pair.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matchwright.engine.device import make_ready, open_ops
from matchwright.engine.errors import FailedPrecondition
from matchwright.engine.matcher import OTHER
from matchwright.engine.records import Kind
from matchwright.engine.runs import block
from matchwright.engine.runs.block import BlockAnswer, Found
from matchwright.engine.runs.execute import Questions
from matchwright.engine.runs.plan import Plan, Unit
from matchwright.engine.runs.prepare_block import PreparedBlock
from matchwright.engine.runs.shards import shard
from matchwright.kernels.types import Corpus

if TYPE_CHECKING:
    from matchwright.engine.store import Snapshot


class Shard:
    """One share of the rows that are searched. Thread-safe: one unit is searched at a time, and
    the next one prepared meanwhile.

    Args:
        store: the store's folder on this node, or a copy of it that was pulled there.
        plan: ``plan.json``.
        number, of: which shard.
        device, threads, memory_bytes, device_memory_bytes: as ``get_ops`` takes them.
    """

    def __init__(
        self,
        store: str,
        plan: bytes,
        number: int,
        of: int,
        device: str,
        threads: int,
        memory_bytes: int,
        device_memory_bytes: int | None = None,
    ) -> None:
        self._store, self._number, self._of = store, number, of
        self._plan = Plan.from_json(plan)
        self._ops = (device, threads, memory_bytes, device_memory_bytes)
        self._corpora: dict[Kind, Corpus] = {}
        self._questions: Questions | None = None
        self._device, self._asking = threading.Lock(), threading.Lock()

    def open(self) -> dict[str, Any]:
        """Map the shard's rows and wake the device; what is there.

        Raises:
            NotFound, StoreError: there is no store in the folder, or it is damaged.
            EpochGone, FailedPrecondition: it does not hold the plan's epoch.
        """
        from matchwright.engine.store import Store

        device, threads, memory_bytes, device_memory_bytes = self._ops
        self.ops = open_ops(
            device,
            threads=threads,
            memory_bytes=memory_bytes,
            device_memory_bytes=device_memory_bytes,
        )
        self._opened = Store.open(Path(self._store))  # for as long as the actor lives
        self._snapshot: Snapshot = self._opened.snapshot(epoch=self._plan.epoch_number)
        if str(self._snapshot.epoch) != self._plan.epoch:
            raise FailedPrecondition(
                f"{self._store} holds {self._snapshot.epoch}, and run {self._plan.run_id} needs "
                f"{self._plan.epoch}; pull that epoch to this node"
            )
        for kind in self._plan.options.kinds:
            corpus = self._snapshot.corpus(OTHER[kind])
            self._corpora[kind] = shard(corpus, self._number, self._of)
        searched = {OTHER[kind]: corpus for kind, corpus in self._corpora.items()}
        options = self._plan.options
        make_ready(self.ops, self._snapshot, options.policy, as_of=options.as_of, corpora=searched)
        return {
            "pid": os.getpid(),
            "device": self.ops.name,
            "rows": {kind: corpus.n for kind, corpus in self._corpora.items()},
        }

    def search(self, prepared: PreparedBlock) -> Found:
        """The best rows of the shard for each query of a block."""
        corpus = None if self._of == 1 else self._corpora[prepared.kind]
        with self._device:
            return block.search(self.ops, self._snapshot, prepared, self._plan.options, corpus)

    def answer(self, unit: Unit) -> BlockAnswer:
        """A whole unit, prepared here; of an actor that holds all rows."""
        with self._asking:
            if self._questions is None:
                self._questions = Questions(self._snapshot, self._plan)
        prepared, plan = self._questions.prepare(unit), self._plan
        found = self.search(prepared)
        return block.answer(
            self._snapshot, prepared, found, plan.options, plan.policy_id, plan.ranker
        )
