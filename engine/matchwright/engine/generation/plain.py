"""Tokens of plain texts: those of Western European prose, of which no rule of Unicode is needed.

::

    few texts      one regular expression over each
    many           one line of bytes, a byte for each character; separators become blanks; split

Both give the tokens that ``text.tokens`` gives; most texts are plain, and it takes far longer.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from matchwright.kernels.types import Int64

TOKEN_CHARS_MAX = 40
PLAIN_FROM = 8
"""Texts from which on one pass over all of them takes less time than one over each."""

PLAIN = frozenset(map(chr, (*range(0x80), *range(0xC0, 0x100)))) | frozenset(
    "\u00a0\u00a1\u00a7\u00a9\u00ab\u00ae\u00b0\u00b7\u00bb\u00bf"
    "\u2010\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026\u20ac"
)
"""Characters of which a text has the same tokens by ``text.tokens`` and by ``_TOKEN``, whatever the
version of Unicode: NFKC leaves each as it is or makes a separator of it."""
_PLAIN = re.compile(f"[{re.escape(''.join(sorted(PLAIN)))}]*")
_LETTERS = r"a-z0-9\xdf-\xf6\xf8-\xff"
_TOKEN = re.compile(rf"[{_LETTERS}]+(?:\+\+|\+|#)?")

_ENCODING = "latin-1"
"""A byte for each character. What it has not is a separator, and becomes "?", which is one too."""
_END = b"A"
"""Stands between texts: no lower-case text has it."""
_NEXT = -2
"""Its code."""
_BLANK, _PLUS, _SHARP = b" +#"
_LETTER = np.array(
    [bool(re.match(f"[{_LETTERS}]", chr(byte))) for byte in range(256)], dtype=np.bool_
)
_KEPT = bytes(
    byte if _LETTER[byte] or byte in (_PLUS, _SHARP, _END[0]) else _BLANK for byte in range(256)
)
"""Translates separators to blanks."""


def all_plain(texts: Sequence[str]) -> bool:
    """Whether all of them are plain."""
    return _PLAIN.fullmatch("\n".join(texts)) is not None


def plain_ones(texts: Sequence[str]) -> list[int]:
    """Positions of the plain ones."""
    if all_plain(texts):
        return list(range(len(texts)))
    return [n for n, text in enumerate(texts) if _PLAIN.fullmatch(text)]


def listed_plain(texts: Sequence[str]) -> tuple[Int64, list[str]]:
    """int64 (M,) rows and tokens of plain texts."""
    by_row = [_TOKEN.findall(text.lower()) for text in texts]
    row = np.repeat(np.arange(len(texts)), [len(row) for row in by_row])
    said = [token for row in by_row for token in row]
    if max(map(len, said), default=0) > TOKEN_CHARS_MAX:
        kept = [n for n, token in enumerate(said) if len(token) <= TOKEN_CHARS_MAX]
        row, said = row[kept], [said[n] for n in kept]
    return row, said


def codes_of_plain(codes: Mapping[str, int]) -> dict[bytes, int]:
    """The codes of learnt tokens that a plain text can have, for ``plain_codes``."""
    plain = {
        token.encode(_ENCODING): code
        for token, code in codes.items()
        if _TOKEN.fullmatch(token) and len(token) <= TOKEN_CHARS_MAX
    }
    return {**plain, _END: _NEXT}


def plain_codes(texts: Sequence[str], codes: Mapping[bytes, int]) -> tuple[Int64, Int64]:
    """int64 (M,) rows and codes of the tokens of plain texts that have a code.

    Args:
        codes: from ``codes_of_plain``; of 0 and above.
    """
    line = f" {_END.decode()} ".join(text.lower() for text in texts)
    said = _split(f" {line} ".encode(_ENCODING, "replace"))
    found = map(codes.get, said, itertools.repeat(-1))
    code = np.fromiter(found, dtype=np.int64, count=len(said))
    row = np.cumsum(code == _NEXT)
    return row[code >= 0], code[code >= 0]


def _split(line: bytes) -> list[bytes]:
    """Tokens and ``_END``s of a line that begins and ends with a blank."""
    line = line.translate(_KEPT)
    byte = np.frombuffer(line, dtype=np.uint8)
    mark = np.flatnonzero((byte == _PLUS) | (byte == _SHARP))
    if not mark.size:
        return line.split()
    # A final "+", "++" or "#" of a token stays; what follows it begins another.
    first = _LETTER[byte[mark - 1]]
    second = np.zeros_like(first)
    second[1:] = first[:-1] & (mark[1:] == mark[:-1] + 1)
    second &= (byte[mark] == _PLUS) & (byte[mark - 1] == _PLUS)
    kept = first | second
    byte = byte.copy()
    byte[mark[~kept]] = _BLANK
    after = mark[kept] + 1
    return np.insert(byte, after[_LETTER[byte[after]]], _BLANK).tobytes().split()
