"""``run publish`` and ``run gc``: one file is switched, or not; what is needed never goes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from run_market import market_of

from matchwright.engine.cli import main
from matchwright.engine.errors import FailedPrecondition, StoreLocked
from matchwright.engine.runs.folder import PLAN, PUBLISHED, SUMMARY, Output, RunFolder
from matchwright.engine.runs.gc import ABANDONED_DAYS, collect
from matchwright.engine.runs.pairing import side
from matchwright.engine.runs.publish import Thresholds, publish, publishing, rollback
from matchwright.engine.runs.verify import FAILED, SOUND, Verdict
from matchwright.engine.runs.verify import verify as verify_run

JOBS, PEOPLE = 60, 260
NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three runs of a marketplace that changes a little, then much."""
    place = tmp_path_factory.mktemp("publish")
    with market_of(place, JOBS, PEOPLE) as market:
        rng = np.random.default_rng(2)
        runs = [market.run(kinds=("job",), k=5, slack=3)[0].run_id]
        for share in (0.03, 0.9):
            market.change(rng, share)
            runs.append(market.run(kinds=("job",), k=5, slack=3)[0].run_id)
    return place / "runs", runs


@pytest.fixture
def output(made, tmp_path):
    """A copy of the runs: (output, run ids)."""
    shutil.copytree(made[0], tmp_path / "runs")
    return Output(str(tmp_path / "runs")), made[1]


def sound(folder):
    return Verdict(folder.run_id, SOUND, "", 0, 0, 0, 0, ())


def put(output, run_id, *, verify=sound, now="2026-01-02T03:04:05Z", force=False, **limits):
    return publish(
        output, run_id, verify=verify, thresholds=Thresholds(**limits), now=now, force=force
    )


def edit_summary(folder, **values):
    folder.write(SUMMARY, json.dumps({**folder.summary(), **values}).encode())


# ── Publishing ────────────────────────────────────────────────────────────────────────────────


def test_the_first_has_nothing_to_compare_with_and_says_so(output):
    output, runs = output
    done = put(output, runs[0], verify=lambda one: verify_run(one, None))
    assert done.published
    assert done.before is None
    assert "nothing was published before" in [gate.note for gate in done.gates]
    published = output.published()
    assert published["run_id"] == runs[0]
    assert published["digest"] == output.folder(runs[0]).summary()["digest"]
    assert published["history"] == []


def test_a_second_time_changes_nothing(output):
    output, runs = output
    put(output, runs[0])
    before = output.read(PUBLISHED)
    done = put(output, runs[0], now="2027-01-01T00:00:00Z")
    assert (done.published, done.changed) == (True, False)
    assert output.read(PUBLISHED) == before


def test_figures_are_those_of_the_files(output):
    """Churn, shares and the median top score, counted in plain Python."""
    output, runs = output
    put(output, runs[0])
    done = put(output, runs[1], churn=1.0, score_drift=9.0)
    told = {gate.name: gate.value for gate in done.gates}
    answers = [plainly(output.folder(run)) for run in runs[:2]]
    first, second = answers
    churn = [
        1 - len(set(first[q]) & set(second[q])) / max(len(first[q]), len(second[q]))
        for q in first.keys() & second.keys()
        if first[q] or second[q]
    ]
    tops = [np.median([max(rows.values()) for rows in one.values() if rows]) for one in answers]
    assert 0 < told["job.churn"] == pytest.approx(np.mean(churn))
    assert told["job.score_drift"] == pytest.approx(abs(tops[1] - tops[0]) / tops[0])
    few = np.mean([len(rows) < 5 for rows in second.values()])
    assert told["job.under_k_share"] == pytest.approx(few)
    assert told["job.none_share"] == pytest.approx(np.mean([not r for r in second.values()]))
    gone = max(0, 1 - len(second) / len(first))
    assert told["job.query_drop"] == pytest.approx(gone)


def plainly(folder):
    """query id -> {id: score}."""
    answers = {}
    for unit in folder.plan().units_of("job"):
        answers |= {name: {} for name in folder.queries(unit)["query_id"]}
        for row in folder.part(unit).iter_rows(named=True):
            answers[row["query_id"]][row["id"]] = row["score"]
    return answers


@pytest.mark.parametrize(
    ("limits", "gate"),
    [
        ({"churn": 0.1}, "job.churn"),
        ({"churn": 1.0, "under_k_share": 0.01}, "job.under_k_share"),
        ({"churn": 1.0, "none_share": 0.001}, "job.none_share"),
        ({"churn": 1.0, "score_drift": 0.0}, "job.score_drift"),
    ],
)
def test_beyond_a_limit_it_refuses_with_the_figure_and_force_overrules(output, limits, gate):
    output, runs = output
    put(output, runs[0])
    before = output.read(PUBLISHED)
    limits = {"score_drift": 9.0, "under_k_rise": 1.0, "none_rise": 1.0, **limits}
    done = put(output, runs[2], **limits)
    assert not done.published
    assert [line for line in done.refused if line.startswith(gate)]
    assert output.read(PUBLISHED) == before
    done = put(output, runs[2], force=True, **limits)
    assert done.published
    assert [line for line in output.published()["forced"] if line.startswith(gate)]


def test_fewer_queries_are_seen(output):
    output, runs = output
    put(output, runs[0])
    folder = output.folder(runs[1])
    unit = folder.plan().units[0]
    few = folder.queries(unit).head(JOBS // 2)
    folder.write_frame(unit, "queries", few)
    kept = folder.part(unit).join(few.select("query_key"), on="query_key", how="semi")
    folder.write_frame(unit, "part", kept)
    done = put(output, runs[1], churn=1.0, score_drift=9.0)
    assert [line.split(" ")[0] for line in done.refused][:1] == ["job.query_drop"]


def test_errors_refuse(output):
    output, runs = output
    folder = output.folder(runs[0])
    unit = folder.plan().units[0]
    queries = folder.queries(unit)
    folder.write_frame(unit, "queries", queries.with_columns(error=pl.lit("STORE_DAMAGED")))
    done = put(output, runs[0], under_k_share=1.0, none_share=1.0)
    assert done.refused == [f"job.errors is {JOBS}, at most 0"]
    assert output.published() is None


def test_degraded_runs_are_refused(output):
    output, runs = output
    edit_summary(output.folder(runs[0]), degraded=3)
    assert put(output, runs[0]).refused == ["degraded is 3, at most 0"]


def test_a_run_that_fails_verification_is_refused_even_by_force(output):
    output, runs = output

    def failing(folder):
        check = {"check": "order", "failed": 1, "checked": 9, "examples": ["x: swapped"]}
        return Verdict(folder.run_id, FAILED, "", 0, 0, 0, 0, [check])

    done = put(output, runs[0], verify=failing, force=True)
    assert done.refused == ["order: 1 of 9 failed; x: swapped"]
    assert output.published() is None


def test_scores_of_another_policy_do_not_compare_and_that_is_told(output):
    output, runs = output
    put(output, runs[0])
    folder = output.folder(runs[1])
    other = side(folder)
    other.plan.determinants["policy"] = "another"
    from matchwright.engine.runs.publish import compare

    _, gates = compare(other, side(output.folder(runs[0])), Thresholds())
    drift = next(gate for gate in gates if gate.name == "job.score_drift")
    assert drift.passed
    assert drift.value is None
    assert "do not compare" in drift.note


@pytest.mark.parametrize("how", ["gone", "damaged", "incomplete"])
def test_a_published_run_that_cannot_be_read_refuses_and_force_overrules(output, how):
    output, runs = output
    put(output, runs[0])
    folder = output.folder(runs[0])
    if how == "gone":
        folder.remove_all()
    elif how == "damaged":
        folder.write(folder.plan().units[0].file("part"), b"PAR1")
    else:
        folder.remove(SUMMARY)
    done = put(output, runs[1])
    assert [line.split(" ")[0] for line in done.refused] == ["published_unreadable"]
    assert runs[0] in done.refused[0]
    assert output.published()["run_id"] == runs[0]
    assert put(output, runs[1], force=True).published


def test_rolling_back_follows_the_history(output):
    output, runs = output
    for run in runs:
        put(output, run, force=True)
    assert [one["run_id"] for one in output.published()["history"]] == [runs[1], runs[0]]
    assert rollback(output, now="later") == (runs[2], runs[1])
    assert rollback(output, now="later") == (runs[1], runs[0])
    published = output.published()
    assert published["run_id"] == runs[0]
    assert [one["run_id"] for one in published["withdrawn"]] == [runs[1], runs[2]]
    with pytest.raises(FailedPrecondition, match="nothing was published before"):
        rollback(output, now="later")


def test_it_does_not_go_back_to_a_run_that_is_not_what_it_was(output):
    output, runs = output
    put(output, runs[0])
    put(output, runs[1], force=True)
    edit_summary(output.folder(runs[0]), digest="another")
    with pytest.raises(FailedPrecondition, match="no longer there"):
        rollback(output, now="later")
    assert output.published()["run_id"] == runs[1]


def test_one_publisher_at_a_time(output):
    output, runs = output
    with publishing(output), pytest.raises(StoreLocked, match="publishing"):
        put(output, runs[0])
    assert put(output, runs[0]).published


def test_the_commands(output, capsys):
    """Exit code 6 and the figures on stderr; --force; --rollback; a table."""
    output, runs = output
    where = ["--output", output.url]
    assert main(["run", "publish", runs[0], *where]) == 0
    capsys.readouterr()
    assert main(["run", "publish", runs[2], *where, "--max-churn", "0.01", "-f", "json"]) == 6
    told = capsys.readouterr()
    assert json.loads(told.out)["published"] is False
    assert "job.churn is" in told.err
    assert output.published()["run_id"] == runs[0]
    code = main(
        ["run", "publish", runs[2], *where, "--max-churn", "0.01", "--force", "-f", "table"]
    )
    assert code == 0
    assert "forced" in capsys.readouterr().err
    assert main(["run", "publish", "--rollback", *where]) == 0
    assert output.published()["run_id"] == runs[0]
    assert main(["run", "publish", *where]) == 2
    assert main(["run", "publish", runs[1], *where, "--max-churn", "2"]) == 2


# ── Killed ────────────────────────────────────────────────────────────────────────────────────


def test_killed_at_any_moment_one_whole_publication_is_there(output, count):
    """What readers see meanwhile is whole too."""
    output, runs = output
    put(output, runs[0])
    rng = random.Random(3)
    child = Path(__file__).with_name("run_publish_child.py")
    seen = set()
    for _ in range(count(reduced=3, full=20)):
        process = subprocess.Popen(
            [sys.executable, str(child), output.url, *runs[:2]], stdout=subprocess.PIPE
        )
        try:
            assert process.stdout.readline() == b"ready\n"
            until = time.monotonic() + rng.uniform(0.02, 0.4)
            while time.monotonic() < until:
                seen.add(whole(output, runs))
            assert process.poll() is None
            os.kill(process.pid, signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        whole(output, runs)
        put(output, runs[0], churn=1.0)
        put(output, runs[1], churn=1.0)
    assert seen == set(runs[:2])


def whole(output, runs):
    """The published run, after a look whether the file is one publication and nothing else."""
    document = json.loads(output.read(PUBLISHED))
    digest = RunFolder(f"{output.url}/{document['run_id']}").summary()["digest"]
    assert document["digest"] == digest
    assert all(one["run_id"] in runs for one in document["history"])
    return document["run_id"]


# ── Collecting ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def aged(output):
    """Eight complete runs, 10, 20, ... 80 days old; the first is the newest."""
    output, runs = output
    template = output.folder(runs[0])
    names = [f"{n:016x}" for n in range(1, 9)]
    for n, name in enumerate(names, 1):
        shutil.copytree(template.url, f"{output.url}/{name}")
        ended = (NOW - timedelta(days=10 * n)).isoformat()
        edit_summary(output.folder(name), ended=ended, run_id=name)
    for run in runs:
        output.folder(run).remove_all()
    return output, names


def age(folder, days):
    """Files as if they had been written then."""
    when = (NOW - timedelta(days=days)).timestamp()
    for name in sorted(folder.list()):
        os.utime(folder.path(name), (when, when))


def left(output):
    return set(output.runs())


def test_old_runs_go_and_the_newest_stay(aged):
    output, names = aged
    fates = collect(output, now=NOW, keep=4, older_than_days=25)
    assert [fate.run_id for fate in fates] == names
    assert left(output) == set(names)  # a dry run
    assert [fate.goes for fate in fates] == [False] * 4 + [True] * 4
    collect(output, now=NOW, keep=1, older_than_days=45, dry_run=False)
    assert left(output) == set(names[:4])
    for name in names[4:]:
        assert not output.exists(name)
    assert collect(output, now=NOW, keep=1, older_than_days=45, dry_run=False)[-1].goes is False


def test_published_ones_and_bases_of_unfinished_runs_stay(aged):
    output, names = aged
    document = {"history": [{"run_id": names[6]}, {"run_id": names[5]}]}
    output.publish(names[7], document)
    unfinished = output.folder(names[0])
    unfinished.remove(SUMMARY)
    plan = json.loads(unfinished.read(PLAN))
    plan["determinants"]["base"] = names[4]
    from matchwright.engine.runs.plan import run_id_of

    plan["run_id"] = run_id_of(plan["determinants"])
    unfinished.write(PLAN, json.dumps(plan).encode())
    age(unfinished, days=0.5)
    fates = {
        fate.run_id: fate
        for fate in collect(output, now=NOW, keep=0, older_than_days=0, dry_run=False)
    }
    assert left(output) == {names[0], names[4], names[6], names[7]}
    assert "base of" in fates[names[4]].why
    assert "rollback" in fates[names[6]].why
    assert fates[names[7]].why == "published"


def test_abandoned_runs_go_unless_somebody_writes_them(aged):
    output, names = aged
    for name in names[:3]:
        output.folder(name).remove(SUMMARY)
    age(output.folder(names[0]), days=ABANDONED_DAYS / 2)
    age(output.folder(names[1]), days=ABANDONED_DAYS * 2)
    age(output.folder(names[2]), days=ABANDONED_DAYS * 2)
    with output.folder(names[2]).lock():
        fates = collect(output, now=NOW, keep=9, dry_run=False)
    told = {fate.run_id: fate for fate in fates}
    assert left(output) == set(names) - {names[1]}
    assert told[names[1]].goes
    assert told[names[2]].why == "somebody is writing it"
    assert told[names[0]].state == "incomplete"


def test_a_damaged_plan_is_not_kept_for_ever(aged):
    output, names = aged
    output.folder(names[0]).write(PLAN, b"{}")
    age(output.folder(names[0]), days=ABANDONED_DAYS * 2)
    told = {fate.run_id: fate for fate in collect(output, now=NOW, keep=9, dry_run=False)}
    assert told[names[0]].state == "damaged"
    assert left(output) == set(names[1:])


def test_killed_halfway_a_run_is_incomplete_and_goes_the_next_time(aged, monkeypatch):
    """run.json goes first, plan.json last: never a complete run with holes."""
    output, names = aged
    folder, kept = output.folder(names[7]), f"{output.url}-kept"
    there = [name for name in sorted(folder.list()) if name != "LOCK"]
    remove = RunFolder.remove
    for stop in range(1, len(there)):
        shutil.copytree(folder.url, kept)
        left_to_do = iter(range(stop))

        def cut_short(self, name, left_to_do=left_to_do):
            if next(left_to_do, None) is None:
                raise KeyboardInterrupt
            remove(self, name)

        monkeypatch.setattr(RunFolder, "remove", cut_short)
        with pytest.raises(KeyboardInterrupt):
            collect(output, now=NOW, keep=7, older_than_days=75, dry_run=False)
        monkeypatch.undo()
        assert folder.summary() is None
        assert folder.exists(PLAN)
        shutil.rmtree(folder.url)
        shutil.move(kept, folder.url)


def test_what_killed_processes_left_goes_and_what_begins_stays(aged):
    output, names = aged
    (Path(output.path("")) / f"{PUBLISHED}.0123.part").write_bytes(b"{")
    emptied, begun = output.folder("a" * 16), output.folder("b" * 16)
    with emptied.lock():
        pass
    (Path(emptied.root) / "for=job").mkdir()
    with begun.lock():
        collect(output, now=NOW, dry_run=True)
        assert f"{PUBLISHED}.0123.part" in output.names()
        collect(output, now=NOW, keep=9, dry_run=False)
        left_over = set(output.names()) - set(names)
        assert left_over == {begun.run_id, "PUBLISH.LOCK"}


def test_the_command_removes_nothing_without_yes(aged, capsys):
    output, names = aged
    command = ["run", "gc", "--output", output.url, "--keep", "2", "--older-than", "1"]
    assert main([*command, "-f", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["dry_run"], told["removed"], told["would_go"]) == (True, 0, 6)
    assert left(output) == set(names)
    assert main([*command, "--yes", "-f", "table"]) == 0
    assert left(output) == set(names[:2])
    assert main([*command, "--keep", "-1"]) == 2


def test_nothing_is_collected_while_somebody_publishes(aged):
    output, _ = aged
    with publishing(output), pytest.raises(StoreLocked):
        collect(output, now=NOW)


def test_targets_other_than_a_disk(output):
    """The same on an object store: publish, publish, go back, collect."""
    local, runs = output
    there = Output("memory://publish-test")
    try:
        for name in sorted(local.list()):
            there.write(name, local.read(name))
        put(there, runs[0])
        put(there, runs[1], force=True)
        assert rollback(there, now="later") == (runs[1], runs[0])
        fates = collect(there, now=datetime.now(UTC) + timedelta(days=99), keep=0, dry_run=False)
        assert {fate.run_id for fate in fates if fate.goes} == set(runs[1:])
        assert there.runs() == [runs[0]]
    finally:
        there.remove_all()
    assert threading.active_count() < 50  # heartbeats of locks have ended
