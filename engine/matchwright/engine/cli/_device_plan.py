"""``matchwright doctor --device --store DIR``: what a store's rows would take on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matchwright.engine.cli._failures import harmless
from matchwright.engine.device import device_plan, plan_corpora
from matchwright.engine.records import KINDS
from matchwright.engine.store import Store
from matchwright.kernels.choice import NoDevice
from matchwright.kernels.cupy_ops import DeviceMismatch
from matchwright.kernels.ops import Ops, get_ops
from matchwright.kernels.probe import gib


def examine_device(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """(check, state, detail, advice) of every array; loads nothing."""
    ops: Ops
    try:
        ops = get_ops("gpu", threads=1)
    except DeviceMismatch as error:
        ops = Ops(threads=1)
        yield "gpu", "failed", harmless(str(error)), "use --device cpu, and report this"
    except NoDevice as error:
        ops = Ops(threads=1)
        yield "gpu", "absent", f"{harmless(error.text)}; the plan is told without a budget", ""
    else:
        yield "gpu", "ok", ops.health.chosen, ""
    with Store.open(folder) as store:
        plan = device_plan(ops, plan_corpora(store.snapshot(), KINDS))
    for number, one in enumerate(plan.segments):
        columns = ", ".join(f"{name} {gib(size)}" for name, size in one.columns.items())
        yield (
            f"{one.corpus} segment {number}",
            "ok",
            f"{one.rows:,} rows: x {gib(one.x)}, norms {gib(one.norms)}, keys {gib(one.keys)}, "
            f"alive {gib(one.alive)}; columns, when asked for: {columns or 'none'}",
            "",
        )
    sizes = ", ".join(
        f"{name} {gib(size)}" for name, size in plan.temporary.items() if name != "queries"
    )
    queries = plan.temporary.get("queries", 0)
    yield "temporary", "ok", f"blocks of {queries:,} queries, k = 100: {sizes}", ""
    refusal = plan.refusal()
    advice = "" if refusal is None else "shard it, or use --device cpu"
    state = "ok" if refusal is None else "failed"
    yield "device memory", state, refusal or plan.lines()[-1], advice
