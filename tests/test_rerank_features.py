"""Features of pairs: against a slow referee, in any batch, within their bounds."""

from __future__ import annotations

import functools
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from market_cases import AS_OF, KINDS, SALT
from rerank_cases import (
    NAMES,
    LightMarket,
    NumberedMarket,
    policy,
    random_trees,
    ranker,
    wider_policy,
)
from rerank_referee import features_of_pair

from matchwright.engine import synthetic
from matchwright.engine.errors import FailedPrecondition, ModelUnavailable
from matchwright.engine.generation import fit
from matchwright.engine.generation.facets.text import AskedText
from matchwright.engine.matcher import OTHER, Matcher, Request
from matchwright.engine.policy import Policy
from matchwright.engine.records import FIELDS, to_frame
from matchwright.engine.rerank.features import (
    FEATURES,
    INDEX,
    UNKNOWN,
    allowed,
    pair_features,
)
from matchwright.engine.rerank.features_document import BEGIN, END, features_md
from matchwright.engine.rerank.features_pairs import FeatureMaker
from matchwright.engine.rerank.features_values import log_scale
from matchwright.engine.table import RowTable
from matchwright.kernels.ops import Ops

OPS = Ops(threads=1)
N = 9
EVERY = wider_policy().without_rerank()
"""The shipped policy, but that every feature is allowed."""


@pytest.fixture(scope="module")
def generation():
    frames = {kind: synthetic.frame(kind, 300, seed=4) for kind in KINDS}
    return fit(frames["job"], frames["freelancer"], seed=1, sample=1_000, as_of=AS_OF)


@functools.cache
def pool(kind):
    """Records to draw from; making few costs as much as making many."""
    return synthetic.frame(kind, 3_000, seed=4).to_dicts()


def market_of(generation, seed, blank=(), cuts=(4,), cls=LightMarket):
    """N of each kind; ``blank``: (kind, row, field) that is not known."""
    frames = {}
    for kind in KINDS:
        chosen = np.random.default_rng(seed).choice(len(pool(kind)), N, replace=False)
        rows = [dict(pool(kind)[n]) for n in chosen.tolist()]
        for _, row, field in (one for one in blank if one[0] == kind):
            rows[row][field] = None
            if field in ("hours_start", "hours_end"):
                rows[row].update(hours_start=None, hours_end=None)
        frames[kind] = to_frame(kind, rows)
    return cls(frames, generation, cuts=cuts)


def everything(market, kind):
    """(queries of all of a kind, the rows of all of the other) under a policy that allows all."""
    matcher = Matcher(market, OPS, EVERY)
    ids = market.frames[kind]["id"].to_list()
    asked = [Request(kind=kind, id=name, as_of=AS_OF) for name in ids]
    queries = [matcher.prepare_one(market, one) for one in asked]
    rows = [np.arange(market.frames[OTHER[kind]].height)] * len(ids)
    return matcher, queries, rows


BLANK = st.sampled_from(KINDS).flatmap(
    lambda kind: st.tuples(
        st.just(kind),
        st.integers(0, N - 1),
        st.sampled_from([name for name in FIELDS[kind] if name != "id"]),
    )
)


@given(seed=st.integers(0, 10_000), blank=st.lists(BLANK, max_size=60), day=st.integers(0, 400))
def test_features_are_those_of_the_referee(generation, seed, blank, day):
    market = market_of(generation, seed, blank)
    as_of = AS_OF - 200 + day
    kind = KINDS[seed % 2]
    matcher = Matcher(market, OPS, EVERY)
    query, others = market.frames[kind]["id"][seed % N], market.frames[OTHER[kind]]["id"]
    prepared = matcher.prepare_one(market, Request(kind=kind, id=query, as_of=as_of))
    made = pair_features(market, [prepared], [np.arange(N)])
    assert made.dtype == np.int32
    assert made.shape == (N, len(FEATURES))
    for row, candidate in enumerate(others[:3]):
        told = features_of_pair(market, matcher, kind, query, candidate, as_of)
        assert dict(zip(NAMES, made[row].tolist(), strict=True)) == told


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_known_somewhere_and_within_their_bounds(generation, kind, count):
    known = np.zeros(len(FEATURES), dtype=np.bool_)
    for seed in range(count(reduced=12, full=1_000)):
        market = market_of(generation, seed)
        _, queries, rows = everything(market, kind)
        made = pair_features(market, queries, rows)
        for n, feature in enumerate(FEATURES):
            told = made[:, n][made[:, n] != UNKNOWN]
            known[n] |= told.size > 0
            assert ((told >= feature.low) & (told <= feature.high)).all(), feature.name
        assert np.array_equal(made.astype(np.float32).astype(np.int64), made)
    assert [NAMES[n] for n in np.flatnonzero(~known)] == []


def test_specs_are_of_one_piece():
    assert len(set(NAMES)) == len(FEATURES) == len(INDEX)
    fields = {f"{kind}.{name}": field for kind in KINDS for name, field in FIELDS[kind].items()}
    for feature in FEATURES:
        assert UNKNOWN < feature.low <= feature.high < 2**22
        assert feature.text
        assert not any(fields[name].limit for name in feature.reads), "limits stay private"
    # Half-integers on both sides of every value are exact in float32.
    for value in (UNKNOWN, 2**22):
        assert float(np.float32(value + 0.5)) == value + 0.5


def test_a_batch_changes_nothing(generation):
    market = market_of(generation, 5, cuts=(2, 3, 7))
    whole = market_of(generation, 5, cuts=())
    for kind in KINDS:
        _, queries, rows = everything(market, kind)
        rows = [np.random.default_rng(n).permutation(N)[: 1 + n % N] for n in range(N)]
        together = pair_features(market, queries, rows)
        alone = [pair_features(market, [q], [r]) for q, r in zip(queries, rows, strict=True)]
        assert np.array_equal(together, np.concatenate(alone))
        assert np.array_equal(together, pair_features(whole, queries, rows))


def test_both_kinds_and_empty_lists_mix(generation):
    market = market_of(generation, 6)
    _, jobs, rows = everything(market, "job")
    _, people, _ = everything(market, "freelancer")
    none = np.zeros(0, dtype=np.int64)
    mixed = [jobs[0], people[1], jobs[2], people[3]]
    lists = [rows[0], rows[0][:3], none, rows[0][2:5]]
    made = pair_features(market, mixed, lists)
    parts = [pair_features(market, [q], [r]) for q, r in zip(mixed, lists, strict=True)]
    assert np.array_equal(made, np.concatenate(parts))
    assert pair_features(market, [], []).shape == (0, len(FEATURES))


def test_an_inline_query_is_like_a_stored_one(generation):
    market = market_of(generation, 7)
    for kind in KINDS:
        matcher, queries, rows = everything(market, kind)
        for query in queries[:3]:
            record = market.record(kind, query.query_id)
            inline = matcher.prepare_one(market, Request(kind=kind, record=record, as_of=AS_OF))
            stored = pair_features(market, [query], [rows[0]])
            assert np.array_equal(pair_features(market, [inline], [rows[0]]), stored)


def test_the_two_directions_mirror_each_other(generation):
    """What does not depend on who asks is the same; each one's score is the other's reciprocal."""
    market = market_of(generation, 8)
    _, jobs, rows = everything(market, "job")
    _, people, _ = everything(market, "freelancer")
    made_j = pair_features(market, jobs, rows).reshape(N, N, -1)
    made_f = pair_features(market, people, rows).reshape(N, N, -1).transpose(1, 0, 2)
    same = [n for n, f in enumerate(FEATURES) if f.group not in ("points", "reciprocal")]
    assert np.array_equal(made_j[:, :, same], made_f[:, :, same])
    score, reciprocal = INDEX["score"], INDEX["reciprocal"]
    assert np.array_equal(made_j[:, :, reciprocal], made_f[:, :, score])
    assert np.array_equal(made_f[:, :, reciprocal], made_j[:, :, score])


def test_the_log_scale_is_exact_and_grows():
    counts = np.concatenate([np.arange(5_000), 2 ** np.arange(1, 27) - 1, [100_000_000]])
    values = log_scale(np.sort(counts))
    assert (np.diff(values) >= 0).all()
    assert values[0] == 0
    assert values[-1] <= 431
    octaves = log_scale(2 ** np.arange(27) - 1)
    assert np.array_equal(octaves, 16 * np.arange(27))


def test_what_gains_nothing(generation):
    """Tricks that would move a feature, and do not."""
    base = market_of(generation, 9)
    rows = {kind: base.frames[kind].to_dicts() for kind in KINDS}
    person = rows["freelancer"][0]
    person.update(
        last_active=AS_OF - 6, skills=[{"name": f"s{n}", "level": None} for n in range(30)]
    )
    tricks = [
        {"last_active": AS_OF},
        {"last_active": AS_OF + 300},
        {"skills": [*person["skills"], *({"name": s["name"], "level": 5}
                                         for job in rows["job"] for s in job["skills"] or ())]},
    ]  # fmt: skip
    for n, trick in enumerate(tricks):
        rows["freelancer"][n + 1] = {**person, **trick, "id": f"trick-{n}"}
    market = LightMarket({kind: to_frame(kind, rows[kind]) for kind in KINDS}, generation)
    _, queries, lists = everything(market, "job")
    made = pair_features(market, queries, lists).reshape(N, N, -1)
    own = ("last_active_days", "skill_coverage", "skill_level_shortfall")
    for name in own:
        for n in range(len(tricks)):
            assert np.array_equal(made[:, n + 1, INDEX[name]], made[:, 0, INDEX[name]])


# ── What is kept ──────────────────────────────────────────────────────────────────────────────


def test_what_is_kept_changes_nothing(generation):
    market = market_of(generation, 10, cls=NumberedMarket)
    for facts, vectors in ((1, 1), (3, 5), (1_000, 1_000)):
        maker = FeatureMaker(facts, vectors)
        for kind in KINDS:
            _, queries, rows = everything(market, kind)
            told = pair_features(market_of(generation, 10), queries, rows)
            for _ in range(3):
                assert np.array_equal(maker.make(market, queries, rows), told)
                assert len(maker.facts) <= facts
                assert len(maker.vectors) <= vectors


def test_what_is_kept_is_made_once(generation):
    market = market_of(generation, 11, cls=NumberedMarket)
    maker = FeatureMaker()
    _, queries, rows = everything(market, "job")
    maker.make(market, queries, rows)
    assert maker.facts.made == maker.vectors.made == N
    maker.make(market, queries[2:4], [rows[0][::-1], rows[0][:3]])
    assert maker.facts.made == maker.vectors.made == N


def test_keys_hold_what_determines_a_row(generation):
    """Another day, other weights, another catalog with the same numbers: nothing is mixed up."""
    first, second = (market_of(generation, seed, cls=NumberedMarket) for seed in (12, 13))
    maker = FeatureMaker()
    for market in (first, second):
        matcher = Matcher(market, OPS, EVERY)
        for kind in KINDS:
            for more in ({}, {"as_of": AS_OF + 90}, {"weights": {"skills": 3.0}}):
                name = market.frames[kind]["id"][0]
                asked = Request(kind=kind, id=name, **{"as_of": AS_OF, **more})
                query = matcher.prepare_one(market, asked)
                told = FeatureMaker().make(market, [query], [np.arange(N)])
                assert np.array_equal(maker.make(market, [query], [np.arange(N)]), told)


def test_a_store_numbers_its_records(generation, tmp_path):
    """A changed record is another one, although its id, key and row may be the same."""
    from matchwright.engine.store import Store

    frames = market_of(generation, 14).frames
    maker = FeatureMaker()
    with Store.open(tmp_path, mode="w", create=True, salt=SALT) as store:
        for kind in KINDS:
            store.upsert(kind, frames[kind])
        for step in range(3):
            snapshot = store.snapshot()
            matcher = Matcher(snapshot, OPS, EVERY)
            asked = Request(kind="job", id=frames["job"]["id"][0], as_of=AS_OF)
            query = matcher.prepare_one(snapshot, asked)
            rows = snapshot.rows_of("freelancer", frames["freelancer"]["id"].to_list())
            made = maker.make(snapshot, [query], [rows])
            assert np.array_equal(made, FeatureMaker().make(snapshot, [query], [rows]))
            assert maker.facts.made == N + step
            changed = frames["freelancer"].to_dicts()[step]
            changed.update(response_permille=7, last_active=AS_OF - 100 - step)
            store.upsert("freelancer", to_frame("freelancer", [changed]))


def test_many_threads_share_what_is_kept(generation):
    market = market_of(generation, 15, cls=NumberedMarket)
    maker = FeatureMaker(4, 4)
    _, queries, rows = everything(market, "job")
    told = FeatureMaker().make(market, queries, rows)
    wrong = []

    def work(seed):
        random = np.random.default_rng(seed)
        for _ in range(30):
            n = int(random.integers(N))
            some = random.permutation(N)[: int(random.integers(1, N))]
            made = maker.make(market, [queries[n]], [some])
            if not np.array_equal(made, told[n * N : (n + 1) * N][some]):
                wrong.append((n, some))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ── Input manifest ────────────────────────────────────────────────────────────────────────────


def test_a_feature_is_not_computed_without_its_fields(generation):
    market = market_of(generation, 16)
    shipped = Policy.load()
    asked = Request(kind="job", id=market.frames["job"]["id"][0], as_of=AS_OF)
    query = Matcher(market, OPS, shipped).prepare_one(market, asked)
    made = pair_features(market, [query], [np.arange(N)])
    assert [NAMES[n] for n in np.flatnonzero(~allowed(shipped))] == ["response"]
    assert (made[:, INDEX["response"]] == UNKNOWN).all()
    _, queries, _ = everything(market, "job")
    wider = pair_features(market, queries[:1], [np.arange(N)])
    assert (wider[:, INDEX["response"]] != UNKNOWN).any()
    others = [n for n, name in enumerate(NAMES) if name != "response"]
    assert np.array_equal(made[:, others], wider[:, others])


def test_fields_that_a_feature_does_not_list_do_not_move_it(generation):
    """``reads`` is the whole truth for features beside the first phase's and the reciprocal one."""
    base = market_of(generation, 17)
    own = [f for f in FEATURES if f.group not in ("points", "reciprocal")]
    _, queries, rows = everything(base, "job")
    before = pair_features(base, queries, rows)
    for kind in KINDS:
        for field in FIELDS[kind]:
            if field == "id":
                continue
            market = market_of(generation, 17, [(kind, row, field) for row in range(N)])
            _, queries, rows = everything(market, "job")
            after = pair_features(market, queries, rows)
            pair = {f"{kind}.{field}", *([f"{kind}.hours_start", f"{kind}.hours_end"]
                                         if field.startswith("hours_") else [])}  # fmt: skip
            for feature in own:
                if not pair & set(feature.reads):
                    n = INDEX[feature.name]
                    assert np.array_equal(after[:, n], before[:, n]), (feature.name, field)


def test_a_model_that_needs_a_forbidden_field_is_refused(generation):
    market = market_of(generation, 18)
    trees = random_trees(names=("score", "response"), splits=8)
    assert "response" in trees.asked
    with pytest.raises(FailedPrecondition, match=r"'response'.*'freelancer.response_permille'"):
        Matcher(market, OPS, policy(), ranker(trees))
    Matcher(market, OPS, wider_policy(), ranker(trees))
    # A column that no split asks about does not matter.
    unasked = random_trees(names=("score", "response"), splits=1, trees=1, seed=1)
    assert unasked.asked == ("score",)
    Matcher(market, OPS, policy(), ranker(unasked))


def test_the_table_in_the_documentation_is_that_of_the_features(repo_root):
    page = (repo_root / "docs" / "models.md").read_text("utf-8")
    start, stop = page.index(BEGIN), page.index(END) + len(END)
    assert page[start:stop] == features_md()


# ── Served encoders ───────────────────────────────────────────────────────────────────────────


class Forgetful:
    """A generation whose encoder does not have every text."""

    def __init__(self, generation, missing):
        self._generation, self.missing = generation, missing

    def __getattr__(self, name):
        return getattr(self._generation, name)

    def asked_text(self, records, deadline):
        rows = list(records)
        block = self._generation.parts[0].query("freelancer", RowTable(rows), None, 0)
        gone = {n: why for n, row in enumerate(rows) if (why := self.missing.get(row["id"]))}
        for n in gone:
            block.raw_qw[n], block.known_q[n] = 0.0, False
        return AskedText(block, gone)


def test_a_text_that_nobody_has_is_left_out_and_not_remembered(generation):
    market = market_of(generation, 19, cls=NumberedMarket)
    _, queries, rows = everything(market, "job")
    maker = FeatureMaker()
    whole = maker.make(market, queries[:1], rows[:1])
    lost = market.frames["freelancer"]["id"][3]
    forgetful = Forgetful(generation, {lost: "ENCODER_TEXT_NOT_KEPT"})
    market.generation, maker = forgetful, FeatureMaker()
    without = maker.make(market, queries[:1], rows[:1])
    changed = np.flatnonzero((without != whole).any(axis=1))
    assert changed.tolist() == [3]
    assert len(maker.vectors) == N - 1
    forgetful.missing = {}  # its vector came with another record of the same text
    assert np.array_equal(maker.make(market, queries[:1], rows[:1]), whole)


def test_an_encoder_that_is_down_is_an_error_for_the_ranker_to_tell(generation):
    market = market_of(generation, 19)
    _, queries, rows = everything(market, "job")
    lost = market.frames["freelancer"]["id"][0]
    market.generation = Forgetful(generation, {lost: "ENCODER_UNREACHABLE"})
    with pytest.raises(ModelUnavailable, match="ENCODER_UNREACHABLE"):
        pair_features(market, queries[:1], rows[:1])
