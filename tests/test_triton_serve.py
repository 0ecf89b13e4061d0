"""``matchwright models serve``, as an operator meets it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from triton_cases import ask, need_server, question, toys

pytest.importorskip("tritonclient")

COMMAND = [sys.executable, "-m", "matchwright.engine.cli", "models", "serve"]


def run(*words, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(tmp_path, number):
    from matchwright.engine.models.triton import Triton, TritonConfig

    need_server()
    log = tmp_path / "triton.log"
    words = ["--repository", toys(tmp_path / "models"), "--port", 0, "--log", log]
    with subprocess.Popen(
        [*COMMAND, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            told = process.stdout.readline()
            found = re.match(r"serving toy on (127\.0\.0\.1:\d+)", told)
            assert found, told + process.stderr.read()
            with Triton(TritonConfig(url=found[1])) as client:
                assert np.array_equal(ask(client, question()), question()["x"] + 1)
            server = int(
                Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
            )
        finally:
            process.send_signal(number)
        assert process.wait(20) == 0
        assert "stopping" in process.stderr.read()
    assert not Path(f"/proc/{server}").exists()
    assert "Started GRPCInferenceService" in log.read_text()


def test_what_cannot_be_served_is_said(tmp_path):
    done = run("--repository", tmp_path)
    assert done.returncode == 2
    assert "holds no model" in done.stderr
    done = run("--repository", toys(tmp_path), MATCHWRIGHT_TRITONSERVER=str(tmp_path / "gone"))
    assert done.returncode == 2
    assert f"no tritonserver at {tmp_path / 'gone'}" in done.stderr
    done = run("--repository", tmp_path, "--port", 70_000)
    assert done.returncode == 2
    fake = tmp_path / "tritonserver"
    fake.write_text("#!/bin/sh\necho this is no server\n")
    fake.chmod(0o755)
    done = run("--repository", tmp_path, "--port", 0, MATCHWRIGHT_TRITONSERVER=str(fake))
    assert done.returncode == 5
    assert "this is no server" in done.stderr
