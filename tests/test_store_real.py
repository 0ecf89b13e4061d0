"""The store with the engine's own records, generation, rule columns and indexes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from matchwright.engine import synthetic
from matchwright.engine.columns import columns
from matchwright.engine.errors import FailedPrecondition
from matchwright.engine.generation import starter
from matchwright.engine.records import SCHEMAS
from matchwright.engine.store import Store
from matchwright.engine.store.encode import default_neighbours

KINDS = ("job", "freelancer")
N = {"job": 120, "freelancer": 300}


@pytest.fixture(scope="module")
def records():
    return {kind: synthetic.frame(kind, N[kind]) for kind in KINDS}


def unchecked(kind, rows):
    """A frame of records that are known to be good."""
    return pl.DataFrame(rows, schema=SCHEMAS[kind])


def check(store, records):
    """Everything in the store is what the records and its generation say."""
    snapshot = store.snapshot()
    for kind in KINDS:
        ids = records[kind]["id"].to_list()
        assert snapshot.count(kind) == len(ids)
        assert_frame_equal(snapshot.records(kind, ids), records[kind])
        assert snapshot.rows(kind, ids) == records[kind].to_dicts()
        x_nd = snapshot.generation.encode(kind, records[kind]).x_nd
        scalars, sets = columns(kind, records[kind], store.salt, snapshot.generation)
        rows, base = snapshot.rows_of(kind, ids), snapshot.corpus(kind).base
        for n, row in enumerate(rows.tolist()):
            part = int(np.searchsorted(base, row, side="right")) - 1
            segment, alive = snapshot.corpus(kind).parts[part]
            local = row - base[part]
            assert alive is None or alive[local]
            assert np.array_equal(segment.x_nd[local], x_nd[n])
            for name, column in scalars.items():
                assert segment.scalars[name][local] == column[n]
            for name, column in sets.items():
                held = segment.sets[name]
                values = held.value[held.start_n[local] : held.start_n[local + 1]]
                expected = column.value[column.start_n[n] : column.start_n[n + 1]]
                assert np.array_equal(values, expected)
                assert held.known_n[local] == column.known_n[n]


def test_import_upsert_refit_and_reopen(tmp_path, records):
    with Store.open(tmp_path, mode="w", create=True, chunk_rows=100) as store:
        assert store.generation.id == starter().id
        for kind in KINDS:
            with store.bulk(kind) as sink:
                assert sink.write(records[kind].head(90)).accepted == 90
            assert store.upsert(kind, records[kind]).duplicate == 90
        check(store, records)
        before = store.snapshot()
        generation = store.refit(seed=1, sample=100, as_of=20_500)
        assert store.generation.id == generation.id != before.generation.id
        check(store, records)
        drift = store.info()["kinds"]["freelancer"]["drift"]
        assert drift["rows"] == N["freelancer"]
    with Store.open(tmp_path) as store:
        assert store.generation.id == generation.id
        assert store.verify() == []
        check(store, records)


def test_a_patched_record_is_encoded_again(tmp_path, records):
    neighbours = replace(default_neighbours(), to_frame=unchecked)
    with Store.open(tmp_path, mode="w", create=True, neighbours=neighbours) as store:
        for kind in KINDS:
            store.upsert(kind, records[kind])
        changed = records["freelancer"].to_dicts()
        changed[7] |= {"rate_cents": 4_321, "country": "PT", "status": None}
        patched = {name: changed[7][name] for name in ("rate_cents", "country", "status")}
        assert store.patch("freelancer", changed[7]["id"], patched).replaced == 1
        check(store, records | {"freelancer": unchecked("freelancer", changed)})


def test_without_texts_vectors_stay_what_they_were(tmp_path, records):
    neighbours = replace(default_neighbours(), to_frame=unchecked)
    with Store.open(
        tmp_path, mode="w", create=True, keep_text=False, neighbours=neighbours
    ) as store:
        store.upsert("freelancer", records["freelancer"])
        ids = records["freelancer"]["id"].to_list()
        changed = records["freelancer"].to_dicts()[3] | {"rate_cents": 5_555}
        store.patch("freelancer", ids[3], {"rate_cents": 5_555})
        snapshot = store.snapshot()
        assert snapshot.records("freelancer", ids)["text"].null_count() == len(ids)
        assert {row["text"] for row in snapshot.rows("freelancer", ids)} == {None}
        frame = unchecked("freelancer", [changed])
        expected = snapshot.generation.encode("freelancer", frame).x_nd[0]
        row = snapshot.rows_of("freelancer", [ids[3]])[0]
        assert np.array_equal(snapshot.corpus("freelancer").parts[0][0].x_nd[row], expected)
        with pytest.raises(FailedPrecondition, match="does not keep texts"):
            store.patch("freelancer", ids[3], {"skills": []})
        with pytest.raises(FailedPrecondition, match="import them into a new store"):
            store.refit(seed=1, sample=10, as_of=20_500)
