"""End to end over gRPC for ``gpu_check.py``: a store, a server in its own process, callers here.

Jobs ask for freelancers under limits of their own. BatchFind in turn with two batches on their way
gives jobs per second; single calls come in open loop: their moments are drawn beforehand, at shares
of what callers in closed loop reached, and a latency counts from its moment on, whether the caller
was late or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

K = 100
BATCH = 256
CALLERS = 64
JOBS = 4_096
_SEED = 12
LOADS = (0.25, 0.5, 0.8)
"""Shares of the closed loop's calls a second at which the open loop asks."""
_NEEDED = ("grpc", "polars", "pydantic", "typer")
_START_S, _END_S = 600.0, 60.0


def missing() -> str | None:
    """Why this section cannot run here; None when it can."""
    gone = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(gone)}" if gone else None


def make_store(folder: Path, freelancers: int) -> None:
    """Synthetic freelancers and jobs, in a fitted store."""
    from matchwright.engine import synthetic
    from matchwright.engine.store import Store

    wanted: list[tuple[Literal["job", "freelancer"], int]] = [("job", JOBS)]
    with Store.open(folder, mode="w", create=True) as store:
        for kind, rows in (*wanted, ("freelancer", freelancers)):
            with store.bulk(kind) as sink:
                for frame in synthetic.blocks(kind, rows, texts=True, seed=_SEED):
                    sink.write(frame)
                sink.flush()


@contextlib.contextmanager
def serving(folder: Path, device: str, environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """The address of a server; its own words go to a file.

    Raises:
        RuntimeError: it ended before it answered; with what it said.
    """
    command = [sys.executable, "-m", "matchwright.engine.cli", "serve", "--store", str(folder)]
    command += ["--port", "0", "--device", device]
    with log.open("w", encoding="utf-8") as told:
        server = subprocess.Popen(
            command, stdout=told, stderr=subprocess.STDOUT, env=dict(environment)
        )
        try:
            yield _address(server, log)
        finally:
            server.terminate()
            try:
                server.wait(_END_S)
            except subprocess.TimeoutExpired:  # what it answered counts all the same
                print(f"gpu-check: the server did not end in {_END_S:.0f} s", file=sys.stderr)
            finally:  # it holds the device
                server.kill()
                server.wait()


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and server.poll() is None:
        found = re.search(r"(127\.0\.0\.1:\d+)", log.read_text("utf-8"))
        if found:
            return found[1]
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text('utf-8')[-2_000:]}")


def service(
    folder: Path, device: str, environment: Mapping[str, str], seconds: float
) -> dict[str, Any]:
    """Jobs per second and latencies, of a server on a device.

    Args:
        folder: of a store that ``make_store`` made; its jobs ask.
        seconds: of each load, about.
    """
    log = folder.parent / "serve.log"
    start = time.perf_counter()
    with serving(folder, device, environment, log) as address:
        ready = time.perf_counter() - start
        told = asyncio.run(_measure(address, _jobs(), seconds))
    said = re.findall(r"device: .*", log.read_text("utf-8"))
    return {"device": said[:1], "k": K, "ready_seconds": ready, **told}


def _jobs() -> list[str]:
    """The jobs of a store that ``make_store`` made."""
    from matchwright.engine import synthetic

    return [str(name) for name in synthetic.frame("job", JOBS, seed=_SEED)["id"]]


async def _measure(address: str, jobs: list[str], seconds: float) -> dict[str, Any]:
    from matchwright.clients import AsyncClient

    async with AsyncClient(address, timeout_s=120.0) as client:
        first = await client.find_freelancers(jobs[0], k=K)
        batch = await _batches(client, jobs, seconds)
        closed = await _closed(client, jobs, seconds)
        loads = [await _open(client, jobs, closed * share, seconds) for share in LOADS]
    return {
        "telemetry": None if first.telemetry is None else first.telemetry.to_dict(),
        "batch_find": batch,
        "closed_loop": {"callers": CALLERS, "calls_per_second": closed},
        "open_loop": loads,
        "exact": True,
    }


async def _batches(client: Any, jobs: list[str], seconds: float) -> dict[str, Any]:
    """Two batches on their way at a time."""
    from matchwright.clients import Query

    taken: list[float] = []

    async def ask(turn: int) -> None:
        while time.perf_counter() < until:
            names = [jobs[(turn + i) % len(jobs)] for i in range(BATCH)]
            began = time.perf_counter()
            found = await client.batch_find([Query("job", name) for name in names], k=K)
            assert len(found) == BATCH
            taken.append(time.perf_counter() - began)
            turn += BATCH

    start = time.perf_counter()
    until = start + seconds
    await asyncio.gather(ask(0), ask(len(jobs) // 2))
    spent = time.perf_counter() - start
    return {"batch": BATCH, "jobs_per_second": len(taken) * BATCH / spent, **percentiles(taken)}


async def _closed(client: Any, jobs: list[str], seconds: float) -> float:
    """Calls a second of callers each of which waits for its answer before it asks again."""
    calls = 0

    async def ask(turn: int) -> None:
        nonlocal calls
        while time.perf_counter() < until:
            await client.find_freelancers(jobs[turn % len(jobs)], k=K)
            calls, turn = calls + 1, turn + CALLERS

    start = time.perf_counter()
    until = start + seconds
    await asyncio.gather(*(ask(turn) for turn in range(CALLERS)))
    return calls / (time.perf_counter() - start)


async def _open(client: Any, jobs: list[str], rate: float, seconds: float) -> dict[str, Any]:
    """Calls at moments drawn beforehand; a latency counts from the moment."""
    rng = np.random.default_rng(0)
    moments = np.cumsum(rng.exponential(1.0 / rate, max(1, int(rate * seconds))))
    taken: list[float] = []
    failed: list[str] = []
    start = time.perf_counter()

    async def ask(i: int, moment: float) -> None:
        try:
            await client.find_freelancers(jobs[i % len(jobs)], k=K)
        except Exception as error:  # refused, late: a figure, too
            failed.append(type(error).__name__)
            return
        taken.append(time.perf_counter() - start - moment)

    calls = []
    for i, moment in enumerate(moments.tolist()):
        await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
        calls.append(asyncio.create_task(ask(i, moment)))
    await asyncio.gather(*calls)
    return {
        "calls_per_second": rate,
        "calls": len(calls),
        "failed": {name: failed.count(name) for name in sorted(set(failed))},
        **percentiles(taken),
    }


def percentiles(taken: list[float]) -> dict[str, float | None]:
    """p50 and p99 in ms; None of nothing."""
    if not taken:
        return {"p50_ms": None, "p99_ms": None}
    half, most = np.percentile(np.array(taken) * 1e3, [50, 99])
    return {"p50_ms": round(float(half), 3), "p99_ms": round(float(most), 3)}
