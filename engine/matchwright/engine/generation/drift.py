"""Drift: how far today's records have moved away from those that a generation was fitted on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import polars as pl

from matchwright.engine.generation.facets.skills import ITEMS_MAX
from matchwright.engine.generation.fixed import GRID
from matchwright.engine.generation.manifest import Manifest
from matchwright.engine.generation.quantise import X_ABS_MAX
from matchwright.engine.generation.text import TextEncoder, prepare
from matchwright.kernels.types import Bool, Float64


class Drift(msgspec.Struct, frozen=True):
    """Figures over a set of records; shares are of 0..1.

    Attributes:
        rows: records looked at.
        clipped_share: entries beyond the int8 range, over all facets that are known. About 1e-4
            right after a fit; ten times that calls for a refit.
        clipped_share_by_facet: the same for each facet, in the order of the blocks.
        unknown_words_share: tokens that were not learnt; None for an encoder without a vocabulary.
        unknown_skills_share: listed skills that were not learnt; None where none were learnt.
    """

    rows: int
    clipped_share: float
    clipped_share_by_facet: tuple[float, ...]
    unknown_words_share: float | None
    unknown_skills_share: float | None


def measure(
    manifest: Manifest,
    encoder: TextEncoder,
    records: pl.DataFrame,
    steps: Sequence[float],
    blocks: Iterable[tuple[Float64, Bool]],
) -> Drift:
    """The figures of ``records``; ``blocks`` are their rotated facets and what is known of them."""
    clipped, entries = [], []
    for (v_nw, known_n), step in zip(blocks, steps, strict=True):
        beyond = np.abs(np.rint(v_nw[known_n] / (step * GRID))) > X_ABS_MAX
        clipped.append(int(beyond.sum()))
        entries.append(beyond.size)
    return Drift(
        rows=records.height,
        clipped_share=_share(sum(clipped), sum(entries)),
        clipped_share_by_facet=tuple(map(_share, clipped, entries)),
        unknown_words_share=_unknown_words(encoder, records),
        unknown_skills_share=_unknown_skills(manifest.skills.names, records),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _unknown_words(encoder: TextEncoder, records: pl.DataFrame) -> float | None:
    known_tokens = getattr(encoder, "known_tokens", None)
    if known_tokens is None:
        return None
    found, learnt = known_tokens(prepare(records))
    return _share(found - learnt, found)


def _unknown_skills(names: Sequence[str], records: pl.DataFrame) -> float | None:
    if not names:
        return None
    listed = records["skills"].list.head(ITEMS_MAX).explode().drop_nulls().struct.field("name")
    learnt = int(listed.is_in(list(names)).sum())
    return _share(len(listed) - learnt, len(listed))
