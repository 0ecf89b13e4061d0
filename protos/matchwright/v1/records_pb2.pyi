from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExperienceLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXPERIENCE_LEVEL_UNSPECIFIED: _ClassVar[ExperienceLevel]
    EXPERIENCE_LEVEL_ENTRY: _ClassVar[ExperienceLevel]
    EXPERIENCE_LEVEL_INTERMEDIATE: _ClassVar[ExperienceLevel]
    EXPERIENCE_LEVEL_EXPERT: _ClassVar[ExperienceLevel]

class LanguageLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LANGUAGE_LEVEL_UNSPECIFIED: _ClassVar[LanguageLevel]
    LANGUAGE_LEVEL_A1: _ClassVar[LanguageLevel]
    LANGUAGE_LEVEL_A2: _ClassVar[LanguageLevel]
    LANGUAGE_LEVEL_B1: _ClassVar[LanguageLevel]
    LANGUAGE_LEVEL_B2: _ClassVar[LanguageLevel]
    LANGUAGE_LEVEL_C1: _ClassVar[LanguageLevel]
    LANGUAGE_LEVEL_C2: _ClassVar[LanguageLevel]

class JobStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATUS_UNSPECIFIED: _ClassVar[JobStatus]
    JOB_STATUS_OPEN: _ClassVar[JobStatus]
    JOB_STATUS_PAUSED: _ClassVar[JobStatus]
    JOB_STATUS_CLOSED: _ClassVar[JobStatus]

class FreelancerStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FREELANCER_STATUS_UNSPECIFIED: _ClassVar[FreelancerStatus]
    FREELANCER_STATUS_AVAILABLE: _ClassVar[FreelancerStatus]
    FREELANCER_STATUS_BUSY: _ClassVar[FreelancerStatus]
    FREELANCER_STATUS_GONE: _ClassVar[FreelancerStatus]
EXPERIENCE_LEVEL_UNSPECIFIED: ExperienceLevel
EXPERIENCE_LEVEL_ENTRY: ExperienceLevel
EXPERIENCE_LEVEL_INTERMEDIATE: ExperienceLevel
EXPERIENCE_LEVEL_EXPERT: ExperienceLevel
LANGUAGE_LEVEL_UNSPECIFIED: LanguageLevel
LANGUAGE_LEVEL_A1: LanguageLevel
LANGUAGE_LEVEL_A2: LanguageLevel
LANGUAGE_LEVEL_B1: LanguageLevel
LANGUAGE_LEVEL_B2: LanguageLevel
LANGUAGE_LEVEL_C1: LanguageLevel
LANGUAGE_LEVEL_C2: LanguageLevel
JOB_STATUS_UNSPECIFIED: JobStatus
JOB_STATUS_OPEN: JobStatus
JOB_STATUS_PAUSED: JobStatus
JOB_STATUS_CLOSED: JobStatus
FREELANCER_STATUS_UNSPECIFIED: FreelancerStatus
FREELANCER_STATUS_AVAILABLE: FreelancerStatus
FREELANCER_STATUS_BUSY: FreelancerStatus
FREELANCER_STATUS_GONE: FreelancerStatus

class Job(_message.Message):
    __slots__ = ("id", "client_id", "title", "text", "skills", "category", "rate_min_cents", "rate_max_cents", "fixed_cents", "experience_level", "languages", "country", "zone", "hours_start", "hours_end", "weekly_hours", "duration_days", "client_reviews", "client_rating_milli", "client_hires", "client_spent_cents", "posted", "closes", "status", "limits", "known_empty")
    ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SKILLS_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    RATE_MIN_CENTS_FIELD_NUMBER: _ClassVar[int]
    RATE_MAX_CENTS_FIELD_NUMBER: _ClassVar[int]
    FIXED_CENTS_FIELD_NUMBER: _ClassVar[int]
    EXPERIENCE_LEVEL_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    COUNTRY_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    HOURS_START_FIELD_NUMBER: _ClassVar[int]
    HOURS_END_FIELD_NUMBER: _ClassVar[int]
    WEEKLY_HOURS_FIELD_NUMBER: _ClassVar[int]
    DURATION_DAYS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_REVIEWS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_RATING_MILLI_FIELD_NUMBER: _ClassVar[int]
    CLIENT_HIRES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_SPENT_CENTS_FIELD_NUMBER: _ClassVar[int]
    POSTED_FIELD_NUMBER: _ClassVar[int]
    CLOSES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_EMPTY_FIELD_NUMBER: _ClassVar[int]
    id: str
    client_id: str
    title: str
    text: str
    skills: _containers.RepeatedCompositeFieldContainer[JobSkill]
    category: str
    rate_min_cents: int
    rate_max_cents: int
    fixed_cents: int
    experience_level: ExperienceLevel
    languages: _containers.RepeatedCompositeFieldContainer[Language]
    country: str
    zone: str
    hours_start: int
    hours_end: int
    weekly_hours: int
    duration_days: int
    client_reviews: int
    client_rating_milli: int
    client_hires: int
    client_spent_cents: int
    posted: int
    closes: int
    status: JobStatus
    limits: JobLimits
    known_empty: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., client_id: _Optional[str] = ..., title: _Optional[str] = ..., text: _Optional[str] = ..., skills: _Optional[_Iterable[_Union[JobSkill, _Mapping]]] = ..., category: _Optional[str] = ..., rate_min_cents: _Optional[int] = ..., rate_max_cents: _Optional[int] = ..., fixed_cents: _Optional[int] = ..., experience_level: _Optional[_Union[ExperienceLevel, str]] = ..., languages: _Optional[_Iterable[_Union[Language, _Mapping]]] = ..., country: _Optional[str] = ..., zone: _Optional[str] = ..., hours_start: _Optional[int] = ..., hours_end: _Optional[int] = ..., weekly_hours: _Optional[int] = ..., duration_days: _Optional[int] = ..., client_reviews: _Optional[int] = ..., client_rating_milli: _Optional[int] = ..., client_hires: _Optional[int] = ..., client_spent_cents: _Optional[int] = ..., posted: _Optional[int] = ..., closes: _Optional[int] = ..., status: _Optional[_Union[JobStatus, str]] = ..., limits: _Optional[_Union[JobLimits, _Mapping]] = ..., known_empty: _Optional[_Iterable[str]] = ...) -> None: ...

class Freelancer(_message.Message):
    __slots__ = ("id", "title", "text", "skills", "categories", "certifications", "rate_cents", "experience_level", "languages", "country", "zone", "hours_start", "hours_end", "weekly_hours", "reviews", "rating_milli", "success_permille", "response_permille", "completion_permille", "joined", "last_active", "status", "limits", "known_empty")
    ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SKILLS_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATIONS_FIELD_NUMBER: _ClassVar[int]
    RATE_CENTS_FIELD_NUMBER: _ClassVar[int]
    EXPERIENCE_LEVEL_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    COUNTRY_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    HOURS_START_FIELD_NUMBER: _ClassVar[int]
    HOURS_END_FIELD_NUMBER: _ClassVar[int]
    WEEKLY_HOURS_FIELD_NUMBER: _ClassVar[int]
    REVIEWS_FIELD_NUMBER: _ClassVar[int]
    RATING_MILLI_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_PERMILLE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_PERMILLE_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_PERMILLE_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    LAST_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_EMPTY_FIELD_NUMBER: _ClassVar[int]
    id: str
    title: str
    text: str
    skills: _containers.RepeatedCompositeFieldContainer[Skill]
    categories: _containers.RepeatedScalarFieldContainer[str]
    certifications: _containers.RepeatedCompositeFieldContainer[Certification]
    rate_cents: int
    experience_level: ExperienceLevel
    languages: _containers.RepeatedCompositeFieldContainer[Language]
    country: str
    zone: str
    hours_start: int
    hours_end: int
    weekly_hours: int
    reviews: int
    rating_milli: int
    success_permille: int
    response_permille: int
    completion_permille: int
    joined: int
    last_active: int
    status: FreelancerStatus
    limits: FreelancerLimits
    known_empty: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., title: _Optional[str] = ..., text: _Optional[str] = ..., skills: _Optional[_Iterable[_Union[Skill, _Mapping]]] = ..., categories: _Optional[_Iterable[str]] = ..., certifications: _Optional[_Iterable[_Union[Certification, _Mapping]]] = ..., rate_cents: _Optional[int] = ..., experience_level: _Optional[_Union[ExperienceLevel, str]] = ..., languages: _Optional[_Iterable[_Union[Language, _Mapping]]] = ..., country: _Optional[str] = ..., zone: _Optional[str] = ..., hours_start: _Optional[int] = ..., hours_end: _Optional[int] = ..., weekly_hours: _Optional[int] = ..., reviews: _Optional[int] = ..., rating_milli: _Optional[int] = ..., success_permille: _Optional[int] = ..., response_permille: _Optional[int] = ..., completion_permille: _Optional[int] = ..., joined: _Optional[int] = ..., last_active: _Optional[int] = ..., status: _Optional[_Union[FreelancerStatus, str]] = ..., limits: _Optional[_Union[FreelancerLimits, _Mapping]] = ..., known_empty: _Optional[_Iterable[str]] = ...) -> None: ...

class JobSkill(_message.Message):
    __slots__ = ("name", "level", "must")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    MUST_FIELD_NUMBER: _ClassVar[int]
    name: str
    level: int
    must: bool
    def __init__(self, name: _Optional[str] = ..., level: _Optional[int] = ..., must: _Optional[bool] = ...) -> None: ...

class Skill(_message.Message):
    __slots__ = ("name", "level")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    level: int
    def __init__(self, name: _Optional[str] = ..., level: _Optional[int] = ...) -> None: ...

class Certification(_message.Message):
    __slots__ = ("name", "issuer", "issued", "verified")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    ISSUED_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    name: str
    issuer: str
    issued: int
    verified: bool
    def __init__(self, name: _Optional[str] = ..., issuer: _Optional[str] = ..., issued: _Optional[int] = ..., verified: _Optional[bool] = ...) -> None: ...

class Language(_message.Message):
    __slots__ = ("code", "level")
    CODE_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    code: str
    level: LanguageLevel
    def __init__(self, code: _Optional[str] = ..., level: _Optional[_Union[LanguageLevel, str]] = ...) -> None: ...

class JobLimits(_message.Message):
    __slots__ = ("max_rate_cents", "min_rate_cents", "countries_allowed", "countries_denied", "excluded_freelancers", "min_overlap_minutes", "min_experience", "min_rating_milli", "min_success_permille", "min_reviews", "certifications_required")
    MAX_RATE_CENTS_FIELD_NUMBER: _ClassVar[int]
    MIN_RATE_CENTS_FIELD_NUMBER: _ClassVar[int]
    COUNTRIES_ALLOWED_FIELD_NUMBER: _ClassVar[int]
    COUNTRIES_DENIED_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FREELANCERS_FIELD_NUMBER: _ClassVar[int]
    MIN_OVERLAP_MINUTES_FIELD_NUMBER: _ClassVar[int]
    MIN_EXPERIENCE_FIELD_NUMBER: _ClassVar[int]
    MIN_RATING_MILLI_FIELD_NUMBER: _ClassVar[int]
    MIN_SUCCESS_PERMILLE_FIELD_NUMBER: _ClassVar[int]
    MIN_REVIEWS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATIONS_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    max_rate_cents: int
    min_rate_cents: int
    countries_allowed: _containers.RepeatedScalarFieldContainer[str]
    countries_denied: _containers.RepeatedScalarFieldContainer[str]
    excluded_freelancers: _containers.RepeatedScalarFieldContainer[str]
    min_overlap_minutes: int
    min_experience: ExperienceLevel
    min_rating_milli: int
    min_success_permille: int
    min_reviews: int
    certifications_required: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, max_rate_cents: _Optional[int] = ..., min_rate_cents: _Optional[int] = ..., countries_allowed: _Optional[_Iterable[str]] = ..., countries_denied: _Optional[_Iterable[str]] = ..., excluded_freelancers: _Optional[_Iterable[str]] = ..., min_overlap_minutes: _Optional[int] = ..., min_experience: _Optional[_Union[ExperienceLevel, str]] = ..., min_rating_milli: _Optional[int] = ..., min_success_permille: _Optional[int] = ..., min_reviews: _Optional[int] = ..., certifications_required: _Optional[_Iterable[str]] = ...) -> None: ...

class FreelancerLimits(_message.Message):
    __slots__ = ("min_rate_cents", "min_fixed_cents", "min_weekly_hours", "declined_categories", "excluded_clients", "countries_denied")
    MIN_RATE_CENTS_FIELD_NUMBER: _ClassVar[int]
    MIN_FIXED_CENTS_FIELD_NUMBER: _ClassVar[int]
    MIN_WEEKLY_HOURS_FIELD_NUMBER: _ClassVar[int]
    DECLINED_CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    COUNTRIES_DENIED_FIELD_NUMBER: _ClassVar[int]
    min_rate_cents: int
    min_fixed_cents: int
    min_weekly_hours: int
    declined_categories: _containers.RepeatedScalarFieldContainer[str]
    excluded_clients: _containers.RepeatedScalarFieldContainer[str]
    countries_denied: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, min_rate_cents: _Optional[int] = ..., min_fixed_cents: _Optional[int] = ..., min_weekly_hours: _Optional[int] = ..., declined_categories: _Optional[_Iterable[str]] = ..., excluded_clients: _Optional[_Iterable[str]] = ..., countries_denied: _Optional[_Iterable[str]] = ...) -> None: ...
