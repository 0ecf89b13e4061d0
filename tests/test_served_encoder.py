"""A served encoder without a store: rotation, batches, the grid, what is kept and what is said."""

from __future__ import annotations

import threading
import time

import encoder_cases as cases
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchwright.engine.errors import InvalidArgument, ModelLate, ModelUnavailable, ModelWrong
from matchwright.engine.generation import fit, starter
from matchwright.engine.generation.fitting import check_width
from matchwright.engine.generation.fixed import (
    GRID,
    Rotation,
    blocks_of,
    hadamard,
    sign_row,
    unit,
)
from matchwright.engine.generation.generation import Generation
from matchwright.engine.models.embedding import BATCH_TOKENS, ROWS_MAX
from matchwright.engine.models.encoder import ServedEncoder
from matchwright.engine.prose import TEXT_DIGEST, Prose, plain, prose, text_digest
from matchwright.engine.table import FrameTable, RowTable

WIDTHS = (96, 192, 320, 384, 448, 640, 768)


class Memory:
    """A cache in memory, with the store's promise: what is there first stays."""

    def __init__(self, writable=True):
        self.writable = writable
        self.rows = {}

    def get(self, keys):
        return {key: self.rows[key] for key in keys if key in self.rows}

    def missing(self, keys):
        return set(keys) - set(self.rows)

    def put(self, keys, rows):
        assert self.writable
        for key, row in zip(keys, rows, strict=True):
            self.rows.setdefault(key, row)


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    return cases.repository(tmp_path_factory.mktemp("repo"))


@pytest.fixture
def client():
    return cases.FakeTriton()


@pytest.fixture
def encoder(repo, client):
    return made(repo, client)


def made(repo, client, cache=None, timeout_s=1.0):
    artefact = cases.models(repo, client).encoder()
    return ServedEncoder(
        artefact.content_hash,
        artefact.dimensions,
        Memory() if cache is None else cache,
        lambda: cases.model(repo, client),
        timeout_s,
    )


def texts(n, seed=0):
    rng = np.random.default_rng(seed)
    words = ["sql", "rust", "design", "logo", "tax", "audit", "go", "video", "seo", "data"]
    return [" ".join(rng.choice(words, rng.integers(1, 60)).tolist()) + f" {n}" for n in range(n)]


# ── Rotation ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", WIDTHS)
def test_a_rotation_of_any_width_is_orthogonal(width):
    rotate = Rotation(width, 7, "text")
    raw = unit(np.random.default_rng(width).normal(size=(60, width)))
    v = rotate(raw)
    assert np.array_equal(v, np.rint(v))
    exact = (raw @ raw.T) / GRID**2
    assert np.abs((v @ v.T) / GRID**2 - exact).max() <= (np.sqrt(width) + 1) / GRID


@pytest.mark.parametrize("width", WIDTHS)
def test_a_rotation_of_any_width_is_exact_in_integers(width):
    """Against Python integers: M = kron(m I - 2 J, H_b) diag(sign)."""
    odd, block = blocks_of(width)
    sign = sign_row(width, 7, "text").astype(int).tolist()
    raw = unit(np.random.default_rng(1).normal(size=(1, width)))[0].astype(int).tolist()
    got = Rotation(width, 7, "text")(np.array([raw], dtype=np.float64))[0]
    for j in (0, 1, width // 2, width - 1):
        total = 0
        for k in range(width):
            mixed = odd - 2 if k // block == j // block else -2
            walsh = (-1) ** ((k % block) & (j % block)).bit_count()
            total += raw[k] * sign[k] * mixed * walsh
        assert abs(total) < 2**53
        assert got[j] == np.rint(total / (odd * np.sqrt(np.float64(block))))


@pytest.mark.parametrize("width", [2, 8, 16, 128, 256])
def test_powers_of_two_are_rotated_as_ever(width):
    raw = unit(np.random.default_rng(2).normal(size=(20, width)))
    before = np.rint(
        raw @ (sign_row(width, 3, "text")[:, None] * hadamard(width)) / np.sqrt(float(width))
    )
    assert Rotation(width, 3, "text")(raw).tobytes() == before.tobytes()


@pytest.mark.parametrize(("width", "beside"), [(384, 512), (768, 512), (320, 256)])
def test_other_widths_spread_nearly_as_well(width, beside):
    """Largest entry over the even one (1 / sqrt(width)), for texts and for the worst of blocks."""

    def spikiness(w, of):
        raw = of(w, np.random.default_rng(w))
        v = Rotation(w, 1, "text")(raw) / GRID * np.sqrt(w)
        return float(np.quantile(np.abs(v), 0.9999)), float(np.abs(v).max(axis=1).mean())

    def dense(w, rng):
        return unit(rng.normal(size=(400, w)))

    def third(w, rng):
        rows = rng.normal(size=(400, w))
        rows[:, w // 3 :] *= 0.01
        return unit(rows)

    def single(w, rng):
        return np.eye(w) * GRID

    for of, most in ((dense, 1.1), (third, 1.25), (single, 1.4)):
        ours, theirs = spikiness(width, of), spikiness(beside, of)
        assert ours[0] <= most * theirs[0], (of.__name__, ours, theirs)
        assert ours[1] <= most * theirs[1], (of.__name__, ours, theirs)


@pytest.mark.parametrize("width", [0, 312, 300, 9 * 64, 11])
def test_widths_that_would_not_mix_are_refused(width):
    with pytest.raises(ValueError, match=f"width {width}"):
        Rotation(width, 1, "text")


def test_an_encoder_that_does_not_fit_is_refused():
    for width in (384, 640, 768):
        check_width(width)
    with pytest.raises(InvalidArgument, match="1024 dimensions and the other facets 256; at most"):
        check_width(1_024)
    with pytest.raises(InvalidArgument, match="312"):
        check_width(312)


def test_unit_of_wide_rows_stays_exact():
    rows = np.random.default_rng(0).normal(size=(50, 1_024)).astype(np.float32)
    exact = rows / np.linalg.norm(rows.astype(np.float64), axis=1)[:, None]
    assert np.abs(unit(rows.astype(np.float64)) / GRID - exact).max() < 2e-6


# ── Keys ──────────────────────────────────────────────────────────────────────────────────────


def test_keys_agree_between_frames_and_rows_and_need_no_text():
    for kind in ("job", "freelancer"):
        frame = cases.records(kind, 40, seed=3)
        rows = list(frame.iter_rows(named=True))
        of_frame, of_rows = FrameTable(frame).keyed_prose(30), RowTable(rows).keyed_prose(30)
        assert of_frame == of_rows
        assert [one.text for one in of_frame] == FrameTable(frame).prose(30).to_list()
        bare = [{**row, "text": None, TEXT_DIGEST: text_digest(row["text"] or "")} for row in rows]
        without = RowTable(bare).keyed_prose(30)
        assert [one.key for one in without] == [one.key for one in of_rows]
        assert all(one.text is None for one, row in zip(without, rows, strict=True) if row["text"])


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))))
def test_a_key_names_one_text(parts):
    named = {}
    for title, text, skills in parts:
        one = prose(title, text, skills)
        assert named.setdefault(one.key, (title, text, skills)) == (title, text, skills)


def test_blank_records_have_nothing_to_read():
    assert prose(None, None, "").blank
    assert prose("", b"", "").blank is False, "a digest is of some text"
    assert prose(None, text_digest(""), "").blank
    assert not prose("a", None, "").blank


# ── Batches ───────────────────────────────────────────────────────────────────────────────────


def test_batches_hold_texts_of_like_length_within_bounds(repo, client):
    model = cases.model(repo, client)
    some = texts(700)
    batches = model.batches(some, 100)
    assert sorted(np.concatenate([batch.at_n for batch in batches]) - 100) == list(range(700))
    for batch in batches:
        n, longest = batch.ids_nt.shape
        assert n <= ROWS_MAX
        assert n == 1 or n * longest <= BATCH_TOKENS
        assert batch.mask_nt.sum(axis=1).max() == longest
    padding = 1 - sum(b.mask_nt.sum() for b in batches) / sum(b.mask_nt.size for b in batches)
    assert padding < 0.2, "unsorted it is about a half"


def test_long_texts_are_cut(repo, client):
    model = cases.model(repo, client)
    (batch,) = model.batches(["word " * 5_000], 0)
    assert batch.ids_nt.shape == (1, model.artefact.max_tokens)


def test_calls_are_in_flight_together(repo, client):
    came, two = [], threading.Event()

    def before():
        came.append(threading.current_thread().name)
        if len(came) == 2:
            two.set()
        assert two.wait(30), "the first call waits for the second"

    client.before = before
    cases.model(repo, client).embed(texts(600), time.monotonic() + 60)
    assert len(client.calls) > 3


# ── The grid ──────────────────────────────────────────────────────────────────────────────────


def test_rows_come_at_length_one_on_the_grid(repo, client):
    rows = cases.model(repo, client).embed(texts(50), time.monotonic() + 60)
    assert rows.dtype == np.int32
    assert np.abs(np.linalg.norm(rows / GRID, axis=1) - 1).max() < 1e-5
    assert np.abs(rows).max() <= GRID


def test_what_is_stored_is_what_the_model_said_to_1e_5(repo):
    client = cases.FakeTriton()
    said = {}

    def answer(ids_nt, mask_nt):
        rows = np.stack([client._row(REF, i[m > 0]) for i, m in zip(ids_nt, mask_nt, strict=True)])
        said["rows"] = rows.astype(np.float32)
        return said["rows"]

    client.answer = answer
    rows = cases.model(repo, client).embed(["a text about sql"], time.monotonic() + 60)
    assert np.abs(rows / GRID - said["rows"]).max() < 1e-6


class REF:
    version = 1


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda n: np.full((n, 128), np.nan, np.float32), "NaN"),
        (lambda n: np.full((n, 128), np.inf, np.float32), "infinity"),
        (lambda n: np.zeros((n, 128), np.float32), "zeros"),
        (lambda n: np.ones((n, 127), np.float32), "127"),
        (lambda n: np.ones((n + 1, 128), np.float32), "expected float32"),
        (lambda n: np.ones((n, 128)), "float64"),
        (lambda n: None, "NoneType"),
    ],
)
def test_wrong_output_is_an_error_and_nothing_is_stored(repo, client, encoder, answer, why):
    client.answer = lambda ids, mask: answer(len(ids))
    with pytest.raises(ModelWrong, match=why):
        encoder.ensure([plain(text) for text in texts(3)])
    with pytest.raises(ModelWrong, match="encoder:1"):
        encoder.encode(texts(3))
    raw, missing = encoder.look([plain("x y")], None)
    assert set(missing.values()) == {"ENCODER_WRONG_OUTPUT"}
    assert not raw.any()
    assert not encoder._cache.rows


# ── Once ──────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 30))
def test_the_same_text_gives_the_same_bytes_in_any_batch_and_order(repo, seed, cut):
    """With a model whose rows depend on their batch, as those of floats do."""
    client = cases.FakeTriton(noise=1e-3)
    encoder = made(repo, client)
    some = texts(30, seed)
    whole = encoder.encode(some)
    order = np.random.default_rng(seed).permutation(30)
    for part in (order[:cut], order[cut:]):
        if part.size:
            assert encoder.encode([some[n] for n in part]).tobytes() == whole[part].tobytes()
    assert encoder.encode(pl.Series(some)).tobytes() == whole.tobytes()
    assert len(client.sent) == 30
    other = made(repo, cases.FakeTriton(noise=1e-3))
    assert not np.array_equal(other.encode(some[::-1])[::-1], whole), "the noise is seen"


def test_a_second_pass_sends_nothing(client, encoder):
    prose_ = [plain(text) for text in [*texts(200), *texts(200), "", " \n "]]
    told = []
    sent = encoder.ensure(prose_, tell=lambda done, total: told.append((done, total)))
    assert sent.texts == len(client.sent) == 200
    assert sent.seconds > 0
    assert told[-1] == (200, 200)
    assert encoder.ensure(prose_) == type(sent)()
    encoder.encode_prose(prose_)
    assert len(client.sent) == 200


def test_blank_texts_are_zeros_and_never_sent(client, encoder):
    assert not encoder.encode(["", " ", "\n\n\n"]).any()
    assert client.sent == []


def test_a_text_that_is_not_kept_is_found_by_its_key(client, encoder):
    whole = prose("Title", "the text", "sql")
    rows = encoder.encode_prose([whole])
    client.away = True
    bare = prose("Title", text_digest("the text"), "sql")
    assert bare.text is None
    assert encoder.encode_prose([bare]).tobytes() == rows.tobytes()
    gone = Prose(b"0" * 16, None)
    with pytest.raises(ModelUnavailable, match="not kept"):
        encoder.encode_prose([gone])
    raw, missing = encoder.look([bare, gone, plain("")], None)
    assert missing == {1: "ENCODER_TEXT_NOT_KEPT"}
    assert raw[0].tobytes() == rows[0].tobytes()


# ── Away ──────────────────────────────────────────────────────────────────────────────────────


def test_a_write_waits_for_a_server_that_comes_back(client, encoder):
    tries = []

    def before():
        tries.append(time.monotonic())
        client.away = len(tries) < 3

    client.before = before
    sent = encoder.ensure([plain(text) for text in texts(5)], wait_s=20)
    assert sent.texts == 5
    assert len(tries) == 3
    assert sent.seconds >= tries[-1] - tries[0] >= 0.3


def test_a_write_gives_up_after_its_time(client, encoder):
    client.away = True
    began = time.monotonic()
    with pytest.raises(ModelUnavailable):
        encoder.ensure([plain("a b")], wait_s=0.3)
    assert 0.3 <= time.monotonic() - began < 5


def test_what_came_before_the_server_went_is_kept(repo, client, encoder):
    some = [plain(text) for text in texts(900)]

    def before():
        client.away |= len(client.calls) >= 4

    client.before = before
    with pytest.raises(ModelUnavailable):
        encoder.ensure(some)
    kept = len(encoder._cache.rows)
    assert 0 < kept < 900
    client.before, client.away = (lambda: None), False
    sent = len(client.sent)
    assert encoder.ensure(some).texts == 900 - kept
    assert len(client.sent) - sent == 900 - kept


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (ModelUnavailable("x", why="BREAKER_OPEN"), "ENCODER_BREAKER_OPEN"),
        (ModelUnavailable("x", why="UNREACHABLE"), "ENCODER_UNREACHABLE"),
        (ModelUnavailable("x", why="NOT_READY"), "ENCODER_NOT_READY"),
        (ModelUnavailable("x", why="NOT_CONFIGURED"), "ENCODER_NOT_CONFIGURED"),
        (ModelLate("x"), "ENCODER_LATE"),
    ],
)
def test_a_query_says_why_it_goes_without(repo, client, raised, reason):
    encoder = made(repo, client, Memory(writable=False))

    def before():
        raise raised

    client.before = before
    raw, missing = encoder.look([plain("a"), plain(""), plain("b")], None)
    assert missing == {0: reason, 2: reason}
    assert not raw.any()


def test_a_query_remembers_inline_texts_without_storing_them(repo, client):
    cache = Memory(writable=False)
    encoder = made(repo, client, cache)
    raw, missing = encoder.look([plain("a b c")], time.monotonic() + 5)
    assert missing == {}
    assert raw.any()
    assert not cache.rows
    again, _ = encoder.look([plain("a b c")], None)
    assert again.tobytes() == raw.tobytes()
    assert len(client.sent) == 1


def test_a_text_that_failed_a_moment_ago_is_not_waited_for_again(repo, client, monkeypatch):
    encoder = made(repo, client, Memory(writable=False))
    client.away = True
    assert encoder.look([plain("a")], None)[1] == {0: "ENCODER_UNREACHABLE"}
    client.away = False
    assert encoder.look([plain("a")], None)[1] == {0: "ENCODER_UNREACHABLE"}
    assert client.sent == []
    later = time.monotonic() + 1.5
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert encoder.look([plain("a")], later + 5)[1] == {}


def test_the_deadline_of_a_request_goes_along(repo):
    seen = []

    class Client(cases.FakeTriton):
        def infer_blocking(self, ref, inputs, outputs, *, deadline):
            seen.append(deadline)
            return super().infer_blocking(ref, inputs, outputs, deadline=deadline)

    encoder = made(repo, Client(), Memory(writable=False), timeout_s=7.0)
    until = time.monotonic() + 3.25
    encoder.look([plain("a")], until)
    encoder.look([plain("b")], None)
    assert seen[0] == until
    assert 6 < seen[1] - time.monotonic() < 7


# ── In a generation ───────────────────────────────────────────────────────────────────────────


def test_a_generation_of_a_served_encoder(repo, client, encoder, tmp_path):
    jobs, people = cases.records("job", 60), cases.records("freelancer", 90)
    made_ = fit(jobs, people, seed=3, as_of=cases.AS_OF, encoder=encoder, version=4)
    text = made_.manifest.text
    assert (text.encoder, text.content_hash) == ("served", encoder.content_hash)
    assert (text.served.version, text.served.dimensions) == (4, 128)
    made_.save(tmp_path / "g")
    loaded = Generation.load(tmp_path / "g", lambda state: encoder)
    assert loaded.id == made_.id
    rows = made_.encode("freelancer", people)
    assert rows.known_nb[:, 0].all()
    assert loaded.encode("freelancer", people).x_nd.tobytes() == rows.x_nd.tobytes()
    assert len(client.sent) == len({one.key for one in keyed(jobs) + keyed(people)})
    alone = Generation.load(tmp_path / "g")
    with pytest.raises(ModelUnavailable, match=encoder.content_hash):
        alone.encode("freelancer", people)


def keyed(frame):
    return FrameTable(frame).keyed_prose(30)


def test_manifests_of_embedded_encoders_say_nothing_of_served_ones():
    assert b"served" not in starter().manifest.to_bytes()


def test_stored_rows_keep_the_cosine(repo, client, encoder):
    """Rotation and the int8 grid leave the text's cosine what the model said, nearly."""
    jobs, people = cases.records("job", 60), cases.records("freelancer", 90)
    made_ = fit(jobs, people, seed=3, as_of=cases.AS_OF, encoder=encoder)
    raw = encoder.encode_prose(keyed(people)) / GRID
    x_nw = made_.encode("freelancer", people).x_nd[:, :128] * made_.steps("freelancer")[0]
    assert np.abs(x_nw @ x_nw.T - raw @ raw.T).max() < 0.05
