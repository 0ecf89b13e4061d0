// The sieve: first limbs on tensor cores, tested in registers. Nothing but what beats its query's
// bound, and passes its query's rules, leaves the multiprocessor.
//
// A block of threads works on MW_TILE queries and MW_TILE rows; each of its 8 warps on 32 queries
// and 64 rows. Bytes come in stages of MW_STAGE through shared memory, the next one on its way
// while this one is multiplied:
//
//          rows 0 ............ 127
//   q 0    [warp 0     ][warp 1     ]     A 16-byte piece p of line r lies at r * MW_STAGE +
//     32   [warp 2     ][warp 3     ]     16 * (p ^ (r / 2 % 4)), so that the eight lines of a
//     64   [warp 4     ][warp 5     ]     matrix lie in different banks.
//     96   [warp 6     ][warp 7     ]
//
// A sum is compared with the least one that reaches the bound beside the tile's largest norm. The
// few that do, if they are eligible and their own norm lets them, are listed in shared memory, a
// quarter of the queries at a time, so that the list always has room. Where rules come with the
// scan, a lane judges its 16 rows of a query first, rule after rule, for as long as any is left: a
// rule is read once for all of them. Warps take pairs off the list one by one: second limb, whole
// key, and what is above the bound is appended. count_q goes on counting when the buffer is full:
// count_q[q] > capacity is an overflow, and the launcher goes on from the bound that the first
// `capacity` of them give.
//
//   high_qd, low_qd int8 (Q, width)   x_nd int8 (N, width); width is a multiple of MW_ALIGN, not 0
//   bits_gw  uint32 (G, words)        bit 0 of word 0 is column 0; 0 beyond the last row
//   found_qc Entry (Q, capacity)      count_q uint32 (Q,), zero at the start
//   rules ..  rules.cuh; null: none   rule_q i32 (Q,): a query's group
//   rule_row  the row of column 0 in the columns that rules read
//
// Columns begin..end - 1 are tested for the queries active_a; begin is a multiple of 32.
// Grid: (ceil(active / MW_TILE), ceil((end - begin) / MW_TILE)), MW_THREADS threads. Blocks that
// share rows are neighbours, so that the rows come from memory once.
#include "scan.cuh"
#include "tensor.cuh"
#include "warp.cuh"

#define MW_WARP_QUERIES 32
#define MW_WARP_ROWS 64
#define MW_LISTED (MW_TILE / 4 * MW_TILE)  // pairs of a quarter of the queries

// A listed pair: where in the tile, and its first limb.
struct alignas(8) Listed {
    i32 where;  // line * MW_TILE + column
    i32 first;
};

// The row, within a tile, of a lane's j-th sum of a query.
MW_FN int column_of(int warp_row, int lane, int j) {
    return warp_row + j / 2 * 8 + lane % 4 * 2 + j % 2;
}

extern "C" __global__ void __launch_bounds__(MW_THREADS, 2) sieve(MW_SCAN_ARGUMENTS) {
    // Queries in stages 0 and 1, rows in 2 and 3; later the list of a quarter of the pairs.
    alignas(16) __shared__ i8 stage_s[4 * MW_TILE * MW_STAGE];
    __shared__ i32 query_s[MW_TILE], least_s[MW_TILE], norm_s[MW_THREADS / 32];
    __shared__ u32 listed_s;
    static_assert(sizeof(stage_s) >= MW_LISTED * sizeof(Listed), "the list has room");

    const int thread = threadIdx.x;
    const int lane = thread % 32;
    const int warp = thread / 32;
    const int query0 = blockIdx.x * MW_TILE;
    const int column0 = begin + blockIdx.y * MW_TILE;

    // Who is here, whether anybody is eligible, and the largest norm.
    u32 eligible = 0u;
    i32 norm = 0;
    if (thread == 0) listed_s = 0u;
    if (thread < MW_TILE) {
        const int q = query0 + thread < active ? active_a[query0 + thread] : -1;
        query_s[thread] = q;
        for (int word = column0 / 32; q >= 0 && word * 32 < min(end, column0 + MW_TILE); ++word)
            eligible |= bits_gw[group_q[q] * words + word];
        if (column0 + thread < end) norm = norm_n[column0 + thread];
    }
    norm = __reduce_max_sync(MW_WARP, norm);
    if (lane == 0) norm_s[warp] = norm;
    if (!__syncthreads_or(eligible != 0u)) return;
    for (int other = 0; other < MW_THREADS / 32; ++other) norm = max(norm, norm_s[other]);
    if (thread < MW_TILE) {
        const int q = query_s[thread];
        least_s[thread] =
            q < 0 ? 2147483647 : least_first(bound_q[q].points, low_norm_q[q], norm);
    }

    const int stages = (width + MW_STAGE - 1) / MW_STAGE;
    auto fetch = [&](int stage) {
        i8* high = stage_s + stage % 2 * (MW_TILE * MW_STAGE);
        i8* x = high + 2 * (MW_TILE * MW_STAGE);
        for (int at = thread; at < MW_TILE * MW_PIECES; at += MW_THREADS) {
            const int line = at / MW_PIECES;
            const int byte = stage * MW_STAGE + at % MW_PIECES * 16;
            const int q = query_s[line];
            const bool query = byte < width && q >= 0;
            const bool row = byte < width && column0 + line < end;
            const int to = place(line, at % MW_PIECES);
            copy_ahead(high + to, high_qd + (query ? (i64)q * width + byte : 0), query);
            copy_ahead(x + to, x_nd + (row ? (i64)(column0 + line) * width + byte : 0), row);
        }
        end_of_stage();
    };

    const int warp_query = warp / 2 * MW_WARP_QUERIES;
    const int warp_row = warp % 2 * MW_WARP_ROWS;
    i32 sum[2][8][4] = {};
    fetch(0);
    for (int stage = 0; stage < stages; ++stage) {
        if (stage + 1 < stages) {
            fetch(stage + 1);
            wait_for_stage<1>();
        } else {
            wait_for_stage<0>();
        }
        __syncthreads();
        const i8* high = stage_s + stage % 2 * (MW_TILE * MW_STAGE);
        const i8* x = high + 2 * (MW_TILE * MW_STAGE);
#pragma unroll
        for (int piece = 0; piece < MW_PIECES; piece += 2) {
            u32 a[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i)
                load_matrices(a[i], high,
                              place(warp_query + 16 * i + lane % 16, piece + lane / 16));
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                u32 b[4];
                load_matrices(b, x, place(warp_row + 8 * j + lane / 16 * 8 + lane % 8,
                                          piece + lane / 8 % 2));
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    multiply(sum[i][j], a[i], b[0], b[1]);
                    multiply(sum[i][j + 1], a[i], b[2], b[3]);
                }
            }
        }
        __syncthreads();
    }

    Listed* list = reinterpret_cast<Listed*>(stage_s);
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // a lane's four queries
        const int line = warp_query + 8 * i + lane / 4;
        const i32 least = least_s[line];
        bool any = false;
#pragma unroll
        for (int j = 0; j < 16; ++j) any |= sum[i / 2][j / 2][i % 2 * 2 + j % 2] >= least;
        if (any) {  // so there is a query: nothing reaches the least of none
            const int q = query_s[line];
            const i32 bound_points = bound_q[q].points;
            const i32 low_norm = low_norm_q[q];
            const u32* bits_w = bits_gw + group_q[q] * words;
            u32 near = 0u;  // of the lane's 16 rows
#pragma unroll
            for (int j = 0; j < 16; ++j) {
                const i32 first = sum[i / 2][j / 2][i % 2 * 2 + j % 2];
                const int n = column0 + column_of(warp_row, lane, j);
                if (first < least || n >= end || (bits_w[n / 32] >> n % 32 & 1u) == 0u) continue;
                if (may_reach(first, low_norm, norm_n[n], bound_points)) near |= 1u << j;
            }
            if (rules != nullptr) {
                const i32 g = rule_q[q];
                for (i32 at = rule_start_g[g]; near != 0u && at < rule_start_g[g + 1]; ++at) {
                    const Rule rule = rules[at];
                    for (u32 left = near; left != 0u; left &= left - 1u) {
                        const int j = __ffs((int)left) - 1;
                        const int n = column0 + column_of(warp_row, lane, j);
                        if (rule_outcome(rule, pool, column_c, (i64)rule_row + n, key_n + n) ==
                            MW_FAILS)
                            near &= ~(1u << j);
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < 16; ++j) {
                if ((near >> j & 1u) == 0u) continue;
                list[atomicAdd(&listed_s, 1u)] = {
                    line * MW_TILE + column_of(warp_row, lane, j),
                    sum[i / 2][j / 2][i % 2 * 2 + j % 2]};
            }
        }
        if (!__syncthreads_or(any)) continue;
        const int listed = (int)listed_s;
        for (int at = warp; at < listed; at += MW_THREADS / 32) {
            const Listed pair = list[at];
            const int q = query_s[pair.where / MW_TILE];
            const int n = column0 + pair.where % MW_TILE;
            const i8* low_d = low_qd + (i64)q * width;
            const i32 second =
                low_norm_q[q] == 0 ? 0 : second_limb(low_d, x_nd + (i64)n * width, width, lane);
            if (lane != 0) continue;
            const Entry bound = bound_q[q];
            const Entry entry =
                entry_of(points_of(pair.first, second), key_q[q], key_n[n], row0 + n);
            if (!before(entry, bound)) continue;
            const u32 slot = atomicAdd(count_q + q, 1u);
            if (slot < (u32)capacity) found_qc[(i64)q * capacity + slot] = entry;
        }
        __syncthreads();
        if (thread == 0) listed_s = 0u;
        __syncthreads();
    }
}
