// Tiles of heads in shared memory, and products with them: on the matrix unit in bf16 or f16 with f32 sums, or in f32 by
// ordinary arithmetic, with the same numbers in the same lanes.
//
// A block of 4 warps has 64 rows, 16 a warp. Rows in shared memory lie 16 bytes more than D elements apart, so that 8 of them
// start in different banks. Heads of fewer than D features are filled up with zeros.
#pragma once

#include "../cuda/mma.cuh"

constexpr u32 THREADS = 128;
constexpr float LOG2_E = 1.44269504f;
constexpr float LN_2 = 0.69314718f;
constexpr int ROWS = 64;  // Of the block's own side.
// Keys at once; in f32 a tile takes twice the memory.
template <class T>
constexpr int FORWARD_TILE = sizeof(T) == 2 ? 64 : 32;
// Keys or queries at once: the backward passes hold more sums.
template <class T>
constexpr int BACKWARD_TILE = sizeof(T) == 2 ? 32 : 16;

template <class T, int D>
constexpr int PITCH = D + WIDTH<T>;
// Of f32 results on their way out.
template <int D>
constexpr int STAGING_PITCH = D + 4;

// The rows of one head.
template <class T>
struct Rows {
    T* start;
    u32 stride, width;
    bool wide;  // Whether rows can be moved 16 bytes at a time.

    __device__ __forceinline__ Rows(T* start, u32 stride, u32 width) : start(start), stride(stride), width(width) {
        constexpr u32 each = 16 / sizeof(T);
        wide = aligned(start) && stride % each == 0 && width % each == 0;
    }
};

// The same rows for writing.
template <class T>
__device__ __forceinline__ Rows<T> writable(const Rows<const T>& rows) {
    return {const_cast<T*>(rows.start), rows.stride, rows.width};
}

// Begins to fetch N rows, zeros for those from `end` on.
template <int N, int D, class T>
__device__ __forceinline__ void fetch(T* shared, const Rows<const T>& rows, u32 first, u32 end) {
    constexpr int EACH = WIDTH<T>, PIECES = D / EACH;
    static_assert(N * PIECES % int(THREADS) == 0, "every thread fetches the same number of pieces");
#pragma unroll
    for (int i = 0; i < N * PIECES / int(THREADS); i++) {
        const u32 at = u32(i) * THREADS + threadIdx.x;
        const u32 row = at / PIECES, feature = at % PIECES * EACH;
        const bool valid = first + row < end && feature < rows.width;
        const T* const from = rows.start + (valid ? size_t(first + row) * rows.stride + feature : 0);
        T* const to = shared + row * PITCH<T, D> + feature;
        if (rows.wide) {
            copy_async(to, from, valid);
            continue;
        }
        for (int j = 0; j < EACH; j++) {
            to[j] = valid && feature + j < rows.width ? from[j] : from_float<T>(0.0f);
        }
    }
}

// A warp's left operand: 16 rows of shared memory.
template <class T, int D>
struct Left {
    u32 a[D / 16][4];

    __device__ __forceinline__ void load(const T* rows) {
        const u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (int k = 0; k < D / 16; k++) ldmatrix(a[k], rows + (lane % 16) * PITCH<T, D> + k * 16 + lane / 16 * 8);
    }
};
template <int D>
struct Left<float, D> {
    const float* rows;

    __device__ __forceinline__ void load(const float* from) { rows = from; }
};

// multiply_rows in f32.
template <int N, int D>
__device__ __forceinline__ void multiply_rows_f32(float (&sums)[N / 8][4], const Left<float, D>& left, const float* rows) {
    constexpr int P = PITCH<float, D>;
    const u32 lane = threadIdx.x % WARP;
    const float* const above = left.rows + lane / 4 * P;
    const float* const mine = rows + lane % 4 * 2 * P;
#pragma unroll 4
    for (int k = 0; k < D; k += 4) {
        const float4 a[2] = {*reinterpret_cast<const float4*>(above + k), *reinterpret_cast<const float4*>(above + 8 * P + k)};
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float4 b = *reinterpret_cast<const float4*>(mine + (n * 8 + i % 2) * P + k);
                const float4& x = a[i / 2];
                sums[n][i] += x.x * b.x + x.y * b.y + x.z * b.z + x.w * b.w;
            }
        }
    }
}

// sums (16, N) += left (16, D) times the transpose of N rows of shared memory.
template <int N, int D, class T>
__device__ __forceinline__ void multiply_rows(float (&sums)[N / 8][4], const Left<T, D>& left, const T* rows) {
    if constexpr (sizeof(T) == 4) {
        multiply_rows_f32<N, D>(sums, left, rows);
    } else {
        const u32 lane = threadIdx.x % WARP;
        const T* const mine = rows + (lane % 8 + lane / 16 * 8) * PITCH<T, D> + lane / 8 % 2 * 8;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
#pragma unroll
            for (int n = 0; n < N / 16; n++) {
                u32 b[4];
                ldmatrix(b, mine + n * 16 * PITCH<T, D> + k * 16);
                mma_16816<T>(sums[2 * n], left.a[k], {b[0], b[1]});
                mma_16816<T>(sums[2 * n + 1], left.a[k], {b[2], b[3]});
            }
        }
    }
}
// multiply_columns in f32.
template <int N, int D>
__device__ __forceinline__ void multiply_columns_f32(float (&sums)[D / 8][4], const float (&p)[N / 8][4], const float* rows) {
    constexpr int P = PITCH<float, D>;
    const u32 lane = threadIdx.x % WARP;
    const float* const mine = rows + lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < N; k++) {
        // The lane of the same rows that has column k.
        const u32 from = lane / 4 * 4 + k % 8 / 2;
        const float above = __shfl_sync(ALL_LANES, p[k / 8][k % 2], from);
        const float below = __shfl_sync(ALL_LANES, p[k / 8][2 + k % 2], from);
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            const float2 b = *reinterpret_cast<const float2*>(mine + k * P + n * 8);
            sums[n][0] += above * b.x;
            sums[n][1] += above * b.y;
            sums[n][2] += below * b.x;
            sums[n][3] += below * b.y;
        }
    }
}

// sums (16, D) += p (16, N), a result as it lies in the lanes, times N rows of shared memory.
template <int N, int D, class T>
__device__ __forceinline__ void multiply_columns(float (&sums)[D / 8][4], const float (&p)[N / 8][4], const T* rows) {
    if constexpr (sizeof(T) == 4) {
        multiply_columns_f32<N, D>(sums, p, rows);
    } else {
        const u32 lane = threadIdx.x % WARP;
        const T* const mine = rows + (lane % 16) * PITCH<T, D> + lane / 16 * 8;
#pragma unroll
        for (int k = 0; k < N / 16; k++) {
            const float(&left)[4] = p[2 * k];
            const float(&right)[4] = p[2 * k + 1];
            const u32 a[4] = {pack<T>(left[0], left[1]), pack<T>(left[2], left[3]), pack<T>(right[0], right[1]),
                              pack<T>(right[2], right[3])};
#pragma unroll
            for (int n = 0; n < D / 16; n++) {
                u32 b[4];
                ldmatrix_transposed(b, mine + k * 16 * PITCH<T, D> + n * 16);
                mma_16816<T>(sums[2 * n], a, {b[0], b[1]});
                mma_16816<T>(sums[2 * n + 1], a, {b[2], b[3]});
            }
        }
    }
}
template <int N>
__device__ __forceinline__ void multiply_all(float (&sums)[N][4], float by) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] *= by;
    }
}

// Over the four lanes that share a row of a result.
template <class Op>
__device__ __forceinline__ float quad_reduce(float x) {
    x = Op::join(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return Op::join(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
