"""Which policy is in force, and how another one takes its place while calls are answered.

The next policy is read and checked in full beside the one in force: that its ranker lies in the
repository, that its features fit the policy, that the server has that version ready and serves
what the repository's trees say. Only then all marketplaces switch, at one moment. A policy that
fails any of it changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from matchwright.engine.config import ServerConfig
from matchwright.engine.errors import FailedPrecondition, InvalidArgument, VerificationFailed
from matchwright.engine.matcher import Matcher, OnKernels
from matchwright.engine.models.description import ENCODER
from matchwright.engine.models.opened import Models
from matchwright.engine.models.refs import ModelRef
from matchwright.engine.policy import Policy
from matchwright.engine.rerank.features import FEATURES, INDEX
from matchwright.engine.rerank.rerank import Ranker
from matchwright.engine.rerank.rerank_models import Rankers
from matchwright.engine.rerank.rerank_order import on_grid
from matchwright.engine.service.marketplace import Marketplace
from matchwright.kernels.ops import Ops
from matchwright.kernels.types import Int32

CHECK_S = 10.0
"""How long the server may take to show that it serves a version."""
LOOK_S = 0.25
"""How long one question may take whether a model is ready, when the parts are looked at."""
PROBES = 256

_log = logging.getLogger(__name__)


class Policies:
    """Reads policies, and makes matchers under them.

    Args:
        config: names the policy's file and the limits that it has to allow.
        models: where rankers come from; None for none.
    """

    def __init__(self, config: ServerConfig, models: Models | None) -> None:
        self._config, self._models = config, models
        self._rankers = None if models is None else Rankers(models)

    def read(self) -> Policy:
        """The policy as its file says it now.

        Raises:
            NotFound, InvalidArgument: no file, or not one that can be in force here.
        """
        policy, most = Policy.load(self._config.policy), self._config.limits.batch_items_max
        allowed = policy.budgets.batch_max
        if allowed < most:
            raise InvalidArgument(
                f"the policy's batch_max is {allowed:,}, below batch_items_max = {most:,}; raise "
                "the one or lower the other",
                field="batch_items_max",
            )
        return policy

    def matcher(self, policy: Policy, source: Any, ops: Ops, told: OnKernels | None) -> Matcher:
        """A matcher under a policy.

        Args:
            source: where epochs come from.
            told: of searches, as ``Matcher.on_kernels``.

        Raises:
            FailedPrecondition: there is no such ranker, or it does not fit the policy.
            NotFound, StoreDamaged: the repository does not hold it, or not whole.
        """
        made = Matcher(source, ops, policy, self._rankers)
        made.on_kernels = told
        return made

    def next(self, markets: Mapping[str, Marketplace]) -> dict[str, Matcher]:
        """Matchers under the policy that the file says now, checked; none when it is in force.

        Blocks, for ``CHECK_S`` at most when a server does not answer.

        Raises:
            MatchwrightError: the policy cannot be in force; the message says why.
        """
        policy = self.read()
        now = {name: market.now().matcher for name, market in markets.items()}
        if all(matcher.policy.id == policy.id for matcher in now.values()):
            return {}
        made = {
            name: self.matcher(policy, one.source, one.ops, one.on_kernels)
            for name, one in now.items()
        }
        before = {matcher.ranker for matcher in now.values()}
        for ranker in {one.ranker for one in made.values()} - before - {None}:
            assert ranker is not None
            assert self._models is not None, "a ranker comes from somewhere"
            check_served(ranker, self._models)
        return made


def check_served(ranker: Ranker, models: Models) -> None:
    """See that a version is ready, and that what is served is what the repository's trees say.

    Raises:
        FailedPrecondition: it is not ready.
        ModelUnavailable, ModelLate, ModelWrong: it could not be asked.
        VerificationFailed: it is another model under this number.
    """
    deadline, url = time.monotonic() + CHECK_S, models.config.triton
    if not models.client.ready(ranker.ref, deadline=deadline):
        raise FailedPrecondition(
            f"{ranker} is not ready at {url}; load it first: matchwright models load ranker "
            f"--version {ranker.version} --server {url}",
            model=str(ranker),
        )
    rows_nf = probes(ranker)
    served = on_grid(ranker.served(rows_nf, deadline), ranker.trees.grid_bits)
    if served is None or not np.array_equal(served, ranker.trees.score(rows_nf)):
        raise VerificationFailed(
            f"what {url} serves as {ranker} is not what {models.config.repository} holds under "
            "this version; see that both are the same folder, and load it again",
            model=str(ranker),
        )


def probes(ranker: Ranker, n: int = PROBES) -> Int32:
    """int32 (N, F): rows of any values that the features can have, the same each time."""
    random = np.random.default_rng(ranker.version)
    features = [FEATURES[INDEX[name]] for name in ranker.trees.features]
    columns = [random.integers(one.low, one.high, n, endpoint=True) for one in features]
    return np.stack(columns, axis=1).astype(np.int32)


def in_use(markets: Iterable[Marketplace]) -> list[ModelRef]:
    """The models that answers need now: rankers in force, encoders of the newest generations."""
    found: set[ModelRef] = set()
    for market in markets:
        matcher = market.now().matcher
        if matcher.ranker is not None:
            found.add(matcher.ranker.ref)
        served = matcher.snapshot().generation.manifest.text.served
        if served:
            found.add(ModelRef(ENCODER, served.version))
    return sorted(found)


def trouble_of(models: Models, markets: Iterable[Marketplace]) -> str | None:
    """The first model in use that does not answer, and why; None when all do. Blocks shortly."""
    client = models.client
    refs = in_use(markets)
    if refs and not client.ready(deadline=time.monotonic() + LOOK_S):
        return "UNREACHABLE"
    for ref in refs:
        if not client.ready(ref, deadline=time.monotonic() + LOOK_S):
            return f"{ref} NOT_READY"
    return None
