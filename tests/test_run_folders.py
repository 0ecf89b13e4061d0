"""Plans and folders of runs, locks, and how a run stops."""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import threading
import time
from datetime import UTC, datetime, timedelta

import fsspec
import pytest
import run_cases as cases
from patience import until
from run_cases import AS_OF, KINDS, do, heavier, options, snapshot, store, whole

from matchwright.engine.errors import (
    DeadlineExceeded,
    DependencyUnavailable,
    FailedPrecondition,
    InvalidArgument,
    MatchwrightError,
    NotFound,
    StoreDamaged,
    StoreFormat,
    StoreLocked,
)
from matchwright.engine.matcher import OTHER
from matchwright.engine.policy import Policy
from matchwright.engine.runs import execute, lock
from matchwright.engine.runs.deadline import Deadline, parse_finish_by
from matchwright.engine.runs.digest import run_digest
from matchwright.engine.runs.folder import Output, RunFolder, Target, find_run
from matchwright.engine.runs.plan import Plan, RunOptions, block_size, kinds_of, make_plan
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops

# ── Plans ─────────────────────────────────────────────────────────────────────────────────────


def test_a_plan_survives_its_file(snapshot):
    plan = make_plan(
        snapshot, options(slack=3, count=True, policy=heavier()), store="/a b", created="now"
    )
    again = Plan.from_json(plan.to_json())
    assert dataclasses.replace(again, options=plan.options) == plan
    assert again.options.policy == plan.options.policy
    assert again.options == dataclasses.replace(plan.options, block=None)


def test_the_run_id_names_what_determines_the_run(snapshot):
    base = make_plan(snapshot, options()).run_id
    assert len(base) == 16
    same = [{"block": 7}, {"policy": Policy.load()}]
    assert {make_plan(snapshot, options(**asked)).run_id for asked in same} == {base}
    others = [
        {"k": 21},
        {"as_of": AS_OF + 1},
        {"slack": 1},
        {"contributions": True},
        {"count": True},
        {"kinds": ("job",)},
        {"base": "0" * 16},
        {"policy": heavier()},
    ]
    ids = {make_plan(snapshot, options(**asked)).run_id for asked in others}
    assert len(ids | {base}) == len(others) + 1


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 1_001}, "1..1,000"),
        ({"slack": 981}, "slack"),
        ({"slack": -1}, "slack"),
        ({"kinds": ()}, "kinds"),
        ({"kinds": ("freelancer", "job")}, "in order"),
        ({"as_of": -1}, "as_of"),
        ({"block": 0}, "block"),
    ],
)
def test_wrong_options_are_refused(snapshot, asked, what):
    with pytest.raises(InvalidArgument, match=what):
        make_plan(snapshot, options(**asked))


def test_damaged_plans_are_named(snapshot):
    data = make_plan(snapshot, options()).to_json()
    document = json.loads(data)
    with pytest.raises(StoreFormat, match="newer"):
        Plan.from_json(json.dumps({**document, "format": 99}).encode())
    document["determinants"]["k"] = 21
    with pytest.raises(StoreDamaged, match="does not have its run id"):
        Plan.from_json(json.dumps(document).encode())
    rng = random.Random(3)
    for _ in range(40):
        cut = data[: rng.randrange(len(data))]
        with pytest.raises(StoreDamaged, match="is no plan"):
            Plan.from_json(cut, "plan.json")


def test_units_cover_every_query_once(snapshot):
    plan = make_plan(snapshot, options(block=33))
    for kind in KINDS:
        units = plan.units_of(kind)
        assert [unit.start for unit in units] == list(range(0, plan.counts[kind], 33))
        assert units[-1].stop == plan.counts[kind]
    assert len({unit.key for unit in plan.units}) == len(plan.units)


def test_another_store_has_other_queries(snapshot, tmp_path):
    plan = make_plan(snapshot, options())
    with Store.open(cases.make_store(tmp_path / "store", 60, 30)) as other:
        with pytest.raises(StoreDamaged, match="does not hold the queries"):
            execute.Questions(other.snapshot(), plan)


def test_another_time_zone_database_is_noticed(snapshot, monkeypatch):
    plan = make_plan(snapshot, options())
    monkeypatch.setattr("matchwright.engine.policy.tz_version", lambda: "1999z")
    with pytest.raises(FailedPrecondition, match="1999z"):
        execute.Questions(snapshot, plan)


def test_blocks_suit_the_corpus():
    assert [block_size(n) for n in (0, 10_000, 1_000_000, 100_000_000)] == [4096, 4096, 512, 256]
    assert kinds_of("both") == KINDS
    with pytest.raises(InvalidArgument):
        kinds_of("nobody")


# ── Folders ───────────────────────────────────────────────────────────────────────────────────


def test_a_run_of_nobody(tmp_path):
    with Store.open(tmp_path / "store", mode="w", create=True) as store:
        folder, outcome = do(store.snapshot(), tmp_path / "runs", slack=3)
    assert outcome.summary["counts"]["job"]["queries"] == 0
    assert outcome.summary["digest"] == run_digest(folder) == hashlib.sha256().hexdigest()


def test_a_run_that_is_there_is_not_done_again(whole, snapshot):
    folder, summary = whole
    plan = folder.plan()

    class Never:
        about = None

        def answers(self, todo):
            raise AssertionError("nothing is to be done")

    outcome = execute.run(plan, folder, Never())
    assert outcome.done_now == 0
    assert outcome.summary == summary


def test_a_run_on_an_object_store(whole, snapshot):
    url = f"memory://{time.monotonic_ns()}"
    folder, outcome = do(snapshot, url, block=100)
    assert outcome.summary["digest"] == whole[1]["digest"]
    assert Output(url).runs() == [folder.run_id]
    assert folder.url == f"{url.replace('memory://', 'memory:///')}/{folder.run_id}"
    assert not folder.exists("LOCK")
    assert find_run(folder.run_id[:6], url).plan().run_id == folder.run_id
    assert find_run(folder.url).summary() == outcome.summary
    Output(url).publish(folder.run_id, {"by": "me"})
    assert Output(url).published() == {"by": "me", "format": 1, "run_id": folder.run_id}
    folder.remove_all()
    assert Output(url).runs() == []


def test_a_target_without_atomic_puts_gets_its_files_by_a_move(monkeypatch):
    target = Target(f"memory://{time.monotonic_ns()}")
    target._atomic = False  # as over SFTP
    moved = []
    move = target.fs.mv

    def watched(old, new):
        moved.append((old, new))
        move(old, new)

    monkeypatch.setattr(target.fs, "mv", watched)
    target.write("a/b.bin", b"one")
    target.write("a/b.bin", b"two")
    assert target.read("a/b.bin") == b"two"
    assert sorted(target.list()) == ["a/b.bin"]
    assert [new for _, new in moved] == [target.path("a/b.bin")] * 2
    assert all(old.endswith(".part") for old, _ in moved)


def test_targets_that_cannot_be():
    with pytest.raises(InvalidArgument, match="no target"):
        Target("nosuchscheme://x")
    with pytest.raises((DependencyUnavailable, InvalidArgument)):
        Target("oss://bucket/x")


def test_runs_are_found(whole, tmp_path):
    folder, _ = whole
    output = folder.url.rsplit("/", 1)[0]
    assert find_run(folder.run_id, output).url == folder.url
    assert find_run(folder.url, tmp_path).url == folder.url
    with pytest.raises(NotFound, match="there is no run 'ffff'"):
        find_run("ffff", output)
    with pytest.raises(NotFound):
        find_run("ffff")
    with pytest.raises(NotFound, match="is not there"):
        RunFolder(tmp_path / "0123456789abcdef").plan()


def test_summaries_that_cannot_be_used(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.summary() is None
    for text, error in (("[]", StoreDamaged), ("{", StoreDamaged), ('{"format": 9}', StoreFormat)):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(error, match=r"run\.json"):
            folder.summary()


def test_metrics_are_what_a_node_exporter_reads(whole):
    folder, summary = whole
    lines = folder.read("metrics.prom").decode().splitlines()
    values = {}
    for line in lines:
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    run = f'run="{summary["run_id"]}"'
    for kind, counts in summary["counts"].items():
        assert values[f'matchwright_run_rows{{{run},for="{kind}"}}'] == counts["rows"]
        for outcome in ("full", "few", "none", "errors"):
            name = f'matchwright_run_queries{{{run},for="{kind}",outcome="{outcome}"}}'
            assert values[name] == counts[outcome]
    ended = values[f"matchwright_run_ended_timestamp_seconds{{{run}}}"]
    assert datetime.fromtimestamp(ended, UTC).isoformat()[:19] == summary["ended"][:19]
    assert len({line.split("{")[0] for line in lines if not line.startswith("#")}) == 6


# ── Locks ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_one_writer_at_a_time(whole, snapshot, tmp_path, scheme):
    output = tmp_path if scheme == "local" else f"memory://{time.monotonic_ns()}"
    plan = make_plan(snapshot, options())
    folder = Output(output).folder(plan.run_id)
    worker = execute.LocalExecutor(Ops(threads=1), snapshot, plan)
    with folder.lock():
        with pytest.raises(StoreLocked, match=r"process \d+ on .* is writing it"):
            execute.run(plan, Output(output).folder(plan.run_id), worker)
    assert execute.run(plan, folder, worker).summary["digest"] == whole[1]["digest"]


def test_a_stale_lock_object_is_taken_over_and_a_young_one_is_not():
    fs = fsspec.filesystem("memory")
    path = f"/{time.monotonic_ns()}/LOCK"
    old = {"holder": "x", "pid": 1, "host": "gone", "heartbeat": time.time() - 500}
    fs.pipe_file(path, json.dumps(old).encode())
    with lock.object_lock(fs, path, "the run"):
        assert json.loads(fs.cat_file(path))["pid"] != 1
    assert not fs.exists(path)
    fs.pipe_file(path, json.dumps({**old, "heartbeat": time.time() - 50}).encode())
    with pytest.raises(StoreLocked, match="process 1 on gone"):
        with lock.object_lock(fs, path, "the run"):
            pass
    assert json.loads(fs.cat_file(path))["pid"] == 1


def test_the_holder_of_a_lock_object_says_that_it_is_there():
    fs = fsspec.filesystem("memory")
    path = f"/{time.monotonic_ns()}/LOCK"
    with lock.object_lock(fs, path, "the run", heartbeat_s=0.01):
        first = json.loads(fs.cat_file(path))
        until(lambda: json.loads(fs.cat_file(path)) != first, "the next heartbeat")
        later = json.loads(fs.cat_file(path))
    assert later["heartbeat"] > first["heartbeat"]
    assert later | {"heartbeat": first["heartbeat"]} == first


def test_losing_a_lock_is_noticed():
    fs = fsspec.filesystem("memory")
    path = f"/{time.monotonic_ns()}/LOCK"
    other = json.dumps({"holder": "other", "host": "elsewhere", "heartbeat": time.time()}).encode()
    held = lock.object_lock(fs, path, "the run", heartbeat_s=0.01)
    before = set(threading.enumerate())
    held.__enter__()
    (beat,) = set(threading.enumerate()) - before

    def noticed():
        fs.pipe_file(path, other)  # again: it may say once more that the lock is its own
        return not beat.is_alive()

    until(noticed, "the end of the heartbeat")
    with pytest.raises(StoreLocked, match="names elsewhere now"):
        held.__exit__(None, None, None)
    assert fs.cat_file(path) == other


# ── Stopping ──────────────────────────────────────────────────────────────────────────────────


NOW = datetime(2026, 1, 31, 22, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("23:00", NOW.replace(hour=23, minute=0)),
        ("06:30", datetime(2026, 2, 1, 6, 30, tzinfo=UTC)),
        ("22:15", datetime(2026, 2, 1, 22, 15, tzinfo=UTC)),
        ("2h", NOW + timedelta(hours=2)),
        ("1h30m", NOW + timedelta(minutes=90)),
        ("0.5h", NOW + timedelta(minutes=30)),
        ("45s", NOW + timedelta(seconds=45)),
        ("2026-02-01T05:00", datetime(2026, 2, 1, 5, tzinfo=UTC)),
        ("2026-02-01T05:00+02:00", datetime(2026, 2, 1, 3, tzinfo=UTC)),
    ],
)
def test_finish_by_takes_times_and_spans(text, wanted):
    assert parse_finish_by(text, NOW) == wanted


@pytest.mark.parametrize("text", ["", "soon", "25:00", "12:60", "2x", "-2h", "h"])
def test_finish_by_refuses_the_rest(text):
    with pytest.raises(InvalidArgument, match="--finish-by takes"):
        parse_finish_by(text, NOW)


def test_a_deadline_warns_once_and_early_and_then_stops():
    clock = [1_000.0]
    said = []
    deadline = Deadline(datetime.fromtimestamp(1_100, UTC), said.append, lambda: clock[0])
    assert deadline.stop(0, 100) is None
    clock[0] = 1_010.0
    assert deadline.stop(20, 100) is None
    assert said == []  # 50 s in all are expected
    clock[0] = 1_040.0
    assert deadline.stop(30, 100) is None
    clock[0] = 1_050.0
    assert deadline.stop(31, 100) is None
    assert len(said) == 1
    assert "stop then in good order" in said[0]
    clock[0] = 1_100.0
    assert "had to be done by" in deadline.stop(60, 100)


def test_a_stop_ends_in_good_order_and_goes_on(whole, snapshot, tmp_path):
    """Stopped after every unit, the run ends with the same digest."""
    events = []

    def begin():
        calls = []

        def stop(done, total):
            calls.append(done)
            return "it is time" if len(calls) > 1 else None

        return do(snapshot, tmp_path, block=200, stop=stop, progress=events.append)

    for _ in range(2):
        with pytest.raises(DeadlineExceeded, match="it is time"):
            begin()
    _, outcome = begin()
    assert outcome.summary["digest"] == whole[1]["digest"]
    assert [event.name for event in events].count("unit") == 3


def test_no_thread_is_left_behind(snapshot, tmp_path):
    before = threading.active_count()
    do(snapshot, tmp_path)
    with pytest.raises(MatchwrightError):
        do(snapshot, tmp_path / "other", block=50, stop=lambda done, total: "now" if done else None)
    until(lambda: threading.active_count() <= before, "the end of the threads")


def test_run_options_are_checked_against_the_policy(snapshot):
    small = Policy.parse("[budgets]\nk_max = 15\n")
    with pytest.raises(InvalidArgument, match=r"1\.\.15"):
        make_plan(snapshot, options(policy=small))
    assert isinstance(options(), RunOptions)
    assert OTHER["job"] == "freelancer"
