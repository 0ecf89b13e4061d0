"""Boosters to export: random data, depths and objectives, with odd values among the features."""

from __future__ import annotations

import numpy as np

FEATURES = ("asking", "facet.text", "coverage", "rate-gap", "hours")
RANGES = ((0, 1), (-4_000_000, 4_000_000), (0, 1_000), (-(2**22), 2**22), (-5, 5))


def rows_of(rng, n):
    """int32 (n, F) within each feature's range, edges among them."""
    columns = [rng.integers(low, high + 1, n) for low, high in RANGES]
    return np.stack(columns, axis=1).astype(np.int32)


def strange_rows(rng, n):
    """int32 (n, F): any integer at all, near thresholds and far from them."""
    near = rows_of(rng, n) + rng.integers(-1, 2, (n, len(FEATURES)))
    far = rng.integers(-(2**31), 2**31, near.shape)
    return np.where(rng.random(near.shape) < 0.8, near, far).astype(np.int32)


def booster_of(
    seed, *, rounds=12, leaves=31, objective="lambdarank", rows=600, categorical="auto", **more
):
    """A booster trained on noise and a little sense."""
    import lightgbm

    rng = np.random.default_rng(seed)
    f_nf = rows_of(rng, rows)
    truth = f_nf[:, 2] / 300 + np.sign(f_nf[:, 3]) + rng.normal(size=rows)
    label = np.digitize(truth, [0.5, 1.5, 2.5]) if objective == "lambdarank" else truth
    if objective == "binary":
        label = (truth > 1).astype(int)
    settings = {
        "objective": objective, "num_leaves": leaves, "min_data_in_leaf": 1, "verbosity": -1,
        "num_threads": 1, "deterministic": True, "seed": seed, "use_missing": False, **more,
    }  # fmt: skip
    group = [20] * (rows // 20) if objective == "lambdarank" else None
    data = lightgbm.Dataset(
        f_nf.astype(np.float64), label, group=group, categorical_feature=categorical
    )
    return lightgbm.train(settings, data, rounds)


def walk_down(trees_text, f_nf, grid_bits):
    """(score, given) by Python integers, one row and one tree at a time: the referee."""
    scores, given = [], []
    unit = 2**grid_bits
    for row in f_nf.tolist():
        total, gave = 0, [0] * (len(row) + 1)
        for tree in trees_text:
            at = 0 if tree.feature.size else -1
            value = _unit_of(tree.value[0] if tree.feature.size else tree.leaf[0], unit)
            gave[-1] += value
            while at >= 0:
                feature = int(tree.feature[at])
                at = int((tree.left if row[feature] <= tree.threshold[at] else tree.right)[at])
                after = _unit_of(tree.value[at] if at >= 0 else tree.leaf[~at], unit)
                gave[feature] += after - value
                value = after
            total += value
        scores.append(total)
        given.append(gave)
    return np.array(scores), np.array(given)


def _unit_of(value, unit):
    exact = value * unit
    assert exact == int(exact)
    return int(exact)
