"""The command line's answers: every format, files that appear when complete, clear errors."""

from __future__ import annotations

import csv
import errno
import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import typer

from matchwright.engine import errors
from matchwright.engine.cli._failures import Interrupted, describe, harmless, report, shorten
from matchwright.engine.cli._options import date_of, day_of, ids_of, read_text, weights_of
from matchwright.engine.cli._output import (
    Format,
    View,
    Writer,
    choose_format,
    console,
    facts,
    plainly,
)


def _view(name: str, score: float = 0.5) -> View:
    row = {"id": name, "score": score, "skills": ["a", "b"]}
    return View({"id": name, "score": np.float64(score)}, [row], lambda c: c.print(name))


def _write(fmt, path, views, *, many=False):
    with Writer(fmt, path, many=many) as writer:
        for view in views:
            writer.add(view)


def test_json_is_one_document(tmp_path):
    _write(Format.JSON, tmp_path / "a.json", [_view("ä")])
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"id": "ä", "score": 0.5}


@pytest.mark.parametrize("n", [0, 1, 3])
def test_json_of_many_is_a_list(tmp_path, n):
    _write(Format.JSON, tmp_path / "a.json", [_view(str(i)) for i in range(n)], many=True)
    told = json.loads((tmp_path / "a.json").read_text())
    assert [item["id"] for item in told] == [str(i) for i in range(n)]


def test_json_lines(tmp_path):
    _write(Format.JSONL, tmp_path / "a", [_view("x\ny"), _view("z")])
    lines = (tmp_path / "a").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["x\ny", "z"]


def test_csv_has_one_header(tmp_path):
    _write(Format.CSV, tmp_path / "a.csv", [_view('q"uote,'), _view("z")])
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"id": 'q"uote,', "score": "0.5", "skills": '["a", "b"]'}
    assert len(rows) == 2


@pytest.mark.parametrize("n", [0, 1, 3])
def test_parquet(tmp_path, n):
    _write(Format.PARQUET, tmp_path / "a.parquet", [_view(str(i)) for i in range(n)])
    frame = pl.read_parquet(tmp_path / "a.parquet")
    assert frame.height == n
    if n:
        assert frame["id"].to_list() == [str(i) for i in range(n)]
        assert frame.schema["score"] == pl.Float64


def test_a_table_in_a_file_has_no_colours(tmp_path):
    _write(Format.TABLE, tmp_path / "a.txt", [_view("[bold]x[/bold]")])
    assert (tmp_path / "a.txt").read_text() == "[bold]x[/bold]\n"


@pytest.mark.parametrize("fmt", list(Format))
@pytest.mark.parametrize("what", [ValueError, KeyboardInterrupt])
def test_a_file_that_is_not_complete_keeps_its_other_name(tmp_path, fmt, what):
    target = tmp_path / "a.out"
    target.write_text("before")

    def broken_off():
        yield _view("x")
        raise what

    with pytest.raises(what):
        _write(fmt, target, broken_off(), many=True)
    assert target.read_text() == "before"
    assert (tmp_path / "a.out.part").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.json", "json"), ("a.NDJSON", "jsonl"), ("a.csv", "csv"), ("a.parquet", "parquet")],
)
def test_the_suffix_tells_the_format(name, expected):
    assert choose_format(None, Path(name)) is Format(expected)
    assert choose_format(Format.TABLE, Path(name)) is Format.TABLE


def test_a_pipe_gets_json_lines():
    assert choose_format(None, None) is Format.JSONL


def test_parquet_never_goes_to_a_terminal():
    with pytest.raises(errors.InvalidArgument, match="--output"):
        choose_format(Format.PARQUET, None)
    with pytest.raises(errors.InvalidArgument, match="--format"):
        choose_format(None, Path("matches"))


@pytest.mark.parametrize("width", [24, 40, 80])
def test_what_is_copied_from_a_table_is_whole_in_any_width(width):
    path, digest = "/var/lib/market place/store/runs/70040c5f5f4488f7", "534e41021356" * 5
    made = console(file=io.StringIO(), width=width)
    made.print(facts([("in", path), ("digest", digest), ("rows", 12_345)]))
    told = made.file.getvalue()
    assert max(map(len, told.splitlines())) <= width
    assert "…" not in told
    assert "12,345" in told
    joined = "".join(line[6:].strip() for line in told.splitlines())
    assert (path.replace(" ", "") in joined.replace(" ", ""), digest in joined) == (True, True)


def test_values_become_plain():
    value = {"a": np.int32(3), "b": np.arange(2), 3: {Path("x")}, "f": Format.CSV, "n": b"\x01"}
    assert plainly(value) == {"a": 3, "b": [0, 1], "3": ["x"], "f": "CSV", "n": "01"}


# ── errors ────────────────────────────────────────────────────────────────────────────────────


def _tree(root=errors.MatchwrightError):
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


@pytest.mark.parametrize("error", sorted(set(_tree()), key=lambda e: e.__name__))
def test_every_error_has_its_code_and_line(error, capsys):
    assert report(error("what is wrong", field="k"), as_json=False) == error.exit_code
    assert capsys.readouterr().err == "matchwright: what is wrong\n"
    assert report(error("what is wrong", field="k"), as_json=True) == error.exit_code
    told = json.loads(capsys.readouterr().err)["error"]
    assert told == {
        "reason": error.reason,
        "exit_code": error.exit_code,
        "message": "what is wrong",
        "details": {"field": "k"},
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 2),
        (OSError(errno.ENOSPC, "No space left on device"), 75),
        (OSError(errno.EIO, "Input/output error"), 75),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 5),
        (MemoryError(), 75),
        (Interrupted("3 rows are in x"), 130),
        (typer.BadParameter("no"), 2),
        (ModuleNotFoundError("No module named 'polars'", name="polars"), 5),
        (ModuleNotFoundError("No module named 'matchwright.x'", name="matchwright.x"), 1),
        (ZeroDivisionError("division by zero"), 1),
    ],
)
def test_other_errors_have_codes_too(error, code):
    told = describe(error)
    assert told["exit_code"] == code
    assert "\n" not in told["message"]
    assert told["message"]


@pytest.mark.parametrize(
    ("module", "extra"),
    [("tokenizers", "triton"), ("tritonclient.grpc", "triton"), ("ray", "ray"), ("rich", "engine")],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(module, extra):
    told = describe(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert told["exit_code"] == 5
    assert told["message"].endswith(f"pip install 'matchwright[{extra}]'")


def test_a_message_cannot_drive_the_terminal():
    told = harmless("a\x1b[2Jb\x07\r\n\u202ec\x9bd")
    assert told == "a\\x1b[2Jb\\x07\\x0d \\u202ec\\x9bd"
    assert len(shorten("x" * 10_000_000)) < 3_000
    assert shorten("short") == "short"


# ── options ───────────────────────────────────────────────────────────────────────────────────


def test_days():
    assert day_of("1970-01-02") == 1
    assert date_of(day_of("2026-01-31")) == "2026-01-31"
    assert day_of(None) > 20_000


@pytest.mark.parametrize("bad", ["", "today", "2026-02-30", "31.1.2026", "\x00", "99999-01-01"])
def test_a_day_that_is_none(bad):
    with pytest.raises(errors.InvalidArgument, match="--as-of"):
        day_of(bad)


def test_weights():
    assert weights_of(["skills=2", "rate=0.5", "skills=3"]) == {"skills": 3.0, "rate": 0.5}


@pytest.mark.parametrize("bad", ["", "skills", "=1", "skills=", "a=nan", "a=inf", "a=-1", "a=1=2"])
def test_weights_that_are_none(bad):
    with pytest.raises(errors.InvalidArgument, match="--weight"):
        weights_of([bad])


def test_ids_come_from_files_too(tmp_path):
    file = tmp_path / "ids"
    file.write_text("b\n\nc d\r\na\n", "utf-8")
    assert ids_of(["a", f"@{file}", "b"]) == ("a", "b", "c d")


def test_files_that_cannot_be_read(tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(errors.InvalidArgument, match="UTF-8"):
        read_text(str(file), limit=10)
    file.write_bytes(b"x" * 11)
    with pytest.raises(errors.InvalidArgument, match="more than 10 bytes"):
        read_text(str(file), limit=10)
    with pytest.raises(FileNotFoundError):
        read_text(str(tmp_path / "absent"), limit=10)
