// What the scans that work out first limbs take; sieve.cu says what each of these is.
#pragma once

#include "order.cuh"
#include "rules.cuh"

#define MW_SCAN_ARGUMENTS                                                                         \
    const i32 *active_a, int active, const i8 *high_qd, const i8 *low_qd, const i32 *low_norm_q, \
        const u64 *key_q, const i32 *group_q, const Entry *bound_q, const i8 *x_nd,              \
        const i32 *norm_n, const u64 *key_n, int width, i32 row0, int begin, int end,            \
        const u32 *bits_gw, i64 words, Entry *found_qc, int capacity, u32 *count_q,              \
        const Rule *rules, const i32 *rule_start_g, const u64 *pool, const u64 *column_c,        \
        const i32 *rule_q, i32 rule_row
#define MW_SCAN_PASSED                                                                          \
    active_a, active, high_qd, low_qd, low_norm_q, key_q, group_q, bound_q, x_nd, norm_n, key_n, \
        width, row0, begin, end, bits_gw, words, found_qc, capacity, count_q, rules,            \
        rule_start_g, pool, column_c, rule_q, rule_row

// 16 bytes of a line.
struct alignas(16) Piece {
    u32 word[4];
};

MW_FN Piece piece_of(const i8* line, int byte, bool there) {
    Piece none = {{0u, 0u, 0u, 0u}};
    return there ? *reinterpret_cast<const Piece*>(line + byte) : none;
}
