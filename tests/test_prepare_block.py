"""A block of stored entities as queries: the same, field by field, as one request after another."""

from __future__ import annotations

import hashlib
import sqlite3
from functools import cache

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_cases import KINDS, SALT
from messy_cases import N, messy
from rerank_cases import policy as reranking

from matchwright.engine import synthetic
from matchwright.engine.eligibility import Veto
from matchwright.engine.errors import MatchwrightError
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import prepare
from matchwright.engine.records import FIELDS, SCHEMAS, to_frame
from matchwright.engine.request import Request
from matchwright.engine.runs.prepare_block import canonical_predicate, prepare_block
from matchwright.engine.runs.referee import question_print
from matchwright.engine.store import Store
from matchwright.kernels.types import (
    EmptyOrHasAny,
    HasAll,
    HasNone,
    HoursOverlap,
    InRange,
    KeyIn,
    OneOf,
    SubsetOf,
)

COUNTRIES = ["US", "FR", "DE", "CI"]
LANGUAGES = ["en", "fr", "de", "es"]
DAMAGED = 5
POLICIES = {
    "shipped": Policy.load(),
    "strict": Policy.parse(
        "".join(
            f'[rules.{name}]\nenabled = true\non_unknown = "fail"\n'
            for name in ("same_category", "hours_overlap", "languages", "hours_available")
        )
    ),
    "lenient": Policy.parse(
        '[rules.languages]\non_unknown = "pass"\nunstated_level = 6\n'
        "[rules.rate_budget]\ntolerance_permille = 333\n[weights]\ntext = 0\nrate = 3.5\n"
        "[rules.certifications]\nverified_only = false\n"
    ),
    "reranking": reranking(),
}


@cache
def limited(kind):
    """Messy records whose limits and lists are drawn anew, some of them long."""
    rows = messy(kind).to_dicts()
    for n, row in enumerate(rows):
        random = np.random.default_rng([n, 7, kind == "job"])
        for name, field in FIELDS[kind].items():
            if field.limit and random.random() < 0.3:
                row[name] = None
        if n % 3 == 0:
            size = int(random.integers(0, 45))
            ids = "excluded_freelancers" if kind == "job" else "excluded_clients"
            row[ids] = [f"x-{one}" for one in range(size)]
            row["countries_denied"] = COUNTRIES[: size % 5]
            levels = [None, *range(1, 7)]
            row["languages"] = [
                {"code": code, "level": levels[int(random.integers(7))]}
                for code in LANGUAGES[: size % 5]
            ]
        row["id"] = f"{kind}-\u00e9{n}" if n % 7 == 1 else row["id"]
        if n % 5 == 2:
            row["zone"], row["country"] = "Antarctica/Troll", None
    return to_frame(kind, pl.DataFrame(rows, schema=SCHEMAS[kind]).to_dicts())


def made(folder, keep_text):
    """Two segments, live rows that replace some, dead ones, and a damaged record of each kind."""
    with Store.open(folder, mode="w", create=True, salt=SALT, keep_text=keep_text) as store:
        for kind in KINDS:
            for frame in (synthetic.frame(kind, N, seed=4, block=N), limited(kind)):
                with store.bulk(kind) as sink:
                    sink.write(frame)
            store.upsert(kind, limited(kind)[N // 2 :].reverse())
            store.delete(kind, [limited(kind)["id"][0]])
        snapshot = store.snapshot()
        bad = {kind: limited(kind)["id"][DAMAGED] for kind in KINDS}
        with sqlite3.connect(folder / "catalog.sqlite") as connection:
            for kind, name in bad.items():
                connection.execute(f"UPDATE {kind} SET hash = x'00' WHERE id = ?", (name,))
        connection.close()
        yield snapshot


@pytest.fixture(scope="module", params=[True, False], ids=["texts", "digests"])
def snapshot(request, tmp_path_factory):
    yield from made(tmp_path_factory.mktemp("prepare") / "store", request.param)


def everybody(snapshot, kind):
    corpus = snapshot.corpus(kind)
    return [*snapshot.ids_of(kind, range(corpus.n)), "nobody", "n\u00f6body", f"{kind}-e\u03011"]


def alone(snapshot, kind, name, policy, as_of):
    """What one request gives, with the rules of rows that cannot be read left out."""
    request = Request(kind=kind, id=name, k=1, as_of=as_of)
    return prepare(snapshot, [request], policy.budgets, lambda *_: policy.effective())[0]


def check(block, at, one):
    """Row ``at`` of a block is what ``prepare`` made of it."""
    error = block.errors.get(at)
    if isinstance(one, MatchwrightError):
        assert (type(error), str(error), error.details) == (type(one), str(one), one.details)
        assert not block.q_qd[at].any()
        assert (block.t_q[at], block.resolution_q[at], block.attainable_q[at]) == (0, 0, 0)
        assert at not in block.records
        return
    assert error is None
    assert block.key_q[at] == one.key
    assert block.q_qd[at].tobytes() == one.q_d.tobytes()
    numbers = block.t_q[at], block.resolution_q[at], block.attainable_q[at]
    assert numbers == (one.t, one.resolution, one.attainable)
    rules = block.groups[block.group_q[at]]
    assert repr(rules) == repr(one.rules)
    assert (block.never_q[at], block.unsure_q[at]) == (
        bool(one.compiled.never),
        bool(one.compiled.unsure),
    )
    assert block.print_qb[at].tobytes() == question_print(one)
    assert block.records.get(at, one.record) == one.record


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", POLICIES)
def test_a_block_is_its_queries_one_by_one(snapshot, kind, name):
    ids, policy = everybody(snapshot, kind), POLICIES[name]
    block = prepare_block(snapshot, kind, ids, policy.effective(), synthetic.AS_OF)
    for at, one in enumerate(ids):
        check(block, at, alone(snapshot, kind, one, policy, synthetic.AS_OF))
    assert {type(error).__name__ for error in block.errors.values()} == {"NotFound", "StoreDamaged"}
    assert len(block.records) == (len(ids) - len(block.errors) if name == "reranking" else 0)
    ok = np.array([at for at in range(len(ids)) if at not in block.errors])
    queries = block.queries(ok)
    for at, group in zip(ok.tolist(), queries.group_q.tolist(), strict=True):
        assert queries.groups[group] == block.groups[block.group_q[at]]


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_is_beside_it_changes_nothing(snapshot, kind):
    """Any entities in any order, some twice, on any day."""
    ids = everybody(snapshot, kind)
    policies = sorted(POLICIES)

    @settings(max_examples=10)
    @given(
        st.lists(st.sampled_from(ids), max_size=8),
        st.integers(synthetic.AS_OF - 200, synthetic.AS_OF + 200),
        st.sampled_from(policies),
    )
    def agree(some, as_of, name):
        policy = POLICIES[name]
        block = prepare_block(snapshot, kind, some, policy.effective(), as_of)
        assert block.q == len(some)
        for at, one in enumerate(some):
            check(block, at, alone(snapshot, kind, one, policy, as_of))

    agree()


def test_nobody_is_there(tmp_path):
    policy = POLICIES["shipped"].effective()
    with Store.open(tmp_path / "store", mode="w", create=True) as store:
        block = prepare_block(store.snapshot(), "job", ["a", "b"], policy, synthetic.AS_OF)
    assert {n: error.details["id"] for n, error in block.errors.items()} == {0: "a", 1: "b"}
    assert block.key_q.tolist() == store.snapshot().keys(["a", "b"]).tolist()
    assert [block.groups[group] for group in block.group_q.tolist()] == [(), ()]
    assert not block.q_qd.any()
    assert block.print_qb.shape == (2, 16)


@pytest.mark.parametrize(
    ("predicate", "text"),
    [
        (
            InRange("rate", -5, 2**31 - 1, Veto.RATE_ABOVE_BUDGET),
            "InRange(column='rate', low=-5, high=2147483647, veto=<Veto.RATE_ABOVE_BUDGET: "
            "'RATE_ABOVE_BUDGET'>, unknown_passes=False);",
        ),
        (
            OneOf("country", (3, 1), Veto.COUNTRY_DENIED, False, True),
            "OneOf(column='country', values=(3, 1), veto=<Veto.COUNTRY_DENIED: 'COUNTRY_DENIED'>, "
            "unknown_passes=False, negate=True);",
        ),
        (
            HasAll("s", (), "S", True),
            "HasAll(column='s', values=(), veto='S', unknown_passes=True);",
        ),
        (
            HasNone("s", (2**64 - 1,), "S"),
            "HasNone(column='s', values=(18446744073709551615,), veto='S', unknown_passes=False);",
        ),
        (
            EmptyOrHasAny("s", (0, 1), "S"),
            "EmptyOrHasAny(column='s', values=(0, 1), veto='S', unknown_passes=False);",
        ),
        (
            HoursOverlap((0, -600), None, None, 60, "H", False),
            "HoursOverlap(offset_minutes=(0, -600), start_utc=None, end_utc=None, "
            "required_minutes=60, veto='H', unknown_passes=False);",
        ),
        (KeyIn((7,), "K", negate=True), "KeyIn(keys=(7,), veto='K', negate=True);"),
        (
            SubsetOf("s", tuple(range(80)), "S"),
            f"SubsetOf(column='s', values=({', '.join(map(str, range(80)))}), veto='S', "
            "unknown_passes=False);",
        ),
    ],
    ids=lambda one: type(one).__name__,
)
def test_the_canonical_form_of_predicates_is_fixed(predicate, text):
    """Prints are stored: what they are made of must never look different."""
    told = text.encode()
    if len(told) > 256:
        told = hashlib.blake2b(told, digest_size=32, person=b"mw-question-v1").digest()
    assert canonical_predicate(predicate) == told
