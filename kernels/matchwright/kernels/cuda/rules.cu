// Rules on the device: eligibility bits and exact counts of whole rule sets. (Rules for the few rows
// that a scan finds are tested there: sieve.cu, few.cu, threshold.cu.)
//
//   rules, rule_start_g i32 (G + 1,), pool, column_c    see rules.cuh; a group's rules follow one
//                                                       another
//   key_n u64 (N,)   alive_w u32 (words,) or null: bit 0 of word 0 is the segment's first row
//   bits_gw u32 (G, words), 0 beyond the last row   eligible_g, unverified_g u64 (G,), added to
//
// Rows begin..begin + rows - 1 of a segment, or a sample of them: runs of `run` words that begin
// every `step` words, `words` in all; begin is a multiple of 32. A warp makes one word of each group
// in turn, a lane for a row, so that a row's values come from memory once for MW_RULE_GROUPS groups.
// Grid: (any, ceil(groups / MW_RULE_GROUPS)), MW_THREADS threads.
#include "rules.cuh"
#include "warp.cuh"

extern "C" __global__ void __launch_bounds__(MW_THREADS, 4) rule_bits(
    const Rule* rules, const i32* rule_start_g, const u64* pool, const u64* column_c,
    const u64* key_n, const u32* alive_w, i64 begin, i64 rows, int groups, i64 run, i64 step,
    u32* bits_gw, i64 words, u64* eligible_g, u64* unverified_g) {
    __shared__ u32 eligible_s[MW_RULE_GROUPS], unverified_s[MW_RULE_GROUPS];
    const int lane = threadIdx.x % 32;
    const int warps = blockDim.x / 32;
    const int g0 = blockIdx.y * MW_RULE_GROUPS;
    const int many = min(MW_RULE_GROUPS, groups - g0);
    if (threadIdx.x < MW_RULE_GROUPS) eligible_s[threadIdx.x] = unverified_s[threadIdx.x] = 0u;
    __syncthreads();
    for (i64 word = (i64)blockIdx.x * warps + threadIdx.x / 32; word < words;
         word += (i64)gridDim.x * warps) {
        const i64 at = word / run * step + word % run;
        const i64 n = at * 32 + lane;
        const bool there =
            n < rows && (alive_w == nullptr || (alive_w[begin / 32 + at] >> lane & 1u) != 0u);
        for (int i = 0; i < many; ++i) {
            u32 outcome = MW_FAILS;
            if (there)
                outcome = judge(rules, rule_start_g[g0 + i], rule_start_g[g0 + i + 1], pool,
                                column_c, begin + n, key_n + begin + n);
            const u32 pass = __ballot_sync(MW_WARP, outcome != MW_FAILS);
            const u32 unsure = __ballot_sync(MW_WARP, outcome == MW_PASSES_UNKNOWN);
            if (lane != 0) continue;
            bits_gw[(g0 + i) * words + word] = pass;
            if (pass == 0u) continue;
            atomicAdd(&eligible_s[i], (u32)__popc(pass));
            if (unsure != 0u) atomicAdd(&unverified_s[i], (u32)__popc(unsure));
        }
    }
    __syncthreads();
    if ((int)threadIdx.x >= many || eligible_s[threadIdx.x] == 0u) return;
    atomicAdd(eligible_g + g0 + threadIdx.x, (u64)eligible_s[threadIdx.x]);
    atomicAdd(unverified_g + g0 + threadIdx.x, (u64)unverified_s[threadIdx.x]);
}
