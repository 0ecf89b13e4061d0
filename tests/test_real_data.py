"""Real exports: everything that is matched is checked against the raw files.

The check reads CSV and JSON lines itself and knows the raw fields by their names: nothing of the
engine's parsers, columns or rules is used. Counts of eligible people are compared as well, so
that nobody is left out.
"""

from __future__ import annotations

import csv
import json
from bisect import bisect_right
from decimal import Decimal
from typing import Any

import pytest

from matchwright.engine.matcher import Matcher, Request
from matchwright.engine.policy import Policy
from matchwright.engine.records.ingest import read
from matchwright.engine.store import Store
from matchwright.kernels.ops import get_ops

AS_OF = 20_454
BATCH = 256
PEOPLE_FILES = ("freelancers_resampled", "freelancercom_profiles")
COUNTRIES = {
    "US": {"united states", "usa", "us", "united states of america"},
    "GB": {"united kingdom", "gbr", "uk", "great britain"},
    "IN": {"india", "ind"},
    "CA": {"canada", "can"},
    "PK": {"pakistan", "pak"},
}
"""Codes that the checks ask for, and how the raw files spell these countries."""


# ── The raw files, read here ──────────────────────────────────────────────────────────────────


def cents(value) -> int | None:
    """US dollars as cents; None where nothing is stated."""
    if value is None or value == "":
        return None
    return int((Decimal(str(value)) * 100).to_integral_value())


def code_of(name) -> str | None:
    """The code of a country that the checks ask for; "??" for any other, None where unknown."""
    if name is None or not name.strip():
        return None
    plain = name.strip().lower()
    return next((code for code, names in COUNTRIES.items() if plain in names), "??")


class Person:
    """One raw row of a freelancer."""

    def __init__(self, row: dict[str, str]) -> None:
        self.id = row["freelancer_id"]
        self.rate = cents(row["rate_usd"])
        self.country = code_of(row["country"])
        self.reviews = int(row["reviews"])
        # Stars run from 1 to 5: 0 says that nobody has rated yet.
        self.rating = round(float(row["rating"]) * 1_000) or None
        self.skills = {name.strip().lower() for name in row["skills"].split("|") if name.strip()}


class Post:
    """One raw job post."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.id = row["job_id"]
        self.top = cents(row["rate_max"])
        self.bottom = cents(row["rate_min"])
        self.fixed = cents(row["budget"])
        self.country = code_of(row["country"])


def people_of(shared_data, name):
    with (shared_data / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return {row["freelancer_id"]: Person(row) for row in csv.DictReader(file)}


def posts_of(shared_data):
    with (shared_data / "upwork_jobs.jsonl").open(encoding="utf-8") as file:
        return {post.id: post for post in map(Post, map(json.loads, file))}


# ── The engine's side ─────────────────────────────────────────────────────────────────────────


class Real:
    """A store of all posts and one file of people, beside the raw rows."""

    def __init__(self, store, posts, people, reports):
        self.snapshot = store.snapshot()
        self.reports = reports
        self.posts, self.people = posts, people
        self.matcher = Matcher(self.snapshot, get_ops("cpu"), Policy.load())
        self.rates = sorted(one.rate for one in people.values())

    def ask(self, kind, ids, **how):
        """(id, result) for each of them, in batches."""
        for low in range(0, len(ids), BATCH):
            some = ids[low : low + BATCH]
            requests = [Request(kind=kind, id=name, as_of=AS_OF, **how) for name in some]
            yield from zip(some, self.matcher.match_many(requests), strict=True)


@pytest.fixture(scope="module", params=PEOPLE_FILES)
def real(request, shared_data, repo_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    maps = repo_root / "examples" / "maps"
    sources = (("job", "upwork_jobs", "jsonl"), ("freelancer", request.param, "csv"))
    reports = {}
    with Store.open(folder, mode="w", create=True) as store:
        for kind, name, ending in sources:
            with store.bulk(kind) as sink:
                files = [shared_data / f"{name}.{ending}"]
                reports[kind] = read(kind, files, maps / f"{name}.toml", sink=sink)
        posts, people = posts_of(shared_data), people_of(shared_data, request.param)
        yield Real(store, posts, people, reports)


def every(count, ids, reduced):
    """All ids when proving, else so many of them, spread over the file."""
    n = count(reduced=reduced, full=len(ids))
    return ids[:: max(1, len(ids) // n)][:n]


def test_everybody_is_there(real):
    assert len(real.posts) == 9_344
    for kind, rows in (("job", real.posts), ("freelancer", real.people)):
        report = real.reports[kind]
        assert (report.read, report.quarantined) == (len(rows), 0)
        assert real.snapshot.count(kind) == len(rows)
        assert real.snapshot.rows_of(kind, list(rows)).min() >= 0


def test_no_post_gets_anybody_above_its_budget_and_nobody_else_is_missing(real, count):
    ids = every(count, list(real.posts), 300)
    for name, result in real.ask("job", ids, k=100):
        post = real.posts[name]
        for one in result.ids:
            assert post.top is None or real.people[one].rate <= post.top, (name, one)
        allowed = len(real.rates) if post.top is None else bisect_right(real.rates, post.top)
        assert result.eligible == allowed, name
        assert result.returned == min(100, allowed)
        # Nobody in these files says whether they are available.
        assert result.unverified == allowed


LIMITS = {
    "max_rate_cents": 4_000,
    "min_rate_cents": 1_000,
    "countries_allowed": ["US", "IN", "CA", "PK"],
    "countries_denied": ["PK"],
    "min_reviews": 1,
    "min_rating_milli": 4_800,
    "required_skills": ["Python"],
}


def meets(one, excluded):
    """Whether somebody meets the limits above, whatever the post's budget."""
    return (
        1_000 <= one.rate <= 4_000
        and one.country in ("US", "IN", "CA")
        and one.reviews >= 1
        and (one.rating is None or one.rating >= 4_800)
        and "python" in one.skills
        and one.id not in excluded
    )


def test_limits_of_clients_hold(real, count):
    ids = every(count, list(real.posts), 150)
    excluded = [one.id for one in list(real.people.values())[::50]]
    limits = {**LIMITS, "excluded_freelancers": excluded}
    fitting = [one for one in real.people.values() if meets(one, set(excluded))]
    some = False
    for name, result in real.ask("job", ids, k=1_000, limits=limits, contributions=False):
        top = real.posts[name].top
        allowed = {one.id for one in fitting if top is None or one.rate <= top}
        assert result.eligible == len(allowed), name
        assert set(result.ids) == allowed if len(allowed) <= 1_000 else set(result.ids) < allowed
        some = some or 0 < len(allowed) < len(real.people)
    assert some


def test_unknown_ratings_pass_unverified(real, count):
    ids = every(count, list(real.posts), 20)
    limits = {"min_rating_milli": 5_000}
    fitting = [p for p in real.people.values() if p.rating is None or p.rating >= 5_000]
    by_top = {}
    for name, result in real.ask("job", ids, k=100, limits=limits, contributions=False):
        top = real.posts[name].top
        if top not in by_top:
            by_top[top] = {one.id for one in fitting if top is None or one.rate <= top}
        allowed = by_top[top]
        assert result.eligible == len(allowed)
        assert set(result.ids) <= allowed


def test_limits_of_freelancers_hold(real, count):
    ids = every(count, list(real.people), 150)
    limits = {
        "min_rate_cents": 3_000,
        "min_fixed_cents": 50_000,
        "countries_denied": ["US", "IN"],
    }
    by_rate = {}
    for name, result in real.ask("freelancer", ids, k=100, limits=limits, contributions=False):
        one = real.people[name]
        if one.rate not in by_rate:
            by_rate[one.rate] = {post.id for post in real.posts.values() if suits(post, one)}
        allowed = by_rate[one.rate]
        assert result.eligible == len(allowed), name
        assert set(result.ids) <= allowed
        assert result.returned == min(100, len(allowed))
        assert 0 < len(allowed) < len(real.posts)


def suits(post, one):
    """Whether a post meets the limits above; what it does not tell fails."""
    if post.country is None or post.country in ("US", "IN"):
        return False
    if post.top is not None:
        return one.rate <= post.top and post.top >= 3_000
    if post.bottom is not None:
        return post.bottom >= 3_000
    return post.fixed is not None and post.fixed >= 50_000


def test_explanations_agree_with_the_raw_rows(real, count):
    posts = every(count, [n for n, post in real.posts.items() if post.top is not None], 10)
    people = list(real.people)
    for n, name in enumerate(posts):
        one = people[n * 97 % len(people)]
        told = real.matcher.explain(name, one, as_of=AS_OF)
        fits = real.people[one].rate <= real.posts[name].top
        assert told.eligible == fits
        assert [veto.reason for veto in told.vetoes] == ([] if fits else ["RATE_ABOVE_BUDGET"])
