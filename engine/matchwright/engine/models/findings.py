"""What a check of models found: one line for each question, and the verdict over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One question about one model.

    Attributes:
        model: such as ``encoder:3``.
        check: what was asked.
        outcome: "skipped" when it could not be asked; ``told`` says why.
        told: what was found, on one line.
        figures: numbers for machines; times in milliseconds.
    """

    model: str
    check: str
    outcome: Outcome
    told: str
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.model,
            "check": self.check,
            "outcome": self.outcome,
            "told": self.told,
            "figures": dict(self.figures),
        }


@dataclass(frozen=True)
class Verdict:
    """Everything that was found about a repository or a server."""

    subject: str
    findings: tuple[Finding, ...]

    @property
    def conforms(self) -> bool:
        """Whether something was checked, and nothing failed."""
        outcomes = {one.outcome for one in self.findings}
        return "ok" in outcomes and "failed" not in outcomes

    @property
    def failed(self) -> tuple[Finding, ...]:
        """What failed."""
        return tuple(one for one in self.findings if one.outcome == "failed")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as the command line writes them."""
        return {
            "subject": self.subject,
            "conforms": self.conforms,
            "findings": [one.to_dict() for one in self.findings],
        }


def judged(model: str, check: str, wrong: Sequence[str], told: str, **figures: float) -> Finding:
    """Failed when there is something in ``wrong``, else ok with what ``told`` says."""
    if wrong:
        return Finding(model, check, "failed", "; ".join(wrong), figures)
    return Finding(model, check, "ok", told, figures)


def skipped(model: str, check: str, why: str) -> Finding:
    """What could not be checked."""
    return Finding(model, check, "skipped", why)
