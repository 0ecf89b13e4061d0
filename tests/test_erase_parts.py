"""Erasing in stores of another make, and what stands for the erased."""

from __future__ import annotations

import json

import leftovers
import polars as pl
from erase_cases import SALT, number, planted, records

from matchwright.engine.erased import key_of, listed_keys, stand_in
from matchwright.engine.records import ingest
from matchwright.engine.records import quarantine as quarantines
from matchwright.engine.store import Store, erase
from matchwright.kernels.order import hash_keys


def test_a_store_without_texts(tmp_path):
    with Store.open(tmp_path / "store", mode="w", create=True, keep_text=False) as store:
        store.upsert("freelancer", planted("freelancer", ["Frl0001", "Frl0002"], 0))
        store.upsert("job", records("job", 2, 1, ["a", "b"]))
        store.patch("job", "a", {"excluded_freelancers": ["Frl0001"]})
        done = store.erase("freelancer", ["Frl0001", "never-there"])
        assert (done.ids, done.living, done.mentions, done.incomplete) == (2, 1, 1, False)
        assert store.verify() == []
        assert store.records("freelancer", ["Frl0002"]).height == 1
        store.patch("job", "a", {"rate_max_cents": 12_345})
        assert store.verify() == []
    found = leftovers.search([tmp_path], texts=["Frl0001"], numbers=[number("Frl0001", 0)])
    assert found == {}
    assert leftovers.search([tmp_path], texts=["Frl0002"])


def test_a_client_is_erased_with_their_jobs(tmp_path):
    ids = [f"Job{n:04d}" for n in range(4)]
    quarantine = tmp_path / "store" / "quarantine"
    with Store.open(tmp_path / "store", mode="w", create=True, retain_s=0.0) as store:
        store.upsert("freelancer", records("freelancer", 3, 1, ["a", "b", "c"]))
        store.patch("freelancer", "a", {"excluded_clients": ["Client0001", "client-2"]})
        clients = ["Client0001", "Client0001", "Client0002", "Client0001"]
        jobs = planted("job", ids, 0).with_columns(pl.Series("client_id", clients))
        store.upsert("job", jobs)
        store.seal()
        # Rows that nobody knows the ids of any more: their records have gone.
        store.delete("job", ids[3:])
        store.upsert("job", records("job", 1, 2, ["other"]))
        quarantine.mkdir()
        path = tmp_path / "jobs.jsonl"
        rows = [{"id": ids[0], "rate_max_cents": "x"}, {"id": "other", "client_id": ["Client0001"]}]
        path.write_text("\n".join(map(json.dumps, rows)))
        ingest.read("job", [path], quarantine=quarantine / "jobs-1.parquet")
        done = store.erase("client", ["Client0001"])
        assert (done.living, done.mentions, done.incomplete) == (2, 1, False)
        assert store.verify() == []
        (listed,) = store.records("freelancer", ["a"])["excluded_clients"].to_list()
        assert listed == [stand_in(int(hash_keys(["Client0001"], store.salt)[0])), "client-2"]
        assert store.records("job", [ids[2]])["client_id"].to_list() == ["Client0002"]
        assert erase.erased(store._catalog)["job"].key_n.tolist() == sorted(
            hash_keys([ids[0], ids[1], ids[3]], store.salt).tolist()
        )
    gone = [ids[0], ids[1], ids[3]]
    texts = ["Client0001", *gone, *(f"{name}Word0" for name in gone)]
    numbers = [number(name, 0) for name in gone]
    assert leftovers.search([tmp_path / "store"], texts, numbers) == {}
    assert leftovers.search([tmp_path / "store"], [ids[2]], [number(ids[2], 0)])


def test_stand_ins():
    key = 0x00C0FFEE00C0FFEE
    assert stand_in(key) == "erased:00c0ffee00c0ffee"
    assert key_of(stand_in(key)) == key
    for other in ("erased:", "erased:00C0FFEE00C0FFEE", "erased:00c0ffee00c0ffe", "someone"):
        assert key_of(other) is None
        assert listed_keys([other], SALT).tolist() == hash_keys([other], SALT).tolist()
    assert listed_keys([stand_in(2**64 - 1)], SALT).tolist() == [2**64 - 1]


def test_rows_of_a_quarantine(tmp_path):
    path = tmp_path / "q.jsonl"
    rows = [
        {"id": "ann", "rate_cents": "x"},
        {"id": "annabel", "rate_cents": "of ann"},
        {"id": "bob", "rate_cents": "of annabel"},
        "ann alone",
        {"id": "ann+bob", "rate_cents": "y"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    target = tmp_path / "q.parquet"
    ingest.read("freelancer", [path], quarantine=target)
    assert quarantines.erase(target, ["carl"]) == 0
    assert quarantines.erase(target, ["ann"]) == 4
    left = pl.read_parquet(target)
    assert left["id"].to_list() == ["annabel", "bob"]
    assert left["value"].to_list() == ["", "of annabel"]
    assert quarantines.erase(target, ["ann"]) == 0
    assert quarantines.erase(target, ["annabel", "bob"]) == 2
    assert not target.exists()
