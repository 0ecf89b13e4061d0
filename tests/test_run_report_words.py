"""What a report is made of: histograms, tallies, words and numbers."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from matchwright.engine.eligibility import Veto
from matchwright.engine.results import Shortfall
from matchwright.engine.runs.exposure_choice import Moved
from matchwright.engine.runs.report import words
from matchwright.engine.runs.report.histogram import Histogram, Tally, gini

# ── Histograms and tallies ────────────────────────────────────────────────────────────────────


@given(
    st.lists(st.floats(-1e6, 1e6).map(lambda v: v + 0.0), min_size=1, max_size=60),
    st.integers(0, 60),
)
@example([255.0, -5e-324], 1)
def test_a_histogram_depends_on_the_values_alone(values, cut):
    whole, parts = Histogram(), Histogram()
    whole.add(np.array(values))
    for piece in (values[cut:], values[:cut][::-1]):
        parts.add(np.array(piece))
    a, b = whole.done(), parts.done()
    assert (a.low, a.width, a.counts, a.n, a.least, a.most) == (
        b.low, b.width, b.counts, b.n, b.least, b.most
    )  # fmt: skip
    assert sum(a.counts) == len(values)
    assert len(a.counts) <= 256
    for n, number in enumerate(a.counts):
        low = a.low + n * a.width
        assert number == sum(low <= value < low + a.width for value in values)
    fewer = a.coarser(7)
    assert len(fewer.counts) <= 7
    assert sum(fewer.counts) == len(values)


def test_a_histogram_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="finite"):
        Histogram().add(np.array([1.0, math.nan]))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_gini_is_the_mean_difference(places):
    n, total = len(places), sum(places)
    expected = sum(abs(a - b) for a in places for b in places) / (2 * n * total) if total else 0.0
    assert gini(np.array(places)) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=5))
def test_a_tally_counts_each_key(batches):
    tally = Tally()
    for batch in batches:
        tally.add(np.array(batch, dtype=np.uint64))
    keys, counts = tally.done()
    expected = Counter(key for batch in batches for key in batch)
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == expected
    assert keys.tolist() == sorted(expected)


# ── Words ─────────────────────────────────────────────────────────────────────────────────────


def test_every_reason_has_words():
    assert set(words.VETO) == set(Veto)
    assert set(words.SHORTFALL) == set(Shortfall)
    assert set(words.MOVED) == {one.name.lower() for one in Moved} - {"not"}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (words.percent(0.5), "50%"),
        (words.percent(0.12345), "12.3%"),
        (words.percent(0.00001), "<0.1%"),
        (words.percent(0.99999), ">99.9%"),
        (words.percent(1.0), "100%"),
        (words.percent(0.0), "0%"),
        (words.percent(0.996, 0), ">99%"),
        (words.of(1, 0), "–"),
        (words.whole(1234567), "1,234,567"),
        (words.short(1234567), "1.2 M"),
        (words.short(34_000), "34 k"),
        (words.short(0.04), "0.04"),
        (words.ordinal(1), "1st"),
        (words.ordinal(12), "12th"),
        (words.ordinal(103), "103rd"),
        (words.money(1250), "12.50"),
        (words.money(120_000), "1,200"),
        (words.seconds(0.5), "0.50 s"),
        (words.seconds(250), "4 min 10 s"),
        (words.seconds(11_100), "3 h 05 min"),
        (words.day(20_454), "1 January 2026"),
        (words.moment("2026-01-02T03:04:05Z"), "2 Jan 2026, 03:04 UTC"),
        (words.moment("whenever"), "whenever"),
        (words.veto("NEW_ONE"), "New one"),
    ],
)
def test_numbers_in_words(made, expected):
    assert made == expected
