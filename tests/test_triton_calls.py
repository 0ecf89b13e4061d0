"""Calls of a real Triton server: answers, versions, deadlines, and answers that cannot be used."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
from patience import PATIENCE, until, until_async
from triton_cases import (
    HEADER,
    MISSING,
    NAN,
    RAISES,
    SAYS_NO,
    SLOW,
    TOY,
    TOY_2,
    WRONG_ROWS,
    WRONG_TYPE,
    WRONG_WIDTH,
    Ears,
    ask,
    client_of,
    handed_over,
    need_server,
    question,
    served,
    toy_server,
    toys,
)

from matchwright.engine.errors import (
    FailedPrecondition,
    InvalidArgument,
    ModelLate,
    ModelUnavailable,
    ModelWrong,
)
from matchwright.engine.models.local_server import LocalServer
from matchwright.engine.models.refs import ModelRef

__all__ = ["toy_server"]

pytest.importorskip("tritonclient")


@pytest.fixture(scope="module")
def ears():
    return Ears()


@pytest.fixture(scope="module")
def client(toy_server, ears):
    with client_of(toy_server, ears, shared_memory="off") as made:
        yield made


def test_an_answer_is_the_model_s_and_cannot_be_changed(client, ears):
    inputs = question(rows=7)
    answer = ask(client, inputs)
    np.testing.assert_array_equal(answer, inputs["x"] + np.float32(1))
    assert answer.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        answer[0] = 0
    hop = ears.hops[-1]
    assert (hop.model, hop.version, hop.outcome, hop.attempts) == ("toy", 1, "OK", 1)
    assert (hop.rows, hop.way, hop.sent_bytes, hop.received_bytes) == (7, "wire", 140, 112)


def test_inputs_need_not_be_contiguous(client):
    x = np.arange(24, dtype=np.float32).reshape(4, 6).T
    answer = ask(client, {"x": x, "what": np.zeros((6, 1), np.int32)})
    np.testing.assert_array_equal(answer, x + 1)


def test_it_is_awaited_from_any_event_loop(client):
    async def several(seed):
        inputs = [question(seed=seed + i) for i in range(8)]
        soon = time.monotonic() + 10
        asked = [client.infer(TOY, each, ["y"], deadline=soon) for each in inputs]
        for each, answer in zip(inputs, await asyncio.gather(*asked), strict=True):
            np.testing.assert_array_equal(answer["y"], each["x"] + 1)

    for seed in (0, 100):  # two loops, one after the other
        asyncio.run(several(seed))


def test_sixty_four_at_once_from_threads_and_from_a_loop(client, caplog):
    wrong, inputs = [], [question(rows=1 + i % 5, seed=i) for i in range(64)]

    def one(each):
        if not np.array_equal(ask(client, each, seconds=30), each["x"] + 1):
            wrong.append(each)

    threads = [threading.Thread(target=one, args=(each,)) for each in inputs]

    async def all_of_them():
        soon = time.monotonic() + 30
        asked = [client.infer(TOY, each, ["y"], deadline=soon) for each in inputs]
        return await asyncio.gather(*asked)

    for thread in threads:
        thread.start()
    answers = asyncio.run(all_of_them())
    for thread in threads:
        thread.join()
    assert wrong == []
    for each, answer in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], each["x"] + 1)
    assert caplog.records == []  # two event loops with gRPC in them do not disturb each other


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (NAN, "1 values that are NaN"),
        (WRONG_ROWS, r"y is \(2, 4\); expected \(3, 4\)"),
        (WRONG_WIDTH, r"y is \(3, 3\); expected \(3, 4\)"),
        (WRONG_TYPE, "y is of int32; expected FP32"),
        (MISSING, "it left out y"),
        (RAISES, "the toy is broken"),
        (SAYS_NO, "the toy says no"),
    ],
)
def test_an_answer_that_cannot_be_used_is_never_returned(client, ears, what, says):
    with pytest.raises(ModelWrong, match=says) as caught:
        ask(client, question(what=what))
    assert caught.value.details["model"] == "toy:1"
    assert ears.hops[-1].outcome == "WRONG_OUTPUT"
    assert ears.hops[-1].attempts == 1  # it is not asked again: it would say the same
    assert client.breaker(TOY).state == "closed"  # and it did answer


@pytest.mark.parametrize("ref", [ModelRef("toy", 9), ModelRef("nobody", 1)], ids=str)
def test_what_is_not_there_is_not_ready(client, ears, ref):
    with pytest.raises(ModelUnavailable, match="not ready") as caught:
        ask(client, question(), ref)
    assert caught.value.details == {"model": str(ref), "why": "NOT_READY"}
    assert ears.hops[-1].outcome == "NOT_READY"
    assert not client.ready(ref, deadline=time.monotonic() + 5)


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ({}, ["y"], "at least one input"),
        (question(), [], "at least one input and one output"),
        ({"x": np.zeros((2, 4)), "what": np.zeros((3, 1), np.int32)}, ["y"], "one number of rows"),
        ({"x": np.zeros((0, 4), np.float32)}, ["y"], "1 or more"),
        ({"x": np.array("a")}, ["y"], "expected one of"),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused(client, inputs, outputs, says):
    with pytest.raises(InvalidArgument, match=says):
        client.infer_blocking(TOY, inputs, outputs, deadline=time.monotonic() + 5)


def test_inputs_of_another_type_or_shape_are_the_model_s_to_refuse(client):
    soon = time.monotonic() + 5
    wide = {"x": np.zeros((2, 5), np.float32), "what": np.zeros((2, 1), np.int32)}
    with pytest.raises(ModelWrong, match="unexpected shape for input 'x'"):
        client.infer_blocking(TOY, wide, ["y"], deadline=soon)
    with pytest.raises(ModelWrong, match="expects 'FP32'"):
        client.infer_blocking(TOY, question() | {"x": np.zeros((3, 4))}, ["y"], deadline=soon)
    with pytest.raises(ModelWrong, match=r"no output z; it has y"):
        client.infer_blocking(TOY, question(), ["z"], deadline=soon)


def test_more_than_a_message_holds_is_refused_before_it_is_sent(toy_server):
    ears = Ears()
    with client_of(toy_server, ears, message_bytes_max=1 << 20) as client:
        with pytest.raises(InvalidArgument, match="send fewer rows") as caught:
            ask(client, question(rows=60_000))
        assert caught.value.details["limit"] == "message_bytes_max"
        assert ears.hops == []
        assert ask(client, question(rows=40_000)).shape == (40_000, 4)


def test_a_late_answer_is_not_waited_for(client, ears):
    for asking in (ask, _ask_in_a_loop):
        began = time.monotonic()
        with pytest.raises(ModelLate, match="toy:1"):
            asking(client, question(what=SLOW + 600), seconds=0.15)
        took = time.monotonic() - began
        assert 0.14 < took < 0.45 * PATIENCE
    # The toy is one instance: first it finishes what nobody waits for.
    assert ask(client, question(), seconds=60.0).shape == (3, 4)
    assert [hop.outcome for hop in ears.hops[-3:]] == ["LATE", "LATE", "OK"]


def _ask_in_a_loop(client, inputs, seconds):
    async def asked():
        return await client.infer(TOY, inputs, ["y"], deadline=time.monotonic() + seconds)

    return asyncio.run(asked())


def test_no_time_left_is_late_without_asking(client, ears):
    for asking in (ask, _ask_in_a_loop):
        with pytest.raises(ModelLate, match="no time left"):
            asking(client, question(), seconds=-0.1)
        assert (ears.hops[-1].outcome, ears.hops[-1].attempts) == ("LATE", 0)


def test_a_caller_that_leaves_ends_the_call(client, ears, monkeypatch):
    sent = handed_over(monkeypatch)

    async def leaving():
        task = asyncio.create_task(
            client.infer(TOY, question(what=SLOW + 500), ["y"], deadline=time.monotonic() + 5)
        )
        await until_async(lambda: sent, "the call on its way")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    count = len(ears.hops)
    asyncio.run(leaving())
    until(lambda: len(ears.hops) > count, "the end of the call")
    assert ears.hops[-1].outcome == "CANCELLED"
    assert ears.hops[-1].seconds < 0.4 * PATIENCE
    assert client.breaker(TOY).state == "closed"


def test_a_trace_goes_with_the_call(toy_server):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with client_of(toy_server, Ears(headers={"traceparent": parent})) as client:
        assert ask(client, question(what=HEADER))[0, 0] == zlib.crc32(parent.encode()) % 65_536


def test_versions_roll_over_without_a_failed_call(tmp_path):
    """Version 2 comes beside version 1, then 1 goes, while both are asked all the time."""
    repository = toys(tmp_path, versions=(1,))
    with served(repository, ["toy"]) as server, client_of(server) as client:
        assert client.versions("toy") == (1,)
        stop, failed, answered = threading.Event(), [], []

        def ask_on(ref):
            while not stop.is_set():
                inputs = question(seed=len(answered))
                try:
                    answer = ask(client, inputs, ref)
                    right = np.array_equal(answer, inputs["x"] + np.float32(ref.version))
                    answered.append((ref.version, right))
                except ModelUnavailable as error:
                    failed.append((ref.version, error))

        thread = threading.Thread(target=ask_on, args=(TOY,))
        thread.start()
        toys(tmp_path, versions=(1, 2))
        client.load("toy")
        assert client.versions("toy") == (1, 2)
        later = threading.Thread(target=ask_on, args=(TOY_2,))
        later.start()
        until(lambda: failed or {version for version, _ in answered} == {1, 2}, "both versions")
        stop.set()
        thread.join()
        later.join()
        assert failed == []
        assert {version for version, _ in answered} == {1, 2}
        assert all(right for _, right in answered)
        client.unload("toy")
        assert client.versions("toy") == ()
        with pytest.raises(ModelUnavailable) as caught:
            ask(client, question())
        assert caught.value.details["why"] == "NOT_READY"
        with pytest.raises(ModelWrong, match="failed to load 'nobody'"):
            client.load("nobody")


def test_the_server_tells_what_it_has(client, toy_server):
    ask(client, question())
    assert client.ready() is True
    assert client.ready(TOY) is True
    assert [(one.name, one.version, one.ready) for one in client.index()] == [("toy", 1, True)]
    config = client.config_of(TOY)
    assert config["input"][0] == {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}
    statistics = client.statistics(TOY)
    assert statistics["inference_stats"]["success"]["count"] >= 1
    assert statistics["inference_stats"]["compute_infer"]["ns"] > 0


def test_a_closed_client_and_a_forked_one_say_so(toy_server):
    with client_of(toy_server) as client:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of 3.12: there are threads
            pid = os.fork()
        if pid == 0:
            try:
                ask(client, question())
            except FailedPrecondition as error:
                os._exit(0 if "make one in each process" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert ask(client, question()).shape == (3, 4)
    client.close()
    with pytest.raises(ModelUnavailable, match="closed"):
        ask(client, question())
    assert client.ready() is False


def test_over_tls_the_server_s_certificate_counts(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make certificates")
    found = need_server()
    for name in ("right", "wrong"):
        subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
        key = ["-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        command = ["openssl", "req", "-x509", "-days", "2", *key, *subject]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    right, wrong = tmp_path / "right.pem", tmp_path / "wrong.pem"
    options = (
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={right}",
        f"--grpc-server-key={tmp_path / 'right.key'}",
    )
    toy = toys(tmp_path / "models")
    with LocalServer(
        repository=toy, models=["toy"], found=found, options=options, tls_ca=right
    ) as server:
        with client_of(server, tls_ca=right) as client:
            assert ask(client, question()).shape == (3, 4)
        for settings in ({}, {"tls_ca": wrong}):
            with client_of(server, **settings) as client:
                with pytest.raises(ModelUnavailable) as caught:
                    ask(client, question())
                assert caught.value.details["why"] == "UNREACHABLE"


def test_nobody_there_is_unreachable(unused_port):
    from matchwright.engine.models.triton import Triton, TritonConfig

    ears = Ears()
    with Triton(TritonConfig(url=f"127.0.0.1:{unused_port}"), ears) as client:
        assert client.ready(deadline=time.monotonic() + 1) is False
        with pytest.raises(ModelUnavailable, match="is it running") as caught:
            ask(client, question())
        assert caught.value.details["why"] == "UNREACHABLE"
        assert ears.hops[-1].attempts == 3  # UNAVAILABLE is tried again, twice


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]  # bound, but nobody listens


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://127.0.0.1:8001"},
        {"url": "127.0.0.1"},
        {"url": "h:1", "retries": -1},
        {"url": "h:1", "shared_memory": "on"},
        {"url": "h:1", "shared_memory": "perhaps"},
    ],
    ids=str,
)
def test_settings_are_checked(settings):
    from matchwright.engine.models.triton import TritonConfig

    with pytest.raises(InvalidArgument):
        TritonConfig(**settings)
