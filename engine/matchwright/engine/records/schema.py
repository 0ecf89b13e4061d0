"""The Polars schemas of the two kinds, and dictionaries to validated frames."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from matchwright.engine.records.fields import (
    FIELDS,
    KINDS,
    SCHEMA_VERSION,
    Field,
    Kind,
    Type,
)

_INTS = {16: pl.Int16, 32: pl.Int32, 64: pl.Int64}

_LISTS: Mapping[Type, pl.DataType] = {
    Type.SKILLS: pl.List(pl.Struct({"name": pl.String, "level": pl.Int8})),
    Type.ASKED_SKILLS: pl.List(
        pl.Struct({"name": pl.String, "level": pl.Int8, "must": pl.Boolean})
    ),
    Type.CERTIFICATIONS: pl.List(
        pl.Struct(
            {"name": pl.String, "issuer": pl.String, "issued": pl.Int32, "verified": pl.Boolean}
        )
    ),
    Type.LANGUAGES: pl.List(pl.Struct({"code": pl.String, "level": pl.Int8})),
    Type.LABELS: pl.List(pl.String),
    Type.IDS: pl.List(pl.String),
    Type.COUNTRIES: pl.List(pl.String),
}


def dtype_of(field: Field) -> pl.DataType:
    """The Polars type that ``field`` is stored as."""
    if field.type is Type.INT:
        return _INTS[field.bits]()
    return _LISTS.get(field.type, pl.String())


def _schema(kind: Kind) -> pl.Schema:
    return pl.Schema({field.name: dtype_of(field) for field in FIELDS[kind].values()})


JOB_SCHEMA: pl.Schema = _schema("job")
FREELANCER_SCHEMA: pl.Schema = _schema("freelancer")
SCHEMAS: Mapping[Kind, pl.Schema] = {"job": JOB_SCHEMA, "freelancer": FREELANCER_SCHEMA}


def empty(kind: Kind) -> pl.DataFrame:
    """A frame of the kind's schema with no rows."""
    return pl.DataFrame(schema=SCHEMAS[kind])


__all__ = [
    "FREELANCER_SCHEMA",
    "JOB_SCHEMA",
    "KINDS",
    "SCHEMAS",
    "SCHEMA_VERSION",
    "Kind",
    "dtype_of",
    "empty",
]
