"""Each facet against its formula, within the largest error that its docstring states."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import polars as pl
import pytest

from matchwright.engine.generation import FacetParams, starter
from matchwright.engine.generation.facets import availability, category, hours, rate, recency
from matchwright.engine.generation.facets import experience as experience_
from matchwright.engine.generation.facets import skills as skills_
from matchwright.engine.generation.facets import track as track_
from matchwright.engine.generation.facets.base import Facet
from matchwright.engine.generation.fixed import GRID
from matchwright.engine.generation.zones import Zones, zones_of
from matchwright.engine.records import SCHEMAS, Kind
from matchwright.engine.table import FrameTable, RowTable
from matchwright.kernels.types import UNKNOWN

AS_OF = 20_454
PARAMS = FacetParams()
OTHER: dict[Kind, Kind] = {"job": "freelancer", "freelancer": "job"}


def frame(kind: Kind, rows: list[dict]) -> pl.DataFrame:
    return pl.DataFrame([{"id": str(n), **row} for n, row in enumerate(rows)], SCHEMAS[kind])


def products(
    facet: Facet,
    asks: Kind,
    queries: list[dict],
    rows: list[dict],
    params: FacetParams = PARAMS,
    as_of: int = AS_OF,
) -> np.ndarray:
    """(Q, N) inner products before rotation; NaN where either side is not known."""
    asking, others = frame(asks, queries), frame(OTHER[asks], rows)
    query = facet.query(asks, FrameTable(asking), params, as_of)
    block = facet.corpus(OTHER[asks], FrameTable(others))
    plain = facet.query(asks, RowTable(asking.to_dicts()), params, as_of)
    for name in ("raw_qw", "known_q", "best_q"):
        assert np.array_equal(getattr(query, name), getattr(plain, name)), "rows beside a frame"
    assert np.array_equal(
        block.raw_nw, facet.corpus(OTHER[asks], RowTable(others.to_dicts())).raw_nw
    )
    product = query.raw_qw @ block.raw_nw.T / GRID**2
    product[~query.known_q] = np.nan
    product[:, ~block.known_n] = np.nan
    known = np.where(np.isnan(product), -1, product)
    assert (known.max(axis=1) <= query.best_q + 1e-4).all(), "best is not the best"
    return product


# ── rate ──────────────────────────────────────────────────────────────────────────────────────


def test_rate_of_a_job() -> None:
    facet = rate.Rate()
    cents = [100, 800, 2_000, 4_400, 4_500, 6_100, 9_000, 12_000]
    got = products(
        facet,
        "job",
        [{"rate_max_cents": 4_500}, {"rate_min_cents": 10}, {"fixed_cents": 10}],
        [{"rate_cents": c} for c in cents] + [{}],
    )
    assert np.isnan(got[1:]).all()
    assert np.isnan(got[0, -1])
    assert (got[0, :5] == 1.0).all(), "within the budget all are equal"
    exact = np.clip(2 - np.array(cents) / 4_500, 0, 1)
    assert (got[0, :-1] >= np.round(exact, 4) - 1e-4).all()
    assert got[0, 5] <= 1
    assert got[0, 7] == 0.0


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0])
def test_rate_errs_as_stated(tolerance: float) -> None:
    tops = list(range(1_000, 15_000, 700))
    rates = list(range(500, 25_000, 130))
    params = FacetParams(rate_tolerance=tolerance)
    jobs, people = [{"rate_max_cents": c} for c in tops], [{"rate_cents": c} for c in rates]
    over = (np.array(rates)[None, :] / np.array(tops)[:, None] - 1) / tolerance
    exact = np.clip(1 - over, 0, 1)
    got = products(rate.Rate(), "job", jobs, people, params)
    most = 0.5 / tolerance + 1e-5
    assert np.abs(got - exact).max() <= most
    assert (got[over <= 0] == 1.0).all()
    back = products(rate.Rate(), "freelancer", people, jobs, params)
    assert np.abs(back - exact.T).max() <= most * 1.35
    assert (back[over.T <= 0] == 1.0).all()


def test_rate_knots_are_fitted_to_named_sums() -> None:
    cents = [1_000, 1_500, 2_000, 2_500, 3_000, 5_000] * 50 + [30_000]
    people = frame("freelancer", [{"rate_cents": c} for c in cents])
    fitted = rate.fit(frame("job", [{"rate_max_cents": 4_000}] * 30), people)
    assert len(fitted.knots) == rate.WIDTH
    assert {1_000, 1_500, 2_000, 2_500, 3_000, 4_000, 5_000} <= set(fitted.knots)
    assert list(fitted.knots) == sorted(set(fitted.knots))


@pytest.mark.parametrize("cents", [[], [500], [1, 2], [1, 100_000_000], list(range(1, 40))])
def test_rate_knots_of_odd_populations(cents: list[int]) -> None:
    fitted = rate.fit(frame("job", []), frame("freelancer", [{"rate_cents": c} for c in cents]))
    assert len(fitted.knots) == rate.WIDTH
    assert all(0 < a < b for a, b in itertools.pairwise(fitted.knots))


def test_no_knot_tells_what_fewer_than_five_ask() -> None:
    cents = [4_177, 12_345, 3_333, 77, 98_765_432] + [2_510] * 5 + [2_733] * 4
    people = frame("freelancer", [{"rate_cents": c} for c in cents])
    knots = set(rate.fit(frame("job", []), people).knots)
    assert 2_510 in knots
    assert not knots & {4_177, 12_345, 3_333, 77, 98_765_432, 2_733}


# ── experience ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("asks", ["job", "freelancer"])
def test_experience_is_the_matrix(asks: Kind) -> None:
    levels = [{"experience_level": name} for name in ("ENTRY", "INTERMEDIATE", "EXPERT")]
    got = products(experience_.Experience(), asks, levels, [*levels, {}])
    matrix = np.array(PARAMS.experience_utility)
    assert np.allclose(got[:, :3], matrix if asks == "job" else matrix.T, atol=1e-5)
    assert np.isnan(got[:, 3]).all()


# ── hours ─────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def zones() -> Zones:
    return zones_of(2026)


def _covered(job: tuple[int, int], own: tuple[int, int]) -> float:
    def minutes(window: tuple[int, int]) -> set[int]:
        start, end = window
        length = (end - start) % 1_440 or 1_440
        return {(start + m) % 1_440 for m in range(length)}

    wanted = minutes(job)
    return len(wanted & minutes(own)) / len(wanted)


def _window(window: tuple[int, int], zone: str = "UTC") -> dict:
    return {"hours_start": window[0], "hours_end": window[1], "zone": zone}


@pytest.mark.parametrize("asks", ["job", "freelancer"])
def test_hours_share_of_the_wanted_window(asks: Kind) -> None:
    windows = [(540, 1_020), (0, 1_440), (1_320, 360), (547, 1_033), (600, 600), (610, 700)]
    facet = hours.Hours(zones())
    rows = [_window(w) for w in windows]
    got = products(facet, asks, rows, rows)
    for q, n in itertools.product(range(len(windows)), repeat=2):
        job, own = (windows[q], windows[n]) if asks == "job" else (windows[n], windows[q])
        length = (job[1] - job[0]) % 1_440 or 1_440
        assert abs(got[q, n] - _covered(job, own)) <= 22.5 / length + 1e-4


def test_hours_zones() -> None:
    facet = hours.Hours(zones())
    rows = [
        _window((540, 1_020), "UTC"),
        _window((540, 1_020), "Asia/Tokyo"),
        _window((1_080, 120), "Asia/Tokyo"),  # 9:00 to 17:00 UTC
        _window((540, 1_020), "Nowhere/Else"),
        {"zone": "UTC"},
    ]
    got = products(facet, "job", rows[:1], rows)[0]
    assert got[0] == got[2] == pytest.approx(1, abs=22.5 / 480)
    assert got[1] == pytest.approx(0, abs=1e-4)
    assert np.isnan(got[3:]).all()


def test_zone_table() -> None:
    table = zones()
    place = table.index("Europe/Paris")
    assert (table.names[place], table.mean_minutes[place]) == ("Europe/Paris", 90)
    assert table.mean_minutes[table.index("Asia/Kolkata")] == 330
    assert table.mean_minutes[table.index("America/New_York")] == -270
    assert table.index("Nowhere/Else") == table.index(None) == UNKNOWN
    assert table.indexes(pl.Series(["UTC", None, "x"])).tolist()[1:] == [UNKNOWN, UNKNOWN]
    assert starter().zone_index("Europe/Paris") == starter().zones.index("Europe/Paris")


# ── category ──────────────────────────────────────────────────────────────────────────────────


def test_category_same_or_not() -> None:
    names = [f"c{n}" for n in range(10)]
    people = frame("freelancer", [{"categories": [name]} for name in names for _ in range(5)])
    facet = category.fit(frame("job", []), people)
    assert set(facet.own) == set(names)
    got = products(
        facet,
        "job",
        [{"category": "C1 "}, {"category": None}, {"category": " "}],
        [{"categories": ["c1"]}, {"categories": ["c2", "c3"]}, {"categories": []}, {}],
    )
    assert got[0, :2].tolist() == [1, 0]
    assert np.isnan(got[0, 2:]).all()
    assert np.isnan(got[1:]).all()


def test_only_five_categories_count() -> None:
    facet = category.Category(tuple(f"c{n}" for n in range(24)))
    everything = [{"categories": [f"c{n}" for n in range(24)]}]
    got = products(facet, "job", [{"category": "c4"}, {"category": "c5"}], everything)
    assert got[:, 0].tolist() == [1, 0]


def test_a_category_of_four_entities_is_not_learnt() -> None:
    four = frame("freelancer", [{"categories": ["rare", "rare"]}] * 4)
    assert category.fit(frame("job", []), four).own == ()
    assert category.fit(frame("job", [{"category": "Rare"}]), four).own == ("rare",)


# ── skills ────────────────────────────────────────────────────────────────────────────────────


def _skills(*names: str, level: int | None = None, **more: object) -> dict:
    return {"skills": [{"name": name, "level": level, **more} for name in names]}


@functools.cache
def fitted_skills() -> skills_.Skills:
    rng = np.random.default_rng(5)
    people = [
        _skills(*{f"s{min(int(n), 139)}" for n in rng.exponential(30, 6)}) for _ in range(900)
    ]
    return skills_.fit(frame("job", []), frame("freelancer", people))


def test_skills_coverage_is_weighted_by_idf_and_must() -> None:
    facet = fitted_skills()
    asked = [
        {"name": "s1", "level": None, "must": True},
        {"name": "s40", "level": None, "must": False},
    ]
    got = products(
        facet,
        "job",
        [{"skills": asked}],
        [_skills("s1"), _skills("s40"), _skills("s1", "s40", "s3")],
    )[0]
    must, nice = 2 * facet.weight("s1"), facet.weight("s40")
    assert facet.weight("s40") > facet.weight("s1")
    assert got == pytest.approx([must / (must + nice), nice / (must + nice), 1], abs=1e-5)


def test_skills_levels_and_the_mean_of_those_stated() -> None:
    people = frame("freelancer", [_skills("a", level=5), _skills("a", level=1), _skills("a")])
    facet = skills_.fit(frame("job", []), people)
    assert facet.level_unknown == 800
    rows = [_skills("a", level=n) for n in (1, 5, None)]
    got = products(facet, "job", [_skills("a")], rows)[0]
    assert got == pytest.approx([0.6, 1.0, 0.8], abs=1e-5)


def test_skills_direction_does_not_matter() -> None:
    facet = fitted_skills()
    jobs = [_skills("s1", "s50", "s130"), _skills("s2", must=True)]
    people = [_skills("s1", "s2", level=3), _skills("s50", "never seen")]
    assert (
        products(facet, "job", jobs, people) == products(facet, "freelancer", people, jobs).T
    ).all()


def test_skills_known_or_not() -> None:
    got = products(fitted_skills(), "job", [_skills("s1"), {}], [{}, {"skills": []}, _skills("s2")])
    assert np.isnan(got[0, :2]).all()
    assert got[0, 2] == 0.0
    assert np.isnan(got[1]).all()


def test_a_skill_listed_twice_counts_once() -> None:
    got = products(fitted_skills(), "job", [_skills("s1", "s1", "s2")], [_skills("s1")])
    once = products(fitted_skills(), "job", [_skills("s1", "s2")], [_skills("s1")])
    assert got == once


def test_a_skill_of_four_people_is_not_learnt() -> None:
    assert skills_.fit(frame("job", []), frame("freelancer", [_skills("rare")] * 4)).names == ()
    assert skills_.fit(frame("job", []), frame("freelancer", [_skills("a")] * 5)).names == ("a",)


def test_frequent_skills_own_their_dimension() -> None:
    facet = fitted_skills()
    assert facet.own == skills_.OWN_MAX
    assert [facet.dim(name) for name in facet.names[:96]] == list(range(96))
    assert all(96 <= facet.dim(name) < 128 for name in (*facet.names[96:], "never seen"))


# ── track ─────────────────────────────────────────────────────────────────────────────────────


def test_track_is_the_shrunk_value() -> None:
    facet = track_.Track(900, 800, 950)
    rows = [
        {"reviews": 0},
        {"reviews": 8, "rating_milli": 5_000},
        {"reviews": 1_000_000, "rating_milli": 5_000, "success_permille": 1_000},
        {"rating_milli": 0},
        {},
    ]
    got = products(facet, "job", [{}], rows)[0]
    assert got[0] == pytest.approx(0.7 * 0.9 + 0.3 * 0.8, abs=1e-4)
    assert got[1] == pytest.approx(0.7 * 0.95 + 0.3 * 0.8, abs=1e-4)
    assert got[2] == pytest.approx(1.0, abs=1e-4)
    assert got[3] == pytest.approx(0.7 * 0.8 + 0.3 * 0.8, abs=1e-4)
    assert np.isnan(got[4])
    client = [{"client_reviews": 24, "client_rating_milli": 4_000}]
    got = products(facet, "freelancer", [{}], client)[0]
    assert got[0] == pytest.approx(0.75 * 0.8 + 0.25 * 0.95, abs=1e-4)


def test_track_priors_leave_out_zero_of_no_reviews() -> None:
    people = 5 * [
        {"reviews": 0, "rating_milli": 0, "success_permille": 0},
        {"reviews": 3, "rating_milli": 4_000, "success_permille": 500},
    ]
    fitted = track_.fit(frame("job", []), frame("freelancer", people))
    assert (fitted.freelancer_rating, fitted.freelancer_success) == (800, 500)
    assert fitted.client_rating == track_.Track().client_rating
    few = track_.fit(frame("job", []), frame("freelancer", people[:8]))
    assert few == track_.Track()


# ── availability ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("asks", ["job", "freelancer"])
def test_availability_errs_as_stated(asks: Kind) -> None:
    every = np.arange(0, 61)
    rows = [{"weekly_hours": int(h)} for h in every]
    got = products(availability.Availability(), asks, rows, [*rows, {}])
    assert np.isnan(got[:, -1]).all()
    asked, own = (every[:, None], every) if asks == "job" else (every, every[:, None])
    exact = np.minimum(1, own / np.maximum(asked, 5))
    error = np.abs(got[:, :-1] - exact)
    assert error.max() <= 0.18
    assert error[np.broadcast_to(asked >= 20, error.shape)].max() <= 0.11
    knots = (np.isin(asked, availability._KNOTS) & (asked > 0)) & np.isin(own, availability._KNOTS)
    assert error[np.broadcast_to(knots, error.shape)].max() <= 1e-5


# ── recency ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("half_life", [14.0, 60.0])
@pytest.mark.parametrize("later", [0, 3, 10, 20, 30, 60, 100])
def test_recency_errs_as_stated(half_life: float, later: int) -> None:
    facet = recency.fit(AS_OF)
    params = FacetParams(last_active_half_life_days=half_life)
    today = AS_OF + later
    days = np.arange(AS_OF - 730, today + 30)
    rows = [{"last_active": int(d)} for d in days]
    got = products(facet, "job", [{}], [*rows, {}], params, today)[0]
    assert np.isnan(got[-1])
    exact = half_life / (half_life + np.maximum(today - 7 - days, 0))
    error = got[:-1] - exact
    assert error.min() >= -1e-5
    knots = np.array(facet.knots)
    edge = int(np.searchsorted(knots, today - 7, side="right")) - 1
    gap = np.diff(knots[edge - 1 : edge + 2]).max()
    assert error.max() <= gap / (half_life + gap)
    assert error[days <= knots[edge - 1]].max() <= 0.03
    assert (got[:-1][days >= today - 7] == 1.0).all(), "the plateau is flat"


def test_recency_of_jobs_has_its_own_half_life() -> None:
    facet = recency.fit(AS_OF)
    old = [{"posted": AS_OF - 7 - 14}]
    got = products(facet, "freelancer", [{}], old, FacetParams(posted_half_life_days=14.0))
    assert got[0, 0] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("today", [0, 10_000, AS_OF + 100_000])
def test_recency_far_from_the_fit(today: int) -> None:
    rows = [{"last_active": AS_OF}, {"last_active": 0}, {"last_active": 47_846}]
    got = products(recency.fit(AS_OF), "job", [{}], rows, PARAMS, today)
    assert ((got >= 0) & (got <= 1)).all()
