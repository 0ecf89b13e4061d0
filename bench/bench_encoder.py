"""Bulk encoding through a Triton server on this host, beside ONNX Runtime in this process.

    .venv/bin/python bench/bench_encoder.py --source DIR --json
    .venv/bin/python bench/bench_encoder.py --texts 300 --rounds 1     a quick look

Both encode the same texts, cut into tokens and put into batches by the same code, in turns; the
ratio is that of the medians. The server has as many threads as this machine has cores; in-process
there is one call at a time, as ONNX Runtime uses every core for each. Then a store is filled from
nothing: ``matchwright embed`` (checks, SQLite and all), once for its rate and once more, which must
send nothing.

``--source`` is a folder with model.onnx and tokenizer.json; by default a real encoder that lies
beside the checkout. Where there is none, a small encoder is made, whose own work is next to
nothing: its ratio says what the way costs, and is no claim.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.engine import synthetic
from matchwright.engine.config import ModelsConfig, tritonserver_in
from matchwright.engine.models.embedding import EncoderModel
from matchwright.engine.models.local_server import LocalServer, find_tritonserver
from matchwright.engine.models.opened import Models
from matchwright.engine.models.refs import ModelRef
from matchwright.engine.models.repository import add_encoder
from matchwright.engine.models.small import make_small_encoder
from matchwright.engine.store import Store
from matchwright.engine.store import embeddings_ahead as ahead
from matchwright.engine.table import FrameTable

RATIO = 0.9
FOREVER_S = 3_600.0


class InProcess:
    """ONNX Runtime with the client's interface."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def infer_blocking(
        self,
        ref: ModelRef,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        *,
        deadline: float,
    ) -> dict[str, NDArray[Any]]:
        """The model's answer; the deadline is not looked at."""
        answers = self._session.run(list(outputs), dict(inputs))
        return dict(zip(outputs, answers, strict=True))


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def texts_of(n: int) -> list[str]:
    """Texts of synthetic records of both kinds, as a store would have them encoded."""
    half = n // 2
    frames = synthetic.frame("job", n - half), synthetic.frame("freelancer", half)
    return [one.text or "" for frame in frames for one in FrameTable(frame).keyed_prose(30)]


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it gave)."""
    began = time.perf_counter()
    given = run()
    return time.perf_counter() - began, given


def rates(models: Models, texts: list[str], rounds: int) -> dict[str, Any]:
    """Texts a second through Triton and in this process, in turns."""
    artefact = models.encoder()
    here = InProcess(artefact.path / "model.onnx")
    ways = {
        "triton": EncoderModel(artefact, lambda: models.client),
        "in_process": EncoderModel(artefact, lambda: here, calls=1),
    }
    until = time.monotonic() + FOREVER_S
    made = {name: way.embed(texts[:64], until) for name, way in ways.items()}  # warm
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds, made[name] = timed(partial(way.embed, texts, until))
            taken[name].append(seconds)
    per_s = {name: len(texts) / statistics.median(spent) for name, spent in taken.items()}
    ratio = per_s["triton"] / per_s["in_process"]
    batches = ways["triton"].batches(texts, 0)
    tokens = int(sum(batch.mask_nt.sum() for batch in batches))
    return {
        "texts": len(texts),
        "tokens": tokens,
        "padding": round(1 - tokens / sum(batch.mask_nt.size for batch in batches), 3),
        "texts_per_s": {name: round(rate, 1) for name, rate in per_s.items()},
        "seconds": {name: [round(one, 3) for one in spent] for name, spent in taken.items()},
        "ratio": round(ratio, 3),
        "wanted": RATIO,
        "largest_difference": float(np.abs(made["triton"] - made["in_process"]).max() / 2**20),
        "passed": ratio >= RATIO,
    }


def store_pass(models: Models, n: int, folder: Path) -> dict[str, Any]:
    """``matchwright embed`` over a store, twice."""
    half = n // 2
    with Store.open(folder, mode="w", create=True) as store:
        store.upsert("job", synthetic.frame("job", n - half))
        store.upsert("freelancer", synthetic.frame("freelancer", half))
    first, second = ahead.embed(folder, models), ahead.embed(folder, models)
    return {
        "records": first.records,
        "sent": first.sent,
        "texts_per_s": round(first.sent / first.seconds, 1),
        "second_pass_sent": second.sent,
        "second_pass_records_per_s": round(second.records / second.seconds, 1),
        "passed": second.sent == 0,
    }


def measure(source: Path | None, n: int, rounds: int, records: int) -> dict[str, Any]:
    """Both sections, with a server of their own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if source is None:
            make_small_encoder(folder / "source", dimensions=384)
        artefact = add_encoder(folder / "models", source or folder / "source", backend="python")
        found = find_tritonserver(None, tritonserver_in(os.environ))
        server = LocalServer(
            repository=folder / "models", models=["encoder"], found=found, threads=cores()
        )
        with server:
            config = ModelsConfig(repository=folder / "models", triton=server.url)
            with Models(config) as models:
                return {
                    "encoder": "small" if source is None else source.name,
                    "dimensions": artefact.dimensions,
                    "max_tokens": artefact.max_tokens,
                    "backend": "python (ONNX Runtime, CPU)",
                    "cores": cores(),
                    "bulk": rates(models, texts_of(n), rounds),
                    "store": store_pass(models, records, folder / "store"),
                }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what was measured; 1 when a claim does not hold for a real encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    beside = Path(__file__).parents[2] / "shared" / "models" / "all-MiniLM-L6-v2"
    real = beside if beside.is_dir() else None
    parser.add_argument("--source", type=Path, default=real, help="model.onnx, tokenizer.json")
    parser.add_argument("--texts", type=int, default=2_000)
    parser.add_argument("--records", type=int, default=1_000, help="of the store, both kinds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args(argv)
    told = measure(options.source, options.texts, options.rounds, options.records)
    proving = os.environ.get("MATCHWRIGHT_PROVE") == "1"  # then a claim that was not tried fails
    rate = told["bulk"]["passed"] if options.source else not proving
    held = told["store"]["passed"] and rate
    print(json.dumps({**told, "passed": held}, indent=None if options.json else 1))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
