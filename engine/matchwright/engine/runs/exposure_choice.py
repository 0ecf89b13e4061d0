"""Which of a query's stored rows are shown, and in what order: arrays in, arrays out.

A query's stored rows are *slots* 0..W-1 in the order of the 96-bit key: the first K, then slack. A
block of Q queries is worked on at once; a slot that does not exist has row -1. Which slots are
*admitted* is decided elsewhere (``exposure_cap``). From the admitted ones the order is made so:

1. *alike*: the first places go, in order, to slots whose group has fewer than ``alike_max`` there;
   the others follow, in order.
2. *newcomers*: where no newcomer is among the first ``newcomers_within``, the first one behind them
   that loses no more than allowed takes the last of these places.
3. The first K are shown. Where fewer are admitted than the query had before, slots that are not
   admitted fill the places, in order, at the end: an answer is never made shorter.

The others keep their first order behind the K: nothing that was stored is lost.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.engine.policy_exposure import Exposure
from matchwright.kernels.types import Bool, Int32, Int64, UInt8

Slots = NDArray[np.int16]
"""Slots of a block of queries, (Q, ...); -1 where there is none."""


class Moved(enum.IntEnum):
    """Why a row stands where it stands; the names are what Parquet files hold, in lower case."""

    NOT = 0
    """It stands where its score puts it."""
    ENTERED = 1
    """From beyond K, into a place that became free."""
    SHIFTED = 2
    """Only because others moved."""
    NEWCOMER = 3
    """Lifted, so that a newcomer is among the first."""
    ALIKE = 4
    """Put back: the first places hold enough of its group."""
    OVER_CAP = 5
    """Beyond the cap, at the end: nobody else is stored who could be shown."""
    CAPPED = 6
    """No longer shown: the person is at the cap, with queries that rank it higher."""
    DISPLACED = 7
    """No longer shown: a newcomer took a place."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Stored rows of some queries.

    Attributes:
        person_qw: int32 (Q, W), who is in each slot; -1 where nobody is.
        points_qw: int32 (Q, W).
    """

    person_qw: Int32
    points_qw: Int32

    @property
    def there_qw(self) -> Bool:
        return np.asarray(self.person_qw >= 0)


@dataclass(frozen=True, slots=True, eq=False)
class People:
    """What is known of everybody who could be shown.

    Attributes:
        new_n: bool (N,).
        group_n: int32 (N,), equal for people who say the same; -1 for nobody else's.
    """

    new_n: Bool
    group_n: Int32


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The order of a block.

    Attributes:
        slot_qw: int16 (Q, W), which slot has each place: first the ``shown_q`` that are shown,
            then the others in their first order; -1 beyond the last.
        moved_qw: uint8 (Q, W), ``Moved``.
        shown_q: int64 (Q,).
    """

    slot_qw: Slots
    moved_qw: UInt8
    shown_q: Int64


def chosen(block: Block, admitted_qw: Bool, people: People, k: int, ask: Exposure) -> Bool:
    """bool (Q, W): the admitted slots that are shown."""
    if _plain(ask):
        return admitted_qw & (np.cumsum(admitted_qw, axis=1, dtype=np.int16) <= k)
    order, _, _ = _ordered(block, admitted_qw, people, k, ask)
    return _marked(order[:, :k], block.person_qw.shape)


def choose(block: Block, admitted_qw: Bool, people: People, k: int, ask: Exposure) -> Choice:
    """The order of a block once it is known who is admitted."""
    order, lifted_q, put_back_qw = _ordered(block, admitted_qw, people, k, ask)
    there = block.there_qw
    shown_q = np.minimum(there.sum(axis=1), k)
    taken = _marked(order[:, :k], there.shape)
    missing_q = shown_q - taken.sum(axis=1)
    spare = there & ~admitted_qw
    filled = spare & (np.cumsum(spare, axis=1) <= missing_q[:, None])
    # Shown places keep their new order, those that fill up follow, then all others as they were.
    place_qw = np.full(there.shape, 3 * there.shape[1], dtype=np.int64)
    slot = np.arange(there.shape[1])
    place_qw[there] = np.broadcast_to(slot + 2 * slot.size, there.shape)[there]
    place_qw[filled] = np.broadcast_to(slot + slot.size, there.shape)[filled]
    line, place = np.nonzero(order[:, :k] >= 0)
    place_qw[line, order[line, place]] = place
    slot_qw = np.argsort(place_qw, axis=1, kind="stable").astype(np.int16)
    slot_qw[slot >= there.sum(axis=1)[:, None]] = -1
    flags = _Flags(taken | filled, filled, put_back_qw, admitted_qw)
    return Choice(slot_qw, _reasons(slot_qw, flags, lifted_q, k), shown_q)


@dataclass(frozen=True, slots=True, eq=False)
class _Flags:
    """bool (Q, W) over slots."""

    shown: Bool
    filled: Bool
    put_back: Bool
    admitted: Bool


def groups_over(block: Block, order: Slots, people: People, most: int) -> Bool:
    """bool (Q,): more than ``most`` of one group are among these slots."""
    group = np.sort(_groups(block, order, people), axis=1)
    if group.shape[1] <= most:
        return np.zeros(group.shape[0], dtype=np.bool_)
    over: Bool = ((group[:, most:] == group[:, :-most]) & (group[:, most:] >= 0)).any(axis=1)
    return over


def _plain(ask: Exposure) -> bool:
    return not (ask.newcomers_within or ask.alike_within)


def _ordered(
    block: Block, admitted_qw: Bool, people: People, k: int, ask: Exposure
) -> tuple[Slots, NDArray[np.int16], Bool]:
    """(slots (Q, W) in the new order, the lifted newcomer's slot (Q,) or -1, put back (Q, W))."""
    within, newcomers = min(ask.alike_within, k), min(ask.newcomers_within, k)
    ask = replace(ask, alike_within=within, newcomers_within=newcomers)
    order = _in_order(admitted_qw)
    put_back = np.zeros(admitted_qw.shape, dtype=np.bool_)
    lifted = np.full(order.shape[0], -1, dtype=np.int16)
    if ask.alike_within:
        order, put_back = _apart(block, order, people, ask)
    if ask.newcomers_within:
        order, lifted = _lift(block, order, people, ask)
    return order, lifted, put_back


def _in_order(flags_qw: Bool) -> Slots:
    """int16 (Q, W): the slots that are set, ascending, then -1."""
    q, w = flags_qw.shape
    order = np.full((q, w), -1, dtype=np.int16)
    line, slot = np.nonzero(flags_qw)
    count = flags_qw.sum(axis=1)
    place = np.arange(line.size) - np.repeat(np.cumsum(count) - count, count)
    order[line, place] = slot
    return order


def _marked(order: Slots, shape: tuple[int, ...]) -> Bool:
    flags = np.zeros((shape[0], shape[1] + 1), dtype=np.bool_)
    np.put_along_axis(flags, order.astype(np.int64), True, axis=1)  # -1 marks the spare column
    return flags[:, :-1]


def _taken(values_qw: NDArray[Any], order: Slots, nobody: int) -> NDArray[Any]:
    """Values in a new order; ``nobody`` where the order ends."""
    found = np.take_along_axis(values_qw, np.maximum(order, 0).astype(np.int64), axis=1)
    return np.where(order >= 0, found, nobody)


def _groups(block: Block, order: Slots, people: People) -> Int32:
    person = _taken(block.person_qw, order, -1)
    group: Int32 = np.where(person >= 0, people.group_n[np.maximum(person, 0)], -1)
    return group


def _apart(block: Block, order: Slots, people: People, ask: Exposure) -> tuple[Slots, Bool]:
    """The order in which the first places hold at most so many of a group, and who was put back."""
    within, most = ask.alike_within, ask.alike_max
    q, w = order.shape
    group = _groups(block, order, people)
    front = np.full((q, within), -1, dtype=np.int32)
    size = np.zeros(q, dtype=np.int64)
    in_front = np.zeros((q, w), dtype=np.bool_)
    passed = np.zeros((q, w), dtype=np.bool_)
    for place in range(w):
        open_q = (size < within) & (order[:, place] >= 0)
        if not open_q.any():
            break
        one = group[:, place]
        full = (one >= 0) & ((front == one[:, None]).sum(axis=1) >= most)
        taken = np.flatnonzero(open_q & ~full)
        front[taken, size[taken]] = one[taken]
        size[taken] += 1
        in_front[taken, place] = True
        passed[:, place] = open_q & full
    rank = np.where(in_front, 0, np.where(order >= 0, 1, 2)).astype(np.int8)
    turn = np.argsort(rank, axis=1, kind="stable")
    put_back = _marked(np.where(passed, order, -1), (q, w))
    return np.take_along_axis(order, turn, axis=1), put_back


def _lift(
    block: Block, order: Slots, people: People, ask: Exposure
) -> tuple[Slots, NDArray[np.int16]]:
    """The order with a newcomer among the first, and the slot that was lifted; -1 where none."""
    within = ask.newcomers_within
    q, w = order.shape
    lifted = np.full(q, -1, dtype=np.int16)
    if w <= within:
        return order, lifted
    person = _taken(block.person_qw, order, -1)
    new = (person >= 0) & people.new_n[np.maximum(person, 0)]
    points = _taken(block.points_qw, order, 0).astype(np.int64)
    least = points[:, within - 1] - (
        np.abs(points[:, within - 1]) * ask.newcomer_loss_permille // 1_000
    )
    fits = new & (points >= least[:, None])
    fits[:, :within] = False
    fits[new[:, :within].any(axis=1)] = False
    if ask.alike_within:
        fits &= _room_for(_groups(block, order, people), ask)
    line = np.flatnonzero(fits.any(axis=1))
    source = fits[line].argmax(axis=1)
    lifted[line] = order[line, source]
    turn = np.tile(np.arange(w), (line.size, 1))
    shifted = (turn >= within) & (turn <= source[:, None])
    turn = np.where(shifted, turn - 1, turn)
    turn[:, within - 1] = source
    order = order.copy()
    order[line] = np.take_along_axis(order[line], turn, axis=1)
    return order, lifted


def _room_for(group: Int32, ask: Exposure) -> Bool:
    """bool (Q, W): lifting a place leaves no more of its group in front than allowed."""
    within, front = ask.newcomers_within, min(ask.alike_within, group.shape[1])
    same = np.zeros(group.shape, dtype=np.int64)
    for place in range(front):
        mine = (group == group[:, place : place + 1]) & (group >= 0)
        mine[:, place] = False  # itself
        if place == front - 1 and within <= front:
            mine[:, front:] = False  # it is the one that makes room
        same += mine
    room: Bool = (same < ask.alike_max) | (within > front)
    return room


def _reasons(slot_qw: Slots, flags: _Flags, lifted_q: NDArray[np.int16], k: int) -> UInt8:
    there = slot_qw >= 0
    shown, filled, back, admitted = (
        np.take_along_axis(flag, np.maximum(slot_qw, 0).astype(np.int64), axis=1) & there
        for flag in (flags.shown, flags.filled, flags.put_back, flags.admitted)
    )
    moved = np.zeros(slot_qw.shape, dtype=np.uint8)
    moved[slot_qw != np.arange(slot_qw.shape[1])] = Moved.SHIFTED
    was_shown = slot_qw < k
    moved[shown & ~was_shown] = Moved.ENTERED
    moved[~shown & was_shown] = Moved.DISPLACED
    moved[back & (moved != Moved.NOT)] = Moved.ALIKE
    moved[~shown & was_shown & ~admitted] = Moved.CAPPED
    moved[(slot_qw == lifted_q[:, None]) & (lifted_q >= 0)[:, None]] = Moved.NEWCOMER
    moved[filled] = Moved.OVER_CAP
    moved[~there] = Moved.NOT
    return moved
