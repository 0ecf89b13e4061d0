"""The logical digest of a run: over its answers, not over the bytes of its files.

SHA-256 over, for each kind in the order job, freelancer, for each query in ascending order of keys:
``query_key u64, returned i32, shortfall code u8, t f64``, then its rows ``rank i32, key u64,
points i32, score f64``; packed, little endian. Unit size, slack, contributions, counts and who did
the work do not show in it.

Of a run with a second phase each query has ``degraded u8`` (0: not) behind ``t``, and each row
``first_rank i32, model_score i32`` behind ``score`` (-2^31: the model was not asked).
"""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl
from numpy.typing import NDArray

from matchwright.engine.errors import StoreDamaged
from matchwright.engine.results import Degraded
from matchwright.engine.runs.block import ERROR, FULL, SHORTFALL_CODE
from matchwright.engine.runs.folder import RunFolder
from matchwright.engine.runs.second import NO_SCORE
from matchwright.kernels.types import UInt8

QUERY = np.dtype([("key", "<u8"), ("returned", "<i4"), ("shortfall", "u1"), ("t", "<f8")])
ROW = np.dtype([("rank", "<i4"), ("key", "<u8"), ("points", "<i4"), ("score", "<f8")])
QUERY_2 = np.dtype([*QUERY.descr, ("degraded", "u1")])
ROW_2 = np.dtype([*ROW.descr, ("first_rank", "<i4"), ("model_score", "<i4")])
DEGRADED_CODE: dict[str, int] = {str(why): n + 1 for n, why in enumerate(Degraded)}
"""Reason -> its code in digests; the order of the enumeration is part of the format."""


def run_digest(folder: RunFolder) -> str:
    """The digest of all units of a run, in hexadecimal.

    Raises:
        NotFound, StoreDamaged: a unit that cannot be read.
    """
    state = hashlib.sha256()
    for unit in folder.plan().units:
        where = folder.url_of(unit.file("part"))
        state.update(unit_bytes(folder.part(unit), folder.queries(unit), where))
    return state.hexdigest()


def unit_bytes(part: pl.DataFrame, queries: pl.DataFrame, where: str = "part") -> bytes:
    """What one unit feeds into the digest.

    Raises:
        StoreDamaged: rows that do not belong to its queries.
    """
    reranked = "degraded" in queries.columns
    heads = np.zeros(queries.height, dtype=QUERY_2 if reranked else QUERY)
    heads["key"] = queries["query_key"].to_numpy()
    heads["returned"] = queries["returned"].to_numpy()
    heads["shortfall"] = shortfall_codes(queries)
    heads["t"] = queries["t"].to_numpy()
    rows = np.zeros(part.height, dtype=ROW_2 if reranked else ROW)
    for name in ROW.names or ():
        rows[name] = part[name].to_numpy()
    if reranked:
        heads["degraded"] = _degraded_codes(queries)
        rows["first_rank"] = part["first_rank"].to_numpy()
        rows["model_score"] = part["model_score"].fill_null(NO_SCORE).to_numpy()
    owner = np.repeat(heads["key"], np.maximum(heads["returned"], 0))
    if not np.array_equal(owner, part["query_key"].to_numpy()):
        raise StoreDamaged(f"{where}: its rows are not those of the unit's queries", file=where)
    return interleave(heads, rows).tobytes()


def interleave(heads: NDArray[np.void], rows: NDArray[np.void]) -> UInt8:
    """Each head, followed by as many rows as it says were returned, as bytes."""
    out = np.empty(heads.nbytes + rows.nbytes, dtype=np.uint8)
    lengths = np.empty(2 * heads.size, dtype=np.int64)
    lengths[0::2] = heads.itemsize
    lengths[1::2] = heads["returned"].astype(np.int64) * rows.itemsize
    is_head = np.repeat(np.tile([True, False], heads.size), lengths)
    out[is_head] = np.frombuffer(heads.tobytes(), dtype=np.uint8)
    out[~is_head] = np.frombuffer(rows.tobytes(), dtype=np.uint8)
    return out


def _degraded_codes(queries: pl.DataFrame) -> UInt8:
    codes = queries["degraded"].replace_strict(DEGRADED_CODE, default=0, return_dtype=pl.UInt8)
    return codes.to_numpy()


def shortfall_codes(queries: pl.DataFrame) -> UInt8:
    """uint8 (Q,): 0 for none, the enumeration's codes, 255 for an error."""
    codes = queries["shortfall"].replace_strict(SHORTFALL_CODE, default=FULL, return_dtype=pl.UInt8)
    return np.where(queries["error"].is_not_null().to_numpy(), ERROR, codes.to_numpy()).astype(
        np.uint8
    )
