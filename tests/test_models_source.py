"""An encoder is taken from any folder; what it lacks is said."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx", reason="needs the extra [triton]")
pytest.importorskip("tokenizers", reason="needs the extra [triton]")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")

import time

import numpy as np
import onnx
from encoder_cases import FakeTriton
from models_cases import (
    DIMENSIONS,
    changed_model,
    changed_tokenizer,
    encoder_source,
    no_tokens,
    no_unknown,
    panics,
)
from onnx import TensorProto, helper

from matchwright.engine.errors import InvalidData, ModelWrong, NotFound
from matchwright.engine.models import encoder_source as source
from matchwright.engine.models import probes
from matchwright.engine.models.embedding import EncoderModel
from matchwright.engine.models.repository import add_encoder


@pytest.fixture
def folder(tmp_path):
    return encoder_source(tmp_path / "encoder")


def _undeclared(model):
    model.graph.output[0].type.tensor_type.ClearField("shape")


def _named(model):
    dims = model.graph.output[0].type.tensor_type.shape.dim
    dims[1].ClearField("dim_value")
    dims[1].dim_param = "width"


@pytest.mark.parametrize("change", [lambda model: None, _undeclared, _named])
def test_dimensions_are_found_without_running(folder, change, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_: pytest.fail("run"))
    assert source.dimensions_of(changed_model(folder, change)) == DIMENSIONS


def test_a_real_encoder(shared_models, tmp_path):
    folder = shared_models / "all-MiniLM-L6-v2"
    assert source.dimensions_of(folder) == 384
    made = add_encoder(tmp_path / "repo", folder, backend="production", max_tokens=64)
    assert made.dimensions == 384
    recorded = probes.read(made.path / "probes.json")
    assert recorded.embeddings.shape == (len(recorded.ids), 384)
    assert max(map(len, recorded.ids)) == 64
    lengths = np.linalg.norm(recorded.embeddings.astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-5)


def _token_types(model):
    model.graph.input.append(
        helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, ["batch", "tokens"])
    )


def _hidden_state(model):
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["b", "t", 32])
    )


def _rank_three(model):
    _hidden_state(model)
    model.graph.output[0].name = "embedding"


def _int32(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32


def _half(model):
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def _other_names(model):
    model.graph.input[0].name = "ids"


def _two_outputs(model):
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["b", 32]))


def _no_inputs(model):
    del model.graph.input[:]


def _outside(model):
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def _unknowable(model):
    _undeclared(model)
    model.graph.node[-1].domain = "somebody.else"
    model.opset_import.append(helper.make_opsetid("somebody.else", 1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_token_types, "export it without token_type_ids"),
        (_hidden_state, "with its pooling and normalisation"),
        (_rank_three, "with its pooling and normalisation"),
        (_int32, r"input_ids \(int32, rank 2\)"),
        (_half, r"embedding \(float16, rank 2\)"),
        (_other_names, r"its inputs are ids"),
        (_two_outputs, r"sum \(float32, rank 2\)"),
        (_no_inputs, "its inputs are none"),
        (_outside, "'table' lies in another file"),
        (_unknowable, "state them in the output's shape"),
    ],
)
def test_what_an_encoder_must_be_is_said(folder, change, told):
    with pytest.raises(InvalidData, match=told) as caught:
        source.dimensions_of(changed_model(folder, change))
    assert str(folder / "model.onnx") in str(caught.value)
    if change not in (_outside, _unknowable):
        assert source.EXPECTED in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"\x00" * 100, b"not a model", b"\x08\x08"])
def test_a_model_that_is_none(folder, raw):
    (folder / "model.onnx").write_bytes(raw)
    with pytest.raises(InvalidData, match="not an ONNX model"):
        source.dimensions_of(folder)


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"model": 1}', b"\xff\xfe"])
def test_a_tokenizer_that_is_none(folder, raw):
    (folder / "tokenizer.json").write_bytes(raw)
    with pytest.raises(InvalidData, match="tokenizers library cannot read it"):
        source.dimensions_of(folder)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_file_that_is_not_there(folder, name):
    (folder / name).unlink()
    with pytest.raises(NotFound, match=name):
        source.dimensions_of(folder)


def test_embeddings_that_are_not_normalised_are_refused(folder, tmp_path):
    def no_division(model):
        model.graph.node[-1].CopyFrom(helper.make_node("Identity", ["sum"], ["embedding"]))

    changed_model(folder, no_division)
    with pytest.raises(InvalidData, match="export it with its normalisation"):
        add_encoder(tmp_path / "repo", folder, backend="python")
    assert not (tmp_path / "repo").exists()


def test_a_model_that_cannot_take_the_tokens(folder, tmp_path):
    def at_most_sixteen(model):
        table = np.zeros((17, 1), dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(table, "positions"))
        axis = np.array([1], dtype=np.int64)
        model.graph.initializer.append(onnx.numpy_helper.from_array(axis, "one"))
        nodes = [
            helper.make_node("CumSum", ["input_ids_of_ones", "one_axis"], ["at"]),
            helper.make_node("Gather", ["positions", "at"], ["positioned"]),
            helper.make_node("Add", ["vectors", "positioned"], ["moved"]),
        ]
        nodes = [helper.make_node("Identity", ["attention_mask"], ["input_ids_of_ones"]), *nodes]
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.array(1, dtype=np.int64), "one_axis")
        )
        model.graph.node[4].input[0] = "moved"
        rest = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*rest[:4], *nodes, *rest[4:]])

    changed_model(folder, at_most_sixteen)
    with pytest.raises(InvalidData, match="give a smaller --max-tokens"):
        add_encoder(tmp_path / "repo", folder, backend="python", max_tokens=64)
    made = add_encoder(tmp_path / "repo", folder, backend="python", max_tokens=16)
    assert made.max_tokens == 16


def _answering(rows):
    """Changes a model into one that answers the same rows, whatever it is asked."""

    def change(model):
        constant = onnx.numpy_helper.from_array(rows, "rows")
        model.graph.initializer.append(constant)
        model.graph.node[-1].CopyFrom(helper.make_node("Identity", ["rows"], ["embedding"]))

    return change


def _unit_rows(rows, width):
    return np.full((rows, width), width**-0.5, dtype=np.float32)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (_unit_rows(1, DIMENSIONS), "for 2 texts"),
        (_unit_rows(2, DIMENSIONS), "texts; expected"),
        (_unit_rows(1, DIMENSIONS - 1), f"{DIMENSIONS}"),
    ],
)
def test_a_model_that_answers_another_shape_than_it_says(folder, tmp_path, rows, told):
    changed_model(folder, _answering(rows))
    with pytest.raises(InvalidData, match=told):
        add_encoder(tmp_path / "repo", folder, backend="python")
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [(no_tokens, "makes no token"), (panics, "fails at"), (no_unknown, "fails at")],
)
def test_a_tokenizer_that_makes_nothing_of_texts(folder, tmp_path, change, told):
    changed_tokenizer(folder, change)
    with pytest.raises(InvalidData, match=f"tokenizer.json: {told}"):
        add_encoder(tmp_path / "repo", folder, backend="python")
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("change", [panics, no_unknown])
def test_a_text_that_the_tokenizer_fails_at_is_a_wrong_answer(folder, tmp_path, change):
    artefact = add_encoder(tmp_path / "repo", folder, backend="python")
    changed_tokenizer(artefact.path, change)
    client = FakeTriton(DIMENSIONS)
    model = EncoderModel(artefact, lambda: client)
    with pytest.raises(ModelWrong, match="encoder:1: its tokenizer failed"):
        model.embed(["移动 " + "a word and another one " * 4 + "!"], time.monotonic() + 60)
    assert client.calls == []


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"embeddings": "??"}', b"[" * 100_000])
def test_probes_that_are_none(tmp_path, raw):
    (tmp_path / "probes.json").write_bytes(raw)
    with pytest.raises(InvalidData, match="no probes"):
        probes.read(tmp_path / "probes.json")


def test_texts_without_tokens_are_left_out(folder):
    ids = probes.tokens(folder, ["", "python", "x" * 500], 8)
    assert [len(one) for one in ids] == [1, 3, 2]
