"""A real Triton server for tests, and small models for its Python backend.

``need_server()`` finds one or skips aloud. ``served(repository, models)`` runs one for as long as
a ``with`` block; ``toys(folder)`` writes the repository of the toy models::

    toy:  x FP32 [N, 4], what INT32 [N, 1]  ->  y FP32 [N, 4] = x + version

``what`` of the first row makes it misbehave, see the constants. Fixtures of a module that wants the
toys: ``from triton_cases import toy_server, toy_client``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from matchwright.engine.config import tritonserver_in
from matchwright.engine.errors import DependencyUnavailable
from matchwright.engine.models.local_server import Found, LocalServer, find_tritonserver
from matchwright.engine.models.refs import ModelRef, TritonConfig
from matchwright.engine.models.watch import BreakerState, Hop, Way

TOY = ModelRef("toy", 1)
TOY_2 = ModelRef("toy", 2)

FINE, NAN, WRONG_ROWS, WRONG_WIDTH, WRONG_TYPE, MISSING, RAISES, SAYS_NO, HEADER = range(9)
SLOW = 1_000  # plus milliseconds

_MODEL = """
import json
import time
import zlib

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        self.version = float(args["model_version"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb.get_input_tensor_by_name(request, "x").as_numpy()
        what = int(pb.get_input_tensor_by_name(request, "what").as_numpy()[0, 0])
        y = x + np.float32(self.version)
        if what >= 1000:
            time.sleep((what - 1000) / 1000)
        elif what == 1:
            y[-1, -1] = np.nan
        elif what == 2:
            y = y[:-1].copy()
        elif what == 3:
            y = y[:, :-1].copy()
        elif what == 4:
            y = y.astype(np.int32)
        elif what == 5:
            return pb.InferenceResponse([])
        elif what == 6:
            raise ValueError("the toy is broken")
        elif what == 7:
            return pb.InferenceResponse([], error=pb.TritonError("the toy says no"))
        elif what == 8:
            told = json.loads(request.parameters() or "{}").get("traceparent", "")
            y[:] = zlib.crc32(told.encode()) % 65536
        return pb.InferenceResponse([pb.Tensor("y", y)])
"""

_CONFIG = """
name: "toy"
backend: "python"
max_batch_size: 65536
input [
  { name: "x" data_type: TYPE_FP32 dims: [ 4 ] },
  { name: "what" data_type: TYPE_INT32 dims: [ 1 ] }
]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
version_policy { all { } }
instance_group [ { kind: KIND_CPU count: 1 } ]
"""


def need_server() -> Found:
    """A server that can be run; skips the test, aloud, where there is none."""
    try:
        return find_tritonserver(None, tritonserver_in(os.environ))
    except DependencyUnavailable as error:
        pytest.skip(f"needs a Triton server: {error}")


def toys(folder: Path, versions: Sequence[int] = (1,)) -> Path:
    """A repository with these versions of the toy."""
    model = folder / "toy"
    for version in versions:
        (model / str(version)).mkdir(parents=True, exist_ok=True)
        (model / str(version) / "model.py").write_text(_MODEL, "utf-8")
    (model / "config.pbtxt").write_text(_CONFIG, "utf-8")
    return folder


@contextmanager
def served(
    repository: Path, models: Sequence[str] = (), options: Sequence[str] = ()
) -> Iterator[LocalServer]:
    """A server for a repository; on a failure of the test its log is on stderr."""
    server = LocalServer(
        repository=repository, models=models, found=need_server(), grace_s=2.0, options=options
    )
    with server:
        try:
            yield server
        except BaseException:
            print(server.log_tail())
            raise


@pytest.fixture(scope="module")
def toy_server(tmp_path_factory) -> Iterator[LocalServer]:
    """One server with version 1 of the toy, for the tests of a module."""
    forward = "--grpc-header-forward-pattern=traceparent"
    with served(toys(tmp_path_factory.mktemp("toys")), ["toy"], [forward]) as server:
        yield server


@dataclass
class Ears:
    """A ``Watch`` that remembers."""

    headers: Mapping[str, str] = field(default_factory=dict)
    hops: list[Hop] = field(default_factory=list)
    ways: list[tuple[Way, str]] = field(default_factory=list)
    breakers: list[tuple[str, BreakerState]] = field(default_factory=list)

    def begin(self, model: str, version: int) -> Ears:
        return self

    def end(self, hop: Hop) -> None:
        self.hops.append(hop)

    def breaker(self, model: str, version: int, state: BreakerState) -> None:
        self.breakers.append((f"{model}:{version}", state))

    def way(self, way: Way, why: str) -> None:
        self.ways.append((way, why))


@contextmanager
def client_of(server: LocalServer, ears: Ears | None = None, **settings) -> Iterator:
    """A client for a server."""
    from matchwright.engine.models.triton import Triton

    with Triton(TritonConfig(url=server.url, **settings), ears or Ears()) as client:
        yield client


def handed_over(monkeypatch: pytest.MonkeyPatch) -> list:
    """Grows by each call that is given to the connection."""
    from matchwright.engine.models.triton.link import Link

    calls: list = []
    infer = Link.infer

    async def told(self, call, region):
        calls.append(call)
        return await infer(self, call, region)

    monkeypatch.setattr(Link, "infer", told)
    return calls


def question(rows: int = 3, what: int = FINE, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of the toy."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 4), np.float32)
    return {"x": x, "what": np.full((rows, 1), what, np.int32)}


def ask(client, inputs: Mapping[str, np.ndarray], ref: ModelRef = TOY, seconds: float = 5.0):
    """The toy's answer, from this thread."""
    return client.infer_blocking(ref, inputs, ["y"], deadline=time.monotonic() + seconds)["y"]
