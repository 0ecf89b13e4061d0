"""The proof harness: what counts as shown."""

from __future__ import annotations

import importlib.util
import json
import sys
import xml.etree.ElementTree as ET

import pytest


@pytest.fixture(scope="module")
def prove(repo_root):
    spec = importlib.util.spec_from_file_location("prove_harness", repo_root / "bench" / "prove.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prove_harness"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["prove_harness"]


def _case(inner: str = "", name: str = "test_a", module: str = "tests.test_x") -> ET.Element:
    return ET.fromstring(f'<testcase classname="{module}" name="{name}">{inner}</testcase>')


def _skip(why: str) -> str:
    return f'<skipped type="pytest.skip" message="{why}"/>'


def _judge(prove, code, *cases, tests=("test_x.py",)):
    claim = prove.Claim("x", "X.", tests=tests, may_skip=("no CUDA device",))
    return prove.judge_tests(claim, prove.Run(code, cases))


def test_all_passed_holds(prove):
    outcome = _judge(prove, 0, _case(), _case(name="test_b"))
    assert outcome["held"]
    assert outcome["figures"] == {"passed": 2, "failed": 0, "skipped": 0}


@pytest.mark.parametrize(
    "cases",
    [
        (),
        (_case(), _case("<failure/>")),
        (_case(), _case("<error/>")),
        (_case("<error/>", module="", name="tests.test_x"),),
        (_case(), _case(_skip("needs real files"))),
        (_case(_skip("no CUDA device")),),
        (_case(module="tests.test_y"),),
    ],
)
def test_anything_else_does_not(prove, cases):
    assert not _judge(prove, 0, *cases)["held"]


def test_a_claim_is_judged_by_its_own_files(prove):
    bad = _case("<failure/>", module="tests.test_y")
    assert _judge(prove, 1, _case(), bad)["held"]
    assert not _judge(prove, 1, _case(), bad, tests=(".",))["held"]
    assert not _judge(prove, 1, _case(), tests=(".",))["held"]
    assert not _judge(prove, 0, _case(), tests=("test_x.py", "test_z.py"))["held"]


def test_a_skip_that_nothing_requires_is_listed_and_forgiven(prove):
    outcome = _judge(prove, 0, _case(), _case(_skip("no CUDA device here"), "test_gpu"))
    assert outcome["held"]
    assert outcome["skipped"] == {"tests.test_x::test_gpu": "no CUDA device here"}


@pytest.mark.parametrize(
    ("code", "stdout", "held"),
    [
        (0, '{"passed": true, "x": 1}', True),
        (0, '{"x": 1}', True),
        (0, '{"passed": false}', False),
        (3, '{"passed": true}', False),
        (0, "Traceback", False),
        (0, "", False),
    ],
)
def test_a_bench_holds_when_it_says_so(prove, code, stdout, held):
    assert prove.judge_bench(code, stdout)["held"] is held


def test_a_record_says_where_and_when(prove, tmp_path, monkeypatch):
    monkeypatch.setattr(prove, "PROOFS", tmp_path)
    bench = ("-c", "import os, json; print(json.dumps({'full': os.environ['MATCHWRIGHT_PROVE']}))")
    claim = prove.Claim("sample", "A sample.", bench=bench)
    assert prove.write(claim, prove.run_bench(claim), 1.0)
    record = json.loads((tmp_path / "sample.json").read_text())
    assert record["figures"] == {"full": "1"}
    assert {"commit", "machine", "python", "versions", "date", "command", "seconds"} <= set(record)
    assert not list(tmp_path.glob("*.part"))


def test_every_record_here_is_of_a_known_claim(prove, repo_root):
    """A record that nothing writes any more would be cited as if it were fresh."""
    known = {claim.id for claim in prove.CLAIMS} | {"gpu_check"}
    stray = []
    for path in (repo_root / "proofs").glob("*.json"):
        record = json.loads(path.read_text("utf-8"))
        if record.get("id", path.stem) != path.stem or path.stem not in known:
            stray.append(path.name)
    assert stray == []


def test_every_test_file_of_a_claim_is_there(prove, repo_root):
    named = {name for claim in prove.CLAIMS for name in claim.tests} - {"."}
    assert {name for name in named if not (repo_root / "tests" / name).exists()} == set()
    benches = {claim.bench[0] for claim in prove.CLAIMS if claim.bench}
    scripts = {name for name in benches if name.endswith(".py")}
    assert {name for name in scripts if not (repo_root / name).exists()} == set()


def test_records_make_a_table(prove, tmp_path):
    record = {"claim": "It works.", "held": False, "commit": "c" * 40, "date": "2026-01-01"}
    (tmp_path / "x.json").write_text(json.dumps(record))
    table = prove.table(tmp_path)
    assert "[`x`](../proofs/x.json)" in table
    assert "**no**" in table


def test_unknown_claims_are_refused(prove, capsys):
    assert prove.main(["--only", "speeed"]) == 2
    assert "speeed" in capsys.readouterr().err
    assert prove.main(["--list"]) == 0
