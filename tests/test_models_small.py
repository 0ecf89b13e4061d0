"""The small encoder: the same bytes every time, and texts with words in common near each other."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")

from hypothesis import given
from hypothesis import strategies as st

from matchwright.engine.errors import AlreadyExists, InvalidArgument
from matchwright.engine.models import probes
from matchwright.engine.models.small import make_small_encoder


@pytest.fixture(scope="module")
def encode(tmp_path_factory):
    """texts -> float32 (N, D), each text alone."""
    folder = tmp_path_factory.mktemp("small")
    make_small_encoder(folder)
    run = probes.session(folder, threads=1)

    def of(*texts):
        return probes.one_by_one(run, probes.tokens(folder, texts, 256))

    of.run, of.folder = run, folder
    return of


def test_the_bytes_are_these(tmp_path):
    """Pinned: stores hold what this encoder said, and name it by these bytes."""
    make_small_encoder(tmp_path, dimensions=128, seed=0)
    told = {
        path.name: hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
        for path in tmp_path.iterdir()
    }
    assert told == {"model.onnx": "654877b960c9ac63", "tokenizer.json": "7a2f471310a36dae"}


@pytest.mark.parametrize(("dimensions", "seed"), [(8, 0), (33, 7), (128, 2**63 - 1)])
def test_twice_is_the_same(tmp_path, dimensions, seed):
    for name in ("a", "b"):
        make_small_encoder(tmp_path / name, dimensions=dimensions, seed=seed)
    make_small_encoder(tmp_path / "a", dimensions=dimensions, seed=seed)  # again, in place
    for file in ("model.onnx", "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_another_seed_is_another_encoder_with_the_same_tokenizer(tmp_path):
    for seed in (0, 1):
        make_small_encoder(tmp_path / str(seed), dimensions=16, seed=seed)
    models = {(tmp_path / str(seed) / "model.onnx").read_bytes() for seed in (0, 1)}
    tokenizers = {(tmp_path / str(seed) / "tokenizer.json").read_bytes() for seed in (0, 1)}
    assert (len(models), len(tokenizers)) == (2, 1)
    with pytest.raises(AlreadyExists, match=r"model\.onnx"):
        make_small_encoder(tmp_path / "0", dimensions=16, seed=1)


@pytest.mark.parametrize(("dimensions", "seed"), [(7, 0), (4_097, 0), (16, -1), (16, 2**63)])
def test_what_cannot_be_made(tmp_path, dimensions, seed):
    with pytest.raises(InvalidArgument, match="8 to 4096 dimensions"):
        make_small_encoder(tmp_path, dimensions=dimensions, seed=seed)
    assert list(tmp_path.iterdir()) == []


def test_it_is_a_model_that_onnx_accepts(encode):
    import onnx

    onnx.checker.check_model(str(encode.folder / "model.onnx"), full_check=True)


def test_words_in_common_are_near(encode):
    near = [
        ("python developer for data pipelines", "Senior Python developer: data, pipelines"),
        ("logo design in illustrator", "design of a logo, Illustrator"),
        ("développeur web à Montréal", "Developpeur WEB a Montreal"),
        ("c++ engineer", "engineer for C++"),
    ]
    for one, other in near:
        first, second, far = encode(one, other, "bookkeeping and payroll, quarterly tax filing")
        assert first @ second > 0.6 > 0.35 > abs(first @ far)


def test_inflected_words_are_nearer_than_others(encode):
    develop, developing, gardening = encode("developer", "developing", "gardening")
    assert develop @ developing > 0.4 > abs(develop @ gardening)


@pytest.mark.parametrize("text", ["", " ", "\x00\u200b", "привет", "!!!", "a", "x" * 10_000])
def test_any_text_has_length_one(encode, text):
    assert np.linalg.norm(encode(text).astype(np.float64)) == pytest.approx(1.0, abs=1e-6)


@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=6), more=st.integers(0, 40))
def test_batch_and_padding_change_nothing(encode, texts, more):
    ids = probes.tokens(encode.folder, texts, 256)
    width = max(map(len, ids)) + more
    padded = np.stack([np.pad(one, (0, width - len(one))) for one in ids])
    mask = np.stack([np.arange(width) < len(one) for one in ids]).astype(np.int64)
    np.testing.assert_allclose(encode.run(padded, mask), encode(*texts), atol=2e-7, rtol=0)


def test_tokens_are_within_the_table(encode):
    import tokenizers

    size = tokenizers.Tokenizer.from_file(str(encode.folder / "tokenizer.json")).get_vocab_size()
    texts = ["Zażółć gęślą jaźń", "node.js & C#", "ﬁn ² ½", "\U0001f600 emoji", "a\tb\nc"]
    for ids in probes.tokens(encode.folder, texts, 256):
        assert 0 <= ids.min() <= ids.max() < size
