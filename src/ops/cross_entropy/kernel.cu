// Cross-entropy over the rows of logits that count (the masked ones: others never come here), and its gradient.
//
// Fused: the vocabulary's bias, a softmax in one pass (running maximum and sum), the label's loss; the gradient
// scale * (softmax - one-hot) in the logits' place. Saved for backward: the logarithm of each row's sum (f32). Never written:
// logits with bias, probabilities. The scale is read from device memory, so that nothing waits for the host.
//
// Forward: 1 T read an element. Backward: 1 read, 1 written. Fused: 2 read (the second time from the cache, where the row
// fits), 1 written. About 6 FLOPs and one exponential an element and pass. A block of 512 threads has one row.
//
// Rows lie `stride` >= vocab elements apart. A row begins at any address (vocabularies are odd), so each pass walks to the
// next multiple of 16 bytes first. A label that is no id marks a row that does not count: no loss, no gradient.
#include "../cuda/common.cuh"

constexpr u32 THREADS = 512;

// Calls f(column, values) for the elements of a row that belong to this thread, one or several side by side.
template <class T, class F>
__device__ __forceinline__ void for_row(const T* row, u32 length, F f) {
    constexpr u32 N = WIDTH<T>;
    const u32 past = u32(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
    const u32 before = past == 0 ? 0 : N - past;
    const u32 head = before < length ? before : length;
    const u32 whole = head + (length - head) / N * N;
    const auto single = [&](u32 c) {
        float value[1] = {to_float(row[c])};
        f(c, value);
    };
    if (threadIdx.x < head) single(threadIdx.x);
    for (u32 c = head + threadIdx.x * N; c < whole; c += THREADS * N) {
        float values[N];
        load<int(N)>(row + c, values);
        f(c, values);
    }
    if (threadIdx.x < length - whole) single(whole + threadIdx.x);
}

// out = in after f(column, values) changed them; each element by the thread that reads it, so that out may be in.
template <class T, class U, class F>
__device__ __forceinline__ void map_row(const T* in, U* out, u32 length, F f) {
    for_row(in, length, [&](u32 c, auto& values) {
        constexpr int N = sizeof(values) / sizeof(float);
        f(c, values);
        if (reinterpret_cast<uintptr_t>(out + c) % (N * sizeof(U)) == 0) {
            store<N>(out + c, values);
        } else {
#pragma unroll
            for (int j = 0; j < N; j++) out[c + j] = from_float<U>(values[j]);
        }
    });
}

// The logits of columns from `column` on.
template <int N>
__device__ __forceinline__ void add_bias(float (&values)[N], const float* bias, u32 column) {
    if (bias == nullptr) return;
    float b[N];
    if (aligned(bias + column)) {
        load<N>(bias + column, b);
    } else {
#pragma unroll
        for (int j = 0; j < N; j++) b[j] = bias[column + j];
    }
#pragma unroll
    for (int j = 0; j < N; j++) values[j] += b[j];
}

// What a softmax over some of a row's elements has come to.
struct Softmax {
    float top;
    float sum;  // Of exp(x - top).
    u32 at;     // The first column of the largest.

    // Values in columns from `column` on, which lie behind those before.
    template <int N>
    __device__ __forceinline__ void add(u32 column, const float (&values)[N]) {
        float largest = values[0];
        u32 which = 0;
#pragma unroll
        for (int j = 1; j < N; j++) {
            if (values[j] > largest) {
                largest = values[j];
                which = j;
            }
        }
        if (largest > top) {
            sum *= expf(top - largest);
            top = largest;
            at = column + which;
        }
        // Nothing but -infinity so far: 0, not NaN.
        const float base = top == -INFINITY ? 0.0f : top;
#pragma unroll
        for (int j = 0; j < N; j++) sum += expf(values[j] - base);
    }
    __device__ __forceinline__ void join(float other_top, float other_sum, u32 other_at) {
        if (other_top > top || (other_top == top && other_at < at)) at = other_at;
        const float new_top = fmaxf(top, other_top);
        if (new_top == -INFINITY) {
            sum += other_sum;  // 0, or NaN.
            return;
        }
        sum = sum * expf(top - new_top) + other_sum * expf(other_top - new_top);
        top = new_top;
    }
};

template <class T>
__device__ Softmax softmax_of(const T* row, const float* bias, u32 vocab) {
    Softmax mine = {-INFINITY, 0.0f, 0xFFFFFFFFu};
    for_row(row, vocab, [&](u32 c, auto& values) {
        add_bias(values, bias, c);
        mine.add(c, values);
    });
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) {
        const float top = __shfl_xor_sync(ALL_LANES, mine.top, bits);
        const float sum = __shfl_xor_sync(ALL_LANES, mine.sum, bits);
        const u32 at = __shfl_xor_sync(ALL_LANES, mine.at, bits);
        mine.join(top, sum, at);
    }
    __shared__ float tops[THREADS / WARP], sums[THREADS / WARP];
    __shared__ u32 columns[THREADS / WARP];
    if (threadIdx.x % WARP == 0) {
        tops[threadIdx.x / WARP] = mine.top;
        sums[threadIdx.x / WARP] = mine.sum;
        columns[threadIdx.x / WARP] = mine.at;
    }
    __syncthreads();
    Softmax all = {tops[0], sums[0], columns[0]};
    for (u32 i = 1; i < THREADS / WARP; i++) all.join(tops[i], sums[i], columns[i]);
    return all;
}

// The label's logit; for a row that does not count, whatever.
template <class T>
__device__ __forceinline__ float logit_of(const T* row, const float* bias, u32 label, u32 vocab) {
    if (label >= vocab) return 0.0f;
    return to_float(row[label]) + (bias == nullptr ? 0.0f : bias[label]);
}

template <class T>
__device__ void forward(float* losses, float* lse_out, u32* correct, const T* logits, const float* bias,
                        const u32* labels, u32 vocab, u32 stride) {
    const T* const row = logits + size_t(blockIdx.x) * stride;
    const Softmax softmax = softmax_of(row, bias, vocab);
    if (threadIdx.x != 0) return;
    const u32 label = labels[blockIdx.x];
    const float log_sum = logf(softmax.sum);
    losses[blockIdx.x] = label < vocab ? log_sum - (logit_of(row, bias, label, vocab) - softmax.top) : 0.0f;
    lse_out[blockIdx.x] = softmax.top + log_sum;
    if (correct != nullptr) correct[blockIdx.x] = softmax.at == label ? 1 : 0;
}

// Writes scale * (exp(logit - top) * factor - one-hot) and zeros behind the row.
template <class T, class U>
__device__ __forceinline__ void write_gradient(U* out, const T* row, const float* bias, u32 label, float top, float factor,
                                               const float* scale, u32 vocab, u32 stride) {
    const float by = scale == nullptr ? 1.0f : scale[0];
    if (label >= vocab) {
        for (u32 c = threadIdx.x; c < stride; c += THREADS) out[c] = from_float<U>(0.0f);
        return;
    }
    map_row(row, out, vocab, [&](u32 c, auto& values) {
        add_bias(values, bias, c);
        for (float& x : values) x = by * (expf(x - top) * factor - (c++ == label ? 1.0f : 0.0f));
    });
    for (u32 c = vocab + threadIdx.x; c < stride; c += THREADS) out[c] = from_float<U>(0.0f);
}

template <class T, class U>
__device__ void backward(U* dlogits, const T* logits, const float* bias, const u32* labels, const float* lse,
                         const float* scale, u32 vocab, u32 stride) {
    const size_t start = size_t(blockIdx.x) * stride;
    write_gradient(dlogits + start, logits + start, bias, labels[blockIdx.x], lse[blockIdx.x], 1.0f, scale, vocab, stride);
}

template <class T, class U>
__device__ void fused(float* losses, U* dlogits, const T* logits, const float* bias, const u32* labels, const float* scale,
                      u32 vocab, u32 stride) {
    const size_t start = size_t(blockIdx.x) * stride;
    const u32 label = labels[blockIdx.x];
    const Softmax softmax = softmax_of(logits + start, bias, vocab);
    if (threadIdx.x == 0) {
        const float picked = logit_of(logits + start, bias, label, vocab) - softmax.top;
        losses[blockIdx.x] = label < vocab ? logf(softmax.sum) - picked : 0.0f;
    }
    __syncthreads();  // The label's logit has been read: its place may be written.
    write_gradient(dlogits + start, logits + start, bias, label, softmax.top, 1.0f / softmax.sum, scale, vocab, stride);
}

#define DEFINE(suffix, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_forward_##suffix(                              \
        float* losses, float* lse, u32* correct, const T* logits, const float* bias, const u32* labels, u32 rows,      \
        u32 vocab, u32 stride) {                                                                                       \
        if (blockIdx.x < rows) forward<T>(losses, lse, correct, logits, bias, labels, vocab, stride);                  \
    }
#define DEFINE_BACKWARD(suffix, T, U)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_backward_##suffix(                             \
        U* dlogits, const T* logits, const float* bias, const u32* labels, const float* lse, const float* scale,       \
        u32 rows, u32 vocab, u32 stride) {                                                                             \
        if (blockIdx.x < rows) backward<T, U>(dlogits, logits, bias, labels, lse, scale, vocab, stride);               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_fused_##suffix(                                \
        float* losses, U* dlogits, const T* logits, const float* bias, const u32* labels, const float* scale,          \
        u32 rows, u32 vocab, u32 stride) {                                                                             \
        if (blockIdx.x < rows) fused<T, U>(losses, dlogits, logits, bias, labels, scale, vocab, stride);               \
    }
FOR_EACH_TYPE(DEFINE)
DEFINE_BACKWARD(f32, float, float)
DEFINE_BACKWARD(bf16, __nv_bfloat16, __nv_bfloat16)
DEFINE_BACKWARD(f16, __half, __half)
DEFINE_BACKWARD(f32_bf16, float, __nv_bfloat16)
DEFINE_BACKWARD(f32_f16, float, __half)
