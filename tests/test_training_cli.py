"""train ranker, models promote and models rollback, as a user runs them."""

from __future__ import annotations

import contextlib
import datetime
import io
import json

import numpy as np
import polars as pl
import pytest
from training_cases import market_frame, with_own_features

from matchwright.engine import synthetic
from matchwright.engine.cli import main
from matchwright.engine.matcher import Matcher
from matchwright.engine.policy import Policy
from matchwright.engine.request import Request
from matchwright.engine.rerank.features import FEATURES, pair_features
from matchwright.engine.rerank.trees import Trees
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops

pytest.importorskip("lightgbm")
QUICK = ("--rounds", 60, "--leaves", 15, "--rows-in-leaf", 20, "--position-bias", "none")
SPLIT = "2024-12-23"
CORRECTED = (*QUICK[:-1], "randomised", "--split-at", SPLIT)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Decisions with the engine's own features."""
    path = tmp_path_factory.mktemp("log") / "decisions.parquet"
    with_own_features(market_frame(decisions=3_000, judged=1_000)).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Fewer decisions, where it does not matter what is learnt."""
    path = tmp_path_factory.mktemp("small") / "decisions.parquet"
    with_own_features(market_frame(decisions=500, judged=300)).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def made(log, tmp_path_factory):
    """(folder of a ranker that is better than the first phase, what the command said)."""
    folder = tmp_path_factory.mktemp("made") / "sub" / "ranker"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        words = ("train", "ranker", "--decisions", log, "-o", folder, *CORRECTED, "-f", "json")
        assert main([str(word) for word in words]) == 0
    return folder, json.loads(out.getvalue())


@pytest.fixture(scope="module")
def trained(made):
    """The folder of a ranker."""
    return made[0]


def test_a_ranker_is_trained_written_and_told_of(made):
    folder, told = made
    trees = Trees.load(folder)
    assert trees.features == tuple(one.name for one in FEATURES)
    assert told["content_hash"] == trees.content_hash
    assert told["data"]["split_at"] == SPLIT
    assert told["evaluation"] == trees.training["evaluation"]
    assert told["evaluation"]["metrics"]["ndcg@10"]["vs_first_phase"]["low"] > 0
    assert told["warnings"] == []
    assert [path.name for path in folder.parent.iterdir()] == ["ranker"]


def test_the_table_shows_figures_and_segments(small, run, tmp_path):
    code, out, _ = run("train", "ranker", "--decisions", small, "-o", tmp_path / "r", *QUICK, "-f",
                       "table", "--split-at", SPLIT)  # fmt: skip
    assert code == 0
    for word in (
        "ndcg@10",
        "recall@10",
        "map",
        "newcomer established",
        "category design",
        "importance:",
    ):
        assert word in out


def test_features_that_the_policy_does_not_list_are_left_out(small, run, tmp_path):
    loaded = Policy.load()
    code, out, _ = run("train", "ranker", "--decisions", small, "-o", tmp_path / "r", *QUICK, "-f",
                       "json")  # fmt: skip
    assert code == 0
    excluded = json.loads(out)["excluded"]
    assert excluded, "the shipped policy leaves some out"
    for name, fields in excluded.items():
        assert set(fields).isdisjoint(loaded.used)
        assert name not in Trees.load(tmp_path / "r").asked


def test_refused_rows_go_to_the_quarantine(small, run, tmp_path):
    frame = pl.read_parquet(small).with_columns(
        position=pl.when(pl.int_range(pl.len()) < 3).then(0).otherwise("position")
    )
    frame.write_parquet(tmp_path / "log.parquet")
    code, _, err = run("train", "ranker", "--decisions", tmp_path / "log.parquet", "-o",
                       tmp_path / "r", *QUICK, "--quarantine", tmp_path / "q.parquet")  # fmt: skip
    assert code == 0
    assert "refused 3 of 24,000 rows: out_of_range 3" in err
    assert pl.read_parquet(tmp_path / "q.parquet").height == 3


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--label", "clicked"), 2, "--label takes graded"),
        (("--position-bias", "magic"), 2, "--position-bias takes auto"),
        (("--split-at", "yesterday"), 2, "--split-at takes a date"),
        (("--split-at", "2001-01-01"), 3, "leaves nothing on one side"),
        (("--label", "success"), 3, "no outcome that counts"),
        (("--rounds", "0"), 2, "rounds takes 1"),
        (("--models", "nowhere"), 2, "no model repository"),
        (("--rows-max", "5"), 2, "more than 5 rows"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    small, run, tmp_path, words, code, message
):
    got, out, err = run(
        "train", "ranker", "--decisions", small, "-o", tmp_path / "r", *QUICK, *words
    )
    assert (got, out) == (code, "")
    assert message in err
    assert not (tmp_path / "r").exists()


def test_files_may_be_given_as_a_shell_s_pattern_gives_them(small, run, tmp_path):
    frame = pl.read_parquet(small)
    for part in range(3):
        rows = pl.col("decision_id").hash(0) % 3 == part
        frame.filter(rows).write_parquet(tmp_path / f"log-{part}.parquet")
    files = sorted(tmp_path.glob("log-*.parquet"))
    told = []
    for words in (files, [files[0], "--decisions", files[1], "--decisions", files[2]]):
        where = ("-o", tmp_path / f"r{len(told)}", "-f", "json")
        code, out, err = run(
            "train", "ranker", "--decisions", *words, *where, *QUICK, "--rounds", 5
        )
        assert code == 0, err
        told.append(json.loads(out))
    assert told[0]["data"]["rows"] == frame.height
    assert told[0]["data"] == told[1]["data"]


def test_a_folder_that_is_there_is_kept(small, run, tmp_path):
    (tmp_path / "r").mkdir()
    code, _, err = run("train", "ranker", "--decisions", small, "-o", tmp_path / "r", *QUICK)
    assert (code, "is there already" in err) == (2, True)


def test_ctrl_c_leaves_nothing(small, run, tmp_path, monkeypatch):
    def interrupted(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr("matchwright.engine.rerank.train.export_booster", interrupted)
    code, _, err = run("train", "ranker", "--decisions", small, "-o", tmp_path / "r", *QUICK)
    assert (code, "interrupted; no " in err) == (130, True)
    assert list(tmp_path.iterdir()) == []


def test_features_of_other_names_are_refused(run, tmp_path):
    market_frame(decisions=50, judged=20).with_columns(
        features_version=pl.lit(1, pl.Int32)
    ).write_parquet(tmp_path / "x.parquet")
    code, _, err = run("train", "ranker", "--decisions", tmp_path / "x.parquet", "-o",
                       tmp_path / "r", *QUICK)  # fmt: skip
    assert code == 3
    assert "does not compute: coverage" in err


def test_promote_switch_and_roll_back(trained, log, run, tmp_path):
    repo = tmp_path / "models"
    code, out, err = run("models", "promote", repo, "--candidate", trained, "--backend", "python",
                         "-f", "json")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["version"] == 1
    assert "[rerank] version = 1" in err
    assert "keep version" not in err  # there was none before
    assert Trees.load(repo / "ranker" / "1").content_hash == Trees.load(trained).content_hash

    second = tmp_path / "second"
    code, out, err = run("train", "ranker", "--decisions", log, "--models", repo, "-o", second,
                         *CORRECTED, "--seed", 3, "--leaves", 14,
                         "-f", "json")  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert told["version"] == 2
    assert told["evaluation"]["in_service"] == Trees.load(trained).content_hash
    assert "vs_in_service" in told["evaluation"]["metrics"]["ndcg@10"]

    code, out, err = run("models", "promote", repo, "--candidate", second)
    assert (code, out) == (6, "")
    assert "not better than the model in service beyond its interval" in err
    code, _, err = run("models", "promote", repo, "--candidate", second, "--force", "--reason",
                       "a drill")  # fmt: skip
    assert code == 0, err
    assert "keep version 1 loaded" in err
    lines = [json.loads(line) for line in (repo / "promotions.jsonl").read_text().splitlines()]
    assert [(one["version"], one["forced"], one["reason"]) for one in lines] == [
        (1, False, ""), (2, True, "a drill")
    ]  # fmt: skip

    code, out, err = run("models", "rollback", repo, "-f", "json")
    assert code == 0
    assert (json.loads(out)["version"], json.loads(out)["before"]) == (1, 2)
    assert sorted(path.name for path in (repo / "ranker").iterdir()) == ["1", "2", "config.pbtxt"]


def test_a_promotion_that_no_server_heard_of_says_how_to_go_on(trained, run, tmp_path):
    pytest.importorskip("tritonclient.grpc", reason="needs the extra [triton]")
    repo = tmp_path / "models"
    nobody = ("--triton", "127.0.0.1:1", "--timeout", 0.2)
    code, out, err = run("models", "promote", repo, "--candidate", trained, *nobody)
    assert (code, out) == (5, "")
    assert "version 1 is recorded, but was not loaded" in err
    assert "matchwright models load ranker --version 1 --server 127.0.0.1:1" in err
    assert len((repo / "promotions.jsonl").read_text().splitlines()) == 1


def test_promote_judges_anew_when_asked(trained, log, run, tmp_path):
    repo = tmp_path / "models"
    run("models", "promote", repo, "--candidate", trained, "--backend", "python")
    other = tmp_path / "other"
    code, _, err = run("train", "ranker", "--decisions", log, "-o", other, *QUICK, "--label",
                       "viewed", "--split-at", SPLIT)  # fmt: skip
    assert code == 0, err
    code, _, err = run("models", "promote", repo, "--candidate", other)
    assert code == 3
    assert "evaluate again with --decisions" in err
    code, _, err = run("models", "promote", repo, "--candidate", other, "--decisions", log)
    assert code == 6
    assert "not better than" in err


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop") / "shop"
    with Store.open(folder, mode="w", create=True) as store:
        for kind, n in (("freelancer", 300), ("job", 60)):
            with store.bulk(kind) as sink:
                for frame in synthetic.blocks(kind, n, block=2_048):
                    sink.write(frame)
        store.refit(seed=0, sample=300, as_of=synthetic.AS_OF)
    return folder


@pytest.fixture(scope="module")
def unjoined(shop, tmp_path_factory):
    """Decisions without features: jobs over ten days, each shown ten freelancers, some unknown."""
    rng = np.random.default_rng(0)
    with Store.open(shop) as store:
        snapshot = store.snapshot()
        jobs = snapshot.ids_of("job", np.arange(60))
        people = np.array(snapshot.ids_of("freelancer", np.arange(300)))
    rows = []
    for n in range(200):
        day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(days=n // 20)
        for place, who in enumerate(rng.choice(people, 10, replace=False).tolist(), 1):
            viewed = day if rng.random() < 0.5 else None
            rows.append({
                "decision_id": f"d{n}", "decided_at": day, "asking": "job",
                "query_id": "gone" if n == 7 else jobs[n % 60],
                "candidate_id": "nobody" if (n, place) == (8, 3) else who,
                "position": place, "first_rank": place, "viewed_at": viewed,
            })  # fmt: skip
    path = tmp_path_factory.mktemp("unjoined") / "log.parquet"
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    return path


def test_features_joined_from_a_store_are_those_of_the_pair(shop, unjoined):
    from matchwright.engine.rerank.decisions_join import joiner
    from matchwright.engine.rerank.decisions_read import read
    from matchwright.engine.rerank.features import FEATURES_VERSION

    names = tuple(one.name for one in FEATURES)
    with Store.open(shop) as store:
        snapshot = store.snapshot()
        matcher = Matcher(snapshot, Ops(threads=1), Policy.load())
        logged = read([unjoined], join=joiner(snapshot, matcher), joined=(names, FEATURES_VERSION))
        assert logged.refused == {"not_in_store": 11}
        assert logged.rows_read == 2_000
        frame = pl.read_parquet(unjoined).filter(pl.col("decision_id") == "d42")
        asked = Request(kind="job", id=frame["query_id"][0], as_of=int(logged.day_d[41]))
        wanted = pair_features(
            snapshot,
            [matcher.prepare_one(snapshot, asked)],
            [snapshot.rows_of("freelancer", frame["candidate_id"].to_list())],
        )
    here = slice(*logged.start_d[[41, 42]])
    np.testing.assert_array_equal(logged.f_nf[here], wanted)


def test_a_model_of_joined_features_says_so_everywhere(shop, unjoined, run, tmp_path):
    name = "FEATURES_NOT_POINT_IN_TIME"
    code, _, err = run("train", "ranker", "--decisions", unjoined, "-o", tmp_path / "r", *QUICK)
    assert code == 2
    assert "--store DIR" in err
    words = ("train", "ranker", "--decisions", unjoined, "--store", shop, *QUICK)
    for format_ in ("json", "csv", "table"):
        folder = tmp_path / format_
        code, out, err = run(*words, "-o", folder, "-f", format_)
        assert code == 0, err
        assert name in out
        assert name in err
        assert Trees.load(folder).training["warnings"] == [name]
    repo = tmp_path / "models"
    code, out, err = run("models", "promote", repo, "--candidate", folder, "--force", "--reason",
                         "a drill", "--backend", "python", "-f", "json")  # fmt: skip
    assert code == 0, err
    assert name in out
    assert name in err
    assert name in (repo / "promotions.jsonl").read_text()
