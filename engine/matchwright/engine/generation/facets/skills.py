"""Skills: how much of what the job asks is there.

Form: sum over the asked skills of weight * level weight of the freelancer's (0 when missing).
    Weights are IDF, twice that for a must-have, normalised to sum 1. The level weight of an
    unstated level is the population's mean, so that hiding a level does not pay.
Basis: the most frequent 96 skills have a dimension each, the others share 32 by hash. A job's
    weights add up on a shared dimension; a freelancer's level weights take the largest, so coverage
    stays at most 1. The form is the same in both directions.
Largest error: a tail skill is taken for another on its dimension: up to the weight of the job's
    tail skills; explanations itemise it.
Width: 128. The first 30 skills of an entity count, so listing 200 gains nothing over listing the
    best 30.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar

import msgspec
import numpy as np
import polars as pl

from matchwright.engine.generation.facets.base import (
    OTHER,
    Block,
    QueryBlock,
    any_row,
    convex_best,
    even,
)
from matchwright.engine.generation.fixed import GRID, ratio
from matchwright.engine.generation.hashing import bucket
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.records import Kind
from matchwright.engine.table import SkillItems, Table, skill_frame
from matchwright.kernels.types import Float64, Int64

WIDTH = 128
OWN_MAX = 96
ITEMS_MAX = 30
"""Skills of an entity that count, in the order listed."""
DF_MIN = 5
"""A name that fewer entities use is not learnt."""
MUST_FACTOR = 2
IDF_UNIT = 1_024
LEVEL_PERMILLE = (600, 700, 800, 900, 1_000)
"""Weight of levels 1 to 5."""


class Skills(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fitted state.

    Attributes:
        names: learnt names; the first ``own`` of them have a dimension of their own.
        idf: their weights in units of 1/1,024, in the same order.
        own: number of dimensions that belong to one skill.
        idf_unknown: weight of a name that is not learnt.
        level_unknown: weight of an unstated level, in thousandths.
    """

    names: tuple[str, ...] = ()
    idf: tuple[int, ...] = ()
    own: int = 0
    idf_unknown: int = IDF_UNIT
    level_unknown: int = 800

    name: ClassVar[str] = "skills"
    width: ClassVar[int] = WIDTH

    def dim(self, name: str) -> int:
        """The dimension of a (normalised) skill name, 0..127, before rotation."""
        place = _places(self.names).get(name, self.own)
        return place if place < self.own else self.own + bucket(name, WIDTH - self.own)

    def weight(self, name: str) -> int:
        """IDF of a (normalised) skill name in units of 1/1,024."""
        place = _places(self.names).get(name)
        return self.idf_unknown if place is None else self.idf[place]

    def corpus(self, kind: Kind, records: Table) -> Block:
        """Normalised weights (job) or level weights (freelancer) on their dimensions."""
        raw = self._job(records) if kind == "job" else self._freelancer(records)
        return Block(raw, any_row(raw))

    def query(self, kind: Kind, records: Table, params: FacetParams, as_of: int) -> QueryBlock:
        """The same vectors."""
        block = self.corpus(kind, records)
        if OTHER[kind] == "job":
            return QueryBlock(block.raw_nw, block.known_n, convex_best(block.raw_nw))
        return QueryBlock(block.raw_nw, block.known_n, block.raw_nw.sum(axis=1) / GRID)

    def _job(self, records: Table) -> Float64:
        items = records.skills(ITEMS_MAX)
        weight = items.lookup(self.weight) * np.where(items.must, MUST_FACTOR, 1)
        # A name that is listed twice counts once, with its larger weight.
        listed = items.row_m * max(len(items.different), 1) + items.code_m
        once, first, place = np.unique(listed, return_index=True, return_inverse=True)
        larger = np.zeros(once.size, dtype=np.int64)
        np.maximum.at(larger, place, weight)
        flat = np.bincount(self._cells(items)[first], larger, records.height * WIDTH)
        cell = flat.astype(np.float64).reshape(-1, WIDTH)
        total = cell.sum(axis=1)
        total[total == 0] = 1.0
        return ratio(cell, total[:, None])

    def _freelancer(self, records: Table) -> Float64:
        items = records.skills(ITEMS_MAX)
        table = np.array((*LEVEL_PERMILLE, self.level_unknown))
        level = np.clip(items.level_m, 1, len(LEVEL_PERMILLE)) - 1
        place = np.where(items.stated_m, level, len(LEVEL_PERMILLE))
        weight = ratio(table[place].astype(np.float64), 1_000.0)
        cell = np.zeros(records.height * WIDTH)
        np.maximum.at(cell, self._cells(items), weight)
        return cell.reshape(-1, WIDTH)

    def _cells(self, items: SkillItems) -> Int64:
        """Flat positions of items in an (N, 128) array."""
        return np.asarray(items.row_m * WIDTH + items.lookup(self.dim))

    def reach(self, kind: Kind) -> float:
        return (1.0 if kind == "job" else 11.0) / float(np.sqrt(np.float64(WIDTH)))

    def neutral(self, kind: Kind) -> Float64:
        return even(WIDTH, 1.0 if kind == "job" else 6.0)


@lru_cache(maxsize=16)
def _places(names: tuple[str, ...]) -> Mapping[str, int]:
    return {name: place for place, name in enumerate(names)}


def fit(jobs: pl.DataFrame, freelancers: pl.DataFrame) -> Skills:
    """Learns names that at least five entities list, most frequent first."""
    used: Counter[str] = Counter()
    entities = 0
    for records in (jobs, freelancers):
        items = skill_frame(records, ITEMS_MAX)
        entities += items["row"].n_unique()
        counts = items.select("row", "name").unique()["name"].value_counts()
        used.update(dict(counts.iter_rows()))
    ranked = sorted((-n, name) for name, n in used.items() if n >= DF_MIN)
    levels = skill_frame(freelancers, ITEMS_MAX)["level"].drop_nulls()
    return Skills(
        names=tuple(name for _, name in ranked),
        idf=tuple(idf(-n, entities) for n, _ in ranked),
        own=min(len(ranked), OWN_MAX),
        idf_unknown=idf(0, entities),
        level_unknown=_mean_level(levels),
    )


def idf(df: int, entities: int) -> int:
    """1 + ln((1 + entities) / (1 + df)), in units of 1/1,024."""
    return round(IDF_UNIT * (1.0 + math.log((1 + entities) / (1 + df))))


def _mean_level(levels: pl.Series) -> int:
    """The mean weight of stated levels, in thousandths; 1,000 where nobody states any."""
    if len(levels) == 0:
        return 1_000
    table = np.array(LEVEL_PERMILLE)
    weights = table[np.clip(levels.to_numpy(), 1, len(table)) - 1]
    return round(float(weights.mean()))
