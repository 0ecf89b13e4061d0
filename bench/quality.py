"""How good the ranking is, and what the integers cost it.

    python bench/quality.py --json [--data ../shared/data] [--rows 100000] [--queries 500]

Three figures, one JSON object on stdout, progress on stderr:

``grid``    share of the float32 top 100 that integer points keep, on a synthetic marketplace, for
            the default policy's weights and with one facet's weight multiplied; both directions.
``views``   jobs ranked for candidates by what they viewed before; the last view is to be found.
            Views stand in for hires: nobody knows here who was hired.
``titles``  vacancy titles ranked for a title; those of the same ESCO occupation are to be found.

``views`` and ``titles`` stand beside plain TF-IDF cosine on the same strings and popularity, with
paired bootstrap intervals over queries (95%). Rankings are brute force over all rows: the engine's
exact top-K returns the same.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from matchwright.engine import synthetic
from matchwright.engine.generation import Generation, fit, starter
from matchwright.engine.generation.fixed import GRID
from matchwright.engine.generation.text import prepare
from matchwright.engine.policy import Policy
from matchwright.engine.records import SCHEMAS, Kind

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
AS_OF = synthetic.AS_OF
TOP = 100
KEPT_MIN = 0.98
"""Of the float32 top 100, with the default weights: less than that fails the claim."""
_BOOTSTRAPS = 2_000
_SIDES: tuple[tuple[Kind, Kind], ...] = (("job", "freelancer"), ("freelancer", "job"))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ── Integers against float32 ──────────────────────────────────────────────────────────────────


def overrides(weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The default weights, and each with one facet's weight multiplied."""
    grid = {"default": dict(weights)}
    for factor in (0.05, 5.0, 20.0):
        for name, weight in weights.items():
            grid[f"{name} x{factor:g}"] = {**weights, name: weight * factor}
    return grid


def real_rows(generation: Generation, kind: Kind, records: pl.DataFrame) -> NDArray[np.float32]:
    """float32 (N, D): rotated blocks before steps, the mean where not known."""
    out = np.empty((records.height, generation.d), dtype=np.float32)
    mean = np.array(getattr(generation.manifest, kind).mean, dtype=np.float64)
    for low in range(0, records.height, 8_192):
        chunk = records.slice(low, 8_192)
        for b, facet in enumerate(generation.facets):
            block = slice(facet.start, facet.start + facet.width)
            v_nw, known = generation.rotated(b, kind, chunk)
            v_nw[~known] = mean[block]
            out[low : low + chunk.height, block] = v_nw / GRID
    return out


def kept_shares(float_qn: NDArray[Any], points_qn: NDArray[Any], top: int) -> tuple[Floats, Floats]:
    """Share of the integer top that is as good as the float32 top's last, and the plain overlap.

    The two differ where scores tie: among equals, any choice is as good.
    """
    good, same = [], []
    for floats, points in zip(float_qn, points_qn, strict=True):
        ours = np.argpartition(-points, top)[:top]
        theirs = np.argpartition(-floats, top)[:top]
        good.append((floats[ours] >= floats[theirs].min()).mean())
        same.append(len(np.intersect1d(ours, theirs)) / top)
    return np.array(good), np.array(same)


def grid_figures(rows: int, queries: int) -> dict[str, Any]:
    """The figures of ``grid``."""
    policy = Policy.load()
    records: dict[Kind, pl.DataFrame] = {
        kind: synthetic.frame(kind, rows) for kind in ("job", "freelancer")
    }
    say(f"fitting on {rows} + {rows} synthetic records")
    generation = fit(records["job"], records["freelancer"], seed=1, sample=50_000, as_of=AS_OF)
    found: dict[str, Any] = {"rows": rows, "queries": queries, "top": TOP, "directions": {}}
    for asks, answers in _SIDES:
        x_nd = generation.encode(answers, records[answers]).x_nd.astype(np.float32)
        v_nd = real_rows(generation, answers, records[answers])
        vectors = generation.query(asks, records[asks][:queries], policy.facets, AS_OF)
        table = {}
        for name, weights in overrides(policy.weights).items():
            made = generation.quantise(vectors, asks, weights)
            per_d = np.repeat(list(weights.values()), np.diff(generation.offsets))
            shares = _in_blocks(made.q_qd, x_nd, (vectors.v_qd * per_d).astype(np.float32), v_nd)
            table[name] = {
                "kept": round(float(shares[0].mean()), 4),
                "same": round(float(shares[1].mean()), 4),
                "resolution_min": int(made.resolution_q.min()),
            }
            say(f"{asks} asks, {name}: {table[name]}")
        found["directions"][asks] = table
    return found


def _in_blocks(
    q_qd: NDArray[Any], x_nd: NDArray[Any], u_qd: NDArray[Any], v_nd: NDArray[Any]
) -> tuple[Floats, Floats]:
    shares = []
    for low in range(0, len(q_qd), 50):
        q = q_qd[low : low + 50].astype(np.int32)
        high, rest = (q + 64) >> 7, q - 128 * ((q + 64) >> 7)
        # Each limb's float32 product is exact; 128 * high needs float64.
        points = 128.0 * (high.astype(np.float32) @ x_nd.T) + (rest.astype(np.float32) @ x_nd.T)
        points = points.astype(np.float64)
        shares.append(kept_shares(u_qd[low : low + 50] @ v_nd.T, points, TOP))
    good, same = zip(*shares, strict=True)
    return np.concatenate(good), np.concatenate(same)


# ── Rankings ──────────────────────────────────────────────────────────────────────────────────


def first_rank(score_n: Floats, relevant: Ints) -> float:
    """Rank of the best relevant row, ties in the middle, from 1."""
    best = score_n[relevant].max()
    return float((score_n > best).sum() + ((score_n == best).sum() + 1) / 2)


def measures(score_n: Floats, relevant: Ints) -> dict[str, float]:
    """Reciprocal rank of the first relevant row, whether it is in 10 and 100, precision at 10."""
    rank = first_rank(score_n, relevant)
    top = np.argsort(-score_n, kind="stable")[:10]
    return {
        "reciprocal_rank": 1.0 / rank,
        "found_in_10": float(rank <= 10),
        "found_in_100": float(rank <= 100),
        "precision_at_10": float(np.isin(top, relevant).mean()),
    }


def compare(
    methods: Mapping[str, Callable[[int], Floats]],
    relevant: Sequence[Ints],
    left_out: Sequence[Ints] | None = None,
) -> dict[str, Any]:
    """Means of every method, and differences to the engine with 95% paired bootstrap intervals."""
    per: dict[str, dict[str, list[float]]] = {name: {} for name in methods}
    for n, wanted in enumerate(relevant):
        for name, score in methods.items():
            score_n = np.array(score(n), dtype=np.float64)
            if left_out is not None:
                score_n[left_out[n]] = -np.inf
            for key, value in measures(score_n, wanted).items():
                per[name].setdefault(key, []).append(value)
    draws = np.random.default_rng(0).integers(0, len(relevant), (_BOOTSTRAPS, len(relevant)))
    found: dict[str, Any] = {"queries": len(relevant), "means": {}, "engine_minus": {}}
    for name, values in per.items():
        found["means"][name] = {key: round(float(np.mean(v)), 4) for key, v in values.items()}
        if name == "engine":
            continue
        found["engine_minus"][name] = {
            key: _interval(np.array(per["engine"][key]) - np.array(v), draws)
            for key, v in values.items()
        }
    return found


def _interval(difference: Floats, draws: Ints) -> dict[str, float]:
    means = difference[draws].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "mean": round(float(difference.mean()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def engine_scores(
    generation: Generation, asks: Kind, queries: pl.DataFrame, corpus: pl.DataFrame
) -> Callable[[int], Floats]:
    """Points of all rows for the n-th query, under the default policy."""
    policy = Policy.load()
    answers: Kind = "freelancer" if asks == "job" else "job"
    x_nd = generation.encode(answers, corpus).x_nd.astype(np.float64)
    vectors = generation.query(asks, queries, policy.facets, AS_OF)
    made = generation.quantise(vectors, asks, policy.weights)
    return lambda n: np.asarray(x_nd @ made.q_qd[n].astype(np.float64))


def tfidf_scores(queries: Sequence[str], corpus: Sequence[str]) -> Callable[[int], Floats]:
    """Plain TF-IDF cosine, scikit-learn's defaults."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer().fit(corpus)
    x, q = vectorizer.transform(corpus), vectorizer.transform(queries)
    return lambda n: np.asarray((x @ q[n].T).todense()).ravel()


def frame(kind: Kind, rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, SCHEMAS[kind])


def ranked(
    asks: Kind,
    queries: pl.DataFrame,
    corpus: pl.DataFrame,
    popularity: Callable[[int], Floats],
    relevant: Sequence[Ints],
    left_out: Sequence[Ints] | None = None,
) -> dict[str, Any]:
    """The engine (fitted on the corpus), its starter, TF-IDF on the same strings, popularity."""
    sides = {"job": corpus, "freelancer": corpus.clear()}
    if asks == "job":
        sides = {"job": corpus.clear(), "freelancer": corpus}
    empty = {kind: pl.DataFrame(schema=SCHEMAS[kind]) for kind in ("job", "freelancer")}
    sides = {k: side if side.height else empty[k] for k, side in sides.items()}
    fitted = fit(sides["job"], sides["freelancer"], seed=1, as_of=AS_OF)
    methods = {
        "engine": engine_scores(fitted, asks, queries, corpus),
        "engine_starter": engine_scores(starter(), asks, queries, corpus),
        "tfidf": tfidf_scores(prepare(queries).to_list(), prepare(corpus).to_list()),
        "popularity": popularity,
    }
    return compare(methods, relevant, left_out)


# ── Views ─────────────────────────────────────────────────────────────────────────────────────


def view_figures(data: Path) -> dict[str, Any]:
    """The figures of ``views``."""
    with (data / "job_views" / "jobs.csv").open(newline="", encoding="utf-8") as file:
        jobs = list(csv.DictReader(file))
    place = {job["Job.ID"]: n for n, job in enumerate(jobs)}
    seen, popular_before = _histories(data, place)
    candidates = _candidates(data)
    people, relevant, left_out, before = [], [], [], []
    for person, (earlier, last, when) in seen.items():
        people.append(_person(person, candidates.get(person), [jobs[n] for n in earlier]))
        relevant.append(np.array([last]))
        left_out.append(np.array(earlier))
        before.append(when)
    corpus = frame("job", [_viewed_job(job) for job in jobs])
    queries = frame("freelancer", people)
    found = ranked(
        "freelancer", queries, corpus, lambda n: popular_before(before[n]), relevant, left_out
    )
    return {"jobs": len(jobs), "note": "views stand in for hires", **found}


def _histories(
    data: Path, place: Mapping[str, int]
) -> tuple[dict[str, tuple[list[int], int, int]], Callable[[int], Floats]]:
    """Person -> (earlier views, the last one, its position in time); views counted before then."""
    with (data / "job_views" / "views_train.csv").open(newline="", encoding="utf-8") as file:
        views = sorted(csv.DictReader(file), key=lambda view: view["View.Start"])
    viewed: dict[str, dict[int, int]] = {}
    for when, view in enumerate(views):
        viewed.setdefault(view["Applicant.ID"], {}).setdefault(place[view["Job.ID"]], when)
    found = {}
    for person, first_time in viewed.items():
        order = list(first_time)
        if len(order) > 1:
            found[person] = (order[:-1], order[-1], first_time[order[-1]])
    target = np.array([place[view["Job.ID"]] for view in views])

    def popular_before(when: int) -> Floats:
        return np.bincount(target[:when], minlength=len(place)).astype(np.float64)

    return found, popular_before


def _candidates(data: Path) -> dict[str, dict[str, Any]]:
    with (data / "job_views" / "candidates.jsonl").open(encoding="utf-8") as file:
        return {str(told["candidate_id"]): told for told in map(json.loads, file)}


def _viewed_job(job: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": job["Job.ID"],
        "title": job["Position"],
        "text": f"{job['Company']} {job['City']} {job['State.Code']} {job['Industry']}",
        "category": job["Industry"] or None,
    }


def _person(
    name: str, told: Mapping[str, Any] | None, earlier: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """What a candidate viewed before, and worked as, as a freelancer's record."""
    work = (told or {}).get("experience", [])
    words = [f"{job['Position']} {_viewed_job(job)['text']}" for job in earlier]
    words += [f"{place['title'] or ''} {place['city'] or ''}" for place in work]
    industries = dict.fromkeys(job["Industry"] for job in reversed(earlier) if job["Industry"])
    return {
        "id": name,
        "title": earlier[-1]["Position"],
        "text": "\n".join(words),
        "categories": list(industries) or None,
    }


# ── Titles ────────────────────────────────────────────────────────────────────────────────────


def title_figures(data: Path, queries: int) -> dict[str, Any]:
    """The figures of ``titles``."""
    with (data / "esco_titles_dev.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    asked, kept = [rows[n] for n in order[: 4 * queries]], [rows[n] for n in order[4 * queries :]]
    members: dict[str, list[int]] = {}
    for n, row in enumerate(kept):
        members.setdefault(row["conceptUri"], []).append(n)
    asked = [row for row in asked if row["conceptUri"] in members][:queries]
    size = np.array([len(members[row["conceptUri"]]) for row in kept], dtype=np.float64)
    found = ranked(
        "job",
        frame("job", [{"id": f"q{n}", "title": r["vacancyTitle"]} for n, r in enumerate(asked)]),
        frame(
            "freelancer", [{"id": f"t{n}", "title": r["vacancyTitle"]} for n, r in enumerate(kept)]
        ),
        lambda _: size,
        [np.array(members[row["conceptUri"]]) for row in asked],
    )
    return {"titles": len(kept), "occupations": len(members), **found}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; 0 unless the integers lose more than they may."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--rows", type=int, default=100_000, help="synthetic records of each kind")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--only", choices=["grid", "views", "titles"])
    parser.add_argument(
        "--json", action="store_true", help="accepted for symmetry; it is JSON anyway"
    )
    told = parser.parse_args(argv)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "grid": lambda: grid_figures(told.rows, told.queries),
        "views": lambda: view_figures(told.data),
        "titles": lambda: title_figures(told.data, told.queries),
    }
    found: dict[str, Any] = {"passed": True}
    for name, figures in parts.items():
        if told.only in (None, name):
            began = time.monotonic()
            if name != "grid" and not told.data.is_dir():
                found[name], found["passed"] = {"skipped": f"no folder {told.data}"}, False
                continue
            found[name] = figures()
            found[name]["seconds"] = round(time.monotonic() - began, 1)
    if "grid" in found:
        shares = [table["default"]["kept"] for table in found["grid"]["directions"].values()]
        found["passed"] = found["passed"] and min(shares) >= KEPT_MIN
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
