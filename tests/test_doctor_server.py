"""``matchwright doctor --server``: what a container's health check runs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest
import service_cases

from matchwright.engine.cli import main
from matchwright.engine.config import ServerConfig
from matchwright.engine.errors import StoreError
from matchwright.engine.service import running
from matchwright.engine.store import Store

folder = service_cases.folder
server = service_cases.server


def states(capsys, *argv):
    code = main(["doctor", *argv, "--format", "json"])
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    findings = json.loads(told.out)["findings"] if told.out else []
    return code, {one["check"]: one["state"] for one in findings}


def test_a_server_that_is_well(server, capsys):
    code, told = states(capsys, "--server", server)
    assert code == 0
    assert told == {
        "server": "ok",
        service_cases.SERVICE: "ok",
        "matchwright.store.default": "ok",
        "matchwright.device": "ok",
        "matchwright.models": "absent",
    }


def test_a_marketplace_that_is_not_there(server, capsys):
    code, told = states(capsys, "--server", server, "--marketplace", "other")
    assert (code, told["matchwright.store.other"]) == (0, "absent")


def test_no_server(capsys):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        began = time.monotonic()
        code, told = states(capsys, "--server", address, "--timeout", "2")
    assert (code, told) == (5, {"server": "failed"})
    assert time.monotonic() - began < 10


def test_a_part_in_trouble_is_no_failure(folder, capsys, monkeypatch):
    monkeypatch.setattr(Store, "trouble", property(lambda self: StoreError("the disk is gone")))
    with running(ServerConfig(stores={"default": folder}, port=0)) as address:
        code, told = states(capsys, "--server", address)
    assert code == 0
    assert told["matchwright.store.default"] == "degraded"
    assert told["server"] == "ok"


@pytest.mark.parametrize("more", [["--marketplace", "x"], ["--tls-ca", "x"], ["--tls-name", "x"]])
def test_options_without_a_server(more, capsys):
    assert main(["doctor", *more]) == 2
    assert "--server" in capsys.readouterr().err


def test_a_certificate_that_is_not_there(server, capsys):
    assert main(["doctor", "--server", server, "--tls-ca", "nowhere.pem"]) == 2
    assert "nowhere.pem" in capsys.readouterr().err


def test_it_is_quick_and_loads_no_arrays(server):
    """A health check runs every few seconds."""
    script = (
        "import sys\n"
        "from matchwright.engine.cli import main\n"
        "code = main(['doctor', '--server', sys.argv[1], '--format', 'json'])\n"
        "heavy = {'numpy', 'polars', 'cupy', 'scipy', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(code or (str(heavy) if heavy else 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, server], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
