// The sieve for up to 64 queries: every row is read once, and nothing is staged.
//
// A warp takes strips of 32 rows. A lane reads 16 bytes of four of them at a time, straight into
// registers, while it multiplies those read before. The tensor cores want bytes 4t .. 4t + 3 and
// 4t + 16 .. 4t + 19 of 32; a sum does not mind in which order its terms come, so lane t of four
// gives them bytes 16t .. 16t + 7 and then 16t + 8 .. 16t + 15 of 64, of rows and queries alike:
//
//   byte of 64     0 ..... 7 8 .... 15 16 .... 23 24 .... 31 32 ... 39 40 ... 47 48 ... 55 56 ... 63
//   lane t         0         0         1          1          2         2         3         3
//   product        1st       2nd       1st        2nd        1st       2nd       1st       2nd
//
// Rows are the 16 lines of a product, queries its 8 columns; queries come from the first level
// cache, where 64 of them fit. What reaches its query's bound is listed in shared memory, eight
// rows at a time; lanes judge a pair each where rules come with the scan, and the whole warp finishes
// what is left, as in sieve.cu.
//
// Arguments as in sieve.cu. Grid: (any, 1), MW_THREADS threads; active <= 8, 16, 32, 64.
#include "scan.cuh"
#include "tensor.cuh"
#include "warp.cuh"

struct alignas(8) FewListed {
    i32 where;  // which of the active queries * 8 + which of the eight rows
    i32 first;
};

template <int Tiles>
MW_FN void few(MW_SCAN_ARGUMENTS) {
    __shared__ i32 query_s[8 * Tiles], bound_s[8 * Tiles], low_s[8 * Tiles];
    __shared__ FewListed list_s[MW_THREADS / 32][64 * Tiles];
    __shared__ u32 listed_s[MW_THREADS / 32];
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int line = lane / 4;      // row of a product's eight, and column of a product
    const int byte = lane % 4 * 16;
    for (int at = threadIdx.x; at < 8 * Tiles; at += MW_THREADS) {
        const int q = at < active ? active_a[at] : -1;
        query_s[at] = q;
        bound_s[at] = q < 0 ? 0 : bound_q[q].points;
        low_s[at] = q < 0 ? 0 : low_norm_q[q];
    }
    if (lane == 0) listed_s[warp] = 0u;
    __syncthreads();

    const int step = gridDim.x * (MW_THREADS / 32) * MW_FEW_ROWS;
    for (int strip = begin + (blockIdx.x * (MW_THREADS / 32) + warp) * MW_FEW_ROWS; strip < end;
         strip += step) {
        bool wanted = false;
        for (int at = lane; at < active; at += 32)
            wanted |= bits_gw[group_q[query_s[at]] * words + strip / 32] != 0u;
        if (__ballot_sync(MW_WARP, wanted) == 0u) continue;

        const i8* x = x_nd + (i64)(strip + line) * width;
        i32 sum[2][Tiles][4] = {};
        Piece next[4];
#pragma unroll
        for (int r = 0; r < 4; ++r)
            next[r] = piece_of(x + (i64)(8 * r) * width, byte,
                               byte < width && strip + line + 8 * r < end);
        for (int from = byte; from - byte < width; from += 64) {
            Piece row[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                row[r] = next[r];
                next[r] = piece_of(x + (i64)(8 * r) * width, from + 64,
                                   from + 64 < width && strip + line + 8 * r < end);
            }
#pragma unroll
            for (int j = 0; j < Tiles; ++j) {
                const int q = query_s[8 * j + line];
                const Piece query =
                    piece_of(high_qd + (i64)(q < 0 ? 0 : q) * width, from, q >= 0 && from < width);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const Piece& up = row[2 * i];
                    const Piece& down = row[2 * i + 1];
                    const u32 first[4] = {up.word[0], down.word[0], up.word[1], down.word[1]};
                    const u32 second[4] = {up.word[2], down.word[2], up.word[3], down.word[3]};
                    multiply(sum[i][j], first, query.word[0], query.word[1]);
                    multiply(sum[i][j], second, query.word[2], query.word[3]);
                }
            }
        }

#pragma unroll
        for (int r = 0; r < 4; ++r) {  // eight rows at a time
            const int n = strip + 8 * r + line;
            const i32 norm = n < end ? norm_n[n] : 0;
#pragma unroll
            for (int j = 0; j < 2 * Tiles; ++j) {
                const int at = j / 2 * 8 + lane % 4 * 2 + j % 2;
                const i32 first = sum[r / 2][j / 2][r % 2 * 2 + j % 2];
                if (n >= end || at >= active || !may_reach(first, low_s[at], norm, bound_s[at]))
                    continue;
                if ((bits_gw[group_q[query_s[at]] * words + n / 32] >> n % 32 & 1u) == 0u) continue;
                list_s[warp][atomicAdd(&listed_s[warp], 1u)] = {at * 8 + line, first};
            }
            __syncwarp();
            const int listed = (int)listed_s[warp];
            for (int from = 0; from < listed; from += 32) {
                bool pass = from + lane < listed;
                if (pass && rules != nullptr) {
                    const int where = list_s[warp][from + lane].where;
                    const int m = strip + 8 * r + where % 8;
                    const i32 g = rule_q[query_s[where / 8]];
                    pass = judge(rules, rule_start_g[g], rule_start_g[g + 1], pool, column_c,
                                 (i64)rule_row + m, key_n + m) != MW_FAILS;
                }
                for (u32 left = __ballot_sync(MW_WARP, pass); left != 0u; left &= left - 1u) {
                    const FewListed pair = list_s[warp][from + __ffs((int)left) - 1];
                    const int q = query_s[pair.where / 8];
                    const int m = strip + 8 * r + pair.where % 8;
                    const i8* low_d = low_qd + (i64)q * width;
                    const i32 second =
                        low_norm_q[q] == 0
                            ? 0
                            : second_limb(low_d, x_nd + (i64)m * width, width, lane);
                    if (lane != 0) continue;
                    const Entry entry =
                        entry_of(points_of(pair.first, second), key_q[q], key_n[m], row0 + m);
                    if (!before(entry, bound_q[q])) continue;
                    const u32 slot = atomicAdd(count_q + q, 1u);
                    if (slot < (u32)capacity) found_qc[(i64)q * capacity + slot] = entry;
                }
            }
            __syncwarp();
            if (lane == 0) listed_s[warp] = 0u;
            __syncwarp();
        }
    }
}

extern "C" __global__ void __launch_bounds__(MW_THREADS, 2) few_8(MW_SCAN_ARGUMENTS) {
    few<1>(MW_SCAN_PASSED);
}

extern "C" __global__ void __launch_bounds__(MW_THREADS, 2) few_16(MW_SCAN_ARGUMENTS) {
    few<2>(MW_SCAN_PASSED);
}

extern "C" __global__ void __launch_bounds__(MW_THREADS, 2) few_32(MW_SCAN_ARGUMENTS) {
    few<4>(MW_SCAN_PASSED);
}

extern "C" __global__ void __launch_bounds__(MW_THREADS, 2) few_64(MW_SCAN_ARGUMENTS) {
    few<8>(MW_SCAN_PASSED);
}
