// y = act(x + bias) over rows of `width`, and the gradients of both: what stands between two products of a feed-forward
// block. Also the column sums that make any bias's gradient.
//
// Fused: bias, activation; backward: derivative and the column sums for the bias. Saved for backward: x, which the product
// before has written anyway. Never written: x + bias.
//
// Forward: 1 T read, 1 written an element. Backward: 2 read, 1 written, and width f32 of partial sums for each block of
// rows, for reduce_parts. 10 to 40 FLOPs an element. Column sums: 1 T read.
//
// A block of (32, 8) threads has 32 * N columns (N = 16 bytes' worth) and every (8 * gridDim.y)-th row, so that a thread
// keeps its columns' bias and sums in registers.
#include "kernel.cuh"

constexpr u32 ROWS = 8;

template <u32 ACTIVATION, class T, int N>
__device__ void forward(T* y, const T* x, const float* bias, u32 rows, u32 width) {
    for (u32 c = (blockIdx.x * WARP + threadIdx.x) * N; c < width; c += gridDim.x * WARP * N) {
        float b[N] = {};
        if (bias != nullptr) load<N>(bias + c, b);
        for (u32 row = blockIdx.y * ROWS + threadIdx.y; row < rows; row += gridDim.y * ROWS) {
            const size_t at = size_t(row) * width + c;
            float v[N];
            load<N>(x + at, v);
#pragma unroll
            for (int j = 0; j < N; j++) v[j] = value<ACTIVATION>(v[j] + b[j]);
            store<N>(y + at, v);
        }
    }
}

// dx = dy * act'(x + bias) where dx is not null, and the block's column sums of that, through the shared `sums` (ROWS,
// WARP * N).
template <u32 ACTIVATION, class T, int N>
__device__ void backward(float* sums, T* dx, float* partials, const T* dy, const T* x, const float* bias, u32 rows,
                         u32 width, u32 stride) {
    for (u32 tile = blockIdx.x; tile * (WARP * N) < width; tile += gridDim.x) {
        const u32 c = tile * (WARP * N) + threadIdx.x * N;
        float sum[N] = {};
        if (c < width) {
            float b[N] = {};
            if (bias != nullptr) load<N>(bias + c, b);
            for (u32 row = blockIdx.y * ROWS + threadIdx.y; row < rows; row += gridDim.y * ROWS) {
                const size_t at = size_t(row) * stride + c;
                float g[N];
                load<N>(dy + at, g);
                if constexpr (ACTIVATION != LINEAR) {
                    float v[N];
                    load<N>(x + at, v);
#pragma unroll
                    for (int j = 0; j < N; j++) g[j] *= derivative<ACTIVATION>(v[j] + b[j]);
                }
                if (dx != nullptr) store<N>(dx + at, g);
#pragma unroll
                for (int j = 0; j < N; j++) sum[j] += g[j];
            }
        }
        if (partials == nullptr) continue;
        __syncthreads();  // Whoever still reads the tile before.
#pragma unroll
        for (int j = 0; j < N; j++) sums[(threadIdx.y * WARP + threadIdx.x) * N + j] = sum[j];
        __syncthreads();
        for (u32 i = threadIdx.y * WARP + threadIdx.x; i < WARP * N; i += ROWS * WARP) {
            const u32 column = tile * (WARP * N) + i;
            if (column >= width) continue;
            float total = sums[i];
            for (u32 y = 1; y < ROWS; y++) total += sums[y * (WARP * N) + i];
            partials[size_t(blockIdx.y) * width + column] = total;
        }
    }
}

#define FORWARD_WIDE(A) forward<A, Type, WIDTH<Type>>(y, x, bias, rows, width)
#define FORWARD_PLAIN(A) forward<A, Type, 1>(y, x, bias, rows, width)
#define BACKWARD_WIDE(A) backward<A, Type, WIDTH<Type>>(sums, dx, partials, dy, x, bias, rows, width, width)
#define BACKWARD_PLAIN(A) backward<A, Type, 1>(sums, dx, partials, dy, x, bias, rows, width, width)

#define DEFINE(suffix, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        bias_act_forward_##suffix(T* y, const T* x, const float* bias, u32 rows, u32 width, u32 activation) {          \
        using Type = T;                                                                                                \
        if (width % WIDTH<T> == 0 && aligned(y, x, bias)) {                                                            \
            FOR_EACH_ACTIVATION(FORWARD_WIDE, activation)                                                              \
        } else {                                                                                                       \
            FOR_EACH_ACTIVATION(FORWARD_PLAIN, activation)                                                             \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        bias_act_backward_##suffix(T* dx, float* partials, const T* dy, const T* x, const float* bias, u32 rows,       \
                                   u32 width, u32 activation) {                                                        \
        using Type = T;                                                                                                \
        __shared__ float sums[ROWS * WARP * WIDTH<T>];                                                                 \
        if (width % WIDTH<T> == 0 && aligned(dx, dy, x, bias)) {                                                       \
            FOR_EACH_ACTIVATION(BACKWARD_WIDE, activation)                                                             \
        } else {                                                                                                       \
            FOR_EACH_ACTIVATION(BACKWARD_PLAIN, activation)                                                            \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        column_sums_##suffix(float* partials, const T* x, u32 rows, u32 width, u32 stride) {                           \
        __shared__ float sums[ROWS * WARP * WIDTH<T>];                                                                 \
        /* Behind a row there is room up to its stride: what stands there is read, and not added up. */                \
        const u32 whole = (width + WIDTH<T> - 1) / WIDTH<T> * WIDTH<T>;                                                \
        if (stride % WIDTH<T> == 0 && whole <= stride && aligned(x)) {                                                 \
            backward<LINEAR, T, WIDTH<T>>(sums, nullptr, partials, x, x, nullptr, rows, width, stride);                      \
        } else {                                                                                                       \
            backward<LINEAR, T, 1>(sums, nullptr, partials, x, x, nullptr, rows, width, stride);                             \
        }                                                                                                              \
    }
FOR_EACH_TYPE(DEFINE)
