"""A Triton server on this host's loopback: for tests, the demo and ``models serve``.

Finds a ``tritonserver`` and runs it. Production runs NVIDIA's container instead; the client does
not know the difference.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import kill as signal_process
from pathlib import Path
from types import TracebackType
from typing import Self

from matchwright.engine.errors import DependencyUnavailable, InvalidArgument
from matchwright.engine.models import _guard

HOW_TO_GET_ONE = (
    "name one in MATCHWRIGHT_TRITONSERVER, put tritonserver on PATH, or run in the checkout: "
    "make .venv-triton/.done"
)
_INSIDE = "lib/python3*/site-packages/pytriton/tritonserver/bin/tritonserver"
_ATTEMPTS = 3
_PAUSE_S = 10.0
_LOG_TAIL = 1_000
_ALL_WELL = re.compile(r"[+|]|I\d{4} ")
"""Tables of settings, and lines of the level "information"."""
_PLAIN = re.compile(r"[A-Za-z0-9_./+=@%:,-]+")


@dataclass(frozen=True, slots=True)
class Found:
    """A server that can be run.

    Attributes:
        binary: the program.
        stub_folders: where the Python backend's stubs for each Python version are, when they are
            not where the server looks for them by itself.
        python: the interpreter whose packages the Python backend's models import.
    """

    binary: Path
    stub_folders: Path | None = None
    python: Path | None = None


def find_tritonserver(given: Path | None = None, named: Path | None = None) -> Found:
    """The first that is there: ``given``, ``named``, on PATH, in ``.venv-triton``.

    Args:
        given: what a caller asks for.
        named: what the environment names, see ``config.tritonserver_in``.

    Raises:
        InvalidArgument: a path was given or named, and no program is there.
        DependencyUnavailable: there is none.
    """
    for path in (given, named):
        if path is not None:
            if not path.is_file():
                raise InvalidArgument(f"no tritonserver at {path}; {HOW_TO_GET_ONE}")
            return _described(path.resolve())
    on_path = shutil.which("tritonserver")
    if on_path is not None:
        return _described(Path(on_path).resolve())
    checkout = Path(__file__).resolve().parents[4]
    if (checkout / "pyproject.toml").is_file():
        for path in sorted((checkout / ".venv-triton").glob(_INSIDE)):
            return _described(path)
    raise DependencyUnavailable(f"no tritonserver was found; {HOW_TO_GET_ONE}")


def _described(binary: Path) -> Found:
    """The wheel of nvidia-pytriton keeps its parts elsewhere than the container does."""
    stubs = binary.parent.parent / "python_backend_stubs"
    if not stubs.is_dir():
        return Found(binary)
    python = binary.parents[6] / "bin" / "python"
    if not python.exists():
        raise DependencyUnavailable(f"{binary} lies in no environment: there is no {python}")
    return Found(binary, stubs, python)


@dataclass(kw_only=True)
class LocalServer:
    """One server process. Use it as a context manager, or ``start`` and ``stop`` it.

    It ends with the process that started it, however that ends: a small guard process holds the
    other end of a pipe.

    Attributes:
        repository: the model repository's folder.
        models: loaded at the start; others are loaded by explicit calls.
        found: which server; looked for when None.
        port: of gRPC, on 127.0.0.1; 0 takes a free one, and a restart takes the same again.
        threads: of each model's libraries (OpenMP, BLAS).
        log: the server's log, appended to; in its temporary folder when None.
        grace_s: from SIGTERM to SIGKILL.
        options: further command line options of ``tritonserver``.
        tls_ca: PEM file with which readiness is asked, when the options make it speak TLS.
    """

    repository: Path
    models: Sequence[str] = ()
    found: Found | None = None
    port: int = 0
    threads: int = 1
    log: Path | None = None
    grace_s: float = 5.0
    options: Sequence[str] = ()
    tls_ca: Path | None = None
    pid: int = field(default=0, init=False)
    _guard: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _folder: Path | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """``host:port`` for a client."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the server's process is there."""
        return self._guard is not None and self._guard.poll() is None

    def start(self, timeout_s: float = 60.0) -> Self:
        """Start it and wait until it and its models are ready.

        Raises:
            DependencyUnavailable: it ended, or was not ready in time; the message has the end of
                its log.
        """
        if self.running:
            raise InvalidArgument(f"the server at {self.url} runs already")
        if self.port and not _is_free(self.port):
            raise DependencyUnavailable(
                f"port {self.port} of 127.0.0.1 is taken by another program; name another port, or "
                "0 for any that is free"
            )
        for attempt in range(_ATTEMPTS):
            port = self.port or _free_port()
            try:
                self._launch(port)
                self._wait(port, time.monotonic() + timeout_s)
            except BaseException as error:
                self.stop()
                if attempt + 1 == _ATTEMPTS or not self._passes(error):
                    raise
            else:
                self.port = port
                break
        return self

    def _passes(self, error: BaseException) -> bool:
        """Whether another start may do better: a free port was taken before it was used, or the
        Python backend ended on its own lock while it loaded several models, as it does at times."""
        told = str(error).lower()
        return "lock_exception" in told or (not self.port and "address already in use" in told)

    def _launch(self, port: int) -> None:
        if self.found is None:
            self.found = find_tritonserver()
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="matchwright-triton-"))
        prefix = f"matchwright-triton-{secrets.token_hex(6)}-"
        spec = {
            "command": [*self._command(port, prefix), *self.options],
            "set": dict.fromkeys(_THREADS, str(self.threads)),
            "first": _first(self.found),
            "log": str(self.log_file),
            "grace_s": self.grace_s,
            "shm_prefix": prefix,
        }
        script = [sys.executable, "-I", "-S", _guard.__file__, json.dumps(spec)]
        self._guard = subprocess.Popen(
            script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._guard.stdout is not None
        told = self._guard.stdout.readline()
        if not told.strip():
            raise DependencyUnavailable(f"{self.found.binary} could not be run")
        self.pid = int(told)

    def _command(self, port: int, shm_prefix: str) -> list[str]:
        assert self.found is not None
        assert self._folder is not None
        command = [
            str(self.found.binary),
            f"--model-repository={self._plain_path()}",
            "--model-control-mode=explicit",
            "--strict-readiness=true",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={port}",
            "--allow-http=false",
            "--allow-metrics=false",
            f"--exit-timeout-secs={max(1, round(self.grace_s) - 1)}",
            f"--model-load-thread-count={max(2, self.threads)}",
            f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
            *(f"--load-model={name}" for name in self.models),
        ]
        if self.found.stub_folders is not None:
            command.append(f"--backend-directory={_backends(self.found, self._folder)}")
        return command

    def _plain_path(self) -> Path:
        """The repository, by a link where its path is more than plain words: the Python backend
        has a shell start each model, unquoted, and its interpreter knows no letters but ASCII."""
        assert self._folder is not None
        path = self.repository.resolve()
        if _PLAIN.fullmatch(str(path)):
            return path
        link = self._folder / "models"
        link.unlink(missing_ok=True)
        link.symlink_to(path, target_is_directory=True)
        return link

    def _wait(self, port: int, until: float) -> None:
        from matchwright.engine.models.triton import Triton, TritonConfig

        with Triton(TritonConfig(url=f"127.0.0.1:{port}", tls_ca=self.tls_ca)) as client:
            while not client.ready(deadline=min(until, time.monotonic() + 0.5)):
                if not self.running:
                    raise DependencyUnavailable(f"the Triton server ended: {self.log_tail()}")
                if time.monotonic() > until:
                    raise DependencyUnavailable(
                        f"the Triton server is not ready after its time: {self.log_tail()}"
                    )
                time.sleep(0.05)

    @property
    def log_file(self) -> Path:
        """Where its log is."""
        if self.log is not None:
            return self.log
        assert self._folder is not None, "not started"
        return self._folder / "server.log"

    def log_tail(self) -> str:
        """The end of its log, for messages: without what it tells of itself when all is well."""
        with contextlib.suppress(FileNotFoundError):
            lines = self.log_file.read_text("utf-8", "replace").splitlines()
            told = [line for line in lines if line.strip() and not _ALL_WELL.match(line)]
            return "\n".join(told or lines)[-_LOG_TAIL:].strip()
        return "it has written no log"

    def kill(self) -> None:
        """SIGKILL, as if it had crashed; ``start`` starts it again on the same port."""
        signal_process(self.pid, signal.SIGKILL)
        self._reap()

    def pause(self) -> None:
        """SIGSTOP: it is there, and does nothing, once each of its threads has heard of it."""
        signal_process(self.pid, signal.SIGSTOP)
        until = time.monotonic() + _PAUSE_S
        while not _all_stopped(self.pid) and time.monotonic() < until:
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT."""
        signal_process(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL; its temporary folder goes. May be called twice."""
        self._reap()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _reap(self) -> None:
        if self._guard is not None:
            for pipe in (self._guard.stdin, self._guard.stdout):
                assert pipe is not None
                pipe.close()
            self._guard.wait()
            self._guard = None

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def _first(found: Found) -> Mapping[str, list[str]]:
    """What goes first in the environment.

    The stub of the Python backend is an interpreter in isolated mode: it heeds neither PYTHONPATH
    nor PYTHONHOME, but finds its environment by looking for ``python3`` on PATH. With another one's
    NumPy (2 instead of 1) its outputs would have no bytes.
    """
    if found.python is None:
        return {}
    site = found.binary.parents[3]
    lib = _ask(found.python, "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))")
    return {
        "PATH": [str(found.python.parent)],
        "LD_LIBRARY_PATH": [str(site / "nvidia_pytriton.libs"), lib],
    }


def _all_stopped(pid: int) -> bool:
    """Whether every thread of a process has stopped, or there is none."""
    try:
        threads = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:  # one has just ended
        return False
    return all(told.rpartition(")")[2].split()[0] in "TtZX" for told in threads)


def _backends(found: Found, folder: Path) -> Path:
    """A folder of backends: the Python one, with the stub of the interpreter's version."""
    assert found.python is not None
    assert found.stub_folders is not None
    made = folder / "backends"
    if not made.is_dir():
        version = _ask(found.python, "import sys; print('%d.%d' % sys.version_info[:2])")
        stub = found.stub_folders / version / "triton_python_backend_stub"
        if not stub.is_file():
            raise DependencyUnavailable(
                f"{found.binary} has no stub for Python {version}; make its environment with "
                f"one of: {', '.join(sorted(each.name for each in found.stub_folders.iterdir()))}"
            )
        shutil.copytree(found.binary.parent.parent / "backends", made)
        shutil.copy2(stub, made / "python")
    return made


def _ask(python: Path, script: str) -> str:
    done = subprocess.run(
        [str(python), "-I", "-S", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.strip()


def _is_free(port: int) -> bool:
    """Whether nobody listens on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
