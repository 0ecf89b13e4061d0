"""Rule sets of a block of queries as packed bits over the corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from matchwright.kernels.access import Layout, count_bits, put_bits
from matchwright.kernels.index_reader import Reader, lent
from matchwright.kernels.types import Bitmap, Bool, KeyIn, Predicate, Rules, UInt8, UInt64

Bits = tuple[UInt8, UInt8 | None]
"""(passing, unverified) bits of one part; unverified is None where no row can be."""
REMEMBERED = 64
"""Predicates whose bits a segment keeps for later queries: an eighth of a byte per row each."""


class Eligibility:
    """Evaluates groups over one corpus; what several of them share is evaluated once.

    Safe to be used by several threads.

    Args:
        layout: the corpus's layout.
        groups: all groups that will be asked for; predicates that occur in more than one are kept.
        memory_bytes: how much may be kept.
    """

    def __init__(self, layout: Layout, groups: Sequence[Rules | Bitmap], memory_bytes: int) -> None:
        self.layout = layout
        often = Counter(p for g in groups if not isinstance(g, Bitmap) for p in set(g))
        shared = (p for p, times in often.items() if times > 1)
        self._shared = {predicate: number for number, predicate in enumerate(shared)}
        self._kept: dict[tuple[int, int], Bits] = {}
        self._room = memory_bytes
        self._alone = len(groups) == 1

    def everything(self, group: Rules | Bitmap) -> bool:
        """Whether the group surely lets every row pass."""
        return group == () and all(alive is None for _, alive in self.layout.corpus.parts)

    def fill(self, group: Rules | Bitmap, out: UInt64, unsure: UInt64 | None = None) -> int:
        """Write the group's bits to uint64 (words,); gives the number of unverified rows.

        Args:
            unsure: zeros (words,), where bits of the unverified rows are written too.
        """
        corpus, unverified = self.layout.corpus, 0
        for p, (segment, alive) in enumerate(corpus.parts):
            words = out[self.layout.word_base[p] : self.layout.word_base[p + 1]]
            if isinstance(group, Bitmap):
                self._fill_bitmap(p, group, alive, words)
            elif segment.n:
                both = self._fill_part(p, group, alive, words)
                if both is not None:
                    unverified += count_bits(both)
                    if unsure is not None:
                        unsure[self.layout.word_base[p] : self.layout.word_base[p + 1]] = both
        return unverified

    def _fill_bitmap(self, p: int, group: Bitmap, alive: Bool | None, words: UInt64) -> None:
        bits, base = group.eligible_n, self.layout.corpus.base
        begin, end = int(base[p]), int(base[p + 1])
        if bits.dtype == np.bool_:
            flags: Bool = bits[begin:end].astype(np.bool_, copy=False)
        elif begin % 8 or end % 8 or alive is not None:
            octets = bits[begin // 8 : -(-end // 8)].view(np.uint8)
            flat = np.unpackbits(octets, count=begin % 8 + end - begin, bitorder="little")
            flags = flat[begin % 8 :].astype(np.bool_)
        else:
            words[-1:] = 0
            words.view(np.uint8)[: (end - begin) // 8] = bits[begin // 8 : end // 8]
            return
        put_bits(words, flags if alive is None else flags & alive)

    def _fill_part(self, p: int, group: Rules, alive: Bool | None, words: UInt64) -> UInt64 | None:
        """Write one part's bits; gives those of its unverified rows, if there can be any."""
        segment = self.layout.corpus.parts[p][0]
        n = segment.n
        octets = words.view(np.uint8)
        octets[:] = 0
        bits = octets[: -(-n // 8)]
        if alive is None:
            bits[:] = 255
            if n % 8:
                bits[-1] = (1 << n % 8) - 1
        else:
            bits[:] = np.packbits(alive, bitorder="little")
        unsure: UInt8 | None = None
        with lent(segment) as reader:
            for predicate in group:
                passing, unverified = self._evaluate(p, predicate, reader)
                bits &= passing
                if unverified is not None:
                    unsure = unverified if unsure is None else unsure | unverified
        if unsure is None:
            return None
        both = np.zeros(words.size, dtype=np.uint64)
        both.view(np.uint8)[: bits.size] = unsure & bits
        return both

    def _evaluate(self, p: int, predicate: Predicate, reader: Reader) -> Bits:
        if self._alone and not isinstance(predicate, KeyIn):
            return self._remembered(p, predicate, reader)
        number = self._shared.get(predicate)
        if number is None:
            return reader.evaluate(predicate)
        kept = self._kept.get((p, number))
        if kept is None:
            kept = reader.evaluate(predicate)
            size = kept[0].nbytes * (1 if kept[1] is None else 2)
            if size <= self._room:
                self._room -= size
                self._kept[p, number] = kept
        return kept

    def _remembered(self, p: int, predicate: Predicate, reader: Reader) -> Bits:
        """Bits that one query leaves for the next ones: most ask the same of most columns.

        Not those of keys: a list of ids is one query's own, and may be millions long.
        """
        memo = self.layout.corpus.parts[p][0].memo
        bits: Bits | None = memo.get(predicate)
        if bits is None:
            bits = reader.evaluate(predicate)
            for oldest in list(memo)[: len(memo) - REMEMBERED + 1]:
                memo.pop(oldest, None)
            memo[predicate] = bits
        return bits
