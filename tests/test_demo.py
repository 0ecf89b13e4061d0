"""The demo as a user runs it: with served models, without a server, and with one that breaks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from matchwright.engine.store import Store


def commands_with(word):
    """Command lines of running processes that hold a word."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if word in told and int(entry.name) != os.getpid():
                found.append(told)
    return found


def encoder_of(folder):
    with Store.open(folder / "store") as store:
        return store.generation.manifest.text.encoder


def test_with_served_models(run, tmp_path):
    triton_cases = pytest.importorskip("triton_cases", reason="needs the extra [triton]")
    pytest.importorskip("lightgbm", reason="needs LightGBM")
    triton_cases.need_server()
    folder = tmp_path / "kept"
    code, out, err = run("demo", "--freelancers", 1_500, "--jobs", 200, "--keep", folder)
    assert code == 0, err
    for told in (
        "Triton serves an encoder on 127.0.0.1:", "every text through Triton", "trained ranker:1",
        "simulated clients", "rank  freelancer  first", "ranker:1 ordered the first",
        "second phase (ranker:1)", "moved by:", "gives the same bytes", "stopped Triton",
        "degraded (UNREACHABLE): the first phase's order, without ranker:1",
        "the same bytes as before it stopped", "matched all 200 jobs",
        "ordered by ranker:1; degraded 0", "both servers stopped",
    ):  # fmt: skip
        assert told in out, out
    assert encoder_of(folder) == "served"
    record = json.loads((folder / "models" / "ranker" / "1" / "ranker.json").read_text("utf-8"))
    assert "do not exist" in record["training"]["simulated"]
    assert record["training"]["data"]["point_in_time"]
    assert "FEATURES_NOT_POINT_IN_TIME" not in record["training"]["warnings"]
    assert commands_with(str(folder)) == []
    lines = re.findall(r"^  matchwright (.+)$", out, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["models", "match", "explain", "serve"]
    with triton_cases.served(folder / "models", ["encoder", "ranker"]) as server:
        for line in lines[1:3]:
            words = shlex.split(line.replace("127.0.0.1:8001", server.url))
            code, out, err = run(*words, "-f", "json")
            assert code == 0, err
            second = json.loads(out)["rerank"]
            assert (second["version"], second.get("degraded")) == (1, None)


def test_an_interrupt_leaves_no_process(tmp_path):
    triton_cases = pytest.importorskip("triton_cases", reason="needs the extra [triton]")
    pytest.importorskip("lightgbm", reason="needs LightGBM")
    triton_cases.need_server()
    folder = tmp_path / "kept"
    words = ["demo", "--freelancers", "2000", "--jobs", "100", "--keep", str(folder)]
    demo = subprocess.Popen(
        [sys.executable, "-m", "matchwright.engine.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    watchdog = threading.Timer(120, demo.kill)
    watchdog.start()
    try:
        assert demo.stdout is not None
        assert any("Triton serves an encoder" in line for line in demo.stdout)
        assert len(commands_with(str(folder / "models"))) >= 1
        demo.send_signal(signal.SIGINT)
        _, err = demo.communicate()
    finally:
        watchdog.cancel()
        demo.kill()
    assert demo.returncode == 130
    assert f"interrupted; what was made is in {folder}" in err
    assert commands_with(str(folder)) == []


def test_with_an_encoder_and_nothing_to_learn_from(run):
    triton_cases = pytest.importorskip("triton_cases", reason="needs the extra [triton]")
    pytest.importorskip("lightgbm", reason="needs LightGBM")
    triton_cases.need_server()
    code, out, err = run("demo", "--freelancers", 100, "--jobs", 20)
    assert code == 0, err
    assert "every text through Triton" in out
    assert "no ranker: too few freelancers are eligible" in out
    assert "degraded" not in out
    assert "both servers stopped" in out


def test_without_triton(run, tmp_path):
    folder = tmp_path / "kept"
    code, out, err = run(
        "demo", "--freelancers", 800, "--jobs", 60, "--triton", "off", "--keep", folder
    )
    assert code == 0, err
    for told in ("imported", "without Triton, embedded encoder and first phase alone: not asked",
                 "fitted", "serving on 127.0.0.1:", "rank 1 of", "not eligible",
                 "gives the same bytes", "matched all 60 jobs", "server stopped"):  # fmt: skip
        assert told in out
    assert "ranker" not in out
    assert encoder_of(folder) != "served"
    with Store.open(folder / "store") as store:
        assert store.snapshot().count("job") == 60
    code, _, err = run("demo", "--keep", folder)
    assert code == 2
    assert "not an empty folder" in err


@pytest.mark.parametrize(
    ("server", "why"), [("/nowhere/tritonserver", "no tritonserver at"), ("/bin/false", "ended")]
)
def test_without_a_server_that_works(run, monkeypatch, server, why):
    """The same command, the same exit code; one line says why."""
    pytest.importorskip("triton_cases", reason="needs the extra [triton]")
    pytest.importorskip("lightgbm", reason="needs LightGBM")
    monkeypatch.setenv("MATCHWRIGHT_TRITONSERVER", server)
    code, out, err = run("demo", "--freelancers", 300, "--jobs", 20)
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if "without Triton" in line]
    assert why in line
    assert "matched all 20 jobs" in out


def test_packages_that_are_missing_are_named(run, monkeypatch):
    from matchwright.engine.cli import _demo_models

    monkeypatch.setitem(_demo_models._NEEDED, "a_package_that_is_not_there", "triton")
    told = _demo_models.found_server(_demo_models.Triton.AUTO)
    assert told == "no package a_package_that_is_not_there: pip install 'matchwright[triton]'"


def test_sizes_and_seeds_that_cannot_be(run):
    for wrong in (["--jobs", 0], ["--seed", -1], ["--freelancers", 10**9], ["--triton", "maybe"]):
        assert run("demo", *wrong)[0] == 2
