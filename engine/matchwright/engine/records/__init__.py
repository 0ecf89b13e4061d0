"""Records: the schemas of jobs and freelancers, and everything that brings data into them."""

from __future__ import annotations

from matchwright.engine.records.convert import to_frame, to_rows
from matchwright.engine.records.fields import FIELDS, KINDS, SCHEMA_VERSION, Field, Kind
from matchwright.engine.records.schema import FREELANCER_SCHEMA, JOB_SCHEMA, SCHEMAS, empty

__all__ = [
    "FIELDS",
    "FREELANCER_SCHEMA",
    "JOB_SCHEMA",
    "KINDS",
    "SCHEMAS",
    "SCHEMA_VERSION",
    "Field",
    "Kind",
    "empty",
    "to_frame",
    "to_rows",
]
