// Attention over all heads for training: softmax(scale * q k^T + terms) v with dropout on the probabilities, and its backward,
// a tile at a time in the manner of Dao et al. (2022, 2023), in bf16 or f16 on the matrix unit with f32 sums, or in f32.
//
// Fused: both products, scale, rotary positions, terms by distance, masks, windows, softmax, dropout; heads of keys and values
// that several heads of queries share; queries, keys and values that are parts of one product. Saved for backward: the logarithm
// of each query's sum (f32), beside q, k, v and out. Never written: scores, probabilities, what was turned, the dropout's mask.
//
// Terms: each pair's distance names a row of the tables. A bias is read there; of products with tables, those of each query or key
// with all rows of the table are formed before, and read there.
//
// Heads of up to 128 features, filled up to the next of 32, 64, 96 and 128.
//
// FLOPs for each pair of query and key: 4 D forward, 14 D backward (the scores and the probabilities' gradients are formed
// twice there, once for dq and once for dk and dv). Bytes: q and out once; k and v once for every 64 queries, mostly from the
// second-level cache. A window of w keys makes that n (w + 64) pairs in place of n^2.
//
// Masks: `ends` says up to which key a sequence is looked at (0: none of its keys count, then all are seen evenly, as in
// src/ops/attention.rs); `mask` hides keys before that. Padding behind is not computed. Sequences that lie one behind the other
// in one row are each worked on as by themselves.
//
// The files: call.cuh (arguments), tiles.cuh (shared memory and products), head.cuh (who sees whom), rotary.cuh, forward.cuh,
// backward.cuh, terms.cuh (their gradients).
#include "backward.cuh"
#include "forward.cuh"

// ends[sequence]: one past the last key that counts, 0 if none does.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_key_ends(u32* ends, const u32* mask, u32 batch, u32 keys) {
    __shared__ u32 found[THREADS];
    if (blockIdx.x >= batch) return;
    u32 end = 0;
    for (u32 i = threadIdx.x; i < keys; i += THREADS) {
        if (mask[size_t(blockIdx.x) * keys + i] != 0) end = i + 1;
    }
    found[threadIdx.x] = end;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (u32 i = 1; i < THREADS; i++) end = found[i] > end ? found[i] : end;
    ends[blockIdx.x] = end;
}

// The gradient of a bias (rows, copies), a block for each element: sums over all parts (batch, heads, blocks, distances) and
// distances that have this row, always in the same order.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_bias_gradient(float* grad, const float* parts, const u32* distance_rows, u32 batch, u32 heads, u32 blocks,
                            u32 distances, u32 copies) {
    __shared__ float sums[THREADS];
    const u32 copy = blockIdx.x;
    float sum = 0.0f;
    for (u32 at = threadIdx.x; at < distances; at += THREADS) {
        if (distance_rows[at] != blockIdx.y) continue;
        for (u32 sequence = 0; sequence < batch; sequence++) {
            for (u32 head = 0; head < heads; head++) {
                if (copies != 1 && head != copy) continue;
                const size_t first = (size_t(sequence) * heads + head) * blocks;
                for (u32 block = 0; block < blocks; block++) sum += parts[(first + block) * distances + at];
            }
        }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (u32 i = 1; i < THREADS; i++) sum += sums[i];
    grad[size_t(blockIdx.y) * copies + copy] = sum;
}

#define DEFINE(suffix, T, D)                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        attention_forward_##suffix##_d##D(const __grid_constant__ Call<T> call) {                                     \
        forward<T, D>(call);                                                                                          \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        attention_backward_kv_##suffix##_d##D(const __grid_constant__ Call<T> call) {                                 \
        backward_kv<T, D>(call);                                                                                      \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        attention_backward_q_##suffix##_d##D(const __grid_constant__ Call<T> call) {                                  \
        backward_q<T, D>(call);                                                                                       \
    }
#define DEFINE_ALL(suffix, T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        attention_delta_##suffix(const __grid_constant__ Call<T> call) {                                              \
        sum_products<T>(call);                                                                                        \
    }                                                                                                                 \
    DEFINE(suffix, T, 32) DEFINE(suffix, T, 64) DEFINE(suffix, T, 96) DEFINE(suffix, T, 128)
FOR_EACH_TYPE(DEFINE_ALL)
