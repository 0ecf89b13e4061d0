"""Memory shared with a real Triton server: the same bits as over the wire, and nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from patience import PATIENCE, until
from triton_cases import (
    FINE,
    MISSING,
    NAN,
    RAISES,
    SLOW,
    TOY,
    WRONG_ROWS,
    WRONG_TYPE,
    Ears,
    ask,
    client_of,
    handed_over,
    question,
    served,
    toy_server,
    toys,
)

from matchwright.engine.errors import DependencyUnavailable, ModelLate, ModelWrong

pytest.importorskip("tritonclient")
from matchwright.engine.models.triton.regions import Region, Regions, padded

__all__ = ["toy_server"]

ALWAYS = {"shared_memory_bytes_min": 0}


def ours():
    """Regions of this process."""
    return {path.name for path in Path("/dev/shm").glob(f"matchwright-{os.getpid()}-*")}


def registered(server):
    """Names of the regions that the server knows."""
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(server.url) as other:
        return set(other.get_system_shared_memory_status().regions)


def test_shared_memory_equals_the_wire_to_the_bit(toy_server, count):
    ears, rng = Ears(), np.random.default_rng(3)
    with (
        client_of(toy_server, ears, **ALWAYS) as shared,
        client_of(toy_server, shared_memory="off") as wire,
    ):
        for case in range(count(reduced=40, full=2_000)):
            rows = int(rng.integers(1, 1 << rng.integers(1, 14)))
            bits = rng.integers(0, 1 << 32, (rows, 4), np.uint32).view(np.float32)
            inputs = question(rows) | {"x": np.nan_to_num(bits, nan=case, posinf=1, neginf=-1)}
            ones, others = ask(shared, inputs), ask(wire, inputs)
            assert ones.tobytes() == others.tobytes()
    assert {hop.way for hop in ears.hops} == {"shared_memory"}
    assert ears.ways == [("shared_memory", ears.ways[0][1])]
    assert "has opened our memory" in ears.ways[0][1]


def test_what_is_too_small_or_too_large_goes_over_the_wire(toy_server):
    ears = Ears()
    settings = {"shared_memory_bytes_min": 1_000, "shared_memory_bytes_max": 1 << 18}
    with client_of(toy_server, ears, **settings) as client:
        for rows in (10, 100, 20_000):
            assert ask(client, question(rows)).shape == (rows, 4)
    assert [hop.way for hop in ears.hops] == ["wire", "shared_memory", "wire"]


def test_nothing_is_left_behind(toy_server):
    with client_of(toy_server, **ALWAYS) as client:
        assert ours() == set()
        for rows in (1, 10_000, 50_000, 10_000):
            ask(client, question(rows))
        assert len(ours()) == 3  # used again, and one for each size
        assert registered(toy_server) == ours()
    assert ours() == set()
    assert registered(toy_server) == set()


def test_sixty_four_at_once_share_no_region(toy_server):
    wrong = []
    with client_of(toy_server, **ALWAYS) as client:

        def ask_often(seed):
            for turn in range(4):
                inputs = question(rows=500 + seed, seed=1_000 * turn + seed)
                if not np.array_equal(ask(client, inputs, seconds=30), inputs["x"] + 1):
                    wrong.append(seed)

        threads = [threading.Thread(target=ask_often, args=(seed,)) for seed in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 <= len(ours()) <= 64
    assert wrong == []
    assert ours() == set()


@pytest.mark.parametrize("what", [NAN, WRONG_ROWS, WRONG_TYPE, MISSING, RAISES])
def test_wrong_answers_are_wrong_in_shared_memory_too(toy_server, what):
    with client_of(toy_server, **ALWAYS) as client:
        ask(client, question(what=FINE))  # what was there before is not taken for the answer
        with pytest.raises(ModelWrong):
            ask(client, question(what=what))
        assert np.array_equal(ask(client, question()), question()["x"] + 1)


def test_a_region_is_not_used_again_while_the_server_may_write_into_it(toy_server):
    with client_of(toy_server, **ALWAYS) as client:
        ask(client, question())
        (before,) = ours()
        with pytest.raises(ModelLate):
            ask(client, question(what=SLOW + 700), seconds=0.1)
        inputs = question(seed=5)
        answer = ask(client, inputs)  # behind the slow one, which writes before it
        assert np.array_equal(answer, inputs["x"] + 1)
        assert before not in {region.name for region in client._sharing.regions._idle[1 << 16]}
        until(lambda: before not in ours(), "the end of the region", within=5 * PATIENCE)
        assert before not in registered(toy_server)


def test_after_a_restart_regions_are_registered_again(tmp_path):
    ears = Ears()
    with (
        served(toys(tmp_path), ["toy"]) as server,
        client_of(server, ears, breaker_failures=1_000, **ALWAYS) as client,
    ):
        ask(client, question())
        known = ours()
        server.kill()
        server.start()
        until(lambda: client.ready(TOY), "the server", within=5 * PATIENCE)
        assert np.array_equal(ask(client, question()), question()["x"] + 1)
        assert ears.hops[-1].way == "shared_memory"
        assert ours() == known
        assert registered(server) == known
        # and when nobody noticed that it is another one
        from tritonclient.grpc import InferenceServerClient

        with InferenceServerClient(server.url) as other:
            other.unregister_system_shared_memory()
        assert np.array_equal(ask(client, question()), question()["x"] + 1)
        assert (ears.hops[-1].way, ears.hops[-1].attempts) == ("shared_memory", 2)


def test_a_server_that_cannot_open_our_memory_gets_it_over_the_wire(toy_server, monkeypatch):
    """As one in a container with a /dev/shm of its own: the real server says no."""
    monkeypatch.setattr(Region, "key", property(lambda self: "/not-there"))
    ears = Ears()
    with client_of(toy_server, ears, **ALWAYS) as client:
        for _ in range(2):
            assert np.array_equal(ask(client, question()), question()["x"] + 1)
        assert ours() == set()
    assert [hop.way for hop in ears.hops] == ["wire", "wire"]
    assert [way for way, _ in ears.ways] == ["wire"]
    assert "Unable to open shared memory region" in ears.ways[0][1]
    with client_of(toy_server, shared_memory="on", **ALWAYS) as client:
        with pytest.raises(DependencyUnavailable, match="shared memory is on, but"):
            ask(client, question())


def test_a_system_without_shared_memory_uses_the_wire(toy_server, monkeypatch):
    def none_left(name, create, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matchwright.engine.models.triton.regions.SharedMemory", none_left)
    ears = Ears()
    with client_of(toy_server, ears, **ALWAYS) as client:
        assert ask(client, question()).shape == (3, 4)
    assert "No space left" in ears.ways[0][1]


def test_a_cancelled_call_gives_its_region_back(toy_server, monkeypatch):
    with client_of(toy_server, **ALWAYS) as client:
        ask(client, question())
        sent = handed_over(monkeypatch)
        future = client._submit(
            TOY, client._ask(client._begin(TOY, question(what=1_300), ["y"], None))
        )
        until(lambda: sent, "the call on its way")
        future.cancel()
        until(lambda: not client._aside and len(ours()) == 0, "the end of its region")
        assert ask(client, question()).shape == (3, 4)


def test_a_process_that_is_killed_leaves_no_memory(toy_server):
    script = (
        "import sys\n"
        "sys.path[:0] = sys.argv[2].split(':')\n"
        "from triton_cases import *\n"
        "from matchwright.engine.models.triton import Triton\n"
        "client = Triton(TritonConfig(url=sys.argv[1], shared_memory_bytes_min=0))\n"
        "ask(client, question())\n"
        "print('asked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    tests = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", script, toy_server.url, tests],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout.readline() == b"asked\n"
        theirs = f"matchwright-{process.pid}-*"
        assert list(Path("/dev/shm").glob(theirs))
        process.kill()
        memory = Path("/dev/shm")
        until(lambda: not list(memory.glob(theirs)), "the end of its memory", within=5 * PATIENCE)
    with client_of(toy_server) as client:  # the server, which still has it open, is well
        assert ask(client, question()).shape == (3, 4)


def test_regions_keep_tensors_apart():
    regions = Regions(1 << 20)
    region = regions.take(100_000)
    assert region.size == 1 << 17
    a = np.arange(33, dtype=np.int32)
    assert region.write("in:a", a) == (0, 132)
    region.blank("out:b", 8)
    assert region.placed["out:b"] == (192, 8)
    assert np.isnan(np.frombuffer(region.find("b", 8), np.float32)).all()
    assert padded(132) == 192
    assert region.find("c", 8) is None
    assert region.content[:132].tobytes() == a.tobytes()
    regions.give(region)
    assert regions.take(1 << 17) is region
    assert region.placed == {}
    assert regions.take(1 << 20) is None  # together they would be more than there may be
    regions.drop(region)
    assert len(regions) == 0
    assert ours() == set()
