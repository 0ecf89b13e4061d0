"""Text.

Form: cosine of the two texts' embeddings. Title (twice), text and the names of the first 30 skills
    count.
Basis: the encoder's unit vectors, the same on both sides (see
    ``matchwright.engine.generation.text``).
Largest error: 2**-17 by fixed point; how well 128 dimensions stand for words is measured in
    docs/measured.md, not bounded.
Width: 128. A pasted job text earns at most the facet's weight, like any text that fits as well.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from matchwright.engine.generation.facets.base import Block, QueryBlock, any_row
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.generation.text import SKILLS_MAX, TextEncoder
from matchwright.engine.records import Kind
from matchwright.engine.table import Table
from matchwright.kernels.types import Float64


class Text:
    """The facet of an encoder."""

    name: ClassVar[str] = "text"

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder

    @property
    def width(self) -> int:
        return self.encoder.width

    def corpus(self, kind: Kind, records: Table) -> Block:
        """Unit vectors; not known where no token means anything."""
        raw = self.encoder.encode(records.prose(SKILLS_MAX))
        return Block(raw, any_row(raw))

    def query(self, kind: Kind, records: Table, params: FacetParams, as_of: int) -> QueryBlock:
        """The same unit vectors."""
        block = self.corpus(kind, records)
        return QueryBlock(block.raw_nw, block.known_n, np.ones(records.height))

    def reach(self, kind: Kind) -> float:
        return 4.0 / float(np.sqrt(np.float64(self.width)))

    def neutral(self, kind: Kind) -> Float64:
        return np.zeros(self.width)
