"""What a user installs: the editable checkout, the wheel and the sdist hold the whole namespace."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

PARTS = {
    "matchwright.engine": "engine",
    "matchwright.kernels": "kernels",
    "matchwright.v1": "protos",
    "matchwright.clients": "clients",
}
DATA_SUFFIXES = {".toml", ".cu", ".cuh", ".json", ".npz", ".proto", ".pyi", ".txt", ".csv"}


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        check=False,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _data_files(root: Path) -> set[str]:
    """Files of the four folders that are no Python source, as paths inside the wheel."""
    return {
        path.relative_to(root / folder).as_posix()
        for folder in PARTS.values()
        for path in (root / folder / "matchwright").rglob("*")
        if path.suffix in DATA_SUFFIXES or path.name == "py.typed"
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory, repo_root):
    """(wheel, sdist); the wheel is built from the sdist, as installers do it."""
    out = tmp_path_factory.mktemp("built")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, repo_root, cwd=out)
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A folder into which the wheel was installed, without its dependencies."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    _run(*pip, "--target", target, built[0], cwd=target)
    return target


@pytest.mark.parametrize(("module", "folder"), sorted(PARTS.items()))
def test_the_checkout_is_installed_editable(module, folder, repo_root):
    origin = importlib.import_module(module).__file__
    assert origin is not None
    if not Path(origin).is_relative_to(repo_root):
        pytest.fail(f"{module} comes from {origin}; run `make test`, which installs the checkout")
    assert Path(origin).is_relative_to(repo_root / folder)


def test_the_namespace_has_no_file_of_its_own():
    namespace = importlib.import_module("matchwright")
    assert getattr(namespace, "__file__", None) is None
    assert {Path(path).parent.name for path in namespace.__path__} >= set(PARTS.values())


def test_the_wheel_holds_every_part_and_data_file(built, repo_root):
    names = set(zipfile.ZipFile(built[0]).namelist())
    for module in PARTS:
        assert f"{module.replace('.', '/')}/__init__.py" in names
    for module in ("engine", "kernels", "clients"):
        assert f"matchwright/{module}/py.typed" in names
    assert "matchwright/__init__.py" not in names
    assert _data_files(repo_root) - names == set()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    outside = {name for name in names if not name.startswith(("matchwright/", "matchwright-"))}
    assert outside == set()


def test_the_sdist_builds_and_tests_by_itself(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("pyproject.toml", "LICENSE", "README.md", "Makefile", "compose.yaml"):
        assert needed in names
    assert any(name.startswith("tests/") for name in names)
    leaked = [name for name in names if name.startswith((".venv", ".git/", "proofs/tmp", "shared"))]
    assert leaked == []


def test_the_wheel_alone_imports(installed, tmp_path):
    """In a process that sees the wheel before the checkout, each part comes from the wheel."""
    script = (
        "import sys, importlib\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "sys.path[:] = [sys.argv[1]] + [p for p in sys.path if '/matchwright' not in p\n"
        "               and not any(p.endswith('/' + x) for x in sys.argv[2:])]\n"
        "import matchwright\n"
        "for name in ('engine', 'kernels', 'v1', 'clients', 'engine.cli', 'kernels.types'):\n"
        "    print(importlib.import_module('matchwright.' + name).__file__)\n"
    )
    told = _run(sys.executable, "-c", script, installed, *PARTS.values(), cwd=tmp_path)
    assert len(told.split()) == 6
    assert all(Path(path).is_relative_to(installed) for path in told.split()), told


def test_the_wheel_brings_its_command(installed, tmp_path):
    assert (installed / "bin" / "matchwright").exists()
    told = _run(sys.executable, "-m", "matchwright.engine.cli", "--version", cwd=tmp_path)
    assert told == f"matchwright {importlib.metadata.version('matchwright')}\n"


def test_every_direct_dependency_is_pinned_and_explained(repo_root):
    project = tomllib.loads((repo_root / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    names = {re.split(r"[<>=!~ ;\[]", line)[0].lower().replace("_", "-") for line in wanted}
    pins = [
        line.strip()
        for line in (repo_root / "constraints.txt").read_text("utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    pinned = {pin.partition("==")[0].lower().replace("_", "-") for pin in pins}
    assert names - pinned == set()
    explained = (repo_root / "docs" / "dependencies.md").read_text("utf-8")
    assert {name for name in names if f"`{name}`" not in explained} == set()
