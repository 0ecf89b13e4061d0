"""Trees against a referee in Python integers; contributions add up; bad texts are refused."""

from __future__ import annotations

import concurrent.futures
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_cases import FEATURES, booster_of, rows_of, strange_rows, walk_down

from matchwright.engine.errors import InvalidArgument, InvalidData
from matchwright.engine.rerank import trees as trees_module
from matchwright.engine.rerank import trees_text
from matchwright.engine.rerank.export import export_booster, write_ranker
from matchwright.engine.rerank.trees import Trees
from matchwright.engine.rerank.trees_walk import BitWalk, StepWalk, walk_of

pytest.importorskip("lightgbm")


def exported(seed, **shape):
    text, grid_bits = export_booster(booster_of(seed, **shape), FEATURES)
    return text, Trees.parse(text, features=FEATURES, grid_bits=grid_bits, features_version=1)


def splits_of(text):
    return [trees_module._splits(tree, t) for t, tree in enumerate(trees_text.read(text).trees)]


@given(seed=st.integers(0, 10_000), leaves=st.sampled_from([2, 5, 63, 64, 65, 150]))
def test_scores_and_contributions_are_the_referees(seed, leaves):
    text, trees = exported(seed, leaves=leaves, rounds=6)
    f_nf = strange_rows(np.random.default_rng(seed), 40)
    score, given_nf = walk_down(trees_text.read(text).trees, f_nf, trees.grid_bits)
    np.testing.assert_array_equal(trees.score(f_nf), score)
    np.testing.assert_array_equal(trees.contributions(f_nf), given_nf)


def test_contributions_add_up_to_the_score_for_every_pair(count):
    _, trees = exported(11, rounds=60, leaves=63)
    rng = np.random.default_rng(11)
    for _ in range(count(reduced=2, full=20)):
        f_nf = strange_rows(rng, 5_000)
        given_nf = trees.contributions(f_nf)
        np.testing.assert_array_equal(given_nf.sum(axis=1), trees.score(f_nf))
        assert (given_nf[:, -1] == trees.bias).all()
        assert given_nf[:, :-1].any(axis=0).all()


@given(seed=st.integers(0, 10_000), leaves=st.sampled_from([2, 17, 64]))
def test_both_walks_come_to_the_same_leaves(seed, leaves):
    text, _ = exported(seed, leaves=leaves, rounds=5)
    splits = splits_of(text)
    f_nf = strange_rows(np.random.default_rng(seed), 200)
    np.testing.assert_array_equal(
        BitWalk(splits, len(FEATURES)).leaves(f_nf), StepWalk(splits).leaves(f_nf)
    )


def test_the_walk_fits_the_trees(monkeypatch):
    small = splits_of(exported(1, leaves=64)[0])
    large = splits_of(exported(1, leaves=65)[0])
    assert max(tree.feature.size for tree in large) == 64
    assert isinstance(walk_of(small, len(FEATURES)), BitWalk)
    assert isinstance(walk_of(large, len(FEATURES)), StepWalk)
    monkeypatch.setattr("matchwright.engine.rerank.trees_walk.BITS_BYTES_MAX", 1_000)
    assert isinstance(walk_of(small, len(FEATURES)), StepWalk)


def test_small_chunks_give_the_same(monkeypatch):
    _, trees = exported(4, rounds=20)
    f_nf = rows_of(np.random.default_rng(4), 199)
    whole = trees.score(f_nf), trees.contributions(f_nf)
    monkeypatch.setattr(trees_module, "_CHUNK_BYTES", 1)
    np.testing.assert_array_equal(trees.score(f_nf), whole[0])
    np.testing.assert_array_equal(trees.contributions(f_nf), whole[1])


def test_many_threads_share_trees():
    _, trees = exported(4, rounds=20)
    f_nf = rows_of(np.random.default_rng(4), 500)
    score = trees.score(f_nf)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for other in pool.map(trees.score, [f_nf] * 32):
            np.testing.assert_array_equal(other, score)


def test_no_rows_give_no_scores():
    _, trees = exported(4)
    none = np.zeros((0, len(FEATURES)), dtype=np.int32)
    assert trees.score(none).shape == (0,)
    assert trees.contributions(none).shape == (0, len(FEATURES) + 1)


@pytest.mark.parametrize(
    "f_nf",
    [
        np.zeros((3, 4), dtype=np.int32),
        np.zeros(5, dtype=np.int32),
        np.zeros((3, 5), dtype=np.int64),
        np.zeros((3, 5), dtype=np.float32),
    ],
)
def test_features_of_another_shape_are_refused(f_nf):
    _, trees = exported(4)
    with pytest.raises(InvalidArgument, match=r"expected int32 \(N, 5\): asking"):
        trees.score(f_nf)
    with pytest.raises(InvalidArgument):
        trees.contributions(f_nf)


def _set(name, value):
    """Changes the first line called ``name``."""

    def change(text):
        old = next(line for line in text.splitlines() if line.startswith(f"{name}="))
        return text.replace(old, f"{name}={value(old.partition('=')[2])}", 1)

    return change


def _first(new):
    return lambda old: " ".join([new, *old.split()[1:]])


def _plus(more):
    return lambda old: _first(str(int(old.split()[0]) + more))(old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "begins with 'tree'"),
        (lambda text: text[:300], "whole text"),
        (lambda text: text.replace("version=v4", "average_output", 1), "averages"),
        (_set("num_class", lambda _: "3"), "num_class is '3'"),
        (_set("feature_names", lambda old: old + " more"), "max_feature_idx"),
        (_set("feature_names", lambda old: old.replace("hours", "ours")), "features are"),
        (_set("num_cat", lambda _: "1"), "categorical"),
        (_set("is_linear", lambda _: "1"), "linear"),
        (_set("decision_type", _first("1")), "categorical"),
        (_set("decision_type", _first("6")), "zeros for missing"),
        (_set("threshold", _first("3.0")), "half-integers"),
        (_set("threshold", _first("nan")), "not finite"),
        (_set("threshold", _first("8388608.5")), "half-integers below"),
        (_set("threshold", _first("word")), "cannot be read"),
        (_set("leaf_value", _first("0.1")), "not on the grid"),
        (_set("leaf_value", _first("inf")), "not finite"),
        (_set("leaf_value", _first("1e9")), "not on the grid"),
        (_set("internal_value", _first("0.1")), "not on the grid"),
        (_set("num_leaves", lambda _: "7"), "lengths"),
        (_set("num_leaves", lambda _: "many"), "cannot be read"),
        (_set("split_feature", _first("5")), "does not have"),
        (_set("split_feature", _first("-1")), "does not have"),
        (_set("left_child", _first("0")), "make a tree"),
        (_set("right_child", _first("99")), "make a tree"),
        (_set("leaf_count", lambda _: "1"), "leaf_count"),
        (_set("num_leaves", lambda _: "131073"), "at most 131,072"),
        # Each of these is an int32 that would be right, and 2**32 more.
        (
            _set("split_feature", lambda old: _first(str(int(old.split()[0]) + 2**32))(old)),
            "beyond",
        ),
        (_set("left_child", lambda old: _first(str(int(old.split()[0]) + 2**32))(old)), "beyond"),
        (_set("right_child", lambda old: _first(str(int(old.split()[0]) - 2**32))(old)), "beyond"),
    ],
)
def test_a_text_that_is_no_exported_model_is_refused(change, message):
    text, trees = exported(6, rounds=3, leaves=8)
    with pytest.raises(InvalidData, match=message):
        Trees.parse(change(text), features=FEATURES, grid_bits=trees.grid_bits, features_version=1)


def test_a_split_above_its_parent_is_refused():
    text, trees = exported(6, rounds=1, leaves=4)
    tree = trees_text.read(text).trees[0]
    order = np.array([1, 0, 2])  # the root and its child swap numbers, and so do all that name them
    inverse = np.argsort(order)

    def moved(children):
        children = children[order]
        return np.where(children >= 0, inverse[np.maximum(children, 0)], children)

    swapped = _set("left_child", lambda _: " ".join(map(str, moved(tree.left))))(text)
    swapped = _set("right_child", lambda _: " ".join(map(str, moved(tree.right))))(swapped)
    with pytest.raises(InvalidData, match=r"make a tree|above its parent"):
        Trees.parse(swapped, features=FEATURES, grid_bits=trees.grid_bits, features_version=1)


def test_leaves_that_could_leave_float32_are_refused():
    text, trees = exported(6, rounds=3, leaves=8)
    units = (2**23 - 1) * 2.0**-trees.grid_bits
    block, *others = text.split("\nTree=1")
    for name in ("leaf_value", "internal_value"):
        block = _set(name, lambda old: " ".join([repr(units)] * len(old.split())))(block)
    rest = "\nTree=1".join(others)
    for name in ("leaf_value", "internal_value"):
        rest = _set(name, lambda old: " ".join([repr(units)] * len(old.split())))(rest)
    with pytest.raises(InvalidData, match="could add up"):
        Trees.parse(
            f"{block}\nTree=1{rest}",
            features=FEATURES, grid_bits=trees.grid_bits, features_version=1,
        )  # fmt: skip


def test_a_grid_beyond_reason_is_refused():
    text, _ = exported(6, rounds=1)
    with pytest.raises(InvalidData, match="grid_bits"):
        Trees.parse(text, features=FEATURES, grid_bits=99, features_version=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, "not JSON"), (b"\xff", "not JSON"), ({"training": []}, "'training'")],
)
def test_a_description_of_anything_is_refused(tmp_path, text, message):
    exported_text, trees = exported(6, rounds=1)
    write_ranker(tmp_path / "ranker", exported_text, features=FEATURES, grid_bits=trees.grid_bits,
                 features_version=1, version=1, training={})  # fmt: skip
    path = tmp_path / "ranker" / trees_module.DESCRIPTION
    if isinstance(text, dict):
        text = json.dumps(json.loads(path.read_text()) | text)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidData, match=message):
        Trees.load(tmp_path / "ranker")
