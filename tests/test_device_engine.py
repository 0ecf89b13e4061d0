"""A device behind the engine, emulated: chosen in every command, planned, compared with the store's
own questions, lost in service, and brought the next epoch while this one answers."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import device_cases
import pytest
import service_cases
from device_cases import ABSENT, THERE
from device_fakes import ILLEGAL, MEMORY, FailingDevice
from metrics_cases import PATIENCE_S, config, get, value
from patience import until
from service_cases import AS_OF, assert_same, job_id, person_id

from matchwright.clients import Client
from matchwright.engine import device as engine_device
from matchwright.engine.cli._run import ExecutorOption, How
from matchwright.engine.cli._source import Device
from matchwright.engine.config import ServerConfig
from matchwright.engine.device import loaded_epochs, make_ready, open_ops
from matchwright.engine.errors import DependencyUnavailable, InvalidArgument, VerificationFailed
from matchwright.engine.matcher import Matcher
from matchwright.engine.policy import Policy
from matchwright.engine.request import Request
from matchwright.engine.service import running
from matchwright.kernels import device_planner
from matchwright.kernels.device_planner import DeviceCosts
from matchwright.kernels.health import Health
from matchwright.kernels.memory_plan import plan_memory
from matchwright.kernels.numpy_device import NumpyDevice
from matchwright.kernels.resident import corpus_segments

folder = service_cases.folder
store = service_cases.store
matcher = service_cases.matcher
gpu = device_cases.gpu
small_checks = device_cases.small_checks


class Wrong(NumpyDevice):
    """Right on the samples of its own start, wrong on a store."""

    def rule_bits(self, program, columns, table, alive_w, rows, eligible_g, unverified_g):
        bits = super().rule_bits(program, columns, table, alive_w, rows, eligible_g, unverified_g)
        if program.rule_m8.size:
            bits[:] = 0xFFFFFFFF
        return bits


class Untrue(NumpyDevice):
    """Wrong from the start."""

    def points(self, x_nd, q_d, offset_b):
        return super().points(x_nd, q_d, offset_b) + 1


# ── Commands ──────────────────────────────────────────────────────────────────────────────────


def test_match_says_what_was_chosen_and_why(run, gpu, folder, matcher):
    gpu(NumpyDevice(tensor=True))
    asked = ("match", "--store", folder, "--job", job_id(3), "--as-of", "2026-01-01")
    code, out, err = run(*asked, "--format", "json", "--device", "gpu")
    assert code == 0, err
    assert err.splitlines()[0] == f"device: emulated (gpu; {THERE.text})"
    assert any(line.startswith("freelancers: 400 rows in 1 segments: vectors") for line in
               err.splitlines())  # fmt: skip
    assert json.loads(out)["telemetry"]["device"] == "emulated"
    told = json.loads(run(*asked, "--format", "json", "--device", "cpu")[1])
    there = json.loads(out)
    assert there.pop("telemetry") != told.pop("telemetry")
    assert there == told


def test_auto_without_a_device_says_why(run, gpu, folder):
    gpu(ABSENT)
    asked = ("match", "--store", folder, "--job", job_id(3), "--as-of", "2026-01-01")
    code, _, err = run(*asked)
    assert code == 0
    assert err.count("device: ") == 1
    assert f"(auto; no GPU: {ABSENT.text})" in err


@pytest.mark.parametrize(
    "command",
    [
        ("match", "--job", "j-0000001"),
        ("explain", "--job", "j-0000001", "--freelancer", "f-0000001"),
        ("run", "start"),
        ("run", "plan"),
        ("serve",),
        ("demo",),
        ("bench", "topk", "--quick"),
    ],
)
def test_gpu_refuses_where_there_is_none(run, gpu, folder, command):
    gpu(ABSENT)
    where = () if command[0] in ("demo", "bench") else ("--store", folder)
    code, out, err = run(*command, *where, "--device", "gpu")
    assert (code, out) == (5, "")
    assert err == f"matchwright: --device gpu: {ABSENT.text}; matchwright doctor tells more\n"


def test_a_run_on_the_device_has_the_cpu_s_digest(run, gpu, folder, tmp_path):
    gpu(NumpyDevice(tensor=True))
    digests = []
    for number, device in enumerate(("gpu", "cpu")):
        where = ("--store", folder, "-o", tmp_path / str(number))
        code, out, err = run(
            "run", "start", *where, "--for", "jobs", "-k", "5", "--as-of", "2026-01-01",
            "--device", device, "--format", "json", "--no-report",
        )  # fmt: skip
        assert code == 0, err
        digests.append(json.loads(out)["digest"])
        if device == "gpu":
            assert "device memory: " in err
            assert json.loads(out)["device"] == "emulated"
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("status", "told", "device"),
    [
        (ILLEGAL, "numkong (gpu lost: DeviceFault: status 700", "calls by the CPU: DEVICE_LOST 1"),
        (MEMORY, "emulated: out of memory;", "calls by the CPU: OUT_OF_MEMORY 1"),
    ],
)
def test_a_run_says_what_the_cpu_did_for_the_device(
    run, gpu, folder, tmp_path, monkeypatch, status, told, device
):
    """Among its events, which stay lines of JSON, and in run.json; the digest is the same."""
    monkeypatch.setattr(engine_device, "CHECK_KS", (1,))
    monkeypatch.setattr(engine_device, "SAMPLE_QUERIES", 3)
    ready, failing = engine_device.make_ready, gpu(FailingDevice())

    def made_ready(*args, **named):
        ready(*args, **named)
        begin = len(failing.calls) + 9
        failing.fails = dict.fromkeys(range(begin, begin + (40 if status == MEMORY else 1)), status)

    monkeypatch.setattr(engine_device, "make_ready", made_ready)
    where = ("--store", folder, "--for", "jobs", "-k", "5", "--as-of", "2026-01-01", "--no-report")
    asked = ("run", "start", *where, "--format", "json")
    code, out, err = run(*asked, "--device", "gpu", "-o", tmp_path / "gpu")
    assert code == 0, err
    notes = [json.loads(line).get("text", "") for line in err.splitlines()]
    assert len([note for note in notes if told in note]) == 1
    assert device in json.loads(out)["device"]
    code, plain, _ = run(*asked, "--device", "cpu", "-o", tmp_path / "cpu")
    assert json.loads(plain)["digest"] == json.loads(out)["digest"]


def test_each_kind_of_trouble_is_told_once():
    said, health = [], Health(device="H100", on_device=True)
    health.listeners.append(engine_device._Trouble(said.append))
    for _ in range(2):
        for fault in ("CALL_FAILED", "OUT_OF_MEMORY", "DEVICE_LOST"):
            health.failed(fault)
    health.lose("why", "numkong (gpu lost: why)")
    health.failed("DEVICE_LOST")
    assert said == [
        "device: H100: a call failed and went to the CPU (told once)",
        "device: H100: out of memory; calls go in halves, or to the CPU (told once)",
        "device: numkong (gpu lost: why)",
    ]


def test_run_plan_tells_the_memory(run, gpu, folder, tmp_path):
    gpu(NumpyDevice(tensor=True))
    code, out, _ = run(
        "run", "plan", "--store", folder, "-o", tmp_path, "--as-of", "2026-01-01",
        "--device", "gpu", "--format", "json",
    )  # fmt: skip
    assert code == 0
    memory = json.loads(out)["device_memory"]
    assert memory["fits"]
    assert {one["corpus"] for one in memory["segments"]} == {"jobs", "freelancers"}
    assert memory["needed_bytes"] == sum(
        one["x"] + one["norms"] + one["keys"] + one["alive"] for one in memory["segments"]
    )


def run_of(output, run, where):
    """The id of a run that was begun and not ended."""
    code, _, err = run("run", "start", *where, "-k", "6", "--no-report", "--finish-by", "0s")
    assert code == 75, err
    unfinished = [one.parent for one in output.glob("*/plan.json")]
    return next(one.name for one in unfinished if not (one / "run.json").exists())


def test_a_run_s_device_memory_is_bounded(run, gpu, folder, tmp_path, monkeypatch):
    """plan, start and resume take the bound; what does not fit it is refused before it begins."""
    device = gpu(NumpyDevice(tensor=True))
    limits = []
    monkeypatch.setattr(device, "limit_memory", limits.append, raising=False)
    where = ("--store", folder, "-o", tmp_path, "--as-of", "2026-01-01", "--device", "gpu")
    bound = ("--device-memory-mb", "300")
    code, out, _ = run("run", "plan", *where, *bound, "--format", "json")
    assert code == 0
    assert json.loads(out)["device_memory"]["budget_bytes"] == 44 << 20
    code, out, err = run("run", "start", *where, *bound, "--no-report", "--format", "json")
    assert code == 0, err
    assert limits == [300 << 20] * 2
    again = ("resume", run_of(tmp_path, run, where), "--store", folder, "-o", tmp_path)
    for command in (("start", *where, "-k", "7"), ("plan", *where), (*again, "--device", "gpu")):
        code, _, err = run("run", *command, "--device-memory-mb", "256")
        assert code == 5
        assert "device_memory_bytes is 256.0 MiB" in err


@pytest.mark.parametrize("size", ["0", "-1", "", "1.5", "nan", "1073741825", "9" * 400])
def test_a_budget_is_a_number_of_mebibytes(run, folder, tmp_path, size):
    for command in (("serve",), ("run", "plan", "-o", tmp_path)):
        code, out, err = run(*command, "--store", folder, "--device-memory-mb", size)
        assert (code, out) == (2, "")
        assert "--device-memory-mb" in err
    code, out, err = run("serve", "--store", folder, "--memory-mb", size)
    assert (code, out) == (2, "")
    assert "--memory-mb" in err


@pytest.mark.parametrize("size", [0, -1])
def test_a_server_s_device_memory_is_something(size):
    with pytest.raises(InvalidArgument, match=f"device_memory_bytes is {size}; expected 1"):
        ServerConfig(stores={"default": "x"}, device_memory_bytes=size)


def test_a_resume_is_told_the_same_bound():
    how = How(Device.GPU, ExecutorOption.RAY, 4, None, shards=2, device_memory_mb=300)
    assert " ".join(how.arguments()) == (
        "--device gpu --device-memory-mb 300 --executor ray --workers 4 --shards 2"
    )
    assert how.device_memory_bytes == 300 << 20
    plain = How(Device.AUTO, ExecutorOption.LOCAL, None, None)
    assert plain.arguments() == []
    assert plain.device_memory_bytes is None


def test_doctor_tells_every_array(run, gpu, folder):
    def doctor():
        code, out, _ = run("doctor", "--device", "--store", folder, "--format", "json")
        return code, {one["check"]: one for one in json.loads(out)["findings"]}

    gpu(ABSENT)
    code, findings = doctor()
    assert code == 0
    assert findings["gpu"]["state"] == "absent"
    assert "400 rows: x " in findings["freelancers segment 0"]["detail"]
    assert "skills" in findings["freelancers segment 0"]["detail"]
    assert findings["device memory"]["detail"].startswith("device memory: ")
    gpu(Untrue(tensor=True))
    code, findings = doctor()
    assert code == 5
    assert findings["gpu"]["state"] == "failed"
    assert "disagree on the sample" in findings["gpu"]["detail"]
    assert "400 rows: x " in findings["freelancers segment 0"]["detail"]
    assert run("doctor", "--device")[0] == 2
    assert run("doctor", "--store", folder)[0] == 2


# ── Refusals before anything is answered ──────────────────────────────────────────────────────


def test_answers_that_differ_on_the_store_are_refused(run, gpu, folder):
    gpu(Wrong(tensor=True))
    for asked in ("auto", "gpu"):
        code, out, err = run("match", "--store", folder, "--job", job_id(1), "--device", asked)
        assert (code, out) == (6, ""), err
        assert "disagree on 20 jobs of this store, k = 1" in err
    code, _, err = run("serve", "--store", folder, "--device", "gpu", "--port", "0")
    assert code == 6
    assert "disagree on" in err
    with (
        pytest.raises(VerificationFailed, match="disagree"),
        running(ServerConfig(stores={"default": folder}, device="auto", port=0)),
    ):
        pass


def test_an_epoch_that_does_not_fit(gpu, store):
    gpu(NumpyDevice(tensor=True))
    policy, said = Policy.load(), []
    rows = sum(store.snapshot().count(kind) for kind in ("job", "freelancer"))
    least = rows * 100
    options = {"memory_bytes": 1 << 22, "device_memory_bytes": (1 << 22) + least}
    ops = open_ops("gpu", **options, say=said.append)
    with pytest.raises(DependencyUnavailable, match=r"a shard of \d+ rows fits, so \d+ devices"):
        make_ready(ops, store.snapshot(), policy, say=said.append)
    assert "device memory: " in said[-1]
    ops = open_ops("auto", **options, say=said.append)
    make_ready(ops, store.snapshot(), policy, say=said.append)
    assert not ops.health.on_device
    assert ops.health.lost is None
    assert said[-1] == ops.health.chosen
    assert "shard" in ops.health.chosen
    got = Matcher(store, ops, policy).match(Request(kind="job", id=job_id(1), k=5, as_of=AS_OF))
    assert got.telemetry["device"] == ops.cpu.name


def test_rows_that_just_fit_are_there_when_the_first_caller_asks(gpu, store):
    """The sample of the comparison pushes nothing out."""
    gpu(NumpyDevice(tensor=True))
    snapshot, memory = store.snapshot(), 1 << 22
    corpora = {kind: snapshot.corpus(kind) for kind in ("job", "freelancer")}
    needed = plan_memory(corpora, temporary_bytes=memory).needed
    ops = open_ops("gpu", memory_bytes=memory, device_memory_bytes=memory + needed)
    make_ready(ops, snapshot, Policy.load())
    resident, segments = ops.device_ops.resident, corpus_segments(list(corpora.values()))
    assert resident.missing_bytes(segments) == 0
    assert resident.segments == len(segments)


def test_a_device_that_fails_while_it_is_made_ready(gpu, store):
    policy, said = Policy.load(), []
    for asked in ("auto", "gpu"):
        device = gpu(FailingDevice())
        ops = open_ops(asked, say=said.append)
        device.fails, device.since = ILLEGAL, len(device.calls) + 30
        if asked == "gpu":
            with pytest.raises(DependencyUnavailable, match="failed at the start: status 700"):
                make_ready(ops, store.snapshot(), policy)
            continue
        make_ready(ops, store.snapshot(), policy, say=said.append)
        assert said[-1].startswith(f"device: {ops.cpu.name} (gpu lost: DeviceFault: status 700")


class Timed(FailingDevice):
    """One that the planner measures."""

    timed = True


def test_the_device_is_measured_before_anybody_asks(gpu, store, monkeypatch):
    measured, policy = [], Policy.load()

    def measure(device, d, memory_bytes, *, rows):
        measured.append(d)
        return DeviceCosts(d=d)

    monkeypatch.setattr(device_planner, "_KNOWN", {})
    monkeypatch.setattr(device_planner, "measure", measure)
    gpu(Timed())
    ops = open_ops("auto", say=lambda line: None)
    assert not measured
    make_ready(ops, store.snapshot(), policy)
    d = store.snapshot().corpus("job").parts[0][0].x_nd.shape[1]
    assert measured == [d]
    Matcher(store, ops, policy).match(Request(kind="job", id=job_id(1), k=5, as_of=AS_OF))
    assert measured == [d]


def test_a_shard_is_loaded_and_checked_alone(gpu, folder, store):
    from matchwright.engine.runs.plan import RunOptions, make_plan
    from matchwright.engine.runs.worker import Shard

    options = RunOptions(kinds=("job",), k=5, as_of=AS_OF, policy=Policy.load())
    plan = make_plan(store.snapshot(), options)
    gpu(NumpyDevice(tensor=True))
    shard = Shard(str(folder), plan.to_json(), 1, 3, "gpu", 1, 1 << 24)
    told = shard.open()
    assert told["device"] == "cupy"
    assert told["rows"] == {"job": 133}  # the second of three shares of 400
    assert shard.ops.device_ops.resident.uploads >= 1
    gpu(Wrong(tensor=True))
    with pytest.raises(VerificationFailed, match="disagree on 20 jobs of this store"):
        Shard(str(folder), plan.to_json(), 1, 3, "auto", 1, 1 << 24).open()


def test_nothing_is_done_for_the_cpu(store):
    said = []
    ops = open_ops("numpy", say=said.append)
    make_ready(ops, store.snapshot(), Policy.load(), say=said.append)
    assert len(said) == 1
    assert loaded_epochs(store, ops) is store


# ── In service ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def served(gpu, folder, monkeypatch, caplog):
    """(its device, its client, where its metrics are, its address)."""
    monkeypatch.setattr("matchwright.engine.service.conditions.LOOK_S", 0.05)
    monkeypatch.setattr(engine_device, "CHECK_KS", (1,))
    monkeypatch.setattr(engine_device, "SAMPLE_QUERIES", 3)
    device, asked = gpu(FailingDevice()), config(folder, device="gpu")
    with (
        caplog.at_level(logging.INFO, "matchwright.engine.device"),
        running(asked) as address,
        Client(address, timeout_s=PATIENCE_S) as client,
    ):
        assert f"device: emulated (gpu; {THERE.text})" in caplog.text
        assert "device memory: " in caplog.text
        yield device, client, asked.metrics_address, address


def ask(client, n):
    """A job's people, and a person's jobs, in turn."""
    if n % 2:
        return client.find_freelancers(job_id(n), k=7, as_of=AS_OF)
    return client.find_jobs(person_id(n), k=7, as_of=AS_OF)


def assert_right(got, matcher, n):
    kind, name = ("job", job_id(n)) if n % 2 else ("freelancer", person_id(n))
    wanted = matcher.match(Request(kind=kind, id=name, k=7, as_of=AS_OF, contributions=False))
    assert_same(got, wanted)


def part(at, name="matchwright.device"):
    told = json.loads(get(at, "/healthz"))
    assert told["serving"] is True
    return told["parts"][name]


def test_lost_in_the_middle_of_many_calls(served, matcher, run, caplog):
    device, client, at, address = served
    assert ask(client, 1).telemetry.device == "emulated"
    assert part(at) == "ok"
    assert value(get(at), "matchwright_device_lost") == 0
    assert value(get(at), "matchwright_device_info", device="emulated") == 1
    device.fails, device.since = ILLEGAL, len(device.calls) + 40
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: ask(client, n), range(24)))
    for n, got in enumerate(answers):
        assert_right(got, matcher, n)
    until(lambda: part(at) != "ok", "the health of a lost device")
    assert "status 700" in part(at)
    last = ask(client, 3).telemetry.device
    assert "(gpu lost: DeviceFault: status 700" in last
    text = get(at)
    assert value(text, "matchwright_device_lost") == 1
    assert value(text, "matchwright_device_info", device=last) == 1
    assert value(text, "matchwright_device_info", device="emulated") is None
    assert value(text, "matchwright_device_errors_total", reason="DEVICE_LOST") >= 1
    assert value(text, "matchwright_device_fallbacks_total", reason="LOST") >= 1
    assert not value(text, "matchwright_answers_total", marketplace="default", outcome="failed")
    code, out, _ = run("doctor", "--server", address, "--format", "json")
    states = {one["check"]: one["state"] for one in json.loads(out)["findings"]}
    assert (code, states["matchwright.device"], states["server"]) == (0, "degraded", "ok")
    assert "gpu lost" in caplog.text


def test_out_of_memory_for_a_while(served, matcher):
    device, client, at, _ = served
    device.fails, device.since = MEMORY, len(device.calls)
    got = [ask(client, n) for n in (1, 2)]
    device.fails = None
    for n, one in zip((1, 2), got, strict=True):
        assert_right(one, matcher, n)
    assert "(gpu: out of memory for this batch)" in got[0].telemetry.device
    assert "(gpu: rests after a lack of memory)" in got[1].telemetry.device
    text = get(at)
    assert value(text, "matchwright_device_lost") == 0
    assert value(text, "matchwright_device_fallbacks_total", reason="OUT_OF_MEMORY") == 1
    assert value(text, "matchwright_device_fallbacks_total", reason="RESTING") == 1
    assert value(text, "matchwright_device_info", device="emulated") == 1
    assert part(at) == "ok"
