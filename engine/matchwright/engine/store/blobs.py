"""Small binary values inside the catalog: checksummed arrays, and records.

A record is kept as a MessagePack map of the fields that are known, compressed when that helps. Its
hash says whether two records are equal; it covers the text through the text's own digest, so that
it can be worked out again where the text itself is not kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from matchwright.engine import prose
from matchwright.engine.errors import StoreDamaged
from matchwright.engine.prose import TEXT_DIGEST, text_digest
from matchwright.engine.store.rows import Rows, from_flat

TEXT_FIELD = "text"
_COMPRESS_FROM_BYTES = 384
_RAW, _DEFLATED = b"\x00", b"\x01"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_TEXT_KEY = _encode(TEXT_FIELD)


def digest(*parts: bytes) -> bytes:
    """blake2b of the parts, each preceded by its length, so that no two lists collide."""
    return prose.digest(*parts)


def pack_record(record: Mapping[str, Any], *, keep_text: bool) -> tuple[bytes, bytes]:
    """(hash, body) of one record; a body without its text holds the text's digest instead.

    ``record[TEXT_FIELD]`` may already be such a digest (bytes).
    """
    known = {name: value for name, value in record.items() if value is not None}
    text = known.get(TEXT_FIELD)
    hashed = known
    if isinstance(text, str):
        hashed = {**known, TEXT_FIELD: text_digest(text)}
    covered = _encode(hashed)
    body = _encode(known) if keep_text and hashed is not known else covered
    return digest(covered), _deflate(body)


def unpack_record(body: bytes, expected: bytes, where: str) -> dict[str, Any]:
    """The known fields of a stored record; a text that is not kept comes back as its digest.

    Raises:
        StoreDamaged: the body does not have the hash that is stored beside it.
    """
    try:
        record: dict[str, Any] = _decode(inflate(body))
        text = record.get(TEXT_FIELD)
        hashed = {**record, TEXT_FIELD: text_digest(text)} if isinstance(text, str) else record
        intact = digest(_encode(hashed)) == expected
    except (msgspec.MsgspecError, zlib.error, AttributeError, TypeError, UnicodeError):
        intact = False
    if not intact:
        raise StoreDamaged(f"{where}: a stored record does not match its hash", file=where)
    return record


def has_hash(packed: bytes, text: object, expected: bytes) -> bool:
    """Whether a body, inflated, has a hash, told without a look at its other fields.

    Args:
        text: of the record in it, as it is stored.

    Returns:
        False also for the body of an intact record that is packed in another way than
        ``pack_record`` does: then ``unpack_record`` decides.
    """
    if isinstance(text, str):
        head, _, tail = packed.partition(_TEXT_KEY + _encode(text))
        packed = b"".join((head, _TEXT_KEY, _encode(text_digest(text)), tail))
    return digest(packed) == expected


def without_digest(record: dict[str, Any]) -> dict[str, Any]:
    """The record as callers see it: a text that is not kept is unknown, its digest apart."""
    if isinstance(record.get(TEXT_FIELD), bytes):
        return {**record, TEXT_FIELD: None, TEXT_DIGEST: record[TEXT_FIELD]}
    return record


def _deflate(data: bytes) -> bytes:
    if len(data) >= _COMPRESS_FROM_BYTES:
        packed = zlib.compress(data, 1)
        if len(packed) < len(data):
            return _DEFLATED + packed
    return _RAW + data


def inflate(body: bytes) -> bytes:
    """The MessagePack of a stored body."""
    return zlib.decompress(body[1:]) if body[:1] == _DEFLATED else body[1:]


def pack_rows(rows: Rows) -> bytes:
    """Rows as one checksummed value."""
    arrays = {
        name: (array.dtype.str, list(array.shape), np.ascontiguousarray(array).tobytes())
        for name, array in rows.flat().items()
    }
    return _guarded(_encode(arrays))


def unpack_rows(blob: bytes, where: str) -> Rows:
    """The inverse of ``pack_rows``; the arrays are read-only."""
    arrays = {
        name: np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape)
        for name, (dtype, shape, data) in _decode(_checked(blob, where)).items()
    }
    return from_flat(arrays)


def pack_array(array: NDArray[Any]) -> bytes:
    """A one-dimensional array as one checksummed value."""
    return _guarded(array.tobytes())


def unpack_array(blob: bytes, dtype: Any, where: str) -> NDArray[Any]:
    """The inverse of ``pack_array``."""
    return np.frombuffer(_checked(blob, where), dtype=dtype)


def _guarded(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little") + data


def _checked(blob: Any, where: str) -> bytes:
    # A damaged catalog may give anything: text, a number, nothing.
    data = blob[4:] if isinstance(blob, bytes) else b""
    if not isinstance(blob, bytes) or zlib.crc32(data) != int.from_bytes(blob[:4], "little"):
        raise StoreDamaged(f"{where}: a stored value does not match its checksum", file=where)
    return data
