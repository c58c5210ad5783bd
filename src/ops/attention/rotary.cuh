// Rotary positions: pairs of features turned by an angle of their position, in shared memory after they were fetched, and
// gradients back again on their way out. src/ops/attention/rotary.rs says which features are a pair.
#pragma once

#include "call.cuh"
#include "tiles.cuh"

class Rotary {
   public:
    // Turns nothing if not `active`.
    template <class T>
    __device__ __forceinline__ Rotary(const Call<T>& call, bool active)
        : cos_(active ? call.cos : nullptr), sin_(call.sin), half_(call.half), interleaved_(call.interleaved != 0) {}

    __device__ __forceinline__ bool active() const { return cos_ != nullptr; }

    // Turns those of N rows of shared memory that are among `count`, the first of them at `position`. Barriers are the caller's.
    template <int N, int D, class T>
    __device__ __forceinline__ void turn(T* rows, u32 position, u32 count) const {
        for (u32 at = threadIdx.x; at < N * D / 2; at += THREADS) {
            const u32 row = at / (D / 2), pair = at % (D / 2);
            if (row >= count || pair >= half_) continue;
            T* const first = rows + row * PITCH<T, D> + (interleaved_ ? 2 * pair : pair);
            T* const second = first + (interleaved_ ? 1 : half_);
            const size_t angle = size_t(position + row) * half_ + pair;
            const float cos = cos_[angle], sin = sin_[angle], x = to_float(*first), y = to_float(*second);
            *first = from_float<T>(x * cos - y * sin);
            *second = from_float<T>(y * cos + x * sin);
        }
    }

    // One feature of a row that is turned back.
    __device__ __forceinline__ float turned_back(const float* row, u32 feature, u32 position) const {
        if (!active() || feature >= 2 * half_) return row[feature];
        const u32 pair = interleaved_ ? feature / 2 : feature % half_;
        const bool is_first = interleaved_ ? feature % 2 == 0 : feature < half_;
        const u32 apart = interleaved_ ? 1 : half_;
        const size_t angle = size_t(position) * half_ + pair;
        const float across = sin_[angle] * row[is_first ? feature + apart : feature - apart];
        const float along = cos_[angle] * row[feature];
        return is_first ? along + across : along - across;
    }

   private:
    const float *cos_, *sin_;
    u32 half_;
    bool interleaved_;
};

// Writes a warp's sums to its 16 rows of the result, those before `count`, turned back; `position` is that of row 0. Goes
// through 16 rows of shared memory of the warp's own.
template <int D, class T>
__device__ __forceinline__ void write_rows(const Rows<T>& to, float* staging, const float (&sums)[D / 8][4], u32 first,
                                           u32 count, const Rotary& rotary, u32 position) {
    constexpr int P = STAGING_PITCH<D>, EACH = WIDTH<T>, PIECES = D / EACH;
    const u32 lane = threadIdx.x % WARP;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        float* const at = staging + lane / 4 * P + n * 8 + lane % 4 * 2;
        at[0] = sums[n][0];
        at[1] = sums[n][1];
        at[8 * P] = sums[n][2];
        at[8 * P + 1] = sums[n][3];
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 * PIECES / int(WARP); i++) {
        const u32 at = u32(i) * WARP + lane;
        const u32 row = at / PIECES, feature = at % PIECES * EACH;
        if (first + row >= count || feature >= to.width) continue;
        float values[EACH];
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            values[j] = rotary.turned_back(staging + row * P, feature + j, position + first + row);
        }
        T* const target = to.start + size_t(first + row) * to.stride + feature;
        if (to.wide) {
            store<EACH>(target, values);
            continue;
        }
        for (int j = 0; j < EACH && feature + j < to.width; j++) target[j] = from_float<T>(values[j]);
    }
}
