// The second stage of every sum over rows: what blocks have left as partial sums is added up in one fixed order, so that
// a run repeats to the bit. Nothing here uses atomics.
//
// reduce_parts: parts * stride f32 are read, up to stride written. sum_values: n f32 are read, one is written.
#include "common.cuh"

// a[c] and b[c] become (or grow by) the sums of columns c and width + c of `partials`. A block of (32, 8) threads has 32
// columns; row y of it adds every 8th part.
extern "C" __global__ void __launch_bounds__(256)
    reduce_parts(float* a, float* b, const float* partials, u32 parts, u32 width, u32 stride, u32 add_a, u32 add_b) {
    __shared__ float sums[8][WARP + 1];
    const u32 column = blockIdx.x * WARP + threadIdx.x;
    float sum = 0.0f;
    if (column < stride) {
        for (u32 part = threadIdx.y; part < parts; part += 8) sum += partials[size_t(part) * stride + column];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || column >= stride) return;
    for (int y = 1; y < 8; y++) sum += sums[y][threadIdx.x];
    float* const target = column < width ? a : b;
    if (target == nullptr) return;
    const u32 at = column < width ? column : column - width;
    target[at] = (column < width ? add_a : add_b) ? target[at] + sum : sum;
}

// out[0] = factor * (x[0] + ... + x[n - 1]), in f64 on the way. One block of 256 threads.
extern "C" __global__ void __launch_bounds__(256) sum_values(float* out, const float* x, u32 n, float factor) {
    __shared__ double sums[256];
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < n; i += 256) sum += double(x[i]);
    sums[threadIdx.x] = sum;
    for (u32 half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) out[0] = float(sums[0] * double(factor));
}
