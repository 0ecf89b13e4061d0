"""The exposure pass by itself: the order of one answer, the cap, the policy's section."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchwright.engine.errors import InvalidArgument, UnknownKey
from matchwright.engine.policy import Policy
from matchwright.engine.policy_exposure import Exposure
from matchwright.engine.runs import exposure_cap
from matchwright.engine.runs.exposure_cap import Lists, admit
from matchwright.engine.runs.exposure_choice import Moved, People, choose, chosen
from matchwright.kernels.order import mix32

OFF = Exposure(
    asking=("job",),
    slack_rows=10,
    shown_max=0,
    newcomers_within=0,
    newcomer_reviews_max=0,
    newcomer_days=0,
    newcomer_loss_permille=50,
    alike_within=0,
    alike_max=1,
)


def case(seed, q=40, n=30, w=12):
    """Random stored rows: some queries have fewer; a few people are in nearly all of them."""
    rng = np.random.default_rng(seed)
    person = np.full((q, w), -1, np.int32)
    points = np.zeros((q, w), np.int32)
    liked = rng.random(n) ** 3
    for line in range(q):
        size = int(rng.integers(0, w + 1)) if rng.random() < 0.4 else w
        size = min(size, n)
        order = np.argsort(-(liked + 0.3 * rng.random(n)))[:size]
        person[line, :size] = order
        points[line, :size] = np.sort(rng.integers(-50, 1_000, size))[::-1]
    keys = np.sort(rng.choice(2**40, q, replace=False).astype(np.uint64) << np.uint64(20))
    key_n = np.sort(rng.choice(2**40, n, replace=False).astype(np.uint64) << np.uint64(21))
    people = People(rng.random(n) < 0.2, rng.integers(-1, 8, n).astype(np.int32))
    return Lists(keys, person, points, key_n), people


# ── The order of one answer ───────────────────────────────────────────────────────────────────


def plainly(persons, points, admitted, people, k, ask):
    """The definition, one slot at a time: (slots, reasons) of one query's answer."""
    slots = [s for s, person in enumerate(persons) if person >= 0]
    there = len(slots)
    order = [s for s in slots if admitted[s]]
    put_back = set()
    if ask.alike_within:
        within, front, rest = min(ask.alike_within, k), [], []
        for s in order:
            group = people.group_n[persons[s]]
            same = [f for f in front if group >= 0 and people.group_n[persons[f]] == group]
            if len(front) < within and len(same) < ask.alike_max:
                front.append(s)
            else:
                if len(front) < within:
                    put_back.add(s)
                rest.append(s)
        order = front + rest
    lifted = None
    within = min(ask.newcomers_within, k)
    if within and not any(people.new_n[persons[s]] for s in order[:within]):
        for at in range(within, len(order)):
            s, victim = order[at], order[within - 1]
            loss = int(points[victim]) - int(points[s])
            if not people.new_n[persons[s]]:
                continue
            if loss > abs(int(points[victim])) * ask.newcomer_loss_permille // 1_000:
                continue
            tried = [*order[: within - 1], s, *order[within - 1 : at], *order[at + 1 :]]
            front = tried[: min(ask.alike_within, k)]
            group = people.group_n[persons[s]]
            same = sum(people.group_n[persons[f]] == group for f in front)
            if s in front and group >= 0 and same > ask.alike_max:
                continue
            order, lifted = tried, s
            break
    order = order[:k]
    spare = [s for s in slots if not admitted[s]]
    filled = spare[: min(k, there) - len(order)]
    reasons = []
    for place, s in enumerate([*order, *filled]):
        if s in filled:
            reasons.append(Moved.OVER_CAP)
        elif s == lifted:
            reasons.append(Moved.NEWCOMER)
        elif s in put_back and (s != place or s >= k):
            reasons.append(Moved.ALIKE)
        elif s >= k:
            reasons.append(Moved.ENTERED)
        else:
            reasons.append(Moved.SHIFTED if s != place else Moved.NOT)
    left = [s for s in slots if s not in {*order, *filled}]
    for place, s in enumerate(left, len(reasons)):
        if s < k:
            reason = Moved.ALIKE if s in put_back else Moved.DISPLACED
            reasons.append(reason if admitted[s] else Moved.CAPPED)
        elif s in put_back and s != place:
            reasons.append(Moved.ALIKE)
        else:
            reasons.append(Moved.SHIFTED if s != place else Moved.NOT)
    return [*order, *filled, *left], reasons, len(order) + len(filled)


asks = st.builds(
    lambda n, loss, a, most: replace(
        OFF, newcomers_within=n, newcomer_loss_permille=loss, alike_within=a, alike_max=most
    ),
    st.sampled_from([0, 1, 3, 5, 20]),
    st.sampled_from([0, 50, 400, 1_000]),
    st.sampled_from([0, 1, 4, 5, 30]),
    st.sampled_from([1, 2]),
)


@given(st.integers(0, 2**32), st.integers(1, 12), asks)
def test_the_order_is_the_defined_one(seed, k, ask):
    lists, people = case(seed, q=12)
    rng = np.random.default_rng(seed + 1)
    block = lists.block(slice(0, lists.q))
    admitted = block.there_qw & (rng.random(block.person_qw.shape) < rng.random())
    choice = choose(block, admitted, people, k, ask)
    shown = chosen(block, admitted, people, k, ask)
    for line in range(lists.q):
        expected, reasons, visible = plainly(
            block.person_qw[line], block.points_qw[line], admitted[line], people, k, ask
        )
        size = len(expected)
        assert choice.shown_q[line] == visible
        assert choice.slot_qw[line, :size].tolist() == expected
        assert (choice.slot_qw[line, size:] == -1).all()
        assert choice.moved_qw[line, :size].tolist() == reasons
        assert not choice.moved_qw[line, size:].any()
        among = {s for s in expected[:visible] if admitted[line, s]}
        assert set(np.flatnonzero(shown[line]).tolist()) == among


# ── The cap ───────────────────────────────────────────────────────────────────────────────────


def gale_shapley(lists, k, cap):
    """One proposal at a time, in any order: person -> queries that it stays with."""
    q, w = lists.person_qw.shape
    stays = {}
    waiting = [(line, 0, 0) for line in reversed(range(q))]  # query, next slot, places filled
    held = dict.fromkeys(range(q), 0)
    following = dict.fromkeys(range(q), 0)
    while waiting:
        line = waiting.pop()[0]
        while held[line] < k and following[line] < w:
            slot = following[line]
            following[line] += 1
            person = int(lists.person_qw[line, slot])
            if person < 0:
                break
            mix = int(mix32(int(lists.key_q[line]), lists.key_n[person : person + 1])[0]) >> 6
            stays.setdefault(person, []).append((slot, mix, line))
            held[line] += 1
            if len(stays[person]) > cap:
                out = max(stays[person])
                stays[person].remove(out)
                held[out[2]] -= 1
                if out[2] != line:
                    waiting.append((out[2], 0, 0))
    return stays


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 20))
def test_a_cap_alone_is_the_stable_assignment(seed, k, cap):
    lists, people = case(seed)
    admission = admit(lists, people, k, replace(OFF, shown_max=cap))
    places = np.arange(lists.q)
    admitted = admission.admitted(lists, places, lists.person_qw)
    shown = chosen(lists.block(slice(0, lists.q)), admitted, people, k, OFF)
    found = {}
    for line, slot in zip(*np.nonzero(shown), strict=True):
        found.setdefault(int(lists.person_qw[line, slot]), set()).add(int(line))
    expected = {p: {line for _, _, line in at} for p, at in gale_shapley(lists, k, cap).items()}
    assert found == expected


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 12), asks)
def test_nobody_is_over_the_cap_but_who_is_recorded_so(seed, k, cap, ask):
    ask = replace(ask, shown_max=cap)
    lists, people = case(seed)
    admission = admit(lists, people, k, ask)
    block = lists.block(slice(0, lists.q))
    admitted = admission.admitted(lists, np.arange(lists.q), block.person_qw)
    choice = choose(block, admitted, people, k, ask)
    who = np.take_along_axis(block.person_qw, np.maximum(choice.slot_qw, 0).astype(int), axis=1)
    shown = np.arange(who.shape[1]) < choice.shown_q[:, None]
    kept = shown & (choice.moved_qw != Moved.OVER_CAP)
    assert np.bincount(who[kept], minlength=lists.key_n.size).max(initial=0) <= cap
    assert (choice.shown_q == np.minimum((block.person_qw >= 0).sum(axis=1), k)).all()
    for line, place in zip(*np.nonzero(choice.moved_qw == Moved.OVER_CAP), strict=True):
        there = choice.slot_qw[line, : choice.shown_q[line]].tolist()
        left = set(np.flatnonzero(admitted[line])) - set(there)
        assert not left, f"query {line} keeps somebody over the cap at {place} with others stored"


def test_portions_and_blocks_change_nothing(monkeypatch):
    lists, people = case(7, q=300, n=60, w=20)
    ask = replace(OFF, shown_max=9, newcomers_within=5, alike_within=5)
    whole = admit(lists, people, 8, ask)
    monkeypatch.setattr(exposure_cap, "PAIRS_AT_ONCE", 13)
    monkeypatch.setattr(exposure_cap, "QUERIES_AT_ONCE", 7)
    pieces = admit(lists, people, 8, ask)
    assert (whole.bar_n == pieces.bar_n).all()
    assert whole.rounds == pieces.rounds > 2
    assert (whole.bar_n != exposure_cap.OPEN).any()


def test_without_a_cap_everybody_is_admitted():
    lists, people = case(3)
    admission = admit(lists, people, 5, OFF)
    assert admission.rounds == 0
    admitted = admission.admitted(lists, np.arange(lists.q), lists.person_qw)
    assert (admitted == (lists.person_qw >= 0)).all()


# ── The policy's section ──────────────────────────────────────────────────────────────────────


def test_the_section_is_off_and_no_part_of_the_id_while_it_is():
    policy = Policy.load()
    assert policy.exposure is None
    assert "exposure" not in policy.to_dict()
    off = Policy.parse("exposure = {enabled = false, shown_max = 7}")
    assert (off.exposure, off.id) == (None, policy.id)


def test_every_setting_is_part_of_the_id():
    base = "exposure = {enabled = true, shown_max = 5, newcomers_within = 3, alike_within = 3%s}"
    extra = [
        "", ', asking = ["job", "freelancer"]', ", slack_rows = 7", ", newcomer_reviews_max = 2",
        ", newcomer_loss_permille = 9", ", alike_max = 2",
    ]  # fmt: skip
    policies = [Policy.parse(base % text) for text in extra]
    assert len({policy.id for policy in policies}) == len(extra)
    assert len({policy.effective().id for policy in policies}) == len(extra)
    for policy in policies:
        again = Policy.from_dict(policy.to_dict())
        assert (again.exposure, again.id) == (policy.exposure, policy.id)
        assert policy.effective().exposure == policy.exposure


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("enabled = 1", InvalidArgument, "true or false"),
        ("enabled = true", InvalidArgument, "asks for nothing"),
        ("shown_max = -1", InvalidArgument, "0..1,000,000,000"),
        ("shown_most = 1", UnknownKey, "did you mean 'shown_max'"),
        ('asking = ["jobs"]', InvalidArgument, "'job', 'freelancer'"),
        ("asking = []", InvalidArgument, "a list of some"),
        (
            "enabled = true\nnewcomers_within = 3\nnewcomer_reviews_max = -1",
            InvalidArgument,
            "who is new",
        ),
        ("enabled = true\nnewcomers_within = 3\nnewcomer_days = 30", InvalidArgument, "joined"),
    ],
)
def test_what_the_section_refuses(text, error, said):
    with pytest.raises(error, match=said):
        Policy.parse("[exposure]\n" + text)
