"""What was fitted: encoder, vocabularies, rotations, steps, knots, zones (see docs/scoring.md)."""

from __future__ import annotations

from matchwright.engine.generation.drift import Drift
from matchwright.engine.generation.fitting import fit
from matchwright.engine.generation.generation import Encoded, FacetSpan, Generation
from matchwright.engine.generation.manifest import FORMAT_VERSION
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.generation.quantise import Quantised, QueryVectors, decompose
from matchwright.engine.generation.starting import starter
from matchwright.engine.generation.text import TextEncoder

__all__ = [
    "FORMAT_VERSION",
    "Drift",
    "Encoded",
    "FacetParams",
    "FacetSpan",
    "Generation",
    "Quantised",
    "QueryVectors",
    "TextEncoder",
    "decompose",
    "fit",
    "starter",
]
