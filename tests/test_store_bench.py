"""The bench of the store runs and holds at a small size; the full size is a claim of its own."""

from __future__ import annotations

import json
import subprocess
import sys


def test_the_bench_runs_and_holds(repo_root):
    command = [sys.executable, "bench/bench_store.py", "--rows", "2000", "--json"]
    done = subprocess.run(command, cwd=repo_root, check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert report["passed"]
    assert report["rows"] == 2000
    assert report["compact_dropped"] >= 600
    # x alone is 384 bytes a row; everything a kernel reads must have been counted.
    assert report["scanned_bytes"] > 2000 * 384
