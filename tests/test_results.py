"""Results and their canonical form."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from matchwright.engine.results import OrderKey, Result, Shortfall, canonical_json


@pytest.fixture
def result():
    return Result(
        epoch="0b7e:42:d1",
        generation="a1b2",
        policy="c3d4",
        as_of=20_454,
        kind="job",
        query_id="Jöb ✓",
        query_key=0x0123456789ABCDEF,
        k=3,
        facets=("text", "skills"),
        ids=("f-2", "f-1"),
        keys=np.array([2**64 - 1, 7], dtype=np.uint64),
        points=np.array([900, -5], dtype=np.int32),
        contributions=np.array([[400, 500], [0, -5]], dtype=np.int32),
        scores=np.array([900, -5], dtype=np.int32) * 0.1,
        eligible=2,
        counted="EXACT",
        unverified=1,
        kth_key=None,
        shortfall=Shortfall.FEW_ELIGIBLE,
        resolution=16_255,
        attainable=1.5,
        t=0.1,
        telemetry={"plan": "scan"},
    )


GOLDEN = (
    b'{"as_of":20454,"attainable":"0x1.8000000000000p+0","contributions":[[400,500],[0,-5]],'
    b'"counted":"EXACT","eligible":2,"epoch":"0b7e:42:d1","facets":["text","skills"],"format":1,'
    b'"generation":"a1b2","ids":["f-2","f-1"],"k":3,"keys":["ffffffffffffffff",'
    b'"0000000000000007"],"kind":"job","kth_key":null,"points":[900,-5],"policy":"c3d4",'
    b'"query_id":"J\xc3\xb6b \xe2\x9c\x93","query_key":"0123456789abcdef","resolution":16255,'
    b'"returned":2,"shortfall":"FEW_ELIGIBLE","t":"0x1.999999999999ap-4","unverified":1}'
)
"""Frozen: digests of past decisions go over these bytes. Another form needs another format."""


def test_canonical_bytes_are_frozen(result):
    assert result.canonical_bytes() == GOLDEN
    assert result.digest() == hashlib.sha256(GOLDEN).hexdigest()


def test_telemetry_is_outside_the_contract(result):
    other = dataclasses.replace(result, telemetry={"plan": "gather", "seconds": 0.5})
    assert other.canonical_bytes() == result.canonical_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "x"},
        {"generation": "x"},
        {"policy": "x"},
        {"as_of": 1},
        {"kind": "freelancer"},
        {"query_id": None},
        {"query_key": 1},
        {"k": 2},
        {"facets": ("a", "b")},
        {"ids": ("f-1", "f-2")},
        {"keys": np.array([1, 7], dtype=np.uint64)},
        {"points": np.array([901, -5], dtype=np.int32)},
        {"contributions": np.zeros((2, 2), dtype=np.int32)},
        {"eligible": 3},
        {"counted": "AT_LEAST"},
        {"unverified": 0},
        {"kth_key": OrderKey(1, 2, 3)},
        {"shortfall": None},
        {"resolution": 1},
        {"attainable": 1.6},
        {"t": 0.1000000001},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_else_is_in_the_digest(result, change):
    assert dataclasses.replace(result, **change).digest() != result.digest()


def test_matches_one_by_one(result):
    assert [match.id for match in result] == ["f-2", "f-1"]
    assert len(result) == result.returned == 2
    first = result[0]
    assert (first.rank, first.points, first.score) == (1, 900, 90.0)
    assert first.contributions == {"text": 400, "skills": 500}
    assert sum(result[-1].contributions.values()) == result[-1].points
    with pytest.raises(IndexError):
        result[2]


def test_without_contributions(result):
    bare = dataclasses.replace(result, contributions=np.zeros((2, 0), dtype=np.int32))
    assert bare[0].contributions == {}
    assert b'"contributions":[[],[]]' in bare.canonical_bytes()


def test_to_dict_is_plain(result):
    document = result.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["matches"][0]["id"] == "f-2"
    assert document["digest"] == result.digest()
    assert document["telemetry"] == {"plan": "scan"}


def test_order_keys():
    best = [OrderKey(2, 9, 9), OrderKey(1, 0, 1), OrderKey(1, 0, 2), OrderKey(1, 1, 0)]
    mixed = [best[2], best[0], best[3], best[1]]
    assert sorted(mixed, key=lambda key: key.rank_order) == best
    assert str(OrderKey(-3, 1, 0xABCDEF)) == "-3:00000001:00abcdef"


def test_canonical_json_refuses_floats():
    for value in (1.0, [1.0], {"a": {"b": (1.0,)}}, np.float64(1)):
        with pytest.raises(TypeError, match="hex"):
            canonical_json(value)
    assert (
        canonical_json({"b": [1, None, "é"], "a": True}) == '{"a":true,"b":[1,null,"é"]}'.encode()
    )
