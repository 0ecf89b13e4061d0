"""Small inputs and exact answers that every backend must meet."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from matchwright.kernels import order
from matchwright.kernels.cupy_ops import CupyOps, no_device_reason
from matchwright.kernels.ops import Ops
from matchwright.kernels.types import Bitmap, Corpus, Queries, Segment

FILE = Path(__file__).with_name("golden") / "kernels.json"
FORMAT, SHA256 = 1, "272efd9cd6cee6f1f598c8ed4a88023b4fe3748000b9f9ac013411ba5d596745"
GOLDEN = json.loads(FILE.read_text("utf-8"))


def numkong_ops():
    from matchwright.kernels.numkong_ops import NumkongOps

    return NumkongOps()


NO_NUMKONG = not importlib.util.find_spec("numkong")
NO_DEVICE = no_device_reason()


@pytest.fixture(
    params=[
        pytest.param(Ops, id="numpy"),
        pytest.param(
            numkong_ops,
            id="numkong",
            marks=pytest.mark.skipif(NO_NUMKONG, reason="NumKong is not installed"),
        ),
        pytest.param(
            CupyOps,
            id="cupy",
            marks=pytest.mark.skipif(NO_DEVICE is not None, reason=NO_DEVICE or "has a device"),
        ),
    ]
)
def ops(request):
    return request.param()


def test_the_file_changes_only_with_its_format():
    assert GOLDEN["format"] == FORMAT
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert digest == SHA256, "answers changed: raise FORMAT in tests/golden/make_kernels.py"


def test_keys():
    keys = order.hash_keys(list(GOLDEN["keys"]), bytes.fromhex(GOLDEN["salt"]))
    assert [str(key) for key in keys] == list(GOLDEN["keys"].values())


@pytest.mark.parametrize("scene", GOLDEN["scenes"], ids=range(len(GOLDEN["scenes"])))
@pytest.mark.parametrize("plan", ["auto", "scan", "gather", "skip"])
def test_answers(ops, scene, plan):
    x_nd = np.array(scene["x_nd"], dtype=np.int8)
    keys = np.array([int(key) for key in scene["key_n"]], dtype=np.uint64)
    corpus = Corpus(((Segment(x_nd, keys), np.array(scene["alive_n"], dtype=bool)),))
    queries = Queries(
        np.array(scene["q_qd"], dtype=np.int16),
        np.array([int(key) for key in scene["key_q"]], dtype=np.uint64),
        [(), Bitmap(np.array(scene["eligible_n"], dtype=bool))],
        np.array(scene["group_q"], dtype=np.int32),
    )
    got = ops.topk(corpus, queries, scene["k"], plan=plan)
    for i, answer in enumerate(scene["answers"]):
        n = int(got.returned_q[i])
        rows = got.row_qk[i, :n]
        assert rows.tolist() == answer["rows"]
        assert got.points_qk[i, :n].tolist() == answer["points"]
        assert int(got.eligible_q[i]) == answer["eligible"]
        assert order.mix32(queries.key_q[i], keys[rows]).tolist() == answer["mixes"]
        assert (keys[rows] & np.uint64(0xFFFFFFFF)).tolist() == answer["lows"]
