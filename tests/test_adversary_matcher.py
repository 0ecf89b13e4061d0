"""The adversary's tricks through the matcher: what they do to scores and to the order.

``test_adversary`` states each trick's largest gain for its facet; here the same profiles compete in
one marketplace under the default policy, against everybody else and against themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from matchwright.engine import synthetic
from matchwright.engine.columns import columns
from matchwright.engine.generation import Generation, fit, starter
from matchwright.engine.matcher import Matcher
from matchwright.engine.policy import Policy
from matchwright.engine.records import FIELDS, SCHEMAS, Kind
from matchwright.engine.records.scrub import scrub
from matchwright.engine.request import Request
from matchwright.kernels.ops import Ops
from matchwright.kernels.order import hash_keys
from matchwright.kernels.types import Corpus, Int64, Segment

AS_OF = synthetic.AS_OF
SALT = bytes(16)
POLICY = Policy.load()
W = POLICY.weights
STEP = np.sqrt(16) / 127
"""What the int8 grid may add to the difference of two rows on a facet of 16 knots."""


class Market:
    """A snapshot over two frames, in memory."""

    def __init__(self, frames: dict[Kind, pl.DataFrame], generation: Generation) -> None:
        self.epoch = SimpleNamespace(uuid="u", number=1, digest="d")
        self.generation, self.salt, self.frames = generation, SALT, frames

    def corpus(self, kind: Kind) -> Corpus:
        rows = self.frames[kind]
        scalars, sets = columns(kind, rows, SALT, self.generation)
        x_nd = self.generation.encode(kind, rows).x_nd
        return Corpus(((Segment(x_nd, self.keys(rows["id"].to_list()), scalars, sets), None),))

    def keys(self, ids: Sequence[str]) -> Any:
        return hash_keys(ids, SALT)

    def rows_of(self, kind: Kind, ids: Sequence[str]) -> Int64:
        place = {name: n for n, name in enumerate(self.frames[kind]["id"].to_list())}
        return np.array([place.get(name, -1) for name in ids], dtype=np.int64)

    def ids_of(self, kind: Kind, rows: Int64) -> list[str]:
        return self.frames[kind]["id"].gather(rows).to_list()

    def rows(self, kind: Kind, ids: Sequence[str]) -> list[dict[str, Any]]:
        return self.frames[kind][self.rows_of(kind, ids).tolist()].to_dicts()


@functools.cache
def crowd() -> pl.DataFrame:
    return synthetic.frame("freelancer", 400, seed=11)


@functools.cache
def generation() -> Generation:
    return fit(synthetic.frame("job", 400, seed=11), crowd(), seed=1, as_of=AS_OF)


def job() -> dict[str, Any]:
    """A job with everything known and no limits."""
    return dict.fromkeys(FIELDS["job"]) | {
        "id": "the-job",
        "title": "Python developer for data pipelines",
        "text": "We need PostgreSQL, Docker and careful tests for our data pipelines.",
        "skills": [
            {"name": name, "level": None, "must": False}
            for name in ("Python", "PostgreSQL", "Docker", "Apache Airflow")
        ],
        "category": "Software Development",
        "rate_max_cents": 6_000,
        "experience_level": "INTERMEDIATE",
        "zone": "UTC",
        "hours_start": 540,
        "hours_end": 1_020,
        "weekly_hours": 30,
        "status": "OPEN",
    }


def honest(**more: Any) -> dict[str, Any]:
    """Somebody who fits fairly well, without limits."""
    return dict.fromkeys(FIELDS["freelancer"]) | {
        "id": "honest",
        "title": "Backend developer",
        "text": "I write services in Go and Python, and look after databases.",
        "skills": [{"name": name, "level": None} for name in ("Python", "Go", "Docker")],
        "categories": ["Software Development"],
        "rate_cents": 5_500,
        "experience_level": "INTERMEDIATE",
        "zone": "UTC",
        "hours_start": 600,
        "hours_end": 1_020,
        "weekly_hours": 30,
        "reviews": 20,
        "rating_milli": 4_900,
        "success_permille": 950,
        "last_active": AS_OF - 7,
        "status": "AVAILABLE",
        **more,
    }


def rival(tricks: Sequence[dict[str, Any]], base: dict[str, Any] | None = None) -> Market:
    """The crowd, an honest profile, and the same profile with each trick."""
    base = honest() if base is None else base
    own = [base, *({**base, **trick, "id": f"trick-{n}"} for n, trick in enumerate(tricks))]
    people = crowd().vstack(pl.DataFrame(own, SCHEMAS["freelancer"]))
    return Market(
        {"freelancer": people, "job": pl.DataFrame([job()], SCHEMAS["job"])}, generation()
    )


def gains(*tricks: dict[str, Any], base: dict[str, Any] | None = None) -> list[float]:
    """What each trick adds to the honest profile's score."""
    matcher = Matcher(rival(tricks, base), Ops(threads=1), POLICY)
    request = Request(kind="job", id="the-job", k=1_000, as_of=AS_OF)
    scores = {match.id: match.score for match in matcher.match(request)}
    return [scores[f"trick-{n}"] - scores["honest"] for n in range(len(tricks))]


HIDDEN = {
    "skills": ("skills",),
    "rate": ("rate_cents",),
    "experience": ("experience_level",),
    "hours": ("zone",),
    "category": ("categories",),
    "track": ("reviews", "rating_milli", "success_permille"),
    "availability": ("weekly_hours",),
    "recency": ("last_active",),
}


@pytest.mark.parametrize("facet", list(HIDDEN))
def test_hiding_a_field_does_not_pay_for_who_fits(facet: str) -> None:
    """Largest gain: the mean less one's own fit; this profile fits better than the mean.

    Where the field also decides a rule on which unknown fails, it costs eligibility instead.
    """
    trick = dict.fromkeys(HIDDEN[facet])
    matcher = Matcher(rival([trick]), Ops(threads=1), POLICY)
    request = Request(kind="job", id="the-job", k=1_000, as_of=AS_OF)
    before, after = matcher.score_pairs(request, ["honest", "trick-0"])
    assert before is not None
    assert after is not None
    assert not before.vetoes
    text = max(0.0, (after.contributions["text"] - before.contributions["text"]) / before.points)
    own = after.contributions[facet] - before.contributions[facet]
    assert own * before.score / before.points <= STEP * W[facet]
    assert after.score - before.score <= STEP * W[facet] + text * before.score


def test_listing_200_skills() -> None:
    """Largest gain over the best 30: none. Over three: the skills' weight, and the text's."""
    asked = ["Python", "PostgreSQL", "Docker", "Apache Airflow"]
    many = [{"name": name, "level": None} for name in [*asked, *(f"skill {n}" for n in range(196))]]
    whole, part = gains({"skills": many}, {"skills": many[:30]})
    assert whole == part
    assert whole <= W["skills"] * 1.05 + W["text"]


def test_pasting_the_text_of_the_job() -> None:
    """Largest gain: the text's weight."""
    pasted = {"title": job()["title"], "text": job()["text"]}
    once, often = gains(pasted, {**pasted, "text": " ".join([pasted["text"]] * 50)})
    assert 0 < once <= W["text"] * 1.01
    assert often <= W["text"] * 1.01


@pytest.mark.parametrize("char", ["\u200b", "\u202e", "\u2066", "\ufeff"])
def test_hidden_characters(char: str) -> None:
    """Largest gain: none."""
    own = honest()
    hidden = {name: char.join(own[name]) for name in ("title", "text")}
    assert gains(hidden, {name: scrub(text) for name, text in hidden.items()}) == [0.0, 0.0]


def test_a_rate_of_one_dollar() -> None:
    """Largest gain over any rate within the budget: the int8 grid's error."""
    assert max(gains({"rate_cents": 100}, {"rate_cents": 1})) <= STEP * W["rate"]
    assert max(gains({"rate_cents": 100}, base=honest(rate_cents=6_000))) <= STEP * W["rate"]


def test_touching_last_active_daily() -> None:
    """Largest gain over once a week: the int8 grid's error. The future earns no more."""
    days = [{"last_active": AS_OF + ahead} for ahead in (-6, -3, -1, 0, 1, 30, 10_000)]
    assert max(gains(*days)) <= STEP * W["recency"]


NAMES = ("Maria", "Mohammed", "John", "Aisha", "Olga", "Emily")


def _answers(clean: Callable[[str], str]) -> set[str]:
    """Digests of the answer, over who is called what. Hashed tokens know every name."""
    digests = set()
    for shift in range(len(NAMES)):
        texts = [
            clean(f"My name is {NAMES[(n + shift) % len(NAMES)]}. {text or 'I work carefully.'}")
            for n, text in enumerate(crowd()["text"].to_list())
        ]
        people = crowd().with_columns(text=pl.Series(texts))
        jobs = pl.DataFrame([job()], SCHEMAS["job"])
        matcher = Matcher(
            Market({"freelancer": people, "job": jobs}, starter()), Ops(threads=1), POLICY
        )
        digests.add(matcher.match(Request(kind="job", id="the-job", k=400, as_of=AS_OF)).digest())
    return digests


def test_swapping_first_names_changes_no_order() -> None:
    """Everybody introduces themselves; whoever is called what, the answer is the same bytes."""
    assert len(_answers(str)) > 1, "without scrubbing, names would count"
    assert len(_answers(scrub)) == 1
