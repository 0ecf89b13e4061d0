"""run plan, start and resume on the command line: inputs, targets, exit codes, what is printed."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
import run_cases as cases

from matchwright.engine import synthetic
from matchwright.engine.cli import _run_progress, main
from matchwright.engine.runs.deadline import Deadline
from matchwright.engine.runs.execute import Event
from matchwright.engine.runs.folder import Output, Target
from matchwright.engine.store import Store

DAY = "2026-01-01"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return cases.make_store(tmp_path_factory.mktemp("cli run") / "the store", 150, 60)


@pytest.fixture
def call(capsys):
    """``code, stdout, stderr = call("start", ...)``; all words become strings; no reports."""

    def run(*words):
        quick = ["--no-report"] if words[0] in ("start", "resume") else []
        code = main(["run", *(str(word) for word in words), *quick])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code, told.out, told.err

    return run


def asked(shop, output, *more):
    return ("--store", shop, "--as-of", DAY, "-k", 10, "--output", output, *more)


def events(err):
    return [json.loads(line) for line in err.splitlines() if line.startswith("{")]


# ── The life of a run ─────────────────────────────────────────────────────────────────────────


def test_plan_start_and_start_again(call, shop, tmp_path):
    code, out, _ = call("plan", *asked(shop, tmp_path), "-f", "json")
    plan = json.loads(out)
    assert (code, plan["state"], plan["units_left"]) == (0, "new", 2)
    assert not list(tmp_path.iterdir())
    assert plan["predicted"]["queries"] == plan["counts"]["job"] + plan["counts"]["freelancer"]
    assert plan["predicted"]["pairs"] == 2 * plan["counts"]["job"] * plan["counts"]["freelancer"]
    code, out, err = call("start", *asked(shop, tmp_path), "-f", "json")
    summary = json.loads(out)
    assert (code, summary["run_id"]) == (0, plan["run_id"])
    assert summary["url"] == plan["url"] == str(tmp_path / plan["run_id"])
    note, *told = events(err)
    assert (note["event"], note["text"][:8]) == ("note", "device: ")
    assert [event["event"] for event in told[:2]] == ["start", "unit"]
    assert told[0]["asking"] == {kind: plan["counts"][kind] for kind in ("job", "freelancer")}
    assert told[-2]["done"] == told[0]["of"]
    assert (told[-1]["event"], told[-1]["digest"]) == ("end", summary["digest"])
    code, out, err = call("start", *asked(shop, tmp_path), "-f", "json")
    assert (code, json.loads(out)) == (0, summary)
    assert "nothing to do" in err
    code, out, err = call("resume", summary["run_id"][:5], "--output", tmp_path, "-f", "json")
    assert (code, json.loads(out)) == (0, summary)
    assert "nothing to do" in err
    code, out, _ = call("plan", *asked(shop, tmp_path), "-f", "json")
    assert (json.loads(out)["state"], json.loads(out)["units_left"]) == ("complete", 0)


def test_runs_are_in_the_store_unless_said(call, tmp_path):
    shop = cases.make_store(tmp_path / "store", 20, 10)
    code, out, _ = call("start", "--store", shop, "--as-of", DAY, "-f", "json")
    assert code == 0
    assert json.loads(out)["url"] == str(shop / "runs" / json.loads(out)["run_id"])
    code, _, err = call("resume", json.loads(out)["run_id"], "--store", shop)
    assert code == 0
    assert "nothing to do" in err
    assert not list((shop / "leases").glob("run-*"))


@pytest.mark.parametrize("format_", ["table", "json", "jsonl", "csv"])
def test_every_format(call, shop, tmp_path, format_):
    words = asked(shop, tmp_path, "--for", "jobs", "-f", format_)
    code, planned, _ = call("plan", *words)
    assert code == 0
    code, done, _ = call("start", *words)
    assert code == 0
    (run,) = Output(tmp_path).runs()
    assert run in planned
    digest = Output(tmp_path).folder(run).summary()["digest"]
    assert digest in done


def test_block_and_workers_do_not_change_the_run(call, shop, tmp_path):
    digests = set()
    for n, more in enumerate((["--block", 7], ["--workers", 3], ["--device", "numpy"])):
        _, out, _ = call("start", *asked(shop, tmp_path / str(n), *more), "-f", "json")
        digests.add((json.loads(out)["run_id"], json.loads(out)["digest"]))
    assert len(digests) == 1


def test_a_target_in_memory(call, shop, tmp_path):
    url = f"memory://{time.monotonic_ns()}"
    _, here, _ = call("start", *asked(shop, tmp_path), "-f", "json")
    code, there, _ = call("start", *asked(shop, url), "-f", "json")
    assert code == 0
    assert json.loads(there)["digest"] == json.loads(here)["digest"]
    folder = Output(url).folder(json.loads(there)["run_id"])
    assert folder.summary()["digest"] == json.loads(here)["digest"]
    code, _, err = call("start", *asked(shop, url))
    assert code == 0
    assert "nothing to do" in err


# ── Files ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    for kind, n in (("freelancer", 80), ("job", 40)):
        frame = synthetic.frame(kind, n, block=n)
        (folder / f"{kind}s.jsonl").write_bytes(frame.write_ndjson().encode())
    return folder


def from_files(exports, work, *more):
    files = ("--jobs", exports / "jobs.jsonl", "--freelancers", exports / "freelancers.jsonl")
    return (*files, "--work", work, "--as-of", DAY, "-k", 5, "-f", "json", *more)


def test_files_are_imported_once_and_do_not_run_twice(call, exports, tmp_path):
    work = tmp_path / "work"
    code, out, err = call("start", *from_files(exports, work))
    first = json.loads(out)
    assert code == 0, err
    (store,) = [path for path in work.iterdir() if path.is_dir()]
    assert f"imported into the store {store}" in err
    assert first["url"].startswith(str(store / "runs"))
    assert first["counts"]["job"]["queries"] == 40
    code, out, err = call("start", *from_files(exports, work))
    assert (code, json.loads(out)) == (0, first)
    assert f"in the store {store} already" in err
    assert "nothing to do" in err
    code, out, _ = call("start", *from_files(exports, tmp_path / "elsewhere"))
    assert json.loads(out)["digest"] == first["digest"]


def test_other_files_are_another_store(call, exports, tmp_path):
    call("plan", *from_files(exports, tmp_path / "work"))
    (exports / "more").mkdir()
    for name in ("jobs.jsonl", "freelancers.jsonl"):
        lines = (exports / name).read_text().splitlines(keepends=True)
        (exports / "more" / name).write_text("".join(lines[:-1]))
    code, _, _ = call("plan", *from_files(exports / "more", tmp_path / "work"))
    assert code == 0
    assert len([path for path in (tmp_path / "work").iterdir() if path.is_dir()]) == 2


def test_an_import_that_was_killed_begins_anew(call, exports, tmp_path):
    work = tmp_path / "work"
    _, out, _ = call("plan", *from_files(exports, work))
    (store,) = [path for path in work.iterdir() if path.is_dir()]
    run_id = json.loads(out)["run_id"]
    store.rename(store.with_name(f"{store.name}.part"))
    (store.with_name(f"{store.name}.part") / "catalog.sqlite").write_bytes(b"half")
    code, out, _ = call("plan", *from_files(exports, work))
    assert code == 0
    assert json.loads(out)["run_id"] != run_id  # it is another store with the same content
    assert not store.with_name(f"{store.name}.part").exists()


def test_maps_belong_to_files(call, exports, shop, tmp_path):
    wrong = tmp_path / "map.toml"
    wrong.write_text('kind = "planet"\n')
    code, _, err = call("plan", *from_files(exports, tmp_path, "--map", wrong))
    assert code == 2
    assert "planet" in err
    code, _, err = call("plan", *asked(shop, tmp_path, "--map", wrong))
    assert code == 2
    assert "go with --jobs" in err


# ── Refusals ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ((), "--store DIR"),
        (("--jobs", "a.csv"), "--freelancers FILE"),
        (("--store", "x", "--jobs", "a.csv"), "--store DIR"),
        (("--store", "SHOP", "-k", 0), "k is 0"),
        (("--store", "SHOP", "--slack", 2_000), "slack"),
        (("--store", "SHOP", "--as-of", "soon"), "--as-of"),
        (("--store", "SHOP", "--for", "cats"), "cats"),
        (("--store", "SHOP", "--output", "nosuch://x"), "no target"),
        (("--store", "SHOP", "--finish-by", "never"), "--finish-by"),
        (("--store", "SHOP", "--workers", 0), "--workers"),
        (("--store", "SHOP", "--changed-since", "0000"), "there is no run"),
        (("--store", "nowhere"), "holds no store"),
        (("--store", "SHOP", "--policy", "none.toml"), "no policy file"),
        (("--store", "SHOP", "--format", "parquet"), "runs are Parquet"),
    ],
)
def test_wrong_words_are_usage_errors(call, shop, tmp_path, words, what):
    given = [shop if word == "SHOP" else word for word in words]
    where = () if "--output" in words else ("--output", tmp_path / "runs")
    code, out, err = call("start", *given, *where)
    assert (code, out) == (2, "")
    assert what in err
    assert "resume" not in err


def test_resuming_what_is_not_there(call, shop, tmp_path):
    code, _, err = call("resume", "feed", "--store", shop)
    assert code == 2
    assert "there is no run 'feed'" in err
    code, _, err = call("resume", tmp_path / "x")
    assert code == 2
    assert "name its folder" in err


def test_resuming_with_another_store(call, shop, tmp_path):
    code, _, _ = call("start", *asked(shop, tmp_path, "--finish-by", "0s"))
    assert code == 75
    other = cases.make_store(tmp_path / "other", 20, 10)
    (run,) = Output(tmp_path).runs()
    code, _, err = call("resume", run, "--output", tmp_path, "--store", other)
    assert code == 2
    assert "name the right one with --store" in err


# ── Ends before the end ───────────────────────────────────────────────────────────────────────


def test_finish_by_stops_in_good_order_and_prints_how_to_go_on(call, shop, tmp_path):
    output = tmp_path / "it's (here)"
    words = asked(shop, output, "--block", 20, "--finish-by", "0s", "--workers", 2, "-f", "json")
    code, out, err = call("start", *words)
    assert (code, out) == (75, "")
    error = events(err)[-1]["error"]
    assert error["reason"] == "DEADLINE_EXCEEDED"
    command = shlex.split(error["details"]["resume"])
    assert error["message"].endswith(error["details"]["resume"])
    assert command[:3] == ["matchwright", "run", "resume"]
    assert command[-2:] == ["--workers", "2"]
    (run,) = Output(output).runs()
    lease = shop / "leases" / f"{Output(output).folder(run).lease}.json"
    assert lease.exists()
    code, out, _ = call(*command[2:], "-f", "json")
    assert code == 0
    assert not lease.exists()
    _, whole, _ = call("start", *asked(shop, tmp_path / "whole"), "-f", "json")
    assert json.loads(out)["digest"] == json.loads(whole)["digest"]


def test_a_run_that_will_be_late_says_so_early(call, shop, tmp_path, monkeypatch):
    """Half a second for every unit is too much: it is said, and then it stops."""
    write, now = Target.write, [float(int(time.time()))]

    def slowly(self, name, data):
        if "queries" in name:
            now[0] += 0.5
        write(self, name, data)

    monkeypatch.setattr(Target, "write", slowly)
    monkeypatch.setattr(Deadline.__init__, "__defaults__", (lambda: now[0],))
    ends = datetime.fromtimestamp(now[0] + 3, UTC).isoformat()
    words = asked(shop, tmp_path, "--block", 10, "--finish-by", ends, "-f", "json")
    code, _, err = call("start", *words)
    assert code == 75
    names = [event.get("event") for event in events(err)]
    assert names.count("late") == 1
    told = events(err)[-1]["error"]["details"]
    assert 0 < int(told["done"]) < int(told["of"])


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"), 75, "OVERLOADED"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "x"), 75, "OVERLOADED"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x"), 2, "INVALID_ARGUMENT"),
        (ConnectionResetError(errno.ECONNRESET, "reset", "x"), 5, "DEPENDENCY_UNAVAILABLE"),
        (MemoryError(), 75, "OUT_OF_MEMORY"),
        (ZeroDivisionError("a defect"), 1, "INTERNAL"),
        (KeyboardInterrupt(), 130, "INTERRUPTED"),
    ],
)
def test_whatever_ends_a_run_prints_how_to_go_on(
    call, shop, tmp_path, monkeypatch, error, code, reason
):
    write = Target.write

    def failing(self, name, data):
        if name.startswith("for=freelancer"):
            raise error
        write(self, name, data)

    with monkeypatch.context() as patched:
        patched.setattr(Target, "write", failing)
        got, out, err = call("start", *asked(shop, tmp_path), "-f", "json")
    told = events(err)[-1]["error"]
    assert (got, out, told["reason"]) == (code, "", reason)
    command = err.split("go on with: ")[1].splitlines()[0].split('"')[0]
    got, out, err = call(*shlex.split(command)[2:], "-f", "json")
    assert got == 0, err
    start = next(event for event in events(err) if event["event"] == "start")
    assert start["done"] == json.loads(out)["counts"]["job"]["queries"]


def test_queries_that_fail_make_the_run_partly_done(call, tmp_path):
    """One record is damaged: its query is an error, the exit code is 4, a second start is 0."""
    import sqlite3

    shop = cases.make_store(tmp_path / "store", 30, 20)
    with sqlite3.connect(shop / "catalog.sqlite") as connection:
        connection.execute("UPDATE job SET hash = x'00' WHERE id = 'j-0000003'")
    connection.close()
    code, out, _ = call("start", *asked(shop, tmp_path / "runs"), "-f", "json")
    summary = json.loads(out)
    assert (code, summary["counts"]["job"]["errors"]) == (4, 1)
    assert summary["state"] == "complete"
    code, out, _ = call("start", *asked(shop, tmp_path / "runs"), "-f", "json")
    assert (code, json.loads(out)) == (0, summary)


def test_a_store_that_cannot_be_written_to_still_runs(call, tmp_path, monkeypatch):
    from matchwright.engine.errors import StoreReadOnly

    shop = cases.make_store(tmp_path / "store", 20, 10)

    def refuse(self, name, **more):
        raise StoreReadOnly(f"{self.root}: is read-only")

    monkeypatch.setattr(Store, "keep", refuse)
    code, _, err = call("start", *asked(shop, tmp_path / "runs"))
    assert code == 0
    assert "the epoch is not kept for a resume" in err


# ── Incremental ───────────────────────────────────────────────────────────────────────────────


def test_changed_since_names_its_base(call, tmp_path):
    shop = cases.make_store(tmp_path / "store", 60, 30)
    words = asked(shop, tmp_path / "runs", "--slack", 10, "-f", "json")
    _, out, _ = call("start", *words)
    base = json.loads(out)["run_id"]
    with Store.open(shop, mode="w") as store:
        store.upsert("freelancer", synthetic.frame("freelancer", 3, seed=4, block=3))
    code, out, _ = call("start", *words, "--changed-since", base)
    summary = json.loads(out)
    assert (code, summary["incremental"]["base"]) == (0, base)
    _, out, _ = call("start", *words)
    assert json.loads(out)["digest"] == summary["digest"]
    assert json.loads(out)["run_id"] != summary["run_id"]


def test_a_base_that_is_not_complete_is_refused(call, shop, tmp_path):
    call("start", *asked(shop, tmp_path, "--finish-by", "0s"))
    (run,) = Output(tmp_path).runs()
    code, _, err = call("start", *asked(shop, tmp_path, "--changed-since", run))
    assert code == 2
    assert "is not complete" in err


# ── Progress ──────────────────────────────────────────────────────────────────────────────────


def test_a_terminal_sees_rate_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with _run_progress.run_progress() as progress:
        begun = {"run": "ab", "url": "/runs/ab", "asking": {"job": 1_000}}
        progress(Event("start", {**begun, "done": 100, "of": 1_000, "units": 9}))
        progress(Event("redo", {"unit": "job unit 3", "why": "x: is damaged"}))
        progress(Event("unit", {"done": 300}))
        progress(Event("late", {"text": "it will be late"}))
    shown = capsys.readouterr().err
    assert "job unit 3 is done again: x: is damaged" in shown
    assert "it will be late" in shown
    assert "run ab: 1,000 jobs ask, 9 units to do, /runs/ab" in shown
    assert "queries/s" in shown
    assert "300/1000" in shown


def test_rates_count_what_this_process_did(monkeypatch):
    ticks = iter((7.0, 7.5))
    monkeypatch.setattr(_run_progress, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    rate = _run_progress.Rate()
    assert rate.tell(500, 1_000) == (0.0, None)
    assert rate.tell(600, 1_000) == (200.0, 2.0)
