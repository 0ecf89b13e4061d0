"""However the check of a GPU ends, what it had measured is kept: a part breaks, the disk is full,
somebody interrupts it, the device is wrong from the start."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import gpu_check_cases
import pytest
from gpu_check_cases import backends, tiny

from matchwright.kernels.cupy_ops import CupyOps, DeviceMismatch
from matchwright.kernels.numpy_device import NumpyDevice

gpu_check = gpu_check_cases.gpu_check
WRONG = 6


@pytest.fixture(autouse=True)
def signals():
    """Python's own, also where whoever started the tests ignores them; and afterwards as before."""
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


def read(options):
    return json.loads(options.out.read_text("utf-8"))


def after(monkeypatch, cells, happens):
    """Something happens when the sampled answers of so many cells were compared."""
    sections, compared = sys.modules["gpu_sections"], []
    agrees = sections.agrees

    def agreed(*args):
        compared.append(args)
        if len(compared) > cells:
            happens()
        return agrees(*args)

    monkeypatch.setattr(sections, "agrees", agreed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle_of_a_part(gpu_check, tmp_path, monkeypatch, capsys, number):
    sys.modules["gpu_record"].listen()
    after(monkeypatch, 8, lambda: signal.raise_signal(number))
    options = tiny(gpu_check, tmp_path, "--only", "few", "sweep", "rules", "calibration", "memory")
    assert gpu_check.check(*backends(), {}, options) == 128 + number
    record = read(options)
    out, err = capsys.readouterr()
    assert record == json.loads(out)
    assert f"{number.name}; what was measured is kept" in err
    assert not record["held"]
    assert len(record["sections"]["few"]) == 5
    *cells, last = record["sections"]["sweep"]
    assert [cell["rate"] for cell in cells] == [1.0, 0.5, 0.25]
    assert last == {"interrupted": True, "exact": False}
    assert set(record["sections"]) == {"few", "calibration", "sweep"}
    assert record["left_out"] == dict.fromkeys(("rules", "memory"), f"{number.name} came first")
    assert set(record["parts_s"]) == {"few", "calibration", "sweep"}
    assert list(options.out.parent.iterdir()) == [options.out]


def test_interrupted_while_it_starts(gpu_check, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "no_device_reason", lambda: None)
    monkeypatch.setattr(gpu_check, "CupyOps", lambda **_: signal.raise_signal(signal.SIGTERM))
    out = tmp_path / "gpu_check.json"
    assert gpu_check.main(["--out", str(out), "--only", "few"]) == 143
    assert json.loads(out.read_text("utf-8"))["left_out"] == {"few": "SIGTERM came first"}


def test_each_cell_is_in_the_record_as_soon_as_it_was_measured(gpu_check, tmp_path, monkeypatch):
    options, seen = tiny(gpu_check, tmp_path, "--only", "few"), []
    after(monkeypatch, 1, lambda: seen.append(len(read(options)["sections"]["few"])))
    assert gpu_check.check(*backends(), {}, options) == 0
    assert seen == [1, 2, 3, 4]


def test_a_part_that_breaks_keeps_its_cells_and_leaves_the_device_as_it_was(
    gpu_check, tmp_path, monkeypatch
):
    def broken():
        raise MemoryError("no room")

    after(monkeypatch, 2, broken)
    ops, library = backends()
    costs = ops.device_costs = sys.modules["gpu_sections"].measure(
        ops.device, 16, 1 << 20, rows=544
    )
    options = tiny(gpu_check, tmp_path, "--only", "few", "rules")
    assert gpu_check.check(ops, library, {}, options) == WRONG
    found = read(options)["sections"]
    assert [cell["exact"] for cell in found["few"]] == [True, True, False]
    assert "no room" in found["few"][-1]["broke"]
    assert "no room" in found["rules"][0]["broke"]
    assert ops.device.few
    assert ops.device_costs is costs


def test_a_sieve_that_breaks_is_not_what_the_next_part_measures(gpu_check, monkeypatch):
    sections = sys.modules["gpu_sections"]
    ops, _ = backends()

    def only_few(work, repeats):
        if not ops.device.few:
            raise MemoryError("no room")
        return 1.0

    monkeypatch.setattr(sections, "seconds", only_few)
    with pytest.raises(MemoryError):
        list(sections.few(ops, *gpu_check.problem(0, 100, 4, 16), 3, 1))
    assert ops.device.few


def test_a_shape_that_is_too_large_is_told_and_the_next_one_measured(
    gpu_check, tmp_path, monkeypatch
):
    cells = gpu_check.gpu_cells

    def shape(bench, corpus, queries, ks):
        if queries.q == 9:
            raise MemoryError("no room")
        return [{"q": queries.q, "d": queries.q_qd.shape[1], "exact": True}]

    monkeypatch.setattr(cells, "shape", shape)
    options = tiny(gpu_check, tmp_path, "--only", "cells")
    assert gpu_check.check(*backends(), {}, options) == WRONG
    found = read(options)["sections"]["cells"]
    told = [(cell["q"], cell["d"], "broke" in cell) for cell in found]
    large = [(6, 24, False), (6, 16, False)]
    assert told == [*large, (6, 24, False), (9, 24, True), (6, 16, False), (9, 16, True)]


def test_a_full_disk_leaves_what_was_written_before(gpu_check, tmp_path, monkeypatch, capsys):
    options = tiny(gpu_check, tmp_path, "--only", "few", "calibration")
    write, writes = Path.write_text, []

    def full(self, text, encoding):
        writes.append(self)
        if len(writes) > 3:
            write(self, text[:100], encoding)
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, text, encoding)

    monkeypatch.setattr(Path, "write_text", full)
    assert gpu_check.check(*backends(), {}, options) == WRONG
    out, err = capsys.readouterr()
    assert len(read(options)["sections"]["few"]) == 3
    assert len(json.loads(out)["sections"]["few"]) == 5
    assert "calibration" in json.loads(out)["sections"]
    assert "the record is not written: [Errno 28] No space left on device" in err
    assert list(options.out.parent.iterdir()) == [options.out]


def test_a_folder_that_is_none(gpu_check, tmp_path, capsys):
    (tmp_path / "proofs").write_text("a file")
    options = tiny(gpu_check, tmp_path, "--only", "calibration")
    assert gpu_check.check(*backends(), {}, options) == WRONG
    assert json.loads(capsys.readouterr().out)["held"]


def test_a_device_that_is_wrong_from_the_start(gpu_check, tmp_path, monkeypatch):
    class Untrue(NumpyDevice):
        def points(self, *args):
            return super().points(*args) + 1

    monkeypatch.setattr(gpu_check, "no_device_reason", lambda: None)
    monkeypatch.setattr(gpu_check, "CupyOps", lambda **_: CupyOps(device=Untrue()))
    out = tmp_path / "gpu_check.json"
    assert gpu_check.main(["--out", str(out)]) == WRONG
    found = json.loads(out.read_text("utf-8"))["sections"]
    assert DeviceMismatch.__name__ in found["start"]["broke"]


@pytest.mark.parametrize(
    "words",
    [
        *("--budget-s 0", "--budget-s -1", "--budget-s nan", "--budget-s inf", "--budget-s soon"),
        *("--rows 0", "--queries 0", "--repeats 0", "-k 0", "-k 1001", "-k ten", "--named-k 1001"),
        *("--dimensions 0", "--dimensions 1041", "--memory-bytes -1", "--load-s 0", "--only all"),
    ],
)
def test_sizes_that_are_none_are_refused(gpu_check, words, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu_check.parse(words.split())
    assert ended.value.code == 2
    assert words.split()[0] in capsys.readouterr().err


class Slow:
    """A run of tests that is not done in time, and ends when it is asked to, or does not."""

    def __init__(self, command, obeys):
        self.report = Path(next(w for w in command if w.startswith("--junitxml=")).split("=")[1])
        self.obeys, self.killed, self.waits = obeys, False, []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        if not (self.killed or self.report.exists()):
            raise subprocess.TimeoutExpired("pytest", timeout)
        return 2

    def send_signal(self, number):
        assert number == signal.SIGINT
        if self.obeys:
            self.report.write_text(
                '<t><testcase classname="a" name="one"/><testcase time="0"/></t>'
            )

    def kill(self):
        self.killed = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()


@pytest.mark.parametrize("obeys", [True, False])
def test_tests_that_are_not_done_in_time_tell_of_those_that_were(gpu_check, monkeypatch, obeys):
    started = []

    def popen(command, **_):
        started.append(Slow(command, obeys))
        return started[0]

    monkeypatch.setattr(gpu_check.subprocess, "Popen", popen)
    found = gpu_check.run_tests(False, 7.0)
    assert found["why"] == "not done after 7 s"
    assert (found["passed"], found["failed"]) == (int(obeys), 0)
    assert found["files"]
    assert started[0].killed is not obeys
    assert not sys.modules["gpu_record"].held({"tests": found})


def test_tests_end_when_the_check_is_interrupted(gpu_check, monkeypatch):
    def popen(command, **_):
        process = Slow(command, False)
        monkeypatch.setattr(process, "wait", lambda timeout=None: process.killed or stop())
        ended.append(process)
        return process

    def stop():
        raise KeyboardInterrupt

    ended = []
    monkeypatch.setattr(gpu_check.subprocess, "Popen", popen)
    with pytest.raises(KeyboardInterrupt):
        gpu_check.run_tests(False, 7.0)
    assert ended[0].killed


def test_what_is_not_done_in_time_is_ended_with_all_that_it_started(gpu_check, tmp_path):
    """A process of a process holds the device as well; here, a pipe."""
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    command = ["sh", "-c", "echo begun; (exec 9>pipe; echo there >&9; exec sleep 600) & wait"]
    alone = sys.modules["gpu_sections"].alone
    try:
        for timeout_s in (0.05, 1.0):
            code, said = alone(command, tmp_path, os.environ, timeout_s)
            assert code is None
            assert said in ("", "begun\n")
            os.set_blocking(pipe, True)
            while os.read(pipe, 100):  # until nobody has the other end
                pass
    finally:
        os.close(pipe)
    assert alone(["sh", "-c", "echo out; echo err >&2; exit 3"], tmp_path, os.environ, 60.0) == (
        3, "out\nerr\n",
    )  # fmt: skip


def test_a_server_that_does_not_end_is_killed(gpu_check, tmp_path, monkeypatch, capsys):
    service = sys.modules["gpu_service"]
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    deaf += "print('127.0.0.1:1', flush=True); time.sleep(600)"
    popen, started = subprocess.Popen, []

    def start(command, **named):
        started.append(popen([sys.executable, "-c", deaf], **named))
        return started[0]

    monkeypatch.setattr(service.subprocess, "Popen", start)
    monkeypatch.setattr(service, "_END_S", 0.01)
    with service.serving(tmp_path, "cpu", os.environ, tmp_path / "log") as address:
        assert address == "127.0.0.1:1"
    assert "the server did not end" in capsys.readouterr().err
    assert started[0].returncode == -signal.SIGKILL
