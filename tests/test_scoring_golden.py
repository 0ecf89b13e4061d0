"""The definition of a score is frozen: small records in, exact x, q, t and points out.

When one of these tests fails, the definition has changed. Stored vectors and logged decisions would
then mean something else, so raise FORMAT_VERSION, run tests/golden/make.py, and add the new digest.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from matchwright.engine.generation import FORMAT_VERSION, Generation, starter

GOLDEN = Path(__file__).resolve().parent / "golden"

PINNED = {
    1: "5fc7dac8b691475905c7e3b4dd017538e9046fa4c52dfaa87f7607c634119b72",
}
"""Format version -> digest of the golden files. Entries are added, never changed."""

STARTER = {1: "511c05539d050690e62ccd2ca7980e39"}
"""Format version -> id of the starter generation."""


def _make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _make()


def test_golden_files_change_with_the_format_version_only() -> None:
    assert FORMAT_VERSION in PINNED, "pin the digest of this format version's golden files"
    assert make.digest() == PINNED[FORMAT_VERSION], "the golden files were changed under a version"


def test_the_starter_generation_is_frozen() -> None:
    assert starter().id == STARTER[FORMAT_VERSION]


def _differences(expected: Any, got: Any, path: str = "") -> list[str]:
    if isinstance(expected, dict) and isinstance(got, dict) and expected.keys() == got.keys():
        return [
            d for key in expected for d in _differences(expected[key], got[key], f"{path}/{key}")
        ]
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        pairs = enumerate(zip(expected, got, strict=True))
        return [d for n, (e, g) in pairs for d in _differences(e, g, f"{path}/{n}")]
    return [] if expected == got else [f"{path}: {expected!r} became {got!r}"]


@pytest.mark.parametrize("name", ["starter", "svd"])
def test_scores_are_those_of_the_golden_file(name: str) -> None:
    expected = json.loads((GOLDEN / f"scoring_{name}.json").read_text("utf-8"))
    generation: Generation = make.generations()[name]
    assert _differences(expected, make.scored(generation))[:10] == []


def test_contributions_sum_to_points() -> None:
    for name in ("starter", "svd"):
        expected = json.loads((GOLDEN / f"scoring_{name}.json").read_text("utf-8"))
        answers = [value for key, value in expected.items() if " asks, " in key]
        assert len(answers) == 4
        for answer in answers:
            assert [[sum(c) for c in row] for row in answer["contributions"]] == answer["points"]
