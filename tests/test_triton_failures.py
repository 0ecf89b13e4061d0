"""A real Triton server that is killed, stopped, slow and started again, while it is asked."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from patience import PATIENCE, lives, until
from triton_cases import (
    SLOW,
    TOY,
    TOY_2,
    Ears,
    ask,
    client_of,
    need_server,
    question,
    served,
    toys,
)

from matchwright.engine.errors import (
    DependencyUnavailable,
    InvalidArgument,
    MatchwrightError,
    ModelLate,
    ModelUnavailable,
)
from matchwright.engine.models.breaker import Breaker
from matchwright.engine.models.local_server import LocalServer, find_tritonserver
from matchwright.engine.models.refs import ModelRef

pytest.importorskip("tritonclient")

RECOVERY_S = 2.0
RECOVERED_S = RECOVERY_S * PATIENCE
SLACK_S = 0.25 * PATIENCE
"""What a busy machine may add to a deadline; the answers are late by far less."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that tests may break; each leaves it running."""
    with served(toys(tmp_path_factory.mktemp("toys")), ["toy"]) as server:
        yield server


class Load(threading.Thread):
    """Asks all the time, and keeps how each call ended and how long it took."""

    def __init__(self, client, ref=TOY, seconds=0.3, what=0):
        super().__init__()
        self.client, self.ref, self.seconds, self.what = client, ref, seconds, what
        self.ended: list[tuple[float, str, float]] = []
        self._stop_asking = threading.Event()

    def run(self):
        while not self._stop_asking.is_set():
            inputs, began, word = question(what=self.what), time.monotonic(), "OK"
            try:
                answer = ask(self.client, inputs, self.ref, self.seconds)
                assert np.array_equal(answer, inputs["x"] + np.float32(self.ref.version))
            except MatchwrightError as error:
                word = error.details.get("why", type(error).__name__)
            self.ended.append((began, word, time.monotonic() - began))
            time.sleep(0.005)

    def stop(self):
        self._stop_asking.set()
        self.join()

    def __enter__(self):
        self.start()
        until(lambda: self.last() == "OK", "an answer", within=5 * PATIENCE)
        return self

    def __exit__(self, *_):
        self.stop()

    def last(self):
        return self.ended[-1][1] if self.ended else None

    def after(self, moment):
        return [word for began, word, _ in self.ended if began >= moment]

    @property
    def slowest(self):
        return max(seconds for _, _, seconds in self.ended)


def test_killed_and_started_again_on_the_same_port(server):
    """Sixteen callers at once: each call ends by its deadline, and is told of exactly once."""
    ears = Ears()
    with client_of(server, ears) as client, contextlib.ExitStack() as stack:
        loads = [stack.enter_context(Load(client, seconds=0.3 * PATIENCE)) for _ in range(16)]
        before, url = time.monotonic(), server.url
        server.kill()
        until(
            lambda: all(load.last() == "BREAKER_OPEN" for load in loads),
            "the breaker for all",
            within=3 * PATIENCE,
        )
        counts = Counter(word for load in loads for word in load.after(before))
        assert counts["UNREACHABLE"] <= 5 + 2 * 16  # five open it; some were on their way
        server.start()
        ready = time.monotonic()
        assert server.url == url
        until(lambda: all(load.last() == "OK" for load in loads), "answers", within=RECOVERED_S)
        since = time.monotonic()
        assert since - ready < RECOVERED_S
        until(lambda: all(len(load.after(since)) >= 5 for load in loads), "five more calls of each")
        assert {word for load in loads for word in load.after(since)} == {"OK"}
        stack.close()
        assert len(ears.hops) == sum(len(load.ended) for load in loads)
    assert max(load.slowest for load in loads) < loads[0].seconds + SLACK_S
    assert [state for _, state in ears.breakers] == ["open", "half_open", "closed"]


def test_stopped_and_continued(server, monkeypatch):
    """SIGSTOP: connections stay, nothing is answered. Only deadlines help, then the breaker."""
    ears, probes, probed = Ears(), [], Breaker.probed

    def told(self, *, there):
        probes.append(there)
        probed(self, there=there)

    monkeypatch.setattr(Breaker, "probed", told)
    with client_of(server, ears, breaker_open_ms=500) as client, Load(client) as load:
        before = time.monotonic()
        server.pause()
        try:
            until(lambda: load.last() == "BREAKER_OPEN", "the breaker")
            assert Counter(load.after(before))["ModelLate"] <= 5 + 1
            opened = time.monotonic()
            there = len(probes)
            until(
                lambda: len(probes) > there and load.after(opened),
                "a probe in vain, which callers do not wait for",
            )
            refused = [end for end in load.ended if end[0] >= opened]
            assert {word for _, word, _ in refused} == {"BREAKER_OPEN"}
            assert sorted(seconds for *_, seconds in refused)[len(refused) // 2] < 0.01 * PATIENCE
            assert {hop.attempts for hop in ears.hops if hop.outcome == "BREAKER_OPEN"} == {0}
        finally:
            server.resume()
        until(lambda: load.last() == "OK", "an answer", within=RECOVERED_S)
    assert load.slowest < load.seconds + SLACK_S


def test_a_connection_that_stays_silent_is_replaced(server):
    """What stands behind a vanished host: no answer, no reset, only silence."""
    with client_of(server, breaker_open_ms=100, silence_ms=300, breaker_failures=1) as client:
        ask(client, question())
        link = client._link
        server.pause()
        try:
            with pytest.raises(ModelLate):
                ask(client, question(), seconds=0.2)
            until(lambda: client._link is not link, "another connection")
        finally:
            server.resume()
        until(lambda: client.breaker(TOY).state == "half_open", "a probe", within=RECOVERED_S)
        assert ask(client, question()).shape == (3, 4)


def test_a_slow_model_is_cut_off_alone(tmp_path):
    """The server is well, one version is not: its breaker opens, the other's does not."""
    two, settings = toys(tmp_path, versions=(1, 2)), {"breaker_failures": 2, "breaker_open_ms": 300}
    with served(two, ["toy"]) as server, client_of(server, **settings) as client:
        with Load(client, TOY_2) as well:
            for _ in range(2):
                with pytest.raises(ModelLate):
                    ask(client, question(what=SLOW + 400), seconds=0.1)
            until(lambda: client.breaker(TOY).state == "open", "the breaker", within=1 * PATIENCE)
            with pytest.raises(ModelUnavailable) as caught:
                ask(client, question(), seconds=0.1)
            assert caught.value.details == {"model": "toy:1", "why": "BREAKER_OPEN"}
            until(lambda: client.breaker(TOY).state == "half_open", "a probe", within=RECOVERED_S)
            until(lambda: _answers(client), "an answer", within=RECOVERED_S)
        assert client.breaker(TOY).state == "closed"
    assert {word for _, word, _ in well.ended} == {"OK"}


def _answers(client):
    try:
        return ask(client, question(), seconds=0.5) is not None
    except (ModelLate, ModelUnavailable):
        return False


def test_only_unavailable_is_sent_again_and_only_within_the_deadline(server):
    ears = Ears()
    with client_of(server, ears, retries=50, breaker_failures=10_000) as client:
        ask(client, question())
        server.kill()
        began = time.monotonic()
        with pytest.raises(ModelUnavailable):
            ask(client, question(), seconds=0.5)
        assert time.monotonic() - began < 0.5 + SLACK_S
        assert 2 <= ears.hops[-1].attempts <= 10
        thread = threading.Thread(target=server.start)
        thread.start()
        answer = ask(client, question(), seconds=30)  # it comes back while we try
        thread.join()
        assert answer.shape == (3, 4)
        assert ears.hops[-1].attempts > 1


def test_nothing_grows_while_it_is_killed_and_started_again(server, count):
    """Descriptors, threads, regions and, with full counts, memory."""
    cycles = count(reduced=3, full=100)
    settings = {"breaker_open_ms": 100, "shared_memory_bytes_min": 0, "breaker_failures": 2}
    with client_of(server, **settings) as client:
        sizes = []
        for cycle in range(cycles):
            until(lambda: _answers(client), "an answer")
            for _ in range(20):
                ask(client, question(rows=5_000))
            until(lambda: not client._aside, "the end of every call")
            sizes.append((_descriptors(), threading.active_count(), len(client._sharing.regions)))
            if cycle == min(10, cycles - 1):
                memory = _memory()
            server.kill()
            for _ in range(5):
                assert not _answers(client)
            server.start()
        until(lambda: _answers(client), "an answer")
    for first, largest in zip(sizes[0], map(max, zip(*sizes, strict=True)), strict=True):
        assert largest <= first + 2, sizes
    assert _memory() - memory < 16 << 20


def _descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def _memory():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


# ── The server's own process ──────────────────────────────────────────────────────────────────


def test_a_server_does_not_outlive_whoever_started_it(tmp_path):
    need_server()
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from matchwright.engine.models.local_server import LocalServer\n"
        "server = LocalServer(repository=Path(sys.argv[1]), models=['toy'])\n"
        "server.start()\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(toys(tmp_path))], stdout=subprocess.PIPE
    )
    with parent:
        pid = int(parent.stdout.readline())
        assert lives(pid)
        group = os.getpgid(pid)
        parent.kill()
        parent.wait()
        until(lambda: not lives(pid), "the server's end")
    with pytest.raises(ProcessLookupError):
        until(lambda: os.killpg(group, 0) is not None, "the end of its group")


def test_a_stopped_server_leaves_nothing(tmp_path):
    with served(toys(tmp_path), ["toy"]) as server:
        pid, folder = server.pid, server.log_file.parent
        group = os.getpgid(pid)
        mine = _shared_of(server)
        assert mine
        os.kill(pid, signal.SIGSTOP)  # even one that hears nothing
    assert not lives(pid)
    assert not folder.exists()
    assert not any(Path("/dev/shm", name).exists() for name in mine)
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def _shared_of(server):
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    return {Path(line.split()[-1]).name for line in maps.splitlines() if "/dev/shm/" in line}


def test_a_model_that_does_not_load_is_told_with_the_log(tmp_path):
    repository = toys(tmp_path)
    (repository / "toy" / "1" / "model.py").write_text("raise OSError('no weights here')\n")
    server = LocalServer(repository=repository, models=["toy"], found=need_server())
    with pytest.raises(DependencyUnavailable, match=r"the Triton server ended: (.|\n)*toy"):
        server.start()
    assert not server.running


def test_where_there_is_no_server_it_is_said_how_to_get_one(tmp_path, monkeypatch):
    with pytest.raises(InvalidArgument, match="MATCHWRIGHT_TRITONSERVER"):
        find_tritonserver(tmp_path / "nothing")
    monkeypatch.setattr("matchwright.engine.models.local_server.__file__", str(tmp_path / "x.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyUnavailable, match=r"make \.venv-triton/\.done"):
        find_tritonserver()
    (tmp_path / "tritonserver").write_text("#!/bin/sh\n")
    (tmp_path / "tritonserver").chmod(0o755)
    assert find_tritonserver().binary == tmp_path / "tritonserver"
    assert ModelRef("a", 1) < ModelRef("a", 2)


@pytest.mark.parametrize(
    ("told", "port", "starts"),
    [
        ("terminate called after boost::interprocess::lock_exception", None, 3),
        ("terminate called after boost::interprocess::lock_exception", 5, 3),
        ("Address already in use", None, 3),
        ("Address already in use", 5, 1),
        ("failed to load all models", None, 1),
    ],
)
def test_only_what_may_pass_is_started_again(tmp_path, monkeypatch, told, port, starts):
    tried = []

    def wait(self, port, until):
        raise DependencyUnavailable(f"the Triton server ended: {told}")

    monkeypatch.setattr(LocalServer, "_launch", lambda self, port: tried.append(port))
    monkeypatch.setattr(LocalServer, "_wait", wait)
    with pytest.raises(DependencyUnavailable, match="ended"):
        LocalServer(repository=tmp_path, models=[], port=port).start()
    assert len(tried) == starts
