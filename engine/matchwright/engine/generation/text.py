"""Text to unit vectors in fixed point.

``TextEncoder`` is what any encoder offers, a served one too. The embedded ones work on tokens::

    title, title, text, skills -> one string -> tokens -> counts -> integer sums -> unit length

``SvdEncoder`` is TF-IDF with truncated SVD and a sketch of its residual, fitted by scikit-learn
(see ``fitting``), applied with integer tables: y = sum_t tf_table[count_t] * idf[t] *
projection[t]. With at most 2**15 learnt tokens the sums stay below 2**53, so they are exact in
float64 and no order of summation matters. ``HashedEncoder`` needs no fit: every token has one
signed dimension.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeAlias, TypeGuard

import numpy as np
import polars as pl
from numpy.typing import NDArray

from matchwright.engine.generation.fixed import unit
from matchwright.engine.generation.hashing import hash64
from matchwright.engine.generation.plain import (
    PLAIN_FROM,
    TOKEN_CHARS_MAX,
    all_plain,
    codes_of_plain,
    listed_plain,
    plain_codes,
    plain_ones,
)
from matchwright.engine.prose import Prose
from matchwright.engine.table import ColumnTable, FrameTable, Table
from matchwright.kernels.types import Float64, Int16, Int32, Int64

WIDTH = 128
TOKENS_MAX = 2**15
"""Learnt tokens: 2**15 of them, times 2**9 (tf), 2**12 (idf), 2**15 (projection), stay below
2**53."""
SKILLS_MAX = 30
TF_UNIT = 64
TF_TABLE: tuple[int, ...] = (0, *(round(TF_UNIT * (1 + math.log(n))) for n in range(1, 64)))
"""1 + ln(count) in units of 1/64; more than 63 times counts as 63. Stored with the generation."""
IDF_UNIT = 256

_INVISIBLE = r"[\p{Cf}\u{34F}\u{115F}\u{1160}\u{17B4}\u{17B5}\u{2800}\u{3164}\u{FE00}-\u{FE0F}]"
_TOKEN = r"[\p{L}\p{M}\p{N}]+(?:\+\+|\+|#)?"

Texts: TypeAlias = pl.Series | list[str]


class TextEncoder(Protocol):
    """Turns texts into unit vectors.

    An embedded encoder gives the same bytes for a text in any batch and on any machine. A served
    one need not; its output is stored once.
    """

    @property
    def content_hash(self) -> str:
        """Hex digest of everything that its output depends on."""
        ...

    @property
    def width(self) -> int:
        """Dimensions: a power of two, or one times 3, 5 or 7."""
        ...

    def encode(self, texts: Texts) -> Float64:
        """float64 (N, width), grid integers of length 1; zeros where nothing can be said."""
        ...


class ProseEncoder(TextEncoder, Protocol):
    """An encoder that keeps what it gave, by the key of each text: a served one."""

    def encode_prose(self, prose: Sequence[Prose]) -> Float64:
        """As ``encode``. The same key gives the same bytes, also where its text is not kept."""
        ...

    def look(
        self, prose: Sequence[Prose], deadline: float | None
    ) -> tuple[Float64, Mapping[int, str]]:
        """As ``encode_prose`` for texts that ask; never fails for want of a server.

        Args:
            prose: what asks.
            deadline: moment of the monotonic clock by which the answer is needed.

        Returns:
            float64 (Q, width), and why some rows are zero: position -> reason.
        """
        ...


def is_served(encoder: TextEncoder) -> TypeGuard[ProseEncoder]:
    """Whether texts of this encoder are looked up by their keys."""
    return hasattr(encoder, "encode_prose")


def encode_table(encoder: TextEncoder, records: Table) -> Float64:
    """float64 (N, width): the unit vectors of records."""
    if is_served(encoder):
        return encoder.encode_prose(records.keyed_prose(SKILLS_MAX))
    if isinstance(encoder, SvdEncoder) and isinstance(records, ColumnTable):
        return encoder.encode_columns(records)
    return encoder.encode(records.prose(SKILLS_MAX))


def prepare(records: pl.DataFrame) -> pl.Series:
    """One string for each record: the title twice, the text, the names of its first 30 skills.

    Titles and texts have been scrubbed of names and contact details when records were made.
    """
    return FrameTable(records).prose(SKILLS_MAX)


def tokens(texts: pl.Series) -> pl.DataFrame:
    """``row`` (uint32) and ``token``: runs of letters and digits with a final ``+``, ``++`` or
    ``#``.

    NFKC, invisible and bidirectional format characters taken out, lower case. Longer tokens than 40
    characters are left out.
    """
    return _tokens(texts).collect()


def _tokens(texts: pl.Series) -> pl.LazyFrame:
    token = pl.col("token")
    plain = token.str.normalize("NFKC").str.replace_all(_INVISIBLE, "").str.to_lowercase()
    return (
        pl.DataFrame({"token": texts})
        .lazy()
        .select(plain.str.extract_all(_TOKEN))
        .with_row_index("row")
        .explode("token")
        .drop_nulls()
        .filter(token.str.len_bytes() <= 4 * TOKEN_CHARS_MAX)
        .filter(token.str.len_chars() <= TOKEN_CHARS_MAX)
    )


def listed_tokens(texts: Texts) -> tuple[Int64, list[str]]:
    """``tokens`` as int64 (M,) rows and a list.

    A list of plain texts is searched where it lies: an operation on a frame costs more than a text.
    """
    if isinstance(texts, pl.Series) or not all_plain(texts):
        found = tokens(texts if isinstance(texts, pl.Series) else pl.Series(texts, dtype=pl.String))
        return found["row"].to_numpy().astype(np.int64), found["token"].to_list()
    return listed_plain(texts)


def counts(row: NDArray[Any], code: Int64, codes: int) -> tuple[Int64, Int64, Int64]:
    """Row, code and how often, ascending, of pairs with repeats."""
    pair = row.astype(np.int64) * codes + code
    pair.sort()
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    often = np.diff(first, append=len(pair))
    return pair[first] // codes, pair[first] % codes, often.astype(np.int64)


def spread(row: Int64, code: Int64, at: Int64, rows: int) -> tuple[Int64, Int64]:
    """Codes of rows, given to everybody who has one of them.

    Args:
        row, code: int64 (M,), rows ascending.
        at: int64 (N,), the row of each.
        rows: how many there are.

    Returns:
        (int64 positions in ``at``, codes), one after the other.
    """
    start = np.searchsorted(row, np.arange(rows + 1))
    size = np.diff(start)[at]
    before = np.cumsum(size) - size
    place = np.arange(int(size.sum())) - np.repeat(before - start[at], size)
    return np.repeat(np.arange(at.size), size), code[place]


class SvdEncoder:
    """TF-IDF with truncated SVD in fixed point.

    Args:
        vocabulary: V different tokens.
        idf: int32 (V,), in units of 1/256, below 2**12.
        projection: int16 (V, width).
        tf_table: weight by count, below 2**9.
    """

    def __init__(
        self,
        vocabulary: tuple[str, ...],
        idf: Int32,
        projection: Int16,
        tf_table: tuple[int, ...] = TF_TABLE,
    ) -> None:
        if len(vocabulary) > TOKENS_MAX:
            raise ValueError(f"{len(vocabulary)} tokens; at most {TOKENS_MAX}")
        self.vocabulary = vocabulary
        self.idf = idf
        self.projection = projection
        self.tf_table = tf_table
        self._tf = np.array(tf_table, dtype=np.float64)

    @property
    def width(self) -> int:
        return int(self.projection.shape[1])

    @cached_property
    def content_hash(self) -> str:
        digest = hashlib.blake2b(digest_size=16, person=b"mw-svd-v1")
        for part in (
            "\n".join(self.vocabulary).encode(),
            self.idf.astype("<i4").tobytes(),
            self.projection.astype("<i2").tobytes(),
            ",".join(map(str, self.tf_table)).encode(),
        ):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()

    @cached_property
    def _table(self) -> pl.DataFrame:
        codes = pl.int_range(len(self.vocabulary), dtype=pl.Int64, eager=True)
        return pl.DataFrame({"token": pl.Series(self.vocabulary, dtype=pl.String), "code": codes})

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {token: code for code, token in enumerate(self.vocabulary)}

    @cached_property
    def _plain_codes(self) -> dict[bytes, int]:
        return codes_of_plain(self._codes)

    @cached_property
    def _wide(self) -> Float64:
        return self.projection.astype(np.float64)

    def known_tokens(self, texts: pl.Series) -> tuple[int, int]:
        """How many tokens the texts have, and how many of them were learnt."""
        found = tokens(texts)
        return found.height, found.join(self._table, on="token", how="semi").height

    def encode(self, texts: Texts) -> Float64:
        """Unit vectors; zeros where no token was learnt."""
        return self._vectors(len(texts), *self._learnt(texts))

    def encode_columns(self, records: ColumnTable) -> Float64:
        """``encode`` of the prose of records.

        Where all of it is plain, a title is read once and counted twice, and the name of a skill
        is read once for all who have it: tokens do not reach across lines or blanks.
        """
        titles = [title or "" for title in records.values("title")]
        texts = [text or "" for text in records.values("text")]
        items = records.skills(SKILLS_MAX)
        if not (all_plain(titles) and all_plain(texts) and all_plain(items.different)):
            return self.encode(records.prose(SKILLS_MAX))
        title, text, name = (
            plain_codes(said, self._plain_codes) for said in (titles, texts, items.different)
        )
        item, name_code = spread(*name, items.code_m, len(items.different))
        row = np.concatenate([title[0], title[0], text[0], items.row_m[item]])
        code = np.concatenate([title[1], title[1], text[1], name_code])
        return self._vectors(records.height, row, code)

    def _vectors(self, height: int, row: NDArray[Any], code: Int64) -> Float64:
        """Unit vectors of texts from their tokens."""
        size = len(self.vocabulary)
        row, code, often = counts(row, code, size)
        weight = self._tf[np.minimum(often, len(self._tf) - 1)] * self.idf[code]
        if height == 1:  # a sparse matrix takes longer to make than to multiply
            return unit((weight @ self._wide[code])[None, :])
        import scipy.sparse as sp  # a tenth of the start of a process that encodes nothing

        start = np.searchsorted(row, np.arange(height + 1))
        return unit(sp.csr_array((weight, code, start), shape=(height, size)) @ self._wide)

    def _learnt(self, texts: Texts) -> tuple[NDArray[Any], Int64]:
        """Row and code of every token that was learnt."""
        if isinstance(texts, pl.Series):
            found = _tokens(texts).join(self._table.lazy(), on="token", how="inner").collect()
            return found["row"].to_numpy(), found["code"].to_numpy()
        if len(texts) < PLAIN_FROM or not (plain := plain_ones(texts)):
            row, said = listed_tokens(texts)
            codes = np.array([self._codes.get(token, -1) for token in said], dtype=np.int64)
            return row[codes >= 0], codes[codes >= 0]
        row, code = plain_codes([texts[n] for n in plain], self._plain_codes)
        row = np.array(plain, dtype=np.int64)[row]
        if len(plain) < len(texts):
            others = sorted({*range(len(texts))} - {*plain})
            row_o, code_o = self._learnt(pl.Series([texts[n] for n in others], dtype=pl.String))
            row = np.concatenate([row, np.array(others, dtype=np.int64)[row_o]])
            code = np.concatenate([code, code_o])
        return row, code


class HashedEncoder:
    """Signed hashing of tokens onto dimensions, without the most common English words."""

    def __init__(self, width: int = WIDTH, tf_table: tuple[int, ...] = TF_TABLE) -> None:
        self._width = width
        self.tf_table = tf_table
        self._tf = np.array(tf_table, dtype=np.float64)

    @property
    def width(self) -> int:
        return self._width

    @cached_property
    def content_hash(self) -> str:
        about = f"mw-hashed-v1:{self._width}:{','.join(map(str, self.tf_table))}:{COMMON}"
        return hashlib.blake2b(about.encode(), digest_size=16).hexdigest()

    def known_tokens(self, texts: pl.Series) -> tuple[int, int]:
        """How many tokens the texts have, twice: a hash knows them all."""
        height = tokens(texts).height
        return height, height

    def encode(self, texts: Texts) -> Float64:
        """Unit vectors; zeros where there is no token."""
        row, listed = listed_tokens(texts)
        numbers = {token: code for code, token in enumerate(dict.fromkeys(listed))}
        hashed = np.array([hash64(token) for token in numbers], dtype=np.uint64)
        said = np.array([token not in _COMMON for token in numbers], dtype=np.float64)
        code = np.fromiter(map(numbers.__getitem__, listed), dtype=np.int64, count=len(listed))
        size = max(len(numbers), 1)
        row, code, often = counts(row, code, size)
        weight = self._tf[np.minimum(often, len(self._tf) - 1)]
        dim = (hashed % np.uint64(self._width)).astype(np.int64)
        sign = said * (1.0 - 2.0 * (hashed >> np.uint64(63)).astype(np.float64))
        flat = np.bincount(
            row * self._width + dim[code], weight * sign[code], len(texts) * self._width
        )
        return unit(flat.reshape(-1, self._width).astype(np.float64))


COMMON = (
    "a about all also am an and any are as at be because been being but by can do each for "
    "from get have he her his how i if in into is it its like looking me more must my need "
    "needs no not of on one or other our out please should so some such that the their them "
    "then there these they this to up us use using want was we well were what when where "
    "which who will with work would you your"
)
_COMMON = frozenset(COMMON.split())
