"""Generations of different widths in one process: nothing that is kept is mixed up."""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import encoder_cases as cases
import numpy as np
from encoder_cases import made, repo

from matchwright.engine.matcher import Matcher, Request
from matchwright.engine.policy import Policy
from matchwright.engine.rerank.features import INDEX, UNKNOWN
from matchwright.engine.rerank.features_pairs import WIDTHS_MAX, FeatureMaker
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops

OPS = Ops(threads=1)


def features(maker, snapshot):
    """int32 (N, F): of the first jobs with the first freelancers."""
    matcher = Matcher(snapshot, OPS, Policy.load())
    jobs = [
        matcher.prepare_one(snapshot, Request(kind="job", id=name, as_of=cases.AS_OF))
        for name in snapshot.ids_of("job", np.arange(3))
    ]
    return maker.make(snapshot, jobs, [np.arange(20)] * 3)


def test_one_maker_serves_an_embedded_and_a_served_encoder(made, tmp_path):
    with Store.open(tmp_path / "other", mode="w", create=True, salt=cases.SALT) as store:
        for kind, n in (("job", 30), ("freelancer", 150)):
            store.upsert(kind, cases.records(kind, n))
        snapshots = [store.snapshot()]
        with Store.open(made) as served:
            snapshots.append(served.snapshot())
            assert len({one.generation.d for one in snapshots}) == 2
            wanted = [features(FeatureMaker(), one) for one in snapshots]
            assert all((one[:, INDEX["reciprocal"]] != UNKNOWN).any() for one in wanted)
            assert (wanted[0] != wanted[1]).any()
            maker = FeatureMaker()
            for _ in range(2):
                for snapshot, told in zip(snapshots, wanted, strict=True):
                    assert np.array_equal(features(maker, snapshot), told)
                    assert len(maker.vectors) == 20
            assert maker.vectors.made == 20, "kept, although the other was asked in between"


def test_few_widths_are_kept():
    maker = FeatureMaker()
    first = maker.vectors_of(10)
    for width in range(20, 20 + WIDTHS_MAX - 1):
        maker.vectors_of(width)
    assert maker.vectors_of(10) is first
    for width in range(30, 30 + WIDTHS_MAX):
        maker.vectors_of(width)
    assert maker.vectors_of(10) is not first
