"""Writes the golden files of scoring: ``python tests/golden/make.py [--encoder]``.

A changed x, q, t or points is a change of the definition of a score: raise FORMAT_VERSION in
``matchwright.engine.generation.manifest`` first, then write these files, then pin their digest in
tests/test_scoring_golden.py. ``--encoder`` also makes the little SVD generation anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.generation import FORMAT_VERSION, FacetParams, Generation, starter
from matchwright.engine.generation.fitting import assemble
from matchwright.engine.generation.manifest import Fitted
from matchwright.engine.generation.quantise import decompose
from matchwright.engine.generation.text import SvdEncoder, prepare, tokens
from matchwright.engine.records import SCHEMAS, Kind
from matchwright.kernels.types import Int8, Int16

HERE = Path(__file__).resolve().parent
LITTLE = HERE / "generation_svd"
KINDS: tuple[Kind, ...] = ("job", "freelancer")


def given() -> dict[str, Any]:
    """The records and weights that the golden files are made from."""
    return json.loads((HERE / "records.json").read_text("utf-8"))


def frames(told: dict[str, Any]) -> dict[Kind, pl.DataFrame]:
    return {kind: pl.DataFrame(told[kind], SCHEMAS[kind]) for kind in KINDS}


def little() -> Generation:
    """A generation with a vocabulary of some words of the records and made-up tables."""
    both = frames(given())
    words = tokens(pl.concat([prepare(frame) for frame in both.values()]))["token"].unique().sort()
    rng = np.random.default_rng(20)
    known = tuple(word for n, word in enumerate(words.to_list()) if n % 4 != 3)
    encoder = SvdEncoder(
        known,
        rng.integers(256, 2_000, len(known)).astype(np.int32),
        rng.integers(-32_767, 32_768, (len(known), 128)).astype(np.int16),
    )
    return assemble(
        both["job"],
        both["freelancer"],
        encoder=encoder,
        rotation_seed=5,
        as_of=given()["as_of"],
        fitted=Fitted(seed=5),
    )


def generations() -> dict[str, Generation]:
    return {"starter": starter(), "svd": Generation.load(LITTLE)}


def scored(generation: Generation) -> dict[str, Any]:
    """Everything that the definition of a score gives for the records, in both directions."""
    told = given()
    both = frames(told)
    found: dict[str, Any] = {"format_version": FORMAT_VERSION, "generation": generation.id}
    x = {kind: generation.encode(kind, both[kind]).x_nd for kind in KINDS}
    found["x"] = {kind: x[kind].tolist() for kind in KINDS}
    for asks, answers in (("job", "freelancer"), ("freelancer", "job")):
        vectors = generation.query(asks, both[asks], FacetParams(), told["as_of"])
        for name in ("weights", "skewed_weights"):
            made = generation.quantise(vectors, asks, told[name])
            high, low = (limb.astype(int) for limb in decompose(made.q_qd))
            assert (128 * high + low == made.q_qd).all()
            points = made.q_qd.astype(int) @ x[answers].astype(int).T
            found[f"{asks} asks, {name}"] = {
                "q": made.q_qd.tolist(),
                "t": [float(t).hex() for t in made.t_q],
                "points": points.tolist(),
                "contributions": contributions(generation, made.q_qd, x[answers]),
                "resolution": made.resolution_q.tolist(),
                "attainable": [float(a).hex() for a in made.attainable_q],
            }
    return found


def contributions(generation: Generation, q_qd: Int16, x_nd: Int8) -> list[Any]:
    """(Q, N, B): sums over each facet's block."""
    spans = [slice(f.start, f.start + f.width) for f in generation.facets]
    blocks = [q_qd[:, s].astype(int) @ x_nd[:, s].astype(int).T for s in spans]
    return np.stack(blocks, axis=2).tolist()


def digest() -> str:
    """SHA-256 over all golden files of scoring, the inputs included."""
    total = hashlib.sha256()
    files = [*HERE.glob("records.json"), *HERE.glob("scoring_*.json"), *LITTLE.glob("*")]
    for file in sorted(files):
        total.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


if __name__ == "__main__":
    if "--encoder" in sys.argv:
        shutil.rmtree(LITTLE, ignore_errors=True)
        little().save(LITTLE)
    for name, generation in generations().items():
        (HERE / f"scoring_{name}.json").write_text(json.dumps(scored(generation)) + "\n", "utf-8")
    print(f"{FORMAT_VERSION}: {digest()}")
