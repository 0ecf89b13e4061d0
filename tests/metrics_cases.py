"""A server whose metrics can be read, and how they are read."""

from __future__ import annotations

import socket
import urllib.request

import pytest
import service_cases
from prometheus_client.parser import text_string_to_metric_families

from matchwright.engine.config import ServerConfig
from matchwright.engine.service import running

folder = service_cases.folder
METHODS = ("FindJobs", "FindFreelancers")
PATIENCE_S = 60.0
"""For what comes at once; only something that hangs takes so long."""


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def get(address, path="/metrics", **headers):
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        return reply.read().decode()


def values(text):
    """(name, labels as sorted pairs) -> value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text, name, **labels):
    return values(text).get((name, tuple(sorted(labels.items()))))


def config(folder, **more):
    return ServerConfig(
        stores={"default": folder}, port=0, metrics_address=f"127.0.0.1:{free_port()}", **more
    )


@pytest.fixture(scope="module")
def watched(folder):
    """(address of the calls, address of the metrics) of one server."""
    asked = config(folder)
    with running(asked) as address:
        yield address, asked.metrics_address
