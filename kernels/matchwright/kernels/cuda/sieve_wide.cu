// The sieve on the warpgroups of sm_90a: the tensor cores read both operands out of shared memory,
// and each row comes from the second level cache once for 256 queries.
//
// A block keeps MW_WIDE_QUERIES queries in shared memory and goes through up to MW_WIDE_TILES
// tiles of MW_TILE rows, of which only those count in which some query has an eligible row. Its
// four warpgroups multiply 64 queries each by all rows of a tile, the four of a warpgroup 16 each:
//
//   shared memory, from a multiple of 1,024 on; lines are placed as warpgroup.cuh has it
//     queries   width / 64 (rounded up) times   256 lines x 64 bytes
//     ring      MW_WIDE_STAGES times            128 lines x 64 bytes
//     list      MW_WIDE_LISTED pairs
//
// Step by step through the ring: two stages of rows are on their way, one is being multiplied,
// and one was before; a barrier for each. A lane ends with the sums of 2 queries and 32 rows. Those
// that reach the least sum beside the tile's largest norm, and are eligible, become bits, and the
// bits pairs in the list. They wait there until the list is half full, so that all threads have
// work at once: rules, both limbs (a sum is not kept: registers are for the products), whole key;
// what is above the bound is appended as in sieve.cu. A list that is full is emptied, and listing
// goes on. Where a lane finds many at a time, rules are judged before listing: a rule is read once
// for all of them.
//
// Arguments as in sieve.cu, and how many tiles a block goes through. MW_WIDE_THREADS threads; grid:
// (ceil(active / MW_WIDE_QUERIES), ceil((end - begin) / (tiles * MW_TILE))); bytes of shared
// memory: wide_bytes in device.py.
#define MW_AMONG MW_FN
#include "scan.cuh"
#include "warp.cuh"
#include "warpgroup.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define MW_WIDE_STAGE (MW_TILE * MW_STAGE)
#define MW_WIDE_SLAB (MW_WIDE_QUERIES * MW_STAGE)
#define MW_WIDE_COLUMNS_LOG 13  // a listed pair: line << 13 | column
#define MW_WIDE_COLUMNS ((1u << MW_WIDE_COLUMNS_LOG) - 1u)
#define MW_WIDE_AHEAD 2         // stages of rows that are on their way
#define MW_WIDE_MANY 4          // of a lane's 32 rows

static_assert(MW_WIDE_TILES * MW_TILE <= 1 << MW_WIDE_COLUMNS_LOG, "a column has its bits");
static_assert(MW_WIDE_TILES % 32 == 0, "tiles are bits of whole words");
static_assert(MW_WIDE_THREADS == MW_TILE * MW_PIECES, "a thread copies one piece of a stage");

// The bits of two in each byte, side by side.
MW_FN u32 pairs_of_bytes(u32 word) {
    const u32 two = word & 0x03030303u;
    return (two | two >> 6 | two >> 12 | two >> 18) & 0xFFu;
}

// The column, within a tile, of bit j of a lane's rows.
MW_FN int column_of_bit(int lane, int j) {
    return j / 2 * 8 + lane % 4 * 2 + j % 2;
}

// A sum of eight neighbours, seen by each of them; all lanes of the warp come here.
MW_FN i32 sum_of_eight(i32 sum, int lane) {
    for (int apart = 4; apart != 0; apart /= 2) sum += __shfl_sync(MW_WARP, sum, lane ^ apart);
    return sum;
}

extern "C" __global__ void __launch_bounds__(MW_WIDE_THREADS, 1)
    sieve_wide(MW_SCAN_ARGUMENTS, int tiles) {
    MW_SHARED(room_s);
    __shared__ i32 query_s[MW_WIDE_QUERIES], group_s[MW_WIDE_QUERIES];
    __shared__ i32 bound_s[MW_WIDE_QUERIES], low_s[MW_WIDE_QUERIES];
    __shared__ u32 live_s[MW_WIDE_TILES / 32], listed_s;

    const int thread = threadIdx.x;
    const int lane = thread % 32;
    const int warp = thread / 32;
    const int stages = (width + MW_STAGE - 1) / MW_STAGE;
    i8* queries_s = room_s + (0u - shared_address(room_s)) % MW_WIDE_ALIGN;
    i8* ring_s = queries_s + stages * MW_WIDE_SLAB;
    u32* list = reinterpret_cast<u32*>(ring_s + MW_WIDE_STAGES * MW_WIDE_STAGE);
    const int first_column = begin + blockIdx.y * tiles * MW_TILE;
    const int last = min(end, first_column + tiles * MW_TILE);

    // Who is here.
    if (thread == 0) listed_s = 0u;
    if (thread < MW_WIDE_TILES / 32) live_s[thread] = 0u;
    if (thread < MW_WIDE_QUERIES) {
        const int at = blockIdx.x * MW_WIDE_QUERIES + thread;
        const int q = at < active ? active_a[at] : -1;
        query_s[thread] = q;
        group_s[thread] = q < 0 ? 0 : group_q[q];
        bound_s[thread] = q < 0 ? 0 : bound_q[q].points;
        low_s[thread] = q < 0 ? 0 : low_norm_q[q];
    }
    __syncthreads();

    // Tiles in which somebody is eligible.
    for (int line = warp; line < MW_WIDE_QUERIES; line += MW_WIDE_THREADS / 32) {
        for (int tile = lane; query_s[line] >= 0 && tile < MW_WIDE_TILES; tile += 32) {
            const int column0 = first_column + tile * MW_TILE;
            if (column0 >= last || (live_s[tile / 32] >> tile % 32 & 1u) != 0u) continue;
            const u32* bits_w = bits_gw + group_s[line] * words;
            u32 eligible = 0u;
            for (int column = column0; column < min(last, column0 + MW_TILE); column += 32)
                eligible |= bits_w[column / 32];
            if (eligible != 0u) atomicOr(&live_s[tile / 32], 1u << tile % 32);
        }
    }
    __syncthreads();
    auto next_live = [&](int tile) {  // the next one from this one on; MW_WIDE_TILES: none
        for (; tile < MW_WIDE_TILES; tile = tile / 32 * 32 + 32) {
            const u32 later = live_s[tile / 32] >> tile % 32;
            if (later != 0u) return tile + __ffs((int)later) - 1;
        }
        return MW_WIDE_TILES;
    };
    if (next_live(0) == MW_WIDE_TILES) return;

    for (int at = thread; at < stages * MW_WIDE_QUERIES * MW_PIECES; at += MW_WIDE_THREADS) {
        const int line = at / MW_PIECES % MW_WIDE_QUERIES;
        const int slab = at / (MW_PIECES * MW_WIDE_QUERIES);
        const int byte = slab * MW_STAGE + at % MW_PIECES * 16;
        const bool there = byte < width && query_s[line] >= 0;
        copy_ahead(queries_s + slab * MW_WIDE_SLAB + place(line, at % MW_PIECES),
                   high_qd + (there ? (i64)query_s[line] * width + byte : 0), there);
    }

    int copied_tile = next_live(0), copied_stage = 0, copied = 0;
    auto copy = [&]() {  // the next stage of rows, this thread's piece of it
        if (copied_tile < MW_WIDE_TILES) {
            const int column = first_column + copied_tile * MW_TILE + thread / MW_PIECES;
            const int byte = copied_stage * MW_STAGE + thread % MW_PIECES * 16;
            const bool there = byte < width && column < last;
            copy_ahead(ring_s + copied % MW_WIDE_STAGES * MW_WIDE_STAGE +
                           place(thread / MW_PIECES, thread % MW_PIECES),
                       x_nd + (there ? (i64)column * width + byte : 0), there);
            ++copied;
            if (++copied_stage == stages) {
                copied_stage = 0;
                copied_tile = next_live(copied_tile + 1);
            }
        }
        end_of_stage();
    };

    // What is listed, 32 pairs a warp at a time: lanes judge one each, then eight lanes finish one.
    auto finish = [&]() {
        const int listed = min((int)listed_s, MW_WIDE_LISTED);
        for (int at = thread; at - lane < listed; at += MW_WIDE_THREADS) {
            const u32 pair = at < listed ? list[at] : 0u;
            bool near = at < listed;
            if (near && rules != nullptr) {
                const int n = first_column + (int)(pair & MW_WIDE_COLUMNS);
                const i32 g = rule_q[query_s[pair >> MW_WIDE_COLUMNS_LOG]];
                near = judge(rules, rule_start_g[g], rule_start_g[g + 1], pool, column_c,
                             (i64)rule_row + n, key_n + n) != MW_FAILS;
            }
            for (u32 left = __ballot_sync(MW_WARP, near); left != 0u;) {
                u32 mine = left;  // of the four that come next, the one of these eight lanes
                for (int i = 0; i < lane / 8; ++i) mine &= mine - 1u;
                for (int i = 0; i < 4; ++i) left &= left - 1u;
                const bool there = mine != 0u;
                const u32 its = __shfl_sync(MW_WARP, pair, there ? __ffs((int)mine) - 1 : 0);
                const int line = (int)(its >> MW_WIDE_COLUMNS_LOG);
                const int n = first_column + (int)(its & MW_WIDE_COLUMNS);
                const int q = query_s[line];
                i32 first = 0, second = 0;
                for (int byte = lane % 8 * 16; there && byte < width; byte += 128) {
                    const Piece x = piece_of(x_nd + (i64)n * width, byte, true);
                    const Piece low = piece_of(low_qd + (i64)q * width, byte, true);
                    const i8* slab = queries_s + byte / MW_STAGE * MW_WIDE_SLAB;
                    const Piece high = piece_of(slab, place(line, byte % MW_STAGE / 16), true);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        first = dot4((i32)high.word[i], (i32)x.word[i], first);
                        second = dot4((i32)low.word[i], (i32)x.word[i], second);
                    }
                }
                const i32 points = sum_of_eight(points_of(first, second), lane);
                if (lane % 8 != 0 || !there) continue;
                const Entry entry = entry_of(points, key_q[q], key_n[n], row0 + n);
                if (!before(entry, bound_q[q])) continue;
                const u32 slot = atomicAdd(count_q + q, 1u);
                if (slot < (u32)capacity) found_qc[(i64)q * capacity + slot] = entry;
            }
        }
        __syncthreads();
        if (thread == 0) listed_s = 0u;
        __syncthreads();
    };

    const u32 group_queries =
        shared_address(queries_s) + thread / 128 * (MW_WIDE_SLAB / (MW_WIDE_THREADS / 128));
    i32 sum[64];
    int step = 0;
#pragma unroll 1
    for (int i = 0; i < MW_WIDE_AHEAD; ++i) copy();
    for (int tile = next_live(0); tile < MW_WIDE_TILES; tile = next_live(tile + 1)) {
        // What the test will need; it comes while the products go on.
        const int column0 = first_column + tile * MW_TILE;
        const int column = column0 + lane % 4 * 32;  // of the word of bits that this lane reads
        i32 norm = 0;
        u32 bits[2] = {0u, 0u};
#pragma unroll
        for (int i = 0; i < MW_TILE; i += 32)
            if (column0 + lane + i < last) norm = max(norm, norm_n[column0 + lane + i]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int line = 16 * warp + 8 * i + lane / 4;
            if (query_s[line] < 0 || column >= last) continue;
            bits[i] = bits_gw[group_s[line] * words + column / 32];
            if (last - column < 32) bits[i] &= (1u << (last - column)) - 1u;
        }

        for (int stage = 0; stage < stages; ++stage, ++step) {
            wait_for_stage<MW_WIDE_AHEAD - 1>();
            show_to_products();
            products_done<1>();
            __syncthreads();  // all copies of this stage are there, and all products but the last's
            copy();
            const u32 a = group_queries + stage * MW_WIDE_SLAB;
            const u32 b = shared_address(ring_s) + step % MW_WIDE_STAGES * MW_WIDE_STAGE;
            products_begin();
            begin_product(sum, operand(a), operand(b), stage != 0);
            begin_product(sum, operand(a + 32), operand(b + 32), true);
            products_end();
        }
        products_done<0>();
        sums_are_read(sum);

        norm = __reduce_max_sync(MW_WARP, norm);
        u32 near[2] = {0u, 0u};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int line = 16 * warp + 8 * i + lane / 4;
            const i32 least = least_first(bound_s[line], low_s[line], norm);
            i32 most = sum[2 * i];
#pragma unroll
            for (int j = 1; j < 32; ++j) most = max(most, sum[j / 2 * 4 + 2 * i + j % 2]);
            u32 eligible = 0u;  // nothing where there is no query
            for (int word = 0; word < 4; ++word) {
                const u32 whole = __shfl_sync(MW_WARP, bits[i], lane / 4 * 4 + word);
                eligible |= pairs_of_bytes(whole >> lane % 4 * 2) << 8 * word;
            }
            if (most < least || eligible == 0u) continue;
#pragma unroll
            for (int j = 0; j < 32; ++j)
                if (sum[j / 2 * 4 + 2 * i + j % 2] >= least) near[i] |= 1u << j;
            near[i] &= eligible;
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (rules == nullptr || __popc(near[i]) <= MW_WIDE_MANY) continue;
            const i32 g = rule_q[query_s[16 * warp + 8 * i + lane / 4]];
            for (i32 at = rule_start_g[g]; near[i] != 0u && at < rule_start_g[g + 1]; ++at) {
                const Rule rule = rules[at];
                for (u32 left = near[i]; left != 0u; left &= left - 1u) {
                    const int j = __ffs((int)left) - 1;
                    const int n = column0 + column_of_bit(lane, j);
                    if (rule_outcome(rule, pool, column_c, (i64)rule_row + n, key_n + n) ==
                        MW_FAILS)
                        near[i] &= ~(1u << j);
                }
            }
        }

        const bool ends = next_live(tile + 1) == MW_WIDE_TILES;
        for (bool more = true; more;) {  // once, but for lists that are full
            bool full = false;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const u32 line = 16 * warp + 8 * i + lane / 4;
                for (u32 left = near[i]; left != 0u; left &= left - 1u) {
                    const u32 slot = atomicAdd(&listed_s, 1u);
                    full |= slot >= MW_WIDE_LISTED / 2;
                    if (slot >= MW_WIDE_LISTED) break;
                    const int at = tile * MW_TILE + column_of_bit(lane, __ffs((int)left) - 1);
                    list[slot] = line << MW_WIDE_COLUMNS_LOG | at;
                    near[i] &= near[i] - 1u;
                }
            }
            more = __syncthreads_or(full);
            if (more || ends) finish();
        }
    }
}

#endif
