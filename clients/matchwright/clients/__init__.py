"""Python clients of a matchwright server. They need grpcio and protobuf, nothing of the engine."""

from __future__ import annotations

from matchwright.clients._async import AsyncClient
from matchwright.clients._calls import Query
from matchwright.clients._channel import Tls
from matchwright.clients._errors import (
    Cancelled,
    ClientError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    ServerError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from matchwright.clients._explanation import (
    AskedSkill,
    Explanation,
    FacetShare,
    FeatureShare,
    Reason,
    SecondPhase,
    SkillCollision,
    Skills,
)
from matchwright.clients._messages import Audience, FindOptions, FreelancerQuery, JobQuery
from matchwright.clients._results import (
    BatchMatches,
    EligibleCount,
    Epoch,
    Kind,
    Match,
    Matches,
    OrderKey,
    PairScores,
    Reranked,
    Telemetry,
)
from matchwright.clients._sync import Client

__all__ = [
    "AskedSkill",
    "AsyncClient",
    "Audience",
    "BatchMatches",
    "Cancelled",
    "Client",
    "ClientError",
    "DeadlineExceeded",
    "EligibleCount",
    "Epoch",
    "Explanation",
    "FacetShare",
    "FailedPrecondition",
    "FeatureShare",
    "FindOptions",
    "FreelancerQuery",
    "InvalidRequest",
    "JobQuery",
    "Kind",
    "Match",
    "Matches",
    "NotFound",
    "OrderKey",
    "Overloaded",
    "PairScores",
    "PermissionDenied",
    "Query",
    "Reason",
    "Reranked",
    "SecondPhase",
    "ServerError",
    "SkillCollision",
    "Skills",
    "Telemetry",
    "Tls",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
]
