"""The gate before promotion: better beyond the interval, and worse for no segment.

What is compared is NDCG@k of the exported model on decisions after the split, as the evaluation in
its training record has it. The model must be better than the first phase, and than the model in
service when there is one: the lower end of each difference's 95% interval lies above 0. A segment
is worse when its difference is below minus the bound, and its interval below 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from matchwright.engine.errors import InvalidData, VerificationFailed
from matchwright.engine.rerank.evaluate import FIRST_PHASE, IN_SERVICE

SEGMENT_LOSS_MAX = 0.02
"""NDCG that a segment may lose, at most."""
WORDS = {FIRST_PHASE: "the first phase", IN_SERVICE: "the model in service"}


class GateRefused(VerificationFailed):
    """The model is not to be promoted; the message has the figures."""

    reason = "GATE_REFUSED"


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes:
        against: what the model was compared with.
        refusals: sentences with figures; empty when the model may be promoted.
        doubts: segments that look worse, but not beyond their interval.
        not_judged: segments with too few decisions.
    """

    against: tuple[str, ...]
    refusals: tuple[str, ...]
    doubts: tuple[str, ...]
    not_judged: tuple[str, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the model may be promoted."""
        return not self.refusals

    def record(self) -> dict[str, Any]:
        """Plain values, for the record of promotions."""
        return {
            "passed": self.passed, "against": list(self.against),
            "refusals": list(self.refusals), "doubts": list(self.doubts),
            "not_judged": list(self.not_judged), "figures": dict(self.figures),
        }  # fmt: skip


def judge(
    evaluation: Mapping[str, Any],
    in_service: str | None,
    segment_loss_max: float = SEGMENT_LOSS_MAX,
) -> Verdict:
    """The gate's verdict on an evaluation.

    Args:
        evaluation: of ``evaluate.evaluate``.
        in_service: content hash of the model in service; None when there is none.
        segment_loss_max: see ``SEGMENT_LOSS_MAX``.

    Raises:
        InvalidData: the evaluation is none, or compares with another model than that in service.
    """
    try:
        return _judged(evaluation, in_service, segment_loss_max)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InvalidData(
            "the training record holds no evaluation; train the ranker anew"
        ) from None


def _judged(
    evaluation: Mapping[str, Any], in_service: str | None, segment_loss_max: float
) -> Verdict:
    figure_name = f"ndcg@{evaluation['k']}"
    overall, compared = evaluation["metrics"][figure_name], evaluation["in_service"]
    segments = evaluation["segments"]
    if compared != in_service:
        raise InvalidData(
            f"the evaluation compares with the model {compared or 'none'}, in service is "
            f"{in_service or 'none'}; evaluate again with --decisions FILE"
        )
    against = (FIRST_PHASE,) if in_service is None else (FIRST_PHASE, IN_SERVICE)
    refusals = [*_not_better(overall, against, figure_name)]
    worse = list(_worse(segments, against, figure_name, segment_loss_max))
    return Verdict(
        against=against,
        refusals=(*refusals, *(text for certain, text in worse if certain)),
        doubts=tuple(text for certain, text in worse if not certain),
        not_judged=tuple(
            f"{column} {value}" for column, values in segments.items()
            for value, figure in values.items() if "too_few" in figure
        ),
        figures={figure_name: dict(overall)},
    )  # fmt: skip


def _not_better(overall: Mapping[str, Any], against: tuple[str, ...], figure: str) -> Iterator[str]:
    for name in against:
        told = overall.get(f"vs_{name}")
        if told is None or not told["low"] > 0:
            yield f"{figure} is not better than {WORDS[name]} beyond its interval: " + _says(
                overall, name
            )


def _worse(
    segments: Mapping[str, Any], against: tuple[str, ...], figure: str, bound: float
) -> Iterator[tuple[bool, str]]:
    """(whether beyond the interval too, the sentence) of segments that lose more than the bound."""
    for column, values in segments.items():
        for value, told in values.items():
            for name in against:
                change = told.get(f"vs_{name}")
                if change is not None and change["difference"] < -bound:
                    yield (
                        change["high"] < 0,
                        (
                            f"{column} {value!r} loses more than {bound:g} of {figure} against "
                            f"{WORDS[name]}: " + _says(told, name)
                        ),
                    )


def _says(figure: Mapping[str, Any], name: str) -> str:
    change = figure.get(f"vs_{name}")
    if change is None:
        return "no decision tells"
    return (
        f"{figure['model']:.4f} against {figure[name]:.4f}, {change['difference']:+.4f} "
        f"[{change['low']:+.4f}, {change['high']:+.4f}]"
    )


def refuse(verdict: Verdict) -> None:
    """Raise what the verdict says.

    Raises:
        GateRefused: with all figures.
    """
    if not verdict.passed:
        raise GateRefused(
            "the gate refuses this ranker: " + "; ".join(verdict.refusals)
            + ". Train a better one, or force it with --force --reason TEXT, which is recorded",
            refusals=" | ".join(verdict.refusals),
        )  # fmt: skip
