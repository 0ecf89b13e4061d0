"""Bad rows and bad maps: each is a quarantined row or a typed error, and nothing is lost."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import random
import re
import string

import polars as pl
import pytest

from matchwright.engine.errors import InvalidData, MatchwrightError
from matchwright.engine.records import FIELDS, ingest, to_frame, to_rows
from matchwright.engine.records.convert import Converter
from matchwright.engine.records.map_fields import known_keys
from matchwright.engine.records.maps import load_map, native_map, parse_map
from matchwright.engine.records.quarantine import QUARANTINE_SCHEMA
from matchwright.engine.records.rows import ObjectRows

WORDS = ["react js", "C++", "$10-$20/hr", "1,000,000", "2024-02-30", "USA", "Atlantis", "|", "||a"]
NASTY = [
    "", " ", "\x00", "a\x00b", "\u200b", "\u202egnp.exe", "\ud800", "\ufeff", "\x1b[31m", "x" * 200,
    "NaN", "nan", "inf", "-inf", "Infinity", "-1", "-0", "0x10", "1e400", "-1e400", "1e-400",
    "9" * 40, "9" * 5_000, "1_000", "١٢٣", "½", "²", "true", "None", "null", "{}", "[]", "\n\n\n",
    "\r", "\t", '"', '""', "'", "\\", "%s", "{0}", "$", "$$$", "--", "1-", "-1-2", "5-1", "<", ">",
    "<script>", "&#0;", "&#xD800;", "<" * 300, "a@b.c", "http://", "@", "+" * 99, "99:99", "24:01",
    "2024-13-01", "0000-00-00", "9999-12-31T23:59:59+23:59", "0001-01-01T00:00:00-23:59",
    "Z", "é" * 129, "\U0001f600" * 40, "İ", "ß", "ﬀ", "\u0130" * 300,
]  # fmt: skip
NUMBERS = [
    0, -0.0, -1, 1.5, math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 2**31, 2**63, 2**64,
    10**40, 10**400, -(10**400), True, False, 2.0**53,
]  # fmt: skip


def typed(error: MatchwrightError, *codes: int) -> None:
    """An error of usage or data, whose message can be written anywhere."""
    assert error.exit_code in (codes or (2, 3))
    str(error).encode("utf-8", "strict")


class Bad:
    """Generates values that nobody should send, from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self) -> str:
        choice = self.random.random()
        if choice < 0.5:
            return self.random.choice(NASTY)
        if choice < 0.7:
            return self.random.choice(WORDS)
        size = self.random.choice((1, 3, 10, 40))
        return "".join(chr(self.random.randrange(0x3000)) for _ in range(size))

    def value(self, depth: int = 0):
        choice = self.random.random()
        if choice < 0.45:
            return self.text()
        if choice < 0.65:
            return self.random.choice(NUMBERS)
        if choice < 0.7:
            return None
        if choice < 0.75:
            return b"\xff\xfe"
        if depth > 2:
            return []
        if choice < 0.88:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        keys = ("name", "level", "must", "code", "issuer", "issued", "verified", "x")
        return {self.random.choice(keys): self.value(depth + 1) for _ in range(2)}

    def row(self, kind: str) -> dict:
        names = list(FIELDS[kind])
        row = {name: self.value() for name in self.random.sample(names, 3)}
        if self.random.random() < 0.8:
            row["id"] = f"r{self.random.randrange(10**9)}"
        return row


@pytest.mark.parametrize("kind", ["job", "freelancer"])
def test_bad_values_are_refused_one_by_one(kind, count):
    bad = Bad(1)
    converter = Converter(native_map(kind))
    seen = set()
    for _ in range(count(reduced=8, full=200)):
        rows = [bad.row(kind) for _ in range(200)]
        done = converter.convert(ObjectRows(range(1, 201), rows))
        refused = {one.row for one in done.refused}
        assert sorted([*done.number, *refused]) == list(range(1, 201))
        assert len(refused) == len(done.refused)
        assert done.frame.height == len(done.number)
        for one in done.refused:
            assert one.value.isprintable()
            assert len(one.value) <= 200
            seen.add(one.reason)
        # What was accepted is stored form: it passes again, unchanged.
        again = to_frame(kind, done.frame.to_dicts())
        assert again.equals(done.frame)
    assert len(seen) >= 15


@pytest.mark.parametrize("kind", ["job", "freelancer"])
def test_bad_records_are_typed_errors(kind, count):
    bad = Bad(2)
    fine = 0
    for _ in range(count(reduced=300, full=5_000)):
        row = bad.row(kind) if bad.random.random() < 0.9 else bad.value()
        try:
            frame = to_frame(kind, [row])
        except MatchwrightError as error:
            typed(error)
            with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
                to_rows(kind, [row])
            continue
        assert to_rows(kind, [row]) == frame.to_dicts()
        fine += 1
    assert fine


# ── Files ─────────────────────────────────────────────────────────────────────────────────────


def _broken_json(bad: Bad, kind: str) -> bytes:
    row = {k: v for k, v in bad.row(kind).items() if not isinstance(v, bytes)}
    try:
        line = json.dumps(row, default=str).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        line = b"{"
    choice = bad.random.random()
    if choice < 0.2:
        line = line[: bad.random.randrange(len(line))]
    elif choice < 0.3:
        at = bad.random.randrange(len(line))
        line = line[:at] + bytes([bad.random.randrange(128, 256)]) + line[at:]
    elif choice < 0.35:
        line = b"[" * 3_000
    elif choice < 0.4:
        line = bad.random.choice([b"1", b'"x"', b"null", b"[]", b"{}", b"NaN", b'{"id":NaN}'])
    return line.replace(b"\n", b" ").replace(b"\r", b" ")


def _account(path, kind, report, expected_rows: int, quarantine) -> None:
    file = report.files[0]
    assert file.read == expected_rows
    assert file.balanced
    assert sum(file.reasons.values()) == file.quarantined
    if file.quarantined:
        table = pl.read_parquet(quarantine)
        assert table.schema == QUARANTINE_SCHEMA
        assert table.height == file.quarantined == table["row"].n_unique()
        assert table["row"].is_between(1, expected_rows).all()
        assert set(table["file"]) == {str(path)}
    else:
        assert not quarantine.exists()


@pytest.mark.parametrize("kind", ["job", "freelancer"])
def test_bad_json_lines(kind, count, tmp_path):
    bad = Bad(3)
    n = count(reduced=1_500, full=20_000)
    lines = [b'{"id": "first"}'] + [_broken_json(bad, kind) for _ in range(n)]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n\n  \n")
    rows = sum(1 for line in lines if line.strip())
    target = tmp_path / "quarantine.parquet"
    report = ingest.read(kind, [path], quarantine=target)
    _account(path, kind, report, rows, target)
    assert 0 < report.quarantined < rows
    assert {"json_syntax", "not_utf8", "not_an_object"} <= report.files[0].reasons.keys()


def _csv_line(bad: Bad, columns: list[str]) -> bytes:
    """A line of CSV that holds no quote, so that every line is one row whatever its state."""
    cells = [f"r{bad.random.randrange(10**9)}" if bad.random.random() < 0.8 else bad.text()]
    cells += [bad.text() if bad.random.random() < 0.2 else "" for _ in columns[1:]]
    if bad.random.random() < 0.1:
        cells = cells[: bad.random.randrange(1, len(cells))] or ["x"]
    line = ",".join(cells).encode("utf-8", "surrogatepass")
    for code in (b'"', b"\n", b"\r"):
        line = line.replace(code, b" ")
    return line or b"x"


@pytest.mark.parametrize("kind", ["job", "freelancer"])
def test_bad_csv_lines(kind, count, tmp_path):
    bad = Bad(4)
    names = ["id", *bad.random.sample([name for name in FIELDS[kind] if name != "id"], 5)]
    n = count(reduced=1_500, full=20_000)
    lines = [_csv_line(bad, names) for _ in range(n)]
    path = tmp_path / "bad.csv"
    path.write_bytes(b"\xef\xbb\xbf" + ",".join(names).encode() + b"\r\n" + b"\r\n".join(lines))
    target = tmp_path / "quarantine.parquet"
    report = ingest.read(kind, [path], quarantine=target)
    _account(path, kind, report, n, target)
    assert 0 < report.quarantined < n


def test_a_quote_that_is_never_closed_costs_one_row(tmp_path):
    path = tmp_path / "open.csv"
    good = [f"r{row},fine {row}" for row in range(200)]
    lines = [*good[:50], 'bad,"never closed', *good[50:120], 'bad2,"x"y', *good[120:]]
    path.write_text("id,title\n" + "\n".join(lines) + "\n")
    report = ingest.read("job", [path])
    assert report.files[0].reasons == {"csv_quoting": 2}
    assert (report.read, report.accepted) == (202, 200)
    assert [(s.row, s.value) for s in report.samples] == [
        (51, 'bad,"never closed'),
        (122, 'bad2,"x"y'),
    ]


def test_random_bytes_are_never_lost(count, tmp_path):
    """Rows that are well formed and stand after garbage are still found."""
    bad = random.Random(5)
    alphabet = b'",\n\r\x00\xff\xc3a1;| \t{}[]:'
    for _ in range(count(reduced=60, full=1_500)):
        for name in ("x.csv", "x.jsonl", "x.tsv", "x.parquet"):
            path = tmp_path / name
            path.write_bytes(bytes(bad.choices(alphabet, k=bad.randrange(300))))
            try:
                report = ingest.read("job", [path], quarantine=tmp_path / "q.parquet")
            except MatchwrightError as error:
                typed(error)
            else:
                assert report.balanced


def test_fields_of_ten_megabytes_are_rows_like_others(tmp_path):
    huge = "x" * (10 << 20)
    rows = [{"id": "a"}, {"id": "b", "text": huge}, {"id": "c", "skills": [huge]},
            {"id": huge}, {"id": "d", "rate_max_cents": huge}, {"id": "e"}]  # fmt: skip
    lines = tmp_path / "huge.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in rows))
    report = ingest.read("job", [lines], quarantine=tmp_path / "q.parquet")
    assert (report.read, report.accepted) == (6, 2)
    assert report.files[0].reasons == {"too_long": 2, "id_too_long": 1, "not_a_number": 1}
    table = tmp_path / "huge.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], ["a", "fine"], ["b", huge], ["c", "fine"]])
    assert ingest.read("job", [table]).accepted == 2
    parquet = tmp_path / "huge.parquet"
    pl.DataFrame({"id": ["a", "b"], "text": [huge, "fine"]}).write_parquet(parquet)
    assert ingest.read("job", [parquet]).accepted == 1


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_line_beyond_the_limit_is_skipped_unread(ending, tmp_path, monkeypatch):
    monkeypatch.setattr("matchwright.engine.records.sources.ROW_BYTES_MAX", 1_000)
    path = tmp_path / f"long.{ending}"
    rows = [b"a", b"b" * 5_000, b"c", b"d" * 999_999]
    if ending == "jsonl":
        lines = [b'{"id": "%s"}' % row for row in rows]
    else:
        lines = [b"id", *rows]
    path.write_bytes(b"\n".join(lines))
    report = ingest.read("job", [path])
    assert (report.read, report.accepted) == (4, 2)
    assert report.files[0].reasons == {"row_too_long": 2}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", b""),
        ("blank.csv", b"\n\n\n"),
        ("latin.csv", b"id,t\xeftle\n1,2\n"),
        ("twice.csv", b"id,id\n1,2\n"),
        ("utf16.csv", "id,title\n1,2\n".encode("utf-16")),
        ("open.csv", b'id,"title\n'),
        ("not.parquet", b"PAR1 and more PAR1"),
        ("empty.parquet", b""),
        ("broken.csv.gz", b"\x1f\x8b\x08garbage"),
        (
            "cut.jsonl.gz",
            gzip.compress(b"".join(b'{"id": "%d"}\n' % n for n in range(3_000)))[:-20],
        ),
    ],
)
def test_files_that_are_not_what_they_say(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidData) as error:
        ingest.read("job", [path])
    assert name.split(".")[0] in str(error.value)


def test_a_parquet_file_of_every_type(tmp_path):
    frame = pl.DataFrame(
        {
            "id": ["a", "b"],
            "title": pl.Series([None, "x"]),
            "skills": [["Python", None], []],
            "posted": pl.Series(["2024-01-02", None]).str.to_date(),
            "client_reviews": pl.Series([3.0, None]),
            "languages": pl.Series([[{"code": "en", "level": 3}], None]),
            "category": pl.Series(["a", "b"], dtype=pl.Categorical),
        }
    )
    path = tmp_path / "all.parquet"
    frame.write_parquet(path)
    report = ingest.read("job", [path])
    assert (report.accepted, report.quarantined) == (2, 0)
    pl.DataFrame({"id": [b"x"], "title": [b"\xff"]}).write_parquet(path)
    assert ingest.read("job", [path]).files[0].reasons == {"wrong_type": 1}


# ── Maps ──────────────────────────────────────────────────────────────────────────────────────


def _toml(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, int | float):
        return repr(value) if abs(value) < 10**300 else "9" * 400
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(str(value))


class BadMaps(Bad):
    """Generates maps of which most are wrong in one or two places."""

    options = ("from", "const", "values", "unit", "unknown_if", "when", "split", "take", "formats")

    def toml_value(self, depth: int = 0):
        value = self.value(depth)
        return value if value is not None and not isinstance(value, bytes) else "x"

    def map(self) -> str:
        kind = self.random.choice(["job", "freelancer"])
        lines = [f'kind = "{kind}"'] if self.random.random() < 0.95 else []
        if self.random.random() < 0.2:
            section = self.random.choice(["source", "currency", "skills", "merge", "field", "x y"])
            key = self.random.choice(["format", "base", "rates", "aliases", "delimiter", "text"])
            lines += [f'["{section}"]', f"{key} = {_toml(self.toml_value())}"]
        lines += ["[fields]", 'id = "id"']
        for name in self.random.sample(list(FIELDS[kind]), 3):
            lines.append(f'"{self._misspelt(name)}" = {self._entry(FIELDS[kind][name])}')
        return "\n".join(lines)

    def _misspelt(self, name: str) -> str:
        if self.random.random() < 0.8:
            return name
        at = self.random.randrange(len(name))
        return name[:at] + self.random.choice(string.ascii_letters) + name[at + 1 :]

    def _entry(self, spec) -> str:
        if self.random.random() < 0.2:
            return _toml(self.toml_value())
        entry = {"from": self.random.choice(["a", ["a", "b"], "id", ""])}
        for _ in range(self.random.randrange(3)):
            some = known_keys(spec) if self.random.random() < 0.7 else self.options
            entry[self._misspelt(self.random.choice(some))] = self.toml_value()
        return _toml(entry)


def test_bad_maps_are_refused_or_work(count, tmp_path):
    bad = BadMaps(6)
    table = tmp_path / "t.csv"
    table.write_text("id,a,b\n1,x,2\n2,,\n3,$5-$7,2024-01-01\n")
    refused = 0
    for _ in range(count(reduced=1_500, full=25_000)):
        try:
            checked = parse_map(bad.map())
            report = ingest.read(checked.kind, [table], checked)
        except MatchwrightError as error:
            refused += 1
            typed(error)
        else:
            assert report.balanced
            assert report.read == 3
    assert refused > 100


def test_random_text_is_no_map(count):
    bad = BadMaps(7)
    whole = 'kind = "job"\n[fields]\nid = { from = "a", prefix = "x" }\nposted = "b"\n'
    refused = 0
    for _ in range(count(reduced=500, full=10_000)):
        at = bad.random.randrange(len(whole))
        text = whole[:at] + bad.text() + whole[at + bad.random.randrange(3) :]
        try:
            parse_map(text)
        except MatchwrightError as error:
            refused += 1
            typed(error, 2)
    assert refused > 100


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"kind = '\xff'", b"x" * (2 << 20), b"[" * 99_999]
)
def test_files_that_are_no_map(content, tmp_path):
    path = tmp_path / "map.toml"
    path.write_bytes(content)
    with pytest.raises(MatchwrightError) as error:
        load_map(path)
    assert error.value.exit_code == 2
    with pytest.raises(MatchwrightError):
        load_map(tmp_path / "absent\0.toml")


def test_quarantine_values_hold_no_secrets(tmp_path):
    path = tmp_path / "q.jsonl"
    secret = "call me at +1 (555) 123-4567 or jane.doe@example.com " * 30
    path.write_text(json.dumps({"id": "a", "category": secret}))
    target = tmp_path / "q.parquet"
    ingest.read("job", [path], quarantine=target)
    (value,) = pl.read_parquet(target)["value"]
    assert "@" not in value
    assert "555" not in value


def test_a_refused_row_names_its_record_where_it_can(tmp_path):
    rows = [
        {"id": "a", "rate_cents": "much"},
        {"id": "b", "nonsense": 1},
        {"id": 7, "rate_cents": -1},
        {"rate_cents": -1},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"id": "ok", "rate_cents": 1}, *rows, "no object"])))
    target = tmp_path / "q.parquet"
    ingest.read("freelancer", [path], quarantine=target)
    table = pl.read_parquet(target)
    assert table["id"].to_list() == ["a", "b", "7", "", ""]


def test_surrogates_do_not_reach_the_report(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(b"id,title\n\xff\xfe,x\n")
    report = ingest.read("job", [path], quarantine=tmp_path / "q.parquet")
    assert report.files[0].reasons == {"not_utf8": 1}
    assert io.BytesIO(report.to_json()).read()
