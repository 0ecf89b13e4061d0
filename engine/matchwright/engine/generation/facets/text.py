"""Text.

Form: cosine of the two texts' embeddings. Title (twice), text and the names of the first 30 skills
    count.
Basis: the encoder's unit vectors, the same on both sides (see
    ``matchwright.engine.generation.text``).
Largest error: 2**-17 by fixed point; how well 128 dimensions stand for words is measured in
    docs/measured.md, not bounded.
Width: 128 embedded; a served encoder's dimensions. A pasted job text earns at most the facet's
    weight, like any text that fits as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from matchwright.engine.generation.facets.base import Block, QueryBlock, any_row
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.generation.text import (
    SKILLS_MAX,
    TextEncoder,
    encode_table,
    is_served,
)
from matchwright.engine.records import Kind
from matchwright.engine.table import Table
from matchwright.kernels.types import Float64


@dataclass(frozen=True, slots=True, eq=False)
class AskedText:
    """Texts that ask.

    Attributes:
        block: as ``Text.query`` gives it; not known where it is missing.
        missing: position -> why a text has no vector.
    """

    block: QueryBlock
    missing: Mapping[int, str]

    def take(self, at: Sequence[int]) -> AskedText:
        """Those at some positions."""
        block = QueryBlock(self.block.raw_qw[at], self.block.known_q[at], self.block.best_q[at])
        missing = {n: self.missing[old] for n, old in enumerate(at) if old in self.missing}
        return AskedText(block, missing)


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
        raw = encode_table(self.encoder, records)
        return Block(raw, any_row(raw))

    def query(self, kind: Kind, records: Table, params: FacetParams, as_of: int) -> QueryBlock:
        """The same unit vectors."""
        block = self.corpus(kind, records)
        return QueryBlock(block.raw_nw, block.known_n, np.ones(records.height))

    def asked(self, records: Table, deadline: float | None) -> AskedText | None:
        """``query`` as far as a served encoder could say it in time; None for an embedded one."""
        if not is_served(self.encoder):
            return None
        raw, missing = self.encoder.look(records.keyed_prose(SKILLS_MAX), deadline)
        block = QueryBlock(raw, any_row(raw), np.ones(records.height))
        return AskedText(block, missing)

    def reach(self, kind: Kind) -> float:
        return 4.0 / float(np.sqrt(np.float64(self.width)))

    def neutral(self, kind: Kind) -> Float64:
        return np.zeros(self.width)
