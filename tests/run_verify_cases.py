"""A run that can be damaged in each of the ways that ``run verify`` sees."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import polars as pl

from matchwright.engine import synthetic
from matchwright.engine.cli import main
from matchwright.engine.policy import Policy
from matchwright.engine.runs.digest import run_digest
from matchwright.engine.runs.execute import LocalExecutor, run
from matchwright.engine.runs.folder import SUMMARY, Output
from matchwright.engine.runs.plan import RunOptions, make_plan
from matchwright.engine.runs.prepare_block import prepare_block
from matchwright.engine.runs.verify import FAILED, verify
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops
from matchwright.kernels.order import mix32

AS_OF = synthetic.AS_OF
PEOPLE, JOBS, K, SLACK = 180, 50, 4, 3
KINDS = ("job", "freelancer")
OPS = Ops(threads=1)
POLICY = Policy.load()


def make_run(store, output, *, kinds=KINDS, **options):
    asked = {"k": K, "as_of": AS_OF, "policy": POLICY, "block": 200, **options}
    snapshot = store.snapshot()
    plan = make_plan(snapshot, RunOptions(kinds=kinds, **asked), store=str(store.root))
    folder = Output(str(output)).folder(plan.run_id)
    run(plan, folder, LocalExecutor(OPS, snapshot, plan, prefetch=False), snapshot=snapshot)
    return folder


class Broken:
    def __init__(self, folder, store):
        self.folder, self.store = folder, store
        self.plan = folder.plan()
        self.unit = self.plan.units[0]

    def frame(self, what):
        return self.folder.frame(self.unit, what)

    def put(self, what, frame, *, digest=True):
        """Replace a file, with the hash that belongs to it; and the digest of the run."""
        data = self.folder.write_frame(self.unit, what, frame)
        record = self.folder.read_json(self.unit.file("unit"))
        record["sha256"][what] = hashlib.sha256(data).hexdigest()
        self.folder.write(self.unit.file("unit"), json.dumps(record).encode())
        with self.summary() as summary:
            summary["units"][0]["sha256"] = record["sha256"]
        if digest:
            with self.summary() as summary:
                summary["digest"] = run_digest(self.folder)

    def summary(self):
        return Edited(self.folder)

    def edit(self, what, row, **values):
        """Other values in one row of a file."""
        rows = self.frame(what).to_dicts()
        rows[row] |= values
        self.put(what, pl.DataFrame(rows, schema=self.frame(what).schema))

    def failed(self, sample=0):
        with Store.open(self.store) as store:
            verdict = verify(self.folder, store.snapshot(), sample=sample)
        assert verdict.sound == (verdict.verdict != FAILED)
        assert bool(verdict.figures()) != verdict.sound
        return {check["check"] for check in verdict.checks if check["failed"]}

    def code(self, sample=0):
        """The exit code of the command."""
        words = ["--store", str(self.store), "--sample", str(sample), "-f", "json"]
        return main(["run", "verify", self.folder.url, *words])


class Edited:
    """run.json, written back at the end of a block."""

    def __init__(self, folder):
        self._folder = folder

    def __enter__(self):
        self._document = self._folder.summary()
        return self._document

    def __exit__(self, kind, error, trace):
        if kind is None:
            self._folder.write(SUMMARY, json.dumps(self._document).encode())


def first_of(frame, least):
    """Row number at which the rows of the first query with so many rows begin, in a part."""
    sizes = frame.group_by("query_key", maintain_order=True).len()
    key = sizes.filter(pl.col("len") >= least)["query_key"][0]
    return int((frame["query_key"] == key).arg_max())


def spoil_run(broken):
    with broken.summary() as summary:
        summary["determinants"]["as_of"] += 1


def spoil_files(broken):
    with broken.summary() as summary:
        summary["units"][0]["sha256"]["queries"] = "0" * 64


def spoil_names(broken):
    """A further part, which a reader of the folder would take for results."""
    data = broken.folder.read(broken.unit.file("part"))
    broken.folder.write("for=job/part-00099.parquet", data)


def spoil_units(broken):
    """Two queries change places."""
    queries = broken.frame("queries")
    none = queries.with_row_index().filter(pl.col("returned") == 0)["index"].to_list()[:2]
    order = np.arange(queries.height)
    order[none] = order[none[::-1]]
    broken.put("queries", queries[order])


def spoil_schema(broken):
    broken.put("part", broken.frame("part").with_columns(policy=pl.lit("another")))


def spoil_ranks(broken):
    at = first_of(broken.frame("part"), 3)
    broken.edit("part", at + 2, rank=4)


def spoil_order(broken):
    part = broken.frame("part")
    at = first_of(part, 2)
    first, second = part.row(at, named=True), part.row(at + 1, named=True)
    broken.edit("part", at, **{**second, "rank": 1})
    broken.edit("part", at + 1, **{**first, "rank": 2})


def spoil_duplicates(broken):
    part = broken.frame("part")
    at = first_of(part, 2)
    broken.edit("part", at + 1, **{**part.row(at, named=True), "rank": 2})


def spoil_keys(broken):
    """A person's id in another spelling, which nobody has."""
    part = broken.frame("part")
    broken.edit("part", 0, id=part["id"][0] + "x")


def spoil_scores(broken):
    part = broken.frame("part")
    broken.edit("part", 0, score=float(np.nextafter(part["score"][0], np.inf)))


def spoil_contributions(broken):
    name = f"points_{broken.plan.facets[0]}"
    broken.edit("part", 0, **{name: broken.frame("part")[name][0] + 1})


def spoil_shortfall(broken):
    few = broken.frame("queries")["shortfall"].is_not_null().arg_max()
    broken.edit("queries", few, shortfall=None)


def spoil_horizon(broken):
    known = broken.frame("queries")["horizon_points"].is_not_null()
    assert known.any()
    far = known.arg_max()
    broken.edit("queries", far, horizon_points=None, horizon_mix=None, horizon_low=None)


def spoil_horizon_near(broken):
    """A horizon that a stored row does not reach."""
    queries = broken.frame("queries")
    far = queries["horizon_points"].is_not_null().arg_max()
    broken.edit("queries", far, horizon_points=queries["horizon_points"][far] + 1)


def spoil_counts(broken):
    with broken.summary() as summary:
        summary["counts"]["job"]["few"] += 1


def spoil_digest(broken):
    with broken.summary() as summary:
        summary["digest"] = "0" * 64


def spoil_corpus(broken):
    name = "corpus-freelancer.parquet"
    where = broken.folder.path(name)
    metadata = {k: v for k, v in pl.read_parquet_metadata(where).items() if "matchwright" in k}
    frame = pl.read_parquet(where)
    frame[3, "print_low"] += 1
    frame.write_parquet(where, metadata=metadata)


def spoil_corpus_missing(broken):
    name = "corpus-freelancer.parquet"
    where = broken.folder.path(name)
    metadata = {k: v for k, v in pl.read_parquet_metadata(where).items() if "matchwright" in k}
    pl.read_parquet(where)[1:].write_parquet(where, metadata=metadata)


def spoil_questions(broken):
    queries = broken.frame("queries")
    broken.edit("queries", 0, attainable=queries["attainable"][0] + 1)


def spoil_print(broken):
    broken.edit("queries", 0, print=bytes(16))


def spoil_points(broken):
    """The best row of a query gets a point more: the order stays as it is."""
    part, queries = broken.frame("part"), broken.frame("queries")
    at = first_of(part, 1)
    points = part["points"][at] + 1
    t = queries.filter(pl.col("query_key") == part["query_key"][at])["t"][0]
    name = f"points_{broken.plan.facets[0]}"
    own = part[name][at] + 1
    broken.edit("part", at, points=points, score=points * t, **{name: own})


def spoil_rules(broken):
    """The best of those who are not eligible takes its place, with the right points."""
    part = broken.frame("part")
    with Store.open(broken.store) as store:
        at, mine = next(intruded(store.snapshot(), broken, part))
    rows = part.to_dicts()
    t = broken.frame("queries").filter(pl.col("query_key") == part["query_key"][at])["t"][0]
    for rank, row in enumerate(mine, 1):
        row |= {"rank": rank, "score": row["points"] * t}
    rows[at : at + K] = mine
    broken.put("part", pl.DataFrame(rows, schema=part.schema))


def intruded(snapshot, broken, part):
    """(first row, rows in their order) of full answers that somebody ineligible would be in."""
    sizes = part.group_by("query_key", maintain_order=True).len()
    for key in sizes.filter(pl.col("len") == K)["query_key"]:
        at = int((part["query_key"] == key).arg_max())
        rows = part.slice(at, K).to_dicts()
        intruder = best_ineligible(snapshot, rows[0]["query_id"], broken.plan.facets)
        mine = [*rows, {**rows[0], **intruder}]
        mine = sorted(mine, key=lambda row, key=key: order_of(key, row))[:K]
        if intruder["id"] in [row["id"] for row in mine]:
            yield at, mine


def best_ineligible(snapshot, job, facets):
    """Columns of a part for whoever would be best for a job, if the rules allowed it."""
    asked = prepare_block(snapshot, "job", [job], POLICY.effective(), AS_OF)
    corpus = snapshot.corpus("freelancer")
    eligible, _ = OPS.eligible(corpus, asked.groups[0])
    segment = corpus.parts[0][0]
    parts = OPS.contributions(segment.x_nd, asked.q_qd[0], snapshot.generation.offsets)
    row = int(np.argmax(np.where(eligible[: segment.n], -(2**31), parts.sum(axis=1))))
    return {
        "id": snapshot.ids_of("freelancer", [row])[0],
        "key": int(segment.key_n[row]),
        "points": int(parts[row].sum()),
        **{f"points_{name}": int(p) for name, p in zip(facets, parts[row], strict=True)},
    }


def order_of(query_key, row):
    mix = int(mix32(query_key, np.array([row["key"]], np.uint64))[0])
    return -row["points"], mix, row["key"] & 0xFFFFFFFF


DAMAGES = [
    (spoil_run, {"run"}),
    (spoil_files, {"files"}),
    (spoil_names, {"files"}),
    (spoil_units, {"units"}),
    (spoil_schema, {"schema", "digest", "counts"}),
    (spoil_ranks, {"ranks"}),
    (spoil_order, {"order"}),
    (spoil_duplicates, {"duplicates", "order"}),
    (spoil_keys, {"keys", "points"}),
    (spoil_scores, {"scores"}),
    (spoil_contributions, {"scores"}),
    (spoil_shortfall, {"returned"}),
    (spoil_horizon, {"horizon"}),
    (spoil_horizon_near, {"horizon"}),
    (spoil_counts, {"counts"}),
    (spoil_digest, {"digest"}),
    (spoil_corpus, {"corpus"}),
    (spoil_corpus_missing, {"corpus"}),
    (spoil_questions, {"questions"}),
    (spoil_print, {"questions"}),
    (spoil_points, {"points"}),
    (spoil_rules, {"rules"}),
]
"""What spoils a run, and the checks that see it."""
