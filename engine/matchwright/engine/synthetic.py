"""A seeded marketplace that nobody lives in: for the demo, for tests of scale, and for benches.

The shapes follow what public marketplaces show. Skills come in stacks, so that they are
correlated. Rates are log-normal around a profession's median, times a country's factor. Most
people have no reviews yet and a few have hundreds. Clients come back. Fields are missing at random.
Both sides have limits of their own, which rule out pairs that would fit otherwise.

Rows are made in blocks, each from its own seed, so that the first n rows are the same however many
are asked for, and a million never have to be in memory at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from matchwright.engine.records import FREELANCER_SCHEMA, JOB_SCHEMA, Kind

AS_OF = 20_454
"""The day on which the marketplace is seen, unless another is asked for: 1 January 2026."""

BLOCK = 32_768
_KIND_SEED = {"freelancer": 1, "job": 2}
_LEVELS = np.array(["ENTRY", "INTERMEDIATE", "EXPERT"], dtype=object)
_SKILLS_MAX = 16

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Objects = NDArray[np.object_]


def blocks(
    kind: Kind,
    n: int,
    *,
    seed: int = 0,
    as_of: int = AS_OF,
    texts: bool = True,
    block: int = BLOCK,
) -> Iterator[pl.DataFrame]:
    """Records of one kind, in frames of at most ``block`` rows.

    Args:
        kind: "job" or "freelancer".
        n: how many records in all.
        seed: the marketplace; the same seed gives the same records.
        as_of: the day on which it is seen, days since 1970-01-01.
        texts: whether titles and texts are written (else only titles, and texts are null).
        block: rows per frame; part of the definition, so keep it when comparing.
    """
    for number, start in enumerate(range(0, n, block)):
        rng = np.random.default_rng([seed, _KIND_SEED[kind], number])
        # A whole block is drawn even when fewer rows are asked for: its head stays the same.
        draw = _Draw(rng, block, kind, as_of)
        columns = draw.freelancers(start) if kind == "freelancer" else draw.jobs(start)
        columns |= draw.texts(texts)
        schema = FREELANCER_SCHEMA if kind == "freelancer" else JOB_SCHEMA
        yield _in_schema(columns, schema).head(min(block, n - start))


def frame(kind: Kind, n: int, **options: Any) -> pl.DataFrame:
    """All of ``blocks(kind, n, **options)`` as one frame."""
    return pl.concat(list(blocks(kind, n, **options)))


def write_jsonl(
    folder: Path, *, freelancers: int, jobs: int, seed: int = 0, as_of: int = AS_OF
) -> dict[Kind, Path]:
    """Write ``freelancers.jsonl`` and ``jobs.jsonl``, as a marketplace would export them."""
    sizes: tuple[tuple[Kind, int], ...] = (("freelancer", freelancers), ("job", jobs))
    written: dict[Kind, Path] = {}
    for kind, n in sizes:
        written[kind] = folder / f"{kind}s.jsonl"
        with written[kind].open("wb") as out:
            for part in blocks(kind, n, seed=seed, as_of=as_of):
                out.write(part.write_ndjson().encode())
    return written


# ── Vocabulary ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Vocabulary:
    """``synthetic.toml`` as arrays. A specialty is one stack of one profession."""

    skills: Objects
    specialty_share: Floats
    specialty_profession: Ints
    affinity: Floats  # (specialties, skills): log weight, -inf where a skill never appears
    profession: Objects
    category: Objects
    rate: Floats
    products: tuple[tuple[str, ...], ...]
    countries: tuple[dict[str, Any], ...]
    texts: dict[str, list[str]]


@cache
def _vocabulary() -> _Vocabulary:
    source = resources.files("matchwright.engine").joinpath("synthetic.toml").read_text("utf-8")
    told = tomllib.loads(source)
    people = told["professions"]
    names = {p["name"]: number for number, p in enumerate(people)}
    listed = [s for p in people for stack in p["stacks"] for s in stack] + told["generic_skills"]
    place = {skill: number for number, skill in enumerate(dict.fromkeys(listed))}
    share: list[float] = []
    owner: list[int] = []
    rows: list[Floats] = []
    for number, person in enumerate(people):
        stacks = person["stacks"]
        for own in stacks:
            weight = np.zeros(len(place))
            _weigh(weight, place, told["generic_skills"], 0.10)
            for near in person["near"]:
                for stack in people[names[near]]["stacks"]:
                    _weigh(weight, place, stack[:5], 0.02)
            for stack in stacks:
                _weigh(weight, place, stack, 1.0 if stack is own else 0.08)
            share.append(person["share"] / (1.0 + len(rows) % len(stacks)) ** 0.7)
            owner.append(number)
            rows.append(weight)
    with np.errstate(divide="ignore"):
        affinity = np.log(np.stack(rows))
    return _Vocabulary(
        skills=np.array(list(place), dtype=object),
        specialty_share=np.array(share) / sum(share),
        specialty_profession=np.array(owner),
        affinity=affinity,
        profession=np.array([p["name"] for p in people], dtype=object),
        category=np.array([p["category"] for p in people], dtype=object),
        rate=np.array([float(p["rate"]) for p in people]),
        products=tuple(tuple(p["products"]) for p in people),
        countries=tuple(told["countries"]),
        texts=told["texts"],
    )


def _weigh(weight: Floats, place: dict[str, int], skills: Sequence[str], factor: float) -> None:
    """Raise each skill's weight to ``factor`` / rank**0.8, its rank being its place in the list."""
    for rank, skill in enumerate(skills, 1):
        weight[place[skill]] = max(weight[place[skill]], factor / rank**0.8)


# ── Drawing ───────────────────────────────────────────────────────────────────────────────────


class _Draw:
    """Everything that one block draws, in a fixed order."""

    def __init__(self, rng: np.random.Generator, n: int, kind: Kind, as_of: int) -> None:
        self.rng, self.n, self.kind, self.as_of = rng, n, kind, as_of
        self.words = _vocabulary()
        self.specialty = rng.choice(
            len(self.words.specialty_share), n, p=self.words.specialty_share
        )
        self.profession = self.words.specialty_profession[self.specialty]
        self.years = np.minimum(1 + rng.exponential(5.0, n), 35).astype(np.int64)
        count = 3 + rng.poisson(2.0 if kind == "job" else 4.5, n)
        self.skill_count = np.minimum(count, 8 if kind == "job" else _SKILLS_MAX)
        self.skill_nk = self._skills()
        self._country()

    # -- helpers

    def unless(self, share_unknown: float, values: NDArray[Any]) -> Objects:
        """``values`` as Python objects, a random share of them unknown (None)."""
        hidden = self.rng.random(self.n) < share_unknown
        out = values.astype(object)
        out[hidden] = None
        return out

    def often(self, share: float) -> NDArray[np.bool_]:
        return self.rng.random(self.n) < share

    def where(self, chosen: NDArray[np.bool_], values: NDArray[Any]) -> Objects:
        """``values`` where chosen, unknown elsewhere."""
        out = values.astype(object)
        out[~chosen] = None
        return out

    def ids(self, prefix: str, numbers: Ints) -> Objects:
        return np.array([f"{prefix}-{number:07d}" for number in numbers.tolist()], dtype=object)

    def _skills(self) -> Ints:
        """(n, _SKILLS_MAX) skill numbers, drawn without replacement (Gumbel's trick)."""
        out = np.empty((self.n, _SKILLS_MAX), dtype=np.int64)
        for specialty in range(len(self.words.specialty_share)):
            rows = np.flatnonzero(self.specialty == specialty)
            pool = np.flatnonzero(np.isfinite(self.words.affinity[specialty]))
            noise = self.rng.gumbel(size=(rows.size, pool.size))
            score = self.words.affinity[specialty, pool] * 1.6 + noise
            out[rows] = pool[np.argsort(-score, axis=1)[:, :_SKILLS_MAX]]
        return out

    def _country(self) -> None:
        countries = self.words.countries
        share = np.array([c["clients" if self.kind == "job" else "people"] for c in countries])
        self.country = self.rng.choice(len(countries), self.n, p=share / share.sum())
        self.country_rate = np.array([c["rate"] for c in countries])[self.country]
        codes = np.array([c["code"] for c in countries], dtype=object)
        self.country_code = codes[self.country]
        zones = [zone for c in countries for zone in c["zones"]]
        start = np.cumsum([0, *(len(c["zones"]) for c in countries)])
        width = np.diff(start)[self.country]
        spot = start[self.country] + (self.rng.random(self.n) * width).astype(np.int64)
        self.zone = np.array(zones, dtype=object)[spot]

    def _languages(self, *, second: float) -> list[list[dict[str, Any]] | None]:
        """One's own language, English for most, levels 1..6 or unknown."""
        level = np.clip(self.rng.normal(4.2, 1.1, self.n).round(), 1, 6).astype(int).tolist()
        told, more = self.often(0.8).tolist(), self.often(second).tolist()
        silent = self.often(0.05).tolist()
        own = [c["languages"] for c in self.words.countries]
        out: list[list[dict[str, Any]] | None] = []
        for row, country in enumerate(self.country.tolist()):
            first, other = own[country]
            spoken = [{"code": first, "level": 6}]
            if more[row]:
                spoken.append({"code": other, "level": level[row] if told[row] else None})
            out.append(None if silent[row] else spoken)
        return out

    def _sets(self, share: float, draw: Objects, most: int = 2) -> list[list[str] | None]:
        """A short list of distinct values for a share of the rows, None for the others."""
        some = self.often(share).tolist()
        picks = self.rng.integers(0, len(draw), (self.n, most)).tolist()
        return [
            sorted({draw[p] for p in pick}) if yes else None
            for yes, pick in zip(some, picks, strict=True)
        ]

    def _skill_lists(self, share_unleveled: float, *, must: bool) -> pl.Series:
        """list[struct{name, level, [must]}], built column-wise."""
        row = np.repeat(np.arange(self.n), self.skill_count)
        flat = self.skill_nk[np.arange(_SKILLS_MAX)[None, :] < self.skill_count[:, None]]
        size = flat.size
        grade = self.rng.normal(3.3, 1.0, size).round()
        level = np.clip(grade, 1, 5).astype(np.int64).astype(object)
        level[self.rng.random(size) < share_unleveled] = None
        place = np.arange(size) - np.repeat(
            np.cumsum(self.skill_count) - self.skill_count, self.skill_count
        )
        long = pl.DataFrame(
            {"row": row, "name": self.words.skills[flat].tolist(), "level": level.tolist()},
            schema={"row": pl.Int64, "name": pl.String, "level": pl.Int8},
        )
        fields = ["name", "level"]
        if must:
            long = long.with_columns(must=pl.Series((place == 0) | (self.rng.random(size) < 0.12)))
            fields.append("must")
        grouped = long.group_by("row", maintain_order=True).agg(pl.struct(fields).alias("skills"))
        return grouped["skills"]

    def _rate(self, spread: float) -> Ints:
        """Cents per hour: median of the profession x country x seniority, log-normal, rounded."""
        senior = 0.75 + 0.05 * np.minimum(self.years, 14)
        middle = self.words.rate[self.profession] * self.country_rate * senior
        dollars = middle * np.exp(self.rng.normal(0, spread, self.n))
        step = np.where(dollars > 20, 5.0, 1.0)
        cents: Ints = (np.clip((dollars / step).round() * step, 3, 400) * 100).astype(np.int64)
        return cents

    def _level(self) -> Ints:
        grade = self.years + self.rng.normal(0, 2.0, self.n)
        return np.digitize(grade, [3.0, 7.5]).astype(np.int64)

    # -- the two kinds

    def freelancers(self, start: int) -> dict[str, Any]:
        """Columns of one block of freelancers, numbered from ``start``."""
        rng, n = self.rng, self.n
        rate = self._rate(0.45)
        working = self.often(0.46)
        reviews = np.where(working, np.floor(1 + rng.pareto(1.05, n) * 2).clip(1, 4_000), 0)
        reviews = reviews.astype(np.int64)
        good = rng.beta(14, 1.2, n)
        joined = self.as_of - np.minimum(rng.exponential(900, n) + reviews * 2, 6_000)
        active = self.as_of - np.minimum(rng.exponential(40, n), self.as_of - joined)
        begin = (8 + rng.integers(0, 4, n)) * 60
        hours = np.array([480, 540, 300, 600])[rng.integers(0, 4, n)]
        told = self.often(0.8)
        weekly = np.array([10, 20, 30, 40, 45])[rng.choice(5, n, p=[0.15, 0.2, 0.2, 0.4, 0.05])]
        return {
            "id": self.ids("f", start + np.arange(n)),
            "skills": self._skill_lists(0.5, must=False),
            "categories": [[c] for c in self.words.category[self.profession].tolist()],
            "certifications": self._certifications(),
            "rate_cents": self.unless(0.06, rate),
            "experience_level": self.unless(0.15, _LEVELS[self._level()]),
            "languages": self._languages(second=0.85),
            "country": self.unless(0.03, self.country_code),
            "zone": self.unless(0.08, self.zone),
            "hours_start": self.where(told, begin),
            "hours_end": self.where(told, (begin + hours) % 1_440),
            "weekly_hours": self.unless(0.12, weekly),
            "reviews": reviews.astype(object),
            "rating_milli": self.where(working, (good * 5_000).astype(np.int64)),
            "success_permille": self.where(working & self.often(0.9), self._permille(12, 1.4)),
            "response_permille": self.unless(0.3, self._permille(6, 1.5)),
            "completion_permille": self.where(working, self._permille(18, 1.1)),
            "joined": joined.astype(np.int64).astype(object),
            "last_active": self.unless(0.04, active.astype(np.int64)),
            "status": np.array(["AVAILABLE", "BUSY", "GONE"], dtype=object)[
                rng.choice(3, n, p=[0.82, 0.14, 0.04])
            ],
            "min_rate_cents": self.where(self.often(0.4), (rate * 0.8).astype(np.int64)),
            "min_fixed_cents": self.where(self.often(0.15), rate * rng.integers(3, 20, n)),
            "min_weekly_hours": self.where(self.often(0.1), np.minimum(weekly, 10)),
            "declined_categories": self._sets(0.06, self.words.category),
            "excluded_clients": self._sets(0.02, self._client_ids(np.arange(2_000))),
            "countries_denied": self._sets(0.02, self._codes()),
        }

    def jobs(self, start: int) -> dict[str, Any]:
        """Columns of one block of jobs, numbered from ``start``."""
        rng, n = self.rng, self.n
        client = np.minimum(rng.pareto(0.9, n) * 60, 200_000).astype(np.int64)
        hires = np.where(self.often(0.65), (rng.pareto(1.1, n) * 3).clip(0, 2_000), 0).astype(int)
        known = hires > 0
        # Clients pay what the work costs somewhere between their place and the cheapest.
        self.country_rate = self.country_rate * rng.uniform(0.4, 1.0, n)
        low = self._rate(0.35)
        hourly = self.often(0.6)
        high = (low * rng.uniform(1.1, 2.2, n) / 100).round().astype(np.int64) * 100
        posted = self.as_of - np.minimum(rng.exponential(20, n), 300).astype(np.int64)
        begin = (8 + rng.integers(0, 3, n)) * 60
        told = self.often(0.8)
        weekly = np.array([5, 10, 20, 30, 40])[rng.choice(5, n, p=[0.15, 0.25, 0.25, 0.15, 0.2])]
        level = self._level()
        return {
            "id": self.ids("j", start + np.arange(n)),
            "client_id": self._client_ids(client),
            "skills": self._skill_lists(0.7, must=True),
            "category": self.unless(0.05, self.words.category[self.profession]),
            "rate_min_cents": self.where(hourly, low),
            "rate_max_cents": self.where(hourly, high),
            "fixed_cents": self.where(~hourly, low * rng.integers(4, 80, n)),
            "experience_level": self.unless(0.2, _LEVELS[level]),
            "languages": [
                [{"code": "en", "level": value}] if yes else None
                for yes, value in zip(
                    self.often(0.5).tolist(), rng.integers(3, 6, n).tolist(), strict=True
                )
            ],
            "country": self.unless(0.04, self.country_code),
            "zone": self.unless(0.1, self.zone),
            "hours_start": self.where(told, begin),
            "hours_end": self.where(told, begin + 480),
            "weekly_hours": self.unless(0.3, weekly),
            "duration_days": self.unless(0.25, np.floor(rng.lognormal(3.7, 1.0, n)).clip(1, 900)),
            "client_reviews": (hires * 0.7).astype(np.int64).astype(object),
            "client_rating_milli": self.where(known, (rng.beta(16, 1.3, n) * 5_000).astype(int)),
            "client_hires": hires.astype(object),
            "client_spent_cents": (hires * rng.lognormal(10.5, 1.0, n)).astype(int).astype(object),
            "posted": posted.astype(object),
            "closes": self.where(self.often(0.5), posted + 400),
            "status": np.array(["OPEN", "PAUSED", "CLOSED"], dtype=object)[
                rng.choice(3, n, p=[0.88, 0.04, 0.08])
            ],
            "max_rate_cents": self.where(hourly & self.often(0.5), (high * 1.25).astype(int)),
            "min_rate_cents": self.where(self.often(0.03), (low * 0.4).astype(int)),
            "countries_allowed": self._sets(0.05, self._codes(), most=6),
            "countries_denied": self._sets(0.04, self._codes()),
            "excluded_freelancers": self._sets(0.03, self.ids("f", rng.integers(0, 20_000, 500))),
            "min_overlap_minutes": self.where(self.often(0.15), rng.integers(2, 5, n) * 60),
            "min_experience": self.where(self.often(0.08), _LEVELS[np.minimum(level, 1)]),
            "min_rating_milli": self.where(self.often(0.06), np.full(n, 4_500)),
            "min_success_permille": self.where(self.often(0.05), np.full(n, 900)),
            "min_reviews": self.where(self.often(0.07), rng.integers(1, 6, n)),
        }

    def _certifications(self) -> list[list[dict[str, Any]] | None]:
        """One certificate for the first skill, for few; half of them verified."""
        has, verified = self.often(0.07).tolist(), self.often(0.5).tolist()
        issued = (self.as_of - self.rng.integers(30, 2_000, self.n)).tolist()
        skill = self.words.skills[self.skill_nk[:, 0]].tolist()
        return [
            [
                {
                    "name": f"Certified in {skill[row]}",
                    "issuer": "Example Institute",
                    "issued": issued[row],
                    "verified": verified[row],
                }
            ]
            if has[row]
            else None
            for row in range(self.n)
        ]

    def _permille(self, a: float, b: float) -> Ints:
        return (self.rng.beta(a, b, self.n) * 1_000).astype(np.int64)

    def _client_ids(self, numbers: Ints) -> Objects:
        return np.array([f"c-{number:06d}" for number in numbers.tolist()], dtype=object)

    def _codes(self) -> Objects:
        return np.array([c["code"] for c in self.words.countries], dtype=object)

    # -- texts

    def texts(self, wanted: bool) -> dict[str, list[Any]]:
        """The columns title and text."""
        names = self.words.skills[self.skill_nk[:, :3]]
        turn = self.rng.integers(0, 1 << 30, (self.n, 6)).tolist()
        years, profession = self.years.tolist(), self.profession.tolist()
        title: list[str] = []
        text: list[str | None] = []
        for row, (first, second, third) in enumerate(names.tolist()):
            products = self.words.products[profession[row]]
            blanks = {
                "skill": first,
                "second": second,
                "third": third,
                "product": products[turn[row][0] % len(products)],
                "category": self.words.category[profession[row]],
                "profession": self.words.profession[profession[row]],
                "years": years[row] + 1,
                "number": turn[row][1] % 9_000,
            }
            parts = [
                self._template(part, turn[row][2 + place]).format_map(blanks)
                for place, part in enumerate(("titles", "openings", "middles", "endings"))
                if wanted or place == 0
            ]
            title.append(_capital(parts[0]))
            text.append(" ".join(parts[1:]) if wanted else None)
        return {"title": title, "text": text}

    def _template(self, part: str, turn: int) -> str:
        choices = self.words.texts[f"{self.kind}_{part}"]
        return choices[turn % len(choices)]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _in_schema(columns: dict[str, Any], schema: pl.Schema) -> pl.DataFrame:
    """Every column of the schema, in its order and type; columns not drawn are unknown."""
    n = len(columns["id"])

    def series(name: str, dtype: pl.DataType) -> pl.Series:
        values = columns.get(name)
        if isinstance(values, np.ndarray):
            values = values.tolist()
        return pl.Series(name, [None] * n if values is None else values, dtype, strict=False)

    return pl.DataFrame([series(name, dtype) for name, dtype in schema.items()])
