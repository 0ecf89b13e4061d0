"""What somebody can gain by gaming their profile: one test for each trick, with its largest gain.

All gains are in score, per unit of the facet's weight, and count quantisation as gain: the slack of
a facet of width w that interpolates on knots is sqrt(w) / 127 (an int8 grid errs by half a step at
each of w entries, on both of two compared rows; see docs/scoring.md).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest

from matchwright.engine import synthetic
from matchwright.engine.generation import FacetParams, Generation, fit, starter
from matchwright.engine.records import SCHEMAS
from matchwright.engine.records.scrub import scrub

AS_OF = synthetic.AS_OF
PARAMS = FacetParams()
WEIGHTS = {
    "text": 1.0, "skills": 2.0, "rate": 0.75, "experience": 0.5, "hours": 0.25, "category": 0.5,
    "track": 0.75, "availability": 0.25, "recency": 0.25,
}  # fmt: skip
FIELDS = {
    "skills": ["skills"],
    "rate": ["rate_cents"],
    "experience": ["experience_level"],
    "hours": ["zone", "hours_start", "hours_end"],
    "category": ["categories"],
    "track": ["reviews", "rating_milli", "success_permille"],
    "availability": ["weekly_hours"],
    "recency": ["last_active"],
}
WIDTH = {"rate": 16, "track": 16, "recency": 16, "availability": 8, "experience": 8}


def slack(facet: str) -> float:
    """What quantisation may add to the difference of two rows, per unit of weight."""
    return float(np.sqrt(WIDTH[facet])) / 127


@functools.cache
def people() -> pl.DataFrame:
    return synthetic.frame("freelancer", 1_500)


@functools.cache
def jobs() -> pl.DataFrame:
    full = synthetic.frame("job", 1_500).drop_nulls(
        ["title", "skills", "rate_max_cents", "experience_level", "zone", "hours_start", "category"]
    )
    return full.drop_nulls(["weekly_hours"])[:20]


@functools.cache
def fitted() -> Generation:
    return fit(synthetic.frame("job", 1_000), people(), seed=1, as_of=AS_OF)


@pytest.fixture(params=["starter", "fitted"])
def generation(request: pytest.FixtureRequest) -> Generation:
    return starter() if request.param == "starter" else fitted()


def shown(
    generation: Generation, rows: pl.DataFrame, asking: pl.DataFrame | None = None
) -> dict[str, np.ndarray]:
    """Facet -> (jobs, rows) contribution to the score, per unit of weight."""
    asking = jobs() if asking is None else asking
    made = generation.quantise(generation.query("job", asking, PARAMS, AS_OF), "job", WEIGHTS)
    x_nd = generation.encode("freelancer", rows).x_nd.astype(np.int64)
    found = {}
    for name, start, width in generation.facets:
        block = slice(start, start + width)
        points = made.q_qd[:, block].astype(np.int64) @ x_nd[:, block].T
        found[name] = points * made.t_q[:, None] / WEIGHTS[name]
    return found


def variants(record: Mapping[str, Any], *changes: Mapping[str, Any]) -> pl.DataFrame:
    """A record and what it becomes with each of the changes."""
    return pl.DataFrame(
        [dict(record), *({**record, **change} for change in changes)], SCHEMAS["freelancer"]
    )


def somebody(**more: Any) -> dict[str, Any]:
    return {**people()[7].to_dicts()[0], **more}


# ── Hide a field ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("facet", list(FIELDS))
def test_hiding_a_field_gives_the_mean_and_nothing_else(generation: Generation, facet: str) -> None:
    """Largest gain: the population's mean less one's own fit; nothing for who fits as the mean."""
    hidden = people()[:300].with_columns(pl.lit(None).alias(name) for name in FIELDS[facet])
    hidden = hidden.cast(SCHEMAS["freelancer"])  # type: ignore[arg-type]
    before, after = shown(generation, people()[:300]), shown(generation, hidden)
    nobody = shown(generation, pl.DataFrame([{"id": "x"}], SCHEMAS["freelancer"]))
    assert (after[facet] == nobody[facet]).all(), "a hidden field is worth the neutral amount"
    touched = {facet, "text"} if facet == "skills" else {facet}
    for other in set(WEIGHTS) - touched:
        assert (before[other] == after[other]).all()
    gain = after[facet] - before[facet]
    assert (gain <= np.maximum(nobody[facet] - before[facet], 0) + 1e-12).all()
    if generation is fitted():
        assert nobody[facet].mean() < 0.95, "the neutral amount is not the best"


def test_hiding_the_level_of_a_skill() -> None:
    """Largest gain: 0.4 of the skill's weight, for a beginner whom the mean flatters; else none."""
    states = fitted().manifest.skills
    for level, own in enumerate((600, 700, 800, 900, 1_000), 1):
        stated = somebody(skills=[{"name": "Python", "level": level}])
        rows = variants(stated, {"skills": [{"name": "Python", "level": None}]})
        asked = pl.DataFrame(
            [{"id": "j", "skills": [{"name": "Python", "level": None, "must": True}]}],
            SCHEMAS["job"],
        )
        got = shown(fitted(), rows, asked)["skills"][0]
        assert got[1] - got[0] == pytest.approx((states.level_unknown - own) / 1_000, abs=0.05)
    assert states.level_unknown < 1_000


# ── Say too much ──────────────────────────────────────────────────────────────────────────────


def _many(n: int) -> list[dict[str, Any]]:
    names = [name for job in jobs()["skills"].to_list() for name in (s["name"] for s in job)]
    names = [*dict.fromkeys(names), *(f"skill {i}" for i in range(200))]
    return [{"name": name, "level": None} for name in names[:n]]


def test_listing_200_skills(generation: Generation) -> None:
    """Largest gain over listing the best 30: none, to the byte. Over anything: the weight."""
    rows = variants(somebody(skills=_many(200)), {"skills": _many(30)})
    x_nd = generation.encode("freelancer", rows).x_nd
    assert x_nd[0].tobytes() == x_nd[1].tobytes()
    assert shown(generation, rows)["skills"].max() <= 1.05


def test_listing_every_category(generation: Generation) -> None:
    """Largest gain over the best five: none, to the byte."""
    names = [f"category {n}" for n in range(40)]
    x_nd = generation.encode(
        "freelancer", variants(somebody(categories=names), {"categories": names[:5]})
    ).x_nd
    assert x_nd[0].tobytes() == x_nd[1].tobytes()


def test_pasting_the_text_of_the_job(generation: Generation) -> None:
    """Largest gain: the text's weight, less one's own cosine; no other facet moves."""
    for job in jobs().to_dicts()[:10]:
        own = somebody()
        pasted = {"title": job["title"], "text": job["text"]}
        often = {"title": job["title"], "text": " ".join([job["text"] or ""] * 50)}
        asking = pl.DataFrame([job], SCHEMAS["job"])
        found = shown(generation, variants(own, pasted, often), asking)
        assert (found["text"] <= 1.01).all()
        for other in set(WEIGHTS) - {"text"}:
            assert (found[other] == found[other][:, :1]).all()


def test_working_around_the_clock(generation: Generation) -> None:
    """Largest gain: the hours' weight, less one's own overlap."""
    rows = variants(somebody(zone="UTC", hours_start=540, hours_end=1_020), {"hours_end": 540})
    assert shown(generation, rows)["hours"].max() <= 1.05


# ── Hidden characters ─────────────────────────────────────────────────────────────────────────

INVISIBLE = ["\u200b", "\u200d", "\u2060", "\ufeff", "\u202e", "\u2066", "\u00ad", "\ufe0f"]


@pytest.mark.parametrize("char", INVISIBLE, ids=lambda c: f"u{ord(c):04x}")
def test_zero_width_and_bidi_characters(generation: Generation, char: str) -> None:
    """Largest gain: none, to the byte."""
    plain = somebody(title="Senior Python developer", text="Docker and Kubernetes, C++ too")
    hidden = {key: char + char.join(plain[key]) for key in ("title", "text")}
    scrubbed = {key: scrub(hidden[key]) for key in ("title", "text")}
    x_nd = generation.encode("freelancer", variants(plain, hidden, scrubbed)).x_nd
    assert len({row.tobytes() for row in x_nd}) == 1


def test_full_width_letters(generation: Generation) -> None:
    """Largest gain: none, to the byte."""
    rows = variants(somebody(title="Python", text="a"), {"title": "Ｐｙｔｈｏｎ"})
    x_nd = generation.encode("freelancer", rows).x_nd
    assert x_nd[0].tobytes() == x_nd[1].tobytes()


# ── Numbers ───────────────────────────────────────────────────────────────────────────────────


def test_a_rate_of_one_dollar(generation: Generation) -> None:
    """Largest gain over any rate within the budget: quantisation alone, sqrt(16) / 127."""
    tops = jobs()["rate_max_cents"].to_list()
    for n, top in enumerate(tops):
        within = [{"rate_cents": cents} for cents in (top, top - 1, top // 2, top // 3)]
        found = shown(generation, variants(somebody(rate_cents=100), *within), jobs()[n])["rate"][0]
        assert found[0] - found[1:].min() <= slack("rate")
        assert found.min() >= 1 - slack("rate")


def test_touching_last_active_daily(generation: Generation) -> None:
    """Largest gain over coming by once a week: quantisation alone, sqrt(16) / 127."""
    days = [{"last_active": AS_OF - age} for age in range(8)]
    found = shown(generation, variants(somebody(last_active=AS_OF), *days))["recency"]
    assert (found.max(axis=1) - found.min(axis=1)).max() <= slack("recency")


def test_a_date_in_the_future(generation: Generation) -> None:
    """Largest gain over having been here today: quantisation alone, sqrt(16) / 127."""
    future = [{"last_active": AS_OF + ahead} for ahead in (1, 10, 100, 1_000, 20_000)]
    found = shown(generation, variants(somebody(last_active=AS_OF), *future))["recency"]
    assert (found - found[:, :1]).max() <= slack("recency")


def test_one_review_of_five_stars(generation: Generation) -> None:
    """Largest gain over having no reviews: a ninth of the way to 1, and quantisation."""
    nothing = {"reviews": 0, "rating_milli": None, "success_permille": None}
    best = {"reviews": 1, "rating_milli": 5_000, "success_permille": 1_000}
    found = shown(generation, variants(somebody(**nothing), best))["track"][0]
    assert found[1] - found[0] <= (1 - found[0] + slack("track")) / 9 + slack("track")


def test_hours_that_nobody_can_work(generation: Generation) -> None:
    """Largest gain over the hours asked for: 0.18 by interpolation, and quantisation."""
    for n, asked in enumerate(jobs()["weekly_hours"].to_list()):
        rows = variants(somebody(weekly_hours=168), {"weekly_hours": asked})
        found = shown(generation, rows, jobs()[n])["availability"][0]
        assert found[0] - found[1] <= 0.18 + slack("availability")


# ── First names ───────────────────────────────────────────────────────────────────────────────

SENTENCES = (
    "My name is {name} and I build data pipelines in Python.",
    "{name} here: ten years of accounting. Ask {name} about SAP.",
    "Hi, I'm {name}, a careful translator.",
)
NAMES = ("Maria", "Mohammed", "John", "Aisha", "Wei", "Olga", "Lakisha", "Emily")


@pytest.mark.parametrize("sentence", SENTENCES)
def test_swapping_first_names(generation: Generation, sentence: str) -> None:
    """Largest gain: none, to the byte. Texts are scrubbed when records are made."""
    texts = [{"text": scrub(sentence.format(name=name))} for name in NAMES]
    x_nd = generation.encode("freelancer", variants(somebody(), *texts)).x_nd[1:]
    assert len({row.tobytes() for row in x_nd}) == 1
