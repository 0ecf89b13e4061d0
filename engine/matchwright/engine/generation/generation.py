"""A generation: what was fitted, and the two maps from records to vectors that it defines."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import polars as pl

from matchwright.engine.generation import folder
from matchwright.engine.generation.drift import Drift, measure
from matchwright.engine.generation.facets.base import OTHER, Facet
from matchwright.engine.generation.facets.text import AskedText, Text
from matchwright.engine.generation.fixed import GRID, Rotation
from matchwright.engine.generation.folder import Served
from matchwright.engine.generation.manifest import Manifest, Measures
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.generation.quantise import (
    Quantised,
    QueryVectors,
    check_weights,
    quantise_plainly,
    quantise_queries,
    quantise_rows,
)
from matchwright.engine.generation.text import TextEncoder
from matchwright.engine.records import Kind
from matchwright.engine.table import Records, as_table
from matchwright.kernels.types import Bool, Float64, Int8, Int16, Int32

CHUNK_ROWS = 4_096
"""Rows that are encoded at once: bounds memory, changes no byte."""


class FacetSpan(NamedTuple):
    """Where a facet's block lies: dimensions ``start`` to ``start + width``."""

    name: str
    start: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Corpus rows.

    Attributes:
        x_nd: int8 (N, D).
        known_nb: bool (N, B); a facet that is not known holds the population's mean.
    """

    x_nd: Int8
    known_nb: Bool


class Generation:
    """Frozen. Made by ``fit``, ``starter`` or ``load``.

    Args:
        manifest: everything but the encoder's arrays.
        encoder: the text encoder.
    """

    def __init__(self, manifest: Manifest, encoder: TextEncoder) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self.parts: tuple[Facet, ...] = parts(manifest, encoder)
        seed = manifest.rotation_seed
        self._rotations = tuple(Rotation(part.width, seed, part.name) for part in self.parts)

    @cached_property
    def id(self) -> str:
        """32 hex digits that name the content."""
        return self.manifest.content_id()

    @property
    def as_of(self) -> int:
        """The day of the fit, days since 1970-01-01."""
        return self.manifest.as_of

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Boundaries of the facets' blocks, B + 1 of them."""
        return (0, *np.cumsum([part.width for part in self.parts]).tolist())

    @property
    def d(self) -> int:
        """Dimensions in all."""
        return self.offsets[-1]

    @cached_property
    def facets(self) -> tuple[FacetSpan, ...]:
        """Names and places of the facets."""
        starts = zip(self.parts, self.offsets, strict=False)
        return tuple(FacetSpan(part.name, start, part.width) for part, start in starts)

    @property
    def zones(self) -> tuple[str, ...]:
        """IANA names, ascending."""
        return self.manifest.hours.zones.names

    def zone_index(self, name: str | None) -> int:
        """Index into ``zones``; ``UNKNOWN`` for None or a name that is not there."""
        return self.manifest.hours.zones.index(name)

    def zone_indexes(self, names: Iterable[str | None]) -> Int32:
        """``zone_index`` of a column, int32 (N,)."""
        return self.manifest.hours.zones.indexes(names)

    def skill_dim(self, name: str) -> int:
        """The skill's dimension before rotation, to itemise what shares one."""
        return self.manifest.skills.dim(name)

    def skill_weight(self, name: str) -> int:
        """The skill's IDF in units of 1/1,024."""
        return self.manifest.skills.weight(name)

    def steps(self, kind: Kind) -> tuple[float, ...]:
        """Steps of corpus rows of ``kind``, one for each facet."""
        return self._steps[kind]

    @cached_property
    def _steps(self) -> dict[Kind, tuple[float, ...]]:
        return {kind: tuple(map(float.fromhex, self._measures(kind).steps)) for kind in OTHER}

    @cached_property
    def _means(self) -> dict[Kind, Float64]:
        return {kind: np.array(self._measures(kind).mean, dtype=np.float64) for kind in OTHER}

    def _measures(self, kind: Kind) -> Measures:
        return self.manifest.job if kind == "job" else self.manifest.freelancer

    def encode(self, kind: Kind, records: Records) -> Encoded:
        """Corpus rows: the same bytes for a record in any batch and on any machine.

        Args:
            kind: what the records are.
            records: a frame of that kind's schema, or rows of it.
        """
        table = as_table(records)
        x_nd = np.empty((table.height, self.d), dtype=np.int8)
        known_nb = np.empty((table.height, len(self.parts)), dtype=np.bool_)
        for low in range(0, table.height, CHUNK_ROWS):
            chunk = table.slice(low, CHUNK_ROWS)
            rows = slice(low, low + chunk.height)
            for b, (start, end) in enumerate(self._spans):
                v_nw, known_nb[rows, b] = self.rotated(b, kind, chunk)
                v_nw[~known_nb[rows, b]] = self._means[kind][start:end]
                x_nd[rows, start:end] = quantise_rows(v_nw, self._steps[kind][b])
        return Encoded(x_nd, known_nb)

    def rotated(self, b: int, kind: Kind, records: Records) -> tuple[Float64, Bool]:
        """Facet ``b`` of corpus rows before quantisation: grid integers (N, W), and what is
        known."""
        block = self.parts[b].corpus(kind, as_table(records))
        return self._rotations[b](block.raw_nw), block.known_n

    def asked_text(self, records: Records, deadline: float | None) -> AskedText | None:
        """The texts of queries, as far as a served encoder can say them in time.

        Args:
            records: a frame of the schema of the kind that asks, or rows of it.
            deadline: moment of the monotonic clock; None for the client's own budget.

        Returns:
            For ``query``; None where the encoder is embedded.
        """
        text = self.parts[0]
        return text.asked(as_table(records), deadline) if isinstance(text, Text) else None

    def query(
        self,
        kind: Kind,
        records: Records,
        policy_facets: FacetParams,
        as_of: int,
        text: AskedText | None = None,
    ) -> QueryVectors:
        """Queries before weights.

        Args:
            kind: what the records are; they search the other kind.
            records: a frame of that kind's schema, or rows of it.
            policy_facets: the policy's facet parameters.
            as_of: the day, days since 1970-01-01.
            text: from ``asked_text`` for the same records. Without it every text has to have a
                vector: what a served encoder does not give is an error.

        Raises:
            ModelUnavailable, ModelLate, ModelWrong: see ``text``.
        """
        table = as_table(records)
        v_qd = np.zeros((table.height, self.d))
        known_qb = np.zeros((table.height, len(self.parts)), dtype=np.bool_)
        best_qb = np.zeros((table.height, len(self.parts)))
        for b, (start, end) in enumerate(self._spans):
            if text is not None and b == 0:
                block = text.block
            else:
                block = self.parts[b].query(kind, table, policy_facets, as_of)
            known = known_qb[:, b] = block.known_q
            np.divide(self._rotations[b](block.raw_qw), GRID, out=v_qd[:, start:end])
            v_qd[~known, start:end] = 0.0
            best_qb[known, b] = block.best_q[known]
        return QueryVectors(v_qd, known_qb, best_qb)

    def quantise(self, v: QueryVectors, kind: Kind, weights: Mapping[str, float]) -> Quantised:
        """Queries as kernels take them.

        Args:
            v: from ``query`` for the same ``kind``.
            kind: the kind that asks.
            weights: facet -> weight; facets that are not named weigh 0.

        Raises:
            InvalidArgument, UnknownKey: see ``check_weights``.
        """
        return quantise_queries(v, *self._scales(kind, weights), self.offsets)

    def quantise_plainly(
        self, v: QueryVectors, kind: Kind, weights: Mapping[str, float]
    ) -> tuple[Int16, Float64]:
        """(q_qd, t_q) of ``quantise`` alone, for whoever needs neither resolution nor the most
        that could be attained."""
        return quantise_plainly(v, *self._scales(kind, weights), self.offsets)

    def _scales(self, kind: Kind, weights: Mapping[str, float]) -> tuple[Sequence[float], Float64]:
        """Steps of the corpus that a kind asks, and checked weights."""
        names = [part.name for part in self.parts]
        return self._steps[OTHER[kind]], check_weights(names, weights)

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        return list(itertools.pairwise(self.offsets))

    def drift(self, kind: Kind, records: pl.DataFrame) -> Drift:
        """How far records have moved away from what the generation was fitted on."""
        table = as_table(records)
        blocks = (self.rotated(b, kind, table) for b in range(len(self.parts)))
        return measure(self.manifest, self.encoder, records, self._steps[kind], blocks)

    def save(self, path: Path) -> None:
        """Write the generation's files into the folder ``path``, made if it is not there."""
        folder.save(path, self.manifest, self.encoder)

    @classmethod
    def load(cls, path: Path, served: Served | None = None) -> Self:
        """Read a generation from its folder.

        Args:
            path: the folder.
            served: gives the encoder of a generation that a served one made. Without it such a
                generation is read all the same, but has no text encoded.

        Raises:
            NotFound: there is no generation in the folder.
            StoreFormat: its format version is another.
            StoreDamaged: a file is missing or does not have its checksum.
        """
        return cls(*folder.load(path, served))


def parts(manifest: Manifest, encoder: TextEncoder) -> tuple[Facet, ...]:
    """The facets in the order of their blocks."""
    return (
        Text(encoder),
        manifest.skills,
        manifest.rate,
        manifest.experience,
        manifest.hours,
        manifest.category,
        manifest.track,
        manifest.availability,
        manifest.recency,
    )
