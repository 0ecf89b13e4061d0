"""Sealed segments: files of named arrays that are mapped into memory and never change.

::

    0        magic, format, segment, rows, checksum of these        64 bytes
    64       arrays, each at a multiple of 64 bytes
    data     directory (JSON: kind, generation, name/dtype/shape/offset of each array)
             checksums (uint32 for every started MiB of the file before ``data``)
    end-64   trailer: where the directory is, how long all parts are, their checksum, magic

A file is written under a temporary name, synced, then renamed. Header, directory and lengths are
checked when a file is opened; the blocks of an array when the array is first asked for.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from matchwright.engine.errors import StoreDamaged, StoreError, StoreFormat
from matchwright.engine.store import blobs, files

FORMAT = 1
MAGIC = b"MWSEGMNT"
ALIGN = 64
BLOCK = 1 << 20
SUFFIX = ".mwseg"

_HEADER = struct.Struct("<8sIIQQ28xI")  # magic, format, flags, segment, rows, crc
_TRAILER = struct.Struct("<8sIIQQQ16xII")  # magic, format, blocks, data, json, total, crc, own crc
_KINDS_OF_DTYPE = "biuf"


@dataclass(frozen=True, slots=True)
class Written:
    """A file that is durable but in no manifest yet."""

    file: str
    n: int
    size: int
    digest: bytes


class _Blocks:
    """Writes bytes and keeps the checksum of every block of ``BLOCK`` bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.offset = 0
        self.checksums: list[int] = []

    def write(self, data: memoryview) -> None:
        self._file.write(data)
        done = 0
        while done < len(data):
            space = BLOCK - self.offset % BLOCK
            piece = data[done : done + space]
            if self.offset % BLOCK == 0:
                self.checksums.append(0)
            self.checksums[-1] = zlib.crc32(piece, self.checksums[-1])
            self.offset += len(piece)
            done += len(piece)

    def align(self) -> None:
        self.write(memoryview(bytes(-self.offset % ALIGN)))


def write_segment(
    folder: Path, segment: int, n: int, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> Written:
    """Writes one segment file and makes it durable.

    Args:
        folder: where segment files live.
        segment: its number, unique in the store; part of the name.
        n: rows.
        about: strings and numbers for the directory: kind, generation, store.
        arrays: name -> array of integers, floats or bools.

    Raises:
        StoreError: the file could not be written; nothing is left behind.
    """
    path = folder / f"{about['kind']}-{segment:08d}{SUFFIX}"
    temporary = folder / f".{path.name}.tmp"
    try:
        with temporary.open("wb") as file:
            size, digest = _write(file, segment, n, about, arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        files.sync_folder(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise files.failure(path, error)
    return Written(path.name, n, size, digest)


def _write(
    file: IO[bytes],
    segment: int,
    n: int,
    about: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
) -> tuple[int, bytes]:
    blocks = _Blocks(file)
    header = _HEADER.pack(MAGIC, FORMAT, 0, segment, n, 0)[:-4]
    blocks.write(memoryview(header + zlib.crc32(header).to_bytes(4, "little")))
    directory = []
    for name, array in arrays.items():
        blocks.align()
        directory.append(
            {
                "name": name,
                "dtype": _dtype_name(name, array),
                "shape": list(array.shape),
                "offset": blocks.offset,
            }
        )
        blocks.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    blocks.align()
    described = {"segment": segment, "rows": n, **about, "arrays": directory}
    text = json.dumps(described, sort_keys=True, separators=(",", ":")).encode()
    checksums = np.array(blocks.checksums, dtype="<u4").tobytes()
    size = blocks.offset + len(text) + len(checksums) + _TRAILER.size
    trailer = _TRAILER.pack(
        MAGIC,
        FORMAT,
        len(blocks.checksums),
        blocks.offset,
        len(text),
        size,
        zlib.crc32(checksums, zlib.crc32(text)),
        0,
    )[:-4]
    file.write(text + checksums + trailer + zlib.crc32(trailer).to_bytes(4, "little"))
    return size, blobs.digest(text, checksums)


def _dtype_name(name: str, array: NDArray[Any]) -> str:
    dtype = array.dtype.newbyteorder("<")
    if dtype.kind not in _KINDS_OF_DTYPE or dtype != array.dtype:
        raise StoreError(f"array {name!r} has dtype {array.dtype}, which segments do not hold")
    return dtype.str


class SegmentFile:
    """A segment file, mapped read-only. The mapping lives as long as any array of it.

    Args:
        path: the file.
        expected: the digest that the manifest has of it.
        opened: the file itself where it is open already: it may have lost its name meanwhile.

    Raises (on opening):
        FileNotFoundError: there is no such file.
        StoreFormat: written by a newer version.
        StoreDamaged: header, directory or lengths do not fit, or it is another file than the
            manifest's (``expected``).
        StoreError: the operating system does not let it be read.
    """

    def __init__(
        self, path: Path, expected: bytes | None = None, opened: IO[bytes] | None = None
    ) -> None:
        self.path = path
        try:
            with nullcontext(opened) if opened is not None else path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size < _HEADER.size + _TRAILER.size:
                    raise self._damaged(f"has {self.size} bytes, too few for a segment")
                self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise files.failure(path, error, "read")
        self.number, self.n = self._read_header()
        self._data, text, self._checksums = self._read_footer()
        if expected is not None and blobs.digest(text, self._checksums.tobytes()) != expected:
            raise self._damaged("is not the file that the manifest names")
        self.about: dict[str, Any] = json.loads(text)
        if self.about["segment"] != self.number or self.about["rows"] != self.n:
            raise self._damaged("has a header that does not fit its directory")
        self._entries = {entry["name"]: entry for entry in self.about["arrays"]}
        self._verified = np.zeros(len(self._checksums), dtype=np.bool_)

    @property
    def names(self) -> Sequence[str]:
        """Names of the arrays, in file order."""
        return tuple(self._entries)

    def array(self, name: str) -> NDArray[Any]:
        """One array, read-only, its blocks checked the first time.

        Raises:
            StoreDamaged: a block does not match its checksum.
        """
        entry = self._entries[name]
        dtype, shape, offset = np.dtype(entry["dtype"]), entry["shape"], entry["offset"]
        count = int(np.prod(shape, dtype=np.int64))
        if count:
            self._verify(offset, offset + count * dtype.itemsize)
        flat = np.frombuffer(self._map, dtype=dtype, count=count, offset=offset) if count else None
        return np.zeros(shape, dtype) if flat is None else flat.reshape(shape)

    def verify(self, told: Callable[[int], object] | None = None) -> None:
        """Checks every block again, seen before or not.

        Args:
            told: is told the bytes of each block that was read.
        """
        self._verified[:] = False
        for low in range(0, self._data, BLOCK):
            self._verify_block(low // BLOCK)
            if told is not None:
                told(min(BLOCK, self._data - low))

    def _verify(self, start: int, stop: int) -> None:
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            if not self._verified[block]:
                self._verify_block(block)

    def _verify_block(self, block: int) -> None:
        low = block * BLOCK
        with memoryview(self._map) as view, view[low : min(low + BLOCK, self._data)] as piece:
            actual = zlib.crc32(piece)
        if actual != int(self._checksums[block]):
            raise self._damaged(f"block {block} (bytes {low}..) does not match its checksum")
        self._verified[block] = True

    def _read_header(self) -> tuple[int, int]:
        raw = self._map[: _HEADER.size]
        magic, version, _, number, n, crc = _HEADER.unpack(raw)
        self._check_start("header", magic, version, zlib.crc32(raw[:-4]) == crc)
        return number, n

    def _read_footer(self) -> tuple[int, bytes, NDArray[np.uint32]]:
        raw = self._map[self.size - _TRAILER.size :]
        magic, version, blocks, data, length, total, crc, own = _TRAILER.unpack(raw)
        self._check_start("trailer", magic, version, zlib.crc32(raw[:-4]) == own)
        if total != self.size or data + length + 4 * blocks + _TRAILER.size != total:
            raise self._damaged(f"has {self.size} bytes where its trailer says {total}")
        text = self._map[data : data + length]
        sums = self._map[data + length : data + length + 4 * blocks]
        if zlib.crc32(sums, zlib.crc32(text)) != crc:
            raise self._damaged("has a directory that does not match its checksum")
        return data, text, np.frombuffer(sums, dtype="<u4")

    def _check_start(self, what: str, magic: bytes, version: int, intact: bool) -> None:
        if intact and magic == MAGIC and version > FORMAT:
            raise StoreFormat(
                f"{self.path}: has format {version}, this version reads up to {FORMAT}; "
                "use a newer matchwright",
                file=self.path,
            )
        if magic != MAGIC or not intact:
            raise self._damaged(f"has a {what} that is not a segment's or is damaged")

    def _damaged(self, what: str) -> StoreDamaged:
        return StoreDamaged(
            f"{self.path}: {what}; restore the file from a copy, or import again", file=self.path
        )
