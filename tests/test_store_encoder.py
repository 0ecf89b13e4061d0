"""A store whose texts a served encoder reads: refits, writes, queries, and when it is away."""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import itertools
import threading
import time

import encoder_cases as cases
import numpy as np
import polars as pl
import pytest
from encoder_cases import REFIT, client, made, repo, shop
from patience import until

from matchwright.engine import synthetic
from matchwright.engine.errors import InvalidArgument, ModelUnavailable, ModelWrong
from matchwright.engine.matcher import Matcher, Request
from matchwright.engine.models import embedding
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import encode_ahead
from matchwright.engine.store import Store, embeddings
from matchwright.engine.store.embeddings_sweep import opened
from matchwright.kernels.ops import Ops

AS_OF = cases.AS_OF
OPS = Ops(threads=1)
POLICY = Policy.parse(
    "\n".join(
        f"rules.{rule}.enabled = false"
        for rule in ("required_skills", "rate_ceiling", "rate_budget", "languages")
    )
)


def state(path):
    with Store.open(path) as store:
        return store.generation.manifest.text, store.snapshot().epoch


def ask(source, **of):
    return Matcher(source, OPS, POLICY).match(Request(as_of=AS_OF, k=10, **of))


def inline(n=0):
    """A record that nobody stored, without limits."""
    row = next(cases.records("job", 1, seed=77 + n).iter_rows(named=True))
    return {name: row[name] for name in ("id", "title", "text", "skills")}


def new(n, seed):
    """People whose ids and texts are new."""
    frame = cases.records("freelancer", n, seed=seed)
    ids = pl.Series("id", [f"new-{seed}-{i}" for i in range(n)])
    text = pl.Series("text", [f"nobody else says {seed} {i}" for i in range(n)])
    return frame.with_columns(ids, text)


# ── Refits ────────────────────────────────────────────────────────────────────────────────────


def test_the_generation_names_its_encoder(shop, repo, client):
    text, before = state(shop)
    artefact = cases.models(repo).encoder(1)
    assert (text.encoder, text.content_hash, text.width) == ("served", artefact.content_hash, 96)
    assert (text.served.version, text.served.dimensions) == (1, 96)
    with Store.open(shop, mode="w", models=cases.models(repo, client)) as store:
        store.refit(**REFIT)
        assert store.info()["encoder"]["version"] == 2
        assert store.verify() == []
    text, after = state(shop)
    assert text.content_hash == cases.models(repo).encoder(2).content_hash
    assert after.number == before.number + 1
    assert {call for call, _ in client.calls} == {"encoder:2"}


def test_a_refit_goes_back_to_the_embedded_encoder_and_drops_the_embeddings(shop):
    with Store.open(shop, mode="w", retain_s=0.0) as store:
        store.refit(seed=1, sample=500, as_of=AS_OF)
        assert store.generation.manifest.text.encoder in ("svd", "hashed")
        store.seal()
    with Store.open(shop, mode="w", retain_s=0.0):
        pass
    assert embeddings.paths(shop) == []
    with Store.open(shop) as store:
        assert store.verify() == []


def test_two_encoders_are_never_mixed(shop, repo, client):
    """Every row of a generation is what its own encoder makes of the record, and no other's."""
    with Store.open(shop, mode="w", models=cases.models(repo, client)) as store:
        first = store.snapshot()
        store.refit(**REFIT)
        store.upsert("freelancer", new(5, 1))
        second = store.snapshot()
        for snapshot in (first, second):
            for kind in ("job", "freelancer"):
                people = snapshot.corpus(kind)
                names = snapshot.ids_of(kind, np.arange(people.n))
                again = snapshot.generation.encode(kind, snapshot.records(kind, names)).x_nd
                assert np.array_equal(np.concatenate([s.x_nd for s, _ in people.parts]), again)
        assert first.generation.encoder is not second.generation.encoder
        assert len(embeddings.paths(shop)) == 2


def test_a_failed_refit_leaves_everything_and_the_next_goes_on(shop, repo, client):
    before = state(shop)
    client.before = lambda: setattr(client, "away", len(client.calls) >= 1)
    with Store.open(shop, mode="w", models=cases.models(repo, client)) as store:
        with pytest.raises(ModelUnavailable):
            store.refit(**REFIT)
        assert state(shop) == before
        assert store.verify() == []
    sent = len(client.sent)
    assert sent > 0
    client.before, client.away = (lambda: None), False
    with Store.open(shop, mode="w", models=cases.models(repo, client)) as store:
        store.refit(**REFIT)
    assert len(set(client.sent)) == len(client.sent), "what was stored was not sent again"


def test_an_encoder_that_does_not_fit_is_refused_before_anything_is_sent(shop, tmp_path, client):
    wide = cases.repository(tmp_path / "wide", dimensions=1_024)
    with (
        Store.open(shop, mode="w", models=cases.models(wide, client)) as store,
        pytest.raises(InvalidArgument, match="1024 dimensions"),
    ):
        store.refit(**REFIT)
    assert client.calls == []


def test_a_switch_under_writes_and_reads(shop, repo, monkeypatch):
    """Writes and queries go on during a refit; nobody sees a mixture, nothing is lost."""
    monkeypatch.setattr(embedding, "ROWS_MAX", 8)
    slow = cases.FakeTriton(96)
    slow.before = lambda: time.sleep(0.01)
    done, failed, written = threading.Event(), [], []
    with Store.open(shop, mode="w", models=cases.models(repo, slow)) as store:

        def write(seed):
            for turn in itertools.count():
                if done.is_set():
                    return
                try:
                    people = new(2, 1_000 * seed + turn)
                    store.upsert("freelancer", people)
                    written.extend(people["id"].to_list())
                except Exception as error:
                    failed.append(error)
                    return

        def read():
            while not done.is_set():
                try:
                    snapshot = store.snapshot()
                    result = ask(snapshot, kind="job", id="j-0000003")
                    assert result.degraded == ()
                    assert result.generation == snapshot.generation.id
                except Exception as error:
                    failed.append(error)
                    return

        threads = [threading.Thread(target=write, args=(n,)) for n in (1, 2)]
        threads += [threading.Thread(target=read)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: failed or written, "a write")
            for version in (2, 1):
                store.refit(**REFIT, encoder_version=version)
        finally:
            done.set()
        for thread in threads:
            thread.join()
        assert failed == []
        assert len(written) >= 4
        snapshot = store.snapshot()
        assert (snapshot.rows_of("freelancer", written) >= 0).all()
        assert snapshot.generation.manifest.text.served.version == 1
        records = snapshot.records("freelancer", written)
        again = snapshot.generation.encode("freelancer", records).x_nd
        rows = snapshot.rows_of("freelancer", written)
        stored = np.concatenate([s.x_nd for s, _ in snapshot.corpus("freelancer").parts])
        assert np.array_equal(stored[rows], again)
        assert store.verify() == []


# ── Writes ────────────────────────────────────────────────────────────────────────────────────


def test_a_write_says_that_it_waited(shop, repo, client):
    client.before = lambda: time.sleep(0.05)
    with Store.open(shop, mode="w", models=cases.models(repo, client)) as store:
        assert store.upsert("freelancer", new(3, 1)).waited_s >= 0.05
        assert store.upsert("freelancer", new(3, 1)).waited_s == 0.0
        write = store.patch("freelancer", "new-1-0", {"title": "Another title"})
        assert write.waited_s >= 0.05
        assert store.patch("freelancer", "new-1-0", {"rate_cents": 4_200}).waited_s == 0.0
        assert store.delete("freelancer", ["new-1-2"]).waited_s == 0.0
        with store.bulk("freelancer") as bulk:
            bulk.write(new(20, 2))
        assert bulk.waited_s >= 0.05
        assert store.verify() == []
    assert len(client.sent) == 3 + 1 + 20


def test_a_write_without_the_encoder_is_refused_whole(shop, repo, client):
    client.away = True
    models = cases.models(repo, client, wait_ms=200)
    with Store.open(shop, mode="w", models=models) as store:
        before = store.snapshot().epoch
        began = time.monotonic()
        with pytest.raises(ModelUnavailable) as caught:
            store.upsert("freelancer", new(3, 1))
        assert 0.2 <= time.monotonic() - began < 10
        assert caught.value.exit_code == 5
        with pytest.raises(ModelUnavailable):
            store.patch("freelancer", "f-0000001", {"title": "Another"})
        with pytest.raises(ModelUnavailable), store.bulk("freelancer") as bulk:
            bulk.write(new(3, 2))
        assert store.snapshot().epoch == before
        assert (store.snapshot().rows_of("freelancer", ["new-1-0", "new-2-0"]) < 0).all()
        # What needs no new text goes on.
        assert store.patch("freelancer", "f-0000001", {"rate_cents": 4_200}).replaced == 1
        assert store.delete("freelancer", ["f-0000002"]).deleted == 1
        client.away = False
        assert store.upsert("freelancer", new(3, 1)).accepted == 3
        assert store.verify() == []


def test_a_bulk_chunk_that_was_refused_can_be_flushed_later(shop, repo, client):
    client.away = True
    with Store.open(shop, mode="w", models=cases.models(repo, client)) as store:
        with store.bulk("freelancer") as bulk:
            bulk.write(new(4, 3))
            with pytest.raises(ModelUnavailable):
                bulk.flush()
            client.away = False
        assert (store.snapshot().rows_of("freelancer", ["new-3-0", "new-3-3"]) >= 0).all()


def test_others_write_while_one_waits_for_the_encoder(shop, repo, client):
    """The writer's lock is not held over a call to the model."""
    inside, go = threading.Event(), threading.Event()

    def before():
        inside.set()
        assert go.wait(30)

    client.before = before
    with Store.open(shop, mode="w", models=cases.models(repo, client)) as store:
        thread = threading.Thread(target=store.upsert, args=("freelancer", new(1, 1)))
        thread.start()
        assert inside.wait(30)
        assert store.delete("freelancer", ["f-0000003"]).deleted == 1
        assert store.snapshot().rows_of("freelancer", ["new-1-0"])[0] < 0, "not visible before"
        go.set()
        thread.join()
        assert store.snapshot().rows_of("freelancer", ["new-1-0"])[0] >= 0


def test_wrong_output_refuses_the_write_at_once(shop, repo, client):
    client.answer = lambda ids, mask: np.full((len(ids), 96), np.nan, np.float32)
    with (
        Store.open(shop, mode="w", models=cases.models(repo, client, wait_ms=60_000)) as store,
        pytest.raises(ModelWrong),
    ):
        store.upsert("freelancer", new(1, 1))


def test_without_models_what_is_stored_can_be_read_and_patched(shop):
    with Store.open(shop, mode="w") as store:
        assert ask(store, kind="job", id="j-0000001").degraded == ()
        assert store.patch("freelancer", "f-0000001", {"rate_cents": 4_300}).replaced == 1
        with pytest.raises(ModelUnavailable, match=r"--models DIR.*--triton"):
            store.upsert("freelancer", new(1, 1))
        assert store.verify() == []
        assert "drift" in store.info()["kinds"]["job"]


def test_another_repository_is_named(shop, tmp_path, client):
    other = cases.repository(tmp_path / "other", dimensions=128)
    with (
        Store.open(shop, mode="w", models=cases.models(other, client)) as store,
        pytest.raises(ModelUnavailable, match="holds no encoder"),
    ):
        store.upsert("freelancer", new(1, 1))


# ── Queries ───────────────────────────────────────────────────────────────────────────────────


def test_stored_entities_ask_with_what_was_stored(shop, repo, client):
    """Not with what the model says today: it is another by a little."""
    client.noise = 1e-3
    with Store.open(shop, models=cases.models(repo, client)) as store:
        results = [ask(store, kind="job", id=f"j-{n:07}").digest() for n in range(1, 20)]
    with Store.open(shop) as store:
        assert [ask(store, kind="job", id=f"j-{n:07}").digest() for n in range(1, 20)] == results
    assert client.calls == []


def test_inline_texts_are_encoded(shop, repo, client):
    with Store.open(shop, models=cases.models(repo, client)) as store:
        first = ask(store, kind="job", record=inline())
        assert first.degraded == ()
        assert any(match.contributions["text"] for match in first)
        assert len(client.sent) == 1
        assert ask(store, kind="job", record=inline()).digest() == first.digest()
        assert len(client.sent) == 1
        with opened(embeddings.paths(shop)[0], write=False) as file:
            count = file.count()
    with Store.open(shop) as store, opened(embeddings.paths(shop)[0], write=False) as file:
        assert store.info()["encoder"]["embeddings"] == count == file.count(), "not stored"


@pytest.mark.parametrize(
    ("how", "reason"),
    [("away", "ENCODER_UNREACHABLE"), ("unset", "ENCODER_NOT_CONFIGURED"), ("nan", None)],
)
def test_without_the_encoder_the_answer_goes_without_the_text_and_says_so(
    shop, repo, client, how, reason
):
    client.away = how == "away"
    if how == "nan":
        client.answer = lambda ids, mask: np.full((len(ids), 96), np.nan, np.float32)
        reason = "ENCODER_WRONG_OUTPUT"
    models = None if how == "unset" else cases.models(repo, client)
    with Store.open(shop, models=models) as store:
        result = ask(store, kind="job", record=inline())
        assert result.degraded == (reason,)
        assert result.to_dict()["degraded"] == [reason]
        assert reason.encode() in result.canonical_bytes()
        assert {match.contributions["text"] for match in result} == {0}
        assert result.returned == 10
        # The same as if it had no text at all, but for the record's own key.
        bare = {k: v for k, v in inline().items() if k not in ("title", "text", "skills")}
        assert ask(store, kind="job", record=bare).degraded == ()
        # Who is stored is not touched, nor is a request that gives the text no weight.
        assert ask(store, kind="job", id="j-0000001").degraded == ()
        weights = {"text": 0.0, "skills": 1.0}
        assert ask(store, kind="job", record=inline(), weights=weights).degraded == ()


def test_a_batch_degrades_only_who_is_new(shop, client, repo):
    client.away = True
    with Store.open(shop, models=cases.models(repo, client)) as store:
        asked = [
            Request(kind="job", id="j-0000001", as_of=AS_OF),
            Request(kind="job", record=inline(), as_of=AS_OF),
            Request(kind="freelancer", id="f-0000004", as_of=AS_OF),
        ]
        results = Matcher(store, OPS, POLICY).match_many(asked)
    assert [bool(result.degraded) for result in results] == [False, True, False]


def test_texts_are_encoded_ahead_of_the_kernels(shop, repo, client):
    with Store.open(shop, models=cases.models(repo, client)) as store:
        asked = [Request(kind="job", record=inline(n), as_of=AS_OF) for n in range(5)]
        encode_ahead(store.snapshot(), asked, time.monotonic() + 10)
        assert len(client.calls) == 1
        client.away = True
        results = Matcher(store, OPS, POLICY).match_many(asked)
        assert [result.degraded for result in results] == [()] * 5


def test_an_explanation_of_a_stored_pair_needs_no_server(shop):
    with Store.open(shop) as store:
        matcher = Matcher(store, OPS, POLICY)
        said = matcher.explain("j-0000001", "f-0000001", as_of=AS_OF)
        assert "text" in {share.name for share in said.contributions}
        matcher.explain(inline(), "f-0000001", as_of=AS_OF)


# ── Texts that are not kept ───────────────────────────────────────────────────────────────────


def test_a_store_without_texts_answers_with_the_embeddings_of_its_texts(
    tmp_path, repo, client, made
):
    with Store.open(
        tmp_path / "bare",
        mode="w",
        create=True,
        keep_text=False,
        salt=cases.SALT,
        models=cases.models(repo, client),
    ) as store:
        store.refit(**REFIT, encoder_version=1)
        store.upsert("job", cases.records("job", 30))
        store.upsert("freelancer", cases.records("freelancer", 150))
        sent = len(client.sent)
        client.away = True
        result = ask(store, kind="job", id="j-0000001")
        assert result.degraded == ()
        record = next(
            row
            for row in cases.records("job", 30).iter_rows(named=True)
            if row["id"] == "j-0000001"
        )
        client.away = False
        whole = ask(store, kind="job", record={k: v for k, v in record.items() if v is not None})
        assert result.points.tolist() == whole.points.tolist()
        # A patch carries the text's part along, without its text and without the server, even
        # where it spells skills in our way, which nobody did before.
        raw = synthetic.frame("freelancer", 160, seed=5).tail(5)
        store.upsert("freelancer", raw)
        client.away = True
        for name in ["f-0000001", *raw["id"].to_list()]:
            row = store.snapshot().rows_of("freelancer", [name])
            assert store.patch("freelancer", name, {"rate_cents": 4_300}).replaced == 1
            assert ask(store, kind="freelancer", id=name).degraded == ()
            assert store.snapshot().rows_of("freelancer", [name]) != row
        assert store.verify() == []
        assert len(client.sent) == sent + 5, "an inline text that is stored is not sent"
        with pytest.raises(Exception, match="does not keep texts"):
            store.refit(**REFIT)
