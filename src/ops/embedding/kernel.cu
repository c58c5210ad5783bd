// Looking up rows: the sum of up to three embeddings (words, positions, types), rows picked out of activations, and the
// gradients of both.
//
// Fused: the lookups and their sum; out is written once. Saved for backward: nothing but the ids, which the host has. Never
// written: the single lookups.
//
// Forward: up to 3 f32 read, 1 T written an element. Backward without atomics: the host, which makes the batches, sorts the
// positions by id and cuts long runs into pieces (padding is left out there). Pieces are summed side by side, each in the
// order of positions, runs of several pieces in a second launch: one T read an element, one f32 of the gradient read and
// written for each element of a row that is named.
#include "../cuda/common.cuh"

constexpr u32 ROWS = 8;
constexpr u32 PARTIAL = 0x80000000u;

template <class T, int N>
__device__ void forward(T* out, const float* const (&tables)[3], const u32* const (&ids)[3], const u32 (&periods)[3],
                        u32 rows, u32 width) {
    const u32 row = blockIdx.x * ROWS + threadIdx.y;
    if (row >= rows) return;
    const float* from[3];
#pragma unroll
    for (int i = 0; i < 3; i++) {
        from[i] = tables[i] == nullptr ? nullptr : tables[i] + size_t(ids[i][row % periods[i]]) * width;
    }
    for (u32 c = threadIdx.x * N; c < width; c += WARP * N) {
        float sum[N];
        load<N>(from[0] + c, sum);
#pragma unroll
        for (int i = 1; i < 3; i++) {
            if (from[i] == nullptr) continue;
            float other[N];
            load<N>(from[i] + c, other);
#pragma unroll
            for (int j = 0; j < N; j++) sum[j] += other[j];
        }
        store<N>(out + size_t(row) * width + c, sum);
    }
}

// The sum over one piece, for the columns of this block.
template <class T, int N>
__device__ void sum_piece(float* grad, float* partials, const T* dy, const u32* positions, const u32* piece_begin,
                          const u32* piece_target, u32 width, u32 add) {
    const u32 begin = piece_begin[blockIdx.x], end = piece_begin[blockIdx.x + 1], target = piece_target[blockIdx.x];
    const bool partial = (target & PARTIAL) != 0;
    float* const out = partial ? partials + size_t(target & ~PARTIAL) * width : grad + size_t(target) * width;
    for (u32 c = (blockIdx.y * blockDim.x + threadIdx.x) * N; c < width; c += gridDim.y * blockDim.x * N) {
        float sum[N] = {};
        for (u32 i = begin; i < end; i++) {
            float row[N];
            load<N>(dy + size_t(positions[i]) * width + c, row);
#pragma unroll
            for (int j = 0; j < N; j++) sum[j] += row[j];
        }
        if (add && !partial) {
            float before[N];
            load<N>(out + c, before);
#pragma unroll
            for (int j = 0; j < N; j++) sum[j] += before[j];
        }
        store<N>(out + c, sum);
    }
}

// One run of several pieces: a block of (32, 8) threads has 32 columns, row y of it adds every 8th piece.
extern "C" __global__ void __launch_bounds__(256)
    embedding_backward_combine(float* grad, const float* partials, const u32* run_begin, const u32* run_ids, u32 runs,
                               u32 width, u32 add) {
    __shared__ float sums[ROWS][WARP + 1];
    if (blockIdx.x >= runs) return;
    const u32 begin = run_begin[blockIdx.x], end = run_begin[blockIdx.x + 1];
    const u32 column = blockIdx.y * WARP + threadIdx.x;
    float sum = 0.0f;
    if (column < width) {
        for (u32 i = begin + threadIdx.y; i < end; i += ROWS) sum += partials[size_t(i) * width + column];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || column >= width) return;
    for (u32 y = 1; y < ROWS; y++) sum += sums[y][threadIdx.x];
    float* const out = grad + size_t(run_ids[blockIdx.x]) * width + column;
    *out = add ? *out + sum : sum;
}

// to[to_row] = from[from_row]; a row each for the 8 warps of a block.
template <class T, int N>
__device__ void copy_row(T* to, const T* from, u32 width) {
    for (u32 c = threadIdx.x * N; c < width; c += WARP * N) {
        float values[N];
        load<N>(from + c, values);
        store<N>(to + c, values);
    }
}

#define DEFINE(suffix, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) embedding_forward_##suffix(                                      \
        T* out, const float* table0, const u32* ids0, u32 period0, const float* table1, const u32* ids1, u32 period1,  \
        const float* table2, const u32* ids2, u32 period2, u32 rows, u32 width) {                                      \
        const float* const tables[3] = {table0, table1, table2};                                                       \
        const u32* const ids[3] = {ids0, ids1, ids2};                                                                  \
        const u32 periods[3] = {period0, period1, period2};                                                            \
        if (width % WIDTH<T> == 0 && aligned(out, table0, table1, table2)) {                                           \
            forward<T, WIDTH<T>>(out, tables, ids, periods, rows, width);                                              \
        } else {                                                                                                       \
            forward<T, 1>(out, tables, ids, periods, rows, width);                                                     \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128) embedding_backward_##suffix(                                     \
        float* grad, float* partials, const T* dy, const u32* positions, const u32* piece_begin,                       \
        const u32* piece_target, u32 pieces, u32 width, u32 add) {                                                     \
        if (blockIdx.x >= pieces) return;                                                                              \
        if (width % WIDTH<T> == 0 && aligned(grad, partials, dy)) {                                                    \
            sum_piece<T, WIDTH<T>>(grad, partials, dy, positions, piece_begin, piece_target, width, add);              \
        } else {                                                                                                       \
            sum_piece<T, 1>(grad, partials, dy, positions, piece_begin, piece_target, width, add);                     \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        select_rows_##suffix(T* out, const T* x, const u32* rows, u32 count, u32 width) {                              \
        const u32 row = blockIdx.x * ROWS + threadIdx.y;                                                               \
        if (row >= count) return;                                                                                      \
        T* const to = out + size_t(row) * width;                                                                       \
        const T* const from = x + size_t(rows[row]) * width;                                                           \
        if (width % WIDTH<T> == 0 && aligned(out, x)) copy_row<T, WIDTH<T>>(to, from, width);                          \
        else copy_row<T, 1>(to, from, width);                                                                          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        scatter_rows_##suffix(T* dx, const T* dy, const u32* rows, u32 count, u32 width) {                             \
        const u32 row = blockIdx.x * ROWS + threadIdx.y;                                                               \
        if (row >= count) return;                                                                                      \
        T* const to = dx + size_t(rows[row]) * width;                                                                  \
        const T* const from = dy + size_t(row) * width;                                                                \
        if (width % WIDTH<T> == 0 && aligned(dx, dy)) copy_row<T, WIDTH<T>>(to, from, width);                          \
        else copy_row<T, 1>(to, from, width);                                                                          \
    }
FOR_EACH_TYPE(DEFINE)
