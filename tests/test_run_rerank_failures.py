"""A run whose model is down, late or wrong: it waits, ends with code 5, or marks what it could not
ask, when told so; never half of a unit."""

from __future__ import annotations

import threading
import time

import polars as pl
import pytest
import run_rerank_cases as cases
from rerank_cases import FAILURES, FakeServer
from run_rerank_cases import K

from matchwright.engine.errors import DeadlineExceeded, ModelUnavailable, ModelWrong
from matchwright.engine.runs.execute import LocalExecutor, run
from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.publish import Thresholds, publish
from matchwright.engine.runs.rerank_stage import RerankStage
from matchwright.engine.runs.verify import SOUND, verify
from matchwright.engine.store import Store

DOWN = [mode for mode, why in FAILURES.items() if why not in ("WRONG_OUTPUT", "FAILED")]
WRONG = [mode for mode, why in FAILURES.items() if why == "WRONG_OUTPUT"]
BLOCK = 40


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    folder = cases.make_store(tmp_path_factory.mktemp("run-rerank-failures") / "store", 120, 90)
    with Store.open(folder) as opened:
        yield opened.snapshot()


@pytest.fixture(scope="module")
def trees(snapshot):
    return cases.trees_of(snapshot)


@pytest.fixture(scope="module")
def wanted(snapshot, trees, tmp_path_factory):
    """The digest of the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("wanted")
    return cases.do(snapshot, folder, cases.ranker_of(trees), kinds=("job",), block=BLOCK)[1]


class Failing(FakeServer):
    """Right for some calls, then it fails in a certain way, then it is right again."""

    def __init__(self, trees, mode, after=1, times=1_000_000):
        super().__init__(trees)
        self.failure, self.after, self.left = mode, after, times

    def infer_blocking(self, *given, **more):
        if len(self.calls) >= self.after and self.left:
            self.left -= 1
            self.mode = self.failure
        else:
            self.mode = "right"
        return super().infer_blocking(*given, **more)


def do(snapshot, output, trees, server, **more):
    ranker = cases.ranker_of(trees, server)
    return cases.do(snapshot, output, ranker, **{"kinds": ("job",), "block": BLOCK, **more})


def files_of(output):
    """What is in the only run, by name."""
    (name,) = Output(output).runs()
    folder = Output(output).folder(name)
    return folder, sorted(folder.list())


# ── It ends with code 5 ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", [*DOWN, *WRONG])
def test_a_model_that_fails_for_good_ends_the_run_and_keeps_what_is_done(
    snapshot, trees, wanted, tmp_path, mode
):
    with pytest.raises((ModelUnavailable, ModelWrong)) as failed:
        do(snapshot, tmp_path, trees, Failing(trees, mode), wait_s=0.3)
    assert failed.value.exit_code == 5
    assert isinstance(failed.value, ModelWrong) == (mode in WRONG)
    assert "finished units are kept" in str(failed.value)
    if mode in DOWN:
        assert failed.value.details["why"] == FAILURES[mode]
    folder, names = files_of(tmp_path)
    assert [name for name in names if "unit-" in name] == ["for=job/unit-00000.json"]
    assert not [name for name in names if "00001" in name]
    assert folder.summary() is None
    _, summary = do(snapshot, tmp_path, trees, FakeServer(trees))
    assert summary["digest"] == wanted["digest"]


def test_a_defect_is_not_waited_for(snapshot, trees, tmp_path):
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="a defect"):
        do(snapshot, tmp_path, trees, Failing(trees, "defect"), wait_s=60)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("mode", ["late", "unreachable", "breaker", "not ready", "nan"])
def test_a_model_that_comes_back_is_waited_for(snapshot, trees, wanted, tmp_path, mode):
    events = []
    server = Failing(trees, mode, times=2)
    _, summary = do(snapshot, tmp_path, trees, server, wait_s=60, progress=events.append)
    assert summary["digest"] == wanted["digest"]
    assert (summary["degraded"], server.left) == (0, 0)
    names = [event.name for event in events]
    assert names.count("waiting") == 1
    assert names.count("answers") == 1
    waiting = next(event for event in events if event.name == "waiting")
    assert waiting.fields["why"] == FAILURES[mode]
    assert waiting.fields["model"] == "ranker:3"


@pytest.mark.parametrize("soon", ["stop", "interrupt"])
def test_waiting_can_be_ended(snapshot, trees, tmp_path, soon):
    """By --finish-by and SIGTERM through ``stop``; by Ctrl-C, which is seen on the main thread."""
    waiting = threading.Event()

    def stop(done, total):
        return "SIGTERM" if waiting.is_set() and soon == "stop" else None

    def told(event):
        if event.name == "waiting":
            waiting.set()

    def executor(plan):
        return _Interrupted(LocalExecutor(cases.OPS, snapshot, plan), waiting, soon)

    began = time.monotonic()
    server = Failing(trees, "unreachable", after=0)
    error = DeadlineExceeded if soon == "stop" else KeyboardInterrupt
    with pytest.raises(error):
        do(snapshot, tmp_path, trees, server, wait_s=600, progress=told, stop=stop,
           executor=executor)  # fmt: skip
    assert time.monotonic() - began < 60
    assert not [name for name in files_of(tmp_path)[1] if "unit-" in name]


class _Interrupted:
    """A local executor on whose second unit somebody presses Ctrl-C."""

    def __init__(self, inner, waiting, soon):
        self.inner, self.waiting, self.soon = inner, waiting, soon
        self.about = inner.about

    def answers(self, todo):
        for n, answer in enumerate(self.inner.answers(todo)):
            if n == 1 and self.soon == "interrupt":
                assert self.waiting.wait(60)
                raise KeyboardInterrupt
            yield answer


def test_a_plan_with_a_model_is_not_done_without_it(snapshot, trees, tmp_path):
    plan = cases.plan_of(snapshot, cases.ranker_of(trees), kinds=("job",))
    folder = Output(tmp_path).folder(plan.run_id)
    with pytest.raises(ValueError, match="needs ranker:3"):
        run(plan, folder, LocalExecutor(cases.OPS, snapshot, plan), snapshot=snapshot)
    with pytest.raises(Exception, match="planned with ranker:3 of content"):
        RerankStage(plan, cases.ranker_of(cases.trees_of(snapshot, seed=5)))


# ── Told to go on ─────────────────────────────────────────────────────────────────────────────


def rows(folder, what):
    return pl.concat([folder.frame(unit, what) for unit in folder.plan().units])


@pytest.mark.parametrize("mode", ["unreachable", "late", "another model"])
def test_degraded_units_are_whole_marked_and_counted(snapshot, trees, tmp_path, mode):
    server = Failing(trees, mode, after=1, times=3)
    folder, summary = do(snapshot, tmp_path, trees, server, allow_degraded=True)
    queries, part = rows(folder, "queries"), rows(folder, "part")
    asked = queries.filter(pl.col("returned") > 0)
    units = folder.plan().units
    marked = [
        folder.queries(unit).filter(pl.col("returned") > 0)["degraded"].to_list() for unit in units
    ]
    assert set(marked[0]) == {None}
    assert set(marked[1]) == {FAILURES[mode]}
    assert all(len(set(one)) == 1 for one in marked)
    degraded = asked["degraded"].count()
    assert summary["degraded"] == degraded == summary["rerank"]["degraded"]["job"][FAILURES[mode]]
    plain = part.join(queries.filter(pl.col("degraded").is_not_null()), on="query_key", how="semi")
    assert plain["model_score"].null_count() == plain.height > 0
    assert plain["first_rank"].equals(plain["rank"].rename("first_rank"))
    others = part.join(plain, on="query_key", how="anti")
    assert others["model_score"].null_count() == 0
    verdict = verify(folder, snapshot, sample=20, trees=trees)
    assert verdict.verdict == SOUND, verdict.figures()


def test_after_the_wait_is_over_each_unit_asks_once_and_a_model_that_is_back_is_used(
    snapshot, trees, tmp_path
):
    server = Failing(trees, "unreachable", after=0, times=2)
    _, summary = do(snapshot, tmp_path, trees, server, allow_degraded=True, wait_s=0)
    assert server.left == 0
    assert 0 < summary["degraded"] <= 2 * BLOCK
    reranked = [unit for unit in summary["units"] if not unit["degraded"]]
    assert len(reranked) == len(summary["units"]) - 2


def test_publishing_refuses_degraded_queries_unless_its_limit_says_so(snapshot, trees, tmp_path):
    server = Failing(trees, "unreachable", after=1)
    folder, summary = do(snapshot, tmp_path, trees, server, allow_degraded=True)
    n = summary["degraded"]

    def put(most):
        return publish(
            Output(tmp_path),
            folder.run_id,
            verify=lambda one: verify(one, snapshot, sample=5, trees=trees),
            thresholds=Thresholds(degraded=most),
            now="2026-01-01T00:00:00Z",
        )

    assert put(0).refused == [f"degraded is {n}, at most 0"]
    assert put(n - 1).refused == [f"degraded is {n}, at most {n - 1}"]
    assert put(n).published


def test_k_is_the_smaller_one(snapshot, trees, wanted):
    """The cases above say something only if answers are cut."""
    assert wanted["counts"]["job"]["rows"] > K * 10
