"""The HTTP endpoint of a server: ``/metrics`` and ``/healthz``, on threads of its own.

Plain HTTP, no requests with a body, one answer a connection, a bound on how many at once: it is
there for a monitor on this machine or in its network, and never stands in the way of answers.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from matchwright.engine.errors import DependencyUnavailable
from matchwright.engine.metrics import Metrics

CONNECTIONS_MAX = 8
"""Connections that are served at once; others are closed."""
SILENCE_S = 5.0
"""How long a connection may say nothing."""

_log = logging.getLogger(__name__)


class Endpoint:
    """Answers from ``start`` to ``close``.

    Args:
        metrics: what ``/metrics`` tells.
        health: (whether calls are taken, part -> what is wrong with it or None).
    """

    def __init__(
        self, metrics: Metrics, health: Callable[[], tuple[bool, Mapping[str, str | None]]]
    ) -> None:
        self._metrics = metrics
        self._health = health
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, host: str, port: int) -> str:
        """Listen.

        Returns:
            The address, with the port that the system chose when 0 was asked for.

        Raises:
            DependencyUnavailable: the address cannot be listened on.
        """
        try:
            server = _Server(host, port, self._page)
        except OSError as error:
            raise DependencyUnavailable(
                f"cannot listen on {host}:{port} for metrics: {error.strerror or error}; "
                "is another server there?",
                address=f"{host}:{port}",
            ) from None
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05},
            name="matchwright-metrics", daemon=True,
        )  # fmt: skip
        self._thread.start()
        shown = f"[{host}]" if ":" in host else host
        return f"{shown}:{server.server_address[1]}"

    def close(self) -> None:
        """Stop listening; blocks for a moment."""
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return
        self._server = None
        server.shutdown()
        thread.join()
        server.server_close()

    def _page(self, path: str, accept: str) -> tuple[HTTPStatus, str, bytes]:
        """(status, content type, body) of a path."""
        if path == "/metrics":
            body, content_type = self._metrics.text(accept)
            return HTTPStatus.OK, content_type, body
        if path == "/healthz":
            serving, parts = self._health()
            told = {"serving": serving, "parts": {name: why or "ok" for name, why in parts.items()}}
            status = HTTPStatus.OK if serving else HTTPStatus.SERVICE_UNAVAILABLE
            return status, "application/json", json.dumps(told).encode() + b"\n"
        return HTTPStatus.NOT_FOUND, "text/plain", b"there is /metrics and /healthz\n"


Page = Callable[[str, str], tuple[HTTPStatus, str, bytes]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 2 * CONNECTIONS_MAX

    def __init__(self, host: str, port: int, page: Page) -> None:
        self.page = page
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without asking DNS for this machine's name, which the base class does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A monitor that leaves early is none of the operator's business."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = SILENCE_S
    server_version = "matchwright"
    sys_version = ""

    def do_GET(self) -> None:
        try:
            path, accept = self.path.partition("?")[0], self.headers.get("Accept", "")
            status, content_type, body = self.server.page(path, accept)
        except Exception:
            _log.exception("%s cannot be told", self.path[:64])
            status, content_type, body = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", b"defect\n"
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Scrapes come every few seconds; nobody reads a log of them."""
