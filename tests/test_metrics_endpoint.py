"""The endpoint of the metrics stands in nobody's way; what state the parts of a server are in."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import suppress

import grpc
import metrics_cases
import pytest
import service_cases
from grpc_health.v1 import health_pb2, health_pb2_grpc
from metrics_cases import METHODS, PATIENCE_S, config, get, value
from patience import until
from service_cases import AS_OF, job_id

from matchwright.clients import AsyncClient, Client
from matchwright.engine.config import ServerConfig, host_and_port
from matchwright.engine.errors import DependencyUnavailable, InvalidArgument, StoreError
from matchwright.engine.metrics import Metrics, Sample
from matchwright.engine.service import running
from matchwright.engine.service.conditions import Breakers, Conditions
from matchwright.engine.service.endpoint import CONNECTIONS_MAX, Endpoint
from matchwright.engine.service.observe import Observer
from matchwright.engine.store import Store

folder = service_cases.folder
watched = metrics_cases.watched


# ── The endpoint ──────────────────────────────────────────────────────────────────────────────


def test_without_an_address_nothing_is_there(folder):
    observer = Observer(ServerConfig(stores={"default": folder}), METHODS)
    batcher = object()
    assert observer.interceptors() == []
    assert observer.batcher("default", batcher) is batcher
    assert observer.kernels is None
    before = {thread.name for thread in threading.enumerate()}
    with running(ServerConfig(stores={"default": folder}, port=0)):
        now = {thread.name for thread in threading.enumerate()} - before
    assert "matchwright-metrics" not in now


def test_healthz_and_unknown_paths(watched):
    _, at = watched
    told = json.loads(get(at, "/healthz"))
    assert told == {
        "serving": True,
        "parts": {"matchwright.store.default": "ok", "matchwright.device": "ok"},
    }
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(at, "/nothing")
    assert caught.value.code == 404
    caught.value.close()


def test_openmetrics_is_told_when_asked_for(watched):
    _, at = watched
    text = get(at, Accept="application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")


def test_a_slow_scrape_stands_in_nobodys_way(folder, monkeypatch):
    sound = Metrics.text
    begun, go, got = threading.Event(), threading.Event(), []

    def slow(self, accept=""):
        begun.set()
        go.wait(PATIENCE_S)
        return sound(self, accept)

    monkeypatch.setattr(Metrics, "text", slow)
    asked = config(folder)
    with running(asked) as address, Client(address, timeout_s=30.0) as client:
        scrape = threading.Thread(target=lambda: got.append(get(asked.metrics_address)))
        scrape.start()
        try:
            assert begun.wait(PATIENCE_S)
            for n in range(5):
                client.find_freelancers(job_id(n), as_of=AS_OF)
            assert got == []
        finally:
            go.set()
            scrape.join()
    assert "matchwright_" in got[0]


def test_scrapes_under_load(folder, count):
    asked = config(folder)
    calls = count(reduced=120, full=5_000)

    async def ask(address):
        async with AsyncClient(address, timeout_s=60.0) as client:
            return await asyncio.gather(
                *(client.find_freelancers(job_id(n % 50), as_of=AS_OF) for n in range(calls))
            )

    stop, texts, failed = threading.Event(), [], []

    def scrape():
        while not stop.is_set():
            try:
                texts.append(get(asked.metrics_address))
            except Exception as error:
                failed.append(error)

    with running(asked) as address:
        threads = [threading.Thread(target=scrape) for _ in range(3)]
        for thread in threads:
            thread.start()
        answered = asyncio.run(ask(address))
        stop.set()
        for thread in threads:
            thread.join()
        last = get(asked.metrics_address)
    assert len(answered) == calls
    assert failed == []
    assert value(last, "matchwright_requests_total", method="FindFreelancers", code="OK") == calls
    batches = [value(text, "matchwright_batches_total") for text in texts]
    assert texts
    assert 0 <= max(batches) <= value(last, "matchwright_batches_total")


def answer(at):
    with suppress(OSError):
        return get(at, "/healthz")
    return None


def test_silent_connections_do_not_keep_monitors_out(monkeypatch):
    monkeypatch.setattr("matchwright.engine.service.endpoint._Handler.timeout", 0.5)
    endpoint = Endpoint(Metrics({}), lambda: (True, {}))
    at = endpoint.start("127.0.0.1", 0)
    host, port = host_and_port(at, "x")
    silent = [socket.create_connection((host, port)) for _ in range(3 * CONNECTIONS_MAX)]
    try:
        assert "serving" in until(lambda: answer(at), "an answer", within=PATIENCE_S)
    finally:
        for each in silent:
            each.close()
        endpoint.close()
    with pytest.raises(OSError):
        socket.create_connection((host, port), timeout=1.0)


def test_a_defect_of_a_metric_is_a_500_and_is_logged(caplog):
    metrics = Metrics({})
    metrics.at_scrape(lambda: [Sample("matchwright_no_such", 1.0 / len(()))])
    endpoint = Endpoint(metrics, lambda: (True, {}))
    at = endpoint.start("127.0.0.1", 0)
    try:
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(at)
        assert caught.value.code == 500
        assert "ZeroDivisionError" not in caught.value.read().decode()
        assert "ZeroDivisionError" in caplog.text
    finally:
        endpoint.close()


def test_the_endpoint_ends_with_the_server(folder):
    asked, before = config(folder), set(threading.enumerate())
    with running(asked):
        assert "matchwright_build_info" in get(asked.metrics_address)
    with pytest.raises(OSError):
        socket.create_connection(host_and_port(asked.metrics_address, "x"), timeout=1.0)
    ours = {"matchwright-metrics", "matchwright-device", "matchwright-server"}
    assert not [t for t in set(threading.enumerate()) - before if t.name in ours]


def test_an_address_that_is_taken_or_none_is_told(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        asked = ServerConfig(stores={"default": folder}, port=0, metrics_address=address)
        with pytest.raises(DependencyUnavailable, match="for metrics"), running(asked):
            pass
    for wrong in ("9464", ":9464", "127.0.0.1:", "127.0.0.1:99999", "host:port"):
        with pytest.raises(InvalidArgument, match="HOST:PORT"):
            ServerConfig(stores={"default": folder}, metrics_address=wrong)
    assert host_and_port("[::1]:9464", "x") == ("::1", 9464)


# ── The state of the parts ────────────────────────────────────────────────────────────────────


def test_parts_in_trouble_are_told_everywhere(folder, monkeypatch):
    """A store that cannot be read anew: its own check fails, the service goes on."""
    trouble = StoreError("the disk is gone")
    monkeypatch.setattr(Store, "trouble", property(lambda self: trouble))
    monkeypatch.setattr("matchwright.engine.service.conditions.LOOK_S", 0.05)
    asked = config(folder)

    def status(channel, name):
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE_S).status

    with running(asked) as address, grpc.insecure_channel(address) as channel:
        well = health_pb2.HealthCheckResponse.SERVING
        until(
            lambda: status(channel, "matchwright.device") == well, "the device", within=PATIENCE_S
        )
        name = "matchwright.store.default"
        assert status(channel, name) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert status(channel, service_cases.SERVICE) == well
        told = json.loads(get(asked.metrics_address, "/healthz"))
        assert told["serving"] is True
        assert told["parts"][name] == "STORE_ERROR"
        text = get(asked.metrics_address)
        assert value(text, "matchwright_store_trouble", marketplace="default") == 1
        monkeypatch.setattr(Store, "trouble", property(lambda self: None))
        until(lambda: status(channel, name) == well, name, within=PATIENCE_S)


class Kernels:
    name = "cupy"
    health = None


def test_a_lost_device_is_told(folder):
    from matchwright.kernels.health import Health

    kernels = Kernels()
    with Store.open(folder) as store:
        conditions = Conditions({"default": store}, kernels, Breakers())
        assert conditions.parts()["matchwright.device"] is None
        kernels.health = Health(device="H100", on_device=True)
        kernels.health.failed("CALL_FAILED")
        kernels.health.lose("illegal address", "numkong")
        kernels.health.by_cpu("LOST")
        conditions.look()
        assert conditions.parts()["matchwright.device"] == "illegal address"
        assert conditions.parts()["matchwright.models"] is None
        told = [(s.name, s.value, dict(s.labels)) for s in conditions.samples()]
    assert ("matchwright_device_lost", 1.0, {}) in told
    assert ("matchwright_device_info", 1, {"device": "numkong"}) in told
    assert ("matchwright_device_fallbacks_total", 1, {"reason": "LOST"}) in told
    assert ("matchwright_device_errors_total", 1, {"reason": "CALL_FAILED"}) in told


def test_a_store_that_fails_hides_no_other(folder, caplog):
    class Broken:
        def snapshot(self):
            raise RuntimeError("defect")

    with Store.open(folder) as store:
        conditions = Conditions({"a": Broken(), "b": store}, Kernels())
        conditions.look()
    assert conditions.parts()["matchwright.store.a"] == "INTERNAL"
    assert conditions.parts()["matchwright.store.b"] is None
    assert conditions.states["b"].number is not None
    assert "defect" in caplog.text


# ── The command ───────────────────────────────────────────────────────────────────────────────


def test_serve_says_where_its_metrics_are(folder):
    command = [sys.executable, "-m", "matchwright.engine.cli", "serve", "--store", str(folder)]
    command += ["--port", "0", "--device", "cpu", "--metrics-address", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith("listening on 127.0.0.1:")
            told = process.stdout.readline().strip()
            at = told.removeprefix("metrics at http://").removesuffix("/metrics")
            assert value(get(at), "matchwright_requests_in_flight") == 0
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            if process.poll() is None:
                process.kill()
