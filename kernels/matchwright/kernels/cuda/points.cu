// Points of rows by facet: one warp per row and facet, so that any offsets will do.
//
//   x_nd int8 (N, width)   q_d int16 (width,)   offset_b int32 (B + 1,), 0..width, ascending
//   points_nb int32 (N, B)
//
// Grid: (any, facets), MW_THREADS threads; B <= MW_FACETS_MAX.
#include "score.cuh"

extern "C" __global__ void __launch_bounds__(MW_THREADS) points_by_facet(
    const i8* x_nd, i64 rows, int width, const i16* q_d, const i32* offset_b, int facets,
    i32* points_nb) {
    const int b = blockIdx.y;
    const int lane = threadIdx.x % 32;
    const int warps = blockDim.x / 32;
    const i32 end = offset_b[b + 1];
    for (i64 n = (i64)blockIdx.x * warps + threadIdx.x / 32; n < rows;
         n += (i64)gridDim.x * warps) {
        i32 sum = 0;
        for (int d = offset_b[b] + lane; d < end; d += 32)
            sum += (i32)q_d[d] * (i32)x_nd[n * width + d];
        sum = __reduce_add_sync(0xFFFFFFFFu, sum);
        if (lane == 0) points_nb[n * facets + b] = sum;
    }
}
