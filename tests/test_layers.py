"""Each layer knows its neighbour only: read from the sources, and seen at run time."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("engine", "kernels", "protos", "clients")
ENGINE, KERNELS, CLIENTS = "matchwright.engine", "matchwright.kernels", "matchwright.clients"
STUBS = "matchwright.v1"

ALLOWED = {
    # imported package -> the only modules (by prefix) that may import it
    "grpc": (f"{ENGINE}.service", CLIENTS, STUBS),
    "grpc_health": (f"{ENGINE}.service", CLIENTS),
    "grpc_reflection": (f"{ENGINE}.service",),
    "matchwright.v1": (f"{ENGINE}.service", CLIENTS, STUBS),
    "asyncio": (
        f"{ENGINE}.batcher",
        f"{ENGINE}.service",
        f"{ENGINE}.models.triton.client",
        CLIENTS,
    ),
    "cupy": (KERNELS,),
    "numkong": (KERNELS,),
    "sqlite3": (f"{ENGINE}.store", f"{ENGINE}.records", f"{ENGINE}.cli.doctor"),
    "lightgbm": (
        f"{ENGINE}.rerank.export",
        f"{ENGINE}.rerank.train",
        f"{ENGINE}.models.backends.ranker",
    ),
    "onnx": (f"{ENGINE}.models.encoder_source", f"{ENGINE}.models.small"),
    "onnxruntime": (f"{ENGINE}.models.probes", f"{ENGINE}.models.backends.encoder"),
    "tokenizers": (f"{ENGINE}.models",),
    # These run in Triton's interpreter alone.
    "triton_python_backend_utils": (f"{ENGINE}.models.backends",),
    "matchwright.engine.models.backends": (),
    "sklearn": (f"{ENGINE}.generation",),
    "prometheus_client": (f"{ENGINE}.metrics",),
    "opentelemetry": (f"{ENGINE}.service.traces",),
    "typer": (f"{ENGINE}.cli",),
    "rich": (f"{ENGINE}.cli",),
    "tritonclient": (f"{ENGINE}.models.triton.link",),
}
FORBIDDEN = {
    # package -> what nothing inside it may import
    KERNELS: ("matchwright.engine", "matchwright.clients", "matchwright.v1", "polars", "sqlite3"),
    CLIENTS: ("matchwright.engine", "matchwright.kernels", "polars", "numpy", "cupy"),
    STUBS: ("matchwright.engine", "matchwright.kernels", "matchwright.clients"),
    f"{ENGINE}.records": (f"{ENGINE}.store", f"{ENGINE}.matcher", f"{ENGINE}.service"),
    f"{ENGINE}.generation": (f"{ENGINE}.store", f"{ENGINE}.matcher", f"{ENGINE}.service"),
    f"{ENGINE}.store": (f"{ENGINE}.matcher", f"{ENGINE}.batcher", f"{ENGINE}.service"),
    f"{ENGINE}.matcher": (f"{ENGINE}.batcher", f"{ENGINE}.service", f"{ENGINE}.cli"),
    f"{ENGINE}.rerank": (
        f"{ENGINE}.store",
        f"{ENGINE}.batcher",
        f"{ENGINE}.service",
        f"{ENGINE}.cli",
        f"{ENGINE}.runs",
    ),
    f"{ENGINE}.service": (f"{ENGINE}.cli",),
}


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for folder in FOLDERS:
        for path in sorted((root / folder / "matchwright").rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _imports(path: Path) -> set[str]:
    """Every module that a source imports, at the top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which layer is meant"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_library_is_imported_by_its_own_layer_only(package, repo_root):
    strangers = [
        name
        for name, path in _modules(repo_root)
        if any(_inside(imported, package) for imported in _imports(path))
        and not any(_inside(name, allowed) for allowed in ALLOWED[package])
    ]
    assert strangers == []


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_a_layer_does_not_look_up(package, repo_root):
    wrong = [
        (name, imported)
        for name, path in _modules(repo_root)
        if _inside(name, package)
        for imported in sorted(_imports(path))
        if any(_inside(imported, forbidden) for forbidden in FORBIDDEN[package])
    ]
    assert wrong == []


def _loaded_after(statement: str) -> set[str]:
    script = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("matchwright.clients", {"polars", "cupy", "numpy", "sklearn"}),
        ("matchwright.kernels", {"polars", "cupy", "grpc", "sklearn"}),
        ("matchwright.kernels.ops", {"polars", "cupy", "grpc", "sklearn"}),
        ("matchwright.engine.cli._app", {"polars", "cupy", "numpy", "grpc", "sklearn"}),
        ("matchwright.engine.matcher", {"cupy", "grpc", "asyncio"}),
    ],
)
def test_an_import_stays_small(module, absent):
    assert _loaded_after(f"import {module}") & absent == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_init_hides_the_other_folders(folder, repo_root):
    stray = [
        path
        for path in (repo_root / folder, repo_root / folder / "matchwright")
        if (path / "__init__.py").exists()
    ]
    assert stray == []


def test_every_module_is_small(repo_root):
    """No module over 500 lines, no function over 70: the house's own limit."""
    long = []
    for name, path in _modules(repo_root):
        if _inside(name, STUBS):
            continue
        text = path.read_text("utf-8")
        if text.count("\n") > 500:
            long.append(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > 70:
                    long.append(f"{name}:{node.name}")
    assert long == []
