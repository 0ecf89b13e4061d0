"""The command line as a user meets it: processes, pipes, exit codes, no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from matchwright.engine.cli import main
from matchwright.engine.cli._app import app

COMMAND = (sys.executable, "-m", "matchwright.engine.cli")
COMMANDS = (
    *("demo", "ingest", "embed", "validate", "match", "explain"),
    *("serve", "policy", "models", "store", "run", "train", "doctor", "bench"),
)


def _process(*argv: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *argv], check=False, capture_output=True, text=True, timeout=120, **options
    )


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in out
    assert "75 try again later" in " ".join(out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0
    assert out.startswith("Usage: matchwright")


def test_help_is_quick():
    """What takes long to load is not loaded for it."""
    script = (
        "import sys; from matchwright.engine.cli import main; "
        "code = main(['--help']); print(*sorted(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    heavy = {"numpy", "polars", "scipy", "sklearn", "grpc", "cupy", "ray", "lightgbm", "tokenizers"}
    assert "typer" in loaded
    assert loaded & heavy == set()


def test_nothing_to_do_is_a_usage_error(run):
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "Usage:" in err


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["doctr"], "Did you mean 'doctor'"),
        (["match", "--sture", "x"], "--store"),
        (["doctor", "--format", "xml"], "jsonl"),
        (["match", "--store", "nowhere"], "--job"),
        (["match", "--job", "j"], "--server"),
        (["match", "--store", "nowhere", "--job", "j"], "nowhere"),
        (["match", "--store", "a", "--server", "b", "--job", "j"], "exactly one"),
        (["match", "--store", "a", "--job", "j", "--freelancer", "f"], "exactly one"),
        (["match", "--store", "a", "--job", "j", "-k", "ten"], "'-k'"),
        (["match", "--store", "a", "--job", "j", "--as-of", "now"], "2026-01-31"),
        (["match", "--store", "a", "--job", "j", "--min-score", "nan"], "finite"),
        (["match", "--store", "a", "--job", "j", "--weight", "skills"], "facet=value"),
        (["match", "--store", "a", "--inline", "absent.json"], "absent.json"),
        (["store", "info", "--store", "nowhere"], "nowhere"),
        (["policy", "check", "nowhere.toml"], "nowhere.toml"),
        (["bench", "topkk"], "topk"),
    ],
)
def test_a_wrong_line_is_two_with_a_hint(run, argv, hint):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert hint in err


def test_a_wrong_line_as_json(run):
    code, out, err = run("match", "--sture", "x", "--format=json")
    assert (code, out) == (2, "")
    told = json.loads(err)["error"]
    assert (told["reason"], told["exit_code"]) == ("INVALID_ARGUMENT", 2)


def test_the_client_alone_says_what_is_missing(tmp_path):
    script = (
        "import sys; sys.modules['typer'] = None\n"
        "from matchwright.engine.cli import main\n"
        "raise SystemExit(main(['doctor']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.count("\n") == 1
    assert "matchwright[engine]" in done.stderr


def test_debug_shows_the_traceback(run):
    with pytest.raises(FileNotFoundError):
        main(["match", "--store", "a", "--inline", "absent.json", "--debug"])


def test_doctor_in_every_format(run, tmp_path):
    code, out, _ = run("doctor")
    document = json.loads(out)
    assert code == (0 if document["healthy"] else 5)
    assert {"python", "numpy", "gpu", "time zones"} <= {f["check"] for f in document["findings"]}
    assert run("doctor", "--format", "table")[1].startswith("check")
    assert run("doctor", "--format", "csv")[1].startswith("check,state,detail,advice\n")
    path = tmp_path / "d.parquet"
    assert run("doctor", "--output", str(path))[1] == ""
    assert path.stat().st_size > 0


def test_doctor_writes_nothing(tmp_path):
    done = _process("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bench_in_its_smallest_size(run):
    code, out, err = run("bench", "topk", "--quick", "--json")
    assert code in {0, 6}, err
    figures = json.loads(out)
    assert figures
    assert run("bench", "topk", "--quick")[1]


def test_a_missing_dependency_is_five(run, monkeypatch):
    monkeypatch.setattr("matchwright.engine.cli.doctor._REQUIRED", ["no-such-package"])
    code, out, _ = run("doctor")
    assert code == 5
    assert "no-such-package" in json.dumps(json.loads(out)["findings"])


def test_a_reader_that_leaves_is_no_complaint():
    shell = f"{sys.executable} -m matchwright.engine.cli doctor --format table | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"{shell}; echo ${{PIPESTATUS[0]}}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in {"0", "141"}


@pytest.mark.parametrize("words", [[], ["--format", "table"]])
def test_a_closed_stdout_is_141(words):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, "doctor", *words], check=False, stdout=write, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_is_130():
    script = (
        "import signal, os\n"
        "from matchwright.engine.cli import doctor, main\n"
        "doctor._python = lambda: os.kill(os.getpid(), signal.SIGINT) or iter(())\n"
        "raise SystemExit(main(['doctor']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.startswith("matchwright: interrupted")


def test_a_terminal_that_knows_no_unicode(tmp_path):
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = _process("policy", "check", str(tmp_path / "grün.toml"), env=env)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "gr" in done.stderr


def test_the_app_has_no_command_that_is_not_listed():
    import typer

    command = typer.main.get_command(app)
    assert sorted(command.commands) == sorted(COMMANDS)
