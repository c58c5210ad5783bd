// Convolutions over time feature by feature, with kernels that are the same everywhere (depthwise) or each position's own
// (dynamic), and their gradients. x and v are (batch, len, width).
//
// Saved for backward: what was given. An element of a result costs 2 k reads, most of them from the cache, and 2 k FLOPs, for
// k places of a kernel. Neighbouring threads have neighbouring features: accesses to x and v are wide. A depthwise kernel's
// gradient: one block for each place of each kernel, which reads all of x and dy that it meets.
#include "../cuda/common.cuh"

#define FOR_EACH_ELEMENT(at, n)                                                           \
    for (u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x, step_ = u64(gridDim.x) * blockDim.x; at < (n); at += step_)

// y (batch, out, width); kernel i, of w (channels, kernel), serves the i-th `each` features.
template <class T>
__device__ void depthwise_forward(T* y, const T* x, const T* w, u64 n, u32 len, u32 out, u32 width, u32 each, u32 kernel,
                                  u32 pad) {
    FOR_EACH_ELEMENT(at, n) {
        const u32 c = u32(at % width), t = u32(at / width % out);
        const T* const line = x + at / width / out * len * width + c;
        const T* const factors = w + size_t(c / each) * kernel;
        float sum = 0.0f;
        for (u32 j = pad > t ? pad - t : 0; j < kernel && t + j < len + pad; j++) {
            sum += to_float(factors[j]) * to_float(line[size_t(t + j - pad) * width]);
        }
        y[at] = from_float<T>(sum);
    }
}

template <class T>
__device__ void depthwise_backward_input(T* dx, const T* dy, const T* w, u64 n, u32 len, u32 out, u32 width, u32 each,
                                         u32 kernel, u32 pad) {
    FOR_EACH_ELEMENT(at, n) {
        const u32 c = u32(at % width), end = u32(at / width % len) + pad;
        const T* const line = dy + at / width / len * out * width + c;
        const T* const factors = w + size_t(c / each) * kernel;
        float sum = 0.0f;
        for (u32 j = end >= out ? end - out + 1 : 0; j < kernel && j <= end; j++) {
            sum += to_float(factors[j]) * to_float(line[size_t(end - j) * width]);
        }
        dx[at] = from_float<T>(sum);
    }
}

// A block for each place of each kernel.
template <class T>
__device__ void depthwise_backward_kernel(float* dw, const T* dy, const T* x, u32 batch, u32 len, u32 out, u32 width,
                                          u32 each, u32 kernel, u32 pad) {
    const u32 channel = blockIdx.x / kernel, j = blockIdx.x % kernel;
    const u64 n = u64(batch) * out * each;
    float sum = 0.0f;
    for (u64 at = threadIdx.x; at < n; at += blockDim.x) {
        const u32 c = channel * each + u32(at % each), t = u32(at / each % out);
        if (t + j < pad || t + j >= len + pad) continue;
        const u64 sequence = at / each / out;
        sum += to_float(dy[(sequence * out + t) * width + c]) * to_float(x[(sequence * len + t + j - pad) * width + c]);
    }
    sum = row_reduce<Sum>(sum);
    if (threadIdx.x == 0) dw[blockIdx.x] = sum;
}

// kernels (batch, len, width / d, kernel).
template <class T>
__device__ void dynamic_forward(T* y, const T* v, const T* kernels, u64 n, u32 len, u32 width, u32 d, u32 kernel, u32 pad) {
    FOR_EACH_ELEMENT(at, n) {
        const u32 c = u32(at % width), i = u32(at / width % len);
        const T* const line = v + at / width / len * len * width + c;
        const T* const factors = kernels + (at / width * (width / d) + c / d) * kernel;
        float sum = 0.0f;
        for (u32 j = pad > i ? pad - i : 0; j < kernel && i + j < len + pad; j++) {
            sum += to_float(factors[j]) * to_float(line[size_t(i + j - pad) * width]);
        }
        y[at] = from_float<T>(sum);
    }
}

template <class T>
__device__ void dynamic_backward_value(T* dv, const T* dy, const T* kernels, u64 n, u32 len, u32 width, u32 d, u32 kernel,
                                       u32 pad) {
    FOR_EACH_ELEMENT(at, n) {
        const u32 c = u32(at % width), end = u32(at / width % len) + pad;
        const u64 begin = at / width / len * len;
        float sum = 0.0f;
        for (u32 j = end >= len ? end - len + 1 : 0; j < kernel && j <= end; j++) {
            const u64 row = begin + end - j;
            sum += to_float(kernels[(row * (width / d) + c / d) * kernel + j]) * to_float(dy[row * width + c]);
        }
        dv[at] = from_float<T>(sum);
    }
}

// n is the number of all places of all kernels.
template <class T>
__device__ void dynamic_backward_kernel(T* dk, const T* dy, const T* v, u64 n, u32 len, u32 width, u32 d, u32 kernel,
                                        u32 pad) {
    const u32 heads = width / d;
    FOR_EACH_ELEMENT(at, n) {
        const u32 j = u32(at % kernel), head = u32(at / kernel % heads);
        const u64 row = at / kernel / heads;
        const u32 place = u32(row % len) + j;
        float sum = 0.0f;
        if (place >= pad && place < len + pad) {
            const T* const left = dy + row * width + head * d;
            const T* const right = v + (row / len * len + place - pad) * width + head * d;
            for (u32 c = 0; c < d; c++) sum += to_float(left[c]) * to_float(right[c]);
        }
        dk[at] = from_float<T>(sum);
    }
}

#define DEFINE(suffix, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        depthwise_forward_##suffix(T* y, const T* x, const T* w, u64 n, u32 len, u32 out, u32 width, u32 each,         \
                                   u32 kernel, u32 pad) {                                                              \
        depthwise_forward(y, x, w, n, len, out, width, each, kernel, pad);                                             \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        depthwise_backward_input_##suffix(T* dx, const T* dy, const T* w, u64 n, u32 len, u32 out, u32 width,          \
                                          u32 each, u32 kernel, u32 pad) {                                             \
        depthwise_backward_input(dx, dy, w, n, len, out, width, each, kernel, pad);                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        depthwise_backward_kernel_##suffix(float* dw, const T* dy, const T* x, u32 batch, u32 len, u32 out, u32 width, \
                                           u32 each, u32 kernel, u32 pad) {                                            \
        depthwise_backward_kernel(dw, dy, x, batch, len, out, width, each, kernel, pad);                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) dynamic_forward_##suffix(                                        \
        T* y, const T* v, const T* kernels, u64 n, u32 len, u32 width, u32 d, u32 kernel, u32 pad) {                   \
        dynamic_forward(y, v, kernels, n, len, width, d, kernel, pad);                                                 \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) dynamic_backward_value_##suffix(                                 \
        T* dv, const T* dy, const T* kernels, u64 n, u32 len, u32 width, u32 d, u32 kernel, u32 pad) {                 \
        dynamic_backward_value(dv, dy, kernels, n, len, width, d, kernel, pad);                                        \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) dynamic_backward_kernel_##suffix(                                \
        T* dk, const T* dy, const T* v, u64 n, u32 len, u32 width, u32 d, u32 kernel, u32 pad) {                       \
        dynamic_backward_kernel(dk, dy, v, n, len, width, d, kernel, pad);                                             \
    }
FOR_EACH_TYPE(DEFINE)
