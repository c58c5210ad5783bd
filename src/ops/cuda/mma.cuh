// The matrix unit and asynchronous copies of compute capability 8.0 and later, one small function an instruction.
//
// A fragment is what one lane holds of a matrix of 16-bit elements. With g = lane / 4 and t = lane % 4: of the left operand
// (16, 16) rows g and g + 8 in columns 2t, 2t + 1, 2t + 8, 2t + 9; of the right operand (16, 8) the same rows in column g;
// of the result (16, 8, f32) rows g and g + 8 in columns 2t, 2t + 1. So a result, packed, is a left operand.
#pragma once

#include "common.cuh"

#ifdef CLOZE_EMULATED

// d += a b.
template <class T>
void mma_16816(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulator::mma_16816<T>(d, a, b);
}
// Four 8 x 8 matrices; lane 8 i + r gives the address of row r of matrix i, and holds elements 2t, 2t + 1 of row g of each.
inline void ldmatrix(u32 (&out)[4], const void* row) { emulator::ldmatrix_x4(out, row, false); }
// The same of each matrix's transpose.
inline void ldmatrix_transposed(u32 (&out)[4], const void* row) { emulator::ldmatrix_x4(out, row, true); }
// Copies 16 bytes to shared memory in the background, or zeros if not `valid`.
inline void copy_async(void* shared, const void* from, bool valid) { emulator::copy_async(shared, from, valid); }
// Ends a group of copies.
inline void copy_commit() { emulator::copy_commit(); }
// Waits for all of this thread's groups but the last GROUPS.
template <int GROUPS>
void copy_wait() {
    emulator::copy_wait(GROUPS);
}
// 2^x, to about 2e-7; 0 for -infinity.
inline float exp2_fast(float x) { return exp2f(x); }

#else

template <class T>
__device__ __forceinline__ void mma_16816(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]);
template <>
__device__ __forceinline__ void mma_16816<__nv_bfloat16>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_16816<__half>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return u32(__cvta_generic_to_shared(pointer));
}
__device__ __forceinline__ void ldmatrix(u32 (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(u32 (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void copy_async(void* shared, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
