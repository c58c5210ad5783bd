// y = x / sqrt(mean(x^2) + eps) * weight over rows of `width`.
//
// Saved for backward: the factor of each row (f32), beside x. Never written: the normalized rows.
//
// Forward: 2 T read (the second time from the cache), 1 written an element. Backward: 4 read (two from the cache), 1 written;
// width f32 of partial sums a block, for reduce_parts. A row belongs to one warp (width <= 1024) or to one block.
#include "../cuda/common.cuh"

template <class T, int N>
__device__ void rms_forward(T* y, float* factors, const T* x, const float* weight, u32 rows, u32 width, float eps) {
    const u32 row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // A whole warp of a block whose warps never meet.
    const size_t start = size_t(row) * width;
    const u32 first = threadIdx.x * N, step = blockDim.x * N;
    float squares = 0.0f;
    for (u32 c = first; c < width; c += step) {
        float v[N];
        load<N>(x + start + c, v);
#pragma unroll
        for (int j = 0; j < N; j++) squares += v[j] * v[j];
    }
    const float factor = 1.0f / sqrtf(row_reduce<Sum>(squares) / float(width) + eps);
    for (u32 c = first; c < width; c += step) {
        float v[N], w[N];
        load<N>(x + start + c, v);
        load<N>(weight + c, w);
#pragma unroll
        for (int j = 0; j < N; j++) v[j] *= factor * w[j];
        store<N>(y + start + c, v);
    }
    if (threadIdx.x == 0) factors[row] = factor;
}

// With g = dy * weight and r the row's factor: dx = r * (g - x * r^2 * mean(g * x)).
template <class T, int N>
__device__ void rms_backward(T* dx, float* partials, const T* dy, const T* x, const float* weight, const float* factors,
                             u32 rows, u32 width) {
    DYNAMIC_SHARED(float, memory);
    // For each row that the block works on at once, the sums so far for the weight.
    float* const dw = memory + size_t(threadIdx.y) * width;
    const u32 first = threadIdx.x * N, step = blockDim.x * N;
    for (u32 c = first; c < width; c += step) {
        const float zero[N] = {};
        store<N>(dw + c, zero);
    }
    for (u32 row = blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += gridDim.x * blockDim.y) {
        const size_t start = size_t(row) * width;
        const float factor = factors[row];
        float slope = 0.0f;
        for (u32 c = first; c < width; c += step) {
            float v[N], g[N], w[N];
            load<N>(x + start + c, v);
            load<N>(dy + start + c, g);
            load<N>(weight + c, w);
#pragma unroll
            for (int j = 0; j < N; j++) slope += g[j] * w[j] * v[j];
        }
        slope = row_reduce<Sum>(slope) / float(width) * factor * factor;
        for (u32 c = first; c < width; c += step) {
            float v[N], g[N], w[N], sums[N];
            load<N>(x + start + c, v);
            load<N>(dy + start + c, g);
            load<N>(weight + c, w);
            load<N>(dw + c, sums);
#pragma unroll
            for (int j = 0; j < N; j++) {
                sums[j] += g[j] * v[j] * factor;
                g[j] = factor * (g[j] * w[j] - v[j] * slope);
            }
            store<N>(dw + c, sums);
            store<N>(dx + start + c, g);
        }
    }
    __syncthreads();
    float* const out = partials + size_t(blockIdx.x) * width;
    const u32 threads = blockDim.x * blockDim.y;
    for (u32 c = threadIdx.y * blockDim.x + threadIdx.x; c < width; c += threads) {
        float sum = 0.0f;
        for (u32 y = 0; y < blockDim.y; y++) sum += memory[size_t(y) * width + c];
        out[c] = sum;
    }
}

#define DEFINE(suffix, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) rms_norm_forward_##suffix(                                       \
        T* y, float* factors, const T* x, const float* weight, u32 rows, u32 width, float eps) {                       \
        if (width % WIDTH<T> == 0 && aligned(y, x, weight)) {                                                          \
            rms_forward<T, WIDTH<T>>(y, factors, x, weight, rows, width, eps);                                         \
        } else {                                                                                                       \
            rms_forward<T, 1>(y, factors, x, weight, rows, width, eps);                                                \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        rms_norm_backward_##suffix(T* dx, float* partials, const T* dy, const T* x, const float* weight,               \
                                   const float* factors, u32 rows, u32 width) {                                        \
        if (width % WIDTH<T> == 0 && aligned(dx, dy, x, weight)) {                                                     \
            rms_backward<T, WIDTH<T>>(dx, partials, dy, x, weight, factors, rows, width);                              \
        } else {                                                                                                       \
            rms_backward<T, 1>(dx, partials, dy, x, weight, factors, rows, width);                                     \
        }                                                                                                              \
    }
FOR_EACH_TYPE(DEFINE)
