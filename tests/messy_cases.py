"""Records with everything that a schema lets through."""

from __future__ import annotations

import numpy as np
import polars as pl

from matchwright.engine import synthetic
from matchwright.engine.records import SCHEMAS
from matchwright.engine.rerank.features_rows import READ

N = 24
TEXTS = (
    None, "", "C++ and C#; c+++ a1+#b +5 #x", "naïve Ünïcode — “quotes” … 10€", "emoji 🙂 ﬁne ²",
    "\u0421\u043b\u043e\u0432\u0430 \u0438 words", "x" * 41 + " " + "y" * 40, "A\x00B\tC\nd",
    "\u00e4text", "word " * 90,
)  # fmt: skip
SKILL_LISTS = (
    None, [], ["SQL", "sql", " Sql ", "SQL"],
    ["\uff33\uff31\uff2c", "C++", "c++", "na\u00efve \U0001f642"],
    [f"Skill {n % 33}" for n in range(40)], ["Rust"] * 31 + ["Go"],
)  # fmt: skip


def skill(kind, name, random):
    """With a level or not; must-have, or not, or nothing said."""
    level = [None, 1, 5, 3][int(random.integers(4))]
    must = {"must": [None, True, False][int(random.integers(3))]} if kind == "job" else {}
    return {"name": name, "level": level, **must}


def messy(kind):
    """Records with everything that a schema lets through, and some that are as usual."""
    rows = []
    for n, row in enumerate(synthetic.frame(kind, N, seed=8, block=N).to_dicts()):
        random = np.random.default_rng([n, kind == "job"])
        if n % 4:
            row["text"], row["title"] = TEXTS[n % len(TEXTS)], TEXTS[(3 * n + 1) % len(TEXTS)]
        if n % 3:
            names = SKILL_LISTS[n % len(SKILL_LISTS)]
            row["skills"] = None if names is None else [skill(kind, one, random) for one in names]
        for field in READ[kind]:
            if field not in ("title", "text", "skills") and random.random() < 0.2:
                row[field] = None
        if row["hours_start"] is None or row["hours_end"] is None:
            row["hours_start"] = row["hours_end"] = None
        rows.append(row)
    return pl.DataFrame(rows, schema=SCHEMAS[kind], strict=True)
