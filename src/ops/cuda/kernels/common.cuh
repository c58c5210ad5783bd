// What all kernels share: the element types, wide loads and stores, sums over a row.
//
// Every kernel is a template over the activations' type T (float, __nv_bfloat16, __half) with one extern "C" name for
// each; arithmetic is f32. The same source is compiled for the CPU by tests/cuda_kernels.rs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef unsigned int u32;
typedef unsigned long long u64;

// Dynamic shared memory as an array of `type`.
#ifdef CLOZE_EMULATED
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(emulator::dynamic_shared())
#else
#define DYNAMIC_SHARED(type, name)                        \
    extern __shared__ uint4 cloze_dynamic_shared[];       \
    type* const name = reinterpret_cast<type*>(cloze_dynamic_shared)
#endif

constexpr u32 ALL_LANES = 0xFFFFFFFFu;
constexpr u32 WARP = 32;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
    return __float2half_rn(x);
}

// How many elements one 16-byte access moves.
template <class T>
constexpr int WIDTH = 16 / int(sizeof(T));

// Whether 16-byte accesses may start here (null: nothing is accessed).
__device__ __forceinline__ bool aligned(const void* pointer) {
    return (reinterpret_cast<uintptr_t>(pointer) & 15) == 0;
}
template <class... Others>
__device__ __forceinline__ bool aligned(const void* pointer, Others... others) {
    return aligned(pointer) && aligned(others...);
}

// N elements as f32: one by one, or in accesses of 16 (or 8) bytes, which the address must be a multiple of.
template <int N, class T>
__device__ __forceinline__ void load(const T* from, float (&to)[N]) {
    constexpr int BYTES = N * int(sizeof(T));
    if constexpr (BYTES % 16 == 0) {
        constexpr int EACH = WIDTH<T>;
#pragma unroll
        for (int i = 0; i < N / EACH; i++) {
            const uint4 raw = reinterpret_cast<const uint4*>(from)[i];
            T part[EACH];
            memcpy(part, &raw, sizeof(raw));
#pragma unroll
            for (int j = 0; j < EACH; j++) to[i * EACH + j] = to_float(part[j]);
        }
    } else {
#pragma unroll
        for (int j = 0; j < N; j++) to[j] = to_float(from[j]);
    }
}
template <int N, class T>
__device__ __forceinline__ void store(T* to, const float (&from)[N]) {
    constexpr int BYTES = N * int(sizeof(T));
    if constexpr (BYTES % 16 == 0) {
        constexpr int EACH = WIDTH<T>;
#pragma unroll
        for (int i = 0; i < N / EACH; i++) {
            T part[EACH];
#pragma unroll
            for (int j = 0; j < EACH; j++) part[j] = from_float<T>(from[i * EACH + j]);
            uint4 raw;
            memcpy(&raw, part, sizeof(raw));
            reinterpret_cast<uint4*>(to)[i] = raw;
        }
    } else if constexpr (BYTES == 8) {
        T part[N];
#pragma unroll
        for (int j = 0; j < N; j++) part[j] = from_float<T>(from[j]);
        uint2 raw;
        memcpy(&raw, part, sizeof(raw));
        *reinterpret_cast<uint2*>(to) = raw;
    } else {
#pragma unroll
        for (int j = 0; j < N; j++) to[j] = from_float<T>(from[j]);
    }
}

struct Sum {
    static constexpr float NONE = 0.0f;
    __device__ __forceinline__ static float join(float a, float b) { return a + b; }
};
struct Max {
    static constexpr float NONE = -INFINITY;
    // Passes over NaN: whoever takes a maximum here subtracts it from the values afterwards, where NaN shows.
    __device__ __forceinline__ static float join(float a, float b) { return fmaxf(a, b); }
};

// Over a warp; every lane gets the same bits.
template <class Op>
__device__ __forceinline__ float warp_reduce(float x) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) x = Op::join(x, __shfl_xor_sync(ALL_LANES, x, bits));
    return x;
}

// Over the threads of a row, which are one warp or, where blockDim.x is more, the whole block (blockDim.y = 1).
template <class Op>
__device__ __forceinline__ float row_reduce(float x) {
    x = warp_reduce<Op>(x);
    if (blockDim.x == WARP) return x;
    __shared__ float parts[WARP];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    __syncthreads();  // Whoever still reads the parts of the reduction before.
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_reduce<Op>(lane < blockDim.x / WARP ? parts[lane] : Op::NONE);
}

// Defines `name`_f32, _bf16 and _f16, each calling name<T> with the arguments.
#define FOR_EACH_TYPE(define) \
    define(f32, float) define(bf16, __nv_bfloat16) define(f16, __half)
