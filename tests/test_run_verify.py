"""``run verify``: each check sees what it is there for, and nothing else; people may be erased."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil

import numpy as np
import polars as pl
import pytest

from matchwright.engine import synthetic
from matchwright.engine.cli import main
from matchwright.engine.matcher import Matcher, Request
from matchwright.engine.policy import Policy
from matchwright.engine.runs import verify as verify_module
from matchwright.engine.runs.digest import run_digest
from matchwright.engine.runs.execute import LocalExecutor, run
from matchwright.engine.runs.findings import CHECKS
from matchwright.engine.runs.folder import SUMMARY, Output, RunFolder
from matchwright.engine.runs.plan import RunOptions, make_plan
from matchwright.engine.runs.prepare_block import prepare_block
from matchwright.engine.runs.redact import Gone, redact
from matchwright.engine.runs.verify import FAILED, REDACTED, SOUND, picks, verify
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops
from matchwright.kernels.order import mix32

AS_OF = synthetic.AS_OF
PEOPLE, JOBS, K, SLACK = 180, 50, 4, 3
KINDS = ("job", "freelancer")
OPS = Ops(threads=1)
POLICY = Policy.load()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(store folder, run folder) of a sound run."""
    place = tmp_path_factory.mktemp("verify")
    with Store.open(place / "store", mode="w", create=True, salt=bytes(range(16))) as store:
        for kind, n in (("job", JOBS), ("freelancer", PEOPLE)):
            store.upsert(kind, synthetic.frame(kind, n, seed=5, texts=False, block=1_024))
        store.seal()
        folder = make_run(store, place / "runs", slack=SLACK, count=True, contributions=True)
    return place / "store", folder


def make_run(store, output, *, kinds=KINDS, **options):
    asked = {"k": K, "as_of": AS_OF, "policy": POLICY, "block": 200, **options}
    snapshot = store.snapshot()
    plan = make_plan(snapshot, RunOptions(kinds=kinds, **asked), store=str(store.root))
    folder = Output(str(output)).folder(plan.run_id)
    run(plan, folder, LocalExecutor(OPS, snapshot, plan, prefetch=False), snapshot=snapshot)
    return folder


@pytest.fixture
def broken(whole, tmp_path):
    """A copy of the run, to be damaged."""
    folder = whole[1]
    shutil.copytree(folder.url, tmp_path / folder.run_id)
    return Broken(RunFolder(tmp_path / folder.run_id), whole[0])


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


# ── A sound run ───────────────────────────────────────────────────────────────────────────────


def test_a_sound_run_is_checked_in_every_way(whole, capsys):
    folder = whole[1]
    code = main(["run", "verify", folder.url, "--sample", "30", "-f", "json"])
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (told["verdict"], told["sampled"]) == (SOUND, 30)
    assert told["digest"] == folder.summary()["digest"]
    assert [check["check"] for check in told["checks"]] == list(CHECKS)
    for check in told["checks"]:
        assert check["checked"] > 0, check
        assert (check["failed"], check["skipped"]) == (0, None)


def test_the_run_is_what_the_matcher_says(whole):
    """Another way to the same answers: single requests."""
    store, folder = whole
    with Store.open(store) as opened:
        matcher = Matcher(opened.snapshot(), OPS, POLICY)
        for unit in folder.plan().units_of("job"):
            rows = folder.part(unit)
            for query in folder.queries(unit).iter_rows(named=True):
                asked = Request(kind="job", id=query["query_id"], k=K, as_of=AS_OF)
                result = matcher.match(asked)
                mine = rows.filter(pl.col("query_key") == query["query_key"])
                assert mine["id"].to_list() == list(result.ids)
                assert mine["points"].to_list() == result.points.tolist()
                assert mine["score"].to_list() == result.scores.tolist()
                assert query["eligible"] == result.eligible
                assert query["unverified"] == result.unverified
                assert query["shortfall"] == result.shortfall


def test_without_the_store_it_says_what_was_not_checked(whole, tmp_path, capsys):
    folder = whole[1]
    shutil.copytree(folder.url, tmp_path / folder.run_id)
    copy = RunFolder(tmp_path / folder.run_id)
    plan = json.loads(copy.read("plan.json"))
    plan["store"] = str(tmp_path / "nowhere")
    copy.write("plan.json", json.dumps(plan).encode())
    assert main(["run", "verify", copy.url, "-f", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    skipped = {check["check"] for check in told["checks"] if check["skipped"]}
    assert skipped == set(verify_module.NEEDS_STORE)
    assert told["sampled"] == 0


def test_an_incomplete_run_is_refused_with_the_way_on(broken, capsys):
    broken.folder.remove(SUMMARY)
    assert broken.code() == 2
    assert "run resume" in capsys.readouterr().err


def test_the_sample_is_drawn_from_all_and_follows_the_seed(whole):
    plan = whole[1].plan()
    total = JOBS + PEOPLE
    for size in (0, 7, total, total + 50):
        chosen = picks(plan, size, seed=1)
        assert sum(map(len, chosen.values())) == min(size, total)
    assert picks(plan, 20, 1) == picks(plan, 20, 1) != picks(plan, 20, 2)


# ── Each check ────────────────────────────────────────────────────────────────────────────────


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
    eligible, _ = OPS.eligible(corpus, asked.rules[0])
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


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
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
    ],
)
def test_each_check_sees_its_own_damage(broken, spoil, expected, capsys):
    """Exit code 6, and the names of the checks, in words and for machines."""
    spoil(broken)
    assert broken.code() == 6
    told = capsys.readouterr()
    checks = json.loads(told.out)["checks"]
    assert {check["check"] for check in checks if check["failed"]} == expected
    for name in expected:
        assert name in told.err


def test_every_check_is_spoilt_by_some_test():
    spoilt = {"run", "files", "units", "schema", "ranks", "order", "duplicates", "keys", "scores"}
    spoilt |= {"returned", "horizon", "counts", "digest", "corpus", "questions", "points", "rules"}
    assert set(CHECKS) - spoilt == {"sample"}


def test_a_row_that_is_missing_is_seen_by_brute_force_alone(broken):
    """The last row of a short answer goes, and every figure with it: only a search can tell."""
    part, queries = broken.frame("part"), broken.frame("queries")
    short = queries.filter((pl.col("returned") > 0) & (pl.col("returned") < K)).row(0, named=True)
    last = (pl.col("query_key") == short["query_key"]) & (pl.col("rank") == short["returned"])
    left = short["returned"] - 1
    broken.put("part", part.filter(~last), digest=False)
    at = int((queries["query_key"] == short["query_key"]).arg_max())
    broken.edit("queries", at, returned=left)
    with broken.summary() as summary:
        counts = summary["counts"]["job"]
        counts["rows"] -= 1
        if not left:
            counts["few"] -= 1
            counts["none"] += 1
    assert broken.failed(sample=0) == set()
    assert broken.failed(sample=JOBS + PEOPLE) == {"sample"}
    assert broken.code(sample=JOBS + PEOPLE) == 6


def test_a_wrong_count_is_seen_by_brute_force(broken):
    queries = broken.frame("queries")
    broken.edit("queries", 0, eligible=queries["eligible"][0] + 1)
    assert broken.failed(sample=JOBS + PEOPLE) == {"sample"}


def test_damaged_and_missing_files_are_named(broken, capsys):
    name = broken.unit.file("part")
    data = bytearray(broken.folder.read(name))
    data[len(data) // 2] ^= 1
    broken.folder.write(name, bytes(data))
    assert "files" in broken.failed()
    broken.folder.remove(name)
    assert broken.code() == 6
    assert name in capsys.readouterr().err


def test_a_unit_that_is_left_out_everywhere_is_seen(broken):
    """From plan.json, run.json, the counts and the digest: only the store knows who should ask."""
    plan = json.loads(broken.folder.read("plan.json"))
    kind, number, start, stop, _ = plan["units"].pop()
    plan["counts"][kind] -= stop - start
    broken.folder.write("plan.json", json.dumps(plan).encode())
    with broken.summary() as summary:
        unit = summary["units"].pop()
        assert (unit["kind"], unit["number"]) == (kind, number)
        for name in ("queries", "full", "few", "none", "errors", "rows"):
            summary["counts"][kind][name] -= unit[name]
    for what in ("part", "slack", "queries"):
        broken.folder.remove(f"for={kind}/{what}-{number:05d}.parquet")
    with broken.summary() as summary:
        summary["digest"] = run_digest(broken.folder)
    assert broken.failed() == {"units"}


def test_another_policy_in_the_plan_is_seen(broken):
    plan = json.loads(broken.folder.read("plan.json"))
    plan["policy"]["weights"]["skills"] *= 2
    broken.folder.write("plan.json", json.dumps(plan).encode())
    assert "run" in broken.failed()


def test_whatever_byte_is_wrong_it_ends_with_a_clear_code(whole, tmp_path, count, capsys):
    """Flipped, cut short, emptied or gone: 6 for what run.json vouches for, never a defect."""
    store, sound_one = whole
    rng = random.Random(11)
    names = [
        n for n in sorted(sound_one.list()) if n not in ("LOCK", "metrics.prom", "report.html")
    ]
    covered = [n for n in names if "/" in n]
    for n in range(count(reduced=12, full=500)):
        folder = RunFolder(tmp_path / str(n) / sound_one.run_id)
        shutil.copytree(sound_one.url, folder.url)
        name = rng.choice(names)
        data = bytearray(folder.read(name))
        how = rng.choice(["flip", "flip", "flip", "cut", "empty", "gone"])
        if how == "flip":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif how == "cut":
            del data[rng.randrange(len(data)) :]
        elif how == "empty":
            data.clear()
        folder.write(name, bytes(data))
        if how == "gone":
            folder.remove(name)
        words = ["--store", str(store), "--sample", "0", "-f", "json"]
        code = main(["run", "verify", folder.url, *words])
        told = capsys.readouterr().err
        shutil.rmtree(tmp_path / str(n))
        expected = {6} if name in covered and "/unit-" not in name else {0, 2, 3, 6}
        assert code in expected, (name, how, code, told)


def test_answers_to_nobody_and_from_nobody(tmp_path):
    """Queries without a corpus, and runs without a query, are sound too."""
    with Store.open(tmp_path / "store", mode="w", create=True) as store:
        store.upsert("job", synthetic.frame("job", 20, texts=False, block=1_024))
        for kinds in (("job",), ("freelancer",), KINDS):
            folder = make_run(store, tmp_path / "runs", kinds=kinds, slack=2)
            verdict = verify(folder, store.snapshot(), sample=20)
            assert verdict.verdict == SOUND, verdict.figures()


# ── Erased people ─────────────────────────────────────────────────────────────────────────────


class Without:
    """A snapshot in which some people are no longer there."""

    def __init__(self, snapshot, kind, ids):
        self._snapshot = snapshot
        gone = snapshot.rows_of(kind, ids)
        parts = []
        corpus = snapshot.corpus(kind)
        for (segment, alive), base in zip(corpus.parts, corpus.base.tolist(), strict=False):
            alive = np.ones(segment.n, bool) if alive is None else alive.copy()
            here = gone[(gone >= base) & (gone < base + segment.n)] - base
            alive[here] = False
            parts.append((segment, alive))
        self._corpora = {kind: dataclasses.replace(corpus, parts=tuple(parts))}

    def corpus(self, kind):
        return self._corpora.get(kind) or self._snapshot.corpus(kind)

    def __getattr__(self, name):
        return getattr(self._snapshot, name)


@pytest.fixture
def erased(broken):
    """The run without its five most shown people, and the store without them."""
    shown = broken.frame("part")["id"].value_counts(sort=True)["id"].to_list()[:5]
    with Store.open(broken.store) as store:
        snapshot = store.snapshot()
        nobody = np.zeros(0, np.uint64)
        gone = Gone(
            store=store.uuid,
            keys={"job": nobody, "freelancer": np.sort(snapshot.keys(shown))},
            epochs={"job": np.zeros(0, np.int64), "freelancer": np.full(5, 10**6)},
        )
        assert redact(broken.folder, gone, "2026-01-01T00:00:00Z").outcome == "redacted"
        yield broken, Without(snapshot, "freelancer", shown)


def test_a_run_from_which_people_were_erased_is_redacted_and_else_equal(erased):
    broken, snapshot = erased
    verdict = verify(broken.folder, snapshot, sample=JOBS + PEOPLE)
    assert verdict.verdict == REDACTED, verdict.figures()
    assert verdict.sampled == JOBS + PEOPLE - 5
    assert verdict.digest == broken.folder.summary()["digest_redacted"]


def test_damage_is_still_seen_after_an_erasure(erased):
    broken, snapshot = erased
    at = first_of(broken.frame("part"), 2)
    kept = broken.frame("part").filter(pl.int_range(pl.len()) != at)
    broken.put("part", kept, digest=False)
    verdict = verify(broken.folder, snapshot, sample=JOBS + PEOPLE)
    assert verdict.verdict == FAILED
    assert {c["check"] for c in verdict.checks if c["failed"]} >= {"digest", "sample"}


def test_an_erasure_that_was_cut_short_is_told(erased):
    broken, snapshot = erased
    with broken.summary() as summary:
        summary["redacted"][0]["done"] = False
    verdict = verify(broken.folder, snapshot, sample=0)
    assert {c["check"] for c in verdict.checks if c["failed"]} == {"run"}
