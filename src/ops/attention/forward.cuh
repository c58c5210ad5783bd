// softmax(scale * q k^T + terms) v of a block of queries of a head, and the logarithms of their sums.
#pragma once

#include "head.cuh"
#include "rotary.cuh"

template <class T, int D>
__device__ void forward(const Call<T>& call) {
    constexpr int TILE = FORWARD_TILE<T>;
    constexpr int P = PITCH<T, D>;
    DYNAMIC_SHARED(T, q_rows);
    T* const k_tiles = q_rows + ROWS * P;
    T* const v_tiles = k_tiles + 2 * TILE * P;
    const Head<T> head(call, blockIdx.y);
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (blockIdx.x >= head.blocks()) return;
    const u32 first = head.block(blockIdx.x).first, past = head.block(blockIdx.x).end;
    const Rows<const T> q = head.of_q(call.q), k = head.of_k(call.k), v = head.of_v(call.v);
    const Rotary rotary(call, true), value_rotary(call, call.turn_values != 0);
    const DropoutPart drop = head.dropout();
    const float by = head.even ? 0.0f : call.scale * LOG2_E;
    const bool has_terms = head.has_terms() && !head.even;
    const Steps<TILE> steps = Steps<TILE>::over_keys(head, blockIdx.x);
    const auto fetch_keys = [&](u32 step) {
        const Range range = steps.range(step);
        fetch<TILE, D>(k_tiles + step % 2 * TILE * P, k, range.first, range.end);
        fetch<TILE, D>(v_tiles + step % 2 * TILE * P, v, range.first, range.end);
    };

    fetch<ROWS, D>(q_rows, q, first, past);
    if (steps.count > 0) fetch_keys(0);
    copy_commit();

    // Of rows g and g + 8 of this warp: their queries, and the softmax so far.
    const u32 row = first + warp * 16 + lane / 4;
    const u32 query[2] = {row, row + 8};
    float top[2] = {-INFINITY, -INFINITY}, total[2] = {};
    float sums[D / 8][4] = {};
    Left<T, D> left;

    for (u32 step = 0; step < steps.count; step++) {
        const Range range = steps.range(step);
        const u32 start = range.first, there = range.end > start ? range.end - start : 0;
        T* const k_tile = k_tiles + step % 2 * TILE * P;
        T* const v_tile = v_tiles + step % 2 * TILE * P;
        if (step + 1 < steps.count) fetch_keys(step + 1);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        if (rotary.active()) {
            if (step == 0) rotary.turn<ROWS, D>(q_rows, first + head.offset, past - first);
            rotary.turn<TILE, D>(k_tile, start, there);
            if (value_rotary.active()) value_rotary.turn<TILE, D>(v_tile, start, there);
            __syncthreads();
        }
        if (step == 0) left.load(q_rows + warp * 16 * P);

        float scores[TILE / 8][4] = {};
        multiply_rows<TILE, D>(scores, left, k_tile);
        const u64 seen = head.template seen_keys<TILE>(start) & steps.keys_of_part(step);
        const bool banded = steps.banded(step);
        float new_top[2] = {top[0], top[1]};
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 column = n * 8 + lane % 4 * 2 + i % 2;
                const bool visible = (seen >> column & 1) != 0 && (!banded || head.in_window(query[i / 2], start + column));
                float score = scores[n][i] * by;
                if (has_terms && visible) score += LOG2_E * head.terms(query[i / 2], start + column);
                scores[n][i] = visible ? score : -INFINITY;
                new_top[i / 2] = fmaxf(new_top[i / 2], scores[n][i]);
            }
        }
        float correction[2], base[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            new_top[r] = quad_reduce<Max>(new_top[r]);
            // Nothing seen yet: all exponentials are of -infinity.
            base[r] = new_top[r] == -INFINITY ? 0.0f : new_top[r];
            correction[r] = exp2_fast(top[r] - base[r]);
            top[r] = new_top[r];
            total[r] *= correction[r];
        }
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float prob = exp2_fast(scores[n][i] - base[i / 2]);
                total[i / 2] += prob;
                const u32 column = start + n * 8 + lane % 4 * 2 + i % 2;
                scores[n][i] = drop.active() ? prob * drop.factor(query[i / 2] * head.keys + column) : prob;
            }
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[n][i] *= correction[i / 2];
        }
        multiply_columns<TILE, D>(sums, scores, v_tile);
        __syncthreads();  // The tile may be overwritten.
    }
    copy_wait<0>();

    float share[2];
    bool blind[2];
    float* const lse = call.lse + head.statistics();
#pragma unroll
    for (int r = 0; r < 2; r++) {
        total[r] = quad_reduce<Sum>(total[r]);
        const bool is_there = query[r] < past;
        blind[r] = total[r] == 0.0f || !is_there || !head.counts(query[r]);
        share[r] = 1.0f / total[r];
        // Of what is blind all probabilities come out as 0 in the backward passes.
        if (lane % 4 == 0 && is_there) lse[query[r]] = blind[r] ? INFINITY : top[r] * LN_2 + logf(total[r]);
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] = blind[i / 2] ? 0.0f : sums[n][i] * share[i / 2];
    }
    float* const staging = reinterpret_cast<float*>(k_tiles) + warp * 16 * STAGING_PITCH<D>;
    __syncthreads();  // All copies have arrived, of which no thread waited for those of others.
    write_rows<D>(writable(head.of_out(call.out)), staging, sums, first + warp * 16, past, Rotary(call, false), 0);
}
