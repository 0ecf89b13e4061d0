from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.rpc import status_pb2 as _status_pb2
from matchwright.v1 import records_pb2 as _records_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EntityKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENTITY_KIND_UNSPECIFIED: _ClassVar[EntityKind]
    ENTITY_KIND_JOB: _ClassVar[EntityKind]
    ENTITY_KIND_FREELANCER: _ClassVar[EntityKind]

class CountMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COUNT_MODE_UNSPECIFIED: _ClassVar[CountMode]
    COUNT_MODE_EXACT: _ClassVar[CountMode]
    COUNT_MODE_NONE: _ClassVar[CountMode]

class CountKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COUNT_KIND_UNSPECIFIED: _ClassVar[CountKind]
    COUNT_KIND_NOT_COUNTED: _ClassVar[CountKind]
    COUNT_KIND_AT_LEAST: _ClassVar[CountKind]
    COUNT_KIND_EXACT: _ClassVar[CountKind]

class ShortfallReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SHORTFALL_REASON_UNSPECIFIED: _ClassVar[ShortfallReason]
    SHORTFALL_REASON_EMPTY_CORPUS: _ClassVar[ShortfallReason]
    SHORTFALL_REASON_QUERY_VETOED: _ClassVar[ShortfallReason]
    SHORTFALL_REASON_FEW_ELIGIBLE: _ClassVar[ShortfallReason]
    SHORTFALL_REASON_MIN_SCORE: _ClassVar[ShortfallReason]

class Audience(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIENCE_UNSPECIFIED: _ClassVar[Audience]
    AUDIENCE_CLIENT: _ClassVar[Audience]
    AUDIENCE_FREELANCER: _ClassVar[Audience]
    AUDIENCE_OPERATOR: _ClassVar[Audience]

class UnknownHandling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNKNOWN_HANDLING_UNSPECIFIED: _ClassVar[UnknownHandling]
    UNKNOWN_HANDLING_FAIL: _ClassVar[UnknownHandling]
    UNKNOWN_HANDLING_PASS: _ClassVar[UnknownHandling]

class ReasonClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_CLASS_UNSPECIFIED: _ClassVar[ReasonClass]
    REASON_CLASS_STATUS: _ClassVar[ReasonClass]
    REASON_CLASS_REQUIREMENT: _ClassVar[ReasonClass]
    REASON_CLASS_PRIVATE_LIMIT: _ClassVar[ReasonClass]
    REASON_CLASS_EXCLUSION: _ClassVar[ReasonClass]
    REASON_CLASS_REQUEST: _ClassVar[ReasonClass]
    REASON_CLASS_NOT_AVAILABLE: _ClassVar[ReasonClass]

class FacetFit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FACET_FIT_UNSPECIFIED: _ClassVar[FacetFit]
    FACET_FIT_STRONG: _ClassVar[FacetFit]
    FACET_FIT_FAIR: _ClassVar[FacetFit]
    FACET_FIT_WEAK: _ClassVar[FacetFit]
    FACET_FIT_NOT_ASKED: _ClassVar[FacetFit]
    FACET_FIT_NOT_KNOWN: _ClassVar[FacetFit]

class DegradedReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEGRADED_REASON_UNSPECIFIED: _ClassVar[DegradedReason]
    DEGRADED_REASON_LATE: _ClassVar[DegradedReason]
    DEGRADED_REASON_UNREACHABLE: _ClassVar[DegradedReason]
    DEGRADED_REASON_BREAKER_OPEN: _ClassVar[DegradedReason]
    DEGRADED_REASON_NOT_READY: _ClassVar[DegradedReason]
    DEGRADED_REASON_WRONG_OUTPUT: _ClassVar[DegradedReason]
    DEGRADED_REASON_NO_FEATURES: _ClassVar[DegradedReason]
    DEGRADED_REASON_FAILED: _ClassVar[DegradedReason]

class Movement(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MOVEMENT_UNSPECIFIED: _ClassVar[Movement]
    MOVEMENT_UP: _ClassVar[Movement]
    MOVEMENT_DOWN: _ClassVar[Movement]
    MOVEMENT_NOT: _ClassVar[Movement]

class FeatureEffect(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_EFFECT_UNSPECIFIED: _ClassVar[FeatureEffect]
    FEATURE_EFFECT_STRONGLY_FOR: _ClassVar[FeatureEffect]
    FEATURE_EFFECT_FOR: _ClassVar[FeatureEffect]
    FEATURE_EFFECT_NEITHER: _ClassVar[FeatureEffect]
    FEATURE_EFFECT_AGAINST: _ClassVar[FeatureEffect]
    FEATURE_EFFECT_STRONGLY_AGAINST: _ClassVar[FeatureEffect]
ENTITY_KIND_UNSPECIFIED: EntityKind
ENTITY_KIND_JOB: EntityKind
ENTITY_KIND_FREELANCER: EntityKind
COUNT_MODE_UNSPECIFIED: CountMode
COUNT_MODE_EXACT: CountMode
COUNT_MODE_NONE: CountMode
COUNT_KIND_UNSPECIFIED: CountKind
COUNT_KIND_NOT_COUNTED: CountKind
COUNT_KIND_AT_LEAST: CountKind
COUNT_KIND_EXACT: CountKind
SHORTFALL_REASON_UNSPECIFIED: ShortfallReason
SHORTFALL_REASON_EMPTY_CORPUS: ShortfallReason
SHORTFALL_REASON_QUERY_VETOED: ShortfallReason
SHORTFALL_REASON_FEW_ELIGIBLE: ShortfallReason
SHORTFALL_REASON_MIN_SCORE: ShortfallReason
AUDIENCE_UNSPECIFIED: Audience
AUDIENCE_CLIENT: Audience
AUDIENCE_FREELANCER: Audience
AUDIENCE_OPERATOR: Audience
UNKNOWN_HANDLING_UNSPECIFIED: UnknownHandling
UNKNOWN_HANDLING_FAIL: UnknownHandling
UNKNOWN_HANDLING_PASS: UnknownHandling
REASON_CLASS_UNSPECIFIED: ReasonClass
REASON_CLASS_STATUS: ReasonClass
REASON_CLASS_REQUIREMENT: ReasonClass
REASON_CLASS_PRIVATE_LIMIT: ReasonClass
REASON_CLASS_EXCLUSION: ReasonClass
REASON_CLASS_REQUEST: ReasonClass
REASON_CLASS_NOT_AVAILABLE: ReasonClass
FACET_FIT_UNSPECIFIED: FacetFit
FACET_FIT_STRONG: FacetFit
FACET_FIT_FAIR: FacetFit
FACET_FIT_WEAK: FacetFit
FACET_FIT_NOT_ASKED: FacetFit
FACET_FIT_NOT_KNOWN: FacetFit
DEGRADED_REASON_UNSPECIFIED: DegradedReason
DEGRADED_REASON_LATE: DegradedReason
DEGRADED_REASON_UNREACHABLE: DegradedReason
DEGRADED_REASON_BREAKER_OPEN: DegradedReason
DEGRADED_REASON_NOT_READY: DegradedReason
DEGRADED_REASON_WRONG_OUTPUT: DegradedReason
DEGRADED_REASON_NO_FEATURES: DegradedReason
DEGRADED_REASON_FAILED: DegradedReason
MOVEMENT_UNSPECIFIED: Movement
MOVEMENT_UP: Movement
MOVEMENT_DOWN: Movement
MOVEMENT_NOT: Movement
FEATURE_EFFECT_UNSPECIFIED: FeatureEffect
FEATURE_EFFECT_STRONGLY_FOR: FeatureEffect
FEATURE_EFFECT_FOR: FeatureEffect
FEATURE_EFFECT_NEITHER: FeatureEffect
FEATURE_EFFECT_AGAINST: FeatureEffect
FEATURE_EFFECT_STRONGLY_AGAINST: FeatureEffect

class FindFreelancersRequest(_message.Message):
    __slots__ = ("marketplace", "job_id", "job", "options")
    MARKETPLACE_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    marketplace: str
    job_id: str
    job: _records_pb2.Job
    options: FindOptions
    def __init__(self, marketplace: _Optional[str] = ..., job_id: _Optional[str] = ..., job: _Optional[_Union[_records_pb2.Job, _Mapping]] = ..., options: _Optional[_Union[FindOptions, _Mapping]] = ...) -> None: ...

class FindFreelancersResponse(_message.Message):
    __slots__ = ("ranking", "telemetry")
    RANKING_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    ranking: Ranking
    telemetry: Telemetry
    def __init__(self, ranking: _Optional[_Union[Ranking, _Mapping]] = ..., telemetry: _Optional[_Union[Telemetry, _Mapping]] = ...) -> None: ...

class FindJobsRequest(_message.Message):
    __slots__ = ("marketplace", "freelancer_id", "freelancer", "options")
    MARKETPLACE_FIELD_NUMBER: _ClassVar[int]
    FREELANCER_ID_FIELD_NUMBER: _ClassVar[int]
    FREELANCER_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    marketplace: str
    freelancer_id: str
    freelancer: _records_pb2.Freelancer
    options: FindOptions
    def __init__(self, marketplace: _Optional[str] = ..., freelancer_id: _Optional[str] = ..., freelancer: _Optional[_Union[_records_pb2.Freelancer, _Mapping]] = ..., options: _Optional[_Union[FindOptions, _Mapping]] = ...) -> None: ...

class FindJobsResponse(_message.Message):
    __slots__ = ("ranking", "telemetry")
    RANKING_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    ranking: Ranking
    telemetry: Telemetry
    def __init__(self, ranking: _Optional[_Union[Ranking, _Mapping]] = ..., telemetry: _Optional[_Union[Telemetry, _Mapping]] = ...) -> None: ...

class BatchFindRequest(_message.Message):
    __slots__ = ("marketplace", "items", "options")
    MARKETPLACE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    marketplace: str
    items: _containers.RepeatedCompositeFieldContainer[BatchFindItem]
    options: FindOptions
    def __init__(self, marketplace: _Optional[str] = ..., items: _Optional[_Iterable[_Union[BatchFindItem, _Mapping]]] = ..., options: _Optional[_Union[FindOptions, _Mapping]] = ...) -> None: ...

class BatchFindItem(_message.Message):
    __slots__ = ("job_id", "job", "freelancer_id", "freelancer", "options")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    FREELANCER_ID_FIELD_NUMBER: _ClassVar[int]
    FREELANCER_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    job: _records_pb2.Job
    freelancer_id: str
    freelancer: _records_pb2.Freelancer
    options: FindOptions
    def __init__(self, job_id: _Optional[str] = ..., job: _Optional[_Union[_records_pb2.Job, _Mapping]] = ..., freelancer_id: _Optional[str] = ..., freelancer: _Optional[_Union[_records_pb2.Freelancer, _Mapping]] = ..., options: _Optional[_Union[FindOptions, _Mapping]] = ...) -> None: ...

class BatchFindResponse(_message.Message):
    __slots__ = ("results", "telemetry")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchFindResult]
    telemetry: Telemetry
    def __init__(self, results: _Optional[_Iterable[_Union[BatchFindResult, _Mapping]]] = ..., telemetry: _Optional[_Union[Telemetry, _Mapping]] = ...) -> None: ...

class BatchFindResult(_message.Message):
    __slots__ = ("ranking", "error")
    RANKING_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ranking: Ranking
    error: _status_pb2.Status
    def __init__(self, ranking: _Optional[_Union[Ranking, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class FindOptions(_message.Message):
    __slots__ = ("k", "epoch", "min_epoch", "policy", "weights", "rules", "exclude_ids", "candidates", "min_score", "as_of_day", "count", "contributions")
    class WeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    K_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MIN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_IDS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    AS_OF_DAY_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    k: int
    epoch: int
    min_epoch: int
    policy: str
    weights: _containers.ScalarMap[str, float]
    rules: ExtraRules
    exclude_ids: _containers.RepeatedScalarFieldContainer[str]
    candidates: CandidateIds
    min_score: float
    as_of_day: int
    count: CountMode
    contributions: bool
    def __init__(self, k: _Optional[int] = ..., epoch: _Optional[int] = ..., min_epoch: _Optional[int] = ..., policy: _Optional[str] = ..., weights: _Optional[_Mapping[str, float]] = ..., rules: _Optional[_Union[ExtraRules, _Mapping]] = ..., exclude_ids: _Optional[_Iterable[str]] = ..., candidates: _Optional[_Union[CandidateIds, _Mapping]] = ..., min_score: _Optional[float] = ..., as_of_day: _Optional[int] = ..., count: _Optional[_Union[CountMode, str]] = ..., contributions: _Optional[bool] = ...) -> None: ...

class CandidateIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ExtraRules(_message.Message):
    __slots__ = ("job_limits", "freelancer_limits", "skills_required", "languages_required", "settings")
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: RuleSetting
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[RuleSetting, _Mapping]] = ...) -> None: ...
    JOB_LIMITS_FIELD_NUMBER: _ClassVar[int]
    FREELANCER_LIMITS_FIELD_NUMBER: _ClassVar[int]
    SKILLS_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    job_limits: _records_pb2.JobLimits
    freelancer_limits: _records_pb2.FreelancerLimits
    skills_required: _containers.RepeatedScalarFieldContainer[str]
    languages_required: _containers.RepeatedCompositeFieldContainer[_records_pb2.Language]
    settings: _containers.MessageMap[str, RuleSetting]
    def __init__(self, job_limits: _Optional[_Union[_records_pb2.JobLimits, _Mapping]] = ..., freelancer_limits: _Optional[_Union[_records_pb2.FreelancerLimits, _Mapping]] = ..., skills_required: _Optional[_Iterable[str]] = ..., languages_required: _Optional[_Iterable[_Union[_records_pb2.Language, _Mapping]]] = ..., settings: _Optional[_Mapping[str, RuleSetting]] = ...) -> None: ...

class RuleSetting(_message.Message):
    __slots__ = ("enabled", "on_unknown", "tolerance_permille", "unstated_level", "accept", "verified_only")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    ON_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_PERMILLE_FIELD_NUMBER: _ClassVar[int]
    UNSTATED_LEVEL_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_ONLY_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    on_unknown: UnknownHandling
    tolerance_permille: int
    unstated_level: int
    accept: _containers.RepeatedScalarFieldContainer[str]
    verified_only: bool
    def __init__(self, enabled: _Optional[bool] = ..., on_unknown: _Optional[_Union[UnknownHandling, str]] = ..., tolerance_permille: _Optional[int] = ..., unstated_level: _Optional[int] = ..., accept: _Optional[_Iterable[str]] = ..., verified_only: _Optional[bool] = ...) -> None: ...

class Ranking(_message.Message):
    __slots__ = ("epoch", "generation", "policy", "as_of_day", "query_kind", "query_id", "query_key", "k", "ids", "keys", "points", "scores", "facets", "contributions", "certificate", "resolution", "attainable", "step", "digest", "degraded", "rerank")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    AS_OF_DAY_FIELD_NUMBER: _ClassVar[int]
    QUERY_KIND_FIELD_NUMBER: _ClassVar[int]
    QUERY_ID_FIELD_NUMBER: _ClassVar[int]
    QUERY_KEY_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    ATTAINABLE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    RERANK_FIELD_NUMBER: _ClassVar[int]
    epoch: Epoch
    generation: str
    policy: str
    as_of_day: int
    query_kind: EntityKind
    query_id: str
    query_key: int
    k: int
    ids: _containers.RepeatedScalarFieldContainer[str]
    keys: _containers.RepeatedScalarFieldContainer[int]
    points: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    facets: _containers.RepeatedScalarFieldContainer[str]
    contributions: _containers.RepeatedScalarFieldContainer[int]
    certificate: Certificate
    resolution: int
    attainable: float
    step: float
    digest: str
    degraded: _containers.RepeatedScalarFieldContainer[str]
    rerank: Rerank
    def __init__(self, epoch: _Optional[_Union[Epoch, _Mapping]] = ..., generation: _Optional[str] = ..., policy: _Optional[str] = ..., as_of_day: _Optional[int] = ..., query_kind: _Optional[_Union[EntityKind, str]] = ..., query_id: _Optional[str] = ..., query_key: _Optional[int] = ..., k: _Optional[int] = ..., ids: _Optional[_Iterable[str]] = ..., keys: _Optional[_Iterable[int]] = ..., points: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[float]] = ..., facets: _Optional[_Iterable[str]] = ..., contributions: _Optional[_Iterable[int]] = ..., certificate: _Optional[_Union[Certificate, _Mapping]] = ..., resolution: _Optional[int] = ..., attainable: _Optional[float] = ..., step: _Optional[float] = ..., digest: _Optional[str] = ..., degraded: _Optional[_Iterable[str]] = ..., rerank: _Optional[_Union[Rerank, _Mapping]] = ...) -> None: ...

class Rerank(_message.Message):
    __slots__ = ("model", "version", "content_hash", "grid_bits", "candidates", "degraded", "first_ranks", "model_scores", "last_key")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTENT_HASH_FIELD_NUMBER: _ClassVar[int]
    GRID_BITS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    FIRST_RANKS_FIELD_NUMBER: _ClassVar[int]
    MODEL_SCORES_FIELD_NUMBER: _ClassVar[int]
    LAST_KEY_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    content_hash: str
    grid_bits: int
    candidates: int
    degraded: DegradedReason
    first_ranks: _containers.RepeatedScalarFieldContainer[int]
    model_scores: _containers.RepeatedScalarFieldContainer[float]
    last_key: OrderKey
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., content_hash: _Optional[str] = ..., grid_bits: _Optional[int] = ..., candidates: _Optional[int] = ..., degraded: _Optional[_Union[DegradedReason, str]] = ..., first_ranks: _Optional[_Iterable[int]] = ..., model_scores: _Optional[_Iterable[float]] = ..., last_key: _Optional[_Union[OrderKey, _Mapping]] = ...) -> None: ...

class Epoch(_message.Message):
    __slots__ = ("store_uuid", "number", "digest")
    STORE_UUID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    store_uuid: str
    number: int
    digest: str
    def __init__(self, store_uuid: _Optional[str] = ..., number: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("count_kind", "eligible", "unverified", "returned", "kth_key", "shortfall")
    COUNT_KIND_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_FIELD_NUMBER: _ClassVar[int]
    UNVERIFIED_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    KTH_KEY_FIELD_NUMBER: _ClassVar[int]
    SHORTFALL_FIELD_NUMBER: _ClassVar[int]
    count_kind: CountKind
    eligible: int
    unverified: int
    returned: int
    kth_key: OrderKey
    shortfall: ShortfallReason
    def __init__(self, count_kind: _Optional[_Union[CountKind, str]] = ..., eligible: _Optional[int] = ..., unverified: _Optional[int] = ..., returned: _Optional[int] = ..., kth_key: _Optional[_Union[OrderKey, _Mapping]] = ..., shortfall: _Optional[_Union[ShortfallReason, str]] = ...) -> None: ...

class OrderKey(_message.Message):
    __slots__ = ("points", "mix", "low")
    POINTS_FIELD_NUMBER: _ClassVar[int]
    MIX_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    points: int
    mix: int
    low: int
    def __init__(self, points: _Optional[int] = ..., mix: _Optional[int] = ..., low: _Optional[int] = ...) -> None: ...

class Telemetry(_message.Message):
    __slots__ = ("plan", "device", "batch_queries", "queue_ms", "run_ms", "model_ms")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    BATCH_QUERIES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    RUN_MS_FIELD_NUMBER: _ClassVar[int]
    MODEL_MS_FIELD_NUMBER: _ClassVar[int]
    plan: str
    device: str
    batch_queries: int
    queue_ms: float
    run_ms: float
    model_ms: float
    def __init__(self, plan: _Optional[str] = ..., device: _Optional[str] = ..., batch_queries: _Optional[int] = ..., queue_ms: _Optional[float] = ..., run_ms: _Optional[float] = ..., model_ms: _Optional[float] = ...) -> None: ...

class ScorePairsRequest(_message.Message):
    __slots__ = ("marketplace", "pairs", "query_kind", "options")
    MARKETPLACE_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    QUERY_KIND_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    marketplace: str
    pairs: _containers.RepeatedCompositeFieldContainer[Pair]
    query_kind: EntityKind
    options: FindOptions
    def __init__(self, marketplace: _Optional[str] = ..., pairs: _Optional[_Iterable[_Union[Pair, _Mapping]]] = ..., query_kind: _Optional[_Union[EntityKind, str]] = ..., options: _Optional[_Union[FindOptions, _Mapping]] = ...) -> None: ...

class Pair(_message.Message):
    __slots__ = ("job_id", "freelancer_id")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    FREELANCER_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    freelancer_id: str
    def __init__(self, job_id: _Optional[str] = ..., freelancer_id: _Optional[str] = ...) -> None: ...

class ScorePairsResponse(_message.Message):
    __slots__ = ("epoch", "generation", "policy", "as_of_day", "points", "scores", "eligible", "facets", "contributions", "telemetry")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    AS_OF_DAY_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    epoch: Epoch
    generation: str
    policy: str
    as_of_day: int
    points: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    eligible: _containers.RepeatedScalarFieldContainer[bool]
    facets: _containers.RepeatedScalarFieldContainer[str]
    contributions: _containers.RepeatedScalarFieldContainer[int]
    telemetry: Telemetry
    def __init__(self, epoch: _Optional[_Union[Epoch, _Mapping]] = ..., generation: _Optional[str] = ..., policy: _Optional[str] = ..., as_of_day: _Optional[int] = ..., points: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[float]] = ..., eligible: _Optional[_Iterable[bool]] = ..., facets: _Optional[_Iterable[str]] = ..., contributions: _Optional[_Iterable[int]] = ..., telemetry: _Optional[_Union[Telemetry, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("marketplace", "job_id", "job", "freelancer_id", "freelancer", "query_kind", "audience", "options")
    MARKETPLACE_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    FREELANCER_ID_FIELD_NUMBER: _ClassVar[int]
    FREELANCER_FIELD_NUMBER: _ClassVar[int]
    QUERY_KIND_FIELD_NUMBER: _ClassVar[int]
    AUDIENCE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    marketplace: str
    job_id: str
    job: _records_pb2.Job
    freelancer_id: str
    freelancer: _records_pb2.Freelancer
    query_kind: EntityKind
    audience: Audience
    options: FindOptions
    def __init__(self, marketplace: _Optional[str] = ..., job_id: _Optional[str] = ..., job: _Optional[_Union[_records_pb2.Job, _Mapping]] = ..., freelancer_id: _Optional[str] = ..., freelancer: _Optional[_Union[_records_pb2.Freelancer, _Mapping]] = ..., query_kind: _Optional[_Union[EntityKind, str]] = ..., audience: _Optional[_Union[Audience, str]] = ..., options: _Optional[_Union[FindOptions, _Mapping]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("explanation", "telemetry")
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    explanation: Explanation
    telemetry: Telemetry
    def __init__(self, explanation: _Optional[_Union[Explanation, _Mapping]] = ..., telemetry: _Optional[_Union[Telemetry, _Mapping]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("query_kind", "audience", "job_id", "freelancer_id", "epoch", "generation", "policy", "as_of_day", "eligible", "vetoes", "unverified", "rank", "rank_within", "eligible_count", "eligible_fewer_than", "points", "score", "step", "order_key", "k", "kth_points", "gap_points", "attainable", "contributions", "skills", "rerank", "degraded")
    QUERY_KIND_FIELD_NUMBER: _ClassVar[int]
    AUDIENCE_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    FREELANCER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    AS_OF_DAY_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_FIELD_NUMBER: _ClassVar[int]
    VETOES_FIELD_NUMBER: _ClassVar[int]
    UNVERIFIED_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    RANK_WITHIN_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_FEWER_THAN_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ORDER_KEY_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    KTH_POINTS_FIELD_NUMBER: _ClassVar[int]
    GAP_POINTS_FIELD_NUMBER: _ClassVar[int]
    ATTAINABLE_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    SKILLS_FIELD_NUMBER: _ClassVar[int]
    RERANK_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    query_kind: EntityKind
    audience: Audience
    job_id: str
    freelancer_id: str
    epoch: Epoch
    generation: str
    policy: str
    as_of_day: int
    eligible: bool
    vetoes: _containers.RepeatedCompositeFieldContainer[Reason]
    unverified: _containers.RepeatedCompositeFieldContainer[Reason]
    rank: int
    rank_within: int
    eligible_count: int
    eligible_fewer_than: int
    points: int
    score: float
    step: float
    order_key: OrderKey
    k: int
    kth_points: int
    gap_points: int
    attainable: float
    contributions: _containers.RepeatedCompositeFieldContainer[FacetShare]
    skills: SkillComparison
    rerank: SecondPhase
    degraded: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, query_kind: _Optional[_Union[EntityKind, str]] = ..., audience: _Optional[_Union[Audience, str]] = ..., job_id: _Optional[str] = ..., freelancer_id: _Optional[str] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ..., generation: _Optional[str] = ..., policy: _Optional[str] = ..., as_of_day: _Optional[int] = ..., eligible: _Optional[bool] = ..., vetoes: _Optional[_Iterable[_Union[Reason, _Mapping]]] = ..., unverified: _Optional[_Iterable[_Union[Reason, _Mapping]]] = ..., rank: _Optional[int] = ..., rank_within: _Optional[int] = ..., eligible_count: _Optional[int] = ..., eligible_fewer_than: _Optional[int] = ..., points: _Optional[int] = ..., score: _Optional[float] = ..., step: _Optional[float] = ..., order_key: _Optional[_Union[OrderKey, _Mapping]] = ..., k: _Optional[int] = ..., kth_points: _Optional[int] = ..., gap_points: _Optional[int] = ..., attainable: _Optional[float] = ..., contributions: _Optional[_Iterable[_Union[FacetShare, _Mapping]]] = ..., skills: _Optional[_Union[SkillComparison, _Mapping]] = ..., rerank: _Optional[_Union[SecondPhase, _Mapping]] = ..., degraded: _Optional[_Iterable[str]] = ...) -> None: ...

class SecondPhase(_message.Message):
    __slots__ = ("model", "version", "content_hash", "method", "considered", "candidates", "first_rank", "rank", "rank_within", "moved", "compared_with", "score", "bias", "contributions", "moved_by", "text")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTENT_HASH_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    CONSIDERED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    FIRST_RANK_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    RANK_WITHIN_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    COMPARED_WITH_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    MOVED_BY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    content_hash: str
    method: str
    considered: bool
    candidates: int
    first_rank: int
    rank: int
    rank_within: int
    moved: Movement
    compared_with: int
    score: float
    bias: float
    contributions: _containers.RepeatedCompositeFieldContainer[FeatureShare]
    moved_by: _containers.RepeatedCompositeFieldContainer[FeatureShare]
    text: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., content_hash: _Optional[str] = ..., method: _Optional[str] = ..., considered: _Optional[bool] = ..., candidates: _Optional[int] = ..., first_rank: _Optional[int] = ..., rank: _Optional[int] = ..., rank_within: _Optional[int] = ..., moved: _Optional[_Union[Movement, str]] = ..., compared_with: _Optional[int] = ..., score: _Optional[float] = ..., bias: _Optional[float] = ..., contributions: _Optional[_Iterable[_Union[FeatureShare, _Mapping]]] = ..., moved_by: _Optional[_Iterable[_Union[FeatureShare, _Mapping]]] = ..., text: _Optional[str] = ...) -> None: ...

class FeatureShare(_message.Message):
    __slots__ = ("feature", "text", "value", "unit", "score", "effect")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    feature: str
    text: str
    value: int
    unit: str
    score: float
    effect: FeatureEffect
    def __init__(self, feature: _Optional[str] = ..., text: _Optional[str] = ..., value: _Optional[int] = ..., unit: _Optional[str] = ..., score: _Optional[float] = ..., effect: _Optional[_Union[FeatureEffect, str]] = ...) -> None: ...

class Reason(_message.Message):
    __slots__ = ("reason", "reason_class", "text", "values")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _struct_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_struct_pb2.Value, _Mapping]] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    REASON_CLASS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    reason: str
    reason_class: ReasonClass
    text: str
    values: _containers.MessageMap[str, _struct_pb2.Value]
    def __init__(self, reason: _Optional[str] = ..., reason_class: _Optional[_Union[ReasonClass, str]] = ..., text: _Optional[str] = ..., values: _Optional[_Mapping[str, _struct_pb2.Value]] = ...) -> None: ...

class FacetShare(_message.Message):
    __slots__ = ("facet", "points", "score", "best", "fit")
    FACET_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    BEST_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    facet: str
    points: int
    score: float
    best: float
    fit: FacetFit
    def __init__(self, facet: _Optional[str] = ..., points: _Optional[int] = ..., score: _Optional[float] = ..., best: _Optional[float] = ..., fit: _Optional[_Union[FacetFit, str]] = ...) -> None: ...

class SkillComparison(_message.Message):
    __slots__ = ("known", "matched", "missing", "extra", "collisions", "uncounted")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    MATCHED_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    EXTRA_FIELD_NUMBER: _ClassVar[int]
    COLLISIONS_FIELD_NUMBER: _ClassVar[int]
    UNCOUNTED_FIELD_NUMBER: _ClassVar[int]
    known: bool
    matched: _containers.RepeatedCompositeFieldContainer[AskedSkill]
    missing: _containers.RepeatedCompositeFieldContainer[AskedSkill]
    extra: _containers.RepeatedScalarFieldContainer[str]
    collisions: _containers.RepeatedCompositeFieldContainer[SkillCollision]
    uncounted: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, known: _Optional[bool] = ..., matched: _Optional[_Iterable[_Union[AskedSkill, _Mapping]]] = ..., missing: _Optional[_Iterable[_Union[AskedSkill, _Mapping]]] = ..., extra: _Optional[_Iterable[str]] = ..., collisions: _Optional[_Iterable[_Union[SkillCollision, _Mapping]]] = ..., uncounted: _Optional[_Iterable[str]] = ...) -> None: ...

class AskedSkill(_message.Message):
    __slots__ = ("name", "must", "asked_level", "level")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MUST_FIELD_NUMBER: _ClassVar[int]
    ASKED_LEVEL_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    must: bool
    asked_level: int
    level: int
    def __init__(self, name: _Optional[str] = ..., must: _Optional[bool] = ..., asked_level: _Optional[int] = ..., level: _Optional[int] = ...) -> None: ...

class SkillCollision(_message.Message):
    __slots__ = ("asked", "counted", "dimension")
    ASKED_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    asked: str
    counted: str
    dimension: int
    def __init__(self, asked: _Optional[str] = ..., counted: _Optional[str] = ..., dimension: _Optional[int] = ...) -> None: ...

class CountEligibleRequest(_message.Message):
    __slots__ = ("marketplace", "job_id", "job", "freelancer_id", "freelancer", "options")
    MARKETPLACE_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    FREELANCER_ID_FIELD_NUMBER: _ClassVar[int]
    FREELANCER_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    marketplace: str
    job_id: str
    job: _records_pb2.Job
    freelancer_id: str
    freelancer: _records_pb2.Freelancer
    options: FindOptions
    def __init__(self, marketplace: _Optional[str] = ..., job_id: _Optional[str] = ..., job: _Optional[_Union[_records_pb2.Job, _Mapping]] = ..., freelancer_id: _Optional[str] = ..., freelancer: _Optional[_Union[_records_pb2.Freelancer, _Mapping]] = ..., options: _Optional[_Union[FindOptions, _Mapping]] = ...) -> None: ...

class CountEligibleResponse(_message.Message):
    __slots__ = ("epoch", "policy", "as_of_day", "count_kind", "eligible", "unverified", "telemetry")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    AS_OF_DAY_FIELD_NUMBER: _ClassVar[int]
    COUNT_KIND_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_FIELD_NUMBER: _ClassVar[int]
    UNVERIFIED_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    epoch: Epoch
    policy: str
    as_of_day: int
    count_kind: CountKind
    eligible: int
    unverified: int
    telemetry: Telemetry
    def __init__(self, epoch: _Optional[_Union[Epoch, _Mapping]] = ..., policy: _Optional[str] = ..., as_of_day: _Optional[int] = ..., count_kind: _Optional[_Union[CountKind, str]] = ..., eligible: _Optional[int] = ..., unverified: _Optional[int] = ..., telemetry: _Optional[_Union[Telemetry, _Mapping]] = ...) -> None: ...
