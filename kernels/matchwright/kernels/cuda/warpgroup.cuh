// What a warpgroup, four warps, asks of the tensor cores of sm_90a: products of int8 that both come
// out of shared memory, sums in int32, exact.
//
// PTX ISA, "Register Fragments and Shared Memory Matrix Layouts" of wgmma.mma_async: thread t of
// the group holds, of row 16 * (t / 32) + t % 32 / 4 + 8 * i and column 8 * j + t % 4 * 2 + c of
// the sums, c[4 * j + 2 * i + c].
//
// An operand is lines of MW_STAGE = 64 bytes that lie one after the other, from a multiple of 512
// bytes on. Their 16-byte pieces change places as the "64-byte swizzle" has it: bits 4 and 5 of an
// address are taken exclusive-or with its bits 7 and 8, which is what place() does.
//
// Needs sm_90a, and no newer chip has it. On a host, tests/simt.hpp says what these do.
#pragma once

#include "tensor.cuh"

// The matrix descriptor of an operand: address, distance of eight lines, swizzle of 64 bytes.
MW_FN u64 operand(u32 address) {
    static_assert(MW_STAGE == 64, "the swizzle that the descriptor names");
    const u64 eight_lines = 8 * MW_STAGE / 16;
    return (u64)(address >> 4 & 0x3FFFu) | 1ull << 16 | eight_lines << 32 | 2ull << 62;
}

#if defined(__CUDACC__)

// Shared memory whose size the launch says.
#define MW_SHARED(name) extern __shared__ i8 name[]

MW_FN u32 shared_address(const i8* shared) {
    return (u32)__cvta_generic_to_shared(shared);
}

#define MW_8(c, i)                                                                           \
    "+r"(c[i]), "+r"(c[i + 1]), "+r"(c[i + 2]), "+r"(c[i + 3]), "+r"(c[i + 4]),              \
        "+r"(c[i + 5]), "+r"(c[i + 6]), "+r"(c[i + 7])

// Begins c += a . b, or c = a . b, for 64 rows, 128 columns and 32 bytes of each. Until
// products_done says so, nobody may touch c or write to the operands.
MW_FN void begin_product(i32 (&c)[64], u64 a, u64 b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, add;\n"
        "}"
        : MW_8(c, 0), MW_8(c, 8), MW_8(c, 16), MW_8(c, 24), MW_8(c, 32), MW_8(c, 40), MW_8(c, 48),
          MW_8(c, 56)
        : "l"(a), "l"(b), "r"((u32)add));
}

// Before the first product of several: what was done to c is done.
MW_FN void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

MW_FN void products_end() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until all products but the `Behind` newest stages' are done.
template <int Behind>
MW_FN void products_done() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Behind) : "memory");
}

// After all products are done: what reads c comes after this, and so after them. (The compiler
// sees no other reason to wait: to it c was there when the product had begun.)
MW_FN void sums_are_read(i32 (&c)[64]) {
    asm volatile("" : MW_8(c, 0), MW_8(c, 8), MW_8(c, 16), MW_8(c, 24), MW_8(c, 32), MW_8(c, 40),
                      MW_8(c, 48), MW_8(c, 56)::"memory");
}

// What this thread has copied becomes visible to the tensor cores.
MW_FN void show_to_products() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#endif
