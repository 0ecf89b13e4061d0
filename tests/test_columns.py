"""Rule columns: encodings, names to numbers, the same values in any batch."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rule_referee import FREELANCERS, JOBS, SALT, SKILLS, ZONES, frame_of, segment_of

from matchwright.engine.columns import (
    columns,
    country_code,
    fold,
    language_code,
    name_hash,
)
from matchwright.kernels.types import NO_LIMIT, UNKNOWN


def test_encodings():
    job = {"id": "j", "fixed_cents": 5, "closes": None}
    scalars, sets = columns("job", frame_of("job", [job, {"id": "k"}]), SALT, ZONES)
    assert scalars["pay_top"].tolist() == [NO_LIMIT, UNKNOWN]
    assert scalars["fixed_price"].tolist() == [5, UNKNOWN]
    assert scalars["closes"].tolist() == [NO_LIMIT, NO_LIMIT]
    assert scalars["rate_floor"].tolist() == [0, 0]
    assert scalars["asks_rate_ceiling"].tolist() == [0, 0]
    assert not sets["client"].known_n.any()
    assert sets["must_skills"].known_n.all()
    for name, column in scalars.items():
        assert column.dtype == np.int32, name


@given(st.lists(JOBS, min_size=1, max_size=3), st.lists(FREELANCERS, min_size=1, max_size=3))
def test_plain_rows_have_the_columns_of_a_frame(jobs, people):
    for kind, rows in (("job", jobs), ("freelancer", people)):
        frame = frame_of(kind, [{**row, "id": f"e-{n}"} for n, row in enumerate(rows)])
        scalars, sets = columns(kind, frame, SALT, ZONES)
        for n, row in enumerate(frame.to_dicts()):
            plain_scalars, plain_sets = columns(kind, [row], SALT, ZONES)
            assert {name: one.tolist() for name, one in plain_scalars.items()} == {
                name: [many[n]] for name, many in scalars.items()
            }
            for name, one in plain_sets.items():
                low, high = sets[name].start_n[n : n + 2]
                assert one.start_n.tolist() == [0, high - low], name
                assert one.value.tolist() == sets[name].value[low:high].tolist(), name
                assert one.known_n.tolist() == [sets[name].known_n[n]], name
        assert plain_scalars.keys() == scalars.keys()
        assert plain_sets.keys() == sets.keys()


def test_columns_of_no_records():
    for kind in ("job", "freelancer"):
        scalars, sets = columns(kind, frame_of(kind, []), SALT, ZONES)
        assert all(column.shape == (0,) for column in scalars.values())
        assert all(column.start_n.tolist() == [0] for column in sets.values())


def test_without_a_table_of_zones_no_zone_is_known():
    frame = frame_of("job", [{"id": "j", "zone": "UTC"}, {"id": "k"}])
    for rows in (frame, frame.head(0)):
        scalars, _ = columns("job", rows, SALT, ())
        assert scalars["zone"].tolist() == [UNKNOWN] * rows.height


def test_columns_do_not_depend_on_the_batch():
    rows = [
        {"id": f"f-{n}", "skills": [{"name": s, "level": n % 6 or None} for s in SKILLS[: n % 5]]}
        for n in range(23)
    ]
    together = segment_of("freelancer", rows)
    for n, row in enumerate(rows):
        alone = segment_of("freelancer", [row])
        for name, column in alone.scalars.items():
            assert column[0] == together.scalars[name][n]
        for name, column in alone.sets.items():
            start, stop = together.sets[name].start_n[n : n + 2]
            assert together.sets[name].value[start:stop].tolist() == column.value.tolist()
            assert together.sets[name].known_n[n] == column.known_n[0]


def test_set_values_ascend_without_repeats():
    rows = [{"id": "f", "skills": [{"name": n, "level": None} for n in ("b", "a", "B", "a")]}]
    column = segment_of("freelancer", rows).sets["skills"]
    assert column.value.tolist() == sorted({name_hash("a"), name_hash("b")})


def test_names_to_numbers():
    assert fold("  Web\u00a0  DESIGN ") == "web design"
    assert name_hash("Web") == name_hash(" web ")
    assert country_code("fr") == country_code("FR") != country_code("GB")
    codes = {language_code(code, level) for code in ("en", "fr", "de") for level in range(8)}
    assert len(codes) == 24
    # Frozen: stored columns hold these numbers.
    assert name_hash("python") == 5542960130538481579
    assert country_code("FR") == 18002
    assert language_code("en", 5) == 207733
