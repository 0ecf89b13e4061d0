"""Reading rows of a corpus by their global number, and packed bits over its rows.

Bits are packed little-endian, one uint64 word for 64 rows; every part begins a new word, so that
a block of rows that begins on a multiple of 64 owns whole words::

    part 0: rows 0..99         part 1: rows 100..149
    [word 0 .... ][word 1 ...-][word 2 ...-]            "-" is padding, always 0
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels.types import Corpus, Int8, Int64, Segment, UInt8, UInt64

WORD = 64
_FIRST_BIT = np.array([0, *((v & -v).bit_length() - 1 for v in range(1, 256))], dtype=np.int64)


def words_for(n: int) -> int:
    """uint64 words that hold n bits."""
    return -(-n // WORD)


def take_x(corpus: Corpus, rows: Int64) -> Int8:
    """x_nd of global rows in any order, int8 (M, D)."""
    if len(corpus.parts) == 1:
        return corpus.parts[0][0].x_nd.take(rows, axis=0)
    d = corpus.parts[0][0].x_nd.shape[1] if corpus.parts else 0
    out = np.empty((rows.size, d), dtype=np.int8)
    return _from_parts(corpus, rows, out, lambda segment: segment.x_nd)


def take_keys(corpus: Corpus, rows: Int64) -> UInt64:
    """uint64 keys of global rows in any order."""
    if len(corpus.parts) == 1:
        return corpus.parts[0][0].key_n.take(rows)
    out = np.empty(rows.size, dtype=np.uint64)
    return _from_parts(corpus, rows, out, lambda segment: segment.key_n)


def _from_parts(
    corpus: Corpus, rows: Int64, out: NDArray[Any], column: Callable[[Segment], NDArray[Any]]
) -> NDArray[Any]:
    if rows.size and (rows[1:] >= rows[:-1]).all():
        cut = np.searchsorted(rows, corpus.base).tolist()
        for p, (low, high) in enumerate(itertools.pairwise(cut)):
            if low < high:
                local = rows[low:high] - corpus.base[p]
                column(corpus.parts[p][0]).take(local, axis=0, out=out[low:high], mode="clip")
        return out
    part = np.searchsorted(corpus.base, rows, side="right") - 1
    for p in np.unique(part):
        mine = np.flatnonzero(part == p)
        out[mine] = column(corpus.parts[p][0])[rows[mine] - corpus.base[p]]
    return out


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of one part.

    Attributes:
        part: which part.
        begin, end: rows within the part.
        row: global number of the first.
        word: its word of bits; it begins there.
    """

    part: int
    begin: int
    end: int
    row: int
    word: int

    @property
    def n(self) -> int:
        return self.end - self.begin

    @property
    def words(self) -> slice:
        return slice(self.word, self.word + words_for(self.n))


class Layout:
    """Where each part's bits lie.

    Args:
        corpus: the corpus.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        sizes = [words_for(segment.n) for segment, _ in corpus.parts]
        self.word_base: list[int] = np.cumsum([0, *sizes]).tolist()

    @property
    def words(self) -> int:
        return self.word_base[-1]

    def blocks(self, rows: int) -> list[Block]:
        """Blocks of at most ``rows`` rows (a multiple of 64), in an order spread over the corpus.

        The order makes the first blocks a fair sample even where rows are sorted, so that the
        running bound is good from the beginning.
        """
        found = [
            Block(p, begin, min(begin + rows, segment.n), base + begin, word + begin // WORD)
            for p, (segment, _) in enumerate(self.corpus.parts)
            for base, word in [(int(self.corpus.base[p]), self.word_base[p])]
            for begin in range(0, segment.n, rows)
        ]
        return [found[i] for i in _spread(len(found))]

    def sample(self, step: int) -> tuple[Corpus, NDArray[np.intp]]:
        """Every step-th word's 64 rows as a corpus of its own, and which words those are.

        Rows that share a word are near each other, so words far apart are a fair sample even
        where the corpus is sorted.
        """
        x, keys, words = [], [], []
        d = self.corpus.parts[0][0].x_nd.shape[1]
        for p, (segment, _) in enumerate(self.corpus.parts):
            whole = segment.n // WORD
            some = np.arange(p * 7 % step, whole, step)
            x.append(segment.x_nd[: whole * WORD].reshape(whole, WORD * d)[some])
            keys.append(segment.key_n[: whole * WORD].reshape(whole, WORD)[some])
            words.append(some + self.word_base[p])
        rows = np.concatenate(x).reshape(-1, d)
        return (
            Corpus(((Segment(rows, np.concatenate(keys).reshape(-1)), None),)),
            np.concatenate(words),
        )

    def row_of_bit(self, bit: Int64) -> Int64:
        """Global rows of positions among all parts' bits."""
        if len(self.word_base) == 2:
            return bit
        base = np.array(self.word_base) * WORD
        part = np.searchsorted(base, bit, side="right") - 1
        rows: Int64 = bit - (base[:-1] - self.corpus.base[:-1])[part]
        return rows

    def rows(self, words: UInt64) -> Int64:
        """Global rows, ascending, of the bits that are set in a uint64 (words,) array."""
        pieces = [
            bit_rows(words[begin:end]) + int(self.corpus.base[p]) for p, begin, end in self._spans()
        ]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def pack(self, flags: NDArray[np.bool_], out: UInt64) -> None:
        """Pack bool (N,) over the corpus into uint64 (words,)."""
        for p, begin, end in self._spans():
            base = self.corpus.base
            put_bits(out[begin:end], flags[int(base[p]) : int(base[p + 1])])

    def unpack(self, words: UInt64) -> NDArray[np.bool_]:
        """bool (N,) over the corpus of uint64 (words,)."""
        out = np.zeros(self.corpus.n, dtype=np.bool_)
        for p, begin, end in self._spans():
            first, last = int(self.corpus.base[p]), int(self.corpus.base[p + 1])
            out[first:last] = unpack_bits(words[begin:end], last - first)
        return out

    def _spans(self) -> Iterator[tuple[int, int, int]]:
        for p, begin in enumerate(self.word_base[:-1]):
            yield p, begin, self.word_base[p + 1]


def _spread(n: int) -> list[int]:
    """0..n-1 with neighbours far apart: multiples of about n / golden ratio, modulo n."""
    step = max(1, round(n * 0.6180339887))
    while np.gcd(step, max(n, 1)) != 1:
        step += 1
    return [i * step % n for i in range(n)]


def put_bits(words: UInt64, flags: NDArray[np.bool_]) -> None:
    """Pack flags into words; the padding becomes 0."""
    packed = np.packbits(flags, bitorder="little")
    octets = words.view(np.uint8)
    octets[: packed.size] = packed
    octets[packed.size :] = 0


def unpack_bits(words: UInt64, n: int) -> NDArray[np.bool_]:
    """The first n bits as bool (n,)."""
    flags = np.unpackbits(words.view(np.uint8), count=n, bitorder="little")
    return flags.view(np.bool_)


def bit_rows(words: UInt64) -> Int64:
    """Positions of the bits that are set, ascending, int64."""
    place, ascending = _positions(words)
    if not ascending:
        place.sort()
    return place


def bit_places(words: UInt64) -> tuple[Int64, Int64]:
    """(line, column) of the bits that are set in uint64 (lines, width), in any order."""
    place = bit_positions(words)
    line = place // (words.shape[1] * WORD)
    return line, place - line * (words.shape[1] * WORD)


def bit_positions(words: UInt64) -> Int64:
    """Flat positions of the bits that are set in uint64 (lines, width), in any order."""
    return _positions(words.reshape(-1))[0]


def _positions(words: UInt64) -> tuple[Int64, bool]:
    """Positions of the bits that are set in uint64 (width,), and whether they ascend.

    Few words with bits: words are looked through, then the octets of those. More: octets are
    looked through. Many: bits.
    """
    held = np.flatnonzero(words != 0)
    if held.size * 4 <= words.size:
        octets = words[held].view(np.uint8)
        some = np.flatnonzero(octets != 0)
        base = (held[some >> 3] << 6) + ((some & 7) << 3)
    else:
        octets = words.view(np.uint8)
        some = np.flatnonzero(octets != 0)
        if some.size * 4 > octets.size:
            return np.flatnonzero(unpack_bits(words, words.size * WORD)), True
        base = some << 3
    place = _places(octets[some], base)
    return place, place.size == some.size


def _places(left: UInt8, base: Int64) -> Int64:
    """Positions of the bits of octets that begin at ``base``: all first bits, then second ones."""
    found = []
    while left.size:
        found.append(base + _FIRST_BIT[left])
        left = left & (left - np.uint8(1))
        more = np.flatnonzero(left)
        left, base = left[more], base[more]
    places: Int64 = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    return places


def count_bits(words: UInt64) -> int:
    """How many bits are set."""
    return int(np.bitwise_count(words).sum(dtype=np.int64))


class Scratch:
    """Buffers that one worker uses again and again; a name stands for one memory."""

    def __init__(self) -> None:
        self._buffers: dict[str, UInt8] = {}
        self._inner: Scratch | None = None

    def inner(self) -> Scratch:
        """Other buffers, for work while these are in use."""
        if self._inner is None:
            self._inner = Scratch()
        return self._inner

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An uninitialised array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, dtype=np.uint8)
        found: NDArray[Any] = buffer[:size].view(dtype).reshape(shape)
        return found
