"""``matchwright models serve``, as an operator meets it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from triton_cases import ask, need_server, question, toys

from matchwright.engine.models.local_server import LocalServer

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
    folder = tmp_path / "modèles de l'été; 2"  # what a shell and ASCII cannot take as it stands
    folder.mkdir()
    words = ["--repository", toys(folder), "--port", 0, "--log", log]
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


def test_a_port_that_is_taken_is_said_and_nothing_is_started(tmp_path):
    fake = tmp_path / "tritonserver"
    fake.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    fake.chmod(0o755)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        words = ("--repository", toys(tmp_path / "models"), "--port", port)
        done = run(*words, MATCHWRIGHT_TRITONSERVER=str(fake))
    assert (done.returncode, done.stdout) == (5, "")
    assert f"port {port} of 127.0.0.1 is taken" in done.stderr
    assert not (tmp_path / "started").exists()


def test_the_end_of_a_log_leaves_out_what_is_well(tmp_path):
    server = LocalServer(repository=tmp_path, log=tmp_path / "log")
    server.log.write_text(
        '+----+\n| a  | 1 |\nI1122 13:19:32.2 1 main.cc:1] "fine"\n\n'
        'E1122 13:19:32.2 1 main.cc:2] "no such model"\n+----+\n'
    )
    assert server.log_tail() == 'E1122 13:19:32.2 1 main.cc:2] "no such model"'
    server.log.write_text("I1122 13:19:32.2 1 main.cc:1] fine\n")
    assert server.log_tail().endswith("fine")


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
