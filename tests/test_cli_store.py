"""``matchwright store``: verify, and copies."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from matchwright.engine.cli import main

# ── Checking everything ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def real(tmp_path, capfd):
    """A store of the engine's own records."""
    rows = [{"id": f"j{n}", "title": "Web shop", "text": f"number {n}"} for n in range(30)]
    source = tmp_path / "jobs.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    assert main(["ingest", "jobs", str(source), "--store", str(tmp_path / "real")]) == 0
    capfd.readouterr()
    return tmp_path / "real"


def verify(folder, capfd):
    code = main(["store", "verify", "--store", str(folder), "--format", "json"])
    told = capfd.readouterr()
    return code, told.out, told.err


def test_verify_names_every_damaged_file(real, capfd):
    code, out, _ = verify(real, capfd)
    assert (code, json.loads(out)) == (0, {"sound": True, "damages": []})
    spoilt = [next((real / "segments").iterdir()), next((real / "generations").rglob("id"))]
    for path in spoilt:
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
    (real / "leases").mkdir(exist_ok=True)
    (real / "leases" / "mine.json").write_text("{}")
    code, out, _ = verify(real, capfd)
    document = json.loads(out)
    assert (code, document["sound"]) == (6, False)
    named = {Path(damage["file"]).name for damage in document["damages"]}
    assert named >= {spoilt[0].name, "mine.json"}
    assert any("generation" in damage["message"] for damage in document["damages"])
    assert main(["store", "verify", "--store", str(real), "--format", "table"]) == 6
    assert spoilt[0].name in capfd.readouterr().out


def test_verify_goes_on_when_the_catalog_cannot_be_read(real, capfd):
    (real / "catalog.sqlite").write_bytes(b"x" * 10_000)
    path = next((real / "segments").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    code, out, _ = verify(real, capfd)
    named = [Path(damage["file"]).name for damage in json.loads(out)["damages"]]
    assert (code, set(named)) == (6, {"catalog.sqlite", path.name})


def test_verify_of_no_store_and_of_a_newer_one(real, tmp_path, capfd):
    assert verify(tmp_path / "nowhere", capfd)[0] == 2
    connection = sqlite3.connect(real / "catalog.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    code, _, err = verify(real, capfd)
    assert (code, json.loads(err)["error"]["reason"]) == (3, "STORE_FORMAT")


# ── On the command line ───────────────────────────────────────────────────────────────────────


def run(capfd, *arguments):
    code = main([*map(str, arguments), "--format", "json"])
    told = capfd.readouterr()
    return code, json.loads(told.out if code == 0 else told.err)


def test_copies_on_the_command_line(real, tmp_path, capfd):
    url, copy, tar = tmp_path / "target", tmp_path / "replica", tmp_path / "b.tar"
    code, done = run(capfd, "store", "publish", "--store", real, "--to", url, "--name", "shop")
    assert (code, done["changed"]) == (0, True)
    pulling = ("store", "pull", "--from", url, "--name", "shop", "--store", copy)
    code, pulled = run(capfd, *pulling)
    assert (code, pulled["epoch"]) == (0, done["epoch"])
    code, failed = run(capfd, "store", "refit", "--store", copy)
    assert (code, failed["error"]["reason"]) == (2, "FAILED_PRECONDITION")
    code, failed = run(capfd, "store", "pull", "--store", copy)
    assert (code, failed["error"]["reason"]) == (2, "INVALID_ARGUMENT")
    code, done = run(capfd, "store", "pull", "--promote", "--store", copy)
    assert (code, done["promoted"]) == (0, True)
    assert run(capfd, *pulling)[0] == 2
    code, done = run(capfd, "store", "backup", "--store", copy, "--to", tar)
    assert (code, done["records"]["job"]) == (0, 30)
    restoring = ("store", "restore", "--from", tar, "--store", tmp_path / "back")
    assert run(capfd, *restoring)[0] == 0
    code, failed = run(capfd, *restoring)
    assert (code, failed["error"]["reason"]) == (2, "ALREADY_EXISTS")
    assert run(capfd, *restoring, "--replace")[1]["replaced"]
    assert verify(tmp_path / "back", capfd)[0] == 0


def test_a_backup_through_a_pipe_on_the_command_line(real, tmp_path):
    program = [sys.executable, "-m", "matchwright.engine.cli", "store"]
    made = subprocess.run(
        [*program, "backup", "--store", real, "--to", "-"], capture_output=True, check=True
    )
    assert b"files" in made.stderr
    subprocess.run(
        [*program, "restore", "--from", "-", "--store", tmp_path / "back"],
        input=made.stdout,
        capture_output=True,
        check=True,
    )
    assert (tmp_path / "back" / "catalog.sqlite").exists()
