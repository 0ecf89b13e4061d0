// Rule predicates over resident columns: port of matchwright.kernels.rules, row by row.
//
// A program is a list of rules; rule_program.py writes it, and its integers have one meaning here
// and there. Values to look for lie in a pool of u64, ascending within one rule; those of a scalar
// column are its int32 values, sign extended.
//
//   column_c u64 (3 * slots,): addresses. A scalar column in slot c is i32 (N,) at [3c]; a set
//   column is its starts i64 (N + 1,) at [3c], values u64 at [3c + 1], known u8 (N,) at [3c + 2].
#pragma once

#include "score.cuh"

typedef unsigned char u8;

#define MW_UNKNOWN (-2147483647 - 1)
#define MW_DAY 1440

enum RuleKind {
    IN_RANGE, ONE_OF, HAS_ALL, HAS_NONE, EMPTY_OR_ANY, SUBSET_OF, HOURS_OVERLAP, KEY_IN
};

#define MW_UNKNOWN_PASSES 1
#define MW_NEGATE 2
#define MW_NO_WINDOW 4   // HOURS_OVERLAP: the query's own hours are not known
#define MW_ROW_ASKS 8    // HOURS_OVERLAP: the row's column says how many minutes are asked for

// HOURS_OVERLAP: column is the first of four slots (start, end, zone, minutes asked for), low and
// high the query's window, from and many the zones' offsets in the pool, asked what is asked for.
struct Rule {
    i32 kind, flags, column, low, high, from, many, asked;
};

#define MW_FAILS 0u
#define MW_PASSES 1u
#define MW_PASSES_UNKNOWN 2u

// Sums of int32 as the reference has them: they wrap.
MW_FN i32 plus(i32 a, i32 b) { return (i32)((u32)a + (u32)b); }
MW_FN i32 less(i32 a, i32 b) { return (i32)((u32)a - (u32)b); }
MW_FN i32 between(i32 low, i32 value, i32 high) {
    const i32 raised = value < low ? low : value;
    return raised < high ? raised : high;
}

// Called, not inlined, so that a rule takes no registers from the products around it; a kernel whose
// products are done by then says that it is better inlined.
#ifndef MW_AMONG
#define MW_AMONG MW_CALLED
#endif

MW_AMONG bool among(const u64* pool, i32 from, i32 many, u64 value) {
    i32 low = 0, high = many;
    while (low < high) {
        const i32 middle = (low + high) / 2;
        if (pool[from + middle] < value)
            low = middle + 1;
        else
            high = middle;
    }
    return low < many && pool[from + low] == value;
}

MW_FN i32 scalar_of(const u64* column_c, i32 slot, i64 row) {
    return reinterpret_cast<const i32*>(column_c[3 * slot])[row];
}

// Length of [start, end) in minutes; an end not after its start crosses midnight.
MW_FN i32 window_of(i32 start, i32 end) {
    const i32 length = less(end, start);
    return end > start ? length : plus(length, MW_DAY);
}

// Minutes that two daily windows share; they start at a and b, on any day.
MW_FN i32 shared_minutes(i32 a, i32 a_length, i32 b, i32 b_length) {
    i32 later = less(a, b) % MW_DAY;
    if (later < 0) later += MW_DAY;
    const i32 before_end = between(0, less(b_length, later), a_length);
    return plus(before_end, between(0, less(plus(later, a_length), MW_DAY), b_length));
}

MW_FN u32 outcome_of(bool known, bool good, i32 flags) {
    if (known) return good ? MW_PASSES : MW_FAILS;
    return (flags & MW_UNKNOWN_PASSES) != 0 ? MW_PASSES_UNKNOWN : MW_FAILS;
}

MW_FN u32 hours_outcome(const Rule& rule, const u64* pool, const u64* column_c, i64 row) {
    const bool asks = (rule.flags & MW_ROW_ASKS) != 0;
    const i32 asked = asks ? scalar_of(column_c, rule.column + 3, row) : rule.asked;
    if (asked <= 0 && asked != MW_UNKNOWN) return MW_PASSES;
    if ((rule.flags & MW_NO_WINDOW) != 0) return outcome_of(false, false, rule.flags);
    const i32 start = scalar_of(column_c, rule.column, row);
    const i32 end = scalar_of(column_c, rule.column + 1, row);
    const i32 zone = scalar_of(column_c, rule.column + 2, row);
    const bool known = asked != MW_UNKNOWN && start != MW_UNKNOWN && end != MW_UNKNOWN &&
                       zone >= 0 && zone < rule.many;
    if (!known) return outcome_of(false, false, rule.flags);
    const i32 offset = (i32)pool[rule.from + zone];
    const i32 minutes = shared_minutes(less(start, offset), window_of(start, end), rule.low,
                                       window_of(rule.low, rule.high));
    return outcome_of(true, minutes >= asked, rule.flags);
}

MW_FN u32 set_outcome(const Rule& rule, const u64* pool, const u64* column_c, i64 row) {
    const i64* start_n = reinterpret_cast<const i64*>(column_c[3 * rule.column]);
    const u64* value = reinterpret_cast<const u64*>(column_c[3 * rule.column + 1]);
    const bool known = reinterpret_cast<const u8*>(column_c[3 * rule.column + 2])[row] != 0;
    const i64 begin = start_n[row], end = start_n[row + 1];
    i64 hits = 0;
    for (i64 at = begin; known && at < end; ++at)
        hits += among(pool, rule.from, rule.many, value[at]) ? 1 : 0;
    bool good = hits == end - begin;  // SUBSET_OF
    if (rule.kind == HAS_ALL) good = hits == rule.many;
    if (rule.kind == HAS_NONE) good = hits == 0;
    if (rule.kind == EMPTY_OR_ANY) good = begin == end || hits > 0;
    return outcome_of(known, good, rule.flags);
}

MW_FN u32 rule_outcome(const Rule& rule, const u64* pool, const u64* column_c, i64 row,
                       const u64* key) {
    const bool negate = (rule.flags & MW_NEGATE) != 0;
    if (rule.kind == KEY_IN) {
        return among(pool, rule.from, rule.many, *key) != negate ? MW_PASSES : MW_FAILS;
    }
    if (rule.kind == HOURS_OVERLAP) return hours_outcome(rule, pool, column_c, row);
    if (rule.kind > ONE_OF) return set_outcome(rule, pool, column_c, row);
    const i32 value = scalar_of(column_c, rule.column, row);
    const bool good = rule.kind == IN_RANGE
                          ? value >= rule.low && value <= rule.high
                          : among(pool, rule.from, rule.many, (u64)(i64)value) != negate;
    return outcome_of(value != MW_UNKNOWN, good, rule.flags);
}

// All rules begin..end - 1 for one row: fails, passes, or passes some of them on an unknown value.
// The row's key is read where a rule asks for it.
MW_FN u32 judge(const Rule* rules, i32 begin, i32 end, const u64* pool, const u64* column_c,
                i64 row, const u64* key) {
    u32 outcome = MW_PASSES;
    for (i32 at = begin; at < end; ++at) {
        const u32 one = rule_outcome(rules[at], pool, column_c, row, key);
        if (one == MW_FAILS) return MW_FAILS;
        outcome |= one;
    }
    return (outcome & MW_PASSES_UNKNOWN) != 0u ? MW_PASSES_UNKNOWN : MW_PASSES;
}
