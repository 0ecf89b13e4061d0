"""Which plan answers a group of queries soonest on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Plan = Literal["auto", "scan", "gather", "skip"]


@dataclass(frozen=True, slots=True)
class Costs:
    """What the plans cost on this machine."""
