"""An S3 server on loopback, behind a wire that breaks, loses answers and dawdles as it is told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest

BUCKET = "market"
_METHODS = (b"PUT /", b"POST /", b"GET /", b"HEAD /", b"DELETE /")


@dataclass(frozen=True)
class Fault:
    """What happens to a request.

    Attributes:
        kind: "break": the connection goes after ``body`` bytes of the request's body;
            "lose": the server does it and the answer never comes; "slow": ``seconds`` go by first.
    """

    kind: str
    body: int = 0
    seconds: float = 0.0


@dataclass
class Wire:
    """A proxy for HTTP/1.1 that looks at the first line of each request.

    Attributes:
        rule: method and path -> the fault that meets it, None for none.
        seen: method and path of every request.
    """

    upstream: tuple[str, int]
    rule: Callable[[str, str], Fault | None] = lambda method, path: None
    seen: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()

    def mend(self):
        self.rule = lambda method, path: None
        self.seen.clear()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        server = socket.create_connection(self.upstream)
        silent = threading.Event()
        with client, server:
            back = threading.Thread(target=_pump, args=(server, client, silent), daemon=True)
            back.start()
            with suppress(OSError):
                while data := client.recv(1 << 16):
                    fault = self._fault(data)
                    if fault is None:
                        server.sendall(data)
                    elif fault.kind == "slow":
                        time.sleep(fault.seconds)
                        server.sendall(data)
                    elif fault.kind == "lose":
                        silent.set()
                        _hand_on(client, server, data)
                        back.join(10)
                        break
                    else:
                        _hand_on(client, server, data, fault.body)
                        break
            for one in (client, server):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _fault(self, data):
        if not data.startswith(_METHODS):
            return None
        method, path = data.split(b" ", 2)[:2]
        self.seen.append((method.decode(), path.decode()))
        return self.rule(*self.seen[-1])


def _hand_on(client, server, data, most=None):
    """Hands on one request of which ``data`` has come, ``most`` bytes of its body if given."""
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    left = int(lengths[0].split(b":")[1]) if lengths else 0
    left = left if most is None else min(left, most)
    server.sendall(head + b"\r\n\r\n")
    while left > 0:
        body = body or client.recv(1 << 16)
        if not body:
            return
        server.sendall(body[:left])
        left -= len(body)
        body = b""


def _pump(server, client, silent):
    """Answers to the client; one that is to be lost is swallowed, but not "go on with the body"."""
    with suppress(OSError):
        while data := server.recv(1 << 16):
            if silent.is_set() and not data.startswith(b"HTTP/1.1 100"):
                return
            client.sendall(data)


def once(kind, *, method="PUT", where="", times=1, **more) -> Callable[[str, str], Fault | None]:
    """A rule: the first ``times`` requests of a method whose path has ``where``."""
    left = [times]

    def rule(got, path):
        if got == method and where in path and left[0] > 0:
            left[0] -= 1
            return Fault(kind, **more)
        return None

    return rule


@contextmanager
def s3_server() -> Iterator[Wire]:
    """The server and the wire to it; skips where moto or s3fs is not installed."""
    pytest.importorskip("s3fs", reason="needs s3fs (pip install s3fs)")
    moto = pytest.importorskip("moto.server", reason="needs moto and flask (pip install moto[s3])")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        _one_object_at_a_time(patch)
        server.start()
        wire = Wire(server.get_host_and_port())
        try:
            yield wire
        finally:
            wire.close()
            server.stop()


def _one_object_at_a_time(patch):
    """moto closes the old bytes of an object while another PUT of it is being answered."""
    from moto.s3.responses import S3Response

    answer, lock = S3Response.key_response, threading.Lock()

    def answer_alone(*args, **kwargs):
        with lock:
            return answer(*args, **kwargs)

    patch.setattr(S3Response, "key_response", answer_alone)


def environment(wire) -> dict[str, str]:
    """What s3fs in this process or another one finds the server by; no file of ours is read."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{wire.port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }


@pytest.fixture(scope="module")
def wire():
    with s3_server() as wire, pytest.MonkeyPatch.context() as patch:
        import s3fs

        for name, value in environment(wire).items():
            patch.setenv(name, value)
        for one in (s3fs.S3FileSystem, s3fs.core.S3File):  # tests end sooner, faults stay faults
            patch.setattr(one, "retries", 3)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(BUCKET)
        yield wire
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def place(wire, request):
    """An URL of this test's own, over a wire that is whole again."""
    wire.mend()
    yield f"s3://{BUCKET}/{request.node.name.replace('[', '-').rstrip(']')}"
    wire.mend()


def left_over() -> list[str]:
    """Keys of uploads that were begun and neither ended nor taken back."""
    import s3fs

    found = s3fs.S3FileSystem().call_s3("list_multipart_uploads", Bucket=BUCKET)
    return [upload["Key"] for upload in found.get("Uploads", [])]
