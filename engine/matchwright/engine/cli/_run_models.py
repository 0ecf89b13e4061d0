"""The models of a run: the ranker of its policy, pinned and asked; texts that are not encoded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli._failures import harmless
from matchwright.engine.cli._models_options import SharedMemory, models_of, opened
from matchwright.engine.cli._progress import say
from matchwright.engine.errors import (
    FailedPrecondition,
    InvalidArgument,
    MatchwrightError,
    ModelLate,
    ModelUnavailable,
    StoreReadOnly,
)

if TYPE_CHECKING:
    from matchwright.engine.config import ModelsConfig
    from matchwright.engine.policy import Policy
    from matchwright.engine.rerank.rerank import Ranker
    from matchwright.engine.runs.pinned import PinnedRanker
    from matchwright.engine.runs.plan import Plan
    from matchwright.engine.runs.rerank_stage import RerankStage
    from matchwright.engine.store import Snapshot

WAIT_S = 300.0
READY_S = 5.0
"""How long ``run plan`` waits to hear whether the model is served."""

WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        help="How long to wait for a model that does not answer, before ending with code 5.",
    ),
]
AllowDegradedOption = Annotated[
    bool,
    typer.Option(
        "--allow-degraded",
        help="Keep the first phase's order, marked, where the model cannot be asked.",
    ),
]


@dataclass(frozen=True)
class Served:
    """Whose models a run uses, and how long it waits for them. Results do not depend on it."""

    models: Path | None = None
    triton: str | None = None
    tls_ca: Path | None = None
    shared_memory: SharedMemory = SharedMemory.AUTO
    wait_s: float = WAIT_S

    @property
    def config(self) -> ModelsConfig | None:
        """None when neither repository nor server is named."""
        return models_of(
            self.models,
            self.triton,
            tls_ca=self.tls_ca,
            wait_s=self.wait_s,
            shared_memory=self.shared_memory,
        )

    def arguments(self) -> list[str]:
        """The options that a resume needs again."""
        words: list[str] = []
        if self.models is not None:
            words += ["--models", str(self.models.resolve())]
        if self.triton is not None:
            words += ["--triton", self.triton]
        if self.tls_ca is not None:
            words += ["--triton-ca", str(self.tls_ca.resolve())]
        if self.shared_memory is not SharedMemory.AUTO:
            words += ["--shared-memory", self.shared_memory.value]
        if self.wait_s != WAIT_S:
            words += ["--wait", f"{self.wait_s:g}"]
        return words


NOBODY = Served()


def pinned(policy: Policy, served: Served) -> PinnedRanker | None:
    """The model that a policy names, from the repository; None where it does not rerank.

    Raises:
        FailedPrecondition: no repository was named, or the model does not fit policy or engine.
        NotFound, StoreDamaged: the repository does not hold it, or not whole.
    """
    if policy.rerank is None:
        return None
    from matchwright.engine.runs.pinned import PinnedRanker, check_pinned

    if served.models is None:
        check_pinned(policy, None)
    ranker = unserved(served, policy.rerank.version)
    ranker.check(policy)
    return PinnedRanker.of(ranker)


def unserved(served: Served, version: int) -> Ranker:
    """A version of the ranker out of the repository, which asks nobody.

    Raises:
        NotFound, StoreDamaged, FailedPrecondition: as ``pinned``.
    """
    from matchwright.engine.models.description import RANKER
    from matchwright.engine.models.refs import ModelRef
    from matchwright.engine.rerank.rerank import Ranker
    from matchwright.engine.rerank.trees import Trees

    with opened(served.config) as models:
        if models is None:
            raise InvalidArgument("which model repository is not said; give --models DIR")
        trees = Trees.load(models.ranker(version).path)
    nobody: Any = None
    return Ranker(nobody, trees, ModelRef(RANKER, version))


def need_served(plan: Plan, served: Served) -> None:
    """Refuse to begin where the plan has a model, and whoever serves it was not named.

    Raises:
        FailedPrecondition: saying what is missing.
    """
    from matchwright.engine.runs.pinned import NEEDED

    if plan.ranker is not None and (served.models is None or served.triton is None):
        raise FailedPrecondition(f"run {plan.run_id} reranks with {plan.ranker}; {NEEDED}")


@contextlib.contextmanager
def stage_of(plan: Plan, served: Served) -> Iterator[RerankStage | None]:
    """What asks the model of a plan; None where it has none.

    Raises:
        FailedPrecondition: repository or server were not named, or hold another model.
    """
    if plan.ranker is None:
        yield None
        return
    from matchwright.engine.rerank.rerank_models import Rankers
    from matchwright.engine.runs.rerank_stage import RerankStage

    need_served(plan, served)
    with opened(served.config) as models:
        assert models is not None, "a repository was named"
        ranker = Rankers(models).ranker(plan.ranker.version)
        yield RerankStage(plan, ranker, wait_s=served.wait_s)


def readiness(plan: Plan, served: Served) -> str:
    """For people: whether the plan's model is served now."""
    if served.triton is None:
        return "not asked: no server is named (--triton HOST:PORT)"
    import time

    from matchwright.engine.models.description import RANKER
    from matchwright.engine.models.refs import ModelRef

    assert plan.ranker is not None
    with opened(served.config) as models:
        assert models is not None, "a server was named"
        ref = ModelRef(RANKER, plan.ranker.version)
        there = models.client.ready(ref, deadline=time.monotonic() + READY_S)
    return "ready" if there else f"not ready at {served.triton}; a run would wait for it"


def encode_missing(store: Path, snapshot: Snapshot, served: Served) -> None:
    """Has a served encoder make the embeddings that a store lacks; nothing for an embedded one.

    Raises:
        ModelUnavailable: there are some, and no answer for as long as was to be waited.
    """
    from matchwright.engine.store.embeddings_ahead import embed
    from matchwright.engine.store.embeddings_ahead import served as served_by

    encoder = served_by(snapshot.generation)
    if encoder is None or served.models is None or served.triton is None:
        return  # a text that is missing says so itself
    with opened(served.config) as models:
        assert models is not None, "a repository was named"
        for version in models.repository.versions("encoder"):
            if models.encoder(version).content_hash == encoder.content_hash:
                break
        else:
            return
        try:
            done = embed(store, models, version)
        except ModelLate as error:
            raise ModelUnavailable(str(error), model=f"encoder:{version}", why="LATE") from None
        except (FailedPrecondition, StoreReadOnly) as error:
            say(f"texts are not encoded ahead: {harmless(error)}")
            return
    if done.sent:
        say(f"{done.sent:,} texts were encoded by encoder:{version} in {done.seconds:,.1f} s")


def trees_of(plan: Plan, models: Path | None) -> tuple[Any, str]:
    """(the trees of a plan's model, "") out of a repository, or (None, why they are not at hand).

    Raises:
        MatchwrightError: the repository was named, and what it holds cannot be used.
    """
    if plan.ranker is None:
        return None, ""
    if models is None:
        return None, "the model repository was not given (--models DIR)"
    ranker = unserved(Served(models=models), plan.ranker.version)
    try:
        plan.ranker.refuse_other(ranker, plan.run_id)
    except MatchwrightError as error:
        return None, harmless(error)
    return ranker.trees, ""
