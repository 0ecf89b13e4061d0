// What one warp asks of the tensor cores: products of int8, sums in int32, exact.
//
// PTX ISA, "Matrix fragments for mma.m16n8k32": with g = lane / 4 and t = lane % 4 a lane holds
//
//   a[0], a[1]  rows g and g + 8, bytes 4t .. 4t + 3       a[2], a[3]  the same, 16 bytes on
//   b0, b1      column g, bytes 4t .. 4t + 3, and 16 bytes on
//   c[0], c[1]  row g, columns 2t and 2t + 1               c[2], c[3]  the same of row g + 8
//
// Needs sm_80. On a host, tests/simt.hpp says what these do.
#pragma once

#include "score.cuh"

#define MW_PIECES (MW_STAGE / 16)

// Where a 16-byte piece of a line of MW_STAGE bytes lies in shared memory: the eight lines of a
// matrix lie in different banks.
MW_FN int place(int line, int piece) {
    return line * MW_STAGE + 16 * (piece ^ (line / 2 % MW_PIECES));
}

#if defined(__CUDACC__)

// c += a . b for 16 rows, 8 columns and 32 bytes of each.
MW_FN void multiply(i32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 16 byte matrices out of shared memory: lanes 8j .. 8j + 7 name the rows of matrix j,
// and lane 4r + t receives bytes 4t .. 4t + 3 of row r of matrix j in out[j].
MW_FN void load_matrices(u32 (&out)[4], const i8* base, int offset) {
    const u32 address = (u32)__cvta_generic_to_shared(base + offset);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address));
}

// 16 bytes from global to shared memory, on their way while the thread goes on; zeros when `there`
// is false.
MW_FN void copy_ahead(i8* shared, const i8* global, bool there) {
    const u32 address = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(address), "l"(global), "r"(there ? 16 : 0)
                 : "memory");
}

MW_FN void end_of_stage() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until all stages but the `Behind` newest have arrived, for this thread's own copies.
template <int Behind>
MW_FN void wait_for_stage() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Behind) : "memory");
}

#endif
