"""Writes ``kernels.json``: ``python tests/golden/make_kernels.py``.

Small inputs written out, and the exact answers to them by a brute force in Python integers. Any
backend must meet them. A change of the order key, of limbs or of points changes them; then raise
FORMAT here, write the file, and pin its digest in tests/test_kernels_golden.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import kernel_cases as cases  # noqa: E402

from matchwright.kernels.types import Bitmap, Corpus, Queries, Segment  # noqa: E402

FORMAT = 1
IDS = ("job-1", "freelancer/42", "Am\u00e9lie", "\u6771\u4eac", "x" * 128)
SALT = bytes(range(16))


def scene(seed: int, n: int, d: int, q: int, k: int, spread: int, loud: int) -> dict[str, Any]:
    """One corpus with a bitmap, a few queries, and what they find."""
    rng = np.random.default_rng(seed)
    x_nd = rng.integers(-spread, spread + 1, (n, d)).astype(np.int8)
    keys = cases.some_keys(rng, n)
    alive, eligible = rng.random(n) < 0.9, rng.random(n) < 0.6
    queries = Queries(
        rng.integers(-loud, loud + 1, (q, d)).astype(np.int16),
        rng.integers(0, 2**64, q, dtype=np.uint64),
        [(), Bitmap(eligible)],
        (np.arange(q) % 2).astype(np.int32),
    )
    corpus = Corpus(((Segment(x_nd, keys), alive),))
    answers = cases.brute_topk(corpus, queries, k)
    for i, answer in enumerate(answers):
        key_q = int(queries.key_q[i])
        ties = [cases.tie_of(key_q, int(keys[row])) for row in answer["rows"]]
        answer["mixes"] = [tie >> 32 for tie in ties]
        answer["lows"] = [tie & cases.WORD32 for tie in ties]
    return {
        "k": k,
        "x_nd": x_nd.tolist(),
        "key_n": [str(key) for key in keys],
        "alive_n": alive.astype(int).tolist(),
        "eligible_n": eligible.astype(int).tolist(),
        "q_qd": queries.q_qd.tolist(),
        "key_q": [str(key) for key in queries.key_q],
        "group_q": queries.group_q.tolist(),
        "answers": answers,
    }


def golden() -> dict[str, Any]:
    import hashlib
    import unicodedata

    def key(text: str) -> str:
        octets = unicodedata.normalize("NFC", text).encode()
        digest = hashlib.blake2b(octets, digest_size=8, key=SALT, person=b"mw-key-v1").digest()
        return str(int.from_bytes(digest, "little"))

    return {
        "format": FORMAT,
        "salt": SALT.hex(),
        "keys": {text: key(text) for text in IDS},
        "scenes": [
            scene(1, 24, 5, 4, 6, 127, 16_255),
            scene(2, 40, 3, 3, 40, 1, 1),
            scene(3, 30, 2, 2, 10, 0, 9),
            scene(4, 12, 33, 3, 5, 127, 16_255),
        ],
    }


if __name__ == "__main__":
    text = json.dumps(golden(), ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    (HERE / "kernels.json").write_text(text.replace('{"', '\n{"') + "\n", "utf-8")
