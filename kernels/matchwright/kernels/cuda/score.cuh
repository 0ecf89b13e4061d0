// The arithmetic of a score: exact integers, the same on a device and on a host.
//
//   points = 128 * first + second,   first = sum h x,   second = sum l x
//   |second| <= ceil(|l|) * ceil(|x|)                   (Cauchy and Schwarz, norms rounded up)
//
// so a pair can only reach a bound when 128 * first + slack does.
#pragma once

#include "limits.cuh"

#if defined(__CUDACC__)
#define MW_FN __device__ __forceinline__
#define MW_CALLED static __device__ __noinline__
#else
#define MW_FN static inline
#define MW_CALLED static
#endif

typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;
typedef unsigned int u32;
typedef unsigned long long u64;

// Sum of four products of int8, packed little endian into a and b, added to sum.
MW_FN i32 dot4(i32 a, i32 b, i32 sum) {
#if defined(__CUDACC__)
    return __dp4a(a, b, sum);
#else
    for (int byte = 0; byte < 4; ++byte)
        sum += (i32)(i8)((u32)a >> (8 * byte)) * (i32)(i8)((u32)b >> (8 * byte));
    return sum;
#endif
}

MW_FN i32 points_of(i32 first, i32 second) {
    return 128 * first + second;
}

// Smallest r with r * r >= square; exact for square <= 2^24.
MW_FN i32 norm_of(i32 square) {
    i32 root = (i32)sqrtf((float)square);
    while (root > 0 && (root - 1) * (root - 1) >= square) --root;
    while (root * root < square) ++root;
    return root;
}

// False only when the pair cannot reach bound_points, whatever its second limb is.
MW_FN bool may_reach(i32 first, i32 low_norm, i32 norm, i32 bound_points) {
    return 128LL * first + (i64)low_norm * norm >= bound_points;
}

// The least sum of a first limb that reaches the bound beside a norm: ceil((bound - slack) / 128).
MW_FN i32 least_first(i32 bound_points, i32 low_norm, i32 norm) {
    const i64 least = -(((i64)low_norm * norm - bound_points) >> 7);
    return least < -2147483647LL ? -2147483647 : (i32)least;
}
