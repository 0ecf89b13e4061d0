"""Erasing people: nothing of theirs can be decoded from any file, all else stays as it was."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from erase_cases import KINDS, SALT, copy_of, erase_all, make_shop, planted, start
from store_fakes import look_always

from matchwright.engine.cli import main
from matchwright.engine.erased import stand_in
from matchwright.engine.errors import EpochGone, InvalidArgument, NotFound
from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.verify import verify
from matchwright.engine.store import Store, erase, places
from matchwright.kernels.order import hash_keys


@pytest.fixture(scope="module")
def made(tmp_path_factory, count):
    """A shop that tests copy."""
    folder = tmp_path_factory.mktemp("shop")
    people = count(reduced=90, full=400)
    return make_shop(folder, people, count(reduced=8, full=100))


@pytest.fixture
def shop(made, tmp_path):
    return copy_of(made, tmp_path)


# ── Nothing is left ───────────────────────────────────────────────────────────────────────────


def test_nothing_of_them_can_be_decoded_from_any_file(shop):
    before = shop.search()
    for how in (
        "raw utf-8", "raw u64 little", "deflated utf-8", "deflated msgpack", "decoded utf-8",
        "decoded integer",
    ):  # fmt: skip
        assert any(found == how for found, _ in before), how
    named = {
        path.relative_to(shop.root.parent).parts[:2] for paths in before.values() for path in paths
    }
    assert {
        ("store", "catalog.sqlite"), ("store", "segments"), ("store", "runs"),
        ("store", "quarantine"), ("elsewhere", "runs"), ("elsewhere", "refused.parquet"),
    } <= named  # fmt: skip
    done = erase_all(shop)
    assert done.not_reached == []
    assert not done.incomplete
    assert shop.search() == {}
    with Store.open(shop.root) as store:
        assert store.verify() == []


def test_everybody_else_stays_as_they_were(shop):
    with Store.open(shop.root) as store:
        before = _content(store.snapshot(), shop), _content(store.snapshot(epoch=shop.epoch), shop)
    erase_all(shop)
    with Store.open(shop.root) as store:
        snapshot, kept = store.snapshot(), store.snapshot(epoch=shop.epoch)
        assert _content(snapshot, shop) == before[0]
        assert _content(kept, shop) == before[1]
        for kind, names in shop.victims.items():
            for one in (snapshot, kept):
                assert (one.rows_of(kind, names) == -1).all()
                assert not np.isin(
                    np.concatenate([part.source.segment.key_n for part in one.parts[kind]]),
                    one.keys(names),
                ).any()


def _content(snapshot, shop):
    """Everybody but the victims: vectors and columns by id, and living records."""
    found = {}
    for kind in KINDS:
        corpus = snapshot.corpus(kind)
        base = 0
        for segment, alive in corpus.parts:
            rows = np.arange(segment.n) if alive is None else np.flatnonzero(alive)
            for row, name in zip(rows, snapshot.ids_of(kind, base + rows), strict=True):
                if name not in shop.victims[kind]:
                    scalars = tuple(
                        (key, int(col[row])) for key, col in sorted(segment.scalars.items())
                    )
                    sets = tuple(
                        (key, tuple(col.value[col.start_n[row] : col.start_n[row + 1]].tolist()))
                        for key, col in sorted(segment.sets.items())
                    )
                    found[kind, name] = (segment.x_nd[row].tobytes(), scalars, sets)
            base += segment.n
    return found


def test_a_run_says_redacted_and_is_equal_otherwise(shop):
    folder = Output(shop.root / "runs").folder(shop.runs[0].rsplit("/", 1)[-1])
    plan = folder.plan()
    before = {
        (unit, what): folder.frame(unit, what)
        for unit in plan.units
        for what in ("part", "slack", "queries")
    }
    summary = folder.summary()
    erase_all(shop)
    gone = {kind: hash_keys(names, SALT) for kind, names in shop.victims.items()}
    other = {"job": "freelancer", "freelancer": "job"}
    for (unit, what), frame in before.items():
        left = frame.filter(~pl.Series(np.isin(frame["query_key"].to_numpy(), gone[unit.kind])))
        if what != "queries":
            left = left.filter(~pl.Series(np.isin(left["key"].to_numpy(), gone[other[unit.kind]])))
        assert folder.frame(unit, what).equals(left)
    after = folder.summary()
    assert after["digest"] == summary["digest"] != after["digest_redacted"]
    assert {name for name in after if after[name] != summary.get(name)} == {
        "redacted", "digest_redacted", "units",
    }  # fmt: skip
    rows = sum(entry["rows"] for entry in after["redacted"])
    queries = sum(entry["queries"] for entry in after["redacted"])
    assert rows > 0
    assert queries == sum(map(len, shop.victims.values()))
    assert all(entry["done"] for entry in after["redacted"])
    with Store.open(shop.root) as store:
        verdict = verify(folder, store.snapshot(epoch=shop.epoch), sample=80)
    assert verdict.verdict == "REDACTED", verdict.figures()
    assert verdict.digest == after["digest_redacted"]
    assert 40 < verdict.sampled <= 80


def test_the_next_night_can_start_from_a_redacted_run(shop):
    erase_all(shop)
    base = Output(shop.root / "runs").folder(shop.runs[0].rsplit("/", 1)[-1])
    with Store.open(shop.root, mode="w") as store:
        # Somebody of the same id is somebody new.
        store.upsert("freelancer", planted("freelancer", shop.victims["freelancer"][:1], 0))
        snapshot = store.snapshot()
        full = Output(shop.root / "runs").folder(start(snapshot, shop.root / "runs")[-16:])
        after = Output(shop.root / "runs").folder(start(snapshot, shop.root / "runs", base)[-16:])
        assert full.run_id != after.run_id
        assert full.summary()["digest"] == after.summary()["digest"]
        assert verify(after, snapshot).verdict == "SOUND"


def test_a_report_of_what_is_left(shop, capsys):
    erase_all(shop)
    folder = Output(shop.root / "runs").folder(shop.runs[0].rsplit("/", 1)[-1])
    assert not folder.exists("report.html")
    assert main(["run", "report", folder.url, "--store", str(shop.root)]) == 0
    assert folder.exists("report.html")
    assert shop.search() == {}


def test_what_was_tampered_with_beside_is_found(shop):
    erase_all(shop)
    folder = Output(shop.root / "runs").folder(shop.runs[0].rsplit("/", 1)[-1])
    summary = folder.summary()
    summary["digest_redacted"] = "0" * 64
    folder.write("run.json", json.dumps(summary).encode())
    assert verify(folder, None).verdict == "FAILED"


def test_a_run_that_nobody_was_in_is_untouched(shop):
    erase_all(shop)
    with Store.open(shop.root, mode="w") as store:
        url = start(store.snapshot(), shop.root / "runs")
        before = {path: path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}
        done = store.erase("freelancer", shop.victims["freelancer"])
        assert done.runs == []
        assert {path: path.read_bytes() for path in before} == before


# ── What is left on purpose ───────────────────────────────────────────────────────────────────


def test_who_was_erased_is_kept_as_a_key(shop):
    erase_all(shop)
    with Store.open(shop.root) as store:
        left = erase.erased(store._catalog)
        for kind, names in shop.victims.items():
            assert sorted(hash_keys(names, SALT).tolist()) == left[kind].key_n.tolist()
            assert (left[kind].epoch_n > shop.epoch).all()
        assert erase.unfinished(store._catalog) == 0


def test_a_limit_that_lists_an_erased_id_holds_when_it_comes_back(shop):
    victims = shop.victims["freelancer"]
    with Store.open(shop.root, mode="w") as store:
        done = store.erase("freelancer", victims)
        assert done.mentions == 3
        (listed,) = store.records("job", ["job-0"])["excluded_freelancers"].to_list()
        keys = hash_keys(victims, SALT)
        assert listed == ["freelancer-1", stand_in(int(keys[0])), stand_in(int(keys[-1]))]
        column = _set_of(store.snapshot(), "job-0")
        assert set(column) == {
            *hash_keys(["freelancer-1"], SALT).tolist(),
            int(keys[0]),
            int(keys[-1]),
        }
        # What the record says and what its row says stay the same when it is encoded again.
        store.patch("job", "job-0", {"title": "Another"})
        assert set(_set_of(store.snapshot(), "job-0")) == set(column)
        back = store.upsert("freelancer", planted("freelancer", victims[:1], 0))
        assert (back.accepted, back.replaced) == (1, 0)
        assert store.erase("freelancer", victims[:1]).living == 1


def _set_of(snapshot, name):
    (row,) = snapshot.rows_of("job", [name])
    base = 0
    for segment, _ in snapshot.corpus("job").parts:
        if row < base + segment.n:
            column = segment.sets["excluded_freelancers"]
            return column.value[
                column.start_n[row - base] : column.start_n[row - base + 1]
            ].tolist()
        base += segment.n
    raise AssertionError


def test_a_reader_of_an_older_epoch_is_told(shop, monkeypatch):
    look_always(monkeypatch)
    victims = shop.victims["freelancer"]
    with Store.open(shop.root) as reader:
        before = reader.snapshot()
        assert before.records("freelancer", victims[3:4]).height == 1
        with Store.open(shop.root, mode="w") as store:
            store.erase("freelancer", victims)
        with pytest.raises(EpochGone):
            before.records("freelancer", victims[3:4])
        assert before.records("freelancer", ["freelancer-5"]).height == 1
        with pytest.raises(NotFound):
            reader.records("freelancer", victims[3:4])


# ── What is not reached is said ───────────────────────────────────────────────────────────────


def test_what_is_out_of_reach_is_named(shop):
    places.note(shop.root, "published", "memory://replica")
    places.note(shop.root, "backup", "/backups/monday.tar")
    folder = Output(shop.root / "runs").folder(shop.runs[0].rsplit("/", 1)[-1])
    with Store.open(shop.root, mode="w") as store:
        with folder.lock():
            done = store.erase("freelancer", shop.victims["freelancer"])
        assert done.incomplete
        assert erase.unfinished(store._catalog) == len(shop.victims["freelancer"])
        told = "\n".join(done.not_reached)
        for what in ("memory://replica", "/backups/monday.tar", folder.url):
            assert what in told
        again = store.erase("freelancer", shop.victims["freelancer"])
        assert not again.incomplete
        assert erase.unfinished(store._catalog) == 0
        assert len(again.not_reached) == 2


def test_a_run_that_was_not_complete_is_removed(shop):
    folder = Output(shop.root / "runs").folder(shop.runs[0].rsplit("/", 1)[-1])
    folder.remove("run.json")
    erase_all(shop)
    assert not folder.exists("plan.json")
    assert shop.search() == {}


def test_what_is_no_run_is_left_alone(shop, tmp_path):
    folder = Output(shop.root / "runs").folder(shop.runs[0].rsplit("/", 1)[-1])
    folder.write("mine.csv", b"Frl0003")
    other = tmp_path / "elsewhere" / "runs" / "0123456789abcdef"
    (other / "segments").mkdir(parents=True)
    (other / "segments" / "x").write_bytes(b"of a store")
    emptied = tmp_path / "elsewhere" / "runs" / "00000000000000aa" / "for=job"
    emptied.mkdir(parents=True)
    (emptied / "part-00000.parquet").write_bytes(b"Frl0003")
    (tmp_path / "elsewhere" / "runs" / "their.part").write_bytes(b"")
    done = erase_all(shop)
    assert not done.incomplete
    assert [line for line in done.not_reached if "mine.csv" in line]
    assert (other / "segments" / "x").exists()
    assert (tmp_path / "elsewhere" / "runs" / "their.part").exists()
    assert not emptied.exists()
    assert set(shop.search()) == {("raw utf-8", "Frl0003")}


def test_an_output_that_does_not_answer(shop):
    places.note(shop.root, "runs", "http://127.0.0.1:1/runs")
    with Store.open(shop.root, mode="w") as store:
        done = store.erase("freelancer", shop.victims["freelancer"])
        assert done.incomplete
        assert "127.0.0.1" in done.not_reached[0]
        assert erase.unfinished(store._catalog) == len(shop.victims["freelancer"])


def test_what_cannot_be_erased(shop):
    with Store.open(shop.root, mode="w") as store:
        with pytest.raises(InvalidArgument, match="ids"):
            store.erase("freelancer", [])
        with pytest.raises(InvalidArgument, match=r"nowhere\.parquet"):
            store.erase("freelancer", ["x"], quarantine=["nowhere.parquet"])


# ── Killed ────────────────────────────────────────────────────────────────────────────────────

CHILD = """
import sys, json
from matchwright.engine.store import Store
root, runs, victims = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with Store.open(root, mode="w") as store:
    print("ready", flush=True)
    for kind in ("freelancer", "job"):
        store.erase(kind, victims[kind], runs=[runs])
"""


def test_killed_at_any_moment_the_same_again_completes_it(made, tmp_path, count):
    whole = copy_of(made, tmp_path / "whole")
    code, seconds = _erase_in_a_child(whole, None)
    assert code == 0
    assert whole.search() == {}
    turns = count(reduced=3, full=20)  # one in each part of the time that it takes
    shares = 0.05 + 0.9 * (np.arange(turns) + np.random.default_rng(7).random(turns)) / turns
    ends = Counter()
    for turn, share in enumerate(sorted(shares)):
        shop = copy_of(made, tmp_path / str(turn))
        ends[_erase_in_a_child(shop, share * seconds)[0]] += 1
        with Store.open(shop.root) as store:
            assert store.verify() == []
        done = erase_all(shop)
        assert not done.incomplete
        assert shop.search() == {}
        with Store.open(shop.root) as store:
            assert store.verify() == []
            folder = Output(shop.root / "runs").folder(shop.runs[0][-16:])
            verdict = verify(folder, store.snapshot(epoch=shop.epoch), sample=20)
        assert verdict.verdict == "REDACTED", verdict.figures()
        shutil.rmtree(tmp_path / str(turn))
    assert ends[-signal.SIGKILL], ends


def _erase_in_a_child(shop, seconds):
    """(exit code, seconds) of a process that erases, killed so long after it opened the store."""
    arguments = [str(shop.root), str(shop.elsewhere / "runs"), json.dumps(shop.victims)]
    command = [sys.executable, "-c", CHILD, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        began = time.monotonic()
        if seconds is not None:
            time.sleep(seconds)
            child.send_signal(signal.SIGKILL)
        return child.wait(600), time.monotonic() - began


# ── The command line ──────────────────────────────────────────────────────────────────────────


def _answer(capsys, *words):
    code = main(["store", "erase", *map(str, words), "-f", "json"])
    out = capsys.readouterr()
    return code, (json.loads(out.out) if out.out else out.err)


def test_store_erase(shop, capsys):
    victims = shop.victims["freelancer"]
    names = shop.elsewhere.parent / "names"
    names.write_text("\n".join(victims))
    line = (f"@{names}", "--store", shop.root, "--kind", "freelancer")
    code, told = _answer(capsys, *line, "--dry-run")
    assert code == 0
    # Two were deleted, and of the others one was not replaced a second time.
    assert told["would_erase"]["living"] == len(victims) - 2
    assert told["would_erase"]["mentions"] == 3
    assert told["runs"] == [str(shop.root / "runs")]
    assert len(told["quarantine"]) == 2
    code, told = _answer(capsys, *line)
    assert (code, "--yes" in told) == (2, True)
    assert shop.search()
    code, told = _answer(capsys, *line, "--yes", "--runs", shop.elsewhere / "runs")
    assert (code, told["incomplete"], told["not_reached"]) == (0, False, [])
    assert [run["outcome"] for run in told["runs"]] == ["redacted", "redacted"]
    assert sum(told["quarantine"].values()) >= 2
    line = (*shop.victims["job"], "--store", shop.root, "--kind", "job", "--yes")
    assert _answer(capsys, *line, "--runs", shop.elsewhere / "runs")[0] == 0
    assert shop.search() == {}


def test_run_erase_reaches_copies_that_nobody_knew(shop, capsys):
    names = [url.rsplit("/", 1)[-1] for url in shop.runs]
    erase_all(shop, runs=[])
    assert {path for paths in shop.search().values() for path in paths}
    line = ["run", "erase", "--store", str(shop.root), "-o", str(shop.elsewhere / "runs")]
    assert main([*line, "-f", "json"]) == 2
    capsys.readouterr()
    assert main([*line, names[1][:6], "-f", "json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["runs"]
    assert told["outcome"] == "redacted"
    assert shop.search() == {}
    assert main([*line, "--all", "-f", "json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["runs"]
    assert told["outcome"] == "untouched"


def test_runs_elsewhere_are_remembered(shop, capsys):
    line = ["run", "start", "--store", str(shop.root), "--for", "jobs", "-k", "3"]
    target = shop.elsewhere / "more"
    assert main([*line, "--output", str(target), "--as-of", "2026-01-01", "-f", "json"]) == 0
    assert places.known(shop.root, "runs") == [str(target)]
    with Store.open(shop.root, mode="w") as store:
        done = store.erase("job", shop.victims["job"])
    assert [run.run for run in done.runs if str(target) in run.run]
