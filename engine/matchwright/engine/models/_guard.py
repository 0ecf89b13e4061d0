"""Runs a server, and ends it when whoever wanted it is gone. Started as a script, by itself.

    python -I -S _guard.py SPEC

SPEC is JSON: ``command``, ``set`` and ``first`` (environment: values to set, and folders to put
first), ``log`` (a file, appended to), ``grace_s`` and ``shm_prefix``. The first line on stdout is
the server's process id. When stdin ends, because it was closed or because the process that held it
died, however it died, the server gets SIGTERM, and SIGKILL after ``grace_s``. Then what it has left
goes: processes of its group and the shared memory of its Python backend.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None)


def _die_with_the_guard() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _environment(spec: dict[str, Any]) -> dict[str, str]:
    merged = {**os.environ, **spec["set"]}
    for name, folders in spec["first"].items():
        rest = [merged[name]] if merged.get(name) else []
        merged[name] = os.pathsep.join([*folders, *rest])
    return merged


def _ended(pidfd: int, seconds: float) -> bool:
    return bool(select.select([pidfd], [], [], seconds)[0])


def main(spec: dict[str, Any]) -> int:
    """Run it to its end; its exit status."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with Path(spec["log"]).open("ab") as log:
        server = subprocess.Popen(
            spec["command"],
            env=_environment(spec),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_the_guard,  # noqa: PLW1509 - this process has one thread
        )
    pidfd = os.pidfd_open(server.pid)
    sys.stdout.write(f"{server.pid}\n")
    sys.stdout.flush()
    ready, _, _ = select.select([sys.stdin, pidfd], [], [])
    if pidfd not in ready:
        server.terminate()
        server.send_signal(signal.SIGCONT)  # one that was stopped could not hear it
        if not _ended(pidfd, spec["grace_s"]):
            server.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # before it is reaped: the id is still its own
    status = server.wait()
    with contextlib.suppress(ChildProcessError):
        while True:  # its children are ours since it ended
            os.waitpid(-1, 0)
    for left in Path("/dev/shm").glob(f"{spec['shm_prefix']}*"):
        left.unlink(missing_ok=True)
    return status


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end of stdin is what counts
    sys.exit(main(json.loads(sys.argv[1])) & 0xFF)
