"""The generation's file, ``generation.json``: everything fitted but the encoder's arrays."""

from __future__ import annotations

import hashlib

import msgspec

from matchwright.engine.generation.facets.availability import Availability
from matchwright.engine.generation.facets.category import Category
from matchwright.engine.generation.facets.experience import Experience
from matchwright.engine.generation.facets.hours import Hours
from matchwright.engine.generation.facets.rate import Rate
from matchwright.engine.generation.facets.recency import Recency
from matchwright.engine.generation.facets.skills import Skills
from matchwright.engine.generation.facets.track import Track

FORMAT_VERSION = 1
"""Version of the definition of a score: any change of x, q, t or points needs the next one."""


class ServedState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A served encoder. What it gave is in the store (``embeddings/``), not in the generation.

    Attributes:
        version: of the model ``encoder`` in its repository when the generation was made.
        dimensions: of its output.
    """

    version: int
    dimensions: int


class TextState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which encoder, and what is stored beside the manifest.

    Attributes:
        encoder: "hashed", "svd" or "served".
        content_hash: the encoder's.
        tf_table: weight of a token by its count.
        files: name -> BLAKE2b-256 of the file, hex.
        served: of a served encoder alone; left out of the manifest else.
    """

    encoder: str
    content_hash: str
    width: int
    tf_table: tuple[int, ...]
    files: dict[str, str] = {}
    served: ServedState | msgspec.UnsetType = msgspec.UNSET


class Fitted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the generation was fitted on.

    Attributes:
        seed, sample: as asked for.
        jobs, freelancers: records that were there, before sampling.
        tokens: share of the sample's tokens that were learnt, in thousandths.
    """

    seed: int = 0
    sample: int = 0
    jobs: int = 0
    freelancers: int = 0
    tokens: int = 0


class Measures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds for the rows of one kind.

    Attributes:
        steps: one for each facet, hexadecimal floats.
        mean: rotated grid integers (D,): what stands for unknown.
    """

    steps: tuple[str, ...]
    mean: tuple[int, ...]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A generation without its arrays."""

    format_version: int
    as_of: int
    rotation_seed: int
    text: TextState
    skills: Skills
    rate: Rate
    experience: Experience
    hours: Hours
    category: Category
    track: Track
    availability: Availability
    recency: Recency
    job: Measures
    freelancer: Measures
    fitted: Fitted

    def to_bytes(self) -> bytes:
        """Canonical JSON: keys in the order of the fields, no spaces."""
        return msgspec.json.encode(self, order="sorted")

    def content_id(self) -> str:
        """32 hex digits that name the content, the files' checksums included."""
        return hashlib.blake2b(self.to_bytes(), digest_size=16, person=b"mw-generation").hexdigest()
