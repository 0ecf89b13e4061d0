"""What is exported predicts the same everywhere: LightGBM, float32, any batch, any threads."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_cases import FEATURES, booster_of, rows_of, strange_rows

from matchwright.engine.errors import (
    AlreadyExists,
    InvalidArgument,
    InvalidData,
    NotFound,
    StoreDamaged,
)
from matchwright.engine.rerank import trees_text
from matchwright.engine.rerank.export import (
    export_booster,
    export_text,
    finest_grid,
    write_ranker,
)
from matchwright.engine.rerank.trees import SUM_LIMIT, Trees

lightgbm = pytest.importorskip("lightgbm")

SHAPES = st.fixed_dictionaries(
    {
        "leaves": st.sampled_from([2, 3, 16, 64, 65, 200]),
        "rounds": st.sampled_from([1, 7, 25]),
        "objective": st.sampled_from(["lambdarank", "regression", "binary"]),
        "max_depth": st.sampled_from([-1, 1, 4]),
        "learning_rate": st.sampled_from([0.05, 1.0]),
    }
)


def exported(booster):
    text, grid_bits = export_booster(booster, FEATURES)
    trees = Trees.parse(text, features=FEATURES, grid_bits=grid_bits, features_version=1)
    return text, trees


@given(seed=st.integers(0, 10_000), shape=SHAPES)
def test_lightgbm_predicts_the_exported_text_to_the_bit(seed, shape):
    text, trees = exported(booster_of(seed, **shape))
    rng = np.random.default_rng(seed)
    f_nf = strange_rows(rng, 300)
    units = trees.score(f_nf)
    assert np.abs(units).max() < SUM_LIMIT
    score = np.ldexp(units.astype(np.float64), -trees.grid_bits)
    loaded = lightgbm.Booster(model_str=text)
    for dtype in (np.float64, np.float32):
        for threads in (1, 2):
            whole = loaded.predict(f_nf.astype(dtype), num_threads=threads)
            np.testing.assert_array_equal(whole, score)
    parts = [loaded.predict(f_nf[low : low + 7].astype(np.float32)) for low in range(0, 300, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), score)
    np.testing.assert_array_equal(score.astype(np.float32).astype(np.float64), score)


@given(seed=st.integers(0, 10_000))
def test_leaves_add_up_exactly_in_float32_in_any_order(seed):
    text, trees = exported(booster_of(seed, rounds=40))
    rng = np.random.default_rng(seed)
    f_nf = rows_of(rng, 50)
    leaf_nt = lightgbm.Booster(model_str=text).predict(f_nf.astype(np.float32), pred_leaf=True)
    parsed = trees_text.read(text).trees
    values = np.stack([tree.leaf[leaf_nt[:, t]] for t, tree in enumerate(parsed)], axis=1)
    units = trees.score(f_nf)
    for _ in range(5):
        total = np.zeros(50, dtype=np.float32)
        for t in rng.permutation(len(parsed)):
            total += values[:, t].astype(np.float32)
        np.testing.assert_array_equal(np.ldexp(total, trees.grid_bits), units)


def test_decisions_are_those_of_the_booster():
    booster = booster_of(3, rounds=30)
    text, _ = exported(booster)
    f_nf = rows_of(np.random.default_rng(1), 2_000).astype(np.float64)
    ours = lightgbm.Booster(model_str=text).predict(f_nf, pred_leaf=True)
    np.testing.assert_array_equal(ours, booster.predict(f_nf, pred_leaf=True))


@pytest.mark.parametrize("objective", ["lambdarank", "regression", "binary"])
def test_the_grid_moves_a_score_by_half_a_unit_a_tree_at_most(objective):
    booster = booster_of(5, rounds=30, objective=objective)
    text, trees = exported(booster)
    f_nf = rows_of(np.random.default_rng(1), 1_000)
    raw = booster.predict(f_nf.astype(np.float64), raw_score=True)
    ours = lightgbm.Booster(model_str=text).predict(f_nf.astype(np.float64))
    assert np.abs(raw - ours).max() <= 2.0**-trees.grid_bits * (0.5 * trees.trees + 1)


@pytest.mark.parametrize(
    ("leaves", "bits"),
    [
        ([[0.0, 0.0]], 0),
        ([[1.0, -0.5]], 23),
        ([[1.0 - 2.0**-24, -0.5]], 24),
        ([[0.5], [0.5]], 23),
        ([[2.0**23 + 0.5]], 0),
        ([[2.0**30]], -7),
        ([[2.0**-70]], 60),
    ],
)
def test_the_grid_is_the_finest_that_stays_below_the_limit(leaves, bits):
    arrays = [np.array(leaf) for leaf in leaves]
    assert finest_grid(arrays) == bits


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4), min_size=1, max_size=9))
def test_one_bit_more_would_be_too_fine(leaves):
    arrays = [np.array(leaf) for leaf in leaves]
    bits = finest_grid(arrays)

    def most(grid):
        return sum(np.abs(np.rint(np.ldexp(leaf, grid))).max() for leaf in arrays)

    assert most(bits) < SUM_LIMIT
    assert bits == 60 or most(bits + 1) >= SUM_LIMIT or not any(leaf.any() for leaf in arrays)


def test_an_average_that_boosting_began_from_is_in_the_bias():
    booster = booster_of(2, objective="regression", rounds=3, learning_rate=1e-6)
    _, trees = exported(booster)
    mean = booster.predict(np.zeros((1, len(FEATURES))))[0]
    assert np.ldexp(float(trees.bias), -trees.grid_bits) == pytest.approx(mean, rel=1e-3)


def test_a_booster_without_splits_says_its_constant():
    booster = booster_of(2, objective="regression", rounds=3, min_data_in_leaf=500)
    text, trees = exported(booster)
    f_nf = rows_of(np.random.default_rng(0), 5)
    assert trees.trees == 1
    assert (trees.score(f_nf) == trees.bias).all()
    assert (lightgbm.Booster(model_str=text).predict(f_nf) == np.ldexp(
        float(trees.bias), -trees.grid_bits)).all()  # fmt: skip


def test_a_threshold_beyond_float32_is_refused_by_its_feature():
    text = booster_of(1).model_to_string()
    first = next(line for line in text.splitlines() if line.startswith("threshold="))
    wide = text.replace(first, first.split(" ")[0].split("=")[0] + "=9000000.5 "
                        + first.partition(" ")[2])  # fmt: skip
    with pytest.raises(InvalidData, match=r"threshold 9000000.5.*float32 below 2\*\*23"):
        export_text(wide, FEATURES)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}, "averages"),
        ({"linear_tree": True, "objective": "regression"}, "linear"),
        ({"zero_as_missing": True, "use_missing": True}, "zeros for missing"),
        (
            {"categorical": [4], "min_data_per_group": 1, "cat_smooth": 0, "cat_l2": 0},
            "categorical",
        ),
    ],
)
def test_what_cannot_be_exported_is_named(more, message):
    booster = booster_of(1, **more)
    with pytest.raises(InvalidData, match=message):
        export_booster(booster, FEATURES)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (FEATURES[:-1], "4 names"),
        ((*FEATURES[:-1], "two words"), "'two words'"),
        ((*FEATURES[:-1], FEATURES[0]), "same name"),
    ],
)
def test_names_are_checked(features, message):
    with pytest.raises(InvalidArgument, match=message):
        export_booster(booster_of(1), features)


def test_a_folder_is_written_whole_and_loads(tmp_path):
    text, grid_bits = export_booster(booster_of(1), FEATURES)
    told = {"features": FEATURES, "grid_bits": grid_bits, "features_version": 1}
    written = write_ranker(tmp_path / "r", text, version=3, training={"seed": 1}, **told)
    loaded = Trees.load(tmp_path / "r")
    assert loaded.content_hash == written.content_hash != ""
    assert loaded.training == {"seed": 1}
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["model.txt", "ranker.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    with pytest.raises(AlreadyExists):
        write_ranker(tmp_path / "r", text, version=3, training={}, **told)


def test_the_content_hash_names_scores_and_not_the_training(tmp_path):
    text, grid_bits = export_booster(booster_of(1), FEATURES)

    def hash_of(name, **change):
        told = {"features": FEATURES, "grid_bits": grid_bits, "features_version": 1, "version": 1,
                "training": {}, **change}  # fmt: skip
        return write_ranker(tmp_path / name, text, **told).content_hash

    assert hash_of("a") == hash_of("b", training={"seed": 9}, version=2)
    assert hash_of("a2") != hash_of("c", features_version=2)


@pytest.mark.parametrize("file", ["model.txt", "ranker.json"])
def test_damage_is_named(file, tmp_path):
    text, grid_bits = export_booster(booster_of(1), FEATURES)
    folder = tmp_path / "r"
    write_ranker(folder, text, features=FEATURES, grid_bits=grid_bits, features_version=1,
                 version=1, training={})  # fmt: skip
    if file == "model.txt":
        (folder / file).write_text(text.replace("leaf_value=-", "leaf_value=", 1))
    else:
        told = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(told | {"bias": told["bias"] + 1}))
    with pytest.raises(StoreDamaged, match=file):
        Trees.load(folder)
    (folder / file).unlink()
    with pytest.raises(NotFound, match=file):
        Trees.load(folder)
