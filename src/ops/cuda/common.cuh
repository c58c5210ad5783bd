// What all kernels share: the element types, wide loads and stores, sums over a row.
//
// Every kernel is a template over the activations' type T (float, __nv_bfloat16, __half) with one extern "C" name for
// each; arithmetic is f32.
//
// The same source is compiled for the CPU by tests/cuda_kernels and run there on an emulated device, which checks results,
// barriers and memory accesses, and says nothing about speed: figures in the kernels' headers are counted, not measured.
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

// Two elements of 16 bits in one register, the first in the lower half.
template <class T>
__device__ __forceinline__ u32 pack(float low, float high);
#ifdef CLOZE_EMULATED
template <class T>
u32 pack(float low, float high) {
    return u32(from_float<T>(low).bits) | u32(from_float<T>(high).bits) << 16;
}
#else
template <>
__device__ __forceinline__ u32 pack<__nv_bfloat16>(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
template <>
__device__ __forceinline__ u32 pack<__half>(float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
#endif

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
    if constexpr (BYTES % 16 == 0 && sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            uint4 raw;
            memcpy(&raw, from + i * 4, sizeof(raw));
            reinterpret_cast<uint4*>(to)[i] = raw;
        }
    } else if constexpr (BYTES % 16 == 0) {
#pragma unroll
        for (int i = 0; i < N / 8; i++) {
            const float* const part = from + i * 8;
            const uint4 raw = {pack<T>(part[0], part[1]), pack<T>(part[2], part[3]), pack<T>(part[4], part[5]),
                               pack<T>(part[6], part[7])};
            reinterpret_cast<uint4*>(to)[i] = raw;
        }
    } else if constexpr (BYTES == 8 && sizeof(T) == 2) {
        const uint2 raw = {pack<T>(from[0], from[1]), pack<T>(from[2], from[3])};
        *reinterpret_cast<uint2*>(to) = raw;
    } else {
#pragma unroll
        for (int j = 0; j < N; j++) to[j] = from_float<T>(from[j]);
    }
}

// N elements as they stand in memory, to be widened later: several of these can be on their way at once.
template <class T, int N>
struct Raw {
    T elements[N];

    __device__ __forceinline__ void load(const T* from) {
        if constexpr (N * sizeof(T) == 16) {
            const uint4 raw = *reinterpret_cast<const uint4*>(from);
            memcpy(elements, &raw, sizeof(raw));
        } else {
#pragma unroll
            for (int j = 0; j < N; j++) elements[j] = from[j];
        }
    }
    __device__ __forceinline__ void widen(float (&to)[N]) const {
#pragma unroll
        for (int j = 0; j < N; j++) to[j] = to_float(elements[j]);
    }
};

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
