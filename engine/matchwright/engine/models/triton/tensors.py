"""Tensors on their way to a model and back: what may be sent, and what an answer has to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.engine.errors import InvalidArgument, ModelWrong

Array = NDArray[Any]

DATATYPES: Mapping[np.dtype[Any], str] = {
    np.dtype(np.bool_): "BOOL",
    np.dtype(np.int8): "INT8",
    np.dtype(np.int16): "INT16",
    np.dtype(np.int32): "INT32",
    np.dtype(np.int64): "INT64",
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.uint16): "UINT16",
    np.dtype(np.uint32): "UINT32",
    np.dtype(np.uint64): "UINT64",
    np.dtype(np.float16): "FP16",
    np.dtype(np.float32): "FP32",
    np.dtype(np.float64): "FP64",
}
DTYPES: Mapping[str, np.dtype[Any]] = {name: dtype for dtype, name in DATATYPES.items()}

HEADROOM_BYTES = 64 << 10
"""What a message may hold beside its tensors: names, shapes, parameters."""


@dataclass(frozen=True, slots=True)
class Declared:
    """An output as the server declares it: Triton's name of its type, -1 for a free dimension."""

    datatype: str
    shape: tuple[int, ...]

    def nbytes(self, rows: int) -> int | None:
        """Bytes of ``rows`` rows; None where more than the first dimension is free."""
        dtype = DTYPES.get(self.datatype)
        if dtype is None or not self.shape or any(size < 0 for size in self.shape[1:]):
            return None
        return dtype.itemsize * rows * math.prod(self.shape[1:])


def ready_to_send(
    model: str, inputs: Mapping[str, Array], outputs: Sequence[str], bytes_max: int
) -> tuple[dict[str, Array], int]:
    """Contiguous inputs, and their number of rows.

    Args:
        model: for the messages.
        inputs: name -> (N, ...) array of a type in ``DATATYPES``; the same N >= 1 for all.
        outputs: names; at least one.
        bytes_max: of one message.

    Raises:
        InvalidArgument: that is not so, or the inputs are larger than a message may be.
    """
    if not inputs or not outputs:
        raise InvalidArgument(f"{model}: name at least one input and one output", field="inputs")
    arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    for name, array in arrays.items():
        if array.dtype not in DATATYPES:
            raise InvalidArgument(
                f"{model}: input {name} is of {array.dtype}; expected one of "
                f"{', '.join(sorted(DTYPES))}",
                field=name,
            )
    rows = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    if len(rows) != 1 or not min(rows):
        told = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise InvalidArgument(
            f"{model}: inputs are {told}; expected one number of rows for all, 1 or more",
            field="inputs",
        )
    nbytes = sum(array.nbytes for array in arrays.values())
    if nbytes > bytes_max - HEADROOM_BYTES:
        raise InvalidArgument(
            f"{model}: inputs of {rows.pop():,} rows are {nbytes:,} bytes and one message holds "
            f"{bytes_max - HEADROOM_BYTES:,}; send fewer rows in one call",
            field="inputs",
            limit="message_bytes_max",
        )
    return arrays, rows.pop()


def checked(name: str, array: Array, declared: Declared, rows: int, model: str) -> Array:
    """An output that can be used, read-only.

    Raises:
        ModelWrong: another type or shape than declared, another number of rows than was asked, or
            values that are not finite.
    """
    if DATATYPES.get(array.dtype) != declared.datatype:
        raise wrong(model, f"{name} is of {array.dtype}; expected {declared.datatype}")
    fits = len(array.shape) == len(declared.shape) and all(
        want < 0 or got == want for got, want in zip(array.shape, declared.shape, strict=True)
    )
    if not fits or not array.ndim or array.shape[0] != rows:
        want = (rows, *declared.shape[1:])
        raise wrong(model, f"{name} is {array.shape}; expected {want}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(np.count_nonzero(~np.isfinite(array)))
        raise wrong(model, f"{name} holds {bad:,} values that are NaN or infinite")
    array.setflags(write=False)
    return array


def from_bytes(
    name: str, data: bytes | memoryview, datatype: str, shape: Sequence[int], model: str
) -> Array:
    """Bytes of a message as an array; a view of them.

    Raises:
        ModelWrong: a type that is not known, bytes that do not fill the shape, or no shape.
    """
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise wrong(model, f"{name} is of {datatype}; expected numbers")
    want = dtype.itemsize * math.prod(shape)
    if len(data) != want or any(size < 0 for size in shape):
        raise wrong(model, f"{name} has {len(data):,} bytes; {datatype}{list(shape)} has {want:,}")
    try:
        return np.frombuffer(data, dtype).reshape(tuple(shape))
    except ValueError as error:  # more dimensions than NumPy takes
        raise wrong(model, f"{name} has a shape that cannot be: {error}") from None


def received(
    response: Any,
    wanted: Mapping[str, Declared],
    rows: int,
    model: str,
    shared: Callable[[str, int], bytes | None],
) -> tuple[dict[str, Array], int]:
    """The outputs that were asked for, checked, and the bytes of all that came.

    Args:
        response: Triton's ``ModelInferResponse``.
        wanted: the outputs that were asked for, as they are declared.
        rows: of the batch.
        model: for the messages.
        shared: (name, bytes) -> the output's bytes in shared memory, None when it is not there.

    Raises:
        ModelWrong: one is missing or there twice, or not as declared, or not finite.
    """
    arrays: dict[str, Array] = {}
    nbytes = 0
    for index, output in enumerate(response.outputs):
        if output.name in arrays:
            raise wrong(model, f"it gave {output.name} twice")
        shape = tuple(output.shape)
        size = Declared(output.datatype, shape).nbytes(shape[0]) if shape else 0
        data = shared(output.name, size or 0)
        if data is None:
            raw = response.raw_output_contents
            data = raw[index] if index < len(raw) else b""
        arrays[output.name] = from_bytes(output.name, data, output.datatype, shape, model)
        nbytes += len(data)
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise wrong(model, f"it left out {', '.join(missing)}")
    told = {
        name: checked(name, arrays[name], declared, rows, model)
        for name, declared in wanted.items()
    }
    return told, nbytes


def wrong(model: str, what: str) -> ModelWrong:
    """The error of an answer that cannot be used."""
    return ModelWrong(
        f"{model} answered wrongly: {what}; check it with: matchwright models check", model=model
    )
