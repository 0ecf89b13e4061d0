"""Files of embeddings: what is there first stays, damage is named, a kill loses little."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import encoder_cases as cases
import numpy as np
import pytest

from matchwright.engine.errors import (
    InvalidArgument,
    ModelUnavailable,
    StoreDamaged,
    StoreFormat,
)
from matchwright.engine.generation.fixed import GRID
from matchwright.engine.store import Store, embeddings
from matchwright.engine.store import embeddings_ahead as ahead
from matchwright.engine.store.embeddings import EmbeddingCache, EmbeddingFile, pack, unpack
from matchwright.engine.store.embeddings_sweep import check_file

W = 96
HASH = "0123456789abcdef0123456789abcdef"


def keys(n, base=0):
    return [(base + i).to_bytes(16, "big") for i in range(n)]


def rows(n, seed=0):
    drawn = np.random.default_rng(seed).integers(-int(GRID), int(GRID) + 1, (n, W))
    return drawn.astype(np.int32)


@pytest.fixture
def path(tmp_path):
    return embeddings.path_of(tmp_path, HASH)


@pytest.fixture
def cache(path):
    with closing(EmbeddingCache(path, W, writable=True)) as made:
        yield made


def test_what_is_stored_comes_back_to_the_bit(cache):
    extremes = np.array([[int(GRID), -int(GRID), 0, 1] * (W // 4)], dtype=np.int32)
    some = np.concatenate([rows(1_200), extremes])
    cache.put(keys(1_201), some)
    found = cache.get(keys(1_300))
    assert len(found) == 1_201
    assert np.array_equal(np.stack([found[key] for key in keys(1_201)]), some)
    assert cache.missing(keys(5, base=1_199)) == set(keys(3, base=1_201))


def test_what_is_there_first_stays(cache):
    cache.put(keys(10), rows(10, seed=1))
    cache.put(keys(20), rows(20, seed=2))
    found = cache.get(keys(20))
    assert np.array_equal(np.stack([found[key] for key in keys(10)]), rows(10, seed=1))
    assert np.array_equal(np.stack([found[key] for key in keys(20)[10:]]), rows(20, seed=2)[10:])


def test_a_reader_needs_no_file_and_sees_one_that_comes(path, cache):
    with closing(EmbeddingCache(path, W, writable=False)) as reader:
        assert reader.get(keys(3)) == {}
        assert reader.missing(keys(3)) == set(keys(3))
        assert not path.exists(), "a reader makes none"
        cache.put(keys(2), rows(2))
        assert set(reader.get(keys(3))) == set(keys(2))
        cache.put(keys(3), rows(3))
        assert set(reader.get(keys(3))) == set(keys(3))


def test_a_reader_goes_on_with_a_file_that_was_replaced(path, cache, tmp_path):
    cache.put(keys(5), rows(5))
    with closing(EmbeddingCache(path, W, writable=False)) as reader:
        assert len(reader.get(keys(5))) == 5
        cache.close()
        other = embeddings.path_of(tmp_path / "other", HASH)
        other.parent.parent.mkdir()
        with closing(EmbeddingCache(other, W, writable=True)) as new:
            new.put(keys(3, base=4), rows(3, seed=9))
            with new.file().lend() as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.execute("PRAGMA journal_mode = DELETE")
        for end in ("-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
        other.rename(path)
        found = reader.get(keys(7))
        assert set(found) == set(keys(7)), "the old ones from the old file, new from the new"
        assert np.array_equal(found[keys(5)[4]], rows(5)[4])


def _store_many(path, seed):
    with closing(EmbeddingCache(Path(path), W, writable=True)) as cache:
        for low in range(0, 200, 10):
            cache.put(keys(10, base=low), rows(10, seed=seed * 1_000 + low))


def test_processes_that_store_the_same_at_once_agree(path, cache):
    context = multiprocessing.get_context("spawn")
    made = [context.Process(target=_store_many, args=(str(path), seed)) for seed in (1, 2)]
    for process in made:
        process.start()
    for process in made:
        process.join(60)
        assert process.exitcode == 0
    found = cache.get(keys(200))
    assert len(found) == 200
    for low in range(0, 200, 10):
        block = np.stack([found[key] for key in keys(10, base=low)])
        assert any(np.array_equal(block, rows(10, seed=s * 1_000 + low)) for s in (1, 2))


# ── Damage ────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_value_is_named(path, cache):
    cache.put(keys(30), rows(30))
    cache.close()
    check_file(path)
    with closing(sqlite3.connect(path)) as connection:
        (value,) = connection.execute("SELECT value FROM embedding WHERE n = 7").fetchone()
        wrong = bytearray(value)
        wrong[40] ^= 1
        connection.execute("UPDATE embedding SET value = ? WHERE n = 7", (bytes(wrong),))
        connection.commit()
    with pytest.raises(StoreDamaged, match=HASH):
        cache.get(keys(30))
    with pytest.raises(StoreDamaged, match="matchwright embed"):
        check_file(path)


def test_a_value_under_another_key_is_damage():
    (row,) = rows(1)
    path = Path("x.sqlite")
    assert np.array_equal(unpack(b"a" * 16, pack(b"a" * 16, row), W, path), row)
    for key, value, width in (
        (b"b" * 16, pack(b"a" * 16, row), W),
        (b"a" * 16, pack(b"a" * 16, row), W - 1),
        (b"a" * 16, pack(b"a" * 16, row)[:-1], W),
        (b"a" * 16, "text", W),
        (None, None, W),
    ):
        with pytest.raises(StoreDamaged):
            unpack(key, value, width, path)


def test_every_flipped_byte_is_seen_or_harmless(path, cache, count):
    """Flipped anywhere: the same values, an error that names the file, or a value not found."""
    cache.put(keys(40), rows(40))
    with cache.file().lend() as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cache.close()
    whole = path.read_bytes()
    unnamed = []
    for at in np.random.default_rng(5).integers(0, len(whole), count(reduced=150, full=3_000)):
        wrong = bytearray(whole)
        wrong[at] ^= 0x41
        path.write_bytes(wrong)
        try:
            with closing(EmbeddingCache(path, W, writable=False)) as reader:
                found = reader.get(keys(40))
        except (StoreDamaged, StoreFormat) as error:
            unnamed += [] if HASH in str(error) else [str(error)]
            continue
        finally:
            for end in ("-wal", "-shm"):
                path.with_name(path.name + end).unlink(missing_ok=True)
        for n, key in enumerate(keys(40)):
            assert key not in found or np.array_equal(found[key], rows(40)[n])
    assert unnamed == []


def test_other_files_are_refused(path, cache, tmp_path):
    cache.put(keys(1), rows(1))
    with cache.file().lend() as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cache.close()
    other = embeddings.path_of(tmp_path, "f" * 32)
    shutil.copy(path, other)
    with pytest.raises(StoreDamaged, match="is of the encoder"):
        EmbeddingCache(other, W, writable=False).get(keys(1))
    with pytest.raises(StoreDamaged):
        EmbeddingCache(path, W + 1, writable=False).get(keys(1))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(StoreFormat, match="format 9"):
        EmbeddingCache(path, W, writable=True).get(keys(1))
    path.write_bytes(b"no database at all" * 500)
    with pytest.raises(StoreDamaged, match=HASH):
        EmbeddingCache(path, W, writable=False).get(keys(1))


# ── Ahead ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    return cases.repository(tmp_path_factory.mktemp("repo"), versions=2)


@pytest.fixture(scope="module")
def made_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "s"
    with Store.open(folder, mode="w", create=True) as made:
        made.upsert("job", cases.records("job", 40))
        made.upsert("freelancer", cases.records("freelancer", 120))
    return folder


@pytest.fixture
def store(tmp_path, made_store):
    return shutil.copytree(made_store, tmp_path / "s")


def test_embedding_ahead_sends_each_text_once(store, repo):
    client = cases.FakeTriton()
    told = []
    with cases.models(repo, client) as models:
        done = ahead.embed(store, models, 1, lambda n, of: told.append((n, of)))
    assert done.records == 160
    assert done.sent == len(client.sent) == len(set(client.sent))
    assert told[0] == (0, 160)
    assert told[-1] == (160, 160)
    assert told == sorted(told)
    with cases.models(repo, client) as models:
        assert ahead.embed(store, models, 1).sent == 0
    assert client.closed


def test_a_refit_after_it_sends_nothing_and_gives_the_same(store, repo):
    client = cases.FakeTriton(noise=1e-3)
    ahead.embed(store, cases.models(repo, client), 1)
    sent = len(client.sent)
    client.away = True
    with Store.open(store, mode="w", models=cases.models(repo, client)) as opened:
        opened.refit(seed=1, sample=500, as_of=cases.AS_OF, encoder="served", encoder_version=1)
        assert opened.generation.manifest.text.encoder == "served"
        assert opened.verify() == []
    assert len(client.sent) == sent


def test_it_runs_beside_a_writer(store, repo):
    """Writes of another process go on; what they bring is encoded by the next pass."""
    client = cases.FakeTriton()
    with Store.open(store, mode="w") as writer:
        client.before = lambda: writer.upsert("freelancer", cases.records("freelancer", 130))
        ahead.embed(store, cases.models(repo, client))
        client.before = lambda: None
        assert ahead.embed(store, cases.models(repo, client)).records == 170
    assert ahead.embed(store, cases.models(repo, client)).sent == 0


def test_what_was_made_ahead_survives_writers_and_goes_in_time(store, repo, monkeypatch):
    ahead.embed(store, cases.models(repo, cases.FakeTriton()), 2)
    (path,) = embeddings.paths(store)
    with Store.open(store, mode="w") as opened:
        opened.upsert("job", cases.records("job", 45))
        opened.compact(everything=True)
    assert path.exists()
    monkeypatch.setattr(embeddings, "AHEAD_S", -1.0)
    with Store.open(store, mode="w"):
        pass
    assert embeddings.paths(store) == []


def test_it_needs_texts_a_repository_and_a_server(tmp_path, store, repo):
    with pytest.raises(ModelUnavailable, match="no Triton server is configured"):
        ahead.embed(store, cases.models(repo), 1)
    with Store.open(tmp_path / "bare", mode="w", create=True, keep_text=False):
        pass
    with pytest.raises(Exception, match="does not keep texts"):
        ahead.embed(tmp_path / "bare", cases.models(repo, cases.FakeTriton()))
    with (
        Store.open(store, mode="w") as opened,
        pytest.raises(InvalidArgument, match="--models"),
    ):
        opened.refit(seed=1, sample=5, as_of=cases.AS_OF, encoder="served")


CHILD = """
import sys, threading
sys.path.insert(0, sys.argv[3])
import encoder_cases as cases
from pathlib import Path
from matchwright.engine.models import encoder
from matchwright.engine.store import embeddings_ahead as ahead
encoder.STORED_AT_ONCE = 20
from matchwright.engine.models import embedding
embedding.ROWS_MAX = 10
client = cases.FakeTriton()
told = threading.Event()
client.before = lambda: told.is_set() and threading.Event().wait()
def tell(done, of):
    if done >= 40:
        told.set()  # who is asked from now on gets no answer: it does not end by itself
    print(done, flush=True)
ahead.embed(Path(sys.argv[1]), cases.models(Path(sys.argv[2]), client), 1, tell)
"""


def test_killed_it_goes_on_from_what_was_stored(store, repo):
    """What the killed process had told of is not sent again."""
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", CHILD, str(store), str(repo), here]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if int(line) >= 40:
                os.kill(child.pid, signal.SIGKILL)
                break
        child.wait(30)
    assert child.returncode == -signal.SIGKILL
    (path,) = embeddings.paths(store)
    check_file(path)
    with closing(EmbeddingFile(path, 128, write=False)) as file:
        kept = file.count()
    assert kept >= 20
    client = cases.FakeTriton()
    done = ahead.embed(store, cases.models(repo, client), 1)
    assert 0 < done.sent == len(client.sent)
    with closing(EmbeddingFile(path, 128, write=False)) as file:
        assert file.count() == kept + done.sent


def test_threads_may_ask_at_once(store, repo):
    client = cases.FakeTriton(noise=1e-3)
    texts = ahead.Embeddings(store, cases.models(repo, client), write=True)
    encoder = texts.of(texts.artefact(1))
    asked = [f"text {n}" for n in range(60)]
    made = []

    def ask(seed):
        order = np.random.default_rng(seed).permutation(60)
        rows = encoder.encode([asked[n] for n in order])
        made.append(rows[np.argsort(order)].tobytes())

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts.close()
    assert len(made) == 6
    assert len(set(made)) == 1
