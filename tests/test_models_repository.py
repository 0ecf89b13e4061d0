"""The model repository: whole versions or none, damage named, one configuration for them all."""

from __future__ import annotations

import errno
import json
import shutil

import pytest

pytest.importorskip("onnx", reason="needs the extra [triton]")
pytest.importorskip("tokenizers", reason="needs the extra [triton]")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")

from hypothesis import given
from hypothesis import strategies as st
from models_cases import DIMENSIONS, FEATURES, encoder_source, ranker_source, trees_of

from matchwright.engine.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    InvalidData,
    NotFound,
    StoreDamaged,
    StoreFormat,
)
from matchwright.engine.models import artefacts, offline, repository
from matchwright.engine.models.repository import Repository, add_encoder, add_ranker


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two encoders and two rankers."""
    folder = tmp_path_factory.mktemp("sources")
    for seed in (0, 1):
        encoder_source(folder / f"encoder_{seed}", seed=seed)
        ranker_source(folder / f"ranker_{seed}", seed=seed)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory, sources):
    """A repository for the Python backend, with version 1 of both; not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    add_encoder(folder, sources / "encoder_0", backend="python")
    add_ranker(folder, sources / "ranker_0", backend="python")
    return folder


@pytest.fixture
def repo(tmp_path, built):
    """A copy of it."""
    return shutil.copytree(built, tmp_path / "repo")


ADD = {"encoder": add_encoder, "ranker": add_ranker}
NAMES = tuple(ADD)


def _artefact(repo, name, version=None):
    opened = Repository.open(repo)
    return opened.encoder(version) if name == "encoder" else opened.ranker(version)


def _findings(repo):
    return {
        (one.model, one.check): one
        for one in offline.check_repository(Repository.open(repo)).findings
    }


@pytest.mark.parametrize("backend", ["production", "python"])
def test_what_is_built_is_what_is_read(tmp_path, sources, backend):
    for name, add in ADD.items():
        made = add(tmp_path / "r", sources / f"{name}_0", backend=backend)
        assert made == _artefact(tmp_path / "r", name)
        assert made.version == 1
        assert (made.path / "model.py").exists() == (backend == "python")
    opened = Repository.open(tmp_path / "r")
    assert (opened.variant("encoder"), opened.variant("ranker")) == (backend, backend)
    encoder, ranker = opened.encoder(), opened.ranker()
    assert (encoder.dimensions, encoder.max_tokens) == (DIMENSIONS, 256)
    trees = trees_of(ranker.path)
    assert (ranker.features, ranker.grid_bits, ranker.bias) == (
        FEATURES,
        trees.grid_bits,
        trees.bias,
    )
    assert ranker.content_hash == trees.content_hash
    assert offline.check_repository(opened).conforms


def test_the_description_of_an_encoder_is_as_documented(repo):
    told = json.loads((repo / "encoder" / "1" / "encoder.json").read_text())
    assert set(told) == {"format", "content_hash", "dimensions", "max_tokens", "files"}
    assert set(told["files"]) == {"model.onnx", "tokenizer.json", "probes.json", "model.py"}
    assert len(told["content_hash"]) == 32
    assert {len(digest) for digest in told["files"].values()} == {64}


@pytest.mark.parametrize("name", NAMES)
def test_versions_count_up(repo, sources, name):
    assert ADD[name](repo, sources / f"{name}_1", backend="python").version == 2
    assert ADD[name](repo, sources / f"{name}_0", backend="python", version=7).version == 7
    assert ADD[name](repo, sources / f"{name}_1", backend="python").version == 8
    opened = Repository.open(repo)
    assert opened.versions(name) == (1, 2, 7, 8)
    hashes = [_artefact(repo, name, version).content_hash for version in (1, 2, 7, 8)]
    assert hashes[0] == hashes[2] != hashes[1] == hashes[3]
    assert _artefact(repo, name).version == 8


@pytest.mark.parametrize("name", NAMES)
def test_a_version_never_changes(repo, sources, name):
    folder = repo / name / "1"
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    same = ADD[name](repo, sources / f"{name}_0", backend="python", version=1)
    assert same.version == 1
    with pytest.raises(AlreadyExists, match="other content"):
        ADD[name](repo, sources / f"{name}_1", backend="python", version=1)
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    assert after == before


def test_the_content_hash_is_of_what_decides_the_answers(tmp_path, sources):
    short = add_encoder(tmp_path / "a", sources / "encoder_0", backend="production", max_tokens=64)
    long = add_encoder(tmp_path / "b", sources / "encoder_0", backend="python", max_tokens=128)
    again = add_encoder(tmp_path / "c", sources / "encoder_0", backend="python", max_tokens=64)
    assert short.content_hash == again.content_hash != long.content_hash
    shutil.copytree(sources / "ranker_0", tmp_path / "other record")
    path = tmp_path / "other record" / "ranker.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"training": {"note": "another"}, "version": 40}))
    first = add_ranker(tmp_path / "a", sources / "ranker_0", backend="production")
    second = add_ranker(tmp_path / "a", tmp_path / "other record", backend="production")
    assert first.content_hash == second.content_hash
    assert json.loads((second.path / "ranker.json").read_text())["version"] == second.version == 2


# ── one configuration for all versions ────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NAMES)
def test_a_repository_is_for_one_backend(repo, sources, name):
    with pytest.raises(
        FailedPrecondition, match="for the python backend, asked for was production"
    ):
        ADD[name](repo, sources / f"{name}_1", backend="production")
    assert Repository.open(repo).versions(name) == (1,)


def test_versions_have_one_width(repo, tmp_path):
    wide = encoder_source(tmp_path / "wide", dimensions=64)
    with pytest.raises(FailedPrecondition, match=r"embedding TYPE_FP32 \[32\], expected .*\[64\]"):
        add_encoder(repo, wide, backend="python")
    more = ranker_source(tmp_path / "more", features=(*FEATURES, "one_more"))
    with pytest.raises(FailedPrecondition, match=r"input__0 TYPE_FP32 \[6\], expected .*\[7\]"):
        add_ranker(repo, more, backend="python")


@pytest.mark.parametrize("name", NAMES)
def test_a_tuned_configuration_stays(repo, sources, name):
    path = repo / name / "config.pbtxt"
    tuned = path.read_text().replace("count: 1", "count: 3") + "# ours\n"
    path.write_text(tuned)
    ADD[name](repo, sources / f"{name}_1", backend="python")
    assert path.read_text() == tuned
    assert _findings(repo)[f"{name}:2", "config"].outcome == "ok"


def test_a_configuration_that_breaks_the_contract_is_found(repo, sources):
    path = repo / "ranker" / "config.pbtxt"
    path.write_text(path.read_text().replace("TYPE_FP32", "TYPE_FP64"))
    finding = _findings(repo)["ranker:1", "config"]
    assert finding.outcome == "failed"
    assert "TYPE_FP64" in finding.told
    with pytest.raises(FailedPrecondition, match="TYPE_FP64"):
        add_ranker(repo, sources / "ranker_1", backend="python")
    path.write_text("name: {")
    with pytest.raises(InvalidData, match="line 1"):
        add_ranker(repo, sources / "ranker_1", backend="python")
    path.unlink()
    assert "config.pbtxt is missing" in _findings(repo)["ranker:1", "config"].told


# ── damage ────────────────────────────────────────────────────────────────────────────────────

FILES = [("encoder", name) for name in ("model.onnx", "tokenizer.json", "probes.json", "model.py",
                                        "encoder.json")] + [
    ("ranker", name) for name in ("model.txt", "model.py", "ranker.json")
]  # fmt: skip


def _flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "a bit": _flip,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize(("name", "file"), FILES)
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_named(repo, name, file, how):
    path = repo / name / "1" / file
    DAMAGE[how](path)
    with pytest.raises(StoreDamaged) as caught:
        _artefact(repo, name)
    assert file in str(caught.value) or how == "a bit"
    assert str(repo / name / "1") in str(caught.value)
    finding = _findings(repo)[f"{name}:1", "files"]
    assert (finding.outcome, "STORE_DAMAGED" in finding.told) == ("failed", True)
    other = {"encoder": "ranker", "ranker": "encoder"}[name]
    assert _artefact(repo, other).version == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_bottomless_description_is_named(repo, name):
    path = repo / name / "1" / f"{name}.json"
    path.write_text('{"format":' + "[" * 100_000)
    with pytest.raises(StoreDamaged, match=f"{name}.json"):
        _artefact(repo, name)


@pytest.mark.parametrize("name", NAMES)
def test_another_format_is_refused(repo, name):
    path = repo / name / "1" / f"{name}.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"format": 2}))
    with pytest.raises(StoreFormat, match="format 2"):
        _artefact(repo, name)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("encoder", "max_tokens", 128),
        ("encoder", "max_tokens", True),
        ("encoder", "max_tokens", "256"),
        ("encoder", "dimensions", None),
        ("encoder", "content_hash", "0" * 32),
        ("encoder", "files", {}),
        ("encoder", "files", {"model.onnx": 1}),
        ("ranker", "features", ["a"]),
        ("ranker", "grid_bits", 3),
        ("ranker", "features_version", 9),
        ("ranker", "files", []),
    ],
)
def test_an_edited_description_is_found(repo, name, field, value):
    path = repo / name / "1" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(StoreDamaged, match=f"{name}.json"):
        _artefact(repo, name)


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_tokens", -1), ("max_tokens", 7), ("max_tokens", 2**70), ("dimensions", 10**12)],
)
def test_a_description_that_was_made_to_fit_has_bounds(repo, field, value):
    path = repo / "encoder" / "1" / "encoder.json"
    told = json.loads(path.read_text()) | {field: value}
    told["content_hash"] = artefacts.hash_of("encoder", told)
    path.write_text(json.dumps(told))
    with pytest.raises(StoreDamaged, match=f"{field!r} is {value}; expected"):
        _artefact(repo, "encoder")


def test_dimensions_that_are_not_the_models_are_found(repo):
    path = repo / "encoder" / "1" / "encoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dimensions": 31}))
    assert "31 dimensions, the model has 32" in _findings(repo)["encoder:1", "files"].told


def test_a_backend_of_another_release_is_told(repo, monkeypatch):
    monkeypatch.setattr(offline, "backend_source", lambda name: b"# newer\n")
    finding = _findings(repo)["ranker:1", "config"]
    assert finding.outcome == "failed"
    assert "model.py is not what this matchwright brings" in finding.told


def test_files_are_compared_once(repo, monkeypatch):
    read, digest = [], artefacts.file_digest

    def counted(path):
        read.append(path.name)
        return digest(path)

    monkeypatch.setattr(artefacts, "file_digest", counted)
    opened = Repository.open(repo)
    opened.encoder()
    once = list(read)
    assert "model.onnx" in once
    opened.encoder()
    assert read == once


# ── what is not there ─────────────────────────────────────────────────────────────────────────


def test_what_is_not_there_says_what_is(repo, tmp_path):
    with pytest.raises(NotFound, match="version 9; it has 1"):
        Repository.open(repo).encoder(9)
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(NotFound, match="no model repository"):
            Repository.open(folder)
    (tmp_path / "ranker").mkdir()
    with pytest.raises(NotFound, match="it has none; make one with"):
        Repository.open(tmp_path).ranker()
    assert not offline.check_repository(Repository.open(tmp_path)).conforms


@given(st.lists(st.text(st.sampled_from("0123456789.-a²٣"), min_size=1, max_size=4), max_size=8))
def test_versions_are_whole_numbers_above_zero(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("versions")
    for name in names:
        if name not in (".", ".."):
            (folder / name).mkdir(exist_ok=True)
    (folder / "77").write_text("a file is no version")
    wanted = {int(one) for one in names if one.isascii() and one.isdecimal() and one[0] != "0"}
    got = repository.versions_in(folder)
    assert got == tuple(sorted(wanted - {77} if "77" not in names else wanted))


# ── building is all or nothing ────────────────────────────────────────────────────────────────


def _visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_a_full_disk_leaves_nothing_behind(repo, sources, monkeypatch, name, failing):
    real, calls = repository._write, []

    def write(path, content):
        calls.append(path)
        if len(calls) > failing:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(repository, "_write", write)
    files = {"encoder": 5, "ranker": 3}[name]
    if failing < files:
        with pytest.raises(OSError, match="No space left"):
            ADD[name](repo, sources / f"{name}_1", backend="python")
        assert sorted(path.name for path in (repo / name).iterdir()) == ["1", "config.pbtxt"]
    else:
        assert ADD[name](repo, sources / f"{name}_1", backend="python").version == 2
    monkeypatch.undo()
    assert _artefact(repo, name, 1).version == 1


def test_what_a_killed_build_left_is_no_version(repo, sources):
    (repo / "ranker" / ".2.4711.part").mkdir()
    (repo / "ranker" / ".2.4711.part" / "model.txt").write_text("half")
    assert Repository.open(repo).versions("ranker") == (1,)
    assert add_ranker(repo, sources / "ranker_1", backend="python").version == 2
    assert _visible(repo / "ranker") == ["1", "2", "config.pbtxt"]


def test_two_builders_of_one_version(repo, sources, monkeypatch):
    """Whoever comes second is told; the first one's version stays."""
    real = repository.sync

    def meanwhile(folder):
        if folder.name.endswith(".part"):
            monkeypatch.setattr(repository, "sync", real)
            add_ranker(repo, sources / "ranker_1", backend="python", version=2)
        real(folder)

    monkeypatch.setattr(repository, "sync", meanwhile)
    ids = iter(range(1, 99))
    monkeypatch.setattr(repository.os, "getpid", lambda: next(ids))
    with pytest.raises(AlreadyExists, match="at the same time"):
        add_ranker(repo, sources / "ranker_0", backend="python", version=2)
    assert _artefact(repo, "ranker", 2).content_hash == trees_of(sources / "ranker_1").content_hash
    assert sorted(path.name for path in (repo / "ranker").iterdir()) == ["1", "2", "config.pbtxt"]


def test_a_source_that_changes_while_it_is_read(repo, sources, tmp_path, monkeypatch):
    shutil.copytree(sources / "ranker_1", tmp_path / "moving")
    real = repository._write

    def write(path, content):
        if path.name == "model.txt":
            content = content.read_bytes() + b"\n"
        real(path, content)

    monkeypatch.setattr(repository, "_write", write)
    with pytest.raises(InvalidData, match="changed while it was read"):
        add_ranker(repo, tmp_path / "moving", backend="python")
    assert Repository.open(repo).versions("ranker") == (1,)


@pytest.mark.parametrize("version", [0, -1, 2**31])
def test_versions_have_bounds(repo, sources, version):
    with pytest.raises(InvalidArgument, match="a version is 1 to"):
        add_ranker(repo, sources / "ranker_1", backend="python", version=version)


@pytest.mark.parametrize("max_tokens", [7, 8_193])
def test_tokens_have_bounds(tmp_path, sources, max_tokens):
    with pytest.raises(InvalidArgument, match="8 to 8,192 tokens"):
        add_encoder(tmp_path, sources / "encoder_0", backend="python", max_tokens=max_tokens)


def test_a_ranker_that_was_not_exported_is_refused(tmp_path, sources):
    shutil.copytree(sources / "ranker_0", tmp_path / "r")
    text = (tmp_path / "r" / "model.txt").read_text()
    (tmp_path / "r" / "model.txt").write_text(text.replace(".5 ", ".25 "))
    with pytest.raises((StoreDamaged, InvalidData)):
        add_ranker(tmp_path / "repo", tmp_path / "r", backend="python")
    assert not (tmp_path / "repo").exists()
