"""Every field of a job and of a freelancer: type, unit, range and what unknown means.

The schemas, the validation, the map checker and ``docs/records.md`` are all made from the two
tables at the end of this module, so they cannot disagree.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["job", "freelancer"]
KINDS: tuple[Kind, ...] = ("job", "freelancer")

SCHEMA_VERSION = 1

ID_BYTES_MAX = 128
LABEL_CHARS_MAX = 128
TITLE_CHARS_MAX = 1_000
TEXT_CHARS_MAX = 100_000
LIST_ITEMS_MAX = 1_000
RATE_CENTS_MAX = 100_000_000
MONEY_CENTS_MAX = 2_000_000_000
SPENT_CENTS_MAX = 10**15
COUNT_MAX = 100_000_000
DAY_MAX = 47_846  # 2100-12-31

EXPERIENCE = ("ENTRY", "INTERMEDIATE", "EXPERT")
FREELANCER_STATUS = ("AVAILABLE", "BUSY", "GONE")
JOB_STATUS = ("OPEN", "PAUSED", "CLOSED")
CEFR = ("A1", "A2", "B1", "B2", "C1", "C2")


class Type(enum.Enum):
    """What a field holds; the parser and the Polars type follow from it."""

    ID = "id"
    TITLE = "title"
    TEXT = "text"
    LABEL = "label"
    ENUM = "enum"
    COUNTRY = "country"
    ZONE = "zone"
    INT = "int"
    SKILLS = "skills"
    ASKED_SKILLS = "asked skills"
    CERTIFICATIONS = "certifications"
    LANGUAGES = "languages"
    LABELS = "labels"
    IDS = "ids"
    COUNTRIES = "countries"


class Unit(enum.Enum):
    """The unit that an integer is stored in; maps say which unit they convert from."""

    NONE = ""
    CENTS = "cents"
    PERMILLE = "permille"
    MILLI = "thousandths of a star"
    DAY = "days since 1970-01-01 UTC"
    DAYS = "days"
    MINUTE = "minutes of the local day"
    MINUTES = "minutes"
    HOURS = "hours per week"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record.

    Attributes:
        low, high: inclusive range of an integer.
        bits: width of the stored integer.
        values: the values of an enumeration.
        limit: the field is one of the entity's own limits: null asks for nothing.
        unknown: what null means.
    """

    name: str
    type: Type
    doc: str
    unknown: str = "not known"
    unit: Unit = Unit.NONE
    low: int = 0
    high: int = 0
    bits: int = 32
    values: tuple[str, ...] = ()
    limit: bool = False

    @property
    def is_list(self) -> bool:
        return self.type in LIST_TYPES


LIST_TYPES = frozenset(
    {
        Type.SKILLS, Type.ASKED_SKILLS, Type.CERTIFICATIONS, Type.LANGUAGES,
        Type.LABELS, Type.IDS, Type.COUNTRIES,
    }
)  # fmt: skip


def _money(name: str, doc: str, unknown: str, high: int = MONEY_CENTS_MAX, low: int = 0) -> Field:
    bits = 32 if high < 2**31 else 64
    return Field(name, Type.INT, doc, unknown, Unit.CENTS, low, high, bits)


def _permille(name: str, doc: str) -> Field:
    return Field(name, Type.INT, doc, "no history yet", Unit.PERMILLE, 0, 1_000, 16)


def _day(name: str, doc: str) -> Field:
    return Field(name, Type.INT, doc, "not known", Unit.DAY, 0, DAY_MAX)


def _minute(name: str, doc: str, high: int) -> Field:
    return Field(name, Type.INT, doc, "working hours not known", Unit.MINUTE, 0, high, 16)


def _limit(name: str, type_: Type, doc: str, **more: object) -> Field:
    unknown = "no such limit"
    return Field(name, type_, doc, unknown, limit=True, **more)  # type: ignore[arg-type]


_RATE = {"unit": Unit.CENTS, "low": 0, "high": RATE_CENTS_MAX}

_ID = Field("id", Type.ID, "External id: 1 to 128 bytes of NFC UTF-8.", "never unknown")
_TITLE = Field("title", Type.TITLE, "One line; at most 1,000 characters, scrubbed.")
_TEXT = Field("text", Type.TEXT, "Free text; at most 100,000 characters, scrubbed.")
_COUNTRY = Field("country", Type.COUNTRY, "ISO 3166-1 alpha-2, for example `GB`.")
_ZONE = Field("zone", Type.ZONE, "IANA time zone, for example `Europe/Paris`.")
_START = _minute("hours_start", "When the working day begins, local time.", 1_439)
_END = _minute(
    "hours_end",
    "When the working day ends; an end not after the start crosses midnight.",
    1_440,
)

FREELANCER_FIELDS: tuple[Field, ...] = (
    _ID,
    _TITLE,
    _TEXT,
    Field("skills", Type.SKILLS, "Skills, normalised; `level` is 1 (beginner) to 5 (master)."),
    Field("categories", Type.LABELS, "Fields of work offered."),
    Field(
        "certifications",
        Type.CERTIFICATIONS,
        "Name, issuer, day of issue, and whether the marketplace has verified it.",
    ),
    _money("rate_cents", "Hourly rate asked.", "rate not stated", RATE_CENTS_MAX),
    Field("experience_level", Type.ENUM, "Seniority.", values=EXPERIENCE),
    Field(
        "languages",
        Type.LANGUAGES,
        "ISO 639-1 code and level: 1 to 6 for CEFR A1 to C2.",
    ),
    _COUNTRY,
    _ZONE,
    _START,
    _END,
    Field("weekly_hours", Type.INT, "Hours a week on offer.", unit=Unit.HOURS, high=168, bits=16),
    Field("reviews", Type.INT, "Number of reviews received.", high=COUNT_MAX),
    Field(
        "rating_milli", Type.INT, "Mean rating, 5,000 is five stars.", "no rating yet",
        Unit.MILLI, 0, 5_000,
    ),
    _permille("success_permille", "Share of jobs that ended well."),
    _permille("response_permille", "Share of invitations answered."),
    _permille("completion_permille", "Share of accepted jobs that were completed."),
    _day("joined", "Day of joining the marketplace."),
    _day("last_active", "Last day of activity."),
    Field("status", Type.ENUM, "Whether new work is taken.", values=FREELANCER_STATUS),
    _limit("min_rate_cents", Type.INT, "Takes no hourly job that pays less.", **_RATE),
    _limit(
        "min_fixed_cents", Type.INT, "Takes no fixed-price job below this.",
        unit=Unit.CENTS, high=MONEY_CENTS_MAX,
    ),
    _limit(
        "min_weekly_hours", Type.INT, "Takes no job that asks for fewer hours.",
        unit=Unit.HOURS, high=168, bits=16,
    ),
    _limit("declined_categories", Type.LABELS, "Categories that are declined."),
    _limit("excluded_clients", Type.IDS, "Clients never to be matched with."),
    _limit("countries_denied", Type.COUNTRIES, "Countries whose clients are declined."),
)  # fmt: skip

JOB_FIELDS: tuple[Field, ...] = (
    _ID,
    Field("client_id", Type.ID, "External id of the client that posted it.", "client not known"),
    _TITLE,
    _TEXT,
    Field(
        "skills",
        Type.ASKED_SKILLS,
        "Skills asked for, normalised; `level` 1 to 5; `must` is false for nice-to-have.",
    ),
    Field("category", Type.LABEL, "Field of work."),
    _money("rate_min_cents", "Bottom of the hourly budget.", "not hourly, or no bottom stated",
           RATE_CENTS_MAX),
    _money("rate_max_cents", "Top of the hourly budget.", "not hourly, or no top stated",
           RATE_CENTS_MAX),
    _money("fixed_cents", "Fixed price.", "not at a fixed price, or not stated"),
    Field("experience_level", Type.ENUM, "Seniority wanted.", values=EXPERIENCE),
    Field(
        "languages",
        Type.LANGUAGES,
        "Languages required: ISO 639-1 code and least level, 1 to 6 for CEFR A1 to C2.",
        "none required",
    ),
    _COUNTRY,
    _ZONE,
    _START,
    _END,
    Field("weekly_hours", Type.INT, "Hours a week asked for.", unit=Unit.HOURS, high=168, bits=16),
    Field("duration_days", Type.INT, "How long the work lasts.", unit=Unit.DAYS, high=36_600),
    Field("client_reviews", Type.INT, "Reviews that the client has received.", high=COUNT_MAX),
    Field(
        "client_rating_milli", Type.INT, "The client's mean rating.", "no rating yet",
        Unit.MILLI, 0, 5_000,
    ),
    Field("client_hires", Type.INT, "People that the client has hired.", high=COUNT_MAX),
    _money("client_spent_cents", "What the client has paid so far.", "not known", SPENT_CENTS_MAX),
    _day("posted", "Day of posting."),
    _day("closes", "Last day on which the job is open."),
    Field("status", Type.ENUM, "Whether the job takes proposals.", values=JOB_STATUS),
    _limit("max_rate_cents", Type.INT, "Nobody who asks for more.", **_RATE),
    _limit("min_rate_cents", Type.INT, "Nobody who asks for less.", **_RATE),
    _limit("countries_allowed", Type.COUNTRIES, "Freelancers from these countries alone."),
    _limit("countries_denied", Type.COUNTRIES, "No freelancers from these countries."),
    _limit("excluded_freelancers", Type.IDS, "Freelancers never to be matched with."),
    _limit(
        "min_overlap_minutes", Type.INT, "Least daily overlap of working hours.",
        unit=Unit.MINUTES, high=1_440, bits=16,
    ),
    _limit("min_experience", Type.ENUM, "Least seniority.", values=EXPERIENCE),
    _limit(
        "min_rating_milli", Type.INT, "Least mean rating.", unit=Unit.MILLI, high=5_000,
    ),
    _limit(
        "min_success_permille", Type.INT, "Least share of jobs that ended well.",
        unit=Unit.PERMILLE, high=1_000, bits=16,
    ),
    _limit("min_reviews", Type.INT, "Least number of reviews.", high=COUNT_MAX),
    _limit("certifications_required", Type.LABELS, "Certifications that must all be held."),
)  # fmt: skip

FIELDS: Mapping[Kind, Mapping[str, Field]] = MappingProxyType(
    {
        "job": MappingProxyType({field.name: field for field in JOB_FIELDS}),
        "freelancer": MappingProxyType({field.name: field for field in FREELANCER_FIELDS}),
    }
)
