"""match, explain and store on a small marketplace: every format, in-process and over gRPC."""

from __future__ import annotations

import csv
import io
import json

import polars as pl
import pytest

from matchwright.engine import synthetic
from matchwright.engine.store import Store

DAY = "2026-01-01"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A store of 1,500 freelancers and 120 jobs, fitted."""
    folder = tmp_path_factory.mktemp("cli") / "shop"
    with Store.open(folder, mode="w", create=True) as store:
        for kind, n in (("freelancer", 1_500), ("job", 120)):
            with store.bulk(kind) as sink:
                for frame in synthetic.blocks(kind, n, block=2_048):
                    sink.write(frame)
        store.refit(seed=0, sample=1_500, as_of=synthetic.AS_OF)
    return folder


@pytest.fixture(scope="module")
def server(shop):
    from matchwright.engine.config import ServerConfig
    from matchwright.engine.service import running

    with running(ServerConfig(stores={"default": shop}, port=0)) as address:
        yield address


@pytest.fixture(scope="module")
def job(shop):
    """A job for which many are eligible."""
    from matchwright.engine.cli._local import local
    from matchwright.engine.cli._source import Device
    from matchwright.engine.request import Request

    with local(shop, None, Device.NUMPY) as source:
        for (name,) in source.ids("job", 1):
            found = source.match(Request(kind="job", id=name, as_of=synthetic.AS_OF))
            if found.eligible > 50:
                return name
    raise AssertionError("no job that suits the tests")


def _match(run, *argv):
    code, out, err = run("match", *argv, "--as-of", DAY, "--format", "json")
    assert code == 0, err
    return json.loads(out)


def test_one_job(run, shop, job):
    answer = _match(run, "--store", shop, "--job", job, "-k", 7)
    assert (answer["kind"], answer["query_id"], answer["returned"]) == ("job", job, 7)
    assert answer["as_of"] == synthetic.AS_OF
    scores = [match["score"] for match in answer["matches"]]
    assert scores == sorted(scores, reverse=True)
    for match in answer["matches"]:
        assert sum(match["contributions"].values()) == match["points"]


def test_a_pipe_gets_lines_and_a_file_its_format(run, shop, job, tmp_path):
    line = ["match", "--store", shop, "--job", job, "--as-of", DAY]
    assert json.loads(run(*line)[1])["query_id"] == job
    code, out, _ = run(*line, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 11)]
    assert run(*line, "-o", tmp_path / "m.parquet")[1] == ""
    frame = pl.read_parquet(tmp_path / "m.parquet")
    assert frame["id"].to_list() == [row["id"] for row in rows]
    facets = [name for name in frame.columns if name.startswith("points_")]
    assert frame.select(pl.sum_horizontal(facets)).to_series().equals(frame["points"])


def test_a_table_tells_the_certificate(run, shop, job):
    _, out, _ = run("match", "--store", shop, "--job", job, "--as-of", DAY, "-f", "table")
    assert f"job {job}: 10 of " in out
    assert "as of 2026-01-01" in out
    assert "best conceivable" in out


def test_a_server_gives_the_same_answer(run, shop, server, job):
    for query in (["--job", job, "-k", 20], ["--freelancer", "f-0000007", "--weight", "rate=2"]):
        here = _match(run, "--store", shop, *query)
        there = _match(run, "--server", server, *query)
        assert here["digest"] == there["digest"]
        for answer in (here, there):
            del answer["telemetry"]
        assert here == there


def test_options_reach_the_matcher(run, shop, job, tmp_path):
    plain = _match(run, "--store", shop, "--job", job)
    ids = [match["id"] for match in plain["matches"]]
    without = _match(run, "--store", shop, "--job", job, "--exclude", ids[0])
    assert [match["id"] for match in without["matches"]][:9] == ids[1:]
    (tmp_path / "ids").write_text("\n".join(ids[3:5]))
    only = _match(run, "--store", shop, "--job", job, "--candidates", f"@{tmp_path / 'ids'}")
    assert [match["id"] for match in only["matches"]] == ids[3:5]
    cut = _match(run, "--store", shop, "--job", job, "--min-score", plain["matches"][4]["score"])
    assert cut["returned"] == 5
    other = _match(run, "--store", shop, "--job", job, "--weight", "recency=3")
    assert other["policy"] != plain["policy"]


def test_an_inline_job(run, shop, job, tmp_path):
    record = tmp_path / "job.json"
    record.write_text(json.dumps({"title": "React developer", "skills": [{"name": "React"}]}))
    answer = _match(run, "--store", shop, "--inline", record)
    assert answer["query_id"] is None
    assert answer["returned"] == 10
    record.write_text(json.dumps({"titel": "React developer"}))
    code, _, err = run("match", "--store", shop, "--inline", record, "--as-of", DAY)
    assert code in {2, 3}
    assert "title" in err


@pytest.mark.parametrize("kind", ["job", "freelancer"])
def test_all_of_a_kind(run, shop, tmp_path, kind):
    out = tmp_path / "all.jsonl"
    code, _, err = run(
        "match", "--store", shop, f"--all-{kind}s", "-k", 3, "--as-of", DAY, "-o", out
    )
    assert code == 0, err
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    expected = {"job": 120, "freelancer": 1_500}[kind]
    assert len({answer["query_id"] for answer in answers}) == len(answers) == expected
    assert len({answer["epoch"] for answer in answers}) == 1
    assert "queries, 0 of them failed" in err
    one = answers[17]
    alone = _match(run, "--store", shop, f"--{kind}", one["query_id"], "-k", 3)
    assert alone["digest"] == one["digest"]


def test_all_in_other_formats(run, shop):
    line = ["match", "--store", shop, "--all-jobs", "-k", 2, "--as-of", DAY]
    assert len(json.loads(run(*line, "-f", "json")[1])) == 120
    assert run(*line, "-f", "table")[1].count("\n") >= 120
    assert run(*line, "-f", "csv")[1].startswith("query_kind,query_id,rank,id,score,points,")


def test_interrupted_in_the_middle_says_what_was_kept(run, shop, tmp_path, monkeypatch):
    from matchwright.engine.cli import _local, match

    monkeypatch.setattr(match, "BATCH", 50)
    real = _local.Local.match_many
    calls = []

    def interrupted(self, requests):
        calls.append(len(requests))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, requests)

    monkeypatch.setattr(_local.Local, "match_many", interrupted)
    out = tmp_path / "all.jsonl"
    code, _, err = run("match", "--store", shop, "--all-jobs", "--as-of", DAY, "-o", out)
    assert code == 130
    assert "the first 50 answers are in" in err
    assert not out.exists()
    assert (tmp_path / "all.jsonl.part").read_text().count("\n") == 50


def test_some_that_fail_are_partly_done(run, shop, monkeypatch):
    from matchwright.engine.cli import _local
    from matchwright.engine.errors import NotFound

    real = _local.Local.match_many

    def some_fail(self, requests):
        answers = list(real(self, requests))
        answers[0] = NotFound("it has just been deleted")
        return answers

    monkeypatch.setattr(_local.Local, "match_many", some_fail)
    for form in ("json", "table"):
        code, out, err = run(
            "match", "--store", shop, "--all-jobs", "--as-of", DAY, "--format", form
        )
        assert code == 4
        assert "1 of them failed" in err
        assert "it has just been deleted" in out


def test_explanations(run, shop, server, job):
    best = _match(run, "--store", shop, "--job", job)["matches"][0]
    line = ["--job", job, "--freelancer", best["id"], "--as-of", DAY]
    told = json.loads(run("explain", "--store", shop, *line, "-f", "json")[1])
    assert (told["eligible"], told["rank"], told["points"]) == (True, 1, best["points"])
    code, out, _ = run("explain", "--server", server, *line, "--format", "table")
    assert code == 0
    assert "rank 1 of " in out
    assert "skills" in out
    rows = list(csv.DictReader(io.StringIO(run("explain", "--store", shop, *line, "-f", "csv")[1])))
    assert {row["facet"]: int(row["points"]) for row in rows} == best["contributions"]


def test_why_not(run, shop, job):
    """Somebody outside the list is refused with reasons; a client sees no numbers."""
    everybody = [f"f-{n:07d}" for n in range(400)]
    for name in everybody:
        line = ["--job", job, "--freelancer", name, "--as-of", DAY]
        told = json.loads(run("explain", "--store", shop, *line, "-f", "json")[1])
        if not told["eligible"]:
            break
    assert told["vetoes"]
    out = run("explain", "--store", shop, *line, "-f", "table")[1]
    assert "not eligible" in out
    assert told["vetoes"][0]["reason"] in out
    seen = run("explain", "--store", shop, *line, "--audience", "client", "-f", "json")[1]
    assert json.loads(seen)["points"] is None
    assert run("explain", "--store", shop, *line, "--audience", "client", "-f", "table")[0] == 0


@pytest.mark.parametrize(
    ("argv", "code", "hint"),
    [
        (["--job", "nobody"], 2, "nobody"),
        (["--job", "j-0000000", "-k", "0"], 2, "k"),
        (["--job", "j-0000000", "-k", "1001"], 2, "1,000"),
        (["--job", "j-0000000", "--weight", "skils=1"], 2, "skills"),
        (["--job", "j-0000000", "--as-of", "1969-12-31"], 2, "as_of"),
        (["--job", "j" * 200], 2, "128"),
        (["--job", ""], 2, "id"),
        (["--job", "j-0000000", "--exclude", ""], 2, "exclude_ids"),
        (["--job", "\udcff"], 2, "\\udcff"),
    ],
)
def test_requests_that_are_wrong(run, shop, server, argv, code, hint):
    for where in (["--store", shop], ["--server", server]):
        got, out, err = run("match", *where, "--as-of", DAY, *argv)
        assert (got, out) == (code, ""), err
        assert hint in err
        assert err.count("\n") == 1


def test_no_gpu_is_five(run, shop, job):
    from matchwright.kernels.cupy_ops import no_device_reason

    if no_device_reason() is None:
        pytest.skip("there is a CUDA device here")
    for line in (["match", "--job", job], ["serve"]):
        code, _, err = run(*line, "--store", shop, "--device", "gpu")
        assert code == 5
        assert "doctor" in err


def test_no_server_is_five(run):
    code, _, err = run("match", "--server", "127.0.0.1:1", "--job", "j", "--timeout", "5")
    assert code == 5
    assert "matchwright serve" in err


def test_a_server_decides_some_things_itself(run, server, shop, tmp_path):
    for extra in (["--policy", "p.toml"], ["--device", "cpu"], ["--all-jobs"]):
        whom = [] if extra == ["--all-jobs"] else ["--job", "j"]
        assert run("match", "--server", server, *whom, *extra)[0] == 2
    assert run("match", "--store", shop, "--job", "j", "--timeout", "5")[0] == 2
    assert run("match", "--server", server, "--job", "j", "--marketplace", "other")[0] == 2


def test_store_info(run, shop):
    code, out, _ = run("store", "info", "--store", shop)
    told = json.loads(out)
    assert code == 0
    assert told["kinds"]["job"]["records"] == 120
    table = run("store", "info", "--store", shop, "-f", "table")[1]
    assert "kinds.freelancer.records" in table
    assert "1,500" in table
    assert run("store", "info", "--store", shop, "-f", "csv")[0] == 0


def test_store_verify(run, shop):
    code, out, _ = run("store", "verify", "--store", shop)
    assert code == 0
    assert json.loads(out)["sound"] is True


def test_store_refit(run, tmp_path):
    folder = tmp_path / "small"
    with Store.open(folder, mode="w", create=True) as store:
        store.upsert("freelancer", synthetic.frame("freelancer", 60, block=64))
        store.upsert("job", synthetic.frame("job", 20, block=64))
    line = ["store", "refit", "--store", folder, "--as-of", DAY, "-f", "json"]
    first = json.loads(run(*line)[1])
    again = json.loads(run(*line)[1])
    assert first["generation"] == again["generation"] != first["replaces"]
    assert run(*line, "--sample", "0")[0] == 2
    assert run(*line, "--seed", "-1")[0] == 2


def test_a_second_writer_is_told_to_wait(run, tmp_path):
    folder = tmp_path / "busy"
    with Store.open(folder, mode="w", create=True):
        code, _, err = run("store", "refit", "--store", folder, "--wait", 0)
    assert code == 75
    assert err
