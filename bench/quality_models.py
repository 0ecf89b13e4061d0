"""What served models bring on real views: the encoder in the first phase, the ranker in the second.

    python bench/quality_models.py --json [--data ../shared/data] [--encoder DIR] [--cache DIR]

Candidates ask with what they viewed before, and the last view is to be found among all jobs. Views
stand in for hires: nobody knows here who was hired. Half of the candidates are learnt from and
never judged, the other half is judged and never learnt from. One JSON object on stdout:

``tfidf``            plain TF-IDF cosine on the same strings, fitted on the jobs
``popularity``       views of the training candidates before that moment
``embedded``         the first phase with the encoder that a refit fits
``served``           the first phase with the encoder of ``--encoder``, served by a local Triton
``cosine``           the cosine of that encoder's embeddings and nothing else, in float64
``embedded+ranker``  the first 1,000 of ``embedded`` in the order of a served, trained ranker
``served+ranker``    the same of ``served``

Generations are fitted on the jobs and on training candidates; judged candidates come into the store
after that. Rankers learn from what the first phase would have shown training candidates, since
nobody logged what was shown; features are joined afterwards (FEATURES_NOT_POINT_IN_TIME).

Encoding takes minutes: ``--cache DIR`` keeps the stores, and a second run sends nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import polars as pl
from numpy.typing import NDArray
from quality import first_rank, say, tfidf_scores
from quality_views import Case, Views, read_views

from matchwright.engine.config import ModelsConfig, tritonserver_in
from matchwright.engine.errors import DependencyUnavailable, MatchwrightError
from matchwright.engine.generation.text import prepare
from matchwright.engine.matcher import Matcher
from matchwright.engine.models.local_server import LocalServer, find_tritonserver
from matchwright.engine.models.opened import Models
from matchwright.engine.models.repository import add_encoder, add_ranker
from matchwright.engine.policy import Policy
from matchwright.engine.prose import prose
from matchwright.engine.request import Request
from matchwright.engine.rerank import gate
from matchwright.engine.rerank.bias import Method
from matchwright.engine.rerank.decisions_join import joiner
from matchwright.engine.rerank.decisions_read import Logged, read
from matchwright.engine.rerank.export import write_ranker
from matchwright.engine.rerank.features import FEATURES, FEATURES_VERSION
from matchwright.engine.rerank.rerank_models import Rankers
from matchwright.engine.rerank.train import Settings, Trained, excluded_by, train
from matchwright.engine.results import Result
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops, get_ops

Floats = NDArray[np.float64]
EncoderName = Literal["embedded", "served"]
ENCODERS: tuple[EncoderName, ...] = ("embedded", "served")
RANKED = "+ranker"
CANDIDATES = 1_000
"""Of the first phase that the ranker orders; what lies beyond counts as not found by any method."""
SHOWN = 200
"""Of the first phase that a training decision holds."""
MAX_TOKENS = 128
"""Of the served encoder's texts: titles and the most recent views come first."""
PAIRS = (
    ("embedded", "tfidf"), ("embedded", "popularity"), ("served", "tfidf"),
    ("served", "popularity"), ("served", "embedded"), ("served", "cosine"),
    ("embedded+ranker", "embedded"), ("served+ranker", "served"), ("served+ranker", "tfidf"),
    ("served+ranker", "embedded"),
)  # fmt: skip
"""(a method, what it is compared with)."""
SETTINGS: Mapping[str, Any] = {"leaves": 4, "learning_rate": 0.03, "rows_in_leaf_min": 3_000}
"""Of training: chosen among four on the later days of training candidates. One view in 200 rows is
little to learn from: the defaults learn it by heart."""
BOOTSTRAPS = 2_000
_AT_ONCE = 100
_PATIENCE_MS = 60_000


# ── What is measured ──────────────────────────────────────────────────────────────────────────


def figures_of(rank_n: Floats) -> dict[str, Floats]:
    """Figures of each query whose one relevant row has a rank; infinity where it was not found."""
    return {
        "mrr": 1.0 / rank_n,
        "ndcg@10": np.where(rank_n <= 10, 1.0 / np.log2(1.0 + rank_n), 0.0),
        "recall@50": (rank_n <= 50).astype(np.float64),
    }


def summary(ranks: Mapping[str, Floats]) -> dict[str, Any]:
    """Means of each method, and differences with 95% paired bootstrap intervals by candidate."""
    n = len(next(iter(ranks.values())))
    draws = np.random.default_rng(0).integers(0, n, (BOOTSTRAPS, n))
    per = {name: figures_of(rank_n) for name, rank_n in ranks.items()}
    means = {
        name: {figure: round(float(v.mean()), 4) for figure, v in told.items()}
        for name, told in per.items()
    }
    differences = {
        f"{one} minus {other}": {
            figure: _interval(per[one][figure] - per[other][figure], draws) for figure in per[one]
        }
        for one, other in PAIRS
        if one in per and other in per
    }
    return {"queries": n, "means": means, "differences": differences}


def _interval(difference: Floats, draws: NDArray[np.int64]) -> dict[str, float]:
    low, high = np.quantile(difference[draws].mean(axis=1), [0.025, 0.975])
    told = {"mean": difference.mean(), "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in told.items()}


# ── Beside the engine ─────────────────────────────────────────────────────────────────────────


def baselines(views: Views) -> dict[str, Floats]:
    """Ranks by TF-IDF and by popularity; what somebody viewed before is left out."""
    people, jobs = views.people(views.judged), views.job_frame()
    tfidf = tfidf_scores(prepare(people).to_list(), prepare(jobs).to_list())
    found: dict[str, list[float]] = {"tfidf": [], "popularity": []}
    for n, case in enumerate(views.judged):
        for name, score in (("tfidf", tfidf(n)), ("popularity", views.popular_before(case.order))):
            score_n = np.array(score, dtype=np.float64)
            score_n[list(case.earlier)] = -np.inf
            found[name].append(first_rank(score_n, np.array([case.target])))
    return {name: _cut(np.array(rank_n)) for name, rank_n in found.items()}


def _cut(rank_n: Floats) -> Floats:
    """What lies beyond the candidates counts as not found."""
    return np.where(rank_n <= CANDIDATES, rank_n, np.inf)


# ── The engine ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Bench:
    """What all steps share.

    Attributes:
        views: the data.
        ops: the kernels.
        server: the Triton server; it serves ``repo``.
        models: its client, and the same folder.
        cache: where stores are kept.
        folder: for what is not kept.
        threads: of training.
    """

    views: Views
    ops: Ops
    server: LocalServer
    models: Models
    cache: Path
    folder: Path
    threads: int

    def matcher(self, store: Store, version: int | None = None) -> Matcher:
        """A matcher of the shipped policy, with a second phase by this version of the ranker."""
        if version is None:
            return Matcher(store.snapshot(), self.ops, Policy.load())
        section = f"version = {version}\ncandidates = {CANDIDATES}\ntimeout_ms = {_PATIENCE_MS}\n"
        policy = Policy.parse(f"[rerank]\n{section}")
        return Matcher(store.snapshot(), self.ops, policy, Rankers(self.models))

    def answers(self, matcher: Matcher, cases: Sequence[Case], k: int) -> Iterator[Result]:
        """The answer to each case; what was viewed before is excluded."""
        jobs = self.views.jobs
        at_once = _AT_ONCE if matcher.ranker is None else 10
        for low in range(0, len(cases), at_once):
            requests = [
                Request(
                    kind="freelancer", id=case.id, k=k, as_of=case.day, count=False,
                    contributions=False, exclude_ids=[jobs[n]["Job.ID"] for n in case.earlier],
                )
                for case in cases[low : low + at_once]
            ]  # fmt: skip
            for answer in matcher.match_many(requests):
                if isinstance(answer, MatchwrightError):
                    raise answer
                if answer.rerank is not None and answer.rerank.degraded is not None:
                    raise DependencyUnavailable(f"degraded ({answer.rerank.degraded}); run again")
                yield answer

    def ranks(self, matcher: Matcher) -> Floats:
        """float64 (N,): rank of what each judged candidate viewed, infinity where not found."""
        found = []
        answers = self.answers(matcher, self.views.judged, CANDIDATES)
        for case, answer in zip(self.views.judged, answers, strict=True):
            target = self.views.jobs[case.target]["Job.ID"]
            ids = list(answer.ids)
            found.append(float(ids.index(target) + 1) if target in ids else np.inf)
        return np.array(found)


@contextlib.contextmanager
def opened(bench: Bench, encoder: EncoderName) -> Iterator[Store]:
    """The store of an encoder, filled; a second time nothing is encoded again.

    The generation is fitted before judged candidates are there. Killed in between, the next run
    goes on with the embeddings that were made.
    """
    name = bench.models.encoder().content_hash if encoder == "served" else encoder
    folder = bench.cache / f"views-{bench.views.digest[:12]}-{name[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    fitted, views = folder / "fitted", bench.views
    with Store.open(
        folder / "store", mode="w", create=not (folder / "store").exists(), models=bench.models,
        wait_s=5.0,
    ) as store:  # fmt: skip
        if not fitted.exists():
            store.upsert("job", views.job_frame())
            store.upsert("freelancer", views.people(views.last))
            as_of = max(case.day for case in views.training)
            store.refit(seed=1, sample=20_000, as_of=as_of, encoder=encoder, tell=_tell(encoder))
            fitted.touch()
        store.upsert("freelancer", views.people([*views.training, *views.judged]))
        store.seal()
        yield store


def _tell(encoder: str) -> Any:
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() > last + 15:
            last = time.monotonic()
            say(f"{encoder}: {done:,} of {total:,} records have their embedding")

    return tell


def cosine_ranks(views: Views, store: Store) -> Floats:
    """Ranks by the embeddings that the store keeps."""
    jobs, people = views.job_frame(), views.people(views.judged)
    job_nd, person_qd = (
        store.generation.encoder.encode_prose(
            [prose(title, text, "") for title, text in frame.select("title", "text").rows()]
        )
        for frame in (jobs, people)
    )
    found = []
    for case, person_d in zip(views.judged, person_qd, strict=True):
        score_n = job_nd @ person_d
        score_n[list(case.earlier)] = -np.inf
        found.append(first_rank(score_n, np.array([case.target])))
    return _cut(np.array(found))


# ── The ranker ────────────────────────────────────────────────────────────────────────────────


def decisions(bench: Bench, matcher: Matcher) -> pl.DataFrame:
    """What the first phase would have shown training candidates, and what they viewed next.

    Cases whose view is not among the first ``SHOWN`` tell nothing and are left out.
    """
    parts = []
    cases = bench.views.training
    for case, answer in zip(cases, bench.answers(matcher, cases, SHOWN), strict=True):
        target = bench.views.jobs[case.target]["Job.ID"]
        ids = list(answer.ids)
        if target not in ids:
            continue
        viewed = [case.at if name == target else None for name in ids]
        place = np.arange(1, len(ids) + 1, dtype=np.int32)
        columns = {"candidate_id": ids, "position": place, "first_rank": place}
        at = pl.lit(case.at).cast(pl.Datetime("us", "UTC"))
        parts.append(
            pl.DataFrame(columns).with_columns(
                decision_id=pl.lit(case.id), query_id=pl.lit(case.id), decided_at=at,
                asking=pl.lit("freelancer"),
                viewed_at=pl.Series(viewed, dtype=pl.Datetime("us", "UTC")),
            )
        )  # fmt: skip
    return pl.concat(parts)


def logged(bench: Bench, store: Store, matcher: Matcher, encoder: str) -> Logged:
    """Decisions with features of today: nobody logged those of that moment."""
    path = bench.folder / f"decisions-{encoder}.parquet"
    decisions(bench, matcher).write_parquet(path)
    names = tuple(one.name for one in FEATURES)
    join = joiner(store.snapshot(), matcher)
    return read([path], join=join, joined=(names, FEATURES_VERSION)).ordered(names)


def ranker(bench: Bench, told: Logged, encoder: str) -> tuple[int, Trained]:
    """Trains, adds to the repository and loads a ranker; (its version, what was trained)."""
    settings = Settings(
        label="viewed", correction=Method.NONE, threads=bench.threads,
        excluded=excluded_by(Policy.load()), **SETTINGS,
    )  # fmt: skip
    made = train(told, settings)
    folder = bench.folder / f"ranker-{encoder}"
    write_ranker(
        folder, made.text, features=made.trees.features, grid_bits=made.grid_bits,
        features_version=FEATURES_VERSION, version=1, training=made.record,
    )  # fmt: skip
    repository = bench.models.config.repository
    assert repository is not None
    version = add_ranker(repository, folder, backend="python").version
    bench.models.client.load("ranker")
    return version, made


def told_of(made: Trained, told: Logged) -> dict[str, Any]:
    """What of a training belongs beside the figures."""
    verdict = gate.judge(made.evaluation, None)
    lost = sorted(made.evaluation["importance"].items(), key=lambda item: -item[1])
    return {
        "warnings": list(told.warnings),
        "position_bias": "not corrected: what was shown at which position is not known",
        "decisions": int(told.day_d.size),
        "rows": int(told.position.size),
        "trees": made.record["trees"],
        "on_later_days_of_training_candidates": made.evaluation["metrics"],
        "gate": "passes" if verdict.passed else list(verdict.refusals),
        "importance": dict(lost[:8]),
    }


def engine(bench: Bench, encoder: EncoderName) -> tuple[dict[str, Floats], dict[str, Any]]:
    """(ranks by method, what is to be said of the ranker)."""
    began = time.monotonic()
    with opened(bench, encoder) as store:
        say(f"{encoder}: store filled after {time.monotonic() - began:.0f} s")
        plain = bench.matcher(store)
        found: dict[str, Floats] = {encoder: bench.ranks(plain)}
        if encoder == "served":
            found["cosine"] = cosine_ranks(bench.views, store)
        with_features = logged(bench, store, plain, encoder)
        say(f"{encoder}: {with_features.day_d.size:,} decisions to learn from")
        version, made = ranker(bench, with_features, encoder)
        found[encoder + RANKED] = bench.ranks(bench.matcher(store, version))
        say(f"{encoder}: done after {time.monotonic() - began:.0f} s")
    return found, told_of(made, with_features)


# ── All of it ─────────────────────────────────────────────────────────────────────────────────


def measure(data: Path, encoder: Path, cache: Path, folder: Path, threads: int) -> dict[str, Any]:
    """All figures.

    Raises:
        DependencyUnavailable: there is no Triton server.
    """
    views = read_views(data / "job_views")
    repo = folder / "models"
    artefact = add_encoder(repo, encoder, backend="python", max_tokens=MAX_TOKENS)
    found = find_tritonserver(None, tritonserver_in(os.environ))
    ranks, rankers = baselines(views), {}
    server = LocalServer(repository=repo, models=["encoder"], found=found, threads=threads)
    with server, Models(ModelsConfig(repository=repo, triton=server.url)) as models:
        ops = get_ops("cpu", threads=threads)
        bench = Bench(views, ops, server, models, cache, folder, threads)
        for name in ENCODERS:
            more, rankers[name] = engine(bench, name)
            ranks |= more
    return {
        "note": "views stand in for hires",
        "jobs": len(views.jobs),
        "training_candidates": len(views.last),
        "training_cases": len(views.training),
        "encoder": {"content_hash": artefact.content_hash, "max_tokens": MAX_TOKENS},
        **summary(ranks),
        "rankers": rankers,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; 0 unless a part could not be measured, then 6."""
    beside = Path(__file__).parents[2] / "shared"
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=beside / "data")
    parser.add_argument("--encoder", type=Path, default=beside / "models" / "all-MiniLM-L6-v2",
                        help="a folder with model.onnx and tokenizer.json")  # fmt: skip
    parser.add_argument("--cache", type=Path, help="keeps stores with embeddings; none by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="it is JSON anyway")
    told = parser.parse_args(argv)
    began = time.monotonic()
    result: dict[str, Any] = {"passed": False}
    missing = [str(path) for path in (told.data, told.encoder) if not path.is_dir()]
    if missing:
        result["skipped"] = f"no folder {', '.join(missing)}"
    else:
        with tempfile.TemporaryDirectory(prefix="matchwright-quality-") as name:
            folder = Path(name)
            try:
                figures = measure(
                    told.data, told.encoder, told.cache or folder, folder, told.threads
                )
                result = {"passed": True, **figures}
            except DependencyUnavailable as error:
                result["skipped"] = str(error)
    result["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(result, indent=1))
    return 0 if result["passed"] else 6


if __name__ == "__main__":
    sys.exit(main())
