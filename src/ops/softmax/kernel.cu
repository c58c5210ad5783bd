// The softmax between the two products of attention, where those are cuBLAS's: scale, mask, softmax and dropout over the
// scores (batch, heads, queries, keys), and their backward.
//
// Fused: scale, key mask or additive mask (any broadcast strides), softmax, dropout. Saved for backward: the probabilities
// before dropout (T, in the scores' place). Never written: masked scores, the dropout's mask. With dropout the dropped
// probabilities are written beside, into memory that every layer may use again: backward forms them anew.
//
// Forward: 1 T read, 1 written (2 with dropout) an element. Backward: 2 read, 1 written (2 with dropout). About 10 FLOPs an
// element and, with dropout, 20 integer operations.
//
// A row belongs to one warp (keys <= 1024) or to one block, and stands in shared memory as f32 between the passes.
#include "../dropout/kernel.cuh"

struct Bias {
    u64 batch, head, query, key;  // Strides in elements, 0 where it is broadcast.
};

template <class T, int N>
__device__ void forward(T* probs, T* dropped, const T* scores, const u32* mask, const T* bias, u32 batch, u32 heads,
                        u32 queries, u32 keys, Bias strides, float scale, float p, u64 key) {
    DYNAMIC_SHARED(float, memory);
    const u64 row = u64(blockIdx.x) * blockDim.y + threadIdx.y;
    if (row >= u64(batch) * heads * queries) return;  // A whole warp of a block whose warps never meet.
    float* const line = memory + size_t(threadIdx.y) * keys;
    const u64 start = row * keys;
    const u32 query = u32(row % queries), head = u32(row / queries % heads), sequence = u32(row / queries / heads);
    const u32* const visible = mask == nullptr ? nullptr : mask + size_t(sequence) * keys;
    if (bias != nullptr) bias += sequence * strides.batch + head * strides.head + query * strides.query;
    const u32 first = threadIdx.x * N, step = blockDim.x * N;

    float top = -INFINITY, seen = 0.0f;
    for (u32 c = first; c < keys; c += step) {
        float s[N];
        load<N>(scores + start + c, s);
#pragma unroll
        for (int j = 0; j < N; j++) {
            s[j] *= scale;
            if (bias != nullptr) s[j] += to_float(bias[(c + j) * strides.key]);
            if (visible != nullptr) {
                if (visible[c + j] != 0) seen = 1.0f;
                else s[j] = -INFINITY;
            }
            top = fmaxf(top, s[j]);
        }
        store<N>(line + c, s);
    }
    top = row_reduce<Max>(top);
    // A sequence of which nothing may be seen is seen evenly.
    const bool even = visible != nullptr && row_reduce<Max>(seen) == 0.0f;
    float sum = 0.0f;
    for (u32 c = first; c < keys; c += step) {
        float s[N];
        load<N>(line + c, s);
#pragma unroll
        for (int j = 0; j < N; j++) {
            s[j] = even ? 1.0f : expf(s[j] - top);
            sum += s[j];
        }
        store<N>(line + c, s);
    }
    const float factor = 1.0f / row_reduce<Sum>(sum);
    DropoutMask drop(p, key);
    for (u32 c = first; c < keys; c += step) {
        float s[N];
        load<N>(line + c, s);
#pragma unroll
        for (int j = 0; j < N; j++) s[j] *= factor;
        store<N>(probs + start + c, s);
        if (dropped == nullptr) continue;
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (drop.active()) s[j] *= drop.factor(start + c + j);
        }
        store<N>(dropped + start + c, s);
    }
}

// With P the probabilities and D the dropout's factors: dscores = P * (D * dprobs - sum over the row of P * D * dprobs).
template <class T, int N>
__device__ void backward(T* dscores, T* dropped, const T* dprobs, const T* probs, u64 rows, u32 keys, float p, u64 key) {
    DYNAMIC_SHARED(float, memory);
    const u64 row = u64(blockIdx.x) * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    float* const kept = memory + size_t(threadIdx.y) * 2 * keys;
    float* const grads = kept + keys;
    const u64 start = row * keys;
    const u32 first = threadIdx.x * N, step = blockDim.x * N;
    DropoutMask drop(p, key);

    float inner = 0.0f;
    for (u32 c = first; c < keys; c += step) {
        float prob[N], grad[N], out[N];
        load<N>(probs + start + c, prob);
        load<N>(dprobs + start + c, grad);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float factor = drop.active() ? drop.factor(start + c + j) : 1.0f;
            grad[j] *= factor;
            out[j] = prob[j] * factor;
            inner += prob[j] * grad[j];
        }
        store<N>(kept + c, prob);
        store<N>(grads + c, grad);
        if (dropped != nullptr) store<N>(dropped + start + c, out);
    }
    inner = row_reduce<Sum>(inner);
    for (u32 c = first; c < keys; c += step) {
        float prob[N], grad[N];
        load<N>(kept + c, prob);
        load<N>(grads + c, grad);
#pragma unroll
        for (int j = 0; j < N; j++) grad[j] = prob[j] * (grad[j] - inner);
        store<N>(dscores + start + c, grad);
    }
}

#define DEFINE(suffix, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) softmax_forward_##suffix(                                        \
        T* probs, T* dropped, const T* scores, const u32* mask, const T* bias, u32 batch, u32 heads, u32 queries,      \
        u32 keys, u64 bias_b, u64 bias_h, u64 bias_q, u64 bias_k, float scale, float p, u64 key) {                     \
        const Bias strides = {bias_b, bias_h, bias_q, bias_k};                                                         \
        if (keys % WIDTH<T> == 0 && aligned(probs, dropped, scores)) {                                                 \
            forward<T, WIDTH<T>>(probs, dropped, scores, mask, bias, batch, heads, queries, keys, strides, scale, p,   \
                                 key);                                                                                 \
        } else {                                                                                                       \
            forward<T, 1>(probs, dropped, scores, mask, bias, batch, heads, queries, keys, strides, scale, p, key);    \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) softmax_backward_##suffix(                                       \
        T* dscores, T* dropped, const T* dprobs, const T* probs, u64 rows, u32 keys, float p, u64 key) {               \
        if (keys % WIDTH<T> == 0 && aligned(dscores, dropped, dprobs, probs)) {                                        \
            backward<T, WIDTH<T>>(dscores, dropped, dprobs, probs, rows, keys, p, key);                                \
        } else {                                                                                                       \
            backward<T, 1>(dscores, dropped, dprobs, probs, rows, keys, p, key);                                       \
        }                                                                                                              \
    }
FOR_EACH_TYPE(DEFINE)
