"""Writes ``docs/records.md``: ``python -m matchwright.engine.records.document``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from matchwright.engine.records.fields import (
    FIELDS,
    LABEL_CHARS_MAX,
    LIST_ITEMS_MAX,
    SCHEMA_VERSION,
    TEXT_CHARS_MAX,
    TITLE_CHARS_MAX,
    Field,
    Kind,
    Type,
)
from matchwright.engine.records.schema import dtype_of

_HEAD = f"""# Records

<!-- Written by `python -m matchwright.engine.records.document`; a test compares. -->

Two kinds of entity are matched: jobs and freelancers. This page lists every field of both, with its
type as stored (Polars), its unit and range, and what *unknown* (null) means. Schema version
{SCHEMA_VERSION}. How other people's files become records is in [ingest.md](ingest.md).

- An id is 1 to 128 bytes of NFC UTF-8 without control, zero-width or bidirectional characters.
- Money is in integer cents of the marketplace's one currency. Days count from 1970-01-01 UTC.
- Names, titles and labels are NFKC. A label has at most {LABEL_CHARS_MAX} characters, a title
  {TITLE_CHARS_MAX:,}, a text {TEXT_CHARS_MAX:,}; a list has at most {LIST_ITEMS_MAX:,} items.
- Titles and texts are *scrubbed* when a record is made: given names and the surnames after them,
  e-mail addresses, phone numbers, links and handles are taken out, as are invisible characters. Two
  records that differ in a first name only are equal afterwards.
- Skills are *normalised*: `React.js`, `ReactJS` and `react js` are one skill; `C`, `C++`, `C#` and
  `.NET` are not. Skills that no alias table knows are kept in lower-case words.
- Unknown is not zero and not empty: an unknown list is null, one that is known to hold nothing is
  `[]`. To a score an unknown field contributes its neutral amount; what a rule makes of it is said
  in the policy. A limit that is null asks for nothing.
- The same validation serves files, gRPC and Python (`matchwright.engine.records.to_frame`), and a
  record in stored form passes it unchanged.
"""

_CHECKS: dict[Kind, str] = {
    "job": """\
Checked together: `rate_min_cents` is not above `rate_max_cents`, `min_rate_cents` not above
`max_rate_cents`, `posted` not after `closes`; the two ends of the working hours are both known or
both unknown.""",
    "freelancer": (
        "Checked together: the two ends of the working hours are both known or both unknown."
    ),
}


def records_md() -> str:
    """The whole page."""
    parts = [_HEAD]
    for kind in FIELDS:
        parts += _section(kind)
    return "\n".join(parts)


def _section(kind: Kind) -> Iterator[str]:
    fields = FIELDS[kind].values()
    yield f"## {kind.capitalize()}\n"
    yield from _table([field for field in fields if not field.limit])
    yield "\n### Limits\n"
    yield (
        "Hard limits are never traded against relevance: a pair that breaks one is not eligible.\n"
    )
    yield from _table([field for field in fields if field.limit])
    yield f"\n{_CHECKS[kind]}\n"


def _table(fields: list[Field]) -> Iterator[str]:
    yield "| field | type | unit and range | meaning | unknown means |"
    yield "|---|---|---|---|---|"
    for field in fields:
        yield (
            f"| `{field.name}` | {_type(field)} | {_range(field)} | {field.doc} | {field.unknown} |"
        )


def _type(field: Field) -> str:
    return f"`{dtype_of(field)!r}`".replace("'", "")


def _range(field: Field) -> str:
    if field.type is Type.INT:
        return f"{field.unit.value or 'count'}, {field.low:,} to {field.high:,}"
    if field.type is Type.ENUM:
        return ", ".join(f"`{value}`" for value in field.values)
    return _FORMS.get(field.type, "")


_FORMS = {
    Type.ID: "1 to 128 bytes",
    Type.TITLE: f"at most {TITLE_CHARS_MAX:,} characters",
    Type.TEXT: f"at most {TEXT_CHARS_MAX:,} characters",
    Type.LABEL: f"at most {LABEL_CHARS_MAX} characters",
    Type.COUNTRY: "ISO 3166-1 alpha-2, and XK",
    Type.ZONE: "IANA name",
    Type.SKILLS: "level 1 to 5 or null",
    Type.ASKED_SKILLS: "level 1 to 5 or null; must defaults to false",
    Type.CERTIFICATIONS: "issued in days since 1970-01-01; verified defaults to false",
    Type.LANGUAGES: "ISO 639-1; level 1 to 6 or null",
    Type.LABELS: f"each at most {LABEL_CHARS_MAX} characters",
    Type.IDS: "each 1 to 128 bytes",
    Type.COUNTRIES: "ISO 3166-1 alpha-2 codes",
}


if __name__ == "__main__":
    sys.stdout.write(records_md())
