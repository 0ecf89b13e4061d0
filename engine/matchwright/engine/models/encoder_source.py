"""What an encoder's folder must hold, found out by reading ``model.onnx`` and ``tokenizer.json``.

Nothing is run. Shapes that the file leaves open are worked out by ONNX's own shape inference, for a
batch of given size.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from matchwright.engine.errors import InvalidData, NotFound
from matchwright.engine.models.artefacts import BOUNDS
from matchwright.engine.models.description import ATTENTION_MASK, EMBEDDING, INPUT_IDS

if TYPE_CHECKING:
    import onnx

MODEL, TOKENIZER = "model.onnx", "tokenizer.json"
DIMENSIONS_MAX = BOUNDS["dimensions"][1]
EXPECTED = (
    f"inputs {INPUT_IDS} and {ATTENTION_MASK} (int64 [batch, tokens]) and one output {EMBEDDING} "
    "(float32 [batch, dimensions], pooled and at length 1)"
)
_BATCH, _TOKENS = 3, 7
"""Sizes that shapes are worked out for; different, and unlikely as dimensions."""


def dimensions_of(folder: Path) -> int:
    """The encoder in a folder, checked; how many dimensions its embeddings have.

    Raises:
        NotFound: a file is missing.
        InvalidData: a file cannot be used; the message says what was got and what is expected.
    """
    for name in (MODEL, TOKENIZER):
        if not (folder / name).is_file():
            raise NotFound(
                f"{folder / name} is not there; an encoder is a folder with {MODEL} and "
                f"{TOKENIZER}",
                file=folder / name,
            )
    _check_tokenizer(folder / TOKENIZER)
    return _inspect(folder / MODEL)


def _check_tokenizer(path: Path) -> None:
    import tokenizers

    try:
        tokenizers.Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # plain Exception, or what the library's Rust panics with
        raise InvalidData(
            f"{path}: the tokenizers library cannot read it: {error}", file=path
        ) from None


def _inspect(path: Path) -> int:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, or what onnx makes of it
        raise InvalidData(f"{path}: not an ONNX model: {error}", file=path) from None
    if not model.graph.node:
        raise InvalidData(f"{path}: not an ONNX model: it has no nodes", file=path)
    _check_one_file(path, model)
    _check_inputs(path, model)
    _check_output(path, model)
    return _dimensions(path, model)


def _check_one_file(path: Path, model: onnx.ModelProto) -> None:
    from onnx import TensorProto

    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise InvalidData(
                f"{path}: weight {tensor.name!r} lies in another file; save the model with its "
                "weights inside (onnx.save without external data)",
                file=path,
            )


def _check_inputs(path: Path, model: onnx.ModelProto) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    got = [_told(one) for one in model.graph.input if one.name not in weights]
    wanted = {(INPUT_IDS, "int64", 2), (ATTENTION_MASK, "int64", 2)}
    if set(got) == wanted:
        return
    more = ""
    if any(name == "token_type_ids" for name, _, _ in got):
        more = "; export it without token_type_ids, which single texts leave at 0"
    raise InvalidData(f"{path}: its inputs are {_list(got)}; expected {EXPECTED}{more}", file=path)


def _check_output(path: Path, model: onnx.ModelProto) -> None:
    got = [_told(one) for one in model.graph.output]
    if len(got) == 1 and got[0][:2] == (EMBEDDING, "float32") and got[0][2] in (0, 2):
        return
    more = ""
    if any("hidden_state" in name or rank == 3 for name, _, rank in got):
        more = "; export it with its pooling and normalisation, so that a text has one vector"
    raise InvalidData(f"{path}: its outputs are {_list(got)}; expected {EXPECTED}{more}", file=path)


def _told(value: onnx.ValueInfoProto) -> tuple[str, str, int]:
    """(name, dtype, rank) of an input or output; rank 0 when the file does not say it."""
    from onnx import TensorProto, helper

    tensor = value.type.tensor_type
    known = tensor.elem_type != TensorProto.UNDEFINED
    dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if known else "unknown"
    return value.name, dtype, len(tensor.shape.dim)


def _list(values: Iterable[tuple[str, str, int]]) -> str:
    return ", ".join(f"{name} ({dtype}, rank {rank})" for name, dtype, rank in values) or "none"


def _dimensions(path: Path, model: onnx.ModelProto) -> int:
    """The last dimension of the output, as the file says it or as shape inference finds it."""
    said = model.graph.output[0].type.tensor_type.shape.dim
    if len(said) == 2 and said[1].dim_value > 0:
        found = said[1].dim_value
    else:
        found = _inferred(model)
    if not 1 <= found <= DIMENSIONS_MAX:
        raise InvalidData(
            f"{path}: how many dimensions {EMBEDDING} has cannot be told from the file "
            f"(1 to {DIMENSIONS_MAX:,} are possible); state them in the output's shape",
            file=path,
        )
    return int(found)


def _inferred(model: onnx.ModelProto) -> int:
    """The output's width for a batch of known size; 0 when it cannot be worked out."""
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, (_BATCH, _TOKENS), strict=False):
            dim.ClearField("dim_param")
            dim.dim_value = size
    fixed.graph.output[0].type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except Exception:  # it raises what C++ raised; a model that it cannot follow is not wrong
        return 0
    dims = [dim.dim_value for dim in inferred.graph.output[0].type.tensor_type.shape.dim]
    return dims[1] if len(dims) == 2 and dims[0] == _BATCH else 0
