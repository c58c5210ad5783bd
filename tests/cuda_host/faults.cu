// Kernels with the faults that the emulator is there to find, and two that show the dropout mask.
#include "../../src/ops/dropout/kernel.cuh"

extern "C" __global__ void fault_none(float* out) {
    DYNAMIC_SHARED(float, shared);
    shared[threadIdx.x] = float(threadIdx.x);
    __syncthreads();
    out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void fault_missing_barrier(float* out) {
    DYNAMIC_SHARED(float, shared);
    shared[threadIdx.x] = float(threadIdx.x);
    out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void fault_divergent_barrier(float* out) {
    if (threadIdx.x < 32) __syncthreads();
    out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void fault_two_barriers(float* out) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void fault_divergent_shuffle(float* out) {
    if (threadIdx.x % 2 == 0) return;
    out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1.0f, 1);
}

extern "C" __global__ void fault_past_the_end(float* out) { out[threadIdx.x + 1] = 1.0f; }

extern "C" __global__ void fault_past_shared(float* out) {
    DYNAMIC_SHARED(float, shared);
    shared[threadIdx.x + 1] = 1.0f;
    out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void fault_misaligned(float* out) {
    float values[4] = {};
    store<4>(out + 4 * threadIdx.x + 1, values);
}

extern "C" __global__ void fault_unwritten_shared(float* out) {
    DYNAMIC_SHARED(float, shared);
    out[threadIdx.x] = shared[threadIdx.x];
}

extern "C" __global__ void mask_factors(float* out, u64 start, u32 n, float p, u64 key) {
    DropoutMask mask(p, key);
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) out[i] = mask.factor(start + i);
}

extern "C" __global__ void part_factors(float* out, u64 base, u32 first, u32 count, float p, u64 key) {
    const DropoutPart mask(p, key, base);
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) out[i] = mask.factor(first + i);
}

// Every pattern of 16 bits through f32 and back, and the rounding of f32 to both narrow types.
extern "C" __global__ void convert_bf16(__nv_bfloat16* out, float* wide, const float* x, const __nv_bfloat16* y, u32 n) {
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        out[i] = from_float<__nv_bfloat16>(x[i]);
        wide[i] = to_float(y[i]);
    }
}
extern "C" __global__ void convert_f16(__half* out, float* wide, const float* x, const __half* y, u32 n) {
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        out[i] = from_float<__half>(x[i]);
        wide[i] = to_float(y[i]);
    }
}
