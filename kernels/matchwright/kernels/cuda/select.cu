// Merge what a scan found into each query's best k, and raise the query's bound.
//
// A query that found at most `capacity` entries gets its list merged, and the k-th key as bound.
// After an overflow the list stays as it was (the launcher scans those columns again, in smaller
// pieces) and only the bound rises, to just below the k-th key seen: that many eligible rows are
// known to reach it. A bound never falls.
//
//   found_qc  Entry (Q, capacity), capacity >= k      count_q uint32 (Q,)
//   top_qk    Entry (Q, k), best first                have_q int32 (Q,), entries of top_qk in use
//   bound_q   Entry (Q,)
//
// 1 <= k <= MW_K_MAX. Grid: (active queries), MW_THREADS threads, 32 KiB of shared memory.
#include "order.cuh"

// Bitonic sort (Batcher 1968), best first; size is a power of two.
__device__ __forceinline__ void sort_best_first(Entry* entries, int size) {
    for (int run = 2; run <= size; run *= 2) {
        for (int gap = run / 2; gap > 0; gap /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < size / 2; i += blockDim.x) {
                const int low = 2 * gap * (i / gap) + i % gap;
                const bool best_first = (low & run) == 0;
                const Entry a = entries[low];
                const Entry b = entries[low + gap];
                if (best_first ? before(b, a) : before(a, b)) {
                    entries[low] = b;
                    entries[low + gap] = a;
                }
            }
        }
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(MW_THREADS) select_best(
    const i32* active_a, int k, const Entry* found_qc, int capacity, const u32* count_q,
    Entry* top_qk, i32* have_q, Entry* bound_q) {
    __shared__ Entry entries[MW_SORT_MAX];
    const int q = active_a[blockIdx.x];
    const bool overflow = count_q[q] > (u32)capacity;
    const int found = overflow ? capacity : (int)count_q[q];
    if (found == 0) return;

    int have = have_q[q];
    for (int i = threadIdx.x; i < have; i += blockDim.x) entries[i] = top_qk[(i64)q * k + i];
    for (int from = 0; from < found;) {
        const int take = min(found - from, MW_SORT_MAX - have);
        int size = 2;
        while (size < have + take) size *= 2;
        __syncthreads();
        for (int i = have + threadIdx.x; i < size; i += blockDim.x) {
            const int at = i - have;
            entries[i] = at < take ? found_qc[(i64)q * capacity + from + at] : nothing();
        }
        sort_best_first(entries, size);
        have = min(have + take, k);
        from += take;
    }
    if (threadIdx.x == 0 && have == k) {
        const Entry reached = overflow ? predecessor(entries[k - 1]) : entries[k - 1];
        if (before(reached, bound_q[q])) bound_q[q] = reached;
    }
    if (overflow) return;
    for (int i = threadIdx.x; i < have; i += blockDim.x) top_qk[(i64)q * k + i] = entries[i];
    if (threadIdx.x == 0) have_q[q] = have;
}
