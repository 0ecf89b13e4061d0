"""Logged decisions: the documented schema, what is read of them, and every reason for a refusal."""

from __future__ import annotations

import datetime
import errno
import resource
import tempfile

import numpy as np
import polars as pl
import pytest

from matchwright.engine.errors import InvalidArgument, InvalidData
from matchwright.engine.rerank import decisions_read
from matchwright.engine.rerank.decisions import (
    COLUMNS,
    NOT_POINT_IN_TIME,
    OUTCOMES,
    WRONG_TEXT,
    Wrong,
)
from matchwright.engine.rerank.decisions_read import NEVER, read

UTC = datetime.UTC
AT = datetime.datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
DAY = (AT.date() - datetime.date(1970, 1, 1)).days


def row(decision="d1", position=1, **more):
    return {
        "decision_id": decision, "decided_at": AT, "asking": "job", "query_id": f"q-{decision}",
        "candidate_id": f"c{position}", "position": position, "first_rank": position,
        "explored": None, "propensity": None, "shown_at": AT, "viewed_at": None,
        "invited_at": None, "replied_at": None, "hired_at": None, "success_at": None,
        "newcomer": None, "category": "design", "country": None, "features_version": 1,
        "f.a": 5, "f.b": -7, **more,
    }  # fmt: skip


SCHEMA = {
    "explored": pl.String, "propensity": pl.Float64, "newcomer": pl.Boolean, "country": pl.String,
    "features_version": pl.Int64, "f.a": pl.Int64,
    **{f"{name}_at": pl.Datetime("us", "UTC") for name in ("shown", *OUTCOMES)},
}  # fmt: skip


def written(tmp_path, rows, name="log.parquet", **change):
    frame = pl.DataFrame(rows, schema_overrides=SCHEMA, infer_schema_length=None)
    path = tmp_path / name
    frame.with_columns(**change).write_parquet(path)
    return path


def test_the_documented_schema_is_the_schema(repo_root):
    page = (repo_root / "docs" / "training.md").read_text("utf-8")
    for name, column in COLUMNS.items():
        needed = "yes" if column.required else ""
        assert f"| `{name}` | {needed} | {column.text} |" in page
    for reason in Wrong:
        assert f"| `{reason}` | {WRONG_TEXT[reason]} |" in page


def test_rows_become_arrays_in_order_of_time(tmp_path):
    later = AT + datetime.timedelta(days=1)
    path = written(tmp_path, [
        row("late", 2, decided_at=later, shown_at=later, newcomer=False),
        row("late", 1, decided_at=later, shown_at=later, hired_at=later, viewed_at=later),
        row("early", 1, invited_at=later, newcomer=True, country="DE"),
        row("early", 3, shown_at=None),
    ])  # fmt: skip
    logged = read([path])
    assert logged.features == ("a", "b")
    assert logged.f_nf.tolist() == [[5, -7]] * 4
    assert logged.start_d.tolist() == [0, 2, 4]
    assert logged.day_d.tolist() == [DAY, DAY + 1]
    assert logged.position.tolist() == [1, 3, 1, 2]
    assert logged.shown.tolist() == [True, False, True, True]
    assert logged.grade().tolist() == [2, 0, 4, 0]
    assert logged.grade(DAY + 1).tolist() == [0, 0, 0, 0], "outcomes of a later day are not known"
    assert (logged.reached[1] == NEVER).all()
    codes, names = logged.segments["newcomer"]
    assert [None if c < 0 else names[c] for c in codes] == ["newcomer", None, None, "established"]
    assert logged.segments["category"][1] == ("design",)
    assert logged.rows_read == 4
    assert logged.refused == {}
    assert logged.point_in_time
    assert logged.warnings == ()
    assert logged.pair[0] != logged.pair[2], "another query asked"


def test_the_order_of_files_and_columns_does_not_change_the_arrays(tmp_path):
    rows = [row(f"d{n}", p, **{"f.a": 10 * n + p}) for n in range(5) for p in (1, 2, 3)]
    whole = read([written(tmp_path, rows)])
    second = pl.DataFrame(rows[8:], schema_overrides=SCHEMA)
    second.select(sorted(second.columns, reverse=True)).write_parquet(tmp_path / "b.parquet")
    parts = read([written(tmp_path, rows[:8], "a.parquet"), tmp_path / "b.parquet"])
    np.testing.assert_array_equal(parts.f_nf, whole.f_nf)
    np.testing.assert_array_equal(parts.start_d, whole.start_d)
    assert parts.digest != whole.digest


def test_small_batches_read_the_same(tmp_path, monkeypatch):
    rows = [row(f"d{n}", p, **{"f.a": 10 * n + p}) for n in range(40) for p in (1, 2, 3)]
    rows[7]["position"] = 0
    path = written(tmp_path, rows)
    whole = read([path], quarantine=tmp_path / "q.parquet")
    lines = pl.read_parquet(tmp_path / "q.parquet")["row"].to_list()
    monkeypatch.setattr(decisions_read, "BATCH_ROWS", 7)
    parts = read([path], quarantine=tmp_path / "q2.parquet")
    np.testing.assert_array_equal(parts.f_nf, whole.f_nf)
    assert lines == pl.read_parquet(tmp_path / "q2.parquet")["row"].to_list() == [8]


EARLIER = AT - datetime.timedelta(minutes=1)
REFUSED = [
    ({"decision_id": ""}, "decision_id", Wrong.MISSING),
    ({"query_id": None}, "query_id", Wrong.MISSING),
    ({"candidate_id": "é" * 65}, "candidate_id", Wrong.ID_TOO_LONG),
    ({"decided_at": None}, "decided_at", Wrong.MISSING),
    ({"asking": "robot"}, "asking", Wrong.VALUE_UNKNOWN),
    ({"position": 0}, "position", Wrong.OUT_OF_RANGE),
    ({"position": 1_001}, "position", Wrong.OUT_OF_RANGE),
    ({"position": 2**40}, "position", Wrong.OUT_OF_RANGE),
    ({"first_rank": None}, "first_rank", Wrong.OUT_OF_RANGE),
    ({"propensity": 0.5}, "propensity", Wrong.HALF_KNOWN),
    ({"explored": "swap"}, "propensity", Wrong.HALF_KNOWN),
    ({"explored": "swap", "propensity": 0.0}, "propensity", Wrong.OUT_OF_RANGE),
    ({"explored": "swap", "propensity": float("nan")}, "propensity", Wrong.OUT_OF_RANGE),
    ({"viewed_at": EARLIER}, "viewed_at", Wrong.BEFORE_DECISION),
    ({"shown_at": None, "hired_at": AT}, "hired_at", Wrong.NOT_SHOWN),
    ({"features_version": 2}, "features_version", Wrong.OTHER_VERSION),
    ({"features_version": None}, "features_version", Wrong.OTHER_VERSION),
    ({"f.a": None}, "f.a", Wrong.NO_FEATURES),
    ({"f.b": 2**24}, "f.b", Wrong.OUT_OF_RANGE),
    ({"f.b": -(2**40)}, "f.b", Wrong.OUT_OF_RANGE),
]


@pytest.mark.parametrize(("change", "field", "reason"), REFUSED)
def test_a_row_that_cannot_be_used_is_refused_with_its_reason(tmp_path, change, field, reason):
    path = written(tmp_path, [row("d1", 1), row("d1", 2) | change, row("d1", 3)])
    logged = read([path], quarantine=tmp_path / "out" / "q.parquet")
    assert logged.refused == {str(reason): 1}
    assert logged.position.tolist() == [1, 3]
    (told,) = pl.read_parquet(tmp_path / "out" / "q.parquet").to_dicts()
    assert (told["file"], told["row"]) == (str(path), 2)
    assert (told["field"], told["reason"]) == (field, str(reason))


def test_every_reason_of_a_row_is_tested():
    seen = {reason for _, _, reason in REFUSED}
    beside = {Wrong.DUPLICATE, Wrong.CONTRADICTION, Wrong.NOT_IN_STORE}
    assert seen | beside == set(Wrong)


def test_rows_that_contradict_their_decision_are_refused(tmp_path):
    path = written(tmp_path, [
        row("d1", 1), row("d1", 2), row("d1", 2, candidate_id="c9"),
        row("d1", 4, candidate_id="c1"), row("d1", 5, query_id="other"),
        row("d1", 6, decided_at=AT + datetime.timedelta(hours=1), shown_at=None),
        row("d2", 1),
    ])  # fmt: skip
    logged = read([path], quarantine=tmp_path / "q.parquet")
    assert logged.refused == {"contradiction": 2, "duplicate": 2}
    assert logged.start_d.tolist() == [0, 2, 3]
    told = pl.read_parquet(tmp_path / "q.parquet").sort("row")
    assert told["row"].to_list() == [3, 4, 5, 6]


def test_one_row_is_the_one_that_is_kept_of_duplicates(tmp_path):
    path = written(tmp_path, [row("d1", 1, **{"f.a": n}) for n in range(3)])
    assert read([path]).f_nf[:, 0].tolist() == [0]


def test_without_shown_at_everything_was_shown(tmp_path):
    frame = pl.read_parquet(written(tmp_path, [row(), row("d1", 2)])).drop("shown_at")
    frame.write_parquet(tmp_path / "x.parquet")
    assert read([tmp_path / "x.parquet"]).shown.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": pl.lit("1")}, "'position' is String"),
        ({"f.a": pl.lit(1.0)}, "features are integers"),
        ({"viewed_at": pl.lit("2026-03-01")}, "'viewed_at' is String"),
        ({"decided_at": pl.lit(5)}, "'decided_at' is Int32"),
        ({"newcomer": pl.lit(1)}, "'newcomer' is Int32"),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path, change, message):
    with pytest.raises(InvalidData, match=message):
        read([written(tmp_path, [row()], **change)])


@pytest.mark.parametrize("name", [n for n, column in COLUMNS.items() if column.required])
def test_a_missing_column_is_named(tmp_path, name):
    frame = pl.read_parquet(written(tmp_path, [row()])).drop(name)
    frame.write_parquet(tmp_path / "x.parquet")
    with pytest.raises(InvalidData, match=f"no column '{name}'"):
        read([tmp_path / "x.parquet"])


def test_features_need_a_version(tmp_path):
    frame = pl.read_parquet(written(tmp_path, [row()])).drop("features_version")
    frame.write_parquet(tmp_path / "x.parquet")
    with pytest.raises(InvalidData, match="features without 'features_version'"):
        read([tmp_path / "x.parquet"])


def test_a_file_without_features_asks_for_a_store(tmp_path):
    frame = pl.read_parquet(written(tmp_path, [row()])).drop("f.a", "f.b")
    frame.write_parquet(tmp_path / "x.parquet")
    with pytest.raises(InvalidArgument, match=f"--store DIR.*{NOT_POINT_IN_TIME}"):
        read([tmp_path / "x.parquet"])


def test_joined_features_carry_the_warning(tmp_path):
    frame = pl.read_parquet(written(tmp_path, [row(), row("d1", 2)])).drop("f.a", "f.b")
    frame.write_parquet(tmp_path / "x.parquet")

    def join(rows):
        refused = rows.filter(pl.col("position") == 2).select(
            "row", id="decision_id", field=pl.lit("candidate_id"), value="candidate_id",
            reason=pl.lit(str(Wrong.NOT_IN_STORE)),
        )  # fmt: skip
        return rows.filter(pl.col("position") == 1).with_columns(pl.lit(3).alias("f.z")), refused

    logged = read([tmp_path / "x.parquet"], join=join, joined=(("z",), 1))
    assert logged.warnings == (NOT_POINT_IN_TIME,)
    assert logged.f_nf.tolist() == [[3]]
    assert logged.refused == {"not_in_store": 1}


def test_files_with_other_features_are_refused(tmp_path):
    one = written(tmp_path, [row()])
    frame = pl.read_parquet(one).rename({"f.a": "f.c"})
    frame.write_parquet(tmp_path / "x.parquet")
    with pytest.raises(InvalidData, match=r"features differ from the first file's: \['a', 'c'\]"):
        read([one, tmp_path / "x.parquet"])


def test_what_is_no_parquet_is_named(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 not at all")
    with pytest.raises(InvalidData, match=r"x\.parquet cannot be read as Parquet"):
        read([path])


def test_no_good_row_is_an_error_that_says_why(tmp_path):
    with pytest.raises(InvalidData, match=r"no row of 2 can be used \(out_of_range 2\)"):
        read([written(tmp_path, [row("a", 0), row("b", 0)])])


_FAR = 2**64 - 1


@pytest.mark.parametrize(
    ("name", "value", "dtype"),
    [
        ("f.a", _FAR, pl.UInt64),
        ("f.a", -(2**100), pl.Int128),
        ("position", _FAR, pl.UInt64),
        ("position", 2**100, pl.Int128),
        ("decided_at", 2**62, pl.Datetime("us", "UTC")),
        ("decided_at", -(2**62), pl.Datetime("us", "UTC")),
        ("decided_at", 2**62, pl.Datetime("ms", "UTC")),
        ("decided_at", -(2**62), pl.Datetime("ms")),
    ],
)
def test_what_no_column_of_ours_could_hold_is_out_of_range(tmp_path, name, value, dtype):
    path = written(tmp_path, [row("a", 1), row("b", 1)])
    there = pl.read_parquet(path).with_row_index("n")
    kept = pl.col(name)
    if isinstance(dtype, pl.Datetime):
        kept = kept.dt.replace_time_zone(dtype.time_zone)
    far = pl.when(pl.col("n") == 0).then(pl.lit(value).cast(dtype)).otherwise(kept.cast(dtype))
    there.with_columns(far.alias(name)).drop("n").write_parquet(path)
    refused = tmp_path / "refused.parquet"
    logged = read([path], quarantine=refused)
    assert logged.refused == {"out_of_range": 1}
    assert logged.day_d.size == 1
    (told,) = pl.read_parquet(refused).iter_rows(named=True)
    assert (told["row"], told["field"], told["reason"]) == (1, name, "out_of_range")
    assert int(told["value"])


def test_far_numbers_that_decide_nothing_are_no_matter(tmp_path):
    path = written(tmp_path, [row("a", 1)])
    wide = pl.lit(_FAR, pl.UInt64)
    later = pl.lit(2**62).cast(pl.Datetime("ms", "UTC"))
    there = pl.read_parquet(path).with_columns(epoch=wide, ranker_version=wide, viewed_at=later)
    there.write_parquet(path)
    assert read([path]).refused == {}
    there.with_columns(features_version=wide).write_parquet(path)
    with pytest.raises(InvalidData, match=r"features_version is 18,446,744,073,709,551,615"):
        read([path])


@pytest.mark.parametrize("room", [0, 600])
def test_a_disk_without_room_for_refused_rows_is_said(tmp_path, monkeypatch, room):
    path = written(tmp_path, [row("a", 1), row("b", 0)])
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OSError, match="refused") as caught:
            read([path], quarantine=tmp_path / "refused.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert list(temporary.iterdir()) == []
    assert not [one for one in tmp_path.iterdir() if "refused" in one.name]


def test_more_rows_than_asked_for_are_refused(tmp_path):
    path = written(tmp_path, [row("d1", p) for p in range(1, 12)])
    with pytest.raises(InvalidArgument, match="more than 10 rows"):
        read([path], rows_max=10)


def test_parts_keep_what_belongs_together(tmp_path):
    rows = [row(f"d{n}", p, **{"f.a": 10 * n + p}) for n in range(4) for p in (1, 2)]
    logged = read([written(tmp_path, rows)])
    part = logged.part(np.array([False, True, False, True]))
    assert part.f_nf[:, 0].tolist() == [11, 12, 31, 32]
    assert part.start_d.tolist() == [0, 2, 4]
    fewer = logged.rows(logged.f_nf[:, 0] > 11)
    assert fewer.f_nf[:, 0].tolist() == [12, 21, 22, 31, 32]
    assert fewer.start_d.tolist() == [0, 1, 3, 5]
    assert fewer.decision.tolist() == [0, 1, 1, 2, 2]
    turned = logged.ordered(("b", "a"))
    assert turned.f_nf[0].tolist() == [-7, 1]
    with pytest.raises(InvalidData, match="no feature z"):
        logged.ordered(("a", "z"))
