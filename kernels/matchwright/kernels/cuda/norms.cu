// The norm of every row, rounded up: what bounds the second limb. One warp per row.
//
//   x_nd int8 (N, width), width a multiple of MW_ALIGN   norm_n int32 (N,)
//
// Grid: (any), MW_THREADS threads.
#include "score.cuh"

extern "C" __global__ void __launch_bounds__(MW_THREADS) norms(
    const i8* x_nd, i64 rows, int width, i32* norm_n) {
    const int lane = threadIdx.x % 32;
    const int warps = blockDim.x / 32;
    for (i64 n = (i64)blockIdx.x * warps + threadIdx.x / 32; n < rows;
         n += (i64)gridDim.x * warps) {
        const i32* x4 = reinterpret_cast<const i32*>(x_nd + n * width);
        i32 square = 0;
        for (int i = lane; i < width / 4; i += 32) square = dot4(x4[i], x4[i], square);
        square = __reduce_add_sync(0xFFFFFFFFu, square);
        if (lane == 0) norm_n[n] = norm_of(square);
    }
}
