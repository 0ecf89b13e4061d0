"""store compact, migrate, epochs, keep and release on the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from matchwright.engine import synthetic
from matchwright.engine.cli.store_epochs import seconds_of
from matchwright.engine.errors import InvalidArgument
from matchwright.engine.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six small segments, some rows of them dead; nothing is retained."""
    folder = tmp_path_factory.mktemp("epochs") / "shop"
    with Store.open(folder, mode="w", create=True, retain_s=0.0) as store:
        for n, block in enumerate(synthetic.blocks("freelancer", 120, block=20)):
            store.upsert("freelancer", block)
            store.seal()
            if n == 2:
                store.keep("early")
        store.delete("freelancer", synthetic.frame("freelancer", 120)["id"].to_list()[:10])
    return folder


@pytest.fixture
def shop(made, tmp_path):
    shutil.copytree(made, tmp_path / "shop")
    return tmp_path / "shop"


def answer(run, *argv):
    code, out, err = run(*argv, "--format", "json")
    assert code == 0, err
    return json.loads(out)


def test_epochs_are_listed_kept_and_released(run, shop):
    listed = answer(run, "store", "epochs", "--store", shop)["epochs"]
    assert [row["why"] for row in listed] == [["early"], ["newest"]]
    assert listed[0]["what"] == "seal"
    number = listed[1]["number"]
    kept = answer(run, "store", "keep", "night.1", "--store", shop, "--for", "12h")
    assert kept["epoch"] == number
    expires = datetime.fromisoformat(kept["expires"])
    assert abs((expires - datetime.now(UTC)).total_seconds() - 12 * 3_600) < 60
    earlier = listed[0]["number"]
    assert answer(run, "store", "keep", "x", "--store", shop, "--epoch", earlier) == {
        "name": "x",
        "epoch": earlier,
        "expires": None,
    }
    code, out, err = run("store", "epochs", "--store", shop, "--format", "csv")
    assert code == 0, err
    assert "early x" in out
    assert answer(run, "store", "info", "--store", shop)["epochs"]["leases"] == {
        "early": earlier,
        "x": earlier,
        "night.1": number,
    }
    for name in ("early", "x", "night.1"):
        assert answer(run, "store", "release", name, "--store", shop)["name"] == name
    code, _, err = run("store", "release", "x", "--store", shop)
    assert code == 2
    assert "no lease 'x'" in err


def test_an_epoch_that_has_gone_cannot_be_kept(run, shop):
    code, _, err = run("store", "keep", "late", "--store", shop, "--epoch", "1")
    assert code == 75
    assert "epoch 1 has gone" in err
    assert not (shop / "leases" / "late.json").exists()


def test_compaction(run, shop):
    before = answer(run, "store", "info", "--store", shop)
    assert before["kinds"]["freelancer"]["segments"] == 6
    assert before["kinds"]["freelancer"]["dead_share"] == pytest.approx(10 / 120, abs=1e-4)
    assert before["compaction"]["reclaimable_bytes"] > 0
    code, out, err = run("store", "compact", "--store", shop, "--all", "--format", "json")
    assert code == 0, err
    assert "merge 1: 110 rows" in err
    done = json.loads(out)
    assert (done["rows"], done["dropped"], done["segments"]["freelancer"]) == (110, 10, 1)
    assert done["held_bytes"] > 0  # "early" has its segments still
    after = answer(run, "store", "info", "--store", shop)
    assert after["compaction"]["reclaimable_bytes"] == 0
    assert after["generation"] == before["generation"]
    again = answer(run, "store", "compact", "--store", shop)
    assert (again["merges"], again["held_bytes"]) == (0, done["held_bytes"])
    assert answer(run, "store", "release", "early", "--store", shop)
    last = answer(run, "store", "compact", "--store", shop, "--retain-seconds", "0")
    assert (last["merges"], last["held_bytes"]) == (0, 0)
    assert len(list((shop / "segments").iterdir())) == 1


def test_compaction_needs_the_lock_and_says_who_has_it(run, shop):
    code = "import sys; from matchwright.engine.store import Store\n"
    code += "with Store.open(sys.argv[1], mode='w'): print('open', flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(shop)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout.readline() == "open\n"
        code, _, err = run("store", "compact", "--store", shop, "--wait", 0)
        holder.communicate("")
    assert code == 75
    assert f"process {holder.pid} is writing" in err


def test_nothing_to_migrate(run, shop):
    done = answer(run, "store", "migrate", "--store", shop)
    assert (done["before"], done["after"], done["copy"]) == (2, 2, None)


def test_durations():
    assert [seconds_of(text) for text in ("90", "90s", "15m", "1.5h", "7 d")] == [
        *(90, 90, 900, 5_400, 604_800),
    ]
    for text in ("", "0", "h", "-1h", "1w", "1h30m", "nan", "١h"):
        with pytest.raises(InvalidArgument, match="expected a time such as"):
            seconds_of(text)


def test_a_lease_that_ends(run, shop):
    answer(run, "store", "keep", "short", "--store", shop, "--for", "0.05s")
    time.sleep(0.1)
    listed = answer(run, "store", "epochs", "--store", shop)["epochs"]
    assert all("short" not in row["why"] for row in listed)
