// The gradients of terms that depend on the distance between query and key: histograms of the scores' gradients. No two blocks
// add to the same place, and each adds in the same order every time.
#pragma once

#include "head.cuh"

// Where the gradient that a lane holds of a tile of scores, (64, N), lies in shared memory.
template <int N>
__device__ __forceinline__ float* in_tile(float* tile, int n, int i) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    return tile + (warp * 16 + lane / 4 + i / 2 * 8) * (N + 1) + n * 8 + lane % 4 * 2 + i % 2;
}

// Adds the gradients of a tile of scores to those of their distances: of 64 queries from `first` on with N keys from `start` on,
// (64, N) in shared memory.
template <int N, class T>
__device__ void add_bias_gradients(const Head<T>& head, float* sums, const float* grads, u32 first, u32 start) {
    constexpr int P = N + 1;
    const Call<T>& call = head.call;
    // Distances from that of the last query on, each along its diagonal.
    for (u32 at = threadIdx.x; at < N + call.ratio * (ROWS - 1); at += THREADS) {
        float sum = 0.0f;
        u32 distance = 0;
        bool found = false;
        for (u32 row = 0; row < ROWS; row++) {
            const u32 column = at - call.ratio * (ROWS - 1 - row);
            if (column >= u32(N) || !head.has_terms(first + row, start + column)) continue;
            sum += grads[row * P + column];
            distance = head.distance(first + row, start + column) - call.first_distance;
            found = true;
        }
        if (found && distance < call.distances) sums[distance] += sum;
    }
}

// Whose rows a tile has.
enum class Side { Query, Key };

// Adds the gradients of a tile of scores to those of the products that its rows have with a table: of 16 rows a warp from
// `first` on, with N columns from `start` on. Neighbours of the same row of the table are added up first: a row of the table must
// belong to distances that follow one another.
template <int N, Side SIDE, class T>
__device__ void add_product_gradients(const Head<T>& head, float* sums, const float* grads, u32 first, u32 start) {
    constexpr u32 NONE = 0xFFFFFFFFu;
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (u32 at = warp * 16; at < warp * 16 + 16; at++) {
        const u32 query = SIDE == Side::Query ? first + at : start + lane, key = SIDE == Side::Query ? start + lane : first + at;
        const bool valid = lane < u32(N) && head.has_terms(query, key);
        const u32 row = valid ? head.call.distance_rows[head.distance(query, key)] : NONE;
        float sum = valid ? grads[at * (N + 1) + lane] : 0.0f;
#pragma unroll
        for (u32 apart = 1; apart < u32(N); apart *= 2) {
            const float other = __shfl_sync(ALL_LANES, sum, lane - apart);
            const u32 row_of_other = __shfl_sync(ALL_LANES, row, lane - apart);
            if (lane >= apart && row_of_other == row) sum += other;
        }
        const u32 next = __shfl_sync(ALL_LANES, row, lane + 1);
        if (!valid || (lane + 1 < WARP && next == row)) continue;
        sums[(SIDE == Side::Query ? head.of_query(query) : head.of_key(key)) + row] += sum;
    }
}
