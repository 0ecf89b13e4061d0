"""What a Triton server on this host costs beside its own work.

    .venv/bin/python bench/bench_triton.py --json
    .venv/bin/python bench/bench_triton.py --only sharing --calls 50     a quick look

``sharing``: the same calls over the wire and through shared memory, in turns, for tensors of the
sizes that a ranker and an encoder have, from one thread. ``overhead``: how much longer a call takes
than the server's own statistics say it worked, from 1 and from 16 threads. The models do next to
nothing, so that what is measured is the way.

A section is a function that takes a ``Bench`` and returns a dictionary; one that has a claim puts
``"passed"`` into it. Add it to ``SECTIONS``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from matchwright.engine.config import tritonserver_in
from matchwright.engine.models.local_server import LocalServer, find_tritonserver
from matchwright.engine.models.triton import ModelRef, Triton, TritonConfig

FEATURES, TOKENS, DIMENSIONS = 40, 256, 384
RANKER, ENCODER = ModelRef("bench_ranker", 1), ModelRef("bench_encoder", 1)

_MODEL = """
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        {body}
        return pb.InferenceResponse([pb.Tensor("{output}", out)])
"""
_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 65536
input [ {inputs} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {width} ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""


def repository(folder: Path) -> Path:
    """A ranker and an encoder in shape and size; their outputs are made of their first column."""
    ranker = 'out = pb.get_input_tensor_by_name(request, "input__0").as_numpy()[:, :1].copy()'
    encoder = (
        'first = pb.get_input_tensor_by_name(request, "input_ids").as_numpy()[:, :1]\n'
        f"        out = np.repeat(first, {DIMENSIONS}, axis=1).astype(np.float32)"
    )
    tokens = ", ".join(
        f'{{ name: "{name}" data_type: TYPE_INT64 dims: [ -1 ] }}'
        for name in ("input_ids", "attention_mask")
    )
    features = f'{{ name: "input__0" data_type: TYPE_FP32 dims: [ {FEATURES} ] }}'
    for ref, body, inputs, output, width in (
        (RANKER, ranker, features, "output__0", 1),
        (ENCODER, encoder, tokens, "embedding", DIMENSIONS),
    ):
        model = folder / ref.name / "1"
        model.mkdir(parents=True)
        (model / "model.py").write_text(_MODEL.format(body=body, output=output), "utf-8")
        config = _CONFIG.format(name=ref.name, inputs=inputs, output=output, width=width)
        (model.parent / "config.pbtxt").write_text(config, "utf-8")
    return folder


@dataclass(frozen=True)
class Job:
    """A call that is timed."""

    name: str
    ref: ModelRef
    inputs: dict[str, NDArray[Any]]
    output: str

    @property
    def sent_bytes(self) -> int:
        return sum(array.nbytes for array in self.inputs.values())

    def run(self, client: Triton) -> float:
        """Milliseconds of one call."""
        began = time.perf_counter()
        client.infer_blocking(self.ref, self.inputs, [self.output], deadline=time.monotonic() + 60)
        return (time.perf_counter() - began) * 1e3


def ranker_job(rows: int) -> Job:
    """Features of so many candidates."""
    features = np.random.default_rng(0).integers(0, 1000, (rows, FEATURES)).astype(np.float32)
    return Job(f"ranker_{rows}", RANKER, {"input__0": features}, "output__0")


def encoder_job(texts: int) -> Job:
    """Tokens of so many full texts."""
    ids = np.random.default_rng(0).integers(0, 30_000, (texts, TOKENS))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return Job(f"encoder_{texts}", ENCODER, inputs, "embedding")


@dataclass(frozen=True)
class Bench:
    """What sections need.

    Attributes:
        server: with the models of ``repository``.
        calls: how often each call is timed.
    """

    server: LocalServer
    calls: int

    def client(self, shared_memory: Literal["on", "off"]) -> Triton:
        """A client that takes one way for everything."""
        return Triton(
            TritonConfig(
                url=self.server.url, shared_memory=shared_memory, shared_memory_bytes_min=0
            )
        )


def sharing(bench: Bench) -> dict[str, Any]:
    """The wire beside shared memory, from one thread."""
    told: dict[str, Any] = {}
    jobs = [ranker_job(200), ranker_job(12_800), encoder_job(8), encoder_job(64), encoder_job(512)]
    with bench.client("off") as wire, bench.client("on") as shared:
        for job in jobs:
            times: dict[str, list[float]] = {"wire": [], "shared": []}
            for turn in range(bench.calls + 5):
                ways = [("wire", wire), ("shared", shared)]
                for name, client in ways if turn % 2 else reversed(ways):
                    took = job.run(client)
                    if turn >= 5:
                        times[name].append(took)
            middle = {name: statistics.median(values) for name, values in times.items()}
            told[job.name] = {
                "sent_bytes": job.sent_bytes,
                "wire_ms": round(middle["wire"], 3),
                "shared_memory_ms": round(middle["shared"], 3),
                "wire_p90_ms": round(float(np.quantile(times["wire"], 0.9)), 3),
                "shared_memory_p90_ms": round(float(np.quantile(times["shared"], 0.9)), 3),
                "wire_of_shared": round(middle["wire"] / middle["shared"], 3),
            }
    return told


def overhead(bench: Bench) -> dict[str, Any]:
    """A call's time beside what the server says that it spent on it."""
    told: dict[str, Any] = {}
    for job in (ranker_job(200), encoder_job(64)):
        with bench.client("off") as client:
            job.run(client)
            for threads in (1, 16):
                before = _spent(client, job.ref)
                with ThreadPoolExecutor(threads) as pool:
                    times = list(pool.map(lambda _: job.run(client), range(bench.calls)))  # noqa: B023
                after = _spent(client, job.ref)
                spent = {name: (after[name] - before[name]) / bench.calls / 1e6 for name in after}
                told[f"{job.name}_from_{threads}"] = {
                    "call_ms": round(statistics.fmean(times), 3),
                    "server_ms": round(spent["success"], 3),
                    "server_queue_ms": round(spent["queue"], 3),
                    "server_compute_ms": round(spent["compute_infer"], 3),
                    "beside_the_server_ms": round(statistics.fmean(times) - spent["success"], 3),
                }
    return told


def _spent(client: Triton, ref: ModelRef) -> dict[str, int]:
    """Nanoseconds that the server has spent on a model since it was loaded."""
    statistics_of = client.statistics(ref)["inference_stats"]
    return {
        name: int(statistics_of.get(name, {}).get("ns", 0))
        for name in ("success", "queue", "compute_infer")
    }


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {"sharing": sharing, "overhead": overhead}


@contextmanager
def _bench(calls: int) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as folder:
        server = LocalServer(
            repository=repository(Path(folder)),
            models=[RANKER.name, ENCODER.name],
            found=find_tritonserver(None, tritonserver_in(os.environ)),
        )
        with server:
            yield Bench(server, calls)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="sections, with commas between them")
    parser.add_argument("--calls", type=int, default=300, help="of each kind")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else list(SECTIONS)
    with _bench(options.calls) as bench:
        report: dict[str, Any] = {name: SECTIONS[name](bench) for name in wanted}
    report["passed"] = all(section.get("passed", True) for section in report.values())
    if options.json:
        print(json.dumps(report))
    else:
        print(json.dumps(report, indent=2))
    return 0 if report["passed"] else 6


if __name__ == "__main__":
    sys.exit(main())
