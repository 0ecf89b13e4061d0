"""A Triton server with two versions of an encoder and of a ranker."""

from __future__ import annotations

from functools import partial

import pytest
from models_cases import build_both, sources_of_both
from triton_cases import client_of, need_server, served


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    need_server()
    return sources_of_both(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def repo(tmp_path_factory, sources):
    """Two versions of each."""
    return build_both(tmp_path_factory.mktemp("served") / "repo", sources)


@pytest.fixture(scope="module")
def server(repo):
    with served(repo, ["encoder", "ranker"]) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with client_of(server) as client:
        yield client


@pytest.fixture
def run(run):
    """``code, stdout, stderr = run("check", ...)`` of ``matchwright models``."""
    return partial(run, "models")
