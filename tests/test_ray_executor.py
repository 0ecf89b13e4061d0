"""The Ray executor: shards on actors give the digest of one process, whatever happens to them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from patience import lives, until
from run_cases import check_same

from matchwright.engine import synthetic
from matchwright.engine.cli import main
from matchwright.engine.eligibility import RULE
from matchwright.engine.errors import DependencyUnavailable, InvalidArgument, MatchwrightError
from matchwright.engine.policy import Policy
from matchwright.engine.runs import ray_executor
from matchwright.engine.runs.block import Found, search
from matchwright.engine.runs.execute import LocalExecutor, Questions, run
from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.plan import RunOptions, make_plan
from matchwright.engine.runs.ray_executor import RayExecutor
from matchwright.engine.runs.ray_plan import Load, shard_plan
from matchwright.engine.runs.shards import bounds, merge_found, shard
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops
from matchwright.kernels.order import mix32

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'matchwright[ray]'"
)
JOBS, PEOPLE = 160, 400
CASES = ("| 1 ", "| 4 ", "| 16")
"""How the rows of the tables in docs/scale-out.md begin."""


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory):
    """Several segments, tombstones and live rows."""
    folder = tmp_path_factory.mktemp("ray") / "store"
    options = {"mode": "w", "create": True, "salt": bytes(16), "chunk_rows": 256}
    with Store.open(folder, **options) as store:
        for kind, n in (("job", JOBS), ("freelancer", PEOPLE)):
            frame = synthetic.frame(kind, n, seed=2)
            store.upsert(kind, frame)
            store.seal()
            store.upsert(kind, frame.head(40).with_columns(title=frame["title"].tail(40)))
            store.delete(kind, frame["id"].to_list()[50:60])
        store.refit(seed=0, sample=500, as_of=synthetic.AS_OF)
        store.upsert("freelancer", synthetic.frame("freelancer", 30, seed=5).head(30))
    return folder


@pytest.fixture(scope="module")
def snapshot(store_folder):
    with Store.open(store_folder) as store:
        yield store.snapshot()


def plan_of(snapshot, **options):
    """Most people are eligible for most jobs."""
    rules = {name: {"enabled": False} for name in list(RULE)[::2]}
    policy = Policy.from_dict({"rules": rules})
    options = {"kinds": ("job", "freelancer"), "k": 20, "slack": 5, "count": True, **options}
    return make_plan(
        snapshot, RunOptions(as_of=synthetic.AS_OF, policy=policy, block=64, **options)
    )


@pytest.fixture(scope="module")
def plan(snapshot):
    return plan_of(snapshot)


@pytest.fixture(scope="module")
def expected(plan, snapshot, tmp_path_factory):
    """(folder, run.json) of a local run."""
    folder = Output(tmp_path_factory.mktemp("local")).folder(plan.run_id)
    executor = LocalExecutor(Ops(threads=1), snapshot, plan, prefetch=False)
    return folder, run(plan, folder, executor, snapshot=snapshot).summary


# ── Shards ────────────────────────────────────────────────────────────────────────────────────


def same(one, other):
    for name in ("start_q", "key_m", "points_m", "eligible_q", "unverified_q"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert one.depth == other.depth


@pytest.mark.parametrize("of", [1, 2, 3, 7, 40])
def test_shards_merge_to_what_one_corpus_gives(snapshot, plan, of):
    ops, questions = Ops(threads=1), Questions(snapshot, plan)
    for kind, other in (("job", "freelancer"), ("freelancer", "job")):
        corpus = snapshot.corpus(other)
        pieces = [shard(corpus, number, of) for number in range(of)]
        keys = [segment.key_n for piece in pieces for segment, _ in piece.parts]
        whole = [segment.key_n for segment, _ in corpus.parts]
        assert np.array_equal(np.concatenate(keys), np.concatenate(whole))
        unit = plan.units_of(kind)[1]
        prepared = questions.prepare(unit)
        parts = [search(ops, snapshot, prepared, plan.options, piece) for piece in pieces]
        expected = search(ops, snapshot, prepared, plan.options)
        assert expected.key_m.size > 200
        same(merge_found(prepared.key_q, parts), expected)
        same(merge_found(prepared.key_q, parts[::-1]), expected)


@pytest.mark.parametrize("points", [1, 3, 1_000])
def test_ties_between_shards_are_decided_by_the_key(points):
    """Beside a sort of Python tuples; with one value of points everything ties."""
    rng = np.random.default_rng(points)
    key_q = rng.integers(0, 2**63, 9).astype(np.uint64)
    depth, parts, rows = 6, [], {query: [] for query in range(9)}
    for _ in range(4):
        start, keys, values = [0], [], []
        for query in range(9):
            key = rng.integers(0, 2**63, int(rng.integers(0, depth + 1))).astype(np.uint64)
            mix = mix32(key_q[query], key)
            mine = [
                (-int(p), int(m), int(k) & 0xFFFFFFFF, int(k))
                for p, m, k in zip(rng.integers(-points, points, key.size), mix, key, strict=True)
            ]
            rows[query] += mine
            keys += [one[3] for one in sorted(mine)]
            values += [-one[0] for one in sorted(mine)]
            start.append(len(keys))
        counts = np.zeros(9, np.int64)
        arrays = np.array(start), np.array(keys, np.uint64), np.array(values, np.int32)
        parts.append(Found(depth, *arrays, counts, counts, 0.0))
    merged = merge_found(key_q, parts)
    for query in range(9):
        span = slice(*merged.start_q[query : query + 2])
        best = sorted(rows[query])[:depth]
        assert merged.key_m[span].tolist() == [one[3] for one in best]
        assert merged.points_m[span].tolist() == [-one[0] for one in best]


def test_shards_cover_every_row_once():
    for rows in (0, 1, 2, 17, 1_000):
        for of in (1, 2, 3, 16, 40):
            ends = [bounds(rows, number, of) for number in range(of)]
            assert ends[0][0] == 0
            assert ends[-1][1] == rows
            assert all(one[1] == two[0] for one, two in itertools.pairwise(ends))
            assert max(b - a for a, b in ends) - min(b - a for a, b in ends) <= 1


def test_counts_that_one_shard_has_not_made_are_not_made():
    def found(eligible):
        empty = np.zeros(0, np.uint64), np.zeros(0, np.int32)
        counts = np.array(eligible)
        return Found(3, np.zeros(3, np.int64), *empty, counts, counts, 0.5)

    merged = merge_found(np.array([1, 2], np.uint64), [found([4, -1]), found([5, 6])])
    assert merged.eligible_q.tolist() == [9, -1]
    assert merged.seconds == 0.5


def test_the_plan_of_shards_by_hand():
    """1 M queries, 18 M rows, D = 384, K = 100, on 16 devices: sharded, and replicated."""
    load = Load(
        queries=10**6, rows=18 * 10**6, d=384, depth=100, unit=256, rule_sets=10**6
    )  # fmt: skip
    sharded, whole = shard_plan(load, 16, 16), shard_plan(load, 16, 1)
    assert (sharded["rows_per_device"], sharded["queries_per_device"]) == (1_125_000, 10**6)
    assert (whole["rows_per_device"], whole["queries_per_device"]) == (18 * 10**6, 62_500)
    assert sharded["device_bytes"] == 1_125_000 * (384 + 12)
    assert whole["device_bytes"] == 18 * 10**6 * (384 + 12)
    assert sharded["int8_operations"] == whole["int8_operations"] == 2 * 384 * 18 * 10**12 // 16
    assert sharded["bytes_per_unit_back"] == 256 * 100 * 12 * 16
    assert whole["bytes_per_unit_out"] == 0
    assert sharded["seconds"]["product_sieve"] == pytest.approx(0.72)
    assert whole["seconds"]["merge"] == 0 < sharded["seconds"]["merge"]


def test_the_worked_plan_of_the_page_is_that_of_the_code(repo_root):
    page = (repo_root / "docs" / "scale-out.md").read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line[:4] in CASES]
    assert len(rows) == 11
    for cells in rows:
        wide = len(cells) == 12
        load = Load(
            queries=10**6,
            rows=18 * 10**6,
            d=384 if wide else 512,
            depth=100,
            unit=256,
            rule_sets=10**6,
        )
        one = shard_plan(load, int(cells[0]), int(cells[1]))
        spent, traffic = one["seconds"], one["network_bytes"] / 1e9
        device, host, operations, sieve, plain = map(float, cells[3:8] if wide else cells[2:7])
        assert device == pytest.approx(one["device_bytes"] / 1e9, abs=0.006)
        assert host == pytest.approx(one["host_bytes"] / 1e9, abs=0.06)
        assert operations == pytest.approx(one["int8_operations"], rel=0.006)
        assert sieve == pytest.approx(spent["product_sieve"], rel=0.01)
        assert plain == pytest.approx(spent["product_scores"], rel=0.01)
        sums = [float(cell.replace(",", "")) for cell in cells[-1].split(" / ")]
        assert sums == pytest.approx([traffic, spent["network"]], abs=0.06)
        if wide:
            rest = [float(cell.replace(",", "")) for cell in cells[8:11]]
            expected = [spent["rules"], spent["prepare_and_answer"], spent["merge"]]
            assert rest == pytest.approx(expected, abs=0.6)


# ── Actors ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def connected():
    """One Ray for the whole module; executors use the connection that there is."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray: pip install 'matchwright[ray]'")
    with ray_executor._cluster(None, 8) as ray:
        yield ray


def executor_of(plan, snapshot, store_folder, workers, **options):
    return RayExecutor(plan, snapshot, store_folder, workers=workers, device="numpy", **options)


@needs_ray
@pytest.mark.parametrize("workers", [2, 4])
def test_ray_gives_the_files_of_a_local_run(
    plan, snapshot, store_folder, expected, connected, tmp_path, workers
):
    executor = executor_of(plan, snapshot, store_folder, workers)
    folder = Output(tmp_path).folder(plan.run_id)
    summary = run(plan, folder, executor, snapshot=snapshot).summary
    check_same(summary, folder, expected)
    limits = summary["limits"]
    assert (limits["executor"], limits["workers"]) == ("ray", workers)
    assert limits["actors_lost"] == 0
    rows = [one["freelancer"] for one in limits["shards"]]
    assert max(rows) - min(rows) <= 1
    assert run(plan, folder, executor, snapshot=snapshot).done_now == 0


@needs_ray
@pytest.mark.parametrize("shards", [1, 2])
def test_teams_give_the_files_of_a_local_run(
    plan, snapshot, store_folder, expected, connected, tmp_path, shards
):
    """Two actors that hold all rows, and two teams of two shards; one actor is killed."""
    executor = executor_of(plan, snapshot, store_folder, 2 * shards, shards=shards)
    folder = Output(tmp_path).folder(plan.run_id)
    killed = []

    def kill(event):
        if event.name == "unit" and not killed:
            killed.append(executor.actors.facts[-1]["pid"])
            os.kill(killed[0], signal.SIGKILL)

    summary = run(plan, folder, executor, progress=kill, snapshot=snapshot).summary
    check_same(summary, folder, expected)
    limits = summary["limits"]
    assert (limits["teams"], len(limits["shards"]), limits["actors_lost"]) == (2, shards, 1)


@needs_ray
def test_shards_divide_the_workers(plan, snapshot, store_folder):
    with pytest.raises(InvalidArgument, match="3 shards do not divide 4 workers"):
        executor_of(plan, snapshot, store_folder, 4, shards=3)


@needs_ray
def test_an_actor_that_is_killed_is_replaced(
    plan, snapshot, store_folder, expected, connected, tmp_path, count, capsys
):
    """SIGKILL to one process after the first unit, and to another one later."""
    for workers in (2, 4)[: count(reduced=1, full=2)]:
        said = []
        executor = executor_of(plan, snapshot, store_folder, workers, say=said.append)
        folder = Output(tmp_path / str(workers)).folder(plan.run_id)
        killed = []

        def kill(event, executor=executor, killed=killed):
            if event.name == "unit" and len(killed) < 2:
                pid = executor.actors.facts[len(killed)]["pid"]
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

        summary = run(plan, folder, executor, progress=kill, snapshot=snapshot).summary
        check_same(summary, folder, expected)
        assert len(set(killed)) == 2
        assert summary["limits"]["actors_lost"] == 2
        assert not {one["pid"] for one in executor.actors.facts} & set(killed)
        assert [line.split(" was lost")[0] for line in said] == [
            f"actor {number} of {workers}" for number in (1, 2)
        ]
        time.sleep(1)  # what Ray says of it comes late
        assert capsys.readouterr().out == ""


@needs_ray
def test_a_shard_that_is_lost_again_and_again_ends_the_run(
    plan, snapshot, store_folder, expected, connected, tmp_path, monkeypatch
):
    """With the exit code of a missing dependency; what is written is kept and resumed."""
    monkeypatch.setattr(ray_executor, "LOSSES_MAX", 1)
    executor = executor_of(plan, snapshot, store_folder, 2)
    folder = Output(tmp_path).folder(plan.run_id)
    opened = executor.actors._opened

    def open_and_kill(number, ready):
        facts = opened(number, ready)
        if executor.actors._starts[number] > 1:
            os.kill(facts["pid"], signal.SIGKILL)
        return facts

    killed = []

    def kill(event):
        if event.name == "unit" and not killed:
            killed.append(executor.actors.facts[1]["pid"])
            monkeypatch.setattr(
                type(executor.actors), "_opened", lambda self, *a: open_and_kill(*a)
            )
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(DependencyUnavailable, match=r"actor 2 of 2 was lost 2 times") as caught:
        run(plan, folder, executor, progress=kill, snapshot=snapshot)
    assert caught.value.exit_code == 5
    assert folder.summary() is None
    monkeypatch.undo()
    local = LocalExecutor(Ops(threads=1), snapshot, plan, prefetch=False)
    outcome = run(plan, folder, local, snapshot=snapshot)
    assert 0 < outcome.done_now < len(plan.units)
    check_same(outcome.summary, folder, expected)


@needs_ray
def test_what_an_actor_says_of_its_store_is_said(plan, snapshot, store_folder, connected, tmp_path):
    executor = executor_of(plan, snapshot, store_folder, 2, store_on_nodes=str(tmp_path / "none"))
    with pytest.raises(MatchwrightError, match="holds no store"):
        next(executor.answers(plan.units))


@needs_ray
def test_units_in_flight_are_bounded(plan, snapshot, store_folder, connected):
    executor = executor_of(plan, snapshot, store_folder, 2)
    asked, seen = [], []
    prepare = executor.questions.prepare

    def noted(unit):
        asked.append(unit)
        return prepare(unit)

    executor.questions.prepare = noted
    for unit, _ in executor.answers(plan.units):
        seen.append(unit)
        assert len(asked) - len(seen) < ray_executor.IN_FLIGHT
    assert seen == list(plan.units)


def test_without_ray_it_says_what_to_install(plan, snapshot, store_folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyUnavailable, match=r"pip install 'matchwright\[ray\]'") as caught:
        executor_of(plan, snapshot, store_folder, 2)
    assert caught.value.exit_code == 5


# ── From the command line ─────────────────────────────────────────────────────────────────────


def told(capsys, *words):
    """(exit code, the JSON answer or error) of a command."""
    code = main(["run", *map(str, words), "--format", "json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if code == 0 else json.loads(err.splitlines()[-1])["error"]


def test_a_plan_of_shards_is_shown(store_folder, capsys):
    command = "plan", "--store", store_folder, "-k", 20, "--executor", "ray", "--workers", 4
    code, document = told(capsys, *command, "--shards", 2, "--device", "numpy")
    assert code == 0
    jobs = document["ray"]["job"]
    assert (jobs["teams"], jobs["shards"], jobs["workers"]) == (2, 2, 4)
    assert jobs["queries_per_device"] == -(-document["counts"]["job"] // 2)
    assert jobs["rows_per_device"] == -(-document["counts"]["freelancer"] // 2)
    assert not list((store_folder / "runs").glob("*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shards", 2], "--shards goes with --executor ray"),
        (["--executor", "ray", "--workers", 4, "--shards", 3], "3 shards do not divide 4"),
        (["--executor", "ray", "--shards", 0], "--shards takes 1 to 1,024"),
        (["--ray-address", "host:1"], "go with --executor ray"),
        (["--executor", "ray", "--ray-address", "host:1"], "--ray-address needs --workers"),
    ],
)
def test_options_that_do_not_go_together(store_folder, tmp_path, capsys, words, said):
    command = "start", "--store", store_folder, "--output", tmp_path, "--device", "numpy"
    code, error = told(capsys, *command, *words)
    assert code == 2
    assert said in error["message"]


def test_a_start_without_ray_says_what_to_install(store_folder, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "ray" else find(name, *more),
    )
    command = "start", "--store", store_folder, "--output", tmp_path, "--device", "numpy"
    code, error = told(capsys, *command, "--executor", "ray", "--workers", 2)
    assert (code, error["reason"]) == (5, "DEPENDENCY_UNAVAILABLE")
    assert "pip install 'matchwright[ray]'" in error["message"]
    assert "run resume" in error["message"]


def children_of(pid):
    """Pids of all processes below one."""
    below = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == pid:
            below += [int(stat.parent.name), *children_of(int(stat.parent.name))]
    return below


@needs_ray
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_ctrl_c_leaves_no_process_and_no_file(store_folder, tmp_path):
    policy, home = tmp_path / "policy.toml", tmp_path / "home"
    rules = "".join(f"[rules.{name}]\nenabled = false\n" for name in list(RULE)[::2])
    policy.write_text(rules)
    home.mkdir()
    program = [sys.executable, "-m", "matchwright.engine.cli", "run"]
    command = [
        *program, "start", "--store", store_folder, "--policy", policy, "-k", "20", "--slack", "5",
        "--count", "--as-of", "2026-01-01", "--block", "4", "--output", tmp_path / "runs",
        "--executor", "ray", "--workers", "2", "--device", "numpy",
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(tmp_path)}
    started = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    with started:
        assert started.stderr is not None
        for line in started.stderr:
            if '"event": "unit"' in line:
                break
        below = children_of(started.pid)
        assert len(below) >= 4, below
        started.send_signal(signal.SIGINT)
        said = started.stderr.read()
    assert started.returncode == 130, said
    assert "run resume" in said
    until(lambda: not any(map(lives, below)), "the end of every process", within=15)
    assert list(home.iterdir()) == []
    assert not [*Path("/tmp").glob(f"mw-ray-{started.pid}-*"), *tmp_path.glob("mw-ray-*")]
