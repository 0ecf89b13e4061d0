"""Import as a whole: every row of every file is accounted for."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import re
import subprocess
import sys
from collections import Counter

import polars as pl
import pytest

from matchwright.engine.errors import InvalidArgument, InvalidData, NotFound
from matchwright.engine.records import SCHEMAS, ingest, to_frame
from matchwright.engine.records.dry_run import DryRun
from matchwright.engine.records.ingest import Sink
from matchwright.engine.records.maps import parse_map

REAL = {
    "upwork_jobs": ("job", "upwork_jobs.jsonl"),
    "freelancercom_profiles": ("freelancer", "freelancercom_profiles.csv"),
    "freelancers_resampled": ("freelancer", "freelancers_resampled.csv"),
    "candidates": ("freelancer", "job_views/candidates.jsonl"),
    "jobs": ("job", "job_views/jobs.csv"),
    "views_train": ("freelancer", "job_views/views_train.csv"),
    "esco_titles_dev": ("job", "esco_titles_dev.csv"),
    "onet_technology_skills": ("job", "onet_technology_skills.tsv"),
}


class Keep(DryRun):
    """A sink that also keeps the newest record of every id."""

    def __init__(self) -> None:
        super().__init__()
        self.by_id: dict[str, dict] = {}
        self.frames = 0

    def write(self, records):
        assert records["id"].n_unique() == records.height
        assert records.schema in SCHEMAS.values()
        self.frames += 1
        self.by_id |= {record["id"]: record for record in records.iter_rows(named=True)}
        return super().write(records)


@pytest.fixture
def closed():
    """``closed(sink)`` is the sink, which is closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda sink: stack.enter_context(contextlib.closing(sink))


def raw_rows(path):
    """The rows of a file, read without the engine."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


# ── Real files ────────────────────────────────────────────────────────────────────────────────


def test_every_map_belongs_to_a_file(repo_root):
    maps = {path.stem for path in (repo_root / "examples" / "maps").glob("*.toml")}
    assert maps == set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_accounted_for(name, shared_data, repo_root, tmp_path, count, closed):
    kind, file = REAL[name]
    path = shared_data / file
    record_map = repo_root / "examples" / "maps" / f"{name}.toml"
    sink: Sink = closed(DryRun())
    target = tmp_path / "q.parquet"
    report = ingest.read(kind, [path], record_map, sink=sink, quarantine=target)
    (found,) = report.files
    assert found.read == len(raw_rows(path))
    assert found.read == found.accepted + found.replaced + found.duplicate + found.quarantined
    assert found.quarantined == (pl.read_parquet(target).height if target.exists() else 0)
    assert found.quarantined == found.replaced == found.duplicate == 0
    assert found.bytes == path.stat().st_size
    if name == "upwork_jobs" and not count(reduced=0, full=1):
        return  # 3 s of texts
    again = ingest.read(kind, [path], record_map, sink=sink)
    assert (again.duplicate, again.read) == (found.read, found.read)


def test_profiles_agree_with_the_raw_file(shared_data, repo_root, closed):
    path = shared_data / "freelancercom_profiles.csv"
    sink = closed(Keep())
    ingest.read(
        "freelancer", [path], repo_root / "examples/maps/freelancercom_profiles.toml", sink=sink
    )
    rows = raw_rows(path)
    assert set(sink.by_id) == {row["freelancer_id"] for row in rows}
    for row in rows:
        got = sink.by_id[row["freelancer_id"]]
        assert got["rate_cents"] == round(float(row["rate_usd"]) * 100)
        assert got["reviews"] == int(row["reviews"])
        assert got["rating_milli"] == (round(float(row["rating"]) * 1_000) or None)
        history = row["reviews"] != "0" or row["on_time"] != "0"
        assert got["success_permille"] == (int(row["on_time"]) * 10 if history else None)
        assert len(got["country"]) == 2
        assert len(got["skills"]) == len(row["skills"].split("|"))
        assert (got["joined"] is None) == (row["joined"] == "")


def test_posts_agree_with_the_raw_file(shared_data, repo_root, closed):
    path = shared_data / "upwork_jobs.jsonl"
    sink = closed(Keep())
    report = ingest.read("job", [path], repo_root / "examples/maps/upwork_jobs.toml", sink=sink)
    levels = {"Entry": "ENTRY", "Entry Level": "ENTRY", "Intermediate": "INTERMEDIATE"}
    for row in raw_rows(path):
        got = sink.by_id[row["job_id"]]
        for theirs, ours, kind in (
            ("rate_min", "rate_min_cents", "hourly"),
            ("rate_max", "rate_max_cents", "hourly"),
            ("budget", "fixed_cents", "fixed"),
        ):
            known = row[theirs] is not None and row["type"] == kind
            assert got[ours] == (round(row[theirs] * 100) if known else None)
        level = row["level"]
        assert got["experience_level"] == (level and levels.get(level, "EXPERT"))
        assert (got["country"] is None) == (row["country"] is None)
        assert "@" not in (got["text"] or "") or not re.search(r"\w@\w+\.\w", got["text"])
        assert "http" not in (got["text"] or "") or not re.search(r"https?://\w", got["text"])
    assert report.files[0].fields["skills"].unknown == 1
    assert report.files[0].fields["text"].changed > 1_000


def test_merged_rows_agree_with_the_raw_file(shared_data, repo_root, closed):
    path = shared_data / "onet_technology_skills.tsv"
    sink = closed(Keep())
    report = ingest.read(
        "job", [path], repo_root / "examples/maps/onet_technology_skills.toml", sink=sink
    )
    by_code = Counter(row["O*NET-SOC Code"] for row in raw_rows(path))
    assert report.files[0].records == len(by_code) == len(sink.by_id)
    for code, rows in by_code.items():
        assert 0 < len(sink.by_id[f"onet-{code}"]["skills"]) <= rows + 2


# ── Files made here ───────────────────────────────────────────────────────────────────────────


def write(path, text, packed=False):
    content = text.encode("utf-8")
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def test_what_becomes_of_rows(tmp_path, closed):
    path = write(tmp_path / "a.csv", "id,title\n1,a\n2,b\n1,a\n1,c\n,d\n\n2,b\n1,a\n")
    sink = closed(Keep())
    report = ingest.read("job", [path], sink=sink, quarantine=tmp_path / "q.parquet")
    (found,) = report.files
    assert (found.read, found.accepted, found.replaced, found.duplicate) == (7, 2, 2, 2)
    assert found.reasons == {"missing": 1}
    assert pl.read_parquet(tmp_path / "q.parquet").to_dicts() == [
        {
            "file": str(path), "row": 5, "id": "", "field": "id", "value": "",
            "reason": "missing", "detail": "a row without id",
        }
    ]  # fmt: skip
    assert sink.by_id["1"]["title"] == "a"
    assert report.balanced
    assert json.loads(report.to_json())["read"] == 7


def test_the_same_records_in_every_format(tmp_path, closed):
    rows = [
        {"id": f"{n}", "title": 'a "b"\n c', "category": "x, y", "rate_max_cents": n or None}
        for n in range(300)
    ]
    frame = pl.DataFrame(rows)
    frame.write_csv(tmp_path / "a.csv")
    frame.write_csv(tmp_path / "a.tsv", separator="\t")
    frame.write_parquet(tmp_path / "a.parquet")
    text = "\ufeff" + "".join(json.dumps(row) + "\r\n" for row in rows)
    write(tmp_path / "a.jsonl", text)
    write(tmp_path / "b.jsonl.gz", text, packed=True)
    sink = closed(Keep())
    paths = sorted(tmp_path.iterdir())
    seen = []
    report = ingest.read("job", paths, sink=sink, progress=lambda *at: seen.append(at))
    assert (report.accepted, report.duplicate) == (300, 1_200)
    assert pl.DataFrame(list(sink.by_id.values()), schema=SCHEMAS["job"]).equals(
        to_frame("job", rows)
    )
    size = sum(path.stat().st_size for path in paths)
    assert seen[-1] == (1_500, size, size)
    assert seen == sorted(seen)


def test_strict_is_all_or_nothing(tmp_path, closed):
    good = write(tmp_path / "good.csv", "id,reviews\na,1\nb,2\n")
    bad = write(tmp_path / "bad.csv", "id,reviews\nc,1\nd,many\n")
    sink = closed(Keep())
    target = tmp_path / "q.parquet"
    with pytest.raises(InvalidData, match=r"1 of 4 rows .* row 2, field reviews") as error:
        ingest.read("freelancer", [good, bad], sink=sink, strict=True, quarantine=target)
    assert error.value.exit_code == 3
    assert error.value.details["quarantined"] == "1"
    assert not sink.by_id
    assert pl.read_parquet(target)["value"].to_list() == ["many"]
    report = ingest.read("freelancer", [good], sink=sink, strict=True, quarantine=target)
    assert (report.accepted, report.strict) == (2, True)
    assert len(sink.by_id) == 2
    assert not target.exists()


def test_files_are_all_checked_before_the_first_is_read(tmp_path, closed):
    good = write(tmp_path / "good.csv", "id\na\n")
    wrong = write(tmp_path / "wrong.csv", "id,nothing\na,b\n")
    sink = closed(Keep())
    for other, error in (
        (wrong, InvalidArgument),
        (tmp_path / "absent.csv", NotFound),
        (tmp_path, InvalidArgument),
        (write(tmp_path / "what.xlsx", ""), InvalidArgument),
    ):
        with pytest.raises(error):
            ingest.read("job", [good, other], sink=sink)
    assert not sink.frames
    with pytest.raises(InvalidArgument):
        ingest.read("job", [])


def test_unknown_fields_without_a_map(tmp_path):
    lines = ['{"id": "a"}', '{"id": "b", "titel": "x"}', '{"id": "c", "title": "x"}']
    report = ingest.read("job", [write(tmp_path / "a.jsonl", "\n".join(lines))])
    assert (report.accepted, report.files[0].reasons) == (2, {"unknown_field": 1})


def test_merging(tmp_path, closed):
    table = "who,skill,seen,level\n" + "".join(
        f"{who},{skill},2024-01-0{day},{level}\n"
        for who, skill, day, level in (
            ("b", "React", 3, "ENTRY"), ("a", "C", 1, ""), ("b", "reactjs", 9, ""),
            ("b", "Go", 1, "EXPERT"), ("a", "", "x", ""), ("a", "C++", 2, "EXPERT"),
        )
    )  # fmt: skip
    checked = parse_map(
        'kind = "freelancer"\n[fields]\nid = "who"\nskills = "skill"\njoined = "seen"\n'
        'last_active = "seen"\nexperience_level = "level"\n[merge]\njoined = "min"\n'
        'last_active = "max"\nexperience_level = "last"\n'
    )
    path = write(tmp_path / "a.csv", table)
    sink = closed(Keep())
    report = ingest.read("freelancer", [path], checked, sink=sink)
    (found,) = report.files
    assert (found.read, found.accepted, found.quarantined, found.records) == (6, 5, 1, 2)
    assert list(sink.by_id) == ["b", "a"]
    first = sink.by_id["b"]
    assert [skill["name"] for skill in first["skills"]] == ["React", "Go"]
    assert (first["joined"], first["last_active"]) == (19_723, 19_731)
    assert first["experience_level"] == sink.by_id["a"]["experience_level"] == "EXPERT"
    again = ingest.read("freelancer", [path], checked, sink=sink)
    assert (again.duplicate, again.quarantined) == (5, 1)


def test_a_merged_record_stays_within_its_limits(tmp_path):
    rows = "".join(f"a,s{n}\n" for n in range(1_200))
    checked = parse_map('kind = "job"\n[fields]\nid = "id"\nskills = "skill"\n[merge]\n')
    report = ingest.read("job", [write(tmp_path / "a.csv", "id,skill\n" + rows)], checked)
    assert (report.accepted, report.files[0].reasons) == (1_000, {"too_many_items": 200})


def test_a_sink_that_miscounts_is_found(tmp_path, closed):
    class Wrong(DryRun):
        def write(self, records):
            super().write(records)
            return super().write(records.head(1))

    with pytest.raises(Exception, match="accounts for 1 of 2"):
        ingest.read("job", [write(tmp_path / "a.csv", "id\n1\n2\n")], sink=closed(Wrong()))


def test_an_interrupted_import_is_run_again(tmp_path, closed):
    path = write(tmp_path / "a.csv", "id\n" + "\n".join(map(str, range(10_000))))

    class Stops(Keep):
        def write(self, records):
            if self.frames == 1:
                raise KeyboardInterrupt
            return super().write(records)

    sink = closed(Stops())
    with pytest.raises(KeyboardInterrupt):
        ingest.read("job", [path], sink=sink, quarantine=tmp_path / "q.parquet")
    done = len(sink.by_id)
    sink.frames = 2
    report = ingest.read("job", [path], sink=sink)
    assert (report.duplicate, report.accepted) == (done, 10_000 - done)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv"]


def test_many_refused_rows_become_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr("matchwright.engine.records.quarantine.PART_ROWS", 100)
    path = write(tmp_path / "a.csv", "id,reviews\n" + "".join(f"{n},x\n" for n in range(10_000)))
    ingest.read("freelancer", [path], quarantine=tmp_path / "deep" / "q.parquet")
    table = pl.read_parquet(tmp_path / "deep" / "q.parquet")
    assert table["row"].to_list() == list(range(1, 10_001))
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["q.parquet"]


MEASURE = """
import resource, sys
from matchwright.engine.records import ingest
from matchwright.engine.records.maps import parse_map
checked = parse_map('kind = "job"\\n[fields]\\nid = "id"\\ntitle = "title"\\n')
ingest.read("job", [sys.argv[1]], checked)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = ingest.read("job", [sys.argv[2]], checked)
print(report.read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_memory_does_not_grow_with_the_file(ending, count, tmp_path):
    def make(name, rows):
        with (tmp_path / f"{name}.{ending}").open("w") as file:
            if ending == "csv":
                file.write("id,title,unused\n")
                file.writelines(f"{n},some title,{'x' * 4_000}\n" for n in range(rows))
            else:
                rest = "x" * 4_000
                file.writelines(
                    f'{{"id": "{n}", "title": "some title", "unused": "{rest}"}}\n'
                    for n in range(rows)
                )
        return tmp_path / f"{name}.{ending}"

    rows = count(reduced=32_000, full=260_000)
    paths = [make("small", 9_000), make("large", rows)]
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    read, grown_kib = map(int, done.stdout.split())
    assert read == rows
    assert grown_kib < 64 << 10
