"""What all tests share: reduced or full counts, real data, and deterministic property tests.

``MATCHWRIGHT_PROVE=1`` (set by ``make prove``) asks for full counts. Nothing else in the tests
reads the environment.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROVING = os.environ.get("MATCHWRIGHT_PROVE") == "1"

# A shell's background job and nohup leave these ignored, which child processes would inherit:
# tests that interrupt a command must not depend on how the suite was started.
for _number, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


LONG = (
    "test_ray_executor",
    "test_service_models",
    "test_demo",
    "test_object_store",
    "test_erase",
    "test_nightly",
    "test_simulation",
    "test_models_server",
    "test_encoder_triton",
    "test_fuzz_cli",
)
"""Files that take ten seconds or more begin first: at the end one would leave cores idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, the others as they were found."""
    place = {name: at for at, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


def _property_test_profiles() -> None:
    slow_is_fine = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)
    settings.register_profile(
        "reduced",
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=slow_is_fine,
    )
    settings.register_profile("full", settings.get_profile("reduced"), max_examples=1_000)
    # `pytest --hypothesis-profile=explore` looks where nobody has looked yet.
    settings.register_profile(
        "explore", deadline=None, max_examples=500, suppress_health_check=slow_is_fine
    )
    settings.load_profile("full" if PROVING else "reduced")


# `make gpu-check` runs kernel tests with this file on machines without hypothesis.
if importlib.util.find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    _property_test_profiles()


class Count(Protocol):
    """How often a test repeats what it does."""

    def __call__(self, *, reduced: int, full: int) -> int: ...


@pytest.fixture(scope="session")
def count() -> Count:
    """``count(reduced=200, full=100_000)``: the first in ``make test``, the second in proofs."""

    def choose(*, reduced: int, full: int) -> int:
        return full if PROVING else reduced

    return choose


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The folder that holds pyproject.toml."""
    return ROOT


def _beside_the_checkout(name: str) -> Path:
    folder = ROOT.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"needs real files in ../shared/{name} (beside the checkout)")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real exports, beside the checkout; they are never copied into it."""
    return _beside_the_checkout("data")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Real models, beside the checkout."""
    return _beside_the_checkout("models")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``code, stdout, stderr = run("match", ...)`` in this process; all words become strings."""
    from matchwright.engine.cli import main

    def call(*argv: object) -> tuple[int, str, str]:
        code = main([str(word) for word in argv])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code, told.out, told.err

    return call
