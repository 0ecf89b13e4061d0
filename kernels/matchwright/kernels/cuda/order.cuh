// The total order of results: port of matchwright.kernels.order.
//
// An entry is a candidate with its 96-bit key; more is better. Best first, an entry a stands
// before b when (a.points, a.nmix, a.nlow) > (b.points, b.nmix, b.nlow).
#pragma once

#include "score.cuh"

struct alignas(16) Entry {
    i32 points;
    u32 nmix;  // complement of the mix of query key and corpus key
    u32 nlow;  // complement of the corpus key's low word
    i32 row;   // global row; not part of the key
};

// Below every real entry: real points are above -2^31.
MW_FN Entry nothing() {
    Entry entry = {-2147483647 - 1, 0u, 0u, -1};
    return entry;
}

// F(R, g): the 32-bit finaliser of MurmurHash3 (Appleby, public domain), keyed by g.
MW_FN u32 round32(u32 low, u64 key_q) {
    u32 z = low ^ (u32)key_q;
    z = (z ^ (z >> 16)) * 0x85EBCA6Bu;
    z = (z ^ (z >> 13)) + (u32)(key_q >> 32);
    z = (z ^ (z >> 13)) * 0xC2B2AE35u;
    return z ^ (z >> 16);
}

MW_FN u32 mix32(u64 key_q, u64 key_n) {
    return (u32)(key_n >> 32) ^ round32((u32)key_n, key_q);
}

MW_FN Entry entry_of(i32 points, u64 key_q, u64 key_n, i32 row) {
    Entry entry = {points, ~mix32(key_q, key_n), ~(u32)key_n, row};
    return entry;
}

MW_FN bool before(const Entry& a, const Entry& b) {
    if (a.points != b.points) return a.points > b.points;
    if (a.nmix != b.nmix) return a.nmix > b.nmix;
    return a.nlow > b.nlow;
}

// The key just below that of a real entry: a bound that lets the entry itself pass again.
MW_FN Entry predecessor(Entry entry) {
    entry.row = -1;
    if (entry.nlow-- != 0u) return entry;
    if (entry.nmix-- != 0u) return entry;
    --entry.points;
    return entry;
}
