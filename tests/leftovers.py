"""Decodes every file below some folders and searches what comes out. Not a test module.

Raw bytes of every file; every deflated stream in them; Parquet column by column; SQLite row by row,
with MessagePack bodies and packed arrays; arrays of segment files. Text is looked for as UTF-8 and
UTF-16, integers as decimal text, as MessagePack, and as values of decoded columns.
"""

from __future__ import annotations

import io
import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from matchwright.engine.store.segment_file import SegmentFile

ZLIB_HEADERS = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")


def search(folders, texts=(), numbers=(), hashes=(), blobs=()):
    """(how it was found, needle) -> files in which it was.

    Args:
        texts: looked for as parts of other texts.
        numbers: integers of at least six digits.
        hashes: 64-bit integers, also as their eight bytes.
        blobs: bytes as they are: keys, packed vectors.
    """
    found = defaultdict(set)
    raw = {}
    for text in texts:
        for code in ("utf-8", "utf-16-le", "utf-16-be"):
            raw[text.encode(code)] = (code, text)
    for number in numbers:
        raw[str(number).encode()] = ("decimal", number)
        raw[b"\xce" + number.to_bytes(4, "big")] = ("msgpack", number)
    for number in hashes:
        for order in ("little", "big"):
            raw[number.to_bytes(8, order)] = (f"u64 {order}", number)
    for blob in blobs:
        raw[blob] = ("blob", blob.hex())
    finder = _Finder(raw)
    integers = np.array(sorted({*numbers, *hashes}), dtype=np.uint64)
    for path in files(folders):
        data = path.read_bytes()
        for how, needle in finder.in_bytes(data):
            found[f"raw {how}", needle].add(path)
        for stream in inflated(data):
            for how, needle in finder.in_bytes(stream):
                found[f"deflated {how}", needle].add(path)
        for values in decoded(path):
            if isinstance(values, bytes | str):
                text = values.encode() if isinstance(values, str) else values
                for how, needle in finder.in_bytes(text):
                    found[f"decoded {how}", needle].add(path)
            elif values.dtype.kind in "iu" and values.size:
                wide = values.astype(np.int64).astype(np.uint64).reshape(-1)
                for number in integers[np.isin(integers, wide)].tolist():
                    found["decoded integer", number].add(path)
    return dict(found)


def files(folders):
    """Every file, of folders and by itself."""
    for folder in map(Path, folders):
        yield from [folder] if folder.is_file() else sorted(filter(Path.is_file, folder.rglob("*")))


class _Finder:
    def __init__(self, raw):
        # Polars' Aho-Corasick works on text, so needles are looked for one by one: they are few.
        self._raw = raw

    def in_bytes(self, data) -> Iterator[tuple[str, object]]:
        for needle, told in self._raw.items():
            if needle in data:
                yield told


def inflated(data):
    """What every zlib stream in the bytes gives, as far as it can be read."""
    for header in ZLIB_HEADERS:
        at = data.find(header)
        while at >= 0:
            stream = zlib.decompressobj()
            out = bytearray()
            # In small steps: of a stream that goes on elsewhere, the beginning still counts.
            for low in range(at, min(at + (1 << 17), len(data)), 64):
                try:
                    out += stream.decompress(data[low : low + 64])
                except zlib.error:
                    break
                if stream.eof:
                    break
            if len(out) > 8:
                yield bytes(out)
            at = data.find(header, at + 1)


def decoded(path):
    """Texts, bytes and integer arrays out of a file that somebody knows how to read."""
    if path.suffix == ".mwseg":
        file = SegmentFile(path)
        yield from (file.array(name) for name in file.names)
        yield file.array("id/bytes").tobytes()
    elif path.suffix == ".parquet":
        yield from _of_parquet(path.read_bytes())
    elif path.suffix == ".sqlite":
        yield from _of_sqlite(path)


def _of_parquet(data):
    frame = pl.read_parquet(io.BytesIO(data))
    yield repr(pl.read_parquet_metadata(io.BytesIO(data)))
    for column in frame:
        if column.dtype.is_integer():
            yield column.drop_nulls().cast(pl.Int64, wrap_numerical=True).to_numpy()
        else:
            yield "\n".join(map(str, column.unique().to_list()))


def _of_sqlite(path):
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            for row in connection.execute(f"SELECT * FROM {name}").fetchall():
                yield repr([value for value in row if not isinstance(value, bytes)])
                yield np.array([v for v in row if isinstance(v, int)], dtype=np.int64)
                for value in row:
                    if isinstance(value, bytes):
                        yield from _of_blob(value)
    finally:
        connection.close()


def _of_blob(value):
    """A record's body, or rows and arrays after their checksum."""
    body = value[1:]
    if value[:1] == b"\x01":
        try:
            body = zlib.decompress(body)
        except zlib.error:
            return
    for packed in (body, value[4:]):
        try:
            content = msgspec.msgpack.decode(packed)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        yield repr(content)
        if isinstance(content, dict):
            for entry in content.values():
                if isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], bytes):
                    yield np.frombuffer(entry[2], np.dtype(entry[0]))
                    yield entry[2]
