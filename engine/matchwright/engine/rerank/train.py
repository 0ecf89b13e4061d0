"""Training a ranker: LambdaMART over logged decisions, exported, and judged as exported.

Labels are gains of outcomes, divided by the chance that their position was looked at
(``rerank/bias.py``). LightGBM's LambdaMART divides each decision by its best possible DCG; with
corrected gains that would undo the correction (a single outcome would count 1 wherever it was), so
decisions are weighted by that best DCG: what is maximised is the corrected DCG itself, of which the
logged one is an unbiased estimate. LightGBM's normalisation of lambdas is off for that reason too.

Decisions are split by whole days: what is judged lies after what was trained on, and outcomes that
came after the split are not known in training.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from matchwright.engine.errors import DependencyUnavailable, InvalidArgument, InvalidData
from matchwright.engine.rerank import bias, evaluate
from matchwright.engine.rerank.bias import Curve, Method
from matchwright.engine.rerank.decisions import OUTCOMES
from matchwright.engine.rerank.decisions_read import Logged, day_text
from matchwright.engine.rerank.evaluate import Judged, ideal_dcg
from matchwright.engine.rerank.export import export_booster
from matchwright.engine.rerank.features import FEATURES
from matchwright.engine.rerank.trees import THRESHOLD_LIMIT, Trees
from matchwright.kernels.types import Float64, Int8

if TYPE_CHECKING:
    import lightgbm

    from matchwright.engine.policy import Policy

GRADED = "graded"
_CLIP = THRESHOLD_LIMIT - 1
_VALIDATION_SHARE = 0.2
_SMOOTHED = 41
_TRUNCATION_MIN = 30
_LIBRARIES = ("lightgbm", "numpy", "polars", "matchwright")
_ONE_AT_A_TIME = threading.Lock()
"""LightGBM keeps the table of gains in a variable of the process."""

Tell = Callable[[str, int, int], None]
"""(what, done, of)."""


@dataclass(frozen=True)
class Settings:
    """How to train. All of it goes into the training record.

    Attributes:
        label: ``graded`` (gain 2^grade - 1, see ``OUTCOMES``), or an outcome: gain 1 for those that
            came to it or further.
        seed: of everything that is drawn.
        rounds: trees, at most; fewer when the last days of training show no gain.
        leaves: of a tree; up to 64 take the quick way through ``Trees``.
        learning_rate, rows_in_leaf_min: LightGBM's.
        threads: LightGBM's; the model is the same for any number, as far as LightGBM promises.
        k: of the figures.
        correction: how positions are corrected.
        weight_max: no outcome counts more than this.
        bootstraps: of the intervals.
    """

    label: str = GRADED
    seed: int = 0
    rounds: int = 300
    leaves: int = 31
    learning_rate: float = 0.05
    rows_in_leaf_min: int = 50
    threads: int = 1
    k: int = 10
    correction: Method = Method.AUTO
    weight_max: float = bias.WEIGHT_MAX
    bootstraps: int = evaluate.BOOTSTRAPS
    excluded: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Feature -> the fields for which it is left out."""

    def __post_init__(self) -> None:
        if self.label != GRADED and self.label not in OUTCOMES:
            raise InvalidArgument(
                f"--label takes {GRADED}, {', '.join(OUTCOMES)}; got {self.label!r}", field="label"
            )
        for name, low, high in (
            ("rounds", 1, 10_000), ("leaves", 2, 4_096), ("threads", 1, 1_024), ("k", 1, 1_000),
            ("rows_in_leaf_min", 1, 10**9), ("bootstraps", 100, 100_000), ("seed", 0, 2**31 - 1),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise InvalidArgument(
                    f"{name} takes {low:,} to {high:,}, got {getattr(self, name):,}", field=name
                )
        if not (0 < self.learning_rate <= 1 and self.weight_max >= 1):
            raise InvalidArgument("learning_rate takes 0 to 1, weight_max at least 1")


@dataclass(frozen=True, eq=False)
class Trained:
    """A ranker, not written yet.

    Attributes:
        text, grid_bits: as exported; ``trees``: the same, parsed.
        curve: the examination curve that it was trained with.
        record: the training record for ``ranker.json``.
    """

    text: str
    grid_bits: int
    trees: Trees
    curve: Curve
    record: dict[str, Any]

    @property
    def evaluation(self) -> dict[str, Any]:
        """The part of the record that the gate reads."""
        found: dict[str, Any] = self.record["evaluation"]
        return found


def method_of(name: str) -> Method:
    """A way of correcting positions, by its name.

    Raises:
        InvalidArgument: there is no such way; the message has all.
    """
    try:
        return Method(name)
    except ValueError:
        raise InvalidArgument(
            f"--position-bias takes {', '.join(Method)}; got {name!r}", field="position_bias"
        ) from None


def excluded_by(policy: Policy) -> dict[str, list[str]]:
    """Feature -> fields that it reads and the policy's input manifest does not list as used."""
    missing = {
        feature.name: [name for name in feature.reads if name not in policy.used]
        for feature in FEATURES
    }
    return {name: fields for name, fields in missing.items() if fields}


def gains(grade: Int8, label: str) -> Float64:
    """float64 (N,): what outcomes are worth before correction."""
    if label == GRADED:
        return np.exp2(grade.astype(np.float64)) - 1.0
    return (grade >= 1 + OUTCOMES.index(label)).astype(np.float64)


def split_day(logged: Logged, asked: int | None = None) -> int:
    """The first day that is judged: as asked, or so that a fifth of the decisions is.

    Raises:
        InvalidData: one side would be empty; a whole day is never cut.
    """
    days = logged.day_d
    day = asked if asked is not None else int(np.sort(days)[int(days.size * 0.8)])
    if not (days < day).any() or not (days >= day).any():
        raise InvalidData(
            f"decisions go from {day_text(days.min())} to {day_text(days.max())}; a split at "
            f"{day_text(day)} leaves nothing on one side: give --split-at a day after the first"
        )
    return day


def train(
    logged: Logged,
    settings: Settings,
    *,
    split_at: int | None = None,
    in_service: Trees | None = None,
    curve: Curve | None = None,
    tell: Tell = lambda what, done, of: None,
) -> Trained:
    """Train on the days before the split, export, and judge the exported model on those after.

    Args:
        split_at: day number; see ``split_day``.
        in_service: the trees that the new ones are compared with, besides the first phase.
        curve: the examination curve, when it is known; estimated otherwise.
        tell: progress.

    Raises:
        DependencyUnavailable: LightGBM is not installed.
        InvalidData: there is nothing to learn from, or to judge by.
    """
    day = split_day(logged, split_at)
    shown = logged.rows(logged.shown) if not logged.shown.all() else logged
    before, after = shown.part(shown.day_d < day), shown.part(shown.day_d >= day)
    grade = before.grade(day)
    curve = curve or bias.estimate(
        before, settings.correction, _Regression(settings, tell), known_until=day,
        weight_max=settings.weight_max,
    )  # fmt: skip
    gain = gains(grade, settings.label) * curve.weight(before.position)
    if not (gain > 0).any():
        raise InvalidData(
            f"no outcome that counts as {settings.label!r} before {day_text(day)}; choose another "
            "--label or a later --split-at"
        )
    booster, chosen = _boosted(before, gain, settings, tell)
    text, grid_bits = export_booster(booster, logged.features)
    trees = Trees.parse(
        text, features=logged.features, grid_bits=grid_bits,
        features_version=logged.features_version,
    )  # fmt: skip
    evaluation = judge(after, trees, in_service, curve, settings, tell)
    record = _record(logged, settings, curve, day, before, after)
    record |= {"trees": trees.trees, "rounds_chosen": chosen, "gain_importance": _gain(booster)}
    return Trained(text, grid_bits, trees, curve, record | {"evaluation": evaluation})


def judge(
    after: Logged,
    trees: Trees,
    in_service: Trees | None,
    curve: Curve,
    settings: Settings,
    tell: Tell = lambda what, done, of: None,
) -> dict[str, Any]:
    """``evaluate.evaluate`` with corrected gains.

    Raises:
        InvalidData: nothing came of any of these decisions.
    """
    gain = gains(after.grade(), settings.label)
    weight = curve.weight(after.position)
    if not (gain > 0).any():
        raise InvalidData(
            f"no outcome that counts as {settings.label!r} after the split; nothing to judge by"
        )
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        tell("permuting features", done, len(trees.features))

    return evaluate.evaluate(
        after, gain * weight, (gain > 0) * weight, trees, in_service,
        k=settings.k, seed=settings.seed, bootstraps=settings.bootstraps, advance=advance,
    ) | {"label": settings.label, "correction": str(curve.method)}  # fmt: skip


def judge_again(logged: Logged, trees: Trees, in_service: Trees | None) -> dict[str, Any]:
    """The evaluation of a trained model on later decisions, as its training record asks.

    Args:
        logged: of them, those from the record's split on are judged.
        trees: loaded from a folder, with their training record.

    Raises:
        InvalidData: the record is none, or no decision lies after the split.
    """
    try:
        told, split = trees.training["settings"], trees.training["data"]["split_at"]
        day = (datetime.date.fromisoformat(split) - datetime.date(1970, 1, 1)).days
        settings = Settings(label=told["label"], seed=told["seed"], k=told["k"])
        curve = bias.from_record(trees.training["correction"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidData(f"the training record cannot be read ({error}); train anew") from None
    after = logged.rows(logged.shown)
    after = after.part(after.day_d >= day)
    if not after.day_d.size:
        raise InvalidData(f"no decision from {split} on; the model was trained on earlier days")
    found = judge(after, trees, in_service, curve, settings)
    return found | {"warnings": list(logged.warnings), "data": logged.digest}


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise DependencyUnavailable(
            "training needs LightGBM: pip install 'matchwright[train]'"
        ) from None
    return lightgbm


def _common(settings: Settings) -> dict[str, Any]:
    return {
        "num_leaves": settings.leaves, "learning_rate": settings.learning_rate,
        "min_data_in_leaf": settings.rows_in_leaf_min, "num_threads": settings.threads,
        "seed": settings.seed, "deterministic": True, "force_row_wise": True,
        "use_missing": False, "verbosity": -1,
    }  # fmt: skip


def _columns(logged: Logged, settings: Settings) -> Float64:
    """What LightGBM sees: clipped where half-integers end; excluded features say nothing."""
    f_nf = np.clip(logged.f_nf, -_CLIP, _CLIP).astype(np.float64)
    for name in settings.excluded:
        if name in logged.features:
            f_nf[:, logged.features.index(name)] = 0.0
    return f_nf


@dataclass(frozen=True)
class _Regression:
    """Relevance by features, for the correction by expectation-maximisation."""

    settings: Settings
    tell: Tell

    def __call__(self, f_nf: Any, target: Float64) -> Float64:
        lightgbm = _lightgbm()
        params = _common(self.settings) | {
            "objective": "cross_entropy", "num_leaves": 16, "learning_rate": 0.2,
        }  # fmt: skip
        self.tell("estimating who looks where", 0, 0)
        data = lightgbm.Dataset(f_nf.astype(np.float64), target)
        booster = lightgbm.train(params, data, 30)
        return np.asarray(booster.predict(f_nf), dtype=np.float64)


def _boosted(
    before: Logged, gain: Float64, settings: Settings, tell: Tell
) -> tuple[lightgbm.Booster, int]:
    """(booster, its rounds): as many as the last fifth of the days asks for, on all days."""
    days = np.unique(before.day_d)
    edge = days[int(days.size * (1 - _VALIDATION_SHARE))] if days.size >= 5 else None
    rounds = settings.rounds
    if edge is not None:
        early_d = before.day_d < edge
        early_n = early_d[before.decision]
        data = _dataset(before.part(early_d), gain[early_n], settings, gain)
        late = _dataset(before.part(~early_d), gain[~early_n], settings, gain)
        if data is not None and late is not None:
            seen: dict[str, Any] = {}
            _fit(data, late, rounds, settings, gain, tell, seen)
            rounds = _best_round(np.array(seen["valid_0"][f"ndcg@{settings.k}"]))
    data = _dataset(before, gain, settings, gain)
    assert data is not None
    return _fit(data, None, rounds, settings, gain, tell), rounds


def _best_round(figure: Float64) -> int:
    """How many trees: the peak of the figure's moving average, since each single value is noise."""
    width = min(_SMOOTHED, figure.size)
    smooth = np.convolve(figure, np.full(width, 1.0 / width), mode="valid")
    return int(np.argmax(smooth)) + (width + 1) // 2


def _dataset(
    logged: Logged, gain: Float64, settings: Settings, all_gains: Float64
) -> lightgbm.Dataset | None:
    """Decisions with something to learn from; None when there are none."""
    judged = Judged(logged.decision, logged.first_rank, gain, gain)
    best_d = ideal_dcg(judged, _truncation(settings))
    telling = best_d > 0
    if not telling.any():
        return None
    rows = telling[logged.decision]
    kept = logged.part(telling)
    weight = best_d[telling] / best_d[telling].mean()
    data: lightgbm.Dataset = _lightgbm().Dataset(
        _columns(kept, settings),
        np.searchsorted(_table(all_gains), gain[rows]).astype(np.float64),
        group=np.diff(kept.start_d),
        weight=weight[kept.decision],
        feature_name=list(logged.features),
        params={"feature_pre_filter": False, "verbosity": -1},
        free_raw_data=True,
    )
    return data


def _table(all_gains: Float64) -> Float64:
    """Gains, ascending; a label is a place in it."""
    table: Float64 = np.unique(np.concatenate([[0.0], all_gains]))
    return table


def _fit(
    data: lightgbm.Dataset, late: lightgbm.Dataset | None, rounds: int, settings: Settings,
    all_gains: Float64, tell: Tell,
    seen: dict[str, Any] | None = None,
) -> lightgbm.Booster:  # fmt: skip
    library = _lightgbm()
    params = _common(settings) | {
        "objective": "lambdarank", "metric": "ndcg", "eval_at": [settings.k],
        "label_gain": _table(all_gains).tolist(), "lambdarank_norm": False,
        "lambdarank_truncation_level": _truncation(settings), "feature_pre_filter": False,
    }  # fmt: skip
    what = "training" if late is None else "choosing the number of trees"

    def progress(env: Any) -> None:
        tell(what, env.iteration + 1, rounds)

    callbacks: list[Callable[..., Any]] = [progress]
    if seen is not None:
        callbacks.append(library.record_evaluation(seen))
    with _ONE_AT_A_TIME:
        fitted: lightgbm.Booster = library.train(
            params, data, rounds, valid_sets=None if late is None else [late], callbacks=callbacks
        )
    return fitted


def _truncation(settings: Settings) -> int:
    return max(_TRUNCATION_MIN, settings.k)


def _gain(booster: lightgbm.Booster) -> dict[str, float]:
    values = booster.feature_importance("gain").tolist()
    return {name: round(value, 3) for name, value in zip(booster.feature_name(), values,
                                                         strict=True)}  # fmt: skip


def _record(
    logged: Logged, settings: Settings, curve: Curve, day: int, before: Logged, after: Logged
) -> dict[str, Any]:
    """What anybody needs to know of this training later."""
    told = asdict(settings) | {"correction": str(settings.correction)}
    excluded = {name: list(fields) for name, fields in told.pop("excluded").items()}
    return {
        "objective": "lambdarank",
        "settings": told,
        "seed": settings.seed,
        "excluded": excluded,
        "data": {
            "digest": logged.digest,
            "rows": logged.rows_read,
            "refused": dict(logged.refused),
            "decisions_trained": int(before.day_d.size),
            "rows_trained": int(before.position.size),
            "decisions_judged": int(after.day_d.size),
            "first_day": day_text(logged.day_d.min()),
            "split_at": day_text(day),
            "last_day": day_text(logged.day_d.max()),
            "point_in_time": logged.point_in_time,
        },
        "correction": curve.record(),
        "warnings": list(logged.warnings),
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
    }
