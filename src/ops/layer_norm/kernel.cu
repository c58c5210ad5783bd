// y = LN(residual + dropout(x)) * weight + bias over rows of `width`: the end of every post-norm transformer block.
//
// Fused: dropout, residual sum, statistics, scale and shift. Saved for backward: mean and reciprocal deviation of each
// row (f32), beside x and residual, which are alive anyway. Never written: the dropout's mask, the dropped x, the sum
// (backward forms it again), the normalized rows.
//
// Forward: 2 T read, 1 T written an element; about 8 FLOPs and, with dropout, 20 integer operations. Backward: 3 T read, 1
// written (2 with dropout), about 14 FLOPs; 2 * width f32 of partial sums a block, for reduce_parts.
//
// A row belongs to one warp (width <= 1024; several rows a block) or to one block: see row_reduce. It stands in shared
// memory as f32 between the passes, each thread touching its own columns only.
#include "../dropout/kernel.cuh"

// residual + dropout(x), of N elements from element `at` on.
template <int N, class T>
__device__ __forceinline__ void add_up(const Raw<T, N>& x, const Raw<T, N>& residual, bool has_residual, DropoutMask& mask,
                                       size_t at, float (&sum)[N]) {
    x.widen(sum);
    if (mask.active()) {
#pragma unroll
        for (int j = 0; j < N; j++) sum[j] *= mask.factor(at + j);
    }
    if (has_residual) {
        float other[N];
        residual.widen(other);
#pragma unroll
        for (int j = 0; j < N; j++) sum[j] += other[j];
    }
}

// How many pieces of a row a thread asks for before it works on the first.
constexpr int BATCH = 4;

template <class T, int N>
__device__ void forward(T* y, float* mean_out, float* rstd_out, const T* x, const T* residual, const float* weight,
                        const float* bias, u32 rows, u32 width, float eps, float p, u64 key) {
    DYNAMIC_SHARED(float, memory);
    const u32 row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // A whole warp of a block whose warps never meet.
    float* const sums = memory + size_t(threadIdx.y) * width;
    const size_t start = size_t(row) * width;
    const u32 first = threadIdx.x * N, step = blockDim.x * N;
    DropoutMask mask(p, key);

    float total = 0.0f;
    for (u32 c = first; c < width; c += step) {
        Raw<T, N> raw, other = {};
        raw.load(x + start + c);
        if (residual != nullptr) other.load(residual + start + c);
        float sum[N];
        add_up(raw, other, residual != nullptr, mask, start + c, sum);
        store<N>(sums + c, sum);
#pragma unroll
        for (int j = 0; j < N; j++) total += sum[j];
    }
    const float mean = row_reduce<Sum>(total) / float(width);
    float squares = 0.0f;
    for (u32 c = first; c < width; c += step) {
        float sum[N];
        load<N>(sums + c, sum);
#pragma unroll
        for (int j = 0; j < N; j++) squares += (sum[j] - mean) * (sum[j] - mean);
    }
    const float rstd = 1.0f / sqrtf(row_reduce<Sum>(squares) / float(width) + eps);
    for (u32 c = first; c < width; c += step) {
        float sum[N], w[N], b[N] = {};
        load<N>(sums + c, sum);
        load<N>(weight + c, w);
        if (bias != nullptr) load<N>(bias + c, b);
#pragma unroll
        for (int j = 0; j < N; j++) sum[j] = (sum[j] - mean) * rstd * w[j] + b[j];
        store<N>(y + start + c, sum);
    }
    if (threadIdx.x == 0) {
        if (mean_out != nullptr) mean_out[row] = mean;
        if (rstd_out != nullptr) rstd_out[row] = rstd;
    }
}

// With n the normalized row and g = dy * weight: dsum = rstd * (g - mean(g) - n * mean(g * n)).
template <class T, int N>
__device__ void backward(T* dsum, T* dx, float* partials, const T* dy, const T* x, const T* residual, const float* weight,
                         const float* mean_in, const float* rstd_in, u32 rows, u32 width, float p, u64 key) {
    DYNAMIC_SHARED(float, memory);
    // For each row that the block works on at once: n, g, and the sums so far for weight and bias.
    float* const normed = memory + size_t(threadIdx.y) * 4 * width;
    float* const scaled = normed + width;
    float* const dw = scaled + width;
    float* const db = dw + width;
    const u32 first = threadIdx.x * N, step = blockDim.x * N;
    DropoutMask mask(p, key);

    for (u32 c = first; c < width; c += step) {
        const float zero[N] = {};
        store<N>(dw + c, zero);
        store<N>(db + c, zero);
    }
    for (u32 row = blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += gridDim.x * blockDim.y) {
        const size_t start = size_t(row) * width;
        const float mean = mean_in[row], rstd = rstd_in[row];
        float shift = 0.0f, slope = 0.0f;
        for (u32 begin = first; begin < width; begin += BATCH * step) {
            Raw<T, N> xs[BATCH], residuals[BATCH] = {}, dys[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const u32 c = begin + i * step;
                if (c >= width) continue;
                xs[i].load(x + start + c);
                dys[i].load(dy + start + c);
                if (residual != nullptr) residuals[i].load(residual + start + c);
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const u32 c = begin + i * step;
                if (c >= width) continue;
                float n[N], g[N], w[N], sums[N];
                add_up(xs[i], residuals[i], residual != nullptr, mask, start + c, n);
                dys[i].widen(g);
                load<N>(weight + c, w);
#pragma unroll
                for (int j = 0; j < N; j++) n[j] = (n[j] - mean) * rstd;
                load<N>(dw + c, sums);
#pragma unroll
                for (int j = 0; j < N; j++) sums[j] += g[j] * n[j];
                store<N>(dw + c, sums);
                load<N>(db + c, sums);
#pragma unroll
                for (int j = 0; j < N; j++) sums[j] += g[j];
                store<N>(db + c, sums);
#pragma unroll
                for (int j = 0; j < N; j++) {
                    g[j] *= w[j];
                    shift += g[j];
                    slope += g[j] * n[j];
                }
                store<N>(normed + c, n);
                store<N>(scaled + c, g);
            }
        }
        shift = row_reduce<Sum>(shift) / float(width);
        slope = row_reduce<Sum>(slope) / float(width);
        for (u32 c = first; c < width; c += step) {
            float n[N], g[N];
            load<N>(normed + c, n);
            load<N>(scaled + c, g);
#pragma unroll
            for (int j = 0; j < N; j++) g[j] = rstd * (g[j] - shift - n[j] * slope);
            store<N>(dsum + start + c, g);
            if (dx == nullptr) continue;
#pragma unroll
            for (int j = 0; j < N; j++) {
                if (mask.active()) g[j] *= mask.factor(start + c + j);
            }
            store<N>(dx + start + c, g);
        }
    }
    if (partials == nullptr) return;
    __syncthreads();
    float* const out = partials + size_t(blockIdx.x) * 2 * width;
    const u32 threads = blockDim.x * blockDim.y;
    for (u32 c = threadIdx.y * blockDim.x + threadIdx.x; c < 2 * width; c += threads) {
        float sum = 0.0f;
        for (u32 y = 0; y < blockDim.y; y++) sum += memory[(size_t(y) * 4 + 2) * width + c];
        out[c] = sum;
    }
}

#define DEFINE(suffix, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) layer_norm_forward_##suffix(                                     \
        T* y, float* mean, float* rstd, const T* x, const T* residual, const float* weight, const float* bias,         \
        u32 rows, u32 width, float eps, float p, u64 key) {                                                            \
        if (width % WIDTH<T> == 0 && aligned(y, x, residual, weight, bias)) {                                          \
            forward<T, WIDTH<T>>(y, mean, rstd, x, residual, weight, bias, rows, width, eps, p, key);                  \
        } else {                                                                                                       \
            forward<T, 1>(y, mean, rstd, x, residual, weight, bias, rows, width, eps, p, key);                         \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) layer_norm_backward_##suffix(                                    \
        T* dsum, T* dx, float* partials, const T* dy, const T* x, const T* residual, const float* weight,              \
        const float* mean, const float* rstd, u32 rows, u32 width, float p, u64 key) {                                 \
        if (width % WIDTH<T> == 0 && aligned(dsum, dx, dy, x, residual, weight)) {                                     \
            backward<T, WIDTH<T>>(dsum, dx, partials, dy, x, residual, weight, mean, rstd, rows, width, p, key);       \
        } else {                                                                                                       \
            backward<T, 1>(dsum, dx, partials, dy, x, residual, weight, mean, rstd, rows, width, p, key);              \
        }                                                                                                              \
    }
FOR_EACH_TYPE(DEFINE)
