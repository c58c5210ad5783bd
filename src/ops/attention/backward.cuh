// The gradients of q, k and v. Scores and probabilities are formed again from the logarithms of the sums, twice: once for dq,
// and once for dk and dv. That way no two blocks add to the same place, and runs repeat to the bit.
#pragma once

#include "head.cuh"
#include "rotary.cuh"
#include "terms.cuh"

// One probability, and the gradient of its score from that of the dropped probability.
__device__ __forceinline__ void score_gradient(float& score, float& grad, float factor, float delta) {
    const float prob = score;
    score = prob * factor;
    grad = prob * (grad * factor - delta);
}

// dk and dv of 64 keys, by all heads of queries that share them. Scores stand transposed (keys, queries), which makes them left
// operands of both results.
template <class T, int D>
__device__ void backward_kv(const Call<T>& call) {
    constexpr int TILE = BACKWARD_TILE<T>;
    constexpr int P = PITCH<T, D>;
    DYNAMIC_SHARED(T, k_rows);
    T* const v_rows = k_rows + ROWS * P;
    T* const q_tiles = v_rows + ROWS * P;
    T* const g_tiles = q_tiles + 2 * TILE * P;
    // Only where the gradient of terms is wanted.
    float* const score_grads = reinterpret_cast<float*>(g_tiles + 2 * TILE * P);
    __shared__ float lse_tile[TILE], delta_tile[TILE];
    const u32 group = call.heads / call.kv_heads, first_head = blockIdx.y * group;
    const Head<T> head(call, first_head);
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 first = blockIdx.x * ROWS;
    if (first >= head.keys) return;
    const Rows<const T> k = head.of_k(call.k), v = head.of_v(call.v);
    const Rotary rotary(call, true), value_rotary(call, call.turn_values != 0);
    const float by = head.even ? 0.0f : call.scale * LOG2_E;
    const bool has_terms = head.has_terms() && !head.even;
    // Keys behind the last that is looked at have no gradient.
    const u32 past = first + ROWS < head.seen ? first + ROWS : head.seen;
    const Steps<TILE> of_head = Steps<TILE>::over_queries(head, first, past);
    const u32 steps = group * of_head.count;

    const auto fetch_queries = [&](u32 step) {
        const Head<T> of(call, first_head + step / of_head.count);
        const Range range = of_head.range(step % of_head.count);
        fetch<TILE, D>(q_tiles + step % 2 * TILE * P, of.of_q(call.q), range.first, range.end);
        fetch<TILE, D>(g_tiles + step % 2 * TILE * P, of.of_out(call.dout), range.first, range.end);
    };
    if (steps > 0) {
        fetch<ROWS, D>(k_rows, k, first, past);
        fetch<ROWS, D>(v_rows, v, first, past);
        fetch_queries(0);
    }
    copy_commit();
    float k_sums[D / 8][4] = {}, v_sums[D / 8][4] = {};
    const u32 row = first + warp * 16 + lane / 4;
    const bool sees[2] = {head.sees(row), head.sees(row + 8)};
    for (u32 step = 0; step < steps; step++) {
        const Head<T> of(call, first_head + step / of_head.count);
        const Range range = of_head.range(step % of_head.count);
        const u32 start = range.first;
        const u64 keys = of_head.keys(step % of_head.count) >> (row - first);
        const bool banded = of_head.banded(step % of_head.count);
        const bool seen[2] = {sees[0] && (keys & 1) != 0, sees[1] && (keys >> 8 & 1) != 0};
        T* const q_tile = q_tiles + step % 2 * TILE * P;
        const T* const g_tile = g_tiles + step % 2 * TILE * P;
        if (step + 1 < steps) fetch_queries(step + 1);
        copy_commit();
        if (threadIdx.x < TILE) {
            // A query that is not there has no probabilities.
            const bool valid = start + threadIdx.x < range.end;
            const size_t at = of.statistics() + start + threadIdx.x;
            lse_tile[threadIdx.x] = valid ? call.lse[at] * LOG2_E : INFINITY;
            delta_tile[threadIdx.x] = valid ? call.delta[at] : 0.0f;
        }
        copy_wait<1>();
        __syncthreads();
        if (rotary.active()) {
            if (step == 0) {
                rotary.turn<ROWS, D>(k_rows, first, past - first);
                if (value_rotary.active()) value_rotary.turn<ROWS, D>(v_rows, first, past - first);
            }
            rotary.turn<TILE, D>(q_tile, start + head.offset, range.end - start);
            __syncthreads();
        }

        float probs[TILE / 8][4] = {}, grads[TILE / 8][4] = {};
        Left<T, D> left;
        left.load(k_rows + warp * 16 * P);
        multiply_rows<TILE, D>(probs, left, q_tile);
        left.load(v_rows + warp * 16 * P);
        multiply_rows<TILE, D>(grads, left, g_tile);
        const DropoutPart drop = of.dropout();
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 column = n * 8 + lane % 4 * 2 + i % 2;
                const u32 query = start + column, key = row + i / 2 * 8;
                const bool visible = seen[i / 2] && (!banded || of.in_window(query, key));
                float score = probs[n][i] * by;
                if (has_terms && visible) score += LOG2_E * of.terms(query, key);
                probs[n][i] = visible ? exp2_fast(score - lse_tile[column]) : 0.0f;
                score_gradient(probs[n][i], grads[n][i], drop.active() ? drop.factor(query * head.keys + key) : 1.0f,
                               delta_tile[column]);
                if (call.dby_key != nullptr) *in_tile<TILE>(score_grads, n, i) = grads[n][i];
            }
        }
        multiply_columns<TILE, D>(v_sums, probs, g_tile);
        multiply_columns<TILE, D>(k_sums, grads, static_cast<const T*>(q_tile));
        __syncthreads();  // The tile may be overwritten.
        if (call.dby_key != nullptr) add_product_gradients<TILE, Side::Key>(of, call.dby_key, score_grads, first, start);
    }
    copy_wait<0>();
    multiply_all(k_sums, call.scale);
    float* const staging = reinterpret_cast<float*>(q_tiles) + warp * 16 * STAGING_PITCH<D>;
    __syncthreads();  // All copies have arrived, of which no thread waited for those of others.
    write_rows<D>(writable(head.of_k(call.dk)), staging, k_sums, first + warp * 16, head.keys, rotary, 0);
    write_rows<D>(writable(head.of_v(call.dv)), staging, v_sums, first + warp * 16, head.keys, value_rotary, 0);
}

// dq of 64 queries after another, as many as the grid leaves to a block, and what terms get of the scores' gradients.
template <class T, int D>
__device__ void backward_q(const Call<T>& call) {
    constexpr int TILE = BACKWARD_TILE<T>;
    constexpr int P = PITCH<T, D>;
    DYNAMIC_SHARED(T, q_rows);
    T* const g_rows = q_rows + ROWS * P;
    T* const k_tiles = g_rows + ROWS * P;
    T* const v_tiles = k_tiles + 2 * TILE * P;
    // Only where the gradient of terms is wanted.
    float* const score_grads = reinterpret_cast<float*>(v_tiles + 2 * TILE * P);
    const Head<T> head(call, blockIdx.y);
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const Rows<const T> q = head.of_q(call.q), k = head.of_k(call.k), v = head.of_v(call.v), g = head.of_out(call.dout);
    const Rotary rotary(call, true), value_rotary(call, call.turn_values != 0);
    const DropoutPart drop = head.dropout();
    const float by = head.even ? 0.0f : call.scale * LOG2_E;
    const bool has_terms = head.has_terms() && !head.even;
    const bool wants_terms = call.bias_parts != nullptr || call.dby_query != nullptr;
    const size_t part = (size_t(blockIdx.z) * call.heads + blockIdx.y) * gridDim.x + blockIdx.x;

    for (u32 block = blockIdx.x; block < head.blocks(); block += gridDim.x) {
        const u32 first = head.block(block).first, past = head.block(block).end;
        const Steps<TILE> steps = Steps<TILE>::over_keys(head, block);
        const auto fetch_keys = [&](u32 step) {
            const Range range = steps.range(step);
            fetch<TILE, D>(k_tiles + step % 2 * TILE * P, k, range.first, range.end);
            fetch<TILE, D>(v_tiles + step % 2 * TILE * P, v, range.first, range.end);
        };
        fetch<ROWS, D>(q_rows, q, first, past);
        fetch<ROWS, D>(g_rows, g, first, past);
        if (steps.count > 0) fetch_keys(0);
        copy_commit();

        const u32 row = first + warp * 16 + lane / 4;
        const u32 query[2] = {row, row + 8};
        float base[2], inner[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const size_t at = head.statistics() + query[r];
            const bool valid = query[r] < past;
            base[r] = valid ? call.lse[at] * LOG2_E : INFINITY;
            inner[r] = valid ? call.delta[at] : 0.0f;
        }
        float sums[D / 8][4] = {};
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

            float probs[TILE / 8][4] = {}, grads[TILE / 8][4] = {};
            Left<T, D> left;
            left.load(q_rows + warp * 16 * P);
            multiply_rows<TILE, D>(probs, left, static_cast<const T*>(k_tile));
            left.load(g_rows + warp * 16 * P);
            multiply_rows<TILE, D>(grads, left, static_cast<const T*>(v_tile));
            const u64 seen = head.template seen_keys<TILE>(start) & steps.keys_of_part(step);
            const bool banded = steps.banded(step);
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 column = n * 8 + lane % 4 * 2 + i % 2;
                    const u32 key = start + column;
                    const bool visible = (seen >> column & 1) != 0 && (!banded || head.in_window(query[i / 2], key));
                    float score = probs[n][i] * by;
                    if (has_terms && visible) score += LOG2_E * head.terms(query[i / 2], key);
                    probs[n][i] = visible ? exp2_fast(score - base[i / 2]) : 0.0f;
                    const float factor = drop.active() ? drop.factor(query[i / 2] * head.keys + key) : 1.0f;
                    score_gradient(probs[n][i], grads[n][i], factor, inner[i / 2]);
                    if (wants_terms) *in_tile<TILE>(score_grads, n, i) = grads[n][i];
                }
            }
            multiply_columns<TILE, D>(sums, grads, static_cast<const T*>(k_tile));
            __syncthreads();  // The tile may be overwritten.
            if (wants_terms) {
                if (call.bias_parts != nullptr) {
                    add_bias_gradients<TILE>(head, call.bias_parts + part * call.distances, score_grads, first, start);
                }
                if (call.dby_query != nullptr) {
                    add_product_gradients<TILE, Side::Query>(head, call.dby_query, score_grads, first, start);
                }
                __syncthreads();
            }
        }
        copy_wait<0>();
        multiply_all(sums, call.scale);
        float* const staging = reinterpret_cast<float*>(k_tiles) + warp * 16 * STAGING_PITCH<D>;
        __syncthreads();  // All copies have arrived, of which no thread waited for those of others.
        write_rows<D>(writable(head.of_q(call.dq)), staging, sums, first + warp * 16, past, rotary, head.offset);
        __syncthreads();  // The next queries' tiles come to the same place.
    }
}

// The sums over a head of dout * out, a warp each, in the order of memory.
template <class T>
__device__ void sum_products(const Call<T>& call) {
    const size_t index = size_t(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
    const u32 batch = call.starts == nullptr ? call.batch : 1;
    if (index >= size_t(batch) * call.queries * call.heads) return;
    float sum = 0.0f;
    for (u32 i = threadIdx.x % WARP; i < call.value; i += WARP) {
        const size_t at = index * call.value + i;
        sum += to_float(call.dout[at]) * to_float(call.out[at]);
    }
    sum = warp_reduce<Sum>(sum);
    const u32 head = u32(index % call.heads);
    const size_t query = index / call.heads % call.queries, sequence = index / call.heads / call.queries;
    if (threadIdx.x % WARP == 0) call.delta[(sequence * call.heads + head) * call.queries + query] = sum;
}
