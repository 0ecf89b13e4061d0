"""``matchwright doctor``: what this machine has, or how a server is, and why. Writes nothing."""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matchwright.engine.cli._failures import harmless
from matchwright.engine.cli._options import FormatOption, OutputOption
from matchwright.engine.cli._output import View, Writer
from matchwright.engine.cli._source import MarketplaceOption, StoreOrNone, TimeoutOption, TlsOption
from matchwright.engine.errors import DependencyUnavailable, InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console

_REQUIRED = (
    *("numpy", "polars", "scipy", "scikit-learn", "threadpoolctl", "msgspec", "typer", "rich"),
    *("ftfy", "selectolax", "pycountry", "tzdata", "grpcio", "protobuf"),
    *("googleapis-common-protos", "grpcio-health-checking", "grpcio-reflection"),
    "prometheus-client",
)
_OPTIONAL = ("numkong", "cupy-cuda13x", "faiss-cpu")
_CPU_FLAGS_OF_INTEREST = ("avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        check: what was looked at.
        state: "ok", "absent" (and not needed), "degraded" (a server answers, but not as it should)
            or "failed".
        detail: what was found.
        advice: what to do when it is not ok.
    """

    check: str
    state: str
    detail: str
    advice: str = ""


def doctor(
    server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Look at this server instead of the machine."),
    ] = None,
    marketplace: MarketplaceOption = "",
    tls_ca: TlsOption = None,
    tls_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The server's name in its certificate.")
    ] = None,
    timeout: TimeoutOption = 5.0,
    device: Annotated[
        bool, typer.Option("--device", help="With --store: what its rows would take on a GPU.")
    ] = False,
    store: StoreOrNone = None,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> int:
    """Say what this machine has, what is missing and why; or how a server is. Writes nothing."""
    if device != (store is not None) or (device and server is not None):
        raise InvalidArgument("--device and --store DIR go together, without --server")
    if store is not None:
        from matchwright.engine.cli._device_plan import examine_device

        findings = [Finding(*line) for line in examine_device(store)]
    elif server is None:
        if marketplace or tls_ca or tls_name:
            raise InvalidArgument("--marketplace, --tls-ca and --tls-name go with --server ADDRESS")
        findings = list(examine())
    else:
        findings = list(ask(server, marketplace or "default", tls_ca, tls_name, timeout))
    rows = [asdict(finding) for finding in findings]
    failed = [finding.check for finding in findings if finding.state == "failed"]
    document = {"healthy": not failed, "findings": rows}
    with Writer(format_, output) as writer:
        writer.add(View(document, rows, lambda console: _draw(console, findings)))
    return DependencyUnavailable.exit_code if failed else 0


def examine() -> Iterator[Finding]:
    """Every check, in order; a check that breaks is a finding, never an exception."""
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("python", _python),
        ("machine", _machine),
        ("packages", _packages),
        ("sqlite", _sqlite),
        ("time zones", _time_zones),
        ("blas", _blas),
        ("kernels", _kernels),
        ("numkong", _numkong),
        ("gpu", _gpu),
        ("loopback", _loopback),
    )
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            yield Finding(name, "failed", why, "pip install 'matchwright[engine]' again")


def ask(
    server: str, marketplace: str, tls_ca: Path | None, tls_name: str | None, timeout_s: float
) -> Iterator[Finding]:
    """How a server says it is, by the standard health checks. No token is needed.

    Raises:
        InvalidArgument: the connection cannot be asked for like that.
    """
    from matchwright.clients import ClientError, Tls
    from matchwright.clients._channel import Connection
    from matchwright.clients._health import OVERALL, SERVICE, statuses

    tls = None if tls_ca is None and tls_name is None else Tls(ca=tls_ca, server_name=tls_name)
    try:
        connection = Connection(address=server, timeout_s=timeout_s, tls=tls, attempts_max=1)
        connection.credentials()
    except ClientError as error:
        raise InvalidArgument(str(error)) from None
    store = f"matchwright.store.{marketplace}"
    needed = (OVERALL, SERVICE)
    try:
        told = statuses(connection, (*needed, store, "matchwright.device", "matchwright.models"))
    except ClientError as error:
        advice = "is it running there? (matchwright serve)"
        yield Finding("server", "failed", f"no answer from {server}: {error}", advice)
        return
    for name, status in told.items():
        yield _part(name or "server", status, needed=name in needed)


def _part(name: str, status: str, *, needed: bool) -> Finding:
    if status == "SERVING":
        return Finding(name, "ok", status)
    if needed:
        return Finding(name, "failed", status, "it is starting, stopping, or no matchwright server")
    if status == "NOT_SERVING":
        return Finding(name, "degraded", status, "answers go on without it; its log says why")
    return Finding(name, "absent", "the server has no such part")


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    advice = "" if good else "use Python 3.11 or newer"
    yield Finding("python", "ok" if good else "failed", f"{version} at {sys.prefix}", advice)
    yield Finding("matchwright", "ok", metadata.version("matchwright"))


def _machine() -> Iterator[Finding]:
    about = _proc_values(Path("/proc/cpuinfo"))
    flags = set(about.get("flags", "").split())
    wide = [flag for flag in _CPU_FLAGS_OF_INTEREST if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = about.get("model name", platform.processor() or platform.machine())
    yield Finding("cpu", "ok", f"{name}, {cores} cores to use, {' '.join(wide) or 'no wide units'}")
    memory = _proc_values(Path("/proc/meminfo")).get("MemAvailable", "")
    if memory:
        gib = int(memory.split()[0]) / (1 << 20)
        yield Finding("memory", "ok", f"{gib:.1f} GiB available")
    yield Finding("system", "ok", platform.platform())


def _proc_values(path: Path) -> dict[str, str]:
    """``name : value`` lines of a /proc file (the first of each name), or nothing."""
    if not path.exists():
        return {}
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    values: dict[str, str] = {}
    for name, _, value in pairs:
        values.setdefault(name.strip(), value.strip())
    return values


def _packages() -> Iterator[Finding]:
    for name in (*_REQUIRED, *_OPTIONAL):
        try:
            yield Finding(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            if name in _OPTIONAL:
                yield Finding(name, "absent", "not installed; not needed")
            else:
                yield Finding(name, "failed", "missing", "pip install 'matchwright[engine]'")


def _sqlite() -> Iterator[Finding]:
    import sqlite3

    good = sqlite3.sqlite_version_info >= (3, 35)
    advice = "" if good else "use a Python that is built with SQLite 3.35 or newer"
    yield Finding("sqlite", "ok" if good else "failed", sqlite3.sqlite_version, advice)


def _time_zones() -> Iterator[Finding]:
    import zoneinfo

    count = len(zoneinfo.available_timezones())
    zoneinfo.ZoneInfo("Asia/Kathmandu")
    yield Finding("time zones", "ok", f"{count} zones, tzdata {metadata.version('tzdata')}")


def _blas() -> Iterator[Finding]:
    import numpy as np
    from threadpoolctl import threadpool_info

    np.ones((8, 8), np.float32) @ np.ones((8, 8), np.float32)
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    for pool in pools:
        detail = f"{pool['internal_api']} {pool['version']}, {pool['num_threads']} threads"
        yield Finding("blas", "ok", f"{detail}, {pool.get('architecture', 'unknown cores')}")
    if not pools:
        yield Finding("blas", "ok", "none that tells about itself; results are exact all the same")


def _kernels() -> Iterator[Finding]:
    """A product at the largest magnitudes: the sum that must be exact on this machine's BLAS."""
    import numpy as np

    from matchwright.kernels.types import D_MAX

    rng = np.random.default_rng(0)
    h, x = rng.choice((-127, 127), (2, 64, D_MAX))
    h[0], x[0] = 127, 127
    exact = h @ x.T
    product = h.astype(np.float32) @ x.astype(np.float32).T
    good = bool(np.array_equal(product, exact))
    detail = f"float32 sums of {D_MAX:,} dimensions are {'exact' if good else 'NOT exact'}"
    yield Finding("kernels", "ok" if good else "failed", detail, "" if good else "report this BLAS")


def _numkong() -> Iterator[Finding]:
    try:
        from matchwright.kernels.numkong_ops import NumkongOps

        NumkongOps(threads=1, verify=True)
    except Exception as error:  # not there, or it fails its own check: either way it is left out
        why = harmless(error)
        yield Finding("numkong check", "absent", f"{why}; NumPy does the work")
    else:
        yield Finding("numkong check", "ok", "its products are the exact integers")


def _gpu() -> Iterator[Finding]:
    from matchwright.kernels import cupy_ops
    from matchwright.kernels.probe import Missing, probe

    found = probe()
    if isinstance(found, Missing):
        yield Finding("gpu", "absent", f"{harmless(found.text)} ({found.why}); the CPU answers")
        return
    try:
        cupy_ops.CupyOps(threads=1, verify=True)
        yield Finding("gpu", "ok", f"{found.text}; its answers are the reference's")
    except Exception as error:  # a device that is there and does not work
        yield Finding("gpu", "failed", harmless(error), "use --device cpu, and report this")


def _loopback() -> Iterator[Finding]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield Finding("loopback", "ok", f"port {listener.getsockname()[1]} could be bound")


def _draw(console: Console, findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "absent": "yellow", "degraded": "yellow", "failed": "red"}
    table = Table("check", "", "found", box=None, pad_edge=False)
    for finding in findings:
        told = finding.detail + (f" -> {finding.advice}" if finding.advice else "")
        state = Text(finding.state, style=colours[finding.state])
        table.add_row(finding.check, state, harmless(told))
    console.print(table)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)
