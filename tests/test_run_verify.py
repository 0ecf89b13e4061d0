"""``run verify``: each check sees what it is there for, and nothing else; people may be erased."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil

import numpy as np
import polars as pl
import pytest
from run_verify_cases import (
    AS_OF,
    DAMAGES,
    JOBS,
    KINDS,
    OPS,
    PEOPLE,
    POLICY,
    SLACK,
    Broken,
    K,
    first_of,
    make_run,
)

from matchwright.engine import synthetic
from matchwright.engine.cli import main
from matchwright.engine.matcher import Matcher, Request
from matchwright.engine.runs import verify as verify_module
from matchwright.engine.runs.digest import run_digest
from matchwright.engine.runs.findings import CHECKS
from matchwright.engine.runs.folder import SUMMARY, RunFolder
from matchwright.engine.runs.redact import Gone, redact
from matchwright.engine.runs.verify import FAILED, REDACTED, SOUND, picks, verify
from matchwright.engine.store import Store


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


@pytest.fixture
def broken(whole, tmp_path):
    """A copy of the run, to be damaged."""
    folder = whole[1]
    shutil.copytree(folder.url, tmp_path / folder.run_id)
    return Broken(RunFolder(tmp_path / folder.run_id), whole[0])


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


@pytest.mark.parametrize(("spoil", "expected"), DAMAGES)
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
    spoilt = set().union(*(expected for _, expected in DAMAGES))
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
