// Rules on the device: eligibility bits and exact counts of whole rule sets, and rules for the few
// rows that a scan has found.
//
//   rules, rule_start_g i32 (G + 1,), pool, column_c    see rules.cuh; a group's rules follow one
//                                                       another
//   key_n u64 (N,)   alive_w u32 (words,) or null: bit 0 of word 0 is the segment's first row
//
// rule_bits: rows begin..begin + rows - 1 of a segment; begin is a multiple of 32.
//   bits_gw u32 (G, words), 0 beyond the last row   eligible_g, unverified_g u64 (G,), added to
// Grid: (any, groups), MW_THREADS threads. A warp makes one word: a lane for a row.
//
// rule_survivors: leaves of each query's found entries those whose rows pass, in their order.
//   found_qc Entry (Q, capacity), count_q u32 (Q,) as the scan left them; rule_q i32 (Q,) a
//   query's group; row0 the global row of the segment's first
//   kept_q u32 (Q,), how many are left. count_q stays: after an overflow the rest was not seen.
// Grid: (active queries), MW_THREADS threads.
#include "order.cuh"
#include "rules.cuh"
#include "warp.cuh"

extern "C" __global__ void __launch_bounds__(MW_THREADS, 4) rule_bits(
    const Rule* rules, const i32* rule_start_g, const u64* pool, const u64* column_c,
    const u64* key_n, const u32* alive_w, i64 begin, i64 rows, u32* bits_gw, i64 words,
    u64* eligible_g, u64* unverified_g) {
    const int g = blockIdx.y;
    const int lane = threadIdx.x % 32;
    const int warps = blockDim.x / 32;
    const i32 first = rule_start_g[g], last = rule_start_g[g + 1];
    u64 eligible = 0, unverified = 0;
    for (i64 word = (i64)blockIdx.x * warps + threadIdx.x / 32; word < words;
         word += (i64)gridDim.x * warps) {
        const i64 n = word * 32 + lane;
        const bool there =
            n < rows && (alive_w == nullptr || (alive_w[begin / 32 + word] >> lane & 1u) != 0u);
        u32 outcome = MW_FAILS;
        if (there)
            outcome = judge(rules, first, last, pool, column_c, begin + n, key_n[begin + n]);
        const u32 pass = __ballot_sync(MW_WARP, outcome != MW_FAILS);
        const u32 unsure = __ballot_sync(MW_WARP, outcome == MW_PASSES_UNKNOWN);
        if (lane == 0) bits_gw[g * words + word] = pass;
        eligible += (u64)__popc(pass);
        unverified += (u64)__popc(unsure);
    }
    if (lane != 0 || eligible == 0) return;
    atomicAdd(eligible_g + g, eligible);
    if (unverified != 0) atomicAdd(unverified_g + g, unverified);
}

extern "C" __global__ void __launch_bounds__(MW_THREADS, 4) rule_survivors(
    const i32* active_a, const Rule* rules, const i32* rule_start_g, const u64* pool,
    const u64* column_c, const u64* key_n, const i32* rule_q, i32 row0, Entry* found_qc,
    int capacity, const u32* count_q, u32* kept_q) {
    __shared__ int pass_s[MW_THREADS / 32];
    const int q = active_a[blockIdx.x];
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int found = (int)min(count_q[q], (u32)capacity);
    const i32 first = rule_start_g[rule_q[q]], last = rule_start_g[rule_q[q] + 1];
    Entry* found_c = found_qc + (i64)q * capacity;
    int kept = 0;
    for (int from = 0; from < found; from += blockDim.x) {
        const int at = from + threadIdx.x;
        Entry entry = nothing();
        bool pass = false;
        if (at < found) {
            entry = found_c[at];
            const i64 row = entry.row - row0;
            pass = judge(rules, first, last, pool, column_c, row, key_n[row]) != MW_FAILS;
        }
        const u32 passed = __ballot_sync(MW_WARP, pass);
        if (lane == 0) pass_s[warp] = __popc(passed);
        __syncthreads();  // all entries of this round are read: they may be written over
        int before = kept;
        for (int other = 0; other < MW_THREADS / 32; ++other) {
            if (other < warp) before += pass_s[other];
            kept += pass_s[other];
        }
        if (pass) found_c[before + __popc(passed & ((1u << lane) - 1u))] = entry;
        __syncthreads();
    }
    if (threadIdx.x == 0) kept_q[q] = (u32)kept;
}
