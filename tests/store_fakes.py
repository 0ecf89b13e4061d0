"""Small stand-ins for what surrounds the store: a two-field schema and a toy encoder.

Not a test module: the store's tests import it, and so do the processes that they kill.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl

from matchwright.engine.errors import InvalidData
from matchwright.engine.store import EncodedRows, Neighbours, Store, loader
from matchwright.kernels.order import hash_keys
from matchwright.kernels.types import UNKNOWN, SetColumn

D = 16
SCHEMA = pl.Schema(
    {
        "id": pl.String,
        "title": pl.String,
        "text": pl.String,
        "rate_cents": pl.Int32,
        "skills": pl.List(pl.Struct({"name": pl.String, "level": pl.Int8})),
    }
)


def look_always(monkeypatch):
    """Readers look for what is new each time they are asked, also just after a trouble."""
    monkeypatch.setattr(loader, "POLL_S", 0.0)
    monkeypatch.setattr(loader, "RETRY_S", 0.0)


def record(name, version=0, **fields):
    """A record that differs with its version."""
    return {
        "id": name,
        "title": f"title of {name}",
        "text": f"text {version} of {name}",
        "rate_cents": version,
        "skills": [{"name": f"s{version % 7}", "level": 3}],
        **fields,
    }


def frame(*records):
    return pl.DataFrame(list(records), schema=SCHEMA)


def to_frame(kind, rows):
    try:
        return pl.DataFrame(rows, schema=SCHEMA, strict=True)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise InvalidData(str(error))


@dataclass(frozen=True)
class FakeGeneration:
    """Vectors are a hash of title and text (first half) and of the rest (second half)."""

    seed: int = 0
    as_of: int = 0
    d: int = D

    @property
    def id(self):
        return hashlib.sha256(f"{self.seed}/{self.as_of}".encode()).hexdigest()[:16]

    @property
    def facets(self):
        return (
            SimpleNamespace(name="text", start=0, width=D // 2),
            SimpleNamespace(name="rest", start=D // 2, width=D // 2),
        )

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fake.json").write_text(json.dumps({"seed": self.seed, "as_of": self.as_of}))

    def vector(self, kind, row):
        text = repr((self.id, kind, row["title"], row["text"])).encode()
        rest = repr((self.id, kind, row["rate_cents"], row["skills"])).encode()
        halves = [hashlib.blake2b(part, digest_size=D // 2).digest() for part in (text, rest)]
        return np.frombuffer(b"".join(halves), np.int8)


def seal_both(store, rows):
    """A sealed segment of each kind: x0, x1, ..."""
    for kind in ("job", "freelancer"):
        with store.bulk(kind) as sink:
            sink.write(frame(*(record(f"x{n}", n) for n in range(rows))))


def flip(path, offset, mask=1):
    """Damages one byte of a file, where it is."""
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


def load(folder: Path):
    return FakeGeneration(**json.loads((folder / "fake.json").read_text()))


def encode_rows(generation, kind, records, salt):
    rows = records.to_dicts()
    x = np.array([generation.vector(kind, row) for row in rows], np.int8).reshape(len(rows), D)
    x = np.maximum(x, -127)
    rate = [UNKNOWN if row["rate_cents"] is None else row["rate_cents"] for row in rows]
    start, values, known = [0], [], []
    for row in rows:
        names = sorted({hash_keys([s["name"]], salt)[0] for s in row["skills"] or ()})
        values.extend(names)
        start.append(len(values))
        known.append(row["skills"] is not None)
    sets = {
        "skills": SetColumn(
            np.array(start, np.int64), np.array(values, np.uint64), np.array(known, bool)
        )
    }
    keys = hash_keys([row["id"] for row in rows], salt)
    return EncodedRows(x, keys, {"rate_cents": np.array(rate, np.int32)}, sets)


def build_index(scalars, sets, x_nd, key_n):
    return {
        "rate_order": np.argsort(scalars["rate_cents"], kind="stable"),
        "nothing": np.zeros(0, np.float32),
        "scalar": np.array(7, np.uint8),
    }


def take(records, seed, sample):
    def drawn(name):
        return hashlib.sha256(f"{seed}/{name}".encode()).digest()

    chosen = sorted(records["id"].to_list(), key=drawn)[:sample]
    return records.filter(pl.col("id").is_in(chosen)).sort("id")


def fit(jobs, freelancers, *, seed, sample, as_of):
    assert jobs.height <= sample
    assert freelancers.height <= sample
    return FakeGeneration(seed=seed, as_of=as_of)


def neighbours(**changes):
    made = Neighbours(
        schema=lambda kind: SCHEMA,
        to_frame=to_frame,
        hash_keys=hash_keys,
        encode_rows=encode_rows,
        build_index=build_index,
        index_version=1,
        take=take,
        fit=fit,
        starter=FakeGeneration,
        load=load,
    )
    return replace(made, **changes)


def indexing(changes):
    """Neighbours that make the last of the changes while an index is built."""

    def build(*arrays):
        if changes:
            changes.pop()()
        return build_index(*arrays)

    return neighbours(build_index=build)


def open_store(folder, mode="r", **options):
    """A store of these; one that is opened to write is made."""
    return Store.open(folder, mode=mode, create=mode == "w", neighbours=neighbours(), **options)


@contextmanager
def stores_in(root, **for_writers):
    """What opens stores of these in a folder; they are closed at the end."""
    opened = []

    def open_(mode="w", create=None, folder="store", **options):
        defaults = {"neighbours": neighbours()} | (for_writers if mode == "w" else {})
        create = mode == "w" if create is None else create
        store = Store.open(root / folder, mode=mode, create=create, **(defaults | options))
        opened.append(store)
        return store

    yield open_
    for store in opened:
        store.close()


def contents(snapshot, kind):
    """id -> record of everything alive, worked out through the arrays; checks that they agree."""
    corpus = snapshot.corpus(kind)
    alive = [np.ones(segment.n, bool) if mask is None else mask for segment, mask in corpus.parts]
    rows = np.flatnonzero(np.concatenate([np.zeros(0, bool), *alive]))
    ids = snapshot.ids_of(kind, rows)
    assert len(set(ids)) == len(ids) == snapshot.count(kind)
    assert snapshot.rows_of(kind, ids).tolist() == rows.tolist()
    records = snapshot.records(kind, ids)
    if ids:
        encoded = encode_rows(snapshot.generation, kind, records, snapshot.salt)
        _check_arrays(corpus, rows, encoded)
        assert np.array_equal(snapshot.keys_of(kind, rows), snapshot.keys(ids))
    return {row["id"]: row for row in records.to_dicts()}


def _check_arrays(corpus, rows, encoded):
    segments = [segment for segment, _ in corpus.parts]
    x = np.concatenate([segment.x_nd for segment in segments])
    assert np.array_equal(x[rows], encoded.x_nd)
    rate = np.concatenate([segment.scalars["rate_cents"] for segment in segments])
    assert np.array_equal(rate[rows], encoded.scalars["rate_cents"])
    skills = []
    for segment in segments:
        column = segment.sets["skills"]
        skills += [
            column.value[low:high].tolist()
            for low, high in zip(column.start_n[:-1], column.start_n[1:], strict=True)
        ]
    column = encoded.sets["skills"]
    for n, row in enumerate(rows):
        low, high = column.start_n[n : n + 2]
        assert skills[row] == column.value[low:high].tolist()


def write_history(store, epochs=30):
    """{epoch number: contents}; every kind of change."""
    model, history = {}, {}
    for n in range(epochs):
        if n % 10 == 9:
            store.seal()
        elif n % 7 == 6:
            with store.bulk("job") as sink:
                rows = [record(f"j{(n + m) % 12}", n) for m in range(4)]
                sink.write(frame(*rows))
            model = model | {row["id"]: row for row in rows}
        elif n % 5 == 4:
            store.delete("job", [f"j{n % 12}", f"j{(n + 3) % 12}"])
            model = {k: v for k, v in model.items() if k not in (f"j{n % 12}", f"j{(n + 3) % 12}")}
        elif n == 17:
            store.refit(seed=n, sample=9, as_of=n)
        else:
            store.upsert("job", frame(record(f"j{n % 12}", n)))
            model = model | {f"j{n % 12}": record(f"j{n % 12}", n)}
        history[store.snapshot().epoch.number] = model
    return history
