"""What a verification found: one line for each check, with the places where it failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EXAMPLES_MAX = 5
"""Failures of one check that are told in full; the others are counted."""

CHECKS: dict[str, str] = {
    "run": "run.json is there, complete, and belongs to the plan",
    "files": "every file has the SHA-256 that run.json holds",
    "units": "unit keys follow from the run id and the queries; keys ascend and end nowhere",
    "schema": "columns, types, and the names of epoch, generation and policy",
    "ranks": "ranks count 1 to n for every query",
    "order": "rows descend by points, mix and low word of the key",
    "duplicates": "nobody appears twice in one answer",
    "keys": "keys are the salted hashes of ids",
    "scores": "score = points * t, and the facets' points add up",
    "returned": "returned, shortfall and error agree with the rows",
    "horizon": "stored rows reach as far as the horizon says",
    "counts": "the counts in run.json are those of the files",
    "digest": "the digest over all rows is the one in run.json",
    "corpus": "fingerprints are those of everybody who was searched",
    "questions": "each query is asked as its record, day and policy say",
    "points": "points are the inner product of the stored vectors",
    "rules": "every returned pair passes every rule",
    "sample": "sampled queries, recomputed by brute force over all rows",
}
"""Check -> what it says when it holds, in the order of the report."""
SECOND_CHECKS: dict[str, str] = {
    "model": "candidates descend by model score and first-phase rank; degraded ones have none",
    "model_sample": "sampled queries: features made anew, and the scores that the trees give them",
}
"""Those of a run with a second phase, besides."""


@dataclass(slots=True)
class Check:
    """One check over a run.

    Attributes:
        name: key of ``CHECKS``.
        checked: things looked at.
        failed: those that were wrong.
        examples: the first failures, each with the file's name.
        skipped: why it was not made; empty when it was.
    """

    name: str
    checked: int = 0
    failed: int = 0
    examples: list[str] = field(default_factory=list)
    skipped: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "check": self.name,
            "says": (CHECKS | SECOND_CHECKS)[self.name],
            "checked": self.checked,
            "failed": self.failed,
            "skipped": self.skipped or None,
            "examples": list(self.examples),
        }


class Findings:
    """Checks by name, all of them there from the start.

    Args:
        second: whether the run has a second phase.
    """

    def __init__(self, second: bool = False) -> None:
        names = [*CHECKS, *(SECOND_CHECKS if second else ())]
        self.checks = {name: Check(name) for name in names}

    def looked(self, name: str, things: int = 1) -> None:
        """Count what was looked at."""
        self.checks[name].checked += things

    def fail(self, name: str, where: str, what: str, times: int = 1) -> None:
        """Count failures, and keep the first few in words.

        Args:
            where: the file.
            what: what was got and what was expected.
        """
        if times <= 0:
            return
        check = self.checks[name]
        check.failed += times
        if len(check.examples) < EXAMPLES_MAX:
            more = f" (and {times - 1:,} more there)" if times > 1 else ""
            check.examples.append(f"{where}: {what}{more}")

    def expect(self, name: str, good: bool, where: str, what: str) -> None:
        """Count one thing, and a failure unless it is good."""
        self.looked(name)
        if not good:
            self.fail(name, where, what)

    def skip(self, names: tuple[str, ...], why: str) -> None:
        """Say why checks were not made."""
        for name in names:
            if name in self.checks:
                self.checks[name].skipped = why

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks.values() if check.failed]
