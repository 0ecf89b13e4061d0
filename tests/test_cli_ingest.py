"""ingest and validate on the command line; serve as a whole process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading

import polars as pl
import pytest

from matchwright.engine import synthetic
from matchwright.engine.store import Store

COMMAND = (sys.executable, "-m", "matchwright.engine.cli")
MAP = """
kind = "job"

[fields]
id = "number"
title = "headline"
skills = { from = "tags", split = "," }
"""


@pytest.fixture
def posts(tmp_path):
    """A map, a good file, and one with a row too many."""
    (tmp_path / "posts.toml").write_text(MAP)
    (tmp_path / "good.csv").write_text('number,headline,tags\n1,One,"React,Go"\n2,Two,\n')
    (tmp_path / "bad.csv").write_text('number,headline,tags\n1,One,"React,Go"\n,No id,\n3,Three,\n')
    (tmp_path / "worse.csv").write_text("number,headline,tags\n,No id,\n")
    return tmp_path


def _count(store) -> int:
    with Store.open(store) as opened:
        return opened.snapshot().count("job")


def _balanced(report) -> bool:
    parts = ("accepted", "replaced", "duplicate", "quarantined")
    return report["read"] == sum(report[name] for name in parts)


def test_every_row_is_accounted_for(run, posts):
    store = posts / "shop"
    line = ["ingest", "jobs", "--store", store, "--map", posts / "posts.toml", "-f", "json"]
    code, out, _ = run(*line, posts / "good.csv")
    report = json.loads(out)
    assert (code, report["accepted"], _balanced(report)) == (0, 2, True)
    code, out, _ = run(*line, posts / "good.csv", posts / "bad.csv")
    report = json.loads(out)
    assert (code, report["read"], report["accepted"]) == (4, 5, 1)
    assert (report["duplicate"], report["quarantined"]) == (3, 1)
    assert _balanced(report)
    assert _count(store) == 3
    refused = pl.read_parquet(report["quarantine"])
    assert refused.height == 1
    assert {"file", "row", "field", "value", "reason"} <= set(refused.columns)
    assert report["quarantine"] == str(store / "quarantine" / "jobs-1.parquet")


def test_nothing_taken_is_three(run, posts):
    line = ["ingest", "jobs", posts / "worse.csv", "--store", posts / "shop"]
    assert run(*line, "--map", posts / "posts.toml")[0] == 3


def test_strict_writes_nothing(run, posts):
    store = posts / "shop"
    line = ["ingest", "jobs", "--store", store, "--map", posts / "posts.toml", "--strict"]
    code, _, err = run(*line, posts / "bad.csv")
    assert code == 3
    assert "row" in err
    assert [path.name for path in store.rglob("*.parquet")] == ["jobs-1.parquet"]
    assert not (store / "catalog.sqlite").exists()
    assert run(*line, posts / "good.csv")[0] == 0
    assert _count(store) == 2


def test_validate_writes_nothing(run, posts):
    before = sorted(posts.rglob("*"))
    line = ["validate", "jobs", posts / "bad.csv", "--map", posts / "posts.toml", "-f", "json"]
    code, out, _ = run(*line)
    report = json.loads(out)
    assert (code, report["accepted"], report["quarantined"]) == (4, 2, 1)
    assert sorted(posts.rglob("*")) == before
    assert run(*line, "--strict")[0] == 3
    assert run(*line, "--quarantine", posts / "q.parquet")[0] == 4
    assert pl.read_parquet(posts / "q.parquet").height == 1


def test_a_report_on_a_terminal(run, posts):
    code, out, _ = run(
        "validate", "jobs", posts / "bad.csv", "--map", posts / "posts.toml", "-f", "table"
    )
    assert code == 4
    assert "quarantined" in out
    assert "row 2" in out or "row 3" in out
    csv = run("validate", "jobs", posts / "bad.csv", "--map", posts / "posts.toml", "-f", "csv")[1]
    assert csv.splitlines()[0].startswith("file,read,accepted,replaced,duplicate,quarantined")


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["ingest", "jobs", "absent.csv", "--store", "s"], "absent.csv"),
        (["ingest", "job", "x.csv", "--store", "s"], "jobs"),
        (["ingest", "jobs", "x.csv"], "--store"),
        (["ingest", "jobs", "--store", "s"], "FILE"),
        (["validate", "jobs", "good.csv", "--map", "absent.toml"], "absent.toml"),
        (["validate", "freelancers", "good.csv", "--map", "posts.toml"], "job"),
        (["validate", "jobs", "good.csv"], "number"),
        (["validate", "jobs", "good.csv", "--aliases", "a.toml"], "a.toml"),
        (["validate", "jobs", "good.csv", "--aliases", "good.csv"], "TOML"),
        (["validate", "jobs", "good.csv", "--map", "good.csv"], "TOML"),
    ],
)
def test_what_cannot_be_read_at_all(run, posts, monkeypatch, argv, hint):
    monkeypatch.chdir(posts)
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert hint in err
    assert err.count("\n") == 1
    assert not (posts / "s").exists()


def test_aliases(run, posts):
    (posts / "more.toml").write_text('[skills]\nGopher = ["go"]\n')
    line = ["ingest", "jobs", posts / "good.csv", "--store", posts / "shop"]
    code, _, err = run(*line, "--map", posts / "posts.toml", "--aliases", posts / "more.toml")
    assert code == 0, err
    with Store.open(posts / "shop") as store:
        (skills,) = store.records("job", ["1"])["skills"].to_list()
    assert [skill["name"] for skill in skills] == ["React", "Gopher"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.csv", "skills,id\nreact.js|go,1\n"),
        ("own.jsonl", '{"id": "1", "skills": ["react.js", "go"]}\n'),
    ],
)
def test_aliases_without_a_map(run, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    (tmp_path / "more.toml").write_text('[skills]\nGopher = ["go"]\n')
    options = ["--aliases", tmp_path / "more.toml"]
    assert run("validate", "freelancers", tmp_path / name, *options)[0] == 0
    code, _, err = run(
        "ingest", "freelancers", tmp_path / name, "--store", tmp_path / "shop", *options
    )
    assert code == 0, err
    with Store.open(tmp_path / "shop") as store:
        (skills,) = store.records("freelancer", ["1"])["skills"].to_list()
    assert [skill["name"] for skill in skills] == ["React", "Gopher"]


def test_interrupted_says_how_to_go_on(run, posts, monkeypatch):
    from matchwright.engine.records import ingest

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest, "read", interrupted)
    line = ["ingest", "jobs", posts / "good.csv", "--store", posts / "shop"]
    code, _, err = run(*line, "--map", posts / "posts.toml")
    assert code == 130
    assert "again" in err


def test_synthetic_exports_are_taken_whole(run, tmp_path):
    paths = synthetic.write_jsonl(tmp_path, freelancers=300, jobs=200, seed=5)
    for kind, path in paths.items():
        line = ["ingest", f"{kind}s", path, "--store", tmp_path / "shop", "--strict", "-f", "json"]
        code, out, err = run(*line)
        assert code == 0, err
        report = json.loads(out)
        assert (report["accepted"], report["quarantined"]) == ({"job": 200}.get(kind, 300), 0)


def test_serve_listens_and_stops(tmp_path):
    """A real process: it prints its address, answers, and ends in order on SIGTERM."""
    folder = tmp_path / "shop"
    with Store.open(folder, mode="w", create=True) as store:
        store.upsert("freelancer", synthetic.frame("freelancer", 40, block=64))
        store.upsert("job", synthetic.frame("job", 5, block=64))
    process = subprocess.Popen(
        [*COMMAND, "serve", "--store", str(folder), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        found = re.fullmatch(r"listening on (127\.0\.0\.1:\d+)\n", process.stdout.readline())
        assert found is not None
        line = ["match", "--server", found[1], "--job", "j-0000000", "--as-of", "2026-01-01"]
        done = subprocess.run(
            [*COMMAND, *line], check=False, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["query_id"] == "j-0000000"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert err.startswith("device: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--store", "nowhere"], "nowhere"),
        (["--store", "a=x", "--store", "a=y"], "a=y"),
        (["--store", "x", "--port", "70000"], "65535"),
        (["--store", "x", "--host", "0.0.0.0"], "TLS"),
        (["--store", "x", "--memory-mb", "0"], "memory"),
        (["--store", "x", "--tls-cert", "c.pem"], "key"),
        ([], "--store"),
    ],
)
def test_servers_that_cannot_start(run, argv, hint):
    code, out, err = run("serve", *argv)
    assert (code, out) == (2, "")
    assert hint in err
