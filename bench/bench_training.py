"""Training on a simulated marketplace with known truth: corrected against raw clicks, and the gate.

    python bench/bench_training.py --json [--seeds 8] [--decisions 4000] [--judged 1000]

One JSON object on stdout, progress on stderr. ``docs/simulation.md`` says what is compared and how
it is judged; ``passed`` follows it to the letter. The shares of the default run are those of the
page: smaller ones are for a look.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.rerank import gate, simulate
from matchwright.engine.rerank.bias import Curve, Method
from matchwright.engine.rerank.decisions_read import Logged, read
from matchwright.engine.rerank.evaluate import ranks
from matchwright.engine.rerank.simulate import Simulated
from matchwright.engine.rerank.train import Settings, Trained, train
from matchwright.engine.rerank.trees import Trees

SPLIT = simulate.FIRST_DAY + simulate.SPLIT
NAMES = ("raw", "swaps", "em", "oracle")
JUDGED = ("swaps", "first_phase")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Market:
    """One seed's decisions: the truth of those that are judged, and the log."""

    after: Simulated
    logged: Logged
    frame: pl.DataFrame
    folder: Path

    def relogged(self, frame: pl.DataFrame) -> Logged:
        """The training decisions changed, the judged ones as they were."""
        path = self.folder / "changed.parquet"
        whole = pl.concat([frame, self.after.frame], how="diagonal")
        whole.write_parquet(path)
        return read([path])


def market(seed: int, decisions: int, judged: int, folder: Path) -> Market:
    """Training decisions on days 0..79, judged ones on 80..99, from one seed each."""
    before = simulate.simulate(seed, decisions, days=(0, simulate.SPLIT))
    after = simulate.simulate(
        1_000_000 + seed, judged, days=(simulate.SPLIT, simulate.DAYS), name="t"
    )
    path = folder / f"{seed}.parquet"
    pl.concat([before.frame, after.frame], how="diagonal").write_parquet(path)
    return Market(after, read([path]), before.frame, folder)


def without_marks(logged: Logged) -> Logged:
    """The swaps' marks withheld."""
    return dataclasses.replace(logged, propensity=np.full_like(logged.propensity, np.nan))


def rankers(at: Market, settings: Settings) -> dict[str, Trained]:
    """One of each name, all with the same settings."""

    def made(logged: Logged, method: Method) -> Trained:
        changed = dataclasses.replace(settings, correction=method)
        return train(logged, changed, split_at=SPLIT)

    return {
        "raw": made(at.logged, Method.NONE),
        "swaps": made(at.logged, Method.RANDOMISED),
        "em": made(without_marks(at.logged), Method.EM),
        "oracle": with_truth(at.logged, settings),
    }


def with_truth(logged: Logged, settings: Settings) -> Trained:
    """Trained with the curve that the simulation used."""
    first = np.arange(1, simulate.LISTED + 1)
    examined = (1.0 / first**simulate.ETA).astype(np.float64)
    curve = Curve(Method.RANDOMISED, first, examined, settings.weight_max, 0)
    return train(logged, settings, split_at=SPLIT, curve=curve)


def orders(at: Market, trees: dict[str, Trees]) -> dict[str, Any]:
    """Ranks of each ranker and of the first phase over the judged decisions."""
    f_nf, first = at.after.f_nf, at.after.first_rank
    decision = np.repeat(np.arange(at.after.day_d.size), simulate.LISTED)
    made = {name: ranks(decision, one.score(f_nf), first) for name, one in trees.items()}
    return made | {"first_phase": first.astype(np.int64) - 1}


def gates(at: Market, made: dict[str, Trained], settings: Settings) -> dict[str, Any]:
    """Verdicts, and what the truth says: mean NDCG of the candidate minus that of the other."""
    swaps = made["swaps"]
    logs = {
        "worse": at.relogged(simulate.shuffled_outcomes(at.frame, 1)),
        "segment": at.relogged(simulate.without_outcomes(at.frame, pl.col("newcomer"))),
    }

    def made_of(logged: Logged, in_service: Trees | None) -> Trained:
        # Positions are corrected as for `swaps`: the labels are what differs.
        return train(logged, settings, split_at=SPLIT, in_service=in_service, curve=swaps.curve)

    trained = {name: made_of(logged, None) for name, logged in logs.items()}
    against = {
        "worse": made_of(logs["worse"], swaps.trees),
        "same": made_of(at.logged, swaps.trees),
    }
    told = {
        "worse_than_first_phase": gate.judge(trained["worse"].evaluation, None),
        "worse_than_in_service": gate.judge(against["worse"].evaluation, swaps.trees.content_hash),
        "worse_for_newcomers": gate.judge(trained["segment"].evaluation, None),
        "better": gate.judge(swaps.evaluation, None),
        "same": gate.judge(against["same"].evaluation, swaps.trees.content_hash),
    }
    ranked = orders(at, {"worse": trained["worse"].trees, "segment": trained["segment"].trees,
                         "swaps": swaps.trees})  # fmt: skip
    truth = {n: float(simulate.true_ndcg(at.after.rho, r).mean()) for n, r in ranked.items()}
    return {"verdicts": told, "truth": truth}


def right(told: dict[str, gate.Verdict]) -> dict[str, bool]:
    """Whether each verdict is what the page asks for."""
    newcomers = told["worse_for_newcomers"]
    overall = any("not better than" in text for text in newcomers.refusals)
    named = any("newcomer 'newcomer'" in text for text in newcomers.refusals)
    return {
        "worse_than_first_phase": not told["worse_than_first_phase"].passed,
        "worse_than_in_service": not told["worse_than_in_service"].passed,
        "worse_for_newcomers": named and not overall,
        "better": told["better"].passed,
        "same": not told["same"].passed,
    }


def run(seeds: range, decisions: int, judged: int, settings: Settings) -> dict[str, Any]:
    """All figures."""
    ndcg: dict[str, list[Any]] = {name: [] for name in (*NAMES, "first_phase")}
    tau: dict[str, list[float]] = {name: [] for name in ndcg}
    verdicts = []
    curves: dict[str, Any] = {}
    for seed in seeds:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            at = market(seed, decisions, judged, Path(folder))
            made = rankers(at, settings)
            for name, rank in orders(at, {n: t.trees for n, t in made.items()}).items():
                ndcg[name].append(simulate.true_ndcg(at.after.rho, rank))
                tau[name].append(float(simulate.true_tau(at.after.rho, rank).mean()))
            found = gates(at, made, settings)
        curves = {name: made[name].curve.record() for name in ("swaps", "em")}
        ok = right(found["verdicts"])
        refusals = {name: verdict.refusals for name, verdict in found["verdicts"].items()}
        verdicts.append({"seed": seed, "right": ok, "truth": found["truth"], "refusals": refusals})
        means = {name: round(float(values[-1].mean()), 4) for name, values in ndcg.items()}
        say(f"seed {seed}: {means}, gate {ok}, {time.monotonic() - begin:.0f} s")
    return told(ndcg, tau, verdicts, curves)


def told(
    ndcg: dict[str, list[Any]], tau: dict[str, list[float]], verdicts: list[Any], curves: Any
) -> dict[str, Any]:
    """The JSON object."""
    pairs = {
        "swaps_minus_raw": ("swaps", "raw"),
        "swaps_minus_first_phase": ("swaps", "first_phase"),
        "em_minus_raw": ("em", "raw"),
        "oracle_minus_swaps": ("oracle", "swaps"),
    }
    found = {}
    for name, (a, b) in pairs.items():
        parts = [x - y for x, y in zip(ndcg[a], ndcg[b], strict=True)]
        mean, low, high = simulate.interval(parts)
        found[name] = {"difference": mean, "low": low, "high": high}
    gate_right = all(all(one["right"].values()) for one in verdicts)
    recovered = min(found["swaps_minus_raw"]["low"], found["swaps_minus_first_phase"]["low"]) > 0
    return {
        "ndcg@10": {n: float(np.mean([v.mean() for v in values])) for n, values in ndcg.items()},
        "kendall_tau": {name: float(np.mean(values)) for name, values in tau.items()},
        "differences": found,
        "curves_of_the_last_seed": curves,
        "gate": verdicts,
        "recovered": recovered,
        "gate_right": gate_right,
        "passed": recovered and gate_right,
    }


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="the only format; taken for form")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=1, help="others than 1 are for tuning")
    parser.add_argument("--decisions", type=int, default=4_000)
    parser.add_argument("--judged", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    settings = Settings(threads=asked.threads)
    begin = time.monotonic()
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    figures = run(seeds, asked.decisions, asked.judged, settings)
    figures |= {"seeds": list(seeds), "decisions": asked.decisions, "judged": asked.judged,
                "seconds": round(time.monotonic() - begin, 1)}  # fmt: skip
    print(json.dumps(figures, indent=2))
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
