"""Reports of runs of every kind, hostile ones too, and the commands that write them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import polars as pl
import pytest
from report_cases import MEGABYTE, OPS, K, Page, embedded, parquet, ways
from run_cases import POLICY, do, make_store

from matchwright.engine.cli import main
from matchwright.engine.records import KINDS, to_frame
from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.report.make import figures_of, report_of
from matchwright.engine.runs.report.page import render
from matchwright.engine.store import Store

EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><svg onload=alert(1)>",
    "<!--<script>",
    "{{ 7 * 7 }}{% raw %}",
    "a&lt;b&amp;c",
    "' onfocus='alert(1)",
    "javascript:alert(1)",
    "]]><style>*{display:none}</style>",
]


@pytest.fixture
def hostile(tmp_path):
    """A marketplace in which every text is an attack."""
    jobs = [
        {
            "id": f"{evil} j{n}", "title": f"{evil} \u202egpj.exe", "text": evil,
            "skills": [{"name": evil, "must": False}], "status": "OPEN", "rate_max_cents": 9_000,
        }
        for n, evil in enumerate(EVIL)
    ]  # fmt: skip
    people = [
        {
            "id": f"{evil} f{n}", "title": evil, "text": evil, "skills": [{"name": evil}],
            "status": "AVAILABLE", "rate_cents": 1_000, "reviews": n,
        }
        for n, evil in enumerate(EVIL)
    ]  # fmt: skip
    with Store.open(tmp_path / "store", mode="w", create=True) as store:
        store.upsert("job", to_frame("job", jobs))
        store.upsert("freelancer", to_frame("freelancer", people))
        policy = dataclasses.replace(POLICY, name="<b onclick=alert(1)>&")
        snapshot = store.snapshot()
        run, _ = do(snapshot, tmp_path / "runs", k=5, policy=policy)
        yield report_of(run, snapshot, OPS).decode()


def test_hostile_names_stay_text(hostile):
    page = Page(hostile)
    assert page.tags["script"] == 2
    assert page.tags["style"] == 1
    assert page.tags["img"] == 0
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(
        value.startswith("#") or value == "data:,"
        for _, name, value in page.attributes
        if name in ("src", "href")
    )
    figures = embedded(hostile)
    ids = {query["id"] for query in figures["sample"] if query["kind"] == "job"}
    assert ids == {f"{evil} j{n}" for n, evil in enumerate(EVIL)}
    text = "".join(page.text)
    for n, evil in enumerate(EVIL):
        assert f"{evil} j{n}" in text
    assert "49" not in [piece.strip() for piece in page.text]
    assert "<b onclick=alert(1)>&" in text
    assert "\u202e" not in hostile


def test_a_report_stays_a_few_megabytes(tmp_path, count):
    """Titles, ids and skills as long as they may be, on both sides."""
    n = count(reduced=120, full=600)
    skills = [{"name": f"skill number {s} {'of a very long name ' * 4}"[:80]} for s in range(20)]
    job = {"title": "w " * 500, "skills": [{**s, "must": False} for s in skills], "status": "OPEN"}
    person = {"title": "w " * 500, "skills": skills, "status": "AVAILABLE", "rate_cents": 1_000}
    with Store.open(tmp_path / "store", mode="w", create=True) as store:
        rows = [{**job, "id": f"{i}{'j' * 120}"} for i in range(n)]
        store.upsert("job", to_frame("job", rows))
        rows = [{**person, "id": f"{i}{'f' * 120}"} for i in range(n)]
        store.upsert("freelancer", to_frame("freelancer", rows))
        snapshot = store.snapshot()
        run, _ = do(snapshot, tmp_path / "runs", k=K)
        assert len(report_of(run, snapshot, OPS)) < 5 * MEGABYTE


# ── Runs of every kind ────────────────────────────────────────────────────────────────────────


def small(folder, jobs, people, **asked):
    """(figures, html) of a run over these records."""
    with Store.open(folder / "store", mode="w", create=True) as store:
        for kind, rows in (("job", jobs), ("freelancer", people)):
            if rows:
                store.upsert(kind, to_frame(kind, rows))
        snapshot = store.snapshot()
        run, _ = do(snapshot, folder / "runs", **{"k": K, **asked})
        figures = figures_of(run, snapshot, OPS)
        return figures, render(figures)


PERSON = {"id": "f", "status": "AVAILABLE", "rate_cents": 1_000, "skills": [{"name": "Go"}]}
JOB = {"id": "j", "status": "OPEN", "skills": [{"name": "Go", "must": False}]}


def test_an_empty_run(tmp_path):
    figures, html = small(tmp_path, [], [])
    assert [way.outcome.queries for way in figures.ways] == [0, 0]
    assert figures.sample == ()
    assert "There were no jobs to match." in html
    assert figures.throughput is None


@pytest.mark.parametrize("kind", KINDS)
def test_one_query(tmp_path, kind):
    figures, html = small(tmp_path, [JOB], [PERSON], kinds=(kind,), k=1)
    (way,) = figures.ways
    assert (way.outcome.queries, way.outcome.full, way.outcome.rows) == (1, 1, 1)
    assert way.exposure is not None
    assert (way.exposure.available, way.exposure.shown, way.exposure.gini) == (1, 1, 0.0)
    assert way.first == way.last
    assert way.first.counts == (1,)
    assert "found 1 match" in html
    assert [query.id for query in figures.sample] == ["j" if kind == "job" else "f"]


def test_nobody_finds_anybody(tmp_path):
    gone = [{**PERSON, "id": f"f{n}", "status": "GONE"} for n in range(3)]
    figures, html = small(tmp_path, [{**JOB, "id": f"j{n}"} for n in range(4)], gone)
    jobs, people = figures.ways
    assert (jobs.outcome.none, people.outcome.none) == (4, 3)
    assert jobs.causes is not None
    assert [(one.veto, one.queries, one.pairs, one.alone) for one in jobs.causes.rules] == [
        ("FREELANCER_NOT_AVAILABLE", 4, 12, 12)
    ]
    assert people.causes is not None
    assert people.causes.rules[0].never == 3
    assert people.outcome.shortfalls == {"QUERY_VETOED": 3}
    assert jobs.exposure is not None
    assert (jobs.exposure.available, jobs.exposure.places) == (0, 0)
    assert jobs.first.n == 0
    assert "No query found a match." in html
    assert "4 of 4 jobs (100%) found no match" in html


def test_nobody_on_the_other_side(tmp_path):
    figures, html = small(tmp_path, [JOB], [], kinds=("job",))
    (way,) = figures.ways
    assert way.outcome.shortfalls == {"EMPTY_CORPUS": 1}
    assert "Nobody is on the other side" in html


def test_a_store_that_moved_on_is_named(tmp_path):
    with Store.open(make_store(tmp_path / "store", 80, 20), mode="w") as store:
        run, _ = do(store.snapshot(), tmp_path / "runs", k=3, kinds=("job",))
        shown = parquet(run, "job", "part")["id"].to_list()
        gone = Counter(shown).most_common(1)[0][0]
        store.delete("freelancer", [gone])
        figures = figures_of(run, store.snapshot(), OPS)
    assert figures.head.seen != figures.head.epoch
    assert "The store has moved on" in render(figures)
    exposure = figures.ways[0].exposure
    assert exposure is not None
    assert exposure.elsewhere == shown.count(gone)
    assert exposure.places + exposure.elsewhere == len(shown)


# ── The command ───────────────────────────────────────────────────────────────────────────────


def test_the_command_writes_the_report(tmp_path, capsys):
    store = make_store(tmp_path / "store", 60, 12)
    asked = ["--store", str(store), "-k", "4", "--as-of", "2026-01-01", "--format", "json"]
    assert main(["run", "start", *asked, "--no-report"]) == 0
    (run,) = (store / "runs").glob("*/run.json")
    capsys.readouterr()
    copy = tmp_path / "copy.html"
    assert main(["run", "report", run.parent.name, "--store", str(store), "--to", str(copy)]) == 0
    assert capsys.readouterr().out.strip() == str(run.parent / "report.html")
    assert copy.read_bytes() == (run.parent / "report.html").read_bytes()
    figures = embedded(copy.read_text("utf-8"))
    assert figures["head"]["k"] == 4
    assert figures["skills"]["jobs"] > 0


def test_a_run_that_ends_has_its_report(tmp_path, capsys):
    store = make_store(tmp_path / "store", 40, 8)
    assert main(["run", "start", "--store", str(store), "-k", "2", "--as-of", "2026-01-01"]) == 0
    (report,) = (store / "runs").glob("*/report.html")
    asked = ["run", "publish", report.parent.name, "--store", str(store)]
    assert main([*asked, "--max-none-share", "1"]) == 0
    assert main(["run", "report", report.parent.name, "--store", str(store)]) == 0
    head = embedded(report.read_text("utf-8"))["head"]
    assert (head["published"], head["verdict"]) == (True, "SOUND")
    capsys.readouterr()


@pytest.mark.parametrize("damage", [False, True])
def test_the_report_knows_the_last_verdict(tmp_path, capsys, damage):
    store = make_store(tmp_path / "store", 40, 8)
    asked = ["run", "start", "--store", str(store), "-k", "2", "--as-of", "2026-01-01"]
    assert main([*asked, "--no-report"]) == 0
    (summary,) = (store / "runs").glob("*/run.json")
    if damage:
        told = json.loads(summary.read_text("utf-8"))
        told["counts"]["job"]["rows"] += 1
        summary.write_text(json.dumps(told), "utf-8")
    run = [summary.parent.name, "--store", str(store)]
    assert main(["run", "verify", *run]) == (6 if damage else 0)
    assert main(["run", "report", *run]) == 0
    html = (summary.parent / "report.html").read_text("utf-8")
    assert embedded(html)["head"]["verdict"] == ("FAILED" if damage else "SOUND")
    assert ("verification failed" in html) == damage
    capsys.readouterr()


def test_the_erased_are_not_in_a_new_report(tmp_path, capsys):
    store = make_store(tmp_path / "store", 60, 20)
    asked = ["run", "start", "--store", str(store), "-k", "3", "--as-of", "2026-01-01"]
    assert main(asked) == 0
    (report,) = (store / "runs").glob("*/report.html")
    run = Output(str(store / "runs")).folder(report.parent.name)
    before = parquet(run, "job", "part")
    gone = before["id"].mode().sort()[0]
    assert gone in report.read_text("utf-8")
    assert (
        main(["store", "erase", gone, "--kind", "freelancer", "--store", str(store), "--yes"]) == 0
    )
    assert not report.exists()
    assert main(["run", "report", str(report.parent), "--store", str(store)]) == 0
    html = report.read_text("utf-8")
    assert gone not in html
    assert "People were erased since" in html
    told = embedded(html)
    assert told["head"]["redacted_rows"] > 0
    assert told["head"]["redacted_queries"] == 1
    left = before.filter(pl.col("id") != gone).height
    assert ways(told)["job"]["exposure"]["places"] == left
    capsys.readouterr()


def test_the_command_without_the_store(tmp_path, capsys, monkeypatch):
    store = make_store(tmp_path / "store", 40, 8)
    asked = ["--store", str(store), "--output", str(tmp_path / "runs"), "-k", "2"]
    assert main(["run", "start", *asked, "--as-of", "2026-01-01", "--no-report"]) == 0
    (run,) = (tmp_path / "runs").glob("*/run.json")
    store.rename(tmp_path / "elsewhere")
    assert main(["run", "report", str(run.parent)]) == 0
    assert "no figures that need the store" in capsys.readouterr().err
    assert main(["run", "report", str(tmp_path)]) == 2
    assert "there is no run" in capsys.readouterr().err
