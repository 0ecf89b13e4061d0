"""The gate refuses what is not better, or worse for somebody; promotions are recorded."""

from __future__ import annotations

import copy
import json
import resource
import threading

import pytest
from tree_cases import FEATURES, booster_of

from matchwright.engine.errors import (
    FailedPrecondition,
    InvalidArgument,
    InvalidData,
    NotFound,
    StoreDamaged,
    VerificationFailed,
)
from matchwright.engine.models.repository import Repository
from matchwright.engine.rerank import gate, promotion
from matchwright.engine.rerank.export import export_booster, write_ranker

pytest.importorskip("lightgbm")
NOW = "2026-03-01T10:00:00+00:00"


def figure(model, other, low, high, name="first_phase"):
    difference = round(model - other, 6)
    return {"model": model, name: other, "decisions": 500,
            f"vs_{name}": {"difference": difference, "low": low, "high": high}}  # fmt: skip


def evaluation(in_service=None, **change):
    """Better than the first phase, and than the model in service when there is one."""
    overall = figure(0.8, 0.7, 0.05, 0.15)
    segments = {
        "newcomer": {"newcomer": figure(0.5, 0.49, -0.02, 0.04)},
        "country": {"DE": {"decisions": 3, "too_few": 50}},
    }
    if in_service is not None:
        overall |= figure(0.8, 0.75, 0.01, 0.09, "in_service")
    found = {"k": 10, "in_service": in_service, "metrics": {"ndcg@10": overall},
             "segments": segments}  # fmt: skip
    return found | change


def test_what_is_better_and_worse_for_nobody_passes():
    verdict = gate.judge(evaluation(), None)
    assert verdict.passed
    assert verdict.against == ("first_phase",)
    assert verdict.not_judged == ("country DE",)
    gate.refuse(verdict)
    assert gate.judge(evaluation("abc"), "abc").against == ("first_phase", "in_service")


@pytest.mark.parametrize("low", [0.0, -0.01])
def test_what_is_not_better_beyond_its_interval_is_refused_with_figures(low):
    found = evaluation(metrics={"ndcg@10": figure(0.71, 0.7, low, 0.03)})
    verdict = gate.judge(found, None)
    with pytest.raises(gate.GateRefused, match=r"0\.7100 against 0\.7000, \+0\.0100 \[") as error:
        gate.refuse(verdict)
    assert error.value.exit_code == VerificationFailed.exit_code == 6
    assert error.value.reason == "GATE_REFUSED"


def test_both_the_first_phase_and_the_model_in_service_are_to_be_beaten():
    found = evaluation("abc")
    found["metrics"]["ndcg@10"] |= figure(0.8, 0.8, -0.01, 0.01, "in_service")
    (text,) = gate.judge(found, "abc").refusals
    assert "not better than the model in service" in text
    found = evaluation("abc")
    found["metrics"]["ndcg@10"] |= figure(0.8, 0.79, -0.01, 0.03)
    (text,) = gate.judge(found, "abc").refusals
    assert "not better than the first phase" in text


@pytest.mark.parametrize(
    ("model", "high", "bound", "refused", "doubts"),
    [
        (0.45, -0.01, 0.02, 1, 0),
        (0.45, 0.01, 0.02, 0, 1),
        (0.48, -0.001, 0.02, 0, 0),
        (0.48, -0.001, 0.005, 1, 0),
        (0.52, 0.05, 0.0, 0, 0),
    ],
)
def test_a_segment_that_loses_more_than_the_bound_refuses(model, high, bound, refused, doubts):
    found = evaluation(segments={"newcomer": {"newcomer": figure(model, 0.49, -0.1, high)}})
    verdict = gate.judge(found, None, bound)
    assert (len(verdict.refusals), len(verdict.doubts)) == (refused, doubts)
    for text in (*verdict.refusals, *verdict.doubts):
        assert "newcomer 'newcomer' loses more than" in text


def test_an_evaluation_against_another_model_is_not_taken():
    for found, serving in (
        (evaluation("abc"), "xyz"),
        (evaluation(), "xyz"),
        (evaluation("a"), None),
    ):
        with pytest.raises(InvalidData, match="evaluate again with --decisions"):
            gate.judge(found, serving)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        None,
        {"k": 10},
        evaluation(metrics={"ndcg@10": []}),
        evaluation(metrics={"ndcg@10": {"vs_first_phase": {"low": "much"}}}),
        evaluation(metrics={"ndcg@10": {"vs_first_phase": {"low": -1}}}),
        evaluation(segments=[]),
        evaluation(segments={"newcomer": []}),
        evaluation(segments={"newcomer": {"newcomer": {"vs_first_phase": {"difference": -1}}}}),
    ],
)
def test_an_evaluation_that_is_none_is_not_taken(broken):
    with pytest.raises(InvalidData, match="holds no evaluation"):
        gate.judge(broken, None)


@pytest.fixture
def candidates(tmp_path):
    """``candidates(seed, evaluation)``: the folder of a trained ranker."""

    def make(seed, found):
        text, grid_bits = export_booster(booster_of(seed, rounds=3), FEATURES)
        folder = tmp_path / f"candidate-{seed}"
        write_ranker(folder, text, features=FEATURES, grid_bits=grid_bits, features_version=1,
                     version=1, training={"evaluation": found, "warnings": ["W"]})  # fmt: skip
        return folder

    return make


def promoted(repo, folder, **more):
    return promotion.promote(repo, folder, now=NOW, **more)


def test_a_promoted_ranker_is_the_next_version_and_recorded(tmp_path, candidates):
    repo = tmp_path / "models"
    assert promotion.in_service(repo) is None
    line = promoted(repo, candidates(1, evaluation()), backend="python")
    assert (line["version"], line["before"], line["forced"]) == (1, None, False)
    assert line["warnings"] == ["W"]
    first = promotion.in_service(repo)
    assert first.version == 1
    second = promoted(repo, candidates(2, evaluation(first.content_hash)))
    assert (second["version"], second["before"]) == (2, 1)
    assert second["verdict"]["figures"]["ndcg@10"]["vs_in_service"]["low"] == 0.01
    assert Repository.open(repo).versions("ranker") == (1, 2)
    assert promotion.record(repo) == [line, second]


def test_a_refused_ranker_leaves_the_repository_as_it_was(tmp_path, candidates):
    repo = tmp_path / "models"
    promoted(repo, candidates(1, evaluation()), backend="python")
    serving = promotion.in_service(repo).content_hash
    worse = evaluation(serving)
    worse["metrics"]["ndcg@10"] |= figure(0.7, 0.75, -0.09, -0.01, "in_service")
    folder = candidates(2, worse)
    with pytest.raises(gate.GateRefused, match="Train a better one, or force it"):
        promoted(repo, folder)
    assert Repository.open(repo).versions("ranker") == (1,)
    assert len(promotion.record(repo)) == 1
    line = promoted(repo, folder, force=True, reason="the old one reads a field we must not")
    assert line["forced"] is True
    assert line["reason"] == "the old one reads a field we must not"
    assert not line["verdict"]["passed"]
    assert promotion.in_service(repo).version == 2


def test_a_refused_ranker_makes_no_repository(tmp_path, candidates):
    worse = evaluation()
    worse["metrics"]["ndcg@10"] |= figure(0.7, 0.75, -0.09, -0.01, "first_phase")
    with pytest.raises(gate.GateRefused, match="not better than the first phase"):
        promoted(tmp_path / "mistyped", candidates(1, worse), backend="python")
    assert not (tmp_path / "mistyped").exists()


@pytest.mark.parametrize(("force", "reason"), [(True, ""), (True, "  "), (False, "because")])
def test_force_and_reason_go_together(tmp_path, candidates, force, reason):
    with pytest.raises(InvalidArgument, match="go together"):
        promoted(tmp_path / "m", candidates(1, evaluation()), force=force, reason=reason)


def test_without_an_evaluation_only_force_promotes(tmp_path, candidates):
    repo, folder = tmp_path / "models", candidates(1, None)
    with pytest.raises(InvalidData, match="holds no evaluation"):
        promoted(repo, folder)
    line = promoted(repo, folder, force=True, reason="made by hand", backend="python")
    assert "not judged" in line["verdict"]["refusals"][0]
    assert line["forced"] is True


def test_what_serves_is_not_promoted_again(tmp_path, candidates):
    repo, folder = tmp_path / "models", candidates(1, evaluation())
    promoted(repo, folder, backend="python")
    with pytest.raises(FailedPrecondition, match=r"in service already \(version 1\)"):
        promoted(repo, folder)


def test_an_attempt_that_died_before_its_record_is_taken_up(tmp_path, candidates):
    repo, folder = tmp_path / "models", candidates(1, evaluation())
    promoted(repo, folder, backend="python")
    other = candidates(2, evaluation(promotion.in_service(repo).content_hash))
    promoted(repo, other)
    text = (repo / promotion.RECORD).read_text().splitlines(keepends=True)
    (repo / promotion.RECORD).write_text(text[0])
    assert promotion.in_service(repo).version == 1
    assert promoted(repo, other)["version"] == 2
    assert Repository.open(repo).versions("ranker") == (1, 2)


def test_a_first_attempt_that_died_before_its_record_is_taken_up(tmp_path, candidates):
    repo, folder = tmp_path / "models", candidates(1, evaluation())
    line = promoted(repo, folder, backend="python")
    (repo / promotion.RECORD).unlink()
    assert promoted(repo, folder) == line
    assert promotion.record(repo) == [line]
    assert Repository.open(repo).versions("ranker") == (1,)


def test_rolling_back_names_the_version_before_and_removes_nothing(tmp_path, candidates):
    repo = tmp_path / "models"
    for seed in (1, 2, 3):
        serving = promotion.in_service(repo)
        found = evaluation(None if serving is None else serving.content_hash)
        promoted(repo, candidates(seed, found), backend="python")
    line = promotion.rollback(repo, now=NOW, reason="worse in the evening")
    assert (line["action"], line["version"], line["before"]) == ("rollback", 2, 3)
    assert promotion.in_service(repo).version == 2
    assert promotion.rollback(repo, now=NOW)["version"] == 1
    with pytest.raises(FailedPrecondition, match="no ranker that was in service before"):
        promotion.rollback(repo, now=NOW)
    assert promotion.rollback(repo, now=NOW, to=3)["version"] == 3
    assert Repository.open(repo).versions("ranker") == (1, 2, 3)
    with pytest.raises(NotFound):
        promotion.rollback(repo, now=NOW, to=9)
    with pytest.raises(NotFound):
        promotion.rollback(tmp_path / "nothing", now=NOW)


def test_a_damaged_record_is_named(tmp_path, candidates):
    repo, folder = tmp_path / "models", candidates(1, evaluation())
    promoted(repo, folder, backend="python")
    with (repo / promotion.RECORD).open("a") as file:
        file.write('{"action": "promote", "ver')
    with pytest.raises(StoreDamaged, match=r"promotions\.jsonl, line 2"):
        promotion.in_service(repo)


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[" * 100_000, b"[]", b"7"])
def test_a_line_of_anything_is_named(tmp_path, candidates, line):
    repo = tmp_path / "models"
    promoted(repo, candidates(1, evaluation()), backend="python")
    with (repo / promotion.RECORD).open("ab") as file:
        file.write(line)
    with pytest.raises(StoreDamaged, match=r"promotions\.jsonl, line 2"):
        promotion.in_service(repo)


@pytest.mark.parametrize("reason", ["one\u2028two\x85three\x1cfour", "\udcff is no UTF-8"])
def test_a_reason_of_any_characters_is_read_again(tmp_path, candidates, reason):
    repo = tmp_path / "models"
    line = promoted(repo, candidates(1, None), force=True, reason=reason, backend="python")
    back = promotion.rollback(repo, now=NOW, to=1, reason=reason)
    assert [line["reason"], back["reason"]] == [reason, reason]
    assert promotion.record(repo) == [line, back]


def test_a_record_without_its_last_newline_goes_on(tmp_path, candidates):
    repo = tmp_path / "models"
    first = promoted(repo, candidates(1, evaluation()), backend="python")
    path = repo / promotion.RECORD
    path.write_bytes(path.read_bytes().rstrip())
    second = promotion.rollback(repo, now=NOW, to=1)
    assert promotion.record(repo) == [first, second]


@pytest.mark.parametrize("room", [0, 1, 40])
def test_a_disk_that_is_full_leaves_the_record_as_it_was(tmp_path, candidates, room):
    repo = tmp_path / "models"
    first = promoted(repo, candidates(1, evaluation()), backend="python")
    path = repo / promotion.RECORD
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, hard))
    try:
        with pytest.raises(OSError, match=promotion.RECORD):
            promotion.rollback(repo, now=NOW, to=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    second = promotion.rollback(repo, now=NOW, to=1)
    assert promotion.record(repo) == [first, second]


def test_two_promotions_at_once_are_two_versions_or_one_refusal(tmp_path, candidates):
    repo = tmp_path / "models"
    folders = [candidates(seed, evaluation()) for seed in (1, 2)]
    outcomes = []

    def go(folder):
        try:
            outcomes.append(promoted(repo, folder, backend="python")["version"])
        except InvalidData as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=go, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The second finds the first in service, with which its evaluation does not compare.
    assert sorted(map(str, outcomes)) == sorted(map(str, [1, InvalidData]))
    assert len(promotion.record(repo)) == 1


def test_the_record_is_plain_json(tmp_path, candidates):
    repo = tmp_path / "models"
    found = evaluation()
    before = copy.deepcopy(found)
    line = promoted(repo, candidates(1, found), backend="python")
    assert json.loads((repo / promotion.RECORD).read_text()) == line
    assert found == before
