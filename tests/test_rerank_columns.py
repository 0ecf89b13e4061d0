"""Records read by column, for hundreds of candidates at once: the same as one row after another."""

from __future__ import annotations

import functools

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from market_cases import AS_OF, KINDS, SALT
from messy_cases import TEXTS, N, messy
from rerank_cases import NAMES, LightMarket, wider_policy
from rerank_referee import features_of_pair

from matchwright.engine.columns import name_hash
from matchwright.engine.errors import StoreDamaged
from matchwright.engine.generation.plain import PLAIN, PLAIN_FROM
from matchwright.engine.generation.text import SvdEncoder, tokens
from matchwright.engine.matcher import OTHER, Matcher, Request
from matchwright.engine.records import to_frame
from matchwright.engine.rerank.features import SKILLS_MAX, UNKNOWN
from matchwright.engine.rerank.features_pairs import FeatureMaker
from matchwright.engine.rerank.features_rows import FACTS, READ, facts_of
from matchwright.engine.rerank.features_rows import UNKNOWN as NOT_KNOWN
from matchwright.engine.store import Store, blobs
from matchwright.engine.store.encode import default_neighbours
from matchwright.engine.store.read_columns import reader_of
from matchwright.engine.table import RowTable
from matchwright.kernels.ops import Ops

OPS = Ops(threads=1)
EVERY = wider_policy().without_rerank()


@functools.cache
def frames():
    return {kind: to_frame(kind, messy(kind).to_dicts()) for kind in KINDS}


def opened(folder, keep_text):
    with Store.open(folder, mode="w", create=True, salt=SALT, keep_text=keep_text) as store:
        for kind in KINDS:
            store.upsert(kind, frames()[kind])
        yield store.snapshot()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A snapshot of records with their texts."""
    yield from opened(tmp_path_factory.mktemp("kept"), keep_text=True)


@pytest.fixture(scope="module")
def digests(tmp_path_factory):
    """A snapshot of records with digests of their texts."""
    yield from opened(tmp_path_factory.mktemp("digests"), keep_text=False)


@pytest.fixture(params=["kept", "digests"])
def snapshot(request):
    return request.getfixturevalue(request.param)


class RowWise:
    """A snapshot that reads records only one by one."""

    def __init__(self, snapshot):
        self._snapshot = snapshot

    def __getattr__(self, name):
        if name in ("table_of", "record_numbers"):
            raise AttributeError(name)
        return getattr(self._snapshot, name)


def prepared(snapshot, kind):
    matcher = Matcher(snapshot, OPS, EVERY)
    ids = frames()[kind]["id"].to_list()
    asked = [Request(kind=kind, id=name, as_of=AS_OF) for name in ids]
    return ids, [matcher.prepare_one(snapshot, one) for one in asked]


@pytest.mark.parametrize("kind", KINDS)
def test_features_by_column_are_those_of_rows(snapshot, kind):
    _, queries = prepared(snapshot, kind)
    rows = snapshot.rows_of(OTHER[kind], frames()[OTHER[kind]]["id"].to_list())
    lists = [np.random.default_rng(n).permutation(rows)[: n % (N + 1)] for n in range(N)]
    told = FeatureMaker().make(RowWise(snapshot), queries, lists)
    assert np.array_equal(FeatureMaker().make(snapshot, queries, lists), told)
    assert (told != UNKNOWN).any()
    maker = FeatureMaker(N // 2, N // 3)  # some are kept, some are read again
    for some in (slice(0, 5), slice(3, N), slice(0, N)):
        made = maker.make(snapshot, queries[some], lists[some])
        alone = FeatureMaker().make(RowWise(snapshot), queries[some], lists[some])
        assert np.array_equal(made, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_features_by_column_are_those_of_the_referee(kept, kind):
    market = LightMarket(frames(), kept.generation)
    matcher = Matcher(market, OPS, EVERY)
    ids, queries = prepared(kept, kind)
    others = frames()[OTHER[kind]]["id"].to_list()
    rows = kept.rows_of(OTHER[kind], others)
    for n in range(0, N, 5):
        made = FeatureMaker().make(kept, [queries[n]], [rows])
        for row, candidate in list(enumerate(others))[n % 3 :: 3]:
            told = features_of_pair(market, matcher, kind, ids[n], candidate, AS_OF)
            assert dict(zip(NAMES, made[row].tolist(), strict=True)) == told


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_those_of_rows(snapshot, kind):
    ids = frames()[kind]["id"].to_list()
    plain = RowTable(snapshot.rows(kind, ids))
    table = snapshot.table_of(kind, snapshot.rows_of(kind, ids), READ[kind])
    assert table.height == N
    for low, n in ((0, N), (3, 4), (N - 2, 9)):
        part, rows = table.slice(low, n), plain.slice(low, n)
        assert part.height == rows.height
        assert part.prose(3) == rows.prose(3)
        assert part.keyed_prose(SKILLS_MAX) == rows.keyed_prose(SKILLS_MAX)
        found, told = part.skills(4), rows.skills(4)
        assert (found.row_m.tolist(), list(found.names)) == (told.row_m.tolist(), list(told.names))
        assert found.level_m.tolist() == told.level_m.tolist()
        assert found.stated_m.tolist() == told.stated_m.tolist()
        assert list(found.must) == list(told.must)
        for field in READ[kind]:
            if field not in ("skills", "categories"):
                assert part.values(field) == rows.values(field)
    at = np.array([5, 2, 2, 7])
    assert table.take(at).joined(table).prose(2) == [plain.prose(2)[n] for n in (*at, *range(N))]


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_those_of_each_record_by_itself(snapshot, kind):
    ids = frames()[kind]["id"].to_list()
    table = snapshot.table_of(kind, snapshot.rows_of(kind, ids), READ[kind])
    made = facts_of(kind, table, snapshot.generation)
    by_rows = facts_of(kind, snapshot.rows(kind, ids), snapshot.generation)
    for name, array in made.items():
        assert np.array_equal(array, by_rows[name]), name
        assert array.dtype == by_rows[name].dtype
    for n, row in enumerate(snapshot.rows(kind, ids)):
        listed = {}
        for one in (row["skills"] or ())[:SKILLS_MAX]:
            weight = 0
            if kind == "job":
                weight = snapshot.generation.skill_weight(one["name"]) * (2 if one["must"] else 1)
            level, more = listed.get(name_hash(one["name"]), (0, 0))
            listed[name_hash(one["name"])] = max(level, one["level"] or 0), max(more, weight)
        rest = SKILLS_MAX - len(listed)
        assert made["name"][n].tolist() == [*listed, *[0] * rest]
        assert made["level"][n].tolist() == [*(a for a, _ in listed.values()), *[0] * rest]
        assert made["weight"][n].tolist() == [*(b for _, b in listed.values()), *[0] * rest]
        assert made["known"][n] == (row["skills"] is not None)
        for column, field in enumerate(FACTS[kind]):
            if field not in ("experience", "text_known"):
                told = NOT_KNOWN if row[field] is None else row[field]
                assert made["facts"][n, column] == told


def vocabulary_of(texts):
    """An encoder that learnt every other token."""
    learnt = tuple(sorted(set(tokens(pl.Series(texts, dtype=pl.String))["token"].to_list())))[::2]
    random = np.random.default_rng(len(learnt))
    return SvdEncoder(
        learnt or ("none",),
        random.integers(1, 2**12, max(len(learnt), 1)).astype(np.int32),
        random.integers(-(2**14), 2**14, (max(len(learnt), 1), 16)).astype(np.int16),
    )


MANY = st.lists(
    st.one_of(
        st.text(alphabet="aZ1+# ,\xe9\xc9\xd7\xdf\xf7A", max_size=30),
        st.text(alphabet=sorted(PLAIN), max_size=60),
        st.text(max_size=12),
    ),
    min_size=PLAIN_FROM,
    max_size=PLAIN_FROM + 6,
)


@given(texts=MANY)
@example([text or "" for text in TEXTS])
def test_many_texts_have_the_vectors_of_any_text(texts):
    encoder = vocabulary_of(texts)
    told = encoder.encode(pl.Series(texts, dtype=pl.String))
    assert np.array_equal(encoder.encode(texts), told)
    for n in (0, len(texts) - 1):
        assert np.array_equal(encoder.encode(texts[n : n + 1])[0], told[n])


@pytest.mark.parametrize("kind", KINDS)
def test_columns_have_the_vectors_of_their_prose(snapshot, kind):
    """With titles, texts and names of skills that are plain, and that are not."""
    ids = frames()[kind]["id"].to_list()
    whole = snapshot.table_of(kind, snapshot.rows_of(kind, ids), READ[kind])
    encoder = vocabulary_of(whole.prose(SKILLS_MAX))
    told = encoder.encode(pl.Series(whole.prose(SKILLS_MAX), dtype=pl.String))
    assert told.any()
    assert np.array_equal(encoder.encode_columns(whole), told)
    alone = [encoder.encode_columns(whole.take(np.array([n]))) for n in range(N)]
    assert np.array_equal(np.concatenate(alone), told)
    plain = [n for n, text in enumerate(whole.prose(SKILLS_MAX)) if PLAIN.issuperset(text)]
    assert 0 < len(plain) < N
    assert np.array_equal(encoder.encode_columns(whole.take(np.array(plain))), told[plain])
    assert encoder.encode_columns(whole.slice(0, 0)).shape == (0, 16)


# ── Damage ────────────────────────────────────────────────────────────────────────────────────

RECORD = {"id": "f-1", "title": "a title", "text": "some text", "rate_cents": 5}


def read(record, name="f-1", body=None, keep_text=True):
    content, packed = blobs.pack_record(record, keep_text=keep_text)
    reader = reader_of(default_neighbours(), "freelancer", ("title", "text", "rate_cents"))
    return reader.read(name, content, packed if body is None else body, "here")


def test_a_record_is_read_as_it_was_written():
    for text in ("some text", "", "t" * 40, "\u00e9" * 200, "w " * 40_000, None):
        for keep_text in (True, False):
            found = read({**RECORD, "text": text}, keep_text=keep_text)
            assert (found.id, found.title, found.rate_cents) == ("f-1", "a title", 5)
            kept = text is None or keep_text
            assert found.text == (text if kept else blobs.text_digest(text))


def test_a_title_that_looks_like_a_text_does_not_hide_it():
    for text in ("x", "y" * 150):
        inside = (b"\xa4text" + msgspec.msgpack.encode(text))[1:].decode("latin-1")
        title = f"\u00e4{inside}"
        assert read({**RECORD, "title": title, "text": text}).title == title


def test_a_record_that_is_packed_in_another_way_is_read():
    longer = b"\x00" + msgspec.msgpack.encode(RECORD).replace(
        b"\xa9some text", b"\xd9\x09some text"
    )
    assert read(RECORD, body=longer).text == "some text"


@pytest.mark.parametrize("field", ["id", "title", "text", "rate_cents"])
def test_damage_is_found_in_any_field(field):
    other = {**RECORD, field: 6 if field == "rate_cents" else "f-2"}
    body = blobs.pack_record(other, keep_text=True)[1]
    with pytest.raises(StoreDamaged, match="does not match its hash"):
        read(RECORD, body=body)
    for broken in (b"", b"\x00", b"\x01zz", body[:-3], b"\x00\xc0", b"\x00\x93\x01\x02\x03"):
        with pytest.raises(StoreDamaged, match="does not match its hash"):
            read(RECORD, body=broken)


def test_a_record_of_another_is_told():
    with pytest.raises(StoreDamaged, match="'f-9' is another's"):
        read(RECORD, name="f-9")


def test_a_record_that_its_schema_does_not_allow_is_told():
    reader = reader_of(default_neighbours(), "freelancer", ("skills",))
    content, body = blobs.pack_record({"id": "f-1", "skills": 7}, keep_text=True)
    with pytest.raises(StoreDamaged, match="the record of 'f-1'"):
        reader.read("f-1", content, body, "here")
