"""One question to the matcher, and the checks that need no data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matchwright.engine.errors import InvalidArgument
from matchwright.engine.policy import Budgets
from matchwright.engine.policy_sections import shown
from matchwright.engine.records import KINDS, Kind
from matchwright.kernels.planner import Plan

ID_BYTES_MAX = 128
PLANS = ("auto", "scan", "gather", "skip")
DAY_MAX = 2_932_896
"""9999-12-31, the last day that a date can name."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Who asks, and how.

    Attributes:
        kind: of the entity that asks; the other kind is searched.
        id: of a stored entity; or ``record``, a record given inline, with or without an id.
        k: how many matches, 1..1,000.
        weights: facet -> weight in place of the policy's.
        rules: rule -> keys of its section in place of the policy's; may only narrow.
        limits: further limits of the entity that asks (see ``limits``).
        exclude_ids: never these.
        candidate_ids: only these; None for everybody.
        min_score: leave out what scores below.
        as_of: the day to decide for, days since 1970-01-01. Required: the edge resolves "today"
            once, nothing below it reads the clock.
        epoch: the number of the epoch to answer from; None for the newest.
        min_epoch: the newest epoch must be at least this one: read your writes.
        plan: how the kernels go about it; every plan gives the same answer.
        count: also count the eligible.
        contributions: also say the points of each facet.
    """

    kind: Kind
    id: str | None = None
    record: Mapping[str, Any] | None = None
    k: int = 10
    weights: Mapping[str, float] = field(default_factory=dict)
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    exclude_ids: Sequence[str] = ()
    candidate_ids: Sequence[str] | None = None
    min_score: float | None = None
    as_of: int | None = None
    epoch: int | None = None
    min_epoch: int | None = None
    plan: Plan = "auto"
    count: bool = True
    contributions: bool = True


def check_request(request: Request, budgets: Budgets) -> None:
    """Refuse a request that is wrong whatever the data.

    Raises:
        InvalidArgument: naming the field, what was got and what is expected.
    """
    if request.kind not in KINDS:
        raise _wrong("kind", request.kind, "'job' or 'freelancer'")
    if (request.id is None) == (request.record is None):
        raise InvalidArgument("request: give exactly one of id and record", field="id")
    if request.id is not None:
        check_id(request.id, "id")
    elif not isinstance(request.record, Mapping):
        raise _wrong("record", request.record, "a record as a table of its fields")
    if not _is_int(request.k) or not 1 <= request.k <= budgets.k_max:
        raise _wrong("k", request.k, f"1..{budgets.k_max:,}")
    if request.as_of is None:
        raise InvalidArgument(
            "request.as_of is not given; pass the day to decide for, as days since 1970-01-01",
            field="as_of",
        )
    if not _is_int(request.as_of) or not 0 <= request.as_of <= DAY_MAX:
        raise _wrong("as_of", request.as_of, f"days since 1970-01-01, 0..{DAY_MAX:,}")
    if request.plan not in PLANS:
        raise _wrong("plan", request.plan, f"one of {', '.join(PLANS)}")
    _check_min_score(request.min_score)
    for name in ("epoch", "min_epoch"):
        number = getattr(request, name)
        if number is not None and (not _is_int(number) or number < 0):
            raise _wrong(name, number, "the number of an epoch")
    _check_ids("exclude_ids", request.exclude_ids, budgets.exclude_max)
    if request.candidate_ids is not None:
        _check_ids("candidate_ids", request.candidate_ids, budgets.candidates_max)


def check_id(value: Any, name: str) -> None:
    """Refuse what cannot be an external id: 1 to 128 bytes of UTF-8.

    Raises:
        InvalidArgument: naming ``name``.
    """
    if isinstance(value, str):
        try:
            if 1 <= len(value.encode()) <= ID_BYTES_MAX:
                return
        except UnicodeEncodeError:
            pass
    raise _wrong(name, value, f"an id of 1 to {ID_BYTES_MAX} bytes of UTF-8")


def _check_ids(name: str, ids: Any, most: int) -> None:
    if isinstance(ids, str) or not isinstance(ids, Sequence):
        raise _wrong(name, ids, "a list of ids")
    if len(ids) > most:
        raise InvalidArgument(
            f"request.{name} holds {len(ids):,} ids; at most {most:,} are allowed", field=name
        )
    for value in ids:
        check_id(value, name)


def _check_min_score(value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong("min_score", value, "a number")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise _wrong("min_score", value, "a finite number")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(name: str, got: object, expected: str) -> InvalidArgument:
    return InvalidArgument(f"request.{name} is {shown(got)}; expected {expected}", field=name)
