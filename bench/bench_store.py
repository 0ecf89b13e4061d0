"""The store at scale: import rate, time to open, resident memory, time until a change is visible.

    .venv/bin/python bench/bench_store.py --json                     a million freelancers
    .venv/bin/python bench/bench_store.py --rows 50000               a quick look
    .venv/bin/python bench/bench_store.py --store DIR --json         an existing store

Records are synthetic; everything else is the engine's own: the starter generation's vectors, rule
columns, keys, indexes, files. ``--random`` puts random vectors in the place of encoded ones, for a
quicker look at the store alone.

Opening is timed in fresh processes, imports excluded: first with the store's files dropped from
the page cache (as far as the system lets us), then three times with them in it. Memory is what
the kernel says the reading process has resident, mapped pages included, after every array was
read. Visibility is the time from the start of an upsert in one process to the first snapshot in
another that shows it.

A store that the bench made itself is compacted at the end, by a process of its own: a third of the
rows is deleted, scattered, then everything is merged while another thread writes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.store import EncodedRows, Neighbours, Store
from matchwright.engine.store.encode import default_neighbours

OPEN_S_MAX = 3.0
RESIDENT_GB_MAX = 4.0
VISIBLE_S_MAX = 1.0
D = 384
_WARM_OPENS = 3
_CHANGES = 20
_WRITE_EVERY_S = 0.02
_READ_STRIDE = 512  # touches every page and every cache line that a scan would


@dataclass(frozen=True)
class RandomGeneration:
    """Stands in for a fitted generation: random vectors of the same shape."""

    id: str = "random"
    d: int = D

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "random").touch()


def random_neighbours() -> Neighbours:
    """The engine's own neighbours, but for the vectors."""
    from matchwright.engine.columns import columns
    from matchwright.engine.records import SCHEMAS
    from matchwright.kernels import index
    from matchwright.kernels.order import hash_keys

    zones = ("Europe/Berlin", "America/New_York", "Asia/Kolkata")
    rng = np.random.default_rng(0)

    def encode(generation: Any, kind: Any, records: Any, salt: bytes) -> EncodedRows:
        x_nd = rng.integers(-127, 128, (records.height, D), dtype=np.int8)
        scalars, sets = columns(kind, records, salt, zones)
        return EncodedRows(x_nd, hash_keys(records["id"].to_list(), salt), scalars, sets)

    return Neighbours(
        schema=lambda kind: SCHEMAS[kind],
        to_frame=lambda kind, rows: pl.DataFrame(rows, schema=SCHEMAS[kind]),
        hash_keys=hash_keys,
        encode_rows=encode,
        build_index=index.build_index,
        index_version=getattr(index, "VERSION", 1),
        take=lambda records, seed, sample: records.head(sample),
        fit=lambda *frames, **options: RandomGeneration(),
        starter=RandomGeneration,
        load=lambda folder: RandomGeneration(),
    )


def neighbours(random: bool) -> Neighbours:
    return random_neighbours() if random else default_neighbours()


# ── What is measured ──────────────────────────────────────────────────────────────────────────


def build(folder: Path, rows: int, random: bool) -> dict[str, Any]:
    """Imports synthetic freelancers; the store's share of the time is counted alone."""
    from matchwright.engine import synthetic

    spent = 0.0
    with Store.open(folder, mode="w", create=True, neighbours=neighbours(random)) as store:
        with store.bulk("freelancer") as sink:
            for frame in synthetic.blocks("freelancer", rows, texts=True):
                start = time.perf_counter()
                sink.write(frame)
                spent += time.perf_counter() - start
            start = time.perf_counter()
            sink.flush()
            spent += time.perf_counter() - start
        size = store.info()["bytes"]
    return {
        "import_s": round(spent, 1),
        "rows_per_s": round(rows / spent),
        "import_peak_gb": resident_gb()["peak_gb"],
        "bytes": size,
    }


def drop_from_cache(folder: Path) -> None:
    """Asks the kernel to forget the store's pages; clean ones go."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def resident_gb() -> dict[str, float]:
    """What this process has resident, and the most it ever had."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in status)
    return {
        name: round(int(fields[field].split()[0]) * 1024 / 1e9, 3)
        for name, field in (("resident_gb", "VmRSS"), ("peak_gb", "VmHWM"))
    }


def read_everything(store: Store) -> int:
    """Reads every array that a kernel may read; their bytes."""
    total = 0
    for segment, _ in store.snapshot().corpus("freelancer").parts:
        arrays: list[Any] = [
            segment.x_nd,
            segment.key_n,
            *segment.scalars.values(),
            *segment.index.values(),
        ]
        for column in segment.sets.values():
            arrays += [column.start_n, column.value, column.known_n]
        for array in arrays:
            flat = array.reshape(-1).view(np.uint8)
            flat[::_READ_STRIDE].max(initial=0)
            total += flat.nbytes
    return total


def child_open(folder: Path, random: bool) -> None:
    """Opens once; prints what it took."""
    made = neighbours(random)
    start = time.perf_counter()
    store = Store.open(folder, neighbours=made)
    snapshot = store.snapshot()
    opened = time.perf_counter()
    snapshot.corpus("freelancer")
    checked = time.perf_counter()
    scanned = read_everything(store)
    ids = snapshot.ids_of("freelancer", [0, snapshot.corpus("freelancer").n - 1])
    snapshot.records("freelancer", ids)
    report = {
        "open_s": round(opened - start, 4),
        "first_read_s": round(checked - opened, 4),
        "scanned_bytes": scanned,
        **resident_gb(),
    }
    print(json.dumps(report), flush=True)


def child_read(folder: Path, random: bool) -> None:
    """Polls snapshots, as a busy server does; prints when each awaited id shows."""
    with Store.open(folder, neighbours=neighbours(random)) as store:
        store.snapshot().corpus("freelancer")
        print("ready", flush=True)
        for line in sys.stdin:
            wanted = [line.strip()]
            while store.snapshot().rows_of("freelancer", wanted)[0] < 0:
                time.sleep(0.001)
            print(time.monotonic(), flush=True)


def visibility(folder: Path, random: bool, itself: list[str]) -> dict[str, float]:
    """Seconds from the start of an upsert here to its being seen there."""
    from matchwright.engine import synthetic

    names = [f"late-{time.time_ns()}-{n}" for n in range(_CHANGES)]
    row = synthetic.frame("freelancer", 1)
    there, here, wrote = [], [], []
    command = [*itself, "--child", "read"]
    pipe = subprocess.PIPE
    with (
        Store.open(folder, mode="w", neighbours=neighbours(random)) as store,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as reader,
    ):
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for name in names:
            frame = row.with_columns(id=pl.lit(name))
            reader.stdin.write(f"{name}\n")
            start = time.monotonic()
            store.upsert("freelancer", frame)
            wrote.append(time.monotonic() - start)
            assert store.snapshot().rows_of("freelancer", [name])[0] >= 0
            here.append(time.monotonic() - start)
            there.append(float(reader.stdout.readline()) - start)
        reader.stdin.close()
        store.delete("freelancer", names)
    return {
        "write_median_s": round(statistics.median(wrote), 4),
        "visible_here_max_s": round(max(here), 4),
        "visible_there_median_s": round(statistics.median(there), 4),
        "visible_there_max_s": round(max(there), 4),
    }


def child_compact(folder: Path, random: bool) -> None:
    """Deletes a third of the rows and compacts; prints what it took."""
    from matchwright.engine import synthetic

    row, stop = synthetic.frame("freelancer", 1), threading.Event()
    waits: list[float] = []
    with Store.open(folder, mode="w", neighbours=neighbours(random)) as store:
        snapshot = store.snapshot()
        chosen = np.random.default_rng(1).permutation(snapshot.corpus("freelancer").n)
        for rows in np.array_split(chosen[: len(chosen) // 3], -(-len(chosen) // 100_000)):
            store.delete("freelancer", snapshot.ids_of("freelancer", np.sort(rows)))

        def write() -> None:
            while not stop.is_set():
                start = time.monotonic()
                store.upsert("freelancer", row.with_columns(id=pl.lit(f"w{len(waits)}")))
                waits.append(time.monotonic() - start)
                stop.wait(_WRITE_EVERY_S)

        thread = threading.Thread(target=write)
        thread.start()
        figures = store.compact(everything=True)
        stop.set()
        thread.join()
    report = {
        "compact_s": round(figures.seconds, 2),
        "compact_rows": figures.rows,
        "compact_dropped": figures.dropped,
        "compact_bytes": figures.bytes_written,
        "compact_peak_gb": resident_gb()["peak_gb"],
        "compact_write_median_s": round(statistics.median(waits), 4),
        "compact_write_max_s": round(max(waits), 4),
    }
    print(json.dumps(report), flush=True)


def command(folder: Path, random: bool) -> list[str]:
    """What starts this file again on a store."""
    return [sys.executable, __file__, "--store", str(folder), *(["--random"] if random else [])]


def compaction(folder: Path, random: bool) -> dict[str, Any]:
    itself = [*command(folder, random), "--child", "compact"]
    done = subprocess.run(itself, check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def measure(folder: Path, random: bool) -> dict[str, Any]:
    itself = command(folder, random)
    opens = []
    drop_from_cache(folder)
    for _ in range(1 + _WARM_OPENS):
        started = [*itself, "--child", "open"]
        done = subprocess.run(started, check=True, capture_output=True, text=True)
        opens.append(json.loads(done.stdout))
    cold, warm = opens[0], opens[1:]
    return {
        "open_cold_s": cold["open_s"],
        "first_read_cold_s": cold["first_read_s"],
        "open_warm_s": statistics.median(one["open_s"] for one in warm),
        "first_read_warm_s": statistics.median(one["first_read_s"] for one in warm),
        "scanned_bytes": cold["scanned_bytes"],
        "resident_gb": max(one["resident_gb"] for one in opens),
        "peak_gb": max(one["peak_gb"] for one in opens),
        **visibility(folder, random, itself),
    }


CHILDREN = {"open": child_open, "read": child_read, "compact": child_compact}


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as folder:
        yield Path(folder) / "store"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="freelancers")
    parser.add_argument("--store", type=Path, help="use this store; made if it is not there")
    parser.add_argument("--random", action="store_true", help="random vectors, not encoded ones")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--child", choices=tuple(CHILDREN), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        CHILDREN[options.child](options.store, options.random)
        return 0
    with _folder(options.store) as folder:
        vectors = "random" if options.random else "encoded"
        report: dict[str, Any] = {"rows": options.rows, "vectors": vectors}
        made = not folder.exists()
        if made:
            report.update(build(folder, options.rows, options.random))
        report.update(measure(folder, options.random))
        if made:
            report.update(compaction(folder, options.random))
    report["passed"] = bool(
        max(report["open_cold_s"], report["open_warm_s"]) < OPEN_S_MAX
        and report["peak_gb"] <= RESIDENT_GB_MAX
        and report["visible_there_max_s"] < VISIBLE_S_MAX
    )
    if options.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:24} {value}")
    return 0 if report["passed"] else 6


if __name__ == "__main__":
    sys.exit(main())
