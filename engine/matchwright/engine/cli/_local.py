"""Asks the store in a folder, in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matchwright.engine.cli._models_options import opened
from matchwright.engine.cli._progress import say
from matchwright.engine.cli._source import NO_MODELS, Device, Second
from matchwright.engine.device import make_ready, open_ops
from matchwright.engine.errors import MatchwrightError
from matchwright.engine.matcher import Matcher
from matchwright.engine.policy import Policy
from matchwright.engine.records import Kind
from matchwright.engine.request import Request
from matchwright.engine.rerank.rerank_models import Rankers
from matchwright.engine.results import Result
from matchwright.engine.store import Snapshot, Store


class Local:
    """A matcher over one snapshot: every answer of a command names the same epoch."""

    def __init__(self, snapshot: Snapshot, matcher: Matcher) -> None:
        self._snapshot = snapshot
        self._matcher = matcher

    def match(self, request: Request) -> Result:
        return self._matcher.match(request)

    def match_many(self, requests: Sequence[Request]) -> Sequence[Result | MatchwrightError]:
        return self._matcher.match_many(requests)

    def explain(self, job: Any, freelancer: Any, **options: Any) -> Any:
        return self._matcher.explain(job, freelancer, **options)

    def count(self, kind: Kind) -> int:
        return self._snapshot.count(kind)

    def ids(self, kind: Kind, batch: int) -> Iterator[list[str]]:
        """The ids of all living rows, in batches, in the order of the store's rows."""
        base = 0
        for segment, alive in self._snapshot.corpus(kind).parts:
            local = np.arange(segment.n) if alive is None else np.flatnonzero(alive)
            for start in range(0, local.size, batch):
                yield self._snapshot.ids_of(kind, base + local[start : start + batch])
            base += segment.n


@contextlib.contextmanager
def local(
    folder: Path, policy: Path | None, device: Device, second: Second = NO_MODELS
) -> Iterator[Local]:
    """A matcher over the newest epoch of the store in ``folder``."""
    loaded = Policy.load(policy)
    if not second.rerank:
        loaded = loaded.without_rerank()
    told: list[str] = []  # an error stays the only line on stderr
    ops = open_ops(device.value, say=told.append)
    with opened(second.models) as models, Store.open(folder, models=models) as store:
        rankers = None if models is None else Rankers(models)
        snapshot = store.snapshot()
        make_ready(ops, snapshot, loaded, say=told.append)
        yield Local(snapshot, Matcher(snapshot, ops, loaded, rankers))
    for each in told:
        say(each)
