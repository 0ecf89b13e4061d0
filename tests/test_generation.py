"""A generation: the same bytes in any batch, neutral values, folder, fit, drift."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from matchwright.engine import synthetic
from matchwright.engine.errors import NotFound, StoreDamaged, StoreFormat
from matchwright.engine.generation import (
    FORMAT_VERSION,
    FacetParams,
    Generation,
    fit,
    folder,
    starter,
    starting,
)
from matchwright.engine.generation.fitting import take
from matchwright.engine.generation.fixed import GRID
from matchwright.engine.generation.plain import PLAIN
from matchwright.engine.generation.text import (
    HashedEncoder,
    SvdEncoder,
    listed_tokens,
    tokens,
)
from matchwright.engine.records import SCHEMAS, Kind

AS_OF = synthetic.AS_OF
WEIGHTS = {
    "text": 1.0, "skills": 2.0, "rate": 0.75, "experience": 0.5, "hours": 0.25, "category": 0.5,
    "track": 0.75, "availability": 0.25, "recency": 0.25,
}  # fmt: skip


@functools.cache
def people(n: int = 2_000) -> pl.DataFrame:
    return synthetic.frame("freelancer", n)


@functools.cache
def jobs(n: int = 1_000) -> pl.DataFrame:
    return synthetic.frame("job", n)


@functools.cache
def fitted() -> Generation:
    return fit(jobs(), people(), seed=1, as_of=AS_OF)


def records(kind: Kind) -> pl.DataFrame:
    return jobs() if kind == "job" else people()


GENERATIONS = [pytest.param(starter, id="starter"), pytest.param(fitted, id="fitted")]
each_generation = pytest.mark.parametrize("generation", GENERATIONS)
each_kind = pytest.mark.parametrize("kind", ["job", "freelancer"])


def test_layout() -> None:
    for generation in (starter(), fitted()):
        assert generation.d == 384
        assert generation.offsets == (0, 128, 256, 272, 280, 312, 344, 360, 368, 384)
        assert [f.name for f in generation.facets] == list(WEIGHTS)
        assert isinstance(generation.encoder, SvdEncoder) == (generation is fitted())


@each_kind
@each_generation
def test_the_same_bytes_in_batches_of_1_and_10_000(generation, kind: Kind, count) -> None:
    frame = records(kind)
    repeats = 10_000 // frame.height
    batch = pl.concat([frame] * repeats)
    whole = generation().encode(kind, batch)
    assert whole.x_nd.shape == (repeats * frame.height, 384)
    n = count(reduced=25, full=1_000)
    for row in np.random.default_rng(1).integers(0, batch.height, n).tolist():
        alone = generation().encode(kind, batch[row])
        assert alone.x_nd.tobytes() == whole.x_nd[row].tobytes()
        assert (alone.known_nb[0] == whole.known_nb[row]).all()


@each_kind
@each_generation
def test_queries_are_the_same_in_any_batch(generation, kind: Kind) -> None:
    frame = records(kind)[:300]
    params = FacetParams()
    vectors = generation().query(kind, frame, params, AS_OF)
    whole = generation().quantise(vectors, kind, WEIGHTS)
    for row in range(0, 300, 29):
        one = generation().query(kind, frame[row], params, AS_OF)
        alone = generation().quantise(one, kind, WEIGHTS)
        assert alone.q_qd.tobytes() == whole.q_qd[row].tobytes()
        assert alone.t_q[0] == whole.t_q[row]


text_ = st.none() | st.text(max_size=60) | st.sampled_from(["python developer", "", "x" * 3_000])
skill_ = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["Python", "React", "Accounting"])
        | st.text(min_size=1, max_size=9),
        "level": st.none() | st.integers(1, 5),
    }
)
shared = {
    "title": text_,
    "text": text_,
    "experience_level": st.sampled_from([None, "ENTRY", "INTERMEDIATE", "EXPERT"]),
    "zone": st.sampled_from([None, "Europe/Paris", "Asia/Kathmandu", "No/Where"]),
    "hours_start": st.none() | st.integers(0, 1_439),
    "hours_end": st.none() | st.integers(0, 1_440),
    "weekly_hours": st.none() | st.integers(0, 168),
}
freelancer_ = st.fixed_dictionaries(
    shared
    | {
        "skills": st.none() | st.lists(skill_, max_size=40),
        "categories": st.none() | st.lists(st.text(max_size=5), max_size=8),
        "rate_cents": st.none() | st.integers(0, 100_000_000),
        "reviews": st.none() | st.integers(0, 100_000_000),
        "rating_milli": st.none() | st.integers(0, 5_000),
        "success_permille": st.none() | st.integers(0, 1_000),
        "last_active": st.none() | st.integers(0, 47_846),
    }
)
job_ = st.fixed_dictionaries(
    shared
    | {
        "skills": st.none()
        | st.lists(
            skill_.flatmap(
                lambda s: st.sampled_from([None, True, False]).map(lambda must: s | {"must": must})
            ),
            max_size=40,
        ),
        "category": st.none() | st.text(max_size=5),
        "rate_max_cents": st.none() | st.integers(0, 100_000_000),
        "client_reviews": st.none() | st.integers(0, 100_000_000),
        "client_rating_milli": st.none() | st.integers(0, 5_000),
        "posted": st.none() | st.integers(0, 47_846),
    }
)
DRAWN = {"freelancer": freelancer_, "job": job_}


@each_kind
@each_generation
@given(data=st.data())
def test_any_records_in_any_batch(generation, kind: Kind, data: st.DataObject) -> None:
    rows = data.draw(st.lists(DRAWN[kind], min_size=1, max_size=5))
    rows = [{"id": str(n), **row} for n, row in enumerate(rows)]
    frame = pl.DataFrame(rows, SCHEMAS[kind])
    made = generation()
    whole = made.encode(kind, frame)
    vectors = made.query(kind, frame, FacetParams(), AS_OF)
    query = made.quantise(vectors, kind, WEIGHTS)
    assert np.abs(whole.x_nd.astype(int)).max() <= 127
    assert np.isfinite(query.t_q).all()
    assert (query.t_q > 0).all()
    assert (query.attainable_q >= 0).all()
    assert (np.abs(query.q_qd.astype(int)).max(axis=1) <= 16_255).all()
    for n in range(frame.height):
        assert made.encode(kind, frame[n]).x_nd.tobytes() == whole.x_nd[n].tobytes()


@each_kind
@each_generation
@given(data=st.data())
def test_plain_rows_are_encoded_as_a_frame_is(generation, kind: Kind, data: st.DataObject) -> None:
    rows = data.draw(st.lists(DRAWN[kind], min_size=1, max_size=4))
    frame = pl.DataFrame([{"id": str(n), **row} for n, row in enumerate(rows)], SCHEMAS[kind])
    made = generation()
    whole, one_by_one = (
        made.encode(kind, frame),
        [made.encode(kind, [row]) for row in frame.to_dicts()],
    )
    assert np.array_equal(np.concatenate([one.x_nd for one in one_by_one]), whole.x_nd)
    assert np.array_equal(np.concatenate([one.known_nb for one in one_by_one]), whole.known_nb)
    asked, plain = (
        made.query(kind, form, FacetParams(), AS_OF) for form in (frame, frame.to_dicts())
    )
    assert np.array_equal(asked.v_qd, plain.v_qd)
    assert np.array_equal(asked.known_qb, plain.known_qb)
    assert np.array_equal(asked.best_qb, plain.best_qb)


@given(texts=st.lists(st.text(alphabet=sorted(PLAIN), max_size=200), max_size=4))
@example(["".join(sorted(PLAIN)), " ".join(sorted(PLAIN)), "C++ C# c+++ a1+#", "x" * 41, "ÀÉ" * 20])
def test_plain_texts_have_the_tokens_of_any_text(texts: list[str]) -> None:
    row, said = listed_tokens(texts)
    found = tokens(pl.Series(texts, dtype=pl.String))
    assert row.tolist() == found["row"].to_list()
    assert said == found["token"].to_list()


@each_kind
@each_generation
def test_unknown_is_the_mean(generation, kind: Kind) -> None:
    """A row of which nothing is known contributes the population's mean, for every query."""
    made = generation()
    other: Kind = "freelancer" if kind == "job" else "job"
    nothing = pl.DataFrame([{"id": "a"}], SCHEMAS[other])
    blank = made.encode(other, nothing)
    assert not blank.known_nb.any()
    query = made.quantise(made.query(kind, records(kind)[:50], FacetParams(), AS_OF), kind, WEIGHTS)
    if made is fitted():
        got = made.encode(other, records(other))
        for b, (low, high) in enumerate(made._spans):
            known = got.known_nb[:, b]
            points = query.q_qd[:, low:high].astype(int) @ got.x_nd[known, low:high].astype(int).T
            neutral = query.q_qd[:, low:high].astype(int) @ blank.x_nd[0, low:high].astype(int)
            score = query.t_q[:, None] * points
            width = high - low
            slack = np.sqrt(width) / 127 * list(WEIGHTS.values())[b]
            assert np.abs(score.mean(axis=1) - query.t_q * neutral).max() <= slack


@each_kind
@each_generation
def test_scores_are_the_real_inner_products(generation, kind: Kind) -> None:
    made = generation()
    other: Kind = "freelancer" if kind == "job" else "job"
    vectors = made.query(kind, records(kind)[:100], FacetParams(), AS_OF)
    query = made.quantise(vectors, kind, WEIGHTS)
    corpus = records(other)[:500]
    encoded = made.encode(other, corpus)
    got = (query.q_qd.astype(int) @ encoded.x_nd.astype(int).T) * query.t_q[:, None]
    real = np.zeros_like(got)
    for b, (low, high) in enumerate(made._spans):
        v_nw, known = made.rotated(b, other, corpus)
        v_nw[~known] = made._means[other][low:high]
        real += list(WEIGHTS.values())[b] * (vectors.v_qd[:, low:high] @ v_nw.T) / GRID
    assert np.abs(got - real).max() <= 0.06
    assert np.abs(got - real).mean() <= 0.01
    assert (real <= query.attainable_q[:, None] + 1e-3).all()


def test_resolution_of_the_default_weights_is_in_the_hundreds_at_least() -> None:
    for made in (starter(), fitted()):
        for kind in ("job", "freelancer"):
            vectors = made.query(kind, records(kind)[:200], FacetParams(), AS_OF)
            assert made.quantise(vectors, kind, WEIGHTS).resolution_q.min() >= 256


def test_a_query_of_which_nothing_is_known() -> None:
    nothing = pl.DataFrame([{"id": "a"}], SCHEMAS["job"])
    made = starter()
    vectors = made.query("job", nothing, FacetParams(), AS_OF)
    assert vectors.known_qb[0].tolist() == [False] * 6 + [True, False, True]
    query = made.quantise(vectors, "job", {"text": 1.0, "skills": 2.0})
    assert (query.q_qd == 0).all()
    assert (query.t_q[0], query.attainable_q[0], query.resolution_q[0]) == (1.0, 0.0, 16_255)


def test_no_rows() -> None:
    for kind in ("job", "freelancer"):
        nobody = records(kind).clear()
        assert starter().encode(kind, nobody).x_nd.shape == (0, 384)
        assert fitted().encode(kind, nobody).x_nd.shape == (0, 384)
        assert fitted().query(kind, nobody, FacetParams(), AS_OF).v_qd.shape == (0, 384)


def test_real_posts(shared_data: Path) -> None:
    """Posts as they come, half of them without a description: known or neutral, the same bytes."""
    lines = (shared_data / "upwork_jobs.jsonl").read_text("utf-8").splitlines()[:2_000]
    posts = [json.loads(line) for line in lines]
    rows = [
        {
            "id": post["job_id"],
            "title": post["title"],
            "text": post["description"],
            "skills": [{"name": s, "level": None, "must": None} for s in post["skills"] or []],
            "rate_max_cents": round(100 * post["rate_max"]) if post["rate_max"] else None,
        }
        for post in posts
    ]
    frame = pl.DataFrame(rows, SCHEMAS["job"])
    made = fit(frame, people(), seed=1, as_of=AS_OF)
    assert isinstance(made.encoder, SvdEncoder)
    whole = made.encode("job", frame)
    assert whole.known_nb[:, 0].mean() > 0.97
    for n in range(0, frame.height, 97):
        assert made.encode("job", frame[n]).x_nd.tobytes() == whole.x_nd[n].tobytes()
    drift = made.drift("job", frame)
    assert drift.clipped_share < 3e-4
    assert drift.unknown_words_share is not None
    assert drift.unknown_words_share < 0.4  # titles of one word, and what over half of all say


# ── Folder ────────────────────────────────────────────────────────────────────────────────────


@each_generation
def test_saved_and_loaded(generation, tmp_path: Path) -> None:
    made = generation()
    made.save(tmp_path / "g")
    loaded = Generation.load(tmp_path / "g")
    assert loaded.id == made.id
    assert loaded.manifest == made.manifest
    for kind in ("job", "freelancer"):
        again = loaded.encode(kind, records(kind)[:100]).x_nd
        assert again.tobytes() == made.encode(kind, records(kind)[:100]).x_nd.tobytes()


def test_damage_is_named(tmp_path: Path) -> None:
    fitted().save(tmp_path)
    for file in sorted(tmp_path.iterdir()):
        good = file.read_bytes()
        for bad in (good[:-2], good[:9] + bytes([good[9] ^ 1]) + good[10:], b""):
            file.write_bytes(bad)
            with pytest.raises(StoreDamaged, match=file.name if file.name != "id" else "id"):
                Generation.load(tmp_path)
        file.unlink()
        with pytest.raises(NotFound if file.name == folder.MANIFEST else StoreDamaged):
            Generation.load(tmp_path)
        file.write_bytes(good)
    assert Generation.load(tmp_path).id == fitted().id


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    starter().save(tmp_path)
    file = tmp_path / folder.MANIFEST
    content = json.loads(file.read_bytes())
    file.write_text(json.dumps(content | {"format_version": FORMAT_VERSION + 1, "new": 1}))
    with pytest.raises(StoreFormat, match="format version 2, this engine reads 1"):
        Generation.load(tmp_path)


def test_the_starter_is_what_its_definition_gives() -> None:
    built = starting.build().manifest
    frozen = starter().manifest
    names, minutes = (list(x) for x in (frozen.hours.zones.names, frozen.hours.zones.mean_minutes))
    assert len(names) == len(minutes) > 400  # the frozen table may differ from newer tzdata
    replaced = {name: getattr(frozen, name) for name in ("hours",)}
    assert {n: getattr(built, n) for n in built.__struct_fields__} | replaced == {
        n: getattr(frozen, n) for n in frozen.__struct_fields__
    }


# ── Fit and drift ─────────────────────────────────────────────────────────────────────────────


def test_the_sample_does_not_depend_on_the_order() -> None:
    shuffled = people().sample(fraction=1.0, shuffle=True, seed=3)
    assert take(people(), 7, 100).equals(take(shuffled, 7, 100))
    assert not take(people(), 8, 100).equals(take(people(), 7, 100))


def test_two_fits_on_this_machine_are_the_same() -> None:
    again = fit(jobs().sample(fraction=1.0, shuffle=True, seed=1), people(), seed=1, as_of=AS_OF)
    assert again.id == fitted().id
    assert fit(jobs(), people(), seed=2, as_of=AS_OF).id != again.id


@pytest.mark.parametrize("sizes", [(0, 0), (1, 0), (0, 3), (4, 4), (300, 0)])
def test_fits_of_next_to_nothing(sizes: tuple[int, int], tmp_path: Path) -> None:
    made = fit(jobs()[: sizes[0]], people()[: sizes[1]], seed=1, as_of=AS_OF)
    assert made.encode("job", jobs()[:5]).x_nd.shape == (5, 384)
    made.save(tmp_path)
    assert Generation.load(tmp_path).id == made.id
    if sum(sizes) < 10:
        assert isinstance(made.encoder, HashedEncoder)


def test_no_token_of_fewer_than_five_entities_is_learnt() -> None:
    told = people()[:1_000].with_columns(
        text=pl.when(pl.int_range(1_000) < 4)
        .then(pl.lit("zyzzyva quokka quokka quokka"))
        .when(pl.int_range(1_000) < 9)
        .then(pl.lit("axolotl"))
        .otherwise(pl.col("text"))
    )
    made = fit(jobs(), told, seed=1, as_of=AS_OF)
    assert isinstance(made.encoder, SvdEncoder)
    assert "axolotl" in made.encoder.vocabulary
    assert not {"zyzzyva", "quokka"} & set(made.encoder.vocabulary)
    saved = made.manifest.to_bytes()
    assert b"zyzzyva" not in saved


def test_drift_figures() -> None:
    calm = fitted().drift("freelancer", people())
    assert calm.rows == 2_000
    assert calm.clipped_share <= 2e-4
    assert calm.unknown_words_share is not None
    assert calm.unknown_words_share < 0.5
    strange = people()[:500].with_columns(
        title=pl.lit("zyzzyva"), text=pl.lit("quokka"), skills=pl.lit(None)
    )
    strange = strange.cast(SCHEMAS["freelancer"])  # type: ignore[arg-type]
    moved = fitted().drift("freelancer", strange)
    assert moved.unknown_words_share == 1.0
    assert starter().drift("job", jobs()).unknown_skills_share is None
    assert fitted().drift("job", jobs().clear()).clipped_share == 0.0
