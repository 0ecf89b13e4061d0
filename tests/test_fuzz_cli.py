"""Bad command lines and bad policies by the thousand: each a typed error, never a traceback."""

from __future__ import annotations

import io
import json
import random
import sys

import pytest

from matchwright.engine.cli import main
from matchwright.engine.cli._failures import DEFECT
from matchwright.engine.errors import InvalidArgument

ALLOWED_CODES = {0, 2, 3, 4, 5, 6, 75}

NASTY = (
    *("", " ", "-", "--", "-1", "0", "1e309", "nan", "inf", "-inf", "1_000", "٣", "½", "0x10"),
    *("\x00", "\x1b[2J", "\n", "a\r\nb", "\u202egnp", "\u200b", "\ud800", "\udcff", "é", "é"),
    *("🙂" * 40, "a" * 5_000, "9" * 400, "true", "null", "[]", "{}", '"', "'", "\\", "%s", "{0}"),
    *("../../x", "/", ".", "..", "/dev/null", "~", "*", "@", "@-", "@nowhere", "$(true)", "; true"),
    *("job", "freelancer", "skills=1", "skills=nan", "=", "==", "skills=1e400", "2026-02-30"),
    *("2026-01-01", "0001-01-01", "9999-12-31", "localhost:0", "[::1]:1", "host:99999999", ":"),
)
OPTIONS = {
    "match": (
        *("--store", "--server", "--job", "--freelancer", "--inline", "--kind", "--all-jobs"),
        *("--all-freelancers", "-k", "--policy", "--as-of", "--weight", "--exclude", "--device"),
        *("--candidates", "--min-score", "--format", "--output"),
    ),
    "explain": (
        *("--job", "--freelancer", "--store", "--server", "--asks", "--audience", "--policy"),
        *("--as-of", "--device", "--format", "--output"),
    ),
    "ingest": ("--store", "--map", "--strict", "--aliases", "--format", "--output"),
    "validate": ("--map", "--strict", "--aliases", "--format", "--output"),
    "store info": ("--store", "--format", "--output"),
    "store refit": ("--store", "--seed", "--sample", "--as-of", "--format", "--output"),
    "store verify": ("--store", "--format", "--output"),
    "policy show": ("--policy", "--format", "--output"),
    "policy check": ("--format", "--output"),
    "doctor": ("--format", "--output"),
    "": ("--version", "--help", "--debug", "-h"),
}
FORMATS = ("table", "json", "jsonl", "csv", "parquet")
FILES = ("ok.json", "ok.toml", "broken.json", "binary", "empty", "deep.json", "list.json", "folder")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with files of several kinds, to be in; stdin is empty."""
    (tmp_path / "ok.json").write_text('{"id": "x", "title": "y"}')
    (tmp_path / "ok.toml").write_text("[weights]\n")
    (tmp_path / "broken.json").write_text('{"id": ')
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 16)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "deep.json").write_text("[" * 50_000)
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    return tmp_path


def _line(rng: random.Random) -> list[str]:
    """A command line that is nearly right in some places and wrong in others."""
    command = rng.choice(list(OPTIONS))
    line = command.split()
    for _ in range(rng.randrange(6)):
        option = rng.choice(OPTIONS[command] if rng.random() < 0.95 else NASTY)
        kind = rng.random()
        if kind < 0.15:
            line.append(option)
        elif option == "--format":
            line += [option, rng.choice(FORMATS if kind < 0.8 else NASTY)]
        elif option == "--output":
            line += [option, rng.choice(("out.json", "out.csv", "folder", "no/where.csv", "", "."))]
        elif kind < 0.4:
            line += [option, rng.choice(FILES)]
        elif kind < 0.9:
            line += [option, rng.choice(NASTY)]
        else:
            line.append(f"{option}={rng.choice(NASTY)}")
    if rng.random() < 0.3:
        line.append(rng.choice((*NASTY, *FILES, "jobs", "freelancers")))
    if rng.random() < 0.05:
        rng.shuffle(line)
    return line


def _is_typed(line: list[str], code: int, err: str) -> str | None:
    """What is wrong with how a line ended, or None."""
    if code not in ALLOWED_CODES:
        return f"{line}: exit code {code}: {err[-500:]}"
    if "Traceback" in err:
        return f"{line}: a traceback: {err[-500:]}"
    if code not in {0, 4} and not err and "--help" not in line:
        return f"{line}: exit code {code} without a word"
    return None


def test_command_lines(count, workplace, capsys):
    rng = random.Random(20)
    wrong = []
    for _ in range(count(reduced=250, full=20_000)):
        line = [word for word in _line(rng) if word != "--debug"]
        code = main(line)
        told = capsys.readouterr()
        if (found := _is_typed(line, code, told.err)) is not None:
            wrong.append(found)
    assert wrong[:5] == []


VALUES = (
    *("nan", "inf", "-inf", "-1", "0", "1e400", "9" * 50, "true", '"x"', "[]", "{}", "[[1]]"),
    *("1979-05-27T07:32:00Z", '"\\u0000"', "0.1", "1", '"' + "a" * 2_000 + '"', "[1, 'a']"),
)
BROKEN = ("\x00", "\x1b", "[", "]", "=", '"', "\ufeff", "\u202e", "é", "\n", "[[a]]", "# \x07")


def _broken_policy(rng: random.Random, text: str) -> bytes:
    """The default policy with a few lines changed, dropped, doubled or broken."""
    lines = text.splitlines()
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(lines))
        name, equals, _ = lines[at].partition("=")
        what = rng.random()
        if what < 0.4 and equals:
            lines[at] = f"{name}= {rng.choice(VALUES)}"
        elif what < 0.55 and equals:
            lines[at] = f"{name.strip()}{rng.choice('sx_9')} = 1"
        elif what < 0.7:
            lines.insert(at, lines[at])
        elif what < 0.8:
            del lines[at]
            lines = lines or [""]
        elif what < 0.9:
            lines.insert(at, f"[{rng.choice(('weights', 'wieghts', 'rules.x', 'a.b', ''))}]")
        else:
            cut = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:cut] + rng.choice(BROKEN) + lines[at][cut:]
    raw = "\n".join(lines).encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        at = rng.randrange(len(raw) + 1)
        raw = raw[:at] + bytes([rng.randrange(128, 256)]) + raw[at:]
    return raw


def test_policies(count, tmp_path):
    from matchwright.engine.policy import Policy, default_policy_text

    rng = random.Random(21)
    text = default_policy_text()
    path = tmp_path / "policy.toml"
    refused = 0
    for _ in range(count(reduced=400, full=20_000)):
        path.write_bytes(_broken_policy(rng, text))
        try:
            Policy.load(path)
        except InvalidArgument:  # any other error fails the test, with its traceback
            refused += 1
    assert refused > 0


def test_a_broken_policy_on_the_command_line(workplace, capsys):
    (workplace / "p.toml").write_text("[weights]\nskils = 1\n")
    assert main(["policy", "check", "p.toml", "--format", "json"]) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert "skills" in error["message"]
    assert error["exit_code"] != DEFECT
