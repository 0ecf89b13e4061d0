"""Fits a generation on a seeded sample of records.

The sample, not the store's order, decides: records are taken by a seeded hash of their ids. Two
fits on different machines need not give the same bytes (scikit-learn's SVD is in float); what a
generation does with a record afterwards always does.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from matchwright.engine.errors import InvalidArgument
from matchwright.engine.generation import folder
from matchwright.engine.generation.facets import category, rate, recency, skills, track
from matchwright.engine.generation.facets.availability import Availability
from matchwright.engine.generation.facets.base import Facet
from matchwright.engine.generation.facets.experience import Experience
from matchwright.engine.generation.facets.hours import Hours
from matchwright.engine.generation.fixed import GRID, Rotation, blocks_of
from matchwright.engine.generation.generation import Generation, parts
from matchwright.engine.generation.manifest import (
    FORMAT_VERSION,
    Fitted,
    Manifest,
    Measures,
    ServedState,
    TextState,
)
from matchwright.engine.generation.quantise import X_ABS_MAX
from matchwright.engine.generation.text import (
    IDF_UNIT,
    TF_TABLE,
    TF_UNIT,
    TOKENS_MAX,
    WIDTH,
    HashedEncoder,
    ProseEncoder,
    SvdEncoder,
    TextEncoder,
    counts,
    is_served,
    prepare,
    tokens,
)
from matchwright.engine.generation.zones import year_of, zones_of
from matchwright.engine.records import Kind
from matchwright.engine.table import FrameTable
from matchwright.kernels.types import D_MAX, Float64, Int16

if TYPE_CHECKING:
    import scipy.sparse as sp

SAMPLE = 50_000
"""Records of each kind that a fit looks at, unless told otherwise."""
DF_MIN = 5
"""No token of fewer entities is learnt."""
DF_SHARE_MAX = 0.5
"""A token that more entities have says nothing, and costs time."""
CLIP_QUANTILE = 0.9999
TOPICS = 32
"""Singular directions among the 128 dimensions of a text."""
_SVD_ROUNDS = 4


def fit(
    jobs: pl.DataFrame,
    freelancers: pl.DataFrame,
    *,
    seed: int,
    sample: int = SAMPLE,
    as_of: int,
    encoder: ProseEncoder | None = None,
    version: int = 0,
) -> Generation:
    """A generation for these records.

    Args:
        jobs, freelancers: frames of the two schemas; either may be empty.
        seed: of the sample, the rotations and the SVD.
        sample: records of each kind to look at, at most.
        as_of: the day, days since 1970-01-01; recency knots and zone offsets are set around it.
        encoder: a served one; an embedded one is fitted when it is not given.
        version: of a served one.

    Raises:
        InvalidArgument: the encoder is too wide, or of a width that the rotation cannot take.
        ModelUnavailable, ModelLate, ModelWrong: a served encoder did not give a vector.
    """
    taken = {"job": take(jobs, seed, sample), "freelancer": take(freelancers, seed, sample)}
    used: TextEncoder
    if encoder is None:
        used, learnt = fit_encoder(
            pl.concat([prepare(records) for records in taken.values()]), seed
        )
    else:
        check_width(encoder.width)
        used, learnt = encoder, 1_000
    return assemble(
        taken["job"],
        taken["freelancer"],
        encoder=used,
        version=version,
        rotation_seed=seed,
        as_of=as_of,
        fitted=Fitted(seed, sample, jobs.height, freelancers.height, learnt),
    )


def take(records: pl.DataFrame, seed: int, sample: int) -> pl.DataFrame:
    """At most ``sample`` records, those with the smallest seeded hash of their id, by id."""
    if records.height > sample:
        key = f"{seed}".encode()
        hashes = [
            hashlib.blake2b(name.encode(), digest_size=8, key=key).digest()
            for name in records["id"].to_list()
        ]
        order = sorted(range(len(hashes)), key=hashes.__getitem__)
        records = records[order[:sample]]
    return records.sort("id")


def fit_encoder(texts: pl.Series, seed: int) -> tuple[TextEncoder, int]:
    """The encoder, and which share of tokens it learnt in thousandths.

    Falls back to the hashed encoder where too few tokens are shared by five entities.
    """
    import scipy.sparse as sp

    found = tokens(texts)
    used = found.unique().group_by("token").len("df")
    most = max(DF_SHARE_MAX * len(texts), DF_MIN)
    used = used.filter(pl.col("df").is_between(DF_MIN, most))
    used = used.sort(["df", "token"], descending=[True, False]).head(TOKENS_MAX).sort("token")
    if used.height <= WIDTH:
        return HashedEncoder(), 0
    vocabulary = used.with_columns(code=pl.int_range(used.height, dtype=pl.Int64))
    found = found.join(vocabulary, on="token", how="inner")
    row, code, often = counts(found["row"].to_numpy(), found["code"].to_numpy(), used.height)
    idf = np.log((1.0 + len(texts)) / (1.0 + used["df"].to_numpy())) + 1.0
    tf = np.array(TF_TABLE)[np.minimum(often, len(TF_TABLE) - 1)] / TF_UNIT
    tfidf = sp.csr_array((tf * idf[code], (row, code)), shape=(len(texts), used.height))
    encoder = SvdEncoder(
        tuple(used["token"].to_list()),
        np.rint(idf * IDF_UNIT).astype(np.int32),
        _projection(tfidf, seed),
    )
    return encoder, math.floor(1_000 * found.height / max(tokens(texts).height, 1))


def _projection(tfidf: sp.csr_array, seed: int) -> Int16:
    """int16 (V, 128): 32 singular directions, and a sketch of what they leave out.

    Cosines of singular directions alone lose rare words, which decide between close texts. So the
    other 96 columns are random signs S without their part in the singular directions V,
    S - V V^T S: inner products of such sketches estimate those of the residuals without bias
    (Johnson and Lindenstrauss). The directions are divided by the square root of their singular
    value, relative to the last one, so that the broadest topics do not drown the others.
    Measured in docs/measured.md (quality).
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    svd = TruncatedSVD(TOPICS, n_iter=_SVD_ROUNDS, random_state=seed & 0xFFFFFFFF)
    svd.fit(normalize(tfidf))
    topics_vt = np.asarray(svd.components_, dtype=np.float64).T
    strength_t = np.maximum(np.asarray(svd.singular_values_, dtype=np.float64), 1e-9)
    rest = WIDTH - TOPICS
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (len(topics_vt), rest)) / np.sqrt(rest)
    sketch = signs - topics_vt @ (topics_vt.T @ signs)
    columns = np.hstack([topics_vt * np.sqrt(strength_t[-1] / strength_t), sketch])
    return np.asarray(np.rint(columns * (32_767.0 / np.abs(columns).max())), dtype=np.int16)


def assemble(
    jobs: pl.DataFrame,
    freelancers: pl.DataFrame,
    *,
    encoder: TextEncoder,
    rotation_seed: int,
    as_of: int,
    fitted: Fitted,
    version: int = 0,
) -> Generation:
    """Fits every other facet, then steps and means of all."""
    facets = {
        "skills": skills.fit(jobs, freelancers),
        "rate": rate.fit(jobs, freelancers),
        "experience": Experience(),
        "hours": Hours(zones_of(year_of(as_of))),
        "category": category.fit(jobs, freelancers),
        "track": track.fit(jobs, freelancers),
        "availability": Availability(),
        "recency": recency.fit(as_of),
    }
    blank = Measures((), ())
    draft = Manifest(
        format_version=FORMAT_VERSION,
        as_of=as_of,
        rotation_seed=rotation_seed,
        text=text_state(encoder, version),
        job=blank,
        freelancer=blank,
        fitted=fitted,
        **facets,  # type: ignore[arg-type]
    )
    return measured(draft, encoder, jobs, freelancers)


def measured(
    draft: Manifest, encoder: TextEncoder, jobs: pl.DataFrame, freelancers: pl.DataFrame
) -> Generation:
    """The generation of a draft whose steps and means are still to be found."""
    import msgspec

    all_parts = parts(draft, encoder)
    seed = draft.rotation_seed
    return Generation(
        msgspec.structs.replace(
            draft,
            job=_measures(all_parts, seed, "job", jobs),
            freelancer=_measures(all_parts, seed, "freelancer", freelancers),
        ),
        encoder,
    )


def text_state(encoder: TextEncoder, version: int = 0) -> TextState:
    """What the manifest says of an encoder; ``version`` is of a served one."""
    if is_served(encoder):
        served = ServedState(version, encoder.width)
        return TextState("served", encoder.content_hash, encoder.width, (), served=served)
    assert isinstance(encoder, HashedEncoder | SvdEncoder)
    return TextState(
        encoder="svd" if isinstance(encoder, SvdEncoder) else "hashed",
        content_hash=encoder.content_hash,
        width=encoder.width,
        tf_table=encoder.tf_table,
        files={
            name: folder.checksum(content)
            for name, content in folder.encoder_files(encoder).items()
        },
    )


def check_width(width: int) -> None:
    """Refuse an encoder whose dimensions do not fit beside the other facets.

    Raises:
        InvalidArgument: naming what would fit.
    """
    from matchwright.engine.generation.starting import starter  # made by this module itself

    others = starter().d - WIDTH
    if width > D_MAX - others:
        raise InvalidArgument(
            f"the encoder has {width} dimensions and the other facets {others}; at most "
            f"{D_MAX - others} fit, since sums are exact up to {D_MAX} in all",
            limit=D_MAX - others,
        )
    try:
        blocks_of(width)
    except ValueError as error:
        raise InvalidArgument(
            f"the encoder's dimensions cannot be rotated: {error}; pad its output with zeros, to "
            "384 or 768 say",
            limit=D_MAX - others,
        ) from None


def _measures(
    all_parts: tuple[Facet, ...], seed: int, kind: Kind, records: pl.DataFrame
) -> Measures:
    steps: list[str] = []
    mean: list[int] = []
    for part in all_parts:
        rotate = Rotation(part.width, seed, part.name)
        block = part.corpus(kind, FrameTable(records))
        v_nw = rotate(block.raw_nw[block.known_n])
        steps.append(_step(part, kind, v_nw).hex())
        if len(v_nw):
            middle = np.rint(v_nw.sum(axis=0) / len(v_nw))
        else:
            middle = rotate(part.neutral(kind)[None, :])[0]
        mean.extend(middle.astype(np.int64).tolist())
    return Measures(tuple(steps), tuple(mean))


def _step(part: Facet, kind: Kind, v_nw: Float64) -> float:
    """The 0.9999 quantile of the entries becomes 127."""
    if v_nw.size:
        reach = float(np.quantile(np.abs(v_nw), CLIP_QUANTILE, method="higher")) / GRID
        if reach > 0.0:
            return reach / X_ABS_MAX
    return part.reach(kind) / X_ABS_MAX
