"""What ``gpu_check.py`` asks: synthetic rows, queries and rule sets, and how many of each fit.

Sizes follow from the device's memory, the host's, and the time that the whole check may take, so
that one call ends in time on whatever machine it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from matchwright.kernels.types import Bitmap, Corpus, InRange, OneOf, Queries, Rules, Segment

DEFAULT_D = 384
"""Dimensions under the default policy, with its embedded encoder; by test."""
VALUES = 1 << 20
"""Values of the columns ``value`` and ``rate``; a range of them is a share of the rows."""
LEVELS, HOURS = 4, 61
NAMED_ROWS, NAMED_QUERIES, NAMED_K = 10_000_000, 4_096, 100
_BLOCK = 65_536
_ROW_BYTES = 12 + 4 * 4  # norm, key, four columns
_MAKE_ROWS_PER_S = 400_000.0  # on one core, at D = 384, generous
_SHARE_OF_BUDGET = 0.1


@dataclass(slots=True)
class Budget:
    """How long the check may take, and what was left out for it.

    Args:
        seconds: in all.
        clock: monotonic seconds.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    left_out: dict[str, str] = field(default_factory=dict)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    @property
    def left(self) -> float:
        return self.seconds - (self.clock() - self.began)

    def allows(self, name: str, needs: float) -> bool:
        """Whether there is time for something; what there is none for is written down."""
        if needs <= self.left:
            return True
        self.left_out[name] = f"would take {needs:.0f} s, {max(0.0, self.left):.0f} s are left"
        return False

    @contextmanager
    def part(self, spent: dict[str, float], name: str) -> Iterator[None]:
        """Notes how long a part took."""
        start = self.clock()
        try:
            yield
        finally:
            spent[name] = round(self.clock() - start, 1)


def rows_that_fit(
    wanted: int, d: int, *, device_bytes: int | None, host_bytes: int | None, budget_s: float
) -> int:
    """The most of ``wanted``, ``wanted`` / 2, / 5, / 10, ... rows for which everything fits.

    On the device lie rows and columns, and beside them the copies that the peers read (int8, fp16,
    bf16, torch's); on the host rows and columns twice, once while they are made. Making them may
    take a tenth of the time.
    """
    cores = max(1, os.cpu_count() or 1)
    quick = _SHARE_OF_BUDGET * budget_s * _MAKE_ROWS_PER_S * cores * DEFAULT_D / max(d, 1)
    each = d + _ROW_BYTES
    limits = [quick]
    if device_bytes is not None:
        limits.append(device_bytes * 0.8 / (each + 8 * d))
    if host_bytes is not None:
        limits.append(host_bytes * 0.6 / (2 * each))
    most = min(limits)
    scale = 1
    while True:
        for part in (1, 2, 5):
            rows = wanted // (scale * part)
            if rows <= most or rows <= 1_000:
                return max(1, rows)
        scale *= 10


def host_memory() -> int | None:
    """Bytes of memory that are available; None where Linux does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    named = dict(line.split(":", 1) for line in lines)
    return int(named["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in named else None


def problem(seed: int, n: int, q: int, d: int) -> tuple[Corpus, Queries]:
    """Gaussian vectors on the two grids, random keys, four columns that rules read."""
    rng = np.random.default_rng(seed)
    x_nd = np.empty((n, d), np.int8)

    def fill(begin: int) -> None:
        own = np.random.default_rng((seed, begin))
        block = own.standard_normal((min(_BLOCK, n - begin), d), np.float32)
        np.rint(block * 32, out=block)
        x_nd[begin : begin + _BLOCK] = np.clip(block, -127, 127)

    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, range(0, n, _BLOCK)))
    q_qd = np.clip(np.rint(rng.standard_normal((q, d)) * 4_000), -16_255, 16_255).astype(np.int16)
    key = np.arange(n + q, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    columns = {
        "value": rng.integers(0, VALUES, n, dtype=np.int32),
        "rate": rng.integers(0, VALUES, n, dtype=np.int32),
        "level": rng.integers(0, LEVELS, n, dtype=np.int32),
        "hours": rng.integers(0, HOURS, n, dtype=np.int32),
    }
    return Corpus(((Segment(x_nd, key[:n], columns), None),)), Queries(q_qd, key[n:])


def own_rules(seed: int, queries: Queries) -> Queries:
    """A different rule set for each query: rate, hours, level; half of the rows pass, about."""
    rng = np.random.default_rng(seed)
    sets: list[Rules | Bitmap] = []
    for i in range(queries.q):
        top = int(rng.uniform(0.75, 1.0) * VALUES) - i % 7
        levels = tuple(int(level) for level in rng.permutation(LEVELS)[: LEVELS - 1])
        sets.append(
            (
                InRange("rate", 0, top, "RATE"),
                InRange("hours", int(rng.integers(0, 14)), HOURS, "HOURS"),
                OneOf("level", levels, "LEVEL"),
            )
        )
    return Queries(queries.q_qd, queries.key_q, sets, np.arange(queries.q, dtype=np.int32))


def of_rate(rate: float, low: int = 0) -> Rules:
    """A rule that lets this share of the rows pass."""
    return (InRange("value", low, low + max(1, round(rate * VALUES)) - 1, "VALUE"),)


def first(queries: Queries, many: int) -> Queries:
    """The first so many queries."""
    group_q = queries.group_q
    return Queries(
        queries.q_qd[:many],
        queries.key_q[:many],
        queries.groups,
        None if group_q is None else group_q[:many],
    )


def tops(queries: Queries) -> Any:
    """int32 (Q,): the upper limit of each query's first rule."""
    assert queries.group_q is not None
    highs = [rules[0].high for rules in queries.groups]  # type: ignore[index,union-attr]
    return np.array(highs, np.int32)[queries.group_q]
