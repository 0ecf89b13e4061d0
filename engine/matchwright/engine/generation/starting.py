"""The starter generation: lets an empty store take its first upsert.

Nothing in it is learnt: words and skills are hashed, knots and steps are standard. It is package
data, made once by ``build`` and frozen: ``python -m matchwright.engine.generation.starting FOLDER``
writes it anew, which only a new format version may ask for.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import resources
from pathlib import Path

from matchwright.engine.generation.facets.availability import Availability
from matchwright.engine.generation.facets.category import Category
from matchwright.engine.generation.facets.experience import Experience
from matchwright.engine.generation.facets.hours import Hours
from matchwright.engine.generation.facets.rate import Rate
from matchwright.engine.generation.facets.recency import Recency
from matchwright.engine.generation.facets.skills import Skills
from matchwright.engine.generation.facets.track import Track
from matchwright.engine.generation.fitting import measured, text_state
from matchwright.engine.generation.generation import Generation
from matchwright.engine.generation.manifest import FORMAT_VERSION, Fitted, Manifest, Measures
from matchwright.engine.generation.text import HashedEncoder
from matchwright.engine.generation.zones import zones_of
from matchwright.engine.records import FREELANCER_SCHEMA, JOB_SCHEMA

AS_OF = 20_454
"""1 January 2026."""
_RECENCY = (
    17_897, 18_628, 18_993, 19_358, 19_723, 19_905, 20_089, 20_179, 20_270, 20_362, 20_454, 20_544,
    20_635, 20_727, 20_819, 21_184,
)  # fmt: skip
"""1 January of 2019 and 2021 to 2024, half years, then quarters from 2025 to 2026, and 2028."""


@cache
def starter() -> Generation:
    """The frozen starter generation."""
    with resources.as_file(resources.files(__package__).joinpath("starter")) as path:
        return Generation.load(path)


def build() -> Generation:
    """The starter generation from its definition, with the installed time zones."""
    import polars as pl

    encoder = HashedEncoder()
    blank = Measures((), ())
    draft = Manifest(
        format_version=FORMAT_VERSION,
        as_of=AS_OF,
        rotation_seed=1,
        text=text_state(encoder),
        skills=Skills(),
        rate=Rate(),
        experience=Experience(),
        hours=Hours(zones_of(2026)),
        category=Category(),
        track=Track(),
        availability=Availability(),
        recency=Recency(_RECENCY),
        job=blank,
        freelancer=blank,
        fitted=Fitted(),
    )
    empty = (pl.DataFrame(schema=schema) for schema in (JOB_SCHEMA, FREELANCER_SCHEMA))
    return measured(draft, encoder, *empty)


if __name__ == "__main__":
    build().save(Path(sys.argv[1]))
