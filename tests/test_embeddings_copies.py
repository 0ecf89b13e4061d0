"""Embeddings in copies of a store, and who is erased: replicas, backups, erasing, tidying."""
# ruff: noqa: F401, F811 (fixtures come by import)

from __future__ import annotations

import fcntl
import resource
import shutil
import sqlite3
import threading
from contextlib import closing

import encoder_cases as cases
import leftovers
import numpy as np
import polars as pl
import pytest
from encoder_cases import REFIT, client, made, repo, shop
from patience import until

from matchwright.engine.errors import StoreDamaged, StoreError, StoreFull
from matchwright.engine.matcher import Matcher, Request
from matchwright.engine.policy import Policy
from matchwright.engine.prose import prose
from matchwright.engine.store import Store, embeddings
from matchwright.engine.store import embeddings_ahead as ahead
from matchwright.engine.store.embeddings_sweep import check_file, opened, sweep
from matchwright.kernels.ops import Ops

AS_OF = cases.AS_OF
OPS, POLICY = Ops(threads=1), Policy.load(None)
JOBS = [f"j-{n:07}" for n in (1, 4, 9)]


def answers(path, ids=JOBS):
    """Digests of stored jobs' answers; nobody is asked for anything."""
    with Store.open(path) as store:
        requests = [Request(kind="job", id=name, as_of=AS_OF, k=10) for name in ids]
        results = Matcher(store, OPS, POLICY).match_many(requests)
    assert [result.degraded for result in results] == [()] * len(ids)
    return [result.digest() for result in results]


def keys_in(path):
    with closing(sqlite3.connect(path)) as connection:
        return {key for (key,) in connection.execute("SELECT key FROM embedding")}


def values_of(path, keys):
    with closing(sqlite3.connect(path)) as connection:
        found = dict(connection.execute("SELECT key, value FROM embedding"))
    return [found[key][4:] for key in keys]


def person(name, text):
    """A record with a text of its own."""
    frame = cases.records("freelancer", 1, seed=3)
    return frame.with_columns(
        pl.lit(name).alias("id"), pl.lit("A title").alias("title"), pl.lit(text).alias("text")
    )


def key_of(frame):
    (row,) = frame.iter_rows(named=True)
    names = " ".join(skill["name"] for skill in row["skills"] or ())
    return prose(row["title"], row["text"], names).key


# ── Replicas ──────────────────────────────────────────────────────────────────────────────────


def test_a_replica_answers_alike_without_a_server(shop, tmp_path):
    Store.pull(Store.open(shop).publish(tmp_path / "there").url, tmp_path / "replica")
    assert answers(tmp_path / "replica") == answers(shop)
    with Store.open(tmp_path / "replica") as store:
        assert store.verify() == []


def test_a_replica_without_texts_answers_alike_too(shop, tmp_path):
    with Store.open(shop) as store:
        store.publish(tmp_path / "there", keep_text=False)
    Store.pull(tmp_path / "there", tmp_path / "replica")
    with Store.open(tmp_path / "replica") as store:
        assert not store.keep_text
        assert store.snapshot().rows("job", JOBS)[0]["text"] is None
        assert store.verify() == []
    assert answers(tmp_path / "replica") == answers(shop)


def test_a_replica_follows_and_drops_what_it_needs_no_more(shop, repo, client, tmp_path):
    there, replica = tmp_path / "there", tmp_path / "replica"
    with Store.open(shop) as store:
        store.publish(there)
    Store.pull(there, replica)
    assert not Store.pull(there, replica).changed
    with Store.open(replica) as reader:
        before = reader.snapshot()
        first = [path.name for path in embeddings.paths(replica)]
        with Store.open(shop, mode="w", models=cases.models(repo, client)) as store:
            store.upsert("job", cases.records("job", 35))
            store.publish(there)
            Store.pull(there, replica)
            request = Request(kind="job", id="j-0000033", as_of=AS_OF)
            newest = store.snapshot().epoch.number
            until(lambda: reader.snapshot().epoch.number >= newest, "the reader's next epoch")
            assert Matcher(reader, OPS, POLICY).match(request).degraded == ()
            store.refit(**REFIT)
            store.publish(there)
        Store.pull(there, replica)
        # Who holds the epoch before goes on with its embeddings.
        old = Request(kind="job", id=JOBS[0], as_of=AS_OF)
        assert Matcher(before, OPS, POLICY).match(old).degraded == ()
    assert [path.name for path in embeddings.paths(replica)] != first
    assert len(embeddings.paths(replica)) == 1
    assert answers(replica, [*JOBS, "j-0000033"]) == answers(shop, [*JOBS, "j-0000033"])


def test_what_is_published_holds_what_its_epoch_shows(shop, repo, client, tmp_path):
    """Earlier texts stay at home, like earlier records, and nothing of them is in the copy."""
    said = person("p-1", "said before")
    with Store.open(shop, mode="w", models=cases.models(repo, client)) as store:
        store.upsert("freelancer", said)
        store.upsert("freelancer", person("p-1", "said now"))
        store.publish(tmp_path / "there")
    Store.pull(tmp_path / "there", tmp_path / "replica")
    (home,), (away,) = embeddings.paths(shop), embeddings.paths(tmp_path / "replica")
    assert key_of(said) in keys_in(home)
    assert keys_in(home) - keys_in(away) == {key_of(said)}
    (value,) = values_of(home, [key_of(said)])
    assert value not in away.read_bytes()
    assert key_of(said) not in away.read_bytes()
    assert not away.with_name(away.name + "-wal").exists()


def test_only_new_blocks_are_uploaded(tmp_path, repo, client):
    with Store.open(
        tmp_path / "s", mode="w", create=True, models=cases.models(repo, client)
    ) as store:
        store.refit(**REFIT)
        (path,) = [embeddings.path_of(store.root, store.generation.encoder.content_hash)]
        store.upsert("freelancer", cases.records("freelancer", 400))
        with opened(path, write=True) as file:  # as large as some 8,000 texts make it
            rows = np.random.default_rng(0).integers(-99, 99, (8_000, 96)).astype(np.int32)
            file.put([n.to_bytes(16, "big") for n in range(8_000)], rows)
        # Copies hold what records have: so count these as records' texts.
        kept = keys_in(path)
    from matchwright.engine.store import hold

    copies = []
    for n in range(2):
        with opened(path, write=False) as file, file.look() as connection:
            hold._copy(connection, tmp_path / f"copy-{n}.sqlite", hold.silent)
        with opened_copy(tmp_path / f"copy-{n}.sqlite", path) as copy:
            from matchwright.engine.store.embeddings_sweep import keep_only

            keep_only(copy, [sorted(keys_in(copy.path))])
            copies.append(copy.path.read_bytes())
        with opened(path, write=True) as file:
            file.put([b"x" * 15 + bytes([n])], rows[:1])
    assert len(kept) == 8_400
    blocks = [
        {copy[low : low + (1 << 20)] for low in range(0, len(copy), 1 << 20)} for copy in copies
    ]
    assert len(blocks[1]) >= 4
    assert len(blocks[1] - blocks[0]) <= 2, "the header's block, and the last"


def opened_copy(copy, path):
    target = copy.with_name("moved") / path.name
    target.parent.mkdir(exist_ok=True)
    copy.rename(target)
    return opened(target, write=True)


def test_a_damaged_replica_is_named_and_fetched_again(shop, tmp_path):
    with Store.open(shop) as store:
        store.publish(tmp_path / "there")
    Store.pull(tmp_path / "there", tmp_path / "replica")
    (path,) = embeddings.paths(tmp_path / "replica")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with Store.open(tmp_path / "replica") as store:
        found = store.verify()
        assert found
        assert all(isinstance(one, StoreDamaged) and path.name in str(one) for one in found)
    assert Store.pull(tmp_path / "there", tmp_path / "replica", verify=True).changed
    assert answers(tmp_path / "replica") == answers(shop)


# ── Backups ───────────────────────────────────────────────────────────────────────────────────


def test_a_backup_brings_the_embeddings_back(shop, tmp_path):
    with Store.open(shop) as store:
        store.backup(tmp_path / "b.tar")
    Store.restore(tmp_path / "b.tar", tmp_path / "back")
    assert answers(tmp_path / "back") == answers(shop)
    (ours,), (theirs,) = embeddings.paths(shop), embeddings.paths(tmp_path / "back")
    assert values_of(ours, sorted(keys_in(ours))) == values_of(theirs, sorted(keys_in(ours)))


def test_a_damaged_store_is_not_backed_up(shop, tmp_path):
    (path,) = embeddings.paths(shop)
    with opened(path, write=True) as file, file.change() as connection:
        connection.execute("UPDATE embedding SET value = zeroblob(388) WHERE n = 5")
    with Store.open(shop) as store, pytest.raises(StoreDamaged, match=path.name):
        store.backup(tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


# ── Erasing ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def peopled(shop, repo, client):
    """Somebody with an earlier text, two who say the same, and one who stays."""
    frames = {
        "earlier": person("victim", "what the victim said before"),
        "victim": person("victim", "what the victim says now"),
        "twin": person("twin", "what two of them say"),
        "other": person("other", "what two of them say"),
        "stays": person("stays", "what somebody else says"),
    }
    with Store.open(shop, mode="w", models=cases.models(repo, client), retain_s=0.0) as store:
        for frame in frames.values():
            store.upsert("freelancer", frame)
    return shop, {name: key_of(frame) for name, frame in frames.items()}


def found(shop, keys, values, texts=()):
    """Names of those whose key, vector or words are in any file of the store, decoded."""
    hits = leftovers.search([shop], texts=texts, blobs=[*keys.values(), *values.values()])
    needles = {needle for _, needle in hits}
    return {
        name for name in keys if {keys[name].hex(), values[name].hex()} & needles
    } | needles.intersection(texts)


def test_the_erased_leave_no_embedding(peopled):
    shop, keys = peopled
    (path,) = embeddings.paths(shop)
    values = dict(zip(keys, values_of(path, keys.values()), strict=True))
    words = ("victim said before", "victim says now")
    everything = found(shop, keys, values, words)
    assert everything >= set(keys) | {words[1]}
    with Store.open(shop, mode="w") as store:
        done = store.erase("freelancer", ["victim", "twin"])
        assert done.embeddings == 2
        assert not done.incomplete
        assert store.verify() == []
    # The very same text is somebody's who stays: "other" has what "twin" had.
    assert found(shop, keys, values, words) == {"twin", "other", "stays"}
    with Store.open(shop, mode="w") as store:
        assert store.erase("freelancer", ["other"]).embeddings == 1
    assert found(shop, keys, values, words) == {"stays"}
    check_file(path)


def test_who_is_erased_while_their_text_is_encoded_leaves_no_embedding(
    peopled, repo, client, monkeypatch
):
    """Another process has read the text, and stores what is made of it when it has that."""
    shop, keys = peopled
    reached, erased = threading.Event(), []
    held = embeddings.held

    def seen(root, *, alone):
        if alone:
            reached.set()
        return held(root, alone=alone)

    monkeypatch.setattr(embeddings, "held", seen)

    def erase():
        with Store.open(shop, mode="w") as store:
            erased.append(store.erase("freelancer", ["victim"]))

    thread = threading.Thread(target=erase)

    def before():
        client.before = lambda: None
        thread.start()
        assert reached.wait(120)
        until(lambda: not _free(shop / "embeddings" / ".turn"), "who waits in turn")
        assert erased == []

    client.before = before
    made = ahead.embed(shop, cases.models(repo, client), 2)
    thread.join()
    assert made.sent
    assert not erased[0].incomplete
    for path in embeddings.paths(shop):
        assert keys["victim"] not in keys_in(path)
        assert keys["stays"] in keys_in(path)


def test_a_file_that_is_counted_on_just_now_does_not_go(shop, repo, client, monkeypatch):
    """Another process begins to encode ahead while a writer tidies up."""
    ahead.embed(shop, cases.models(repo, client), 2)
    path = embeddings.path_of(shop, cases.models(repo).encoder(2).content_hash)
    with opened(path, write=True) as file:
        file.set_ahead(ahead=False)
    before, counted_on = keys_in(path), ahead._counted_on

    def just_now(path):
        answer = counted_on(path)
        with opened(path, write=True) as file:
            file.set_ahead(ahead=True)
        return answer

    monkeypatch.setattr(ahead, "_counted_on", just_now)
    with Store.open(shop, mode="w"):
        pass
    assert keys_in(path) == before


def test_who_waits_to_take_out_goes_before_who_comes_later(shop):
    """However many hold the files one after the other, each for a while."""
    order, waits = [], threading.Event()

    def alone():
        waits.set()
        with embeddings.held(shop, alone=True):
            order.append("alone")

    thread = threading.Thread(target=alone)
    with embeddings.held(shop, alone=False):
        thread.start()
        assert waits.wait(60)
        until(lambda: not _free(shop / "embeddings" / ".turn"), "who waits in turn")
    with embeddings.held(shop, alone=False):
        order.append("later")
    thread.join()
    assert order == ["alone", "later"]


def test_where_nobody_can_wait_in_turn_the_lock_holds_all_the_same(shop):
    (shop / "embeddings" / ".turn").unlink(missing_ok=True)
    (shop / "embeddings" / ".turn").mkdir()
    with embeddings.held(shop, alone=True):
        assert not _free(shop / "embeddings" / ".lock")
    with embeddings.held(shop, alone=False):
        assert not _free(shop / "embeddings" / ".lock")


def _free(path):
    """Whether nobody has locked a file."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _refused(monkeypatch):
    monkeypatch.setattr(embeddings, "_TABLES", (*embeddings._TABLES, "CREATE TABLE again"))
    return StoreError


def _no_room(monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))
    monkeypatch.callback = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return StoreFull


@pytest.mark.parametrize("trouble", [_refused, _no_room])
def test_a_file_that_could_not_be_made_is_not_there(peopled, repo, client, trouble, monkeypatch):
    shop, keys = peopled
    there = sorted(path.name for path in (shop / "embeddings").iterdir())
    with monkeypatch.context() as patched:
        patched.callback = lambda: None
        error = trouble(patched)
        try:
            with pytest.raises(error):
                ahead.embed(shop, cases.models(repo, client), 2)
        finally:
            patched.callback()
    left = {path.name for path in (shop / "embeddings").iterdir()} - set(there)
    assert left <= {".lock", ".turn"}
    with Store.open(shop, mode="w") as store:
        assert store.verify() == []
        assert not store.erase("freelancer", ["victim"]).incomplete
    assert ahead.embed(shop, cases.models(repo, client), 2).sent
    assert keys["victim"] not in keys_in(embeddings.paths(shop)[1])


def test_a_kept_copy_of_a_file_that_was_being_made_is_no_file(shop, repo, client):
    """A process was killed while it made one."""
    path = embeddings.path_of(shop, cases.models(repo).encoder(2).content_hash)
    path.with_name(f".{path.name}.new").write_bytes(b"half")
    with Store.open(shop, mode="w") as store:
        assert store.verify() == []
    ahead.embed(shop, cases.models(repo, client), 2)
    check_file(path)
    assert not path.with_name(f".{path.name}.new").exists()


def test_kept_epochs_keep_the_texts_that_they_show(shop, repo, client):
    said, now = person("p-1", "said before"), person("p-1", "said now")
    with Store.open(shop, mode="w", models=cases.models(repo, client), retain_s=0.0) as store:
        store.upsert("freelancer", said)
        with store.keep("nightly"):
            store.upsert("freelancer", now)
            store.compact(everything=True)
            assert {key_of(said), key_of(now)} <= keys_in(embeddings.paths(shop)[0])
        store.compact(everything=True)
        store.compact(everything=True)
        left = keys_in(embeddings.paths(shop)[0])
        assert key_of(said) not in left
        assert key_of(now) in left
        assert store.verify() == []
    assert len(answers(shop)) == len(JOBS)


def test_tidying_leaves_writes_under_way_alone(shop, repo, client):
    """A text that was encoded, and whose record is not committed yet."""
    late = person("late", "not there yet")
    with Store.open(shop, mode="w", models=cases.models(repo, client)) as store:
        writer = store._writing()
        (path,) = embeddings.paths(shop)
        with writer.ahead(late):
            assert key_of(late) in keys_in(path)
            sweep(writer)
            assert key_of(late) in keys_in(path)
        assert sweep(writer)[0] == 1
        assert key_of(late) not in keys_in(path)


def test_tidying_under_writes_loses_nothing(shop, repo, client):
    done, failed = threading.Event(), []
    with Store.open(shop, mode="w", models=cases.models(repo, client)) as store:

        def write():
            n = 0
            while not done.is_set():
                try:
                    store.upsert("freelancer", person(f"w-{n}", f"text {n}"))
                    with store.bulk("freelancer") as bulk:
                        bulk.write(person(f"b-{n}", f"other text {n}"))
                except Exception as error:
                    failed.append(error)
                    return
                n += 1

        thread = threading.Thread(target=write)
        thread.start()
        for _ in range(6):
            sweep(store._writing())
        done.set()
        thread.join()
        assert failed == []
        assert store.verify() == []


def test_a_reader_that_holds_the_log_is_said(peopled):
    shop, keys = peopled
    (path,) = embeddings.paths(shop)
    with Store.open(shop, mode="w") as store:
        from matchwright.engine.store import erase

        with opened(path, write=False) as file, file.look() as connection:
            connection.execute("SELECT count(*) FROM embedding").fetchone()
            tries, erase._TRIES = erase._TRIES, 1
            try:
                done = store.erase("freelancer", ["victim"])
            finally:
                erase._TRIES = tries
        assert done.incomplete
        assert [line for line in done.not_reached if path.name in line]
        done = store.erase("freelancer", ["victim"])
        assert not done.incomplete
    for file in path.parent.iterdir():
        assert keys["victim"] not in file.read_bytes()


def test_an_older_store_has_no_embeddings_and_misses_none(tmp_path):
    with Store.open(tmp_path / "s", mode="w", create=True) as store:
        store.upsert("freelancer", cases.records("freelancer", 5))
        assert store.erase("freelancer", ["f-0000001"]).embeddings == 0
        store.compact(everything=True)
        assert store.verify() == []
    assert not (tmp_path / "s" / "embeddings").exists()
    shutil.rmtree(tmp_path / "s")
