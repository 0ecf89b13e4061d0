// Which eligible pairs of a tile beat their query's bound: exact points, appended per query.
//
// One warp tests 32 rows of one query at a time: eligibility bits, then the first limb (the tile),
// then for the few that can still reach the bound the query's rules, where they come with the scan
// (arguments as in sieve.cu), and the second limb, by the whole warp. Only pairs
// whose whole key is above the bound are appended, in no particular order, with one atomicAdd per
// warp. count_q goes on counting when the buffer is full: count_q[q] > capacity is an overflow,
// and the launcher goes on from the bound that the first `capacity` of them give.
//
//   tile_qn   float32 (Q, tile_stride)   first limb, exact integers; column 0 is x_nd's row 0
//   bits_gw   uint32 (G, words)          bit 0 of word 0 is column 0; 0 beyond the last row
//   low_qd    int8 (Q, width)            x_nd int8 (N, width); width is a multiple of MW_ALIGN
//   found_qc  Entry (Q, capacity)        count_q uint32 (Q,), zero at the start
//
// Columns begin..end - 1 are tested for the queries active_a; begin is a multiple of 32.
// Grid: (any, active queries), MW_THREADS threads.
#include "order.cuh"
#include "rules.cuh"
#include "warp.cuh"

extern "C" __global__ void __launch_bounds__(MW_THREADS) threshold(
    const float* tile_qn, i64 tile_stride, int begin, int end, const i32* active_a,
    const i8* low_qd, const i32* low_norm_q, const u64* key_q, const i32* group_q,
    const Entry* bound_q, const i8* x_nd, const i32* norm_n, const u64* key_n, int width, i32 row0,
    const u32* bits_gw, i64 words, Entry* found_qc, int capacity, u32* count_q,
    const Rule* rules, const i32* rule_start_g, const u64* pool, const u64* column_c,
    const i32* rule_q, i32 rule_row) {
    const int q = active_a[blockIdx.y];
    const int lane = threadIdx.x % 32;
    const int warps = blockDim.x / 32;
    const Entry bound = bound_q[q];
    const i32 low_norm = low_norm_q[q];
    const u32* bits_w = bits_gw + group_q[q] * words;
    const i8* low_d = low_qd + (i64)q * width;

    const int step = gridDim.x * warps;
    for (int word = begin / 32 + blockIdx.x * warps + threadIdx.x / 32; word * 32 < end;
         word += step) {
        const u32 eligible = bits_w[word];
        if (eligible == 0u) continue;
        const int n = word * 32 + lane;
        i32 first = 0;
        bool pass = n < end && (eligible >> lane & 1u) != 0u;
        if (pass) {
            first = (i32)tile_qn[q * tile_stride + n];
            pass = may_reach(first, low_norm, norm_n[n], bound.points);
        }
        if (pass && rules != nullptr)
            pass = judge(rules, rule_start_g[rule_q[q]], rule_start_g[rule_q[q] + 1], pool,
                         column_c, (i64)rule_row + n, key_n + n) != MW_FAILS;
        i32 second = 0;
        u32 near = low_norm == 0 ? 0u : __ballot_sync(MW_WARP, pass);
        for (; near != 0u; near &= near - 1u) {
            const int other = __ffs((int)near) - 1;
            const i32 sum = second_limb(low_d, x_nd + (i64)(word * 32 + other) * width, width, lane);
            if (lane == other) second = sum;
        }
        Entry entry = nothing();
        if (pass) {
            entry = entry_of(points_of(first, second), key_q[q], key_n[n], row0 + n);
            pass = before(entry, bound);
        }
        const u32 found = __ballot_sync(MW_WARP, pass);
        if (found == 0u) continue;
        u32 slot = 0u;
        if (lane == 0) slot = atomicAdd(count_q + q, (u32)__popc(found));
        slot = __shfl_sync(MW_WARP, slot, 0) + (u32)__popc(found & ((1u << lane) - 1u));
        if (pass && slot < (u32)capacity) found_qc[(i64)q * capacity + slot] = entry;
    }
}
