"""Compaction: what it chooses, that nothing changes by it, and that it stands in nobody's way."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import store_fakes as fakes
from patience import until
from store_crash_cases import applied, run_and_kill
from store_fakes import contents, flip, frame, record, stores_in

from matchwright.engine import synthetic
from matchwright.engine.errors import EpochGone, FailedPrecondition, StoreDamaged, StoreFull
from matchwright.engine.matcher import Matcher, Request
from matchwright.engine.policy import Policy
from matchwright.engine.store import Store, compact
from matchwright.engine.store.compact import FANOUT, Size, choose, tier
from matchwright.kernels.ops import get_ops

HERE = Path(__file__).parent


@pytest.fixture
def open_store(tmp_path):
    with stores_in(tmp_path, retain_s=0.0, chunk_rows=64) as opening:
        yield opening


def segments(store, kind="job"):
    return [part.source.n for part in store.snapshot().parts[kind] if hasattr(part.source, "file")]


def fill(store, sizes, kind="job"):
    """One sealed segment of each size; {id: record}."""
    model = {}
    for number, size in enumerate(sizes):
        rows = [record(f"{number}-{n}", n) for n in range(size)]
        store.upsert(kind, frame(*rows))
        store.seal()
        model |= {row["id"]: row for row in rows}
    return model


# ── The policy ────────────────────────────────────────────────────────────────────────────────


def sizes_of(*pairs):
    return [Size(number, n, living) for number, (n, living) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("pairs", "chosen"),
    [
        ([], []),
        ([(1000, 1000)], []),
        ([(1000, 751)], []),
        ([(1000, 750)], [0]),
        ([(1000, 0)], [0]),
        ([(1, 0)], [0]),
        ([(90, 90), (80, 80), (70, 70)], []),
        ([(90, 90), (80, 80), (70, 70), (100, 100)], [0, 1, 2, 3]),
        ([(90, 90), (80, 80), (70, 70), (20, 20)], []),
        ([(499, 499)] * 4, [0, 1]),
        ([(500, 500)] * 9, []),
        ([(900, 500), (900, 400), (900, 300)], [1, 2]),
        ([(9000, 6000), (8000, 5000)], [1]),
    ],
)
def test_what_is_chosen(pairs, chosen):
    assert choose(sizes_of(*pairs), 1000) == chosen


def test_everything_leaves_no_dead_row_and_nothing_that_would_fit():
    rng = random.Random(3)
    for _ in range(200):
        sizes = [
            Size(number, n, n - rng.choice((0, 0, 1, n // 3, n)))
            for number, n in enumerate(rng.randrange(1, 900) for _ in range(rng.randrange(9)))
        ]
        living, steps = sum(size.living for size in sizes), 0
        while chosen := choose(sizes, 1000, everything=True):
            merged = sum(size.living for size in sizes if size.segment in chosen)
            assert merged <= 1000 or len(chosen) == 1
            sizes = [size for size in sizes if size.segment not in chosen]
            sizes += [Size(1000 + steps, merged, merged)] if merged else []
            steps += 1
            assert steps < 20
        assert sum(size.living for size in sizes) == living
        assert all(size.living == size.n for size in sizes)
        assert not any(a.n + b.n <= 1000 for a in sizes for b in sizes if a is not b)


@pytest.mark.parametrize("replaced", [0.0, 0.5, 1.0])
def test_write_amplification_stays_under_the_documented_bound(replaced):
    """Seals of 4,096 rows into a target of 131,072; a share of the rows replaces random others."""
    rng = np.random.default_rng(5)
    target, seal, written = 131_072, 4_096, 0
    held: dict[int, list[int]] = {}  # segment -> [n, living]
    for number in range(400):
        total = sum(living for _, living in held.values())
        deaths = min(int(replaced * seal), total)
        if deaths:
            names = list(held)
            share = np.array([held[name][1] for name in names]) / total
            for name, dead in zip(names, rng.multinomial(deaths, share), strict=True):
                held[name][1] = max(0, held[name][1] - int(dead))
        held[number] = [seal, seal]
        written += seal
        while chosen := choose([Size(k, *v) for k, v in held.items()], target):
            living = sum(held.pop(name)[1] for name in chosen)
            written += living
            if living:
                held[100_000 + written] = [living, living]
    assert written / (400 * seal) <= (3 if replaced == 0 else 6)
    assert len(held) < 3 * FANOUT + sum(n for n, _ in held.values()) // (target // 4)


def test_tiers():
    assert [tier(n) for n in (0, 1, 3, 4, 15, 16, 4_096, 16_383, 16_384)] == [
        *(0, 0, 0, 1, 1, 2),
        *(6, 6, 7),
    ]


# ── What it does ──────────────────────────────────────────────────────────────────────────────


def test_small_segments_are_merged_and_nothing_else_changes(open_store):
    store = open_store()
    model = fill(store, [5, 6, 7, 5, 40])
    fill(store, [3, 3], "freelancer")
    before = store.snapshot()
    figures = store.compact()
    assert segments(store) == [40, 23]
    assert segments(store, "freelancer") == [3, 3]
    assert (figures.merges, figures.segments_before, figures.segments_after) == (1, 4, 1)
    assert (figures.rows, figures.dropped) == (23, 0)
    assert store.generation is before.generation
    assert store.snapshot().epoch > before.epoch
    for snapshot in (store.snapshot(), before, open_store("r").snapshot()):
        assert contents(snapshot, "job") == model
    files = {path.name for path in (store.root / "segments").iterdir()}
    with store._catalog.look() as connection:
        assert files == {row.file for row in store._catalog.segments(connection)}
    assert store.compact().merges == 0
    assert store.verify() == []


def test_dead_rows_are_left_out(open_store):
    store = open_store()
    model = fill(store, [50, 60])
    gone = [f"0-{n}" for n in range(0, 50, 2)] + ["1-1", "1-2"]
    store.delete("job", gone)
    assert store.compact().dropped == 25
    assert segments(store) == [60, 25]
    assert store.compact(everything=True).dropped == 2
    assert segments(store) == [25, 58]
    expected = {name: row for name, row in model.items() if name not in gone}
    assert contents(store.snapshot(), "job") == expected
    store.delete("job", list(expected))
    store.compact()
    assert segments(store) == []
    assert store.snapshot().corpus("job").n == 0
    assert not list((store.root / "segments").iterdir())
    assert store.verify() == []


def test_leased_epochs_keep_their_files(open_store):
    store = open_store()
    model = fill(store, [9, 9, 9, 9])
    lease = store.keep("nightly")
    store.delete("job", ["0-0", "3-8"])
    store.compact(everything=True)
    assert contents(open_store("r").snapshot(epoch=lease.epoch), "job") == model
    assert len(list((store.root / "segments").iterdir())) == 5
    info = store.info()
    assert info["epochs"]["leases"] == {"nightly": lease.epoch}
    assert info["compaction"]["held_bytes"] > 0
    lease.release()
    store.upsert("job", frame(record("x")))
    assert len(list((store.root / "segments").iterdir())) == 1
    assert store.info()["compaction"]["held_bytes"] == 0


def test_what_dies_while_rows_are_copied_is_dead_in_the_copy(open_store):
    changes = []
    store = open_store(neighbours=fakes.indexing(changes))
    model = fill(store, [9, 8, 7, 6])
    store.delete("job", ["1-3", "2-0"])

    def meanwhile():
        store.delete("job", ["0-0", "3-5"])
        store.upsert("job", frame(record("1-7", 99), record("new")))

    changes[:] = [meanwhile]
    store.compact(everything=True)
    assert not changes
    expected = {k: v for k, v in model.items() if k not in ("1-3", "2-0", "0-0", "3-5")}
    expected |= {"1-7": record("1-7", 99), "new": record("new")}
    assert segments(store)[0] in (25, 28)
    for snapshot in (store.snapshot(), open_store("r").snapshot()):
        assert contents(snapshot, "job") == expected
    store.seal()
    assert contents(store.snapshot(), "job") == expected
    assert store.verify() == []


def test_a_full_disk_stops_compaction_alone(open_store, monkeypatch):
    store = open_store()
    model = fill(store, [9, 9, 9, 9])
    real = compact.write_copy

    def full(*arguments):
        raise StoreFull("no room", file="x")

    monkeypatch.setattr(compact, "write_copy", full)
    with pytest.raises(StoreFull):
        store.compact()
    store.upsert("job", frame(record("x")))
    assert contents(store.snapshot(), "job") == model | {"x": record("x")}
    monkeypatch.setattr(compact, "write_copy", real)
    store.compact()
    assert segments(store) == [36]


def test_a_damaged_segment_is_named_and_stays(open_store):
    store = open_store()
    fill(store, [9, 9, 9, 9])
    path = sorted((store.root / "segments").iterdir())[1]
    store.close()
    flip(path, 200)
    store = open_store()
    with pytest.raises(StoreDamaged, match=path.name):
        store.compact()
    assert path.exists()
    assert len(segments(store)) == 4


def test_only_writers_compact(open_store):
    open_store()
    with pytest.raises(FailedPrecondition, match="not open for writing"):
        open_store("r").compact()


# ── In the background ─────────────────────────────────────────────────────────────────────────


def test_it_works_in_the_background_and_stops_when_the_store_is_closed(open_store, monkeypatch):
    monkeypatch.setattr(compact, "IDLE_S", 0.01)
    store = open_store(compact="background")
    model = fill(store, [5, 5, 5, 5, 5, 5, 5, 5])
    until(lambda: len(segments(store)) < 4, "fewer than four segments")
    assert contents(store.snapshot(), "job") == model
    assert store.info()["compaction"]["merges"] >= 1
    store.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "compaction"]
    assert contents(open_store("r").snapshot(), "job") == model


def test_a_failure_in_the_background_is_told_and_tried_again(open_store, monkeypatch):
    monkeypatch.setattr(compact, "IDLE_S", 0.01)
    monkeypatch.setattr(compact, "RETRY_S", 0.01)
    real, failures = compact.write_copy, [StoreFull("no room for it", file="x")] * 3

    def sometimes(*arguments):
        if failures:
            raise failures.pop()
        return real(*arguments)

    monkeypatch.setattr(compact, "write_copy", sometimes)
    store = open_store(compact="background")
    fill(store, [5, 5, 5, 5])
    until(lambda: len(segments(store)) == 1, "one segment")
    assert not failures
    until(lambda: store.info()["compaction"]["error"] == "", "the end of the trouble")


def test_epochs_go_in_time_also_where_nothing_is_written(open_store, monkeypatch):
    monkeypatch.setattr(compact, "IDLE_S", 0.01)
    store = open_store(compact="background", retain_s=0.2)
    for n in range(4):
        store.upsert("job", frame(record("a", n)))
    until(lambda: len(store.epochs()) == 1, "one epoch alone")
    with store._catalog.look() as connection:
        assert connection.execute("SELECT count(*) FROM job_old").fetchone() == (0,)


READER = """
import sys
from store_fakes import contents, neighbours
from matchwright.engine.errors import EpochGone
from matchwright.engine.store import Store
with Store.open(sys.argv[1], neighbours=neighbours()) as store:
    print("ready", flush=True)
    seen = last = 0
    while True:
        snapshot = store.snapshot()
        assert snapshot.epoch.number >= last
        try:
            held = contents(snapshot, "job")
        except EpochGone:  # it took longer to read than an epoch is kept
            continue
        assert all(f"f{n}" in held for n in range(50)), "fixed rows"
        versions = {row["rate_cents"] for name, row in held.items() if name.startswith("v")}
        assert len(versions) <= 1, versions  # they change together
        seen, last = seen + 1, snapshot.epoch.number
        if store.root.joinpath("stop").exists():
            break
    print(seen, last, flush=True)
"""


def test_reading_and_writing_go_on_while_it_compacts(open_store, monkeypatch, count):
    """Two reader processes and two reader threads look at every epoch that they catch."""
    monkeypatch.setattr(compact, "IDLE_S", 0.001)
    monkeypatch.setattr(compact, "PACE", 0.0)
    store = open_store(compact="background", seal_rows=40, retain_s=0.5)
    store.upsert("job", frame(*(record(f"f{n}") for n in range(50))))
    command = [sys.executable, "-c", READER, str(store.root)]
    options = {"stdout": subprocess.PIPE, "text": True, "cwd": HERE}
    failures, stop, looks = [], threading.Event(), []

    def read():
        try:
            while not stop.is_set():
                with contextlib.suppress(EpochGone):  # likewise
                    held = contents(store.snapshot(), "job")
                    assert all(f"f{n}" in held for n in range(50))
                    looks.append(1)
        except BaseException as error:
            failures.append(error)

    with (
        subprocess.Popen(command, **options) as one,
        subprocess.Popen(command, **options) as two,
    ):
        try:
            assert [one.stdout.readline(), two.stdout.readline()] == ["ready\n"] * 2
            threads = [threading.Thread(target=read) for _ in range(2)]
            for thread in threads:
                thread.start()
            end = time.monotonic() + count(reduced=3, full=60)
            n = slowest = 0
            while time.monotonic() < end or store._compactor.figures.merges < 3:
                assert time.monotonic() < end + 60
                n += 1
                began = time.monotonic()
                store.upsert("job", frame(*(record(f"v{m}", n) for m in range(10))))
                slowest = max(slowest, time.monotonic() - began)
                if n % 7 == 0:
                    store.upsert("job", frame(record("f3", n), record(f"x{n}")))
            (store.root / "stop").touch()
            stop.set()
            for thread in threads:
                thread.join()
            out = [one.communicate(timeout=30)[0], two.communicate(timeout=30)[0]]
        finally:
            one.kill()
            two.kill()
    assert failures == []
    assert [one.returncode, two.returncode] == [0, 0]
    assert all(int(line.split()[0]) > 3 for line in out)
    assert looks
    assert slowest < 5.0
    assert store.verify() == []


# ── Killed ────────────────────────────────────────────────────────────────────────────────────


def test_killed_while_compacting_nothing_is_lost(tmp_path, count):
    rng = random.Random(11)
    folder, model, merges, kept = tmp_path / "store", {}, 0, {}
    for seed in range(count(reduced=3, full=20)):
        model, flying = run_and_kill(folder, seed, rng, model, "compact")
        with Store.open(folder, neighbours=fakes.neighbours()) as store:
            seen = contents(store.snapshot(), "job")
            merges += sum(epoch.what == "compact" for epoch in store.epochs())
        assert seen in [model] + ([applied(model, flying)] if flying else [])
        with Store.open(folder, mode="w", neighbours=fakes.neighbours()) as store:
            assert contents(store.snapshot(), "job") == seen
            assert store.verify() == []
            files = {path.name for path in (folder / "segments").iterdir()}
            with store._catalog.look() as connection:
                assert files == {row.file for row in store._catalog.all_segments(connection)}
            for epoch in store.epochs():
                assert store.snapshot(epoch=epoch.number).count("job") >= 0
            for number, expected in kept.items():
                assert contents(store.snapshot(epoch=number), "job") == expected
            kept[store.keep(f"after-{seed}").epoch] = seen
        model = seen
    assert merges


# ── Answers ───────────────────────────────────────────────────────────────────────────────────


def test_answers_are_the_same_before_and_after(tmp_path):
    """The engine's own records and matcher: equal results, but for the epoch's name."""
    options = {"mode": "w", "create": True, "seal_rows": 100, "chunk_rows": 300}
    with Store.open(tmp_path / "store", **options) as store:
        for kind, n in (("freelancer", 500), ("job", 40)):
            for block in synthetic.blocks(kind, n, block=60):
                store.upsert(kind, block)
        freelancers = synthetic.frame("freelancer", 500)["id"].to_list()
        store.delete("freelancer", freelancers[::7])
        jobs = synthetic.frame("job", 40)["id"].to_list()
        requests = [Request(kind="job", id=name, as_of=synthetic.AS_OF) for name in jobs]
        matcher = Matcher(store, get_ops("cpu"), Policy.load(None))
        before = matcher.match_many(requests)
        store.seal()
        sealed, segments_before = (
            matcher.match_many(requests),
            len(store.snapshot().parts["freelancer"]),
        )
        assert store.compact(everything=True).merges
        after = matcher.match_many(requests)
        assert len(store.snapshot().parts["freelancer"]) < segments_before
    assert sum(len(result) for result in before) > 100
    for one, two, three in zip(before, sealed, after, strict=True):
        assert len({result.epoch for result in (one, two, three)}) == 3
        assert as_bytes(one) == as_bytes(two) == as_bytes(three)


def as_bytes(result):
    """Everything that the contract covers, the epoch's name taken out."""
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    del fields["epoch"], fields["telemetry"]
    return {
        name: value.tobytes() if isinstance(value, np.ndarray) else value
        for name, value in fields.items()
    }
