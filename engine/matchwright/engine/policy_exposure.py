"""The section ``exposure`` of a policy: what a run does after scoring about who is shown.

It is off unless a policy says so, and a policy in which it is off has the id that it would have
without the section. What the settings do is defined in docs/runs.md, "Exposure".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from matchwright.engine.errors import InvalidArgument
from matchwright.engine.policy_sections import int_of, section, wrong
from matchwright.engine.records import KINDS, Kind
from matchwright.kernels.types import K_MAX

ROWS_MAX = 1_000_000_000

SPANS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "slack_rows": (1, K_MAX - 1),
        "shown_max": (0, ROWS_MAX),
        "newcomers_within": (0, K_MAX),
        "newcomer_reviews_max": (-1, 1_000_000),
        "newcomer_days": (0, 36_500),
        "newcomer_loss_permille": (0, 1_000),
        "alike_within": (0, K_MAX),
        "alike_max": (1, K_MAX),
    }
)
"""Setting -> its range."""

NEWCOMER_FIELDS: Mapping[Kind, tuple[str, str]] = MappingProxyType(
    {
        "job": ("job.client_reviews", "job.posted"),
        "freelancer": ("freelancer.reviews", "freelancer.joined"),
    }
)
"""Kind that is shown -> the fields (reviews, day) that say who is new."""
_SHOWN: Mapping[Kind, Kind] = {"job": "freelancer", "freelancer": "job"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """Who is shown, beyond the order of scores. Zero switches a part off.

    Attributes:
        asking: the kinds whose answers it works on, in the order job, freelancer.
        slack_rows: eligible rows beyond K that a run keeps of each query, to fill places from.
        shown_max: most places that one person gets in one direction of a run.
        newcomers_within: at least one newcomer among so many first rows.
        newcomer_reviews_max: a newcomer has at most so many reviews; -1 does not ask.
        newcomer_days: a newcomer joined (a job: was posted) at most so many days before
            ``as_of``; 0 does not ask.
        newcomer_loss_permille: thousandths of the score that a lifted newcomer may lie below the
            row whose place it takes.
        alike_within, alike_max: among so many first rows, at most so many of one group of people
            whose text and skills are the same.
    """

    asking: tuple[Kind, ...]
    slack_rows: int
    shown_max: int
    newcomers_within: int
    newcomer_reviews_max: int
    newcomer_days: int
    newcomer_loss_permille: int
    alike_within: int
    alike_max: int

    def to_dict(self) -> dict[str, Any]:
        """The section in the form of the TOML file."""
        return {"enabled": True, **asdict(self), "asking": list(self.asking)}

    def readers(self) -> list[tuple[str, tuple[str, ...]]]:
        """(who reads, fields), as the input manifest is checked."""
        found: list[tuple[str, tuple[str, ...]]] = []
        for kind in self.asking:
            shown = _SHOWN[kind]
            reviews, day = NEWCOMER_FIELDS[shown]
            if self.newcomers_within and self.newcomer_reviews_max >= 0:
                found.append(("exposure (newcomer_reviews_max)", (reviews,)))
            if self.newcomers_within and self.newcomer_days:
                found.append(("exposure (newcomer_days)", (day,)))
            if self.alike_within:
                names = ("title", "text", "skills")
                found.append(("exposure (alike_within)", tuple(f"{shown}.{n}" for n in names)))
        return found


def exposure_of(
    given: Mapping[str, Any], document: Mapping[str, Any], where: str
) -> Exposure | None:
    """The section ``exposure``; None where it is off, whatever else it says.

    Raises:
        InvalidArgument, UnknownKey: a value or a key that cannot be; also when it is off.
    """
    table = section(given, document, "exposure", where)
    if not isinstance(table["enabled"], bool):
        raise wrong(where, "exposure.enabled", table["enabled"], "true or false")
    numbers = {
        name: int_of(table[name], where, f"exposure.{name}", *span) for name, span in SPANS.items()
    }
    made = Exposure(asking=_asking(table["asking"], where), **numbers)
    if not table["enabled"]:
        return None
    if not (made.shown_max or made.newcomers_within or made.alike_within):
        raise InvalidArgument(
            f"{where}: exposure is enabled and asks for nothing; set shown_max, newcomers_within "
            "or alike_within, or leave it off",
            field="exposure",
        )
    if made.newcomers_within and made.newcomer_reviews_max < 0 and not made.newcomer_days:
        raise InvalidArgument(
            f"{where}: exposure.newcomers_within needs to know who is new; set "
            "newcomer_reviews_max or newcomer_days",
            field="exposure.newcomers_within",
        )
    return made


def _asking(value: Any, where: str) -> tuple[Kind, ...]:
    if not isinstance(value, list | tuple) or not value or any(name not in KINDS for name in value):
        raise wrong(where, "exposure.asking", value, "a list of some of 'job', 'freelancer'")
    return tuple(kind for kind in KINDS if kind in value)


__all__ = ["Exposure", "NEWCOMER_FIELDS", "SPANS", "exposure_of"]
