"""Keys and the order of results."""

from __future__ import annotations

import hashlib

import kernel_cases as cases
import numpy as np
import pytest

from matchwright.kernels import order

SALT = bytes(range(16))


def test_keys_are_salted_named_and_stable():
    digest = hashlib.blake2b(b"f-1", digest_size=8, key=SALT, person=b"mw-key-v1").digest()
    keys = order.hash_keys(["f-1", "f-2"], SALT)
    assert keys.dtype == np.uint64
    assert int(keys[0]) == int.from_bytes(digest, "little")
    assert keys[0] != keys[1]
    assert order.hash_keys(["f-1"], bytes(16))[0] != keys[0]


def test_keys_of_equal_text_in_any_normal_form():
    assert order.hash_keys(["Ame\u0301lie"], SALT) == order.hash_keys(["Am\u00e9lie"], SALT)
    assert order.hash_keys([], SALT).shape == (0,)


def test_tie_as_the_documentation_defines_it():
    rng = np.random.default_rng(0)
    queries = rng.integers(0, 2**64, 40, dtype=np.uint64)
    keys = rng.integers(0, 2**64, 40, dtype=np.uint64)
    keys[:4] = [0, 1, 2**32, 2**64 - 1]
    queries[:4] = [0, 2**64 - 1, 1, 2**32]
    got = order.tie64(queries[:, None], keys[None])
    assert got.tolist() == [[cases.tie_of(int(g), int(c)) for c in keys] for g in queries]
    assert (order.mix32(queries[:, None], keys[None]) == got >> np.uint64(32)).all()


def test_mixes_in_place_are_the_same():
    rng = np.random.default_rng(1)
    g, c = (rng.integers(0, 2**64, n, dtype=np.uint64) for n in (7, 33))
    out, spare = (np.empty((7, 33), np.uint32) for _ in range(2))
    order.mix32_into(g[:, None], c[None], out, spare)
    assert (out == order.mix32(g[:, None], c[None])).all()


def test_a_tie_is_a_bijection_of_the_key():
    for low in (0, 1, 77, 2**32 - 1):
        key = cases.key_with_mix(0xABCDEF0123456789, 42, low)
        assert int(order.tie64(0xABCDEF0123456789, np.uint64(key))) == (42 << 32) | low


def test_order_differs_by_query():
    keys = np.random.default_rng(2).integers(0, 2**64, 1_000, dtype=np.uint64)
    firsts = {int(order.tie64(g, keys).argmin()) for g in range(200)}
    assert len(firsts) > 150


@pytest.mark.parametrize("k", [1, 3, 50, 500])
def test_best(k):
    rng = np.random.default_rng(3)
    points = rng.integers(0, 9, 400).astype(np.int32)
    tie = rng.integers(0, 2**64, 400, dtype=np.uint64)
    expected = sorted(range(400), key=lambda n: (-int(points[n]), int(tie[n])))[:k]
    assert order.best(points, tie, k).tolist() == expected
