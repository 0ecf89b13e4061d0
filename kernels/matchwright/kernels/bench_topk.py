"""Top-K on this machine's CPU, beside its peers, in one run: ``matchwright bench topk``.

Everything is a ratio of medians of interleaved repeats, since the machine's clock and neighbours
change between runs. The peers:

- *sgemm*: NumPy's product of the same shape in float32, in blocks, scores thrown away. The better
  of one BLAS with all cores, and of one worker for each core.
- *mask + argpartition*: what one writes first in NumPy.
- *FAISS* ``IndexFlatIP`` in float32, without and with one ``IDSelectorBitmap`` for each query.

Every query has a bitmap of its own, in ours and in FAISS; what it costs to evaluate a different
realistic rule set for every query through the index is told apart. FAISS with selectors is timed
on some of the queries and scaled, since it takes minutes otherwise.

    python -m matchwright.kernels.bench_topk [--full | --quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from matchwright.kernels.bench_peers import Faiss, mask_and_argpartition, sgemm
from matchwright.kernels.bench_rules import rule_figures
from matchwright.kernels.index import build_index
from matchwright.kernels.ops import Ops, get_ops, usable_cores
from matchwright.kernels.types import (
    Bitmap,
    Corpus,
    Float32,
    Int8,
    Int16,
    Queries,
    Rules,
    Segment,
    UInt8,
)

Figures = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured.

    Attributes:
        rows, queries, k: of the corpus and the query block.
        dimensions: each is measured.
        pass_rates: along the sweep, descending.
        faiss_rates: pass rates at which FAISS is measured with selectors.
        ks: numbers of results, unfiltered.
        repeats: of everything.
    """

    rows: int
    queries: int
    k: int
    dimensions: tuple[int, ...]
    pass_rates: tuple[float, ...]
    faiss_rates: tuple[float, ...]
    ks: tuple[int, ...]
    repeats: int


BARE_RATE = 0.03
"""Down to this pass rate the sweep is compared with the bare product."""


def _halves(last: int) -> tuple[float, ...]:
    return tuple(2.0**-i for i in range(last + 1))


FULL = Size(
    500_000, 512, 100, (256, 384), _halves(20), (0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-6),
    (10, 100, 500, 1_000), 3,
)  # fmt: skip
USUAL = Size(100_000, 256, 100, (256,), _halves(16)[::2], (0.5, 0.01, 1e-4), (10, 100, 500), 3)
QUICK = Size(5_000, 16, 10, (32,), (1.0, 0.1, 0.01), (0.5, 0.01), (1, 10), 1)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Random rows and queries, as integers and as floats."""

    size: Size
    d: int
    corpus: Corpus
    x_nd: Int8
    key_q: Any
    q_qd: Int16
    wide_qd: Float32

    def queries(self, groups: Sequence[Any] = ((),)) -> Queries:
        group_q = np.arange(len(self.q_qd), dtype=np.int32) % len(groups)
        return Queries(self.q_qd, self.key_q, list(groups), group_q)

    def bitmaps(self, rate: float) -> list[UInt8]:
        """Packed, one for each query; low rates leave an eligible row here and there."""
        generator = np.random.default_rng(int(1 / rate))
        rows, found = self.size.rows, []
        for _ in range(self.size.queries):
            flags = np.zeros(rows, dtype=np.bool_)
            count = generator.binomial(rows, rate)
            if rate > 0.05:
                flags = generator.random(rows, dtype=np.float32) < rate
            else:
                flags[generator.integers(0, rows, count)] = True
            found.append(np.packbits(flags, bitorder="little"))
        return found


def make_scene(size: Size, d: int) -> Scene:
    """Normal vectors on the grids that the engine uses."""
    generator = np.random.default_rng(d)
    x_nd = np.empty((size.rows, d), dtype=np.int8)
    for begin in range(0, size.rows, 65_536):
        part = generator.standard_normal(x_nd[begin : begin + 65_536].shape, dtype=np.float32)
        x_nd[begin : begin + 65_536] = np.clip(np.rint(part * 32), -127, 127)
    u_qd = generator.standard_normal((size.queries, d))
    q_qd = np.rint(u_qd / np.abs(u_qd).max(axis=1, keepdims=True) * 16_255).astype(np.int16)
    key_n = generator.permutation(size.rows).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    key_q = generator.integers(0, 2**63, size.queries).astype(np.uint64)
    index = build_index({}, {}, x_nd, key_n)
    corpus = Corpus(((Segment(x_nd, key_n, index=index), None),))
    return Scene(size, d, corpus, x_nd, key_q, q_qd, q_qd.astype(np.float32))


def medians(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each; all take turns, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, work in contenders.items():
            start = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


# ── Sections ──────────────────────────────────────────────────────────────────────────────────


def unfiltered(scene: Scene, backends: Sequence[Ops], faiss: Faiss | None) -> list[Row]:
    """No rules: ours beside the bare product and FAISS."""
    size, queries, x = scene.size, scene.queries(), scene.x_nd
    contenders: dict[str, Callable[[], object]] = {
        "sgemm, one BLAS": partial(sgemm, scene.wide_qd, x, workers=False),
        "sgemm, workers": partial(sgemm, scene.wide_qd, x, workers=True),
        **{ops.name: partial(ops.topk, scene.corpus, queries, size.k) for ops in backends},
    }
    if faiss is not None:
        contenders["FAISS IndexFlatIP"] = partial(faiss.search, scene.wide_qd, size.k)
    took = medians(contenders, size.repeats)
    took |= medians(
        {"mask + argpartition": partial(mask_and_argpartition, scene.wide_qd, x, size.k)}, 1
    )
    bare = min(took["sgemm, one BLAS"], took["sgemm, workers"])
    peer = took.get("FAISS IndexFlatIP")
    return [
        {
            "d": scene.d,
            "what": name,
            "seconds": seconds,
            "of sgemm": bare / seconds,
            "times FAISS": None if peer is None else peer / seconds,
            "Mpairs/s": size.rows * size.queries / seconds / 1e6,
        }
        for name, seconds in took.items()
    ]


def sweep(scene: Scene, backends: Sequence[Ops]) -> list[Row]:
    """A bitmap for every query, the pass rate falling by factors of 2."""
    size = scene.size
    rows: list[Row] = []
    before: dict[str, float] = {}
    for rate in size.pass_rates:
        groups: list[Rules | Bitmap] = [()]
        if rate < 1:
            groups = [Bitmap(bits) for bits in scene.bitmaps(rate)]
        ask = {ops.name: partial(ops.topk, scene.corpus, scene.queries(groups), size.k)
               for ops in backends}  # fmt: skip
        contenders: dict[str, Callable[[], object]] = {**ask}
        if rate >= BARE_RATE:
            contenders["sgemm"] = partial(sgemm, scene.wide_qd, scene.x_nd, workers=True)
        took = medians(contenders, size.repeats)
        bare = took.pop("sgemm", None)
        rows += [
            {
                "d": scene.d,
                "backend": name,
                "pass rate": rate,
                "plan": ask[name]().telemetry["plan"],
                "seconds": seconds,
                "of sgemm": None if bare is None else bare / seconds,
                "of higher neighbour": seconds / before.get(name, seconds),
            }
            for name, seconds in took.items()
        ]
        before = took
    return rows


def beside_selectors(scene: Scene, backends: Sequence[Ops], faiss: Faiss) -> list[Row]:
    """The same bitmaps for FAISS, packed beforehand, on all cores."""
    size = scene.size
    rows: list[Row] = []
    for rate in size.faiss_rates:
        bitmaps = scene.bitmaps(rate)
        queries = scene.queries([Bitmap(bits) for bits in bitmaps])
        some = max(1, min(size.queries, int(size.queries / 8 if rate > 1e-3 else size.queries)))
        selectors = faiss.selectors(bitmaps[:some], size.rows)
        contenders: dict[str, Callable[[], object]] = {
            ops.name: partial(ops.topk, scene.corpus, queries, size.k) for ops in backends
        }
        contenders["FAISS"] = partial(
            faiss.search_selected, scene.wide_qd[:some], size.k, selectors
        )
        took = medians(contenders, size.repeats)
        peer = took.pop("FAISS") * size.queries / some
        rows += [
            {
                "d": scene.d,
                "pass rate": rate,
                "backend": name,
                "seconds": seconds,
                "FAISS seconds": peer,
                "times FAISS": peer / seconds,
            }
            for name, seconds in took.items()
        ]
    return rows


def by_k(scene: Scene, ops: Ops) -> list[Row]:
    """What more results cost."""
    size = scene.size
    took = medians(
        {str(k): partial(ops.topk, scene.corpus, scene.queries(), k) for k in size.ks},
        size.repeats,
    )
    least = took[str(size.ks[0])]
    return [
        {"d": scene.d, "backend": ops.name, "k": k, "seconds": took[str(k)],
         "of the least k": took[str(k)] / least}
        for k in size.ks
    ]  # fmt: skip


def ties(scene: Scene, ops: Ops) -> list[Row]:
    """All scores tied, in three ways, beside the usual."""
    size, segment = scene.size, scene.corpus.parts[0][0]
    same = np.repeat(scene.x_nd[:1], size.rows, axis=0)
    few = scene.x_nd[np.arange(size.rows) % 3]
    zeros = Queries(np.zeros_like(scene.q_qd), scene.key_q)
    equal, three = (Corpus(((Segment(x, segment.key_n), None),)) for x in (same, few))
    took = medians(
        {
            "usual": partial(ops.topk, scene.corpus, scene.queries(), size.k),
            "equal rows": partial(ops.topk, equal, scene.queries(), size.k),
            "queries of zeros": partial(ops.topk, scene.corpus, zeros, size.k),
            "three distinct rows": partial(ops.topk, three, scene.queries(), size.k),
        },
        size.repeats,
    )
    return [
        {"d": scene.d, "backend": ops.name, "what": name, "seconds": seconds,
         "of usual": seconds / took["usual"]}
        for name, seconds in took.items()
    ]  # fmt: skip


def single(scene: Scene, backends: Sequence[Ops], faiss: Faiss | None) -> list[Row]:
    """One query, beside reading the corpus once."""
    size = scene.size
    one = Queries(scene.q_qd[:1], scene.key_q[:1])
    contenders: dict[str, Callable[[], object]] = {
        "reading the corpus": partial(_read, scene.x_nd),
        **{ops.name: partial(ops.topk, scene.corpus, one, size.k) for ops in backends},
    }
    if faiss is not None:
        contenders["FAISS IndexFlatIP"] = partial(faiss.search, scene.wide_qd[:1], size.k)
    took = medians(contenders, 3 * size.repeats)
    read, peer = took["reading the corpus"], took.get("FAISS IndexFlatIP")
    return [
        {
            "d": scene.d,
            "what": name,
            "ms": seconds * 1e3,
            "times reading": seconds / read,
            "times FAISS": None if peer is None else peer / seconds,
        }
        for name, seconds in took.items()
    ]


def _read(x_nd: Int8) -> None:
    """Every byte once, on all cores."""
    octets = x_nd.reshape(-1)
    words = octets[: octets.size // 8 * 8].view(np.int64)
    cores = usable_cores()
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(np.bitwise_or.reduce, np.array_split(words, cores)))


# ── The whole ─────────────────────────────────────────────────────────────────────────────────


def claims(figures: Figures, backend: str) -> list[Row]:
    """The targets beside what was measured; the worst over all dimensions."""
    met: list[Row] = []

    def claim(text: str, values: Sequence[float | None], least: bool, target: float) -> None:
        real = [value for value in values if value is not None]
        if real:
            got = min(real) if least else max(real)
            good = got >= target if least else got <= target
            line = {"backend": backend, "claim": text, "target": target}
            met.append({**line, "measured": got, "met": good})

    free = [row for row in figures["unfiltered"] if row["what"] == backend]
    claim("unfiltered, of sgemm", [row["of sgemm"] for row in free], True, 0.85)
    claim("unfiltered, times FAISS", [row["times FAISS"] for row in free], True, 1.0)
    swept = [row for row in figures["sweep"] if row["backend"] == backend]
    high = [row["of sgemm"] for row in swept]
    claim("down to a pass rate of 3%, of sgemm", high, True, 0.85)
    steps = [row["of higher neighbour"] for row in swept if row["pass rate"] < 1]
    claim("sweep, largest step up", steps, False, 1.1)
    for rate, target in (
        (0.5, 10.0),
        (0.1, 4.0),
        (0.01, 1.5),
        (1e-3, 3.0),
        (1e-4, 15.0),
        (1e-6, 15.0),
    ):
        near = [row["times FAISS"] for row in figures["beside selectors"]
                if row["pass rate"] == rate and row["backend"] == backend]  # fmt: skip
        claim(f"pass rate {rate:g}, times FAISS with selectors", near, True, target)
    many = [row for row in figures["by k"] if row["backend"] == backend and row["k"] == 500]
    claim("K = 500, of K = 10", [row["of the least k"] for row in many], False, 1.25)
    tied = [row for row in figures["ties"] if row["backend"] == backend]
    tied = [row for row in tied if row["what"] in ("equal rows", "queries of zeros")]
    claim("all tied, of the usual", [row["of usual"] for row in tied], False, 2.0)
    alone = [row for row in figures["single"] if row["what"] == backend]
    claim("one query, times FAISS", [row["times FAISS"] for row in alone], True, 1.0)
    claim(
        "one query, times reading the corpus", [row["times reading"] for row in alone], False, 1.5
    )
    return met


def run(
    *,
    full: bool = False,
    quick: bool = False,
    size: Size | None = None,
    device: Ops | None = None,
) -> Figures:
    """Measure, and compare with the targets.

    Args:
        full: the sizes that the targets are about; takes a quarter of an hour.
        quick: tiny sizes, whose figures mean nothing.
        size: other sizes.
        device: a GPU's backend, to be measured as well; the targets are not about it.

    Returns:
        JSON-ready figures; ``passed``, with ``full``, says that the backend of
        ``get_ops("cpu")`` meets all targets.
    """
    size = size or (FULL if full else QUICK if quick else USUAL)
    best = get_ops("cpu")
    backends = [best] if best.name == "numpy" else [best, Ops()]
    backends += [] if device is None else [device]
    figures: Figures = {
        "device": f"{_processor()}, {usable_cores()} cores",
        "numpy": np.__version__,
        "blas": _blas(),
        "faiss": Faiss.version() or "not installed: pip install faiss-cpu",
        "rows": size.rows,
        "queries": size.queries,
        "k": size.k,
    }
    sections = (
        "bounds",
        "unfiltered",
        "sweep",
        "beside selectors",
        "by k",
        "ties",
        "single",
        "rules",
    )
    figures |= {name: [] for name in sections}
    for d in size.dimensions:
        _measure(make_scene(size, d), backends, figures)
    if not full:
        figures["note"] = "the targets are about --full; smaller sizes need not meet them"
    figures["claims"] = [
        row for ops in backends if ops is not device for row in claims(figures, ops.name)
    ]
    if full:
        ours = [row for row in figures["claims"] if row["backend"] == best.name]
        figures["passed"] = all(row["met"] for row in ours)
    return figures


def _measure(scene: Scene, backends: Sequence[Ops], figures: Figures) -> None:
    size = scene.size
    faiss = Faiss(scene.x_nd) if Faiss.version() else None
    figures["bounds"].append(
        {
            "d": scene.d,
            "operations": 2 * size.rows * size.queries * scene.d,
            "corpus bytes": scene.x_nd.nbytes,
            "one read, s": medians({"": partial(_read, scene.x_nd)}, size.repeats)[""],
        }
    )
    figures["unfiltered"] += unfiltered(scene, backends, faiss)
    figures["sweep"] += sweep(scene, backends)
    for ops in backends:
        figures["by k"] += by_k(scene, ops)
        figures["ties"] += ties(scene, ops)
    figures["single"] += single(scene, backends, faiss)
    if faiss is not None:
        figures["beside selectors"] += beside_selectors(scene, backends, faiss)
    figures["rules"] += rule_figures(scene.x_nd, scene.q_qd, scene.key_q, backends[0], size.k)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _blas() -> str:
    try:
        import threadpoolctl
    except ImportError:
        return "unknown"
    pools = threadpoolctl.threadpool_info()
    return ", ".join(
        f"{pool['internal_api']} {pool['version']} {pool.get('architecture', '')}"
        for pool in pools
        if pool["user_api"] == "blas"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench_topk", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--full", action="store_true", help="the sizes of the targets; slow")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    figures = run(full=options.full, quick=options.quick)
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=2) + os.linesep)
    else:
        for name, value in figures.items():
            for line in value if isinstance(value, list) else [value]:
                shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in line.items()} \
                    if isinstance(line, dict) else line  # fmt: skip
                sys.stdout.write(f"{name}: {shown}\n")
    return 0 if figures.get("passed", True) else 6


if __name__ == "__main__":
    raise SystemExit(main())
